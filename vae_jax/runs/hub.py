"""Runs on the Hugging Face Hub: their addresses, `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`, and their copies here.

huggingface_hub does the rest: it knows the user's token and the server (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, …), and
keeps the copies in its own cache.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vae_jax.errors import UserError, brief, on_terminal, quoted
from vae_jax.files import folders

PREFIX = "hub:"
CARD = "README.md"
# What of a repository is a run; in the hub's patterns * stands for / too.
OF_A_RUN = (
    *("config.yaml", "data.json", "imported.json", "metrics.jsonl", "summary.json", "diverged.txt"),
    *("checkpoints/*", "code/*", "figures/*.png", "prior/*"),
)
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
LOG_IN = "`hf auth login` or HF_TOKEN gives a token"


class Address(NamedTuple):
    """The place of a run on the hub.

    Attributes:
        repository: OWNER/NAME.
        revision: a branch, a tag or a commit of it; None for the newest commit.
    """

    repository: str
    revision: str | None


def is_address(run: str | Path) -> bool:
    """Whether this is the address of a run on the hub, and no folder."""
    return str(run).startswith(PREFIX)


def is_name(repository: str) -> bool:
    """Whether the hub may have a repository of this name."""
    return bool(NAME.fullmatch(repository)) and ".." not in repository and "--" not in repository


def address_of(run: str | Path) -> Address:
    """The parts of an address.

    Raises:
        UserError: if it is none.
    """
    repository, at, revision = str(run).removeprefix(PREFIX).partition("@")
    if not is_name(repository) or (at and not revision):
        raise UserError(f"expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION; found {quoted(run)}")
    return Address(repository, revision or None)


def downloaded(run: str | Path, report: Callable[[str], None] = warnings.warn) -> Path:
    """The folder of a run: the given one, or the copy here of a run on the hub, into which nothing is written.

    Args:
        run: a folder, or an address; only its files that are a run's are downloaded, and those that are here already
            are not.
        report: called with a line if the hub gives no answer, so that an earlier copy is used.

    Raises:
        UserError: if it is an address at which there is no run to read, the hub cannot be reached and there is no copy
            here, or huggingface_hub is not installed.
    """
    if not is_address(run):
        return Path(run)
    repository, revision = address_of(run)
    with in_one_line(f"{run}", "read") as hub:
        silence = None if COMMIT.fullmatch(revision or "") else _silence(hub, repository, revision)
        try:
            wanted = {"revision": revision, "allow_patterns": list(OF_A_RUN), "local_files_only": silence is not None}
            folder = Path(hub.snapshot_download(repository, **wanted))
        except FileNotFoundError:  # no copy here
            if silence:
                raise silence from None
            raise
    if silence:
        why, when = brief(silence, 200), f"the copy of commit {folder.name} is used, as it was downloaded earlier"
        report(f"{run}: no answer of the hub ({why}); {when}")
    folders.copies[folder.absolute()] = f"{PREFIX}{repository}@{folder.name}"
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{run}: expected a run, with a config.yaml, in this repository; found none")
    return folder


def _silence(hub: Any, repository: str, revision: str | None) -> Exception | None:
    """The error if the hub does not answer; None if it does. The library itself would use an earlier copy unsaid."""
    try:
        hub.HfApi().model_info(repository, revision=revision)
    except Exception as error:  # also of the client for HTTP, whose kinds differ between versions
        if _status(error) in range(500):
            raise
        return error
    return None


def _status(error: Exception) -> int | None:
    """The status of the hub's answer; None if there was none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def pinned(run: str) -> str:
    """An address with the commit that it stands for now; anything else as it is.

    Raises:
        UserError: see `downloaded`.
    """
    if not is_address(run) or COMMIT.fullmatch(address_of(run).revision or ""):
        return run
    return folders.copies[downloaded(run).absolute()]


@contextmanager
def in_one_line(what: str, right: str) -> Iterator[Any]:
    """A context with the library huggingface_hub; its errors, but those of files here, become one line.

    Args:
        what: is dealt with, for the line.
        right: that the user's token must give: "read" or "write".

    Raises:
        UserError: with the line; or if the library is not installed.
        OSError: if a file cannot be read or written here.
    """
    if (spec := find_spec("huggingface_hub")) is None or spec.origin is None:  # a folder of this name is no package
        raise UserError(
            f"{what}: expected huggingface_hub to be installed; found no such package; pip install 'vae_jax[hub]'"
        )
    hub = import_module("huggingface_hub")
    if not on_terminal(sys.stderr) and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        import_module("huggingface_hub.utils").disable_progress_bars()  # in a file they are many lines
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what its warnings say of a run is said here, once
    try:
        yield hub
    except Exception as error:  # of the library's own kinds, of those of its client for HTTP, OSError, ValueError
        of_a_file = isinstance(error, OSError) and error.errno and error.filename
        if of_a_file or isinstance(error, UserError | MemoryError):
            raise
        raise UserError(f"{what}: {_reason(error, right)}") from error
    finally:
        logger.setLevel(level)


def _reason(error: Exception, right: str) -> str:
    """What a library's error says, in one line, with what to do."""
    errors = import_module("huggingface_hub.errors")
    said = str(getattr(error, "server_message", None) or error)
    if isinstance(error, RuntimeError) and (why := error.__cause__):  # which says only what was being uploaded
        said = f"{said} {getattr(why, 'server_message', None) or why}"
    found = brief(said, 300) or type(error).__name__
    expected = "an answer of the hub"
    if isinstance(error, errors.HFValidationError):
        expected = "a name that the hub takes"
    elif isinstance(error, errors.RevisionNotFoundError):
        expected = "a branch, a tag or a commit of this repository"
    elif isinstance(error, errors.LocalTokenNotFoundError):
        expected = f"a token that may {right} this repository ({LOG_IN})"
    elif isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403, 404):
        expected = f"a repository that is there and that your token may {right} ({LOG_IN})"
    return f"expected {expected}; found {found}"
