"""Keeps compiled programs in the user's cache folder, so that the next command starts in a few seconds.

jax reads and writes them. Here their total size is limited, and a program that cannot be read is deleted, so that it is
written again. jax can limit the size too (JAX_COMPILATION_CACHE_MAX_SIZE), but then it locks the folder for every
program, and one file that a dead process left without its second file ends all writing.
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

LIMIT = 1 << 30  # bytes; the programs not used for longest are deleted first
ENTRY = "-cache"  # the end of an entry's name, which begins with its program's name and a minus
# jax's warning: nothing else reports the fault.
FAULT = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.DOTALL)


def keep_compiled() -> None:
    """Makes jax keep compiled programs, through its environment variables, before it is imported.

    A cache that the user has set is left alone, and so are jax's warnings of it. If nothing can be kept, only time is
    lost.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    limit = os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE", str(LIMIT))  # jax's: -1 for none, 0 to keep nothing
    if not re.fullmatch(r"-1|[1-9]\d*", limit):
        return
    try:
        if (folder := _private_folder()) is None:
            return
        known = _tidy(folder, int(limit))
    except OSError:
        return
    os.environ.pop("JAX_COMPILATION_CACHE_MAX_SIZE", None)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    _delete_unreadable(folder, known)


def _private_folder() -> Path | None:
    """A folder that only this user writes into, since its programs run as this user; None without a home.

    Users who share a cache folder have different folders in it.

    Raises:
        OSError: if it cannot be made or written.
    """
    if (cache := user_cache()) is None:
        return None
    user = os.geteuid() if hasattr(os, "geteuid") else None
    folder = cache / ("compiled" if user is None else f"compiled-{user}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None:
        status = folder.stat()
        if status.st_uid != user:
            return None
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # its files may be anybody's
            folder.chmod(0o700)
            for path in folder.iterdir():
                _delete(str(path))
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _tidy(folder: Path, limit: int) -> set[str]:
    """Deletes files that are no programs, and those not used for longest above the limit; returns the names kept.

    Args:
        folder: of the programs; XLA keeps its measurements on a GPU in a folder inside.
        limit: bytes of all files; -1 for none.

    Raises:
        OSError: if the folder cannot be read.
    """
    files: list[tuple[float, int, str]] = []
    owner = folder.stat().st_uid
    os.listdir(folder)  # raises OSError, as os.walk would not
    for place, folders, names in os.walk(folder):
        for name in [*names, *(entry for entry in folders if entry.endswith(ENTRY))]:
            path = os.path.join(place, name)
            with suppress(OSError):
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and status.st_size and status.st_uid == owner:
                    # A file's time of access may be as coarse as a day, or missing.
                    files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
                else:  # empty after a full disk, a pipe or a link that jax would use, or another user's
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
        with suppress(FileNotFoundError):  # another process has deleted it
            os.unlink(path)


def _delete_unreadable(folder: Path, known: set[str]) -> None:
    """From now on deletes entries that jax cannot read; one line of ours, not jax's, says if programs cannot be kept.

    jax compiles a program that it cannot read, and writes it for the next command. jax names the program, but not the
    entry: all entries of the program are deleted. After a failed write only those that are not `known` are, among which
    is the incomplete one.
    """
    shown = warnings.showwarning
    reported = False

    def show(message: Any, *arguments: Any, **options: Any) -> None:
        nonlocal reported
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
        if (doing == "writing" or left) and not reported:
            reported = True
            reason = " ".join(reason.split(": '")[0].split())[:200]
            say(f"vae-jax: compiled programs are not kept in {folder} ({reason}); the next command compiles them again")

    warnings.showwarning = show
    warnings.filterwarnings("always", message=r"Error (reading|writing) persistent compilation cache entry")
