"""One process at a time writes into a folder of a run, sweep or comparison."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vae_jax.errors import UserError
from vae_jax.files.checked import UnfitError, read_text
from vae_jax.files.folders import LEFT_OVER
from vae_jax.files.held import LOCK, check_held, held
from vae_jax.files.replace import claim, remove

PARTS = ("figures", "code")  # folders in a run's, beside its checkpoints


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A context in which no other process writes into this folder of a run, sweep or comparison; makes the folder.

    The lock is the operating system's, so a process that died holds none. It belongs to a file in the folder: once the
    folder is removed or replaced, this process writes nothing more into it.

    Raises:
        UserError: if another process writes into it, or the folder cannot be written; from any later write, if the lock
            in it is not the one that this process holds.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    made = [parent for parent in (folder.absolute(), *folder.absolute().parents) if not parent.exists()]
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: expected the file of a lock, found {_kind(path)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _in_use(folder) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: expected a folder that can be written; {reason}") from error
    try:
        try:
            held[folder.absolute()] = _write_holder(path)
        except OSError as error:  # a full disk
            raise UserError(f"{folder}: expected a folder that can be written; {error.strerror or error}") from error
        for left in (path for place in (folder, *(folder / part for part in PARTS)) for path in _files_in(place)):
            if left.name != LOCK and LEFT_OVER.fullmatch(left.name) and not _is_written(left):
                remove(left)
        yield
    finally:
        with suppress(OSError, UserError):
            check_held(folder)
            if made and [entry.name for entry in folder.iterdir()] == [LOCK]:  # nothing was written: leave no trace
                path.unlink()
                for parent in made:
                    parent.rmdir()
        held.pop(folder.absolute(), None)
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Refuses a folder that another process is `writing` into, before anything in it is deleted.

    Raises:
        UserError: naming the process.
    """
    with suppress(OSError), (folder / LOCK).open("rb") as file:
        if not claim(file):
            raise _in_use(folder)


def _in_use(folder: Path) -> UserError:
    who = f"process {holder}" if (holder := _read_holder(folder / LOCK)) else "another process"
    return UserError(f"{folder}: {who} is writing into it; wait until it ends, or stop it")


def _write_holder(path: Path) -> tuple[int, int]:
    """Writes this process's number into the lock's file; returns the file's device and inode."""
    number = os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        file = os.fstat(number)
        if file.st_nlink == 1:  # under another name it may be a file of the user's
            os.ftruncate(number, 0)
            os.write(number, str(os.getpid()).encode())
        return file.st_dev, file.st_ino
    finally:
        os.close(number)


def _read_holder(path: Path) -> str:
    """The number of the process that holds this file's lock; empty if the file has none."""
    with suppress(OSError, UnfitError):
        if (number := read_text(path, limit=64).strip()).isdecimal():
            return number
    return ""


def _files_in(folder: Path) -> list[Path]:
    """The paths in a folder; none if it does not exist, or is one of PARTS and a link."""
    return list(folder.iterdir()) if folder.is_dir() and not (folder.is_symlink() and folder.name in PARTS) else []


def _is_written(path: Path) -> bool:
    """Whether a living process is writing a file that `replacing` made."""
    if path.is_symlink() or not path.is_file():
        return False
    with suppress(OSError), path.open("rb") as file:
        return not claim(file)
    return False


def _kind(path: Path) -> str:
    return "a link" if path.is_symlink() else "a folder" if path.is_dir() else "neither a file nor a folder"
