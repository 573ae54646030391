"""Checkpoints: a training state with its history, saved whole, verified, ranked and restored.

A checkpoint is a folder named by its step: `state/`, the arrays as orbax writes them, and `checkpoint.json`, its
description, with the SHA-256 of every array, of every file and of itself. It is written beside its place and renamed
when it is whole. Orbax's CheckpointManager is not used: it renames a checkpoint before its files are verified, and a
checkpoint that it was deleting when the process died looks like a damaged one.
"""

import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vae_jax.errors import UserError, brief, in_words
from vae_jax.files.checked import typed
from vae_jax.files.folders import is_folder
from vae_jax.files.held import check_held, make_inside
from vae_jax.files.replace import remove, replacing_folder, write_text
from vae_jax.interruption import uninterrupted
from vae_jax.runs.description import (
    DESCRIPTION,
    FORMAT,
    DamageError,
    Description,
    check_step,
    check_types,
    files_of,
    read_description,
    sealed_text,
    sha256_of,
    type_of,
)
from vae_jax.runs.orbax import checkpointer, plain_path, silenced
from vae_jax.training.state import TrainState
from vae_jax.variables import Variables

DAMAGED = "damaged"  # unusable checkpoints are moved here and never deleted
UNFINISHED, DELETED = ".tmp", ".deleted"  # ends of the names of folders that a dead process may leave
SPACE = 1.2  # times the arrays' size must be free before they are written
FILES = 16  # files and folders that a checkpoint has at least
Report = Callable[[str], None]


