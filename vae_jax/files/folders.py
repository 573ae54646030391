"""Whether there is a folder, what is in it, and whether it can be written."""

import os
import re
import stat
from pathlib import Path

from vae_jax.errors import UserError

LEFT_OVER = re.compile(r"\.lock|\..+\.([0-9a-f]{16}|\d+)\.tmp|\.import\.\d+")  # what a process may leave that died


def is_folder(path: Path) -> bool:
    """Whether there is a folder.

    Raises:
        OSError: if that cannot be told, as where permission is denied; `Path.is_dir` may say no then.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


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
