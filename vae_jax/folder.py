"""The folders in use, seen without jax: commands refuse a wrong one before jax starts up; and files written whole."""

import os
from pathlib import Path

from vae_jax.config import Config, load_config
from vae_jax.errors import UserError


def user_cache() -> Path:
    """Where downloads, resized images and compiled programs are kept unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "vae_jax"


def read_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
        UserError: if the folder is not one of a run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a run folder, found {'a file' if folder.exists() else 'no such folder'}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: expected a run folder with a config.yaml in it, found none")
    return load_config(folder / "config.yaml")


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuses to write where something is already or nothing can be, before any long work.

    Raises:
        UserError: if the folder is in use and neither option says what to do, it is not a run's, or it cannot be
            written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder for the run, found a file")
    check_writable(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
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


def write_text(path: Path, text: str) -> None:
    """Writes a file so that no half-written one is ever seen."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
