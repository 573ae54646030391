"""A run's folder: whether it is one, whether a run may begin in it, and what it is a run of."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vae_jax.config import Config, expand, read_file
from vae_jax.errors import UserError, argument
from vae_jax.files.checked import read_json
from vae_jax.files.folders import check_writable, contents

DATA = "data.json"  # in a run folder: what it was trained on
PRIOR = "prior"  # in a run folder: the run that has trained a prior for it


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
