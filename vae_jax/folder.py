"""The folders in use, seen without jax: commands refuse a wrong one before jax starts up; and files written whole."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vae_jax.config import Config, read_file, without_unused
from vae_jax.errors import UserError

DATA = "data.json"  # in a run folder: what it was trained on
LOCK = ".lock"  # held by the process that writes into a run folder
LEFT_OVER = re.compile(r"\.lock|\..+\.\d+\.tmp|\.import\.\d+")  # what a process may leave that died


def user_cache() -> Path | None:
    """Where downloads, resized images and compiled programs are kept unless told otherwise; None without a home."""
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
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
    return without_unused(read_file(folder / "config.yaml"))


class Data(NamedTuple):
    """What a run tells of the data it was trained on.

    Attributes:
        name: of the data set.
        digest: of its images, see `vae_jax.run.digest_of_all`.
        class_names: of its labels, by number; None where they have none.
    """

    name: str
    digest: str
    class_names: tuple[str, ...] | None


def read_data(folder: Path) -> Data | None:
    """What a run tells of its data; None where it has not been trained on any yet, but imported.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / DATA
    try:
        found = json.loads(path.read_bytes())
        names = found["class_names"]
        return Data(str(found["name"]), str(found["digest"]), None if names is None else tuple(map(str, names)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: expected what `vae-jax train` has written; {error!r:.200}") from error


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
    # What a process leaves that died before it had written the run's configuration is nothing.
    if not folder.is_dir() or all(LEFT_OVER.fullmatch(path.name) for path in folder.iterdir()):
        return
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: expected a new or empty folder or a run's; found other files, which are left alone")
    if resume == overwrite:
        raise UserError(f"{folder}: there is a run already; --resume continues it, --overwrite deletes it first")
    read_config(folder)  # other programs have a config.yaml too


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
    """Within it no other process writes into this run folder, which is made if need be.

    The lock is the operating system's, so that a process that died holds none.

    Raises:
        UserError: if another process does, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    made = [each for each in (folder.absolute(), *folder.absolute().parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = path.read_text(encoding="utf-8", errors="replace").strip()
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise UserError(f"{folder}: {who} is writing into this run; wait until it ends, or stop it") from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: expected a folder that can be written; {reason}") from error
    try:
        path.write_text(str(os.getpid()), encoding="utf-8")
        for left in (*folder.iterdir(), *folder.glob("figures/.*.tmp")):
            if left.name != LOCK and LEFT_OVER.fullmatch(left.name):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        with suppress(OSError):
            if made and [each.name for each in folder.iterdir()] == [LOCK]:  # refused after all: as if nothing was
                path.unlink()
                for each in made:
                    each.rmdir()
        lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside this one to write to, which takes its place at the end: no half-written one is ever seen."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file so that no half-written one is ever seen."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
