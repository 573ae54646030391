"""The folders in use, seen without jax: commands refuse a wrong one before jax starts up; and files written whole."""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vae_jax.checked import UnfitError, read_json, read_text
from vae_jax.config import Config, expand, read_file
from vae_jax.errors import UserError, argument

DATA = "data.json"  # in a run folder: what it was trained on
LOCK = ".lock"  # held by the process that writes into a run folder
LEFT_OVER = re.compile(r"\.lock|\..+\.([0-9a-f]{16}|\d+)\.tmp|\.import\.\d+")  # what a process may leave that died
PARTS = ("figures", "code")  # folders in a run's, beside its checkpoints
PRIOR = "prior"  # in a run folder: the run that has trained a prior for it
NAME_LIMIT = 40  # characters of a file's name in the name of the file beside it, which file systems limit


def user_cache() -> Path | None:
    """Where downloads, resized images and compiled programs are kept unless told otherwise; None without a home."""
    return _users("XDG_CACHE_HOME", "~/.cache")


def user_state() -> Path | None:
    """Where this user's secret is kept, see `vae_jax.signature`; None without a home."""
    return _users("XDG_STATE_HOME", "~/.local/state")


def _users(variable: str, otherwise: str) -> Path | None:
    for base in (os.environ.get(variable, ""), os.path.expanduser(otherwise)):
        if os.path.isabs(base):
            return Path(base) / "vae_jax"
    return None


def read_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
        UserError: if the folder is not one of a run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a run folder, found {'a file' if folder.exists() else 'no such folder'}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: expected a run folder with a config.yaml in it, found none")
    # What an older version ignored without a word was nothing: what such a run is does not depend on it.
    return read_file(folder / "config.yaml", strict=False)


def is_folder(path: Path) -> bool:
    """Whether there is a folder.

    Raises:
        OSError: if that cannot be told, as where permission is denied; `Path.is_dir` may say no then.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


class Data(NamedTuple):
    """What a run tells of the data it was trained on.

    Attributes:
        name: of the data set.
        digest: of its images, see `vae_jax.run.digest_of_all`.
        class_names: of its labels, by number; None where they have none.
        run: the digest of the run's options and files, which its checkpoints have too; empty of an older version's.
    """

    name: str
    digest: str
    class_names: tuple[str, ...] | None
    run: str = ""


def read_data(folder: Path) -> Data | None:
    """What a run tells of its data; None where it has not been trained on any yet, but imported.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return read_json(folder / DATA, Data)
    except FileNotFoundError:
        return None


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuses to write where something is already or nothing can be, before any long work.

    Raises:
        UserError: if the folder is in use and neither option says what to do, it is not a run's, or it cannot be
            written.
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{folder}: expected a name in UTF-8 for the run") from error
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder for the run, found a file")
    check_writable(folder)
    if not contents(folder):
        return
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: expected a new or empty folder or a run's; found other files, which are left alone")
    if resume == overwrite:
        going_on, anew = argument("resume", True), argument("overwrite", True)
        raise UserError(f"{folder}: there is a run already; {going_on} continues it, {anew} deletes it first")
    read_config(folder)  # other programs have a config.yaml too


def absolute_start(config: Config) -> Config:
    """The configuration with `train.start` absolute, since it must be found from anywhere."""
    if config.train.start is None:
        return config
    return replace(config, train=replace(config.train, start=str(expand(config.train.start).absolute())))


def check_start(start: str | None, folder: Path) -> None:
    """Refuses to overwrite a folder that has the run in it to begin with.

    Raises:
        UserError: naming both.
    """
    if start is not None and expand(start).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"train.start: expected a run outside {folder}, which {argument('overwrite', True)} deletes; found {start}"
        )


