"""A folder that this process writes into: nothing is written once it is another one, or through a link."""

import os
from pathlib import Path

from vae_jax.errors import UserError

LOCK = ".lock"  # held by the process that writes into a run folder


held: dict[Path, tuple[int, int]] = {}  # folders that this process writes into -> device and inode of the lock's file


def check_held(path: Path) -> None:
    """Refuses a write below a folder that this process is `writing` into, where it is not that folder any more.

    Raises:
        UserError: if the lock in the folder is not the one that this process holds, or the way from the folder to
            `path` leads through a link.
    """
    path = path.absolute()
    for folder in (path, *path.parents):
        if folder in held:
            try:
                file = (folder / LOCK).lstat()
            except OSError:
                file = None
            if file is None or (file.st_dev, file.st_ino) != held[folder]:
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
