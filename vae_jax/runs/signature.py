"""This user's signature, which distinguishes files that this user's commands have written from files from elsewhere.

It is an HMAC-SHA256 with a random secret in the user's state folder, which only the user can read. A file's owner
proves nothing: files that a user unpacks or copies belong to that user.
"""

import hmac
import os
import secrets
import stat
from pathlib import Path

from vae_jax.files.user import user_state

SECRET, BYTES = "secret", 32
_OF_THIS_PROCESS = os.urandom(BYTES)  # signs if no secret can be kept, while the process lives


class NoSecretError(Exception):
    """This user has no secret here; the message says why."""


def sign(content: bytes) -> tuple[str, str]:
    """The signature of a content, and the reason if only this process can verify it, else nothing."""
    try:
        return _sign(_secret(make=True), content), ""
    except NoSecretError as error:
        return _sign(_OF_THIS_PROCESS, content), str(error)


def is_own(content: bytes, signature: str) -> bool:
    """Whether `sign` gave a content this signature, called by this user.

    Raises:
        NoSecretError: if this process has not signed it, and there is no secret to verify it with.
    """
    given = signature.encode(errors="replace")
    if hmac.compare_digest(_sign(_OF_THIS_PROCESS, content).encode(), given):
        return True
    return hmac.compare_digest(_sign(_secret(make=False), content).encode(), given)


def _sign(secret: bytes, content: bytes) -> str:
    return hmac.digest(secret, content, "sha256").hex()


def _secret(make: bool) -> bytes:
    """The user's secret.

    Raises:
        NoSecretError: if there is none, or others might know it.
    """
    if (state := user_state()) is None:
        raise NoSecretError("there is no home folder (HOME) to keep a secret in")
    path = state / SECRET
    try:
        if make and not path.exists():
            _make(path)
        return _read(path)
    except FileNotFoundError as error:
        raise NoSecretError(f"there is no {path}") from error
    except (OSError, ValueError) as error:
        raise NoSecretError(f"{path} cannot be used: {getattr(error, 'strerror', None) or error}") from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        status, content = os.fstat(file.fileno()), file.read(BYTES + 1)
    if os.name == "posix" and (status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077):
        raise ValueError("expected a file of this user's that nobody else can read (mode 0600)")
    if len(content) != BYTES:
        raise ValueError(f"expected {BYTES} bytes")
    return content


def _make(path: Path) -> None:
    """Makes a secret, whole and readable by the user alone from its first moment."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(os.urandom(BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # replaces nothing: of two processes' secrets the first one stays
        except FileExistsError:
            return
        except OSError:  # some file systems have no links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
