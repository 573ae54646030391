"""Whether a folder exists, what it holds, and whether it can be written."""

import os
import re
import stat
from pathlib import Path

from vae_jax.errors import UserError, argument

LEFT_OVER = re.compile(r"\.lock|\..+\.([0-9a-f]{16}|\d+)\.tmp|\.import\.\d+")  # what a process that died may leave
copies: dict[Path, str] = {}  # folder, absolute -> the address whose copy it is: nothing is written into it


def is_folder(path: Path) -> bool:
    """Whether a folder exists.

    Raises:
        OSError: if that cannot be known, as without permission; `Path.is_dir` may return False then.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def contents(folder: Path) -> list[Path]:
    """The paths in a folder, without a dead process's leftovers; none if there is no folder."""
    return sorted(path for path in folder.iterdir() if not LEFT_OVER.fullmatch(path.name)) if folder.is_dir() else []


def is_copy(folder: Path) -> bool:
    """Whether a folder is the copy here of what an address names."""
    return folder.absolute() in copies


def shown_as(folder: Path) -> str:
    """A folder for the reader: of a copy the address whose copy it is, with the first digits of the commit."""
    if not is_copy(folder):
        return str(folder)
    address, _, commit = copies[folder.absolute()].rpartition("@")
    return f"{address}@{commit[:8]}"


def name_of(folder: Path) -> str:
    """The name of a folder, of a copy that of what the address names."""
    return Path(shown_as(folder).partition("@")[0]).name if is_copy(folder) else folder.absolute().name


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be written or made, or that is a copy; does not make it.

    Raises:
        UserError: naming what is in the way.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        if place in copies:
            raise UserError(
                f"{copies[place]}: expected a folder to write into; found an address, whose copy here stays as it is; "
                f"{argument('folder')} names another place"
            )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder}: expected a folder that can be written; {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: expected a folder that can be written; permission denied in {existing}")
