"""Compiled programs are kept in the user's cache folder, so that the next command starts in a few seconds.

jax reads and writes them. What it leaves to others is done here: their size is bounded, and one that cannot be read is
deleted, so that it is written anew. jax can bound them too (JAX_COMPILATION_CACHE_MAX_SIZE), but then it locks the
folder for every program, and one file that a dead process left without its fellow ends all writing.
"""

import os
import re
import shutil
import stat
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from vae_jax.cli.common import say
from vae_jax.files.user import user_cache

LIMIT = 1 << 30  # bytes; the ones not used for longest go first
ENTRY = "-cache"  # how an entry's name ends, which begins with its program's name and a minus
# What jax warns of, and nothing else says.
FAULT = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.DOTALL)


def keep_compiled() -> None:
    """Has jax keep compiled programs, through its own environment variables, before it is imported.

    A cache that the user has set is left as it is, and so are jax's warnings of it. Where nothing can be kept, nothing
    is lost but time.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    limit = os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE", str(LIMIT))  # jax's: -1 for none, 0 to keep nothing
    if not re.fullmatch(r"-1|[1-9]\d*", limit):
        return
    try:
        if (folder := _own_folder()) is None:
            return
        known = _tidy(folder, int(limit))
    except OSError:
        return
    os.environ.pop("JAX_COMPILATION_CACHE_MAX_SIZE", None)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    _mend(folder, known)


def _own_folder() -> Path | None:
    """A folder that nobody but this user writes into, since what is in it will run as this user; None without a home.

    Users who share a cache folder have one each.

    Raises:
        OSError: if it cannot be made or written.
    """
    if (cache := user_cache()) is None:
        return None
    user = os.geteuid() if hasattr(os, "geteuid") else None
    folder = cache / ("compiled" if user is None else f"compiled-{user}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None:
        found = folder.stat()
        if found.st_uid != user:
            return None
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # what is there may be anybody's
            folder.chmod(0o700)
            for path in folder.iterdir():
                _delete(str(path))
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _tidy(folder: Path, limit: int) -> set[str]:
    """Deletes what no program is, and the ones not used for longest where they are too many; returns the others' names.

    Args:
        folder: of the programs; XLA keeps what it measures on a GPU in a folder inside.
        limit: bytes of all files; -1 for none.

    Raises:
        OSError: if the folder cannot be read.
    """
    files: list[tuple[float, int, str]] = []
    own = folder.stat().st_uid
    os.listdir(folder)  # or raises, which os.walk does not
    for place, folders, names in os.walk(folder):
        for name in [*names, *(each for each in folders if each.endswith(ENTRY))]:
            path = os.path.join(place, name)
            with suppress(OSError):
                found = os.lstat(path)
                if stat.S_ISREG(found.st_mode) and found.st_size and found.st_uid == own:
                    # A file's time of access may be kept to the day, or not at all.
                    files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
                else:  # empty as the disk was full, what jax would wait for or write through, or another user's
                    _delete(path)
    over = sum(size for _, size, _ in files) - limit if limit >= 0 else 0
    kept = set()
    for _, size, path in sorted(files):
        if over > 0:
            with suppress(OSError):
                _delete(path)
            over -= size
        else:
            kept.add(os.path.basename(path))
    return kept


def _delete(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):  # another process has
            os.unlink(path)


def _mend(folder: Path, known: set[str]) -> None:
    """From now on deletes the entries that jax cannot read, and says in one line, and not in jax's, if none is kept.

    jax compiles what it cannot read, and then writes it: it is there for the next command. jax says which program it
    was, but not which entry: all of the program's are deleted. After a failed write only those that are not `known`,
    of which one is a part of a file.
    """
    shown = warnings.showwarning
    said = False

    def show(message: Any, *arguments: Any, **options: Any) -> None:
        nonlocal said
        if not (fault := FAULT.fullmatch(str(message))):
            shown(message, *arguments, **options)
            return
        doing, program, reason = fault.groups()
        left = False
        try:
            for name in os.listdir(folder):
                if name.startswith(f"{program}-") and (doing == "reading" or name not in known):
                    known.discard(name)
                    try:
                        _delete(os.path.join(folder, name))
                    except OSError:
                        left = True
        except OSError:
            left = True
        if (doing == "writing" or left) and not said:
            said = True
            reason = " ".join(reason.split(": '")[0].split())[:200]
            say(f"vae-jax: compiled programs are not kept in {folder} ({reason}); the next command compiles them again")

    warnings.showwarning = show
    warnings.filterwarnings("always", message=r"Error (reading|writing) persistent compilation cache entry")
