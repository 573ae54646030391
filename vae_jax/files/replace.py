"""Files and folders that are written, or deleted, as a whole: nobody ever sees half of one."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vae_jax.errors import UserError
from vae_jax.files.held import check_held

NAME_LIMIT = 40  # characters of a file's name in the name of the file beside it, which file systems limit


def claim(file: BinaryIO) -> bool:
    """Marks an open file as one that a living process writes; False where another process does."""
    try:
        import fcntl  # Windows has none, and deletes no file that is open
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some file systems have no locks
        return True
    return True


def remove(path: Path, ending: str = ".tmp") -> None:
    """Deletes a file, a link (not what it leads to) or a folder with all that is in it, if it is there.

    It is moved aside first: half of a folder is never seen, and what turns out to be another run's goes back.

    Args:
        path: of what is deleted.
        ending: of its name while it is being deleted, by which it is known if the process dies.

    Raises:
        UserError: see `check_held`.
        OSError: if it cannot be deleted.
    """
    check_held(path)
    aside = _beside(path, ending)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    try:
        check_held(path)
    except UserError:
        aside.rename(path)
        raise
    _unfinished.add(aside)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()
    _unfinished.discard(aside)


def _beside(path: Path, ending: str = ".tmp") -> Path:
    """A name beside a path that nobody can know before."""
    return path.with_name(f".{path.name[:NAME_LIMIT]}.{secrets.token_hex(8)}{ending}")


_unfinished: set[Path] = set()  # what this process makes or deletes and has not come to the end of


def remove_unfinished() -> None:
    """Deletes what this process had not come to the end of: Ctrl-C may have been pressed just where it would have."""
    for path in tuple(_unfinished):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, beside this one, which takes its place at the end: no half-written one is ever seen.

    It is made under a name that nobody can know before, and only if nothing has this name; where the path itself is a
    link, the link is replaced. Folders are made if need be.

    Raises:
        UserError: see `check_held`.
        OSError: if it cannot be written.
    """
    check_held(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        _unfinished.add(temporary)
        with temporary.open("x+b") as file:
            claim(file)
            yield file
        check_held(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and (
            error.filename is None or Path(error.filename) == temporary
        ):  # whoever asked knows the path alone
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # which would hide why it could not be written
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A new folder beside a path, deleted at the end.

    Raises:
        UserError: see `check_held`.
        OSError: if it cannot be made.
    """
    check_held(path)
    making = _beside(path)
    try:
        _unfinished.add(making)
        making.mkdir()
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)
        _unfinished.discard(making)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which becomes this one at the end: no half-written one is ever seen.

    Raises:
        UserError: see `check_held`.
        OSError: if it cannot be made, or there is a folder of this name with something in it.
    """
    with scratch(path) as making:
        yield making
        check_held(path)
        making.rename(path)


def write_text(path: Path, text: str) -> None:
    """Writes a file so that no half-written one is ever seen."""
    with replacing(path) as file:
        file.write(text.encode())