def contents(folder: Path) -> list[Path]:
    """What is in a folder, if there is one, but for what a process leaves that died before it had written anything."""
    return sorted(path for path in folder.iterdir() if not LEFT_OVER.fullmatch(path.name)) if folder.is_dir() else []


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be written, or made, without making it.

    Raises:
        UserError: naming what is in the way.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: expected a folder that can be written; {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: expected a folder that can be written; permission denied in {there}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within it no other process writes into this folder of a run, sweep or comparison, which is made if need be.

    The lock is the operating system's, so that a process that died holds none. It belongs to a file in the folder:
    once the folder is removed, or another one stands in its place, this process writes nothing more into it.

    Raises:
        UserError: if another process does, or the folder cannot be written; by whatever writes into the folder, if the
            lock in it is not the one that this process holds.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    made = [each for each in (folder.absolute(), *folder.absolute().parents) if not each.exists()]
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: expected the file of a lock, found {_kind(path)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout as error:
        who = f"process {holder}" if (holder := _read_holder(path)) else "another process"
        raise UserError(f"{folder}: {who} is writing into it; wait until it ends, or stop it") from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: expected a folder that can be written; {reason}") from error
    try:
        try:
            _held[folder.absolute()] = _write_holder(path)
        except OSError as error:  # a full disk
            raise UserError(f"{folder}: expected a folder that can be written; {error.strerror or error}") from error
        for left in (path for place in (folder, *(folder / part for part in PARTS)) for path in _files_in(place)):
            if left.name != LOCK and LEFT_OVER.fullmatch(left.name) and not _is_written(left):
                remove(left)
        yield
    finally:
        with suppress(OSError, UserError):
            check_held(folder)
            if made and [each.name for each in folder.iterdir()] == [LOCK]:  # refused after all: as if nothing was
                path.unlink()
                for each in made:
                    each.rmdir()
        _held.pop(folder.absolute(), None)
        lock.release()


_held: dict[Path, tuple[int, int]] = {}  # folders that this process writes into -> device and inode of the lock's file


def _write_holder(path: Path) -> tuple[int, int]:
    """Writes this process's number into the lock's file that it holds; returns the file's device and inode."""
    number = os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        file = os.fstat(number)
        if file.st_nlink == 1:  # of several names another one may be a file of the user's
            os.ftruncate(number, 0)
            os.write(number, str(os.getpid()).encode())
        return file.st_dev, file.st_ino
    finally:
        os.close(number)


def _read_holder(path: Path) -> str:
    """The number of the process that holds the lock with this file; empty where it does not tell."""
    with suppress(OSError, UnfitError):
        if (found := read_text(path, limit=64).strip()).isdecimal():
            return found
    return ""


def check_held(path: Path) -> None:
    """Refuses a write below a folder that this process is `writing` into, where it is not that folder any more.

    Raises:
        UserError: if the lock in the folder is not the one that this process holds, or the way from the folder to
            `path` leads through a link.
    """
    path = path.absolute()
    for folder in (path, *path.parents):
        if folder in _held:
            try:
                file = (folder / LOCK).lstat()
            except OSError:
                file = None
            if file is None or (file.st_dev, file.st_ino) != _held[folder]:
                raise UserError(
                    f"{folder}: the folder was removed, or another run has begun in it, since this process locked it; "
                    f"nothing more is written there"
                )
            check_no_link(folder, path.parent)


def check_no_link(folder: Path, path: Path) -> None:
    """Refuses a folder below a run's to which a link leads: whoever made the run chose where.

    Args:
        folder: of the run, which may be a link itself.
        path: of the folder below it; one that is not below it is the user's own choice.

    Raises:
        UserError: naming the link.
    """
    folder, path = folder.absolute(), path.absolute()
    if path.is_relative_to(folder):
        for each in (path, *path.parents):
            if each == folder:
                break
            if each.is_symlink():
                raise UserError(
                    f"{each}: expected a folder of the run's own, found a link to {os.readlink(each)}; nothing is "
                    f"written through a link in a run"
                )


def make_inside(folder: Path) -> Path:
    """Makes a folder inside a run's, unless it is there.

    Raises:
        UserError: if it is a link, see `check_no_link`.
        OSError: if it cannot be made.
    """
    check_held(folder)
    check_no_link(folder.parent, folder)
    folder.mkdir(exist_ok=True)
    return folder


def _files_in(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none, or one of a run's is a link."""
    return list(folder.iterdir()) if folder.is_dir() and not (folder.is_symlink() and folder.name in PARTS) else []


def _claim(file: BinaryIO) -> bool:
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


def _is_written(path: Path) -> bool:
    """Whether a living process writes a file that `replacing` made."""
    if path.is_symlink() or not path.is_file():
        return False
    with suppress(OSError), path.open("rb") as file:
        return not _claim(file)
    return False


def _kind(path: Path) -> str:
    return "a link" if path.is_symlink() else "a folder" if path.is_dir() else "something else than a file"


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
            _claim(file)
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
