"""Guards the folders that this process writes into: nothing is written into a replaced folder or through a link."""

import os
from pathlib import Path

from vae_jax.errors import UserError

LOCK = ".lock"  # held by the process that writes into a run folder


held: dict[Path, tuple[int, int]] = {}  # folder -> device and inode of its lock's file


def check_held(path: Path) -> None:
    """Refuses a write below a folder that this process is `writing` into, if another folder has taken its place.

    Raises:
        UserError: if the lock in the folder is not the one that this process holds, or a link lies between the folder
            and `path`.
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
    """Refuses a folder inside a run's that is reached through a link, which whoever made the run may have chosen.

    Args:
        folder: of the run, which may be a link itself.
        path: of the folder inside it; one outside it is the user's own choice.

    Raises:
        UserError: naming the link.
    """
    folder, path = folder.absolute(), path.absolute()
    if path.is_relative_to(folder):
        for place in (path, *path.parents):
            if place == folder:
                break
            if place.is_symlink():
                raise UserError(
                    f"{place}: expected a folder of the run's own, found a link to {os.readlink(place)}; nothing is "
                    f"written through a link in a run"
                )


def make_inside(folder: Path) -> Path:
    """Makes a folder inside a run's, unless it exists.

    Raises:
        UserError: if it is a link, see `check_no_link`.
        OSError: if it cannot be made.
    """
    check_held(folder)
    check_no_link(folder.parent, folder)
    folder.mkdir(exist_ok=True)
    return folder