class Saved(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        state: the training state.
        history: figures of the epochs finished before it.
        images: training images of the run; 0 for weights that have not been trained in a run yet.
        digest: of these images.
        made_with: versions, device and cores, see `vae_jax.runs.identity.environment`; empty if unknown.
        options: that it was trained with, by their dotted names; empty if unknown.
        run: the digest of its run, see `vae_jax.runs.folder.Data`; empty if unknown.
    """

    state: TrainState
    history: list[dict[str, Any]]
    images: int
    digest: str = ""
    made_with: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's defaults are never changed)
    options: dict[str, Any] = {}  # noqa: RUF012
    run: str = ""


class _DeletedError(Exception):
    """A checkpoint has been deleted meanwhile."""


def save(folder: Path, saved: Saved, loss: float | None = None, *, read_back: bool = False) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        folder: of the checkpoints.
        saved: its content.
        loss: ranks it; None (inside an epoch) leaves it unranked.
        read_back: read it after writing, and compare.

    Raises:
        UserError: if it cannot be written, or cannot be read back.
    """
    state = jax.tree.map(np.asarray, saved.state)  # numpy's arrays save in half the time, and belong to no device
    arrays = _named(state)
    place = folder / str(int(state.step))
    try:
        with uninterrupted(), replacing_folder(place) as making:  # orbax, interrupted, leaves threads that complain
            # Checked first: on a full disk orbax's threads would print tracebacks.
            needed, free = SPACE * sum(array.nbytes for array in arrays.values()), shutil.disk_usage(making).free
            if free < needed:
                raise OSError(f"no space left on the disk: {free / 1e6:,.1f} MB, of {needed / 1e6:,.1f} MB needed")
            if (left := _files_left(making)) < FILES:
                raise OSError(f"no room for files left on the disk: {left:,.0f} (inodes), of {FILES} needed")
            # By its number: orbax would make the folder again if it had been removed meanwhile.
            with plain_path(making, by_number=True) as plain, silenced():
                checkpointer().save(plain / "state", args=ocp.args.StandardSave(_as_dicts(state)))
            description = {
                "format": FORMAT,
                "loss": loss,
                **{name: value for name, value in saved._asdict().items() if name != "state"},
                "arrays": {
                    name: {"type": type_of(array), "sha256": sha256_of(array.tobytes())}
                    for name, array in arrays.items()
                },
                "files": files_of(making),
            }
            write_text(making / DESCRIPTION, sealed_text(description))
            if read_back:
                try:
                    _arrays(making, typed(description, Description), state)
                except Exception as error:
                    raise OSError(f"it cannot be read back: {_reason(error)}") from error
    except UserError:  # it needs no further words
        raise
    except Exception as error:
        check_held(place)  # if the folder is gone, that is the reason
        raise UserError(f"{place}: the checkpoint cannot be saved; {_reason(error)}") from error


class Keeper:
    """Writes a run's checkpoints, and keeps the newest few and the one with the lowest loss."""

    def __init__(self, folder: Path, keep: int, report: Report, newest: int | None = None):
        """Opens a folder of checkpoints, which is made if need be, and moves damaged ones out of the way.

        Args:
            folder: of the checkpoints.
            keep: how many of the newest are kept.
            report: called with a line for everything that is moved.
            newest: the step that the run goes on from, if any: checkpoints of later steps were passed over.
        """
        make_inside(folder)
        self._folder, self._keep, self._read_back = folder, keep, True
        self._losses: dict[int, float | None] = {}
        for path in sorted(folder.iterdir()):
            if path.name.endswith(DELETED):
                remove(path)
            elif path.name.endswith(UNFINISHED) or ".orbax-checkpoint-tmp" in path.name:
                self._set_aside(path, "half-written, the process died while saving", report)
            elif _is_step(path):
                try:
                    loss = read_description(path).loss
                    if newest is not None and int(path.name) > newest:
                        raise DamageError("passed over")
                    self._losses[int(path.name)] = loss
                except DamageError as error:
                    self._set_aside(path, str(error), report)

    def _set_aside(self, path: Path, reason: str, report: Report) -> None:
        name = path.name.lstrip(".")
        damaged = make_inside(self._folder / DAMAGED)
        taken = {path.name for path in damaged.iterdir()}
        place = damaged / next(
            free for i in range(len(taken) + 1) if (free := f"{name}.{i}" if i else name) not in taken
        )
        path.rename(place)
        report(f"{path}: {reason}; moved to {place}")

    def save(self, saved: Saved, loss: float | None = None) -> None:
        """Writes a checkpoint, see `save`, and deletes older ones. The first is read back before the run goes on."""
        save(self._folder, saved, loss, read_back=self._read_back)
        self._read_back = False
        self._losses[int(saved.state.step)] = loss
        steps = sorted(self._losses)
        ranked = [step for step in steps if _rank(self._losses[step]) > -math.inf]
        best = max(ranked, key=lambda step: (_rank(self._losses[step]), step), default=None)
        for step in steps[: -self._keep]:
            if step != best:
                del self._losses[step]
                remove(self._folder / str(step), DELETED)


def restore(
    folder: Path,
    which: str,
    template: Callable[[int], TrainState],
    report: Report,
    check: Callable[[Description], None] = lambda description: None,
) -> Saved | None:
    """Reads the newest or the best undamaged checkpoint; None if there are no checkpoints yet.

    Args:
        folder: of the checkpoints.
        which: "latest" or "best".
        template: training images -> a state of the same structure, shapes and types; only its shapes are used.
        report: called with a line for every damaged checkpoint, which is passed over.
        check: called with a checkpoint's description before its arrays are read; may refuse it.

    Raises:
        UserError: if all are damaged, or an undamaged one is another model's, another mode's or a newer version's.
    """
    steps = sorted((int(path.name) for path in folder.iterdir() if _is_step(path)), reverse=True)
    if not steps:
        return None
    passed_over = []

    def undamaged(step: int, look: Callable[[Path], Any]) -> Any:
        try:
            return look(folder / str(step))
        except DamageError as error:
            if not (folder / str(step)).exists():
                raise _DeletedError from error
            passed_over.append(f"{folder / str(step)}: {error}")
            report(f"{passed_over[-1]}; it is passed over")
            return None

    try:
        if which == "best":
            descriptions = {step: description for step in steps if (description := undamaged(step, read_description))}
            steps = sorted(descriptions, key=lambda step: (_rank(descriptions[step].loss), step), reverse=True)
        for step in steps:
            if saved := undamaged(step, lambda path: _read(path, template, check)):
                return saved
    except _DeletedError:  # by a training that is running: there is a newer one
        return restore(folder, which, template, report, check)
    raise UserError(f"{passed_over[0]}; expected an undamaged checkpoint, found none: start the run again")


def _read(folder: Path, template: Callable[[int], TrainState], check: Callable[[Description], None]) -> Saved:
    """Reads one checkpoint and verifies it.

    Raises:
        DamageError: if it is not as it was saved.
        UserError: if it is another model's, another mode's or a newer version's, or `check` refuses it.
    """
    description = read_description(folder)
    check(description)
    # A failure here, as of a user's code, says nothing about the checkpoint.
    expected = jax.eval_shape(lambda: template(description.images))
    check_types(folder, _named(expected), description.arrays)
    try:
        state = _arrays(folder, description, expected)
    except (DamageError, UserError, MemoryError):
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds
        if not is_folder(folder):
            raise DamageError(f"damaged, {_reason(error)}") from error
        raise UserError(
            f"{folder}: cannot be read here, though its files are as they were saved; {_reason(error)}"
        ) from error
    check_step(int(folder.name), int(state.step), description)
    known = {name: getattr(description, name) for name in Saved._fields[1:]}
    return Saved(jax.tree.map(jnp.asarray, state), **known)


def _arrays(folder: Path, description: Description, like: TrainState) -> TrainState:
    """The state in a checkpoint's folder, in the structure, shapes and types of `like`, verified by its hashes.

    Raises:
        DamageError: naming the first array that is not as it was saved. Orbax raises other errors.
    """
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    with plain_path(folder) as plain, silenced():
        state = checkpointer().restore(plain / "state", args=ocp.args.StandardRestore(_as_dicts(like)))
    state = state._replace(variables=Variables(**state.variables))
    for name, array in _named(state).items():
        sha256 = description.arrays[name].sha256
        if sha256_of(array.tobytes()) != sha256:
            raise DamageError(f"damaged, {name} is not as it was saved")
    return state


def _as_dicts(state: TrainState) -> TrainState:
    """The state for orbax, which would name the fields of nested tuples by their places."""
    return state._replace(variables=state.variables._asdict())  # type: ignore[arg-type]


def _rank(loss: float | None) -> float:
    """A rank, the higher the better; a loss that is not finite comes last."""
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


def _is_step(path: Path) -> bool:
    return path.name.isascii() and path.name.isdigit() and is_folder(path)


def _files_left(folder: Path) -> float:
    """How many more files a file system can hold, whatever their size."""
    if not hasattr(os, "statvfs"):  # Windows
        return math.inf
    status = os.statvfs(folder)
    return float(status.f_favail) if status.f_files else math.inf  # some file systems do not count


def _named(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their names."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _reason(error: Exception) -> str:
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's words for it are hundreds
        return in_words(OSError(int(code[1]), os.strerror(int(code[1]))))
    if isinstance(error, OSError) and error.errno:
        return in_words(error)
    return brief(error, 200) or type(error).__name__
