"""Where the first of several processes listens: tried before jax's runtime listens, which may crash if it cannot."""

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from vae_jax.errors import UserError, quoted

BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # jax's own variable: where the first process listens in place of its address


def parts(address: str, name: str) -> tuple[str, int]:
    """The host and the port of "HOST:PORT"; an IPv6 address stands in brackets, which are left out.

    Args:
        address: to take apart.
        name: of the option that gave it.

    Raises:
        UserError: if it is none.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not bare or bracketed != (":" in bare) or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise UserError(f"{name}: expected HOST:PORT, with an IPv6 address in brackets; found {quoted(address)}")
    return bare, int(port)


@contextmanager
def claimed(address: str, name: str, report: Callable[[str], None]) -> Iterator[None]:
    """Within it this process alone can listen at an address: a second one that asks is refused.

    Args:
        address: "HOST:PORT".
        name: of the option that gave it.
        report: takes a line for the user.

    Raises:
        UserError: if the address is none of this machine's, or its port is in use or not permitted.
    """
    host, port = parts(address, name)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: expected a host that can be looked up; found {quoted(host)} ({reason})") from error
    with ExitStack() as claims:
        places = {str(place[0]): (family, place) for family, *_, place in found}
        bound = [each for each in places if _claim(claims, *places[each], f"{name} {address}")]
        if not bound:
            raise UserError(
                f"{name} {address}: expected an address of this machine, where its first process listens; found "
                f"{', '.join(places)}; where others reach it by one that it does not have, "
                f"{BIND}=HOST:PORT says at which it listens"
            )
        if _is_name(host) and all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in bound):
            report(
                f"{name} {address}: on this machine {host} is {', '.join(bound)}, which no other machine reaches; "
                f"{BIND}=HOST:PORT says where it listens instead"
            )
        yield


def _claim(claims: ExitStack, family: int, place: tuple, what: str) -> bool:
    """Binds a socket, which from then on this process alone may share; False where the machine has no such address.

    gRPC, which jax's service listens with, lets all processes of a user share a port; a connection goes to any of them.
    """
    try:
        claim = claims.enter_context(socket.socket(family, socket.SOCK_STREAM))
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a run before may still be closing
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
    """Whether this is a machine's name, which may mean another address elsewhere."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.rstrip(".").lower().rpartition(".")[2] != "localhost"
    return False
