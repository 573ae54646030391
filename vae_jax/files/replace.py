"""Writes and deletes files and folders as a whole: nobody ever sees half of one."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vae_jax.errors import UserError
from vae_jax.files.held import check_held

NAME_LIMIT = 40  # characters of a file's name in the name of its temporary file: file systems limit names


def claim(file: BinaryIO) -> bool:
    """Marks an open file as one that this process writes; False if another process writes it."""
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
    """Deletes a file, a link (not its target) or a whole folder, if it exists.

    It is moved aside first: half of a folder is never seen, and another run's folder can be moved back.

    Args:
        path: to delete.
        ending: of its name while it is being deleted; marks it if the process dies.

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
    """A path beside this one, with a name that nobody can guess."""
    return path.with_name(f".{path.name[:NAME_LIMIT]}.{secrets.token_hex(8)}{ending}")


_unfinished: set[Path] = set()  # what this process is making or deleting


def remove_unfinished() -> None:
    """Deletes what this process left unfinished, as when Ctrl-C interrupts the clean-up itself."""
    for path in tuple(_unfinished):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A context with a file to write to, which takes this path's place at the end: no half-written file is ever seen.

    It is made under a name that nobody can guess, and only if nothing has this name. If the path is a link, the link is
    replaced. Missing folders are made.

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
        ):  # the caller knows only the path
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # it would hide why the file could not be written
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A context with a new folder beside a path, deleted at the end.

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
    """A context with a folder to write to, which becomes this one at the end: no half-written folder is ever seen.

    Raises:
        UserError: see `check_held`.
        OSError: if it cannot be made, or this folder exists and is not empty.
    """
    with scratch(path) as making:
        yield making
        check_held(path)
        making.rename(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole, see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files of which none takes its place before all are written, see `replacing`.

    They do so in the order given, so that the last one is not there without the others.
    """
    with ExitStack() as written:
        for path, content in reversed([*contents.items()]):
            file = written.enter_context(replacing(path))
            file.write(content)
            file.flush()  # what cannot be written is known now
