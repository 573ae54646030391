"""A run's folder: checks that it is one or may become one, and reads its notes of the run."""

import os
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, NamedTuple

from vae_jax.config import Config, expand, read_file
from vae_jax.errors import UserError, argument, printable
from vae_jax.files import checked
from vae_jax.files.checked import read_json
from vae_jax.files.folders import check_writable, contents
from vae_jax.files.lock import check_unlocked
from vae_jax.files.replace import remove
from vae_jax.runs import own_parts
from vae_jax.runs.hub import is_address, pinned

DATA = "data.json"  # in a run folder: the data that it was trained on
PRIOR = "prior"  # in a run folder: the run that has trained a prior for it
ORIGIN, DIVERGED = "imported.json", "diverged.txt"
LOGS = "logs"  # in a run folder: what loggers write
LOGGED = ("run.json", "tensorboard", "wandb", "trackio")  # in RUN/logs; other files there are the user's
REASON_LIMIT = 1 << 16  # bytes of the reason why a run diverged
# The contents of a run, in the order of deletion, but its configuration, which makes the folder a run's and is
# overwritten.
CONTENTS = (
    *("figures", "latents_*.npz", "explore.html", "report.html", "summary.json", "metrics.jsonl", "checkpoints"),
    *(PRIOR, DATA, ORIGIN, DIVERGED),
)


def read_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
        UserError: if the folder is not one of a run.
    """
    if is_address(folder):
        raise UserError(f"{folder}: expected a run folder of this machine, which is written into; found an address")
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a run folder, found {'a file' if folder.exists() else 'no such folder'}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: expected a run folder with a config.yaml in it, found none")
    # Older versions ignored unknown options without a word, so a run does not depend on them.
    return read_file(folder / "config.yaml", strict=False)


class Data(NamedTuple):
    """A run's note of the data that it was trained on.

    Attributes:
        name: of the data set.
        digest: of its images, see `vae_jax.runs.identity.digest_of_all`.
        class_names: of its labels, by number; None if they have none.
        run: the digest of the run's options and files, which its checkpoints have too; empty in older versions.
    """

    name: str
    digest: str
    class_names: tuple[str, ...] | None
    run: str = ""


def read_data(folder: Path) -> Data | None:
    """A run's note of its data; None if it was imported and has not been trained yet.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return read_json(folder / DATA, Data)
    except FileNotFoundError:
        return None


def pictures(folder: Path) -> list[Path]:
    """A run's pictures, with only the last epoch's reconstructions."""
    paths = sorted((folder / "figures").glob("*.png"))
    epochs = [path for path in paths if path.name.startswith("reconstructions_epoch_")]
    return [path for path in paths if path not in epochs[:-1]]


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that is in the way or cannot be written, before any long work.

    Raises:
        UserError: if the folder has a run and not exactly one option is set, it is not a run's, it cannot be
            written, or another process writes into what is to be deleted.
    """
    if is_address(folder):
        raise UserError(f"{folder}: expected a folder for the run; found an address: `vae-jax push` brings a run there")
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{folder}: expected a name in UTF-8 for the run") from error
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder for the run, found a file")
    check_writable(folder)
    if not contents(folder):
        return
    if overwrite:
        check_prior_unlocked(folder)
        if _is_prior(folder):  # whatever is left of it
            return
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: expected a new or empty folder or a run's; found other files, which are left alone")
    if resume == overwrite:
        going_on, overwriting = argument("resume", True), argument("overwrite", True)
        raise UserError(f"{folder}: there is a run already; {going_on} continues it, {overwriting} deletes it first")
    read_config(folder)  # another program's config.yaml is refused here


def check_prior_unlocked(folder: Path) -> None:
    """Refuses to delete a run while another process trains a prior in its folder.

    Raises:
        UserError: naming the process.
    """
    if not (folder / PRIOR).is_symlink():  # of a link what it leads to stays
        check_unlocked(folder / PRIOR)


def _is_prior(folder: Path) -> bool:
    """Whether a folder is RUN/prior with nothing in it but what a run has, though it may be damaged."""
    known = ("config.yaml", own_parts.CODE, LOGS, *CONTENTS)
    return (
        folder.name == PRIOR
        and (folder.parent / "config.yaml").is_file()
        and all(any(fnmatch(path.name, pattern) for pattern in known) for path in contents(folder))
    )


def absolute_start(config: Config) -> Config:
    """The configuration with an absolute `train.start`, see `start_of`."""
    if config.train.start is None:
        return config
    return replace(config, train=replace(config.train, start=start_of(config.train.start)))


def start_of(start: str) -> str:
    """A `train.start` that means the same from any folder and at any time: an absolute path, or a commit's address.

    Raises:
        UserError: see `vae_jax.runs.hub.downloaded`.
    """
    return pinned(start) if is_address(start) else str(expand(start).absolute())


def check_start(start: str | None, folder: Path) -> None:
    """Refuses to overwrite a folder that holds the run to start with.

    Raises:
        UserError: naming both.
    """
    if start is not None and not is_address(start) and expand(start).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"train.start: expected a run outside {folder}, which {argument('overwrite', True)} deletes; found {start}"
        )


class Origin(NamedTuple):
    """The origin of the weights that a run started with, as in RUN/imported.json.

    Attributes:
        counters: training batches that BatchNorm layers had seen, by PyTorch's names.
        file: that held the weights.
        sha256: of the file.
    """

    counters: dict[str, Annotated[int, "[0, 9007199254740992]"]]
    file: str = ""
    sha256: str = ""


def origin(folder: str | Path) -> Origin | None:
    """The origin of the weights that a run started with; None if they were not imported.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return read_json(Path(folder) / ORIGIN, Origin)
    except FileNotFoundError:
        return None


def read_reason(folder: Path) -> str:
    """The reason why a run diverged.

    Raises:
        UserError: if its file is damaged.
    """
    with checked.named(folder / DIVERGED):
        if not (reason := printable(checked.read_text(folder / DIVERGED, REASON_LIMIT).strip())):
            raise checked.UnfitError("expected why the run diverged; found nothing")
    return reason


def delete_logs(folder: Path) -> None:
    """Deletes what loggers of ours have written in a run's or a sweep's folder, and no other file."""
    if (folder / LOGS).is_symlink():
        (folder / LOGS).unlink()
    if (folder / LOGS).is_dir():
        for name in LOGGED:
            remove(folder / LOGS / name)
        with suppress(OSError):  # something of the user's is in it
            (folder / LOGS).rmdir()


def delete(folder: Path) -> None:
    """Deletes a run, and nothing else that lies in its folder.

    Raises:
        UserError: if another process trains a prior in it; nothing is deleted then.
    """
    check_prior_unlocked(folder)
    for path in [path for pattern in CONTENTS for path in folder.glob(pattern)]:
        remove(path)
    own_parts.delete(folder)
    delete_logs(folder)
