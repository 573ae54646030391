"""A run's folder: whether it is one, whether a run may begin in it, and what it is a run of."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

from vae_jax.config import Config, expand, read_file
from vae_jax.errors import UserError, argument, printable
from vae_jax.files import checked
from vae_jax.files.checked import read_json
from vae_jax.files.folders import check_writable, contents
from vae_jax.files.replace import remove
from vae_jax.runs import own_parts

DATA = "data.json"  # in a run folder: what it was trained on
PRIOR = "prior"  # in a run folder: the run that has trained a prior for it
ORIGIN, DIVERGED = "imported.json", "diverged.txt"
REASON_LIMIT = 1 << 16  # bytes of why a run diverged
# Of a run, in the order in which it is deleted; its configuration, which makes the folder a run's, is written over.
CONTENTS = ("figures", "latents_*.npz", "summary.json", "metrics.jsonl", "checkpoints", PRIOR, DATA, ORIGIN, DIVERGED)


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
        digest: of its images, see `vae_jax.runs.identity.digest_of_all`.
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


class Origin(NamedTuple):
    """What RUN/imported.json tells of the weights that a run began with.

    Attributes:
        counters: training batches that each BatchNorm had seen, by PyTorch's names.
        file: that they were in.
        sha256: of it.
    """

    counters: dict[str, Annotated[int, "[0, 9007199254740992]"]]
    file: str = ""
    sha256: str = ""


def origin(folder: str | Path) -> Origin | None:
    """What a run folder tells of the weights it began with; None if they were not imported.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return read_json(Path(folder) / ORIGIN, Origin)
    except FileNotFoundError:
        return None


def read_reason(folder: Path) -> str:
    """Why a run diverged that has.

    Raises:
        UserError: if what tells is damaged.
    """
    with checked.named(folder / DIVERGED):
        if not (reason := printable(checked.read_text(folder / DIVERGED, REASON_LIMIT).strip())):
            raise checked.UnfitError("expected why the run diverged; found nothing")
    return reason


def delete(folder: Path) -> None:
    """Deletes a run, and nothing else that lies in its folder."""
    for path in [path for pattern in CONTENTS for path in folder.glob(pattern)]:
        remove(path)
    own_parts.delete(folder)
