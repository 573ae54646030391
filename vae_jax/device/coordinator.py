"""Checks the address where the first of several processes listens: jax's runtime may crash if it cannot listen."""

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from vae_jax.errors import UserError, quoted

BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # jax's variable: the first process listens here instead of at its address


def parts(address: str, name: str) -> tuple[str, int]:
    """The host and the port of "HOST:PORT"; an IPv6 address has brackets, which are removed.

    Args:
        address: to split.
        name: of the option that gave it.

    Raises:
        UserError: if it is no such address.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not bare or bracketed != (":" in bare) or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise UserError(f"{name}: expected HOST:PORT, with an IPv6 address in brackets; found {quoted(address)}")
    return bare, int(port)


@contextmanager
def claimed(address: str, name: str, report: Callable[[str], None]) -> Iterator[None]:
    """A context in which only this process can listen at an address.

    Args:
        address: "HOST:PORT".
        name: of the option that gave it.
        report: takes a line for the user.

    Raises:
        UserError: if this machine does not have the address, or the port is in use or not permitted.
    """
    host, port = parts(address, name)
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: expected a host that can be looked up; found {quoted(host)} ({reason})") from error
    with ExitStack() as claims:
        places = {str(place[0]): (family, place) for family, *_, place in infos}
        bound = [ip for ip in places if _claim(claims, *places[ip], f"{name} {address}")]
        if not bound:
            raise UserError(
                f"{name} {address}: expected an address of this machine, where its first process listens; found "
                f"{', '.join(places)}; where others reach it by one that it does not have, "
                f"{BIND}=HOST:PORT says at which it listens"
            )
        if _is_name(host) and all(ipaddress.ip_address(ip.partition("%")[0]).is_loopback for ip in bound):
            report(
                f"{name} {address}: on this machine {host} is {', '.join(bound)}, which no other machine reaches; "
                f"{BIND}=HOST:PORT says where it listens instead"
            )
        yield


def _claim(claims: ExitStack, family: int, place: tuple, what: str) -> bool:
    """Binds a socket that only this process may share; False if the machine does not have the address.

    jax's service listens through gRPC, which lets all processes of a user share a port; a connection goes to any of
    them.
    """
    try:
        claim = claims.enter_context(socket.socket(family, socket.SOCK_STREAM))
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier run's connections may still be closing
        claim.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"{what}: expected a port that is free; found it in use by another program") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(f"{what}: expected a port that this user may listen at; {error.strerror}") from error
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return False
        raise UserError(f"{what}: expected an address to listen at; {error.strerror or error}") from error
    if hasattr(socket, "SO_REUSEPORT"):
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return True


def _is_name(host: str) -> bool:
    """Whether a host is given by a name, which may mean another address elsewhere."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.rstrip(".").lower().rpartition(".")[2] != "localhost"
    return False
