"""Checkpoints: a training state with its history, saved whole, verified, ranked and restored.

A checkpoint is a folder named by its step: `state/`, the arrays as orbax writes them, and `checkpoint.json`, which
tells what it is, with the SHA-256 of every array, of every file and of itself. It is written beside its place and
renamed when it is whole. Orbax's CheckpointManager is not used: it renames a checkpoint before anything could vouch
for its files, and a checkpoint that it was deleting when the process died looks like a damaged one.
"""

import asyncio
import gc
import hashlib
import inspect
import json
import logging
import math
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CoroutineType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vae_jax.config import Json
from vae_jax.errors import PATH, UserError, brief, cut, in_words
from vae_jax.files.checked import HISTORY_LIMIT, UnfitError, parse, read_bytes, typed
from vae_jax.files.folders import is_folder
from vae_jax.files.held import check_held, make_inside
from vae_jax.files.replace import remove, replacing_folder, write_text
from vae_jax.interruption import uninterrupted
from vae_jax.training.figures import Epoch
from vae_jax.training.state import TrainState
from vae_jax.variables import Variables

FORMAT = 3  # counted up when older versions could not read what is written; the first that is promised to be read
DESCRIPTION = "checkpoint.json"
DAMAGED = "damaged"  # where what cannot be used is moved to; it is never deleted
UNFINISHED, DELETED = ".tmp", ".deleted"  # how the names of folders end that a dead process may leave
PLAIN = "/.,=+-_ ()~@'&!^;$"  # with letters and digits, what a path is made of that orbax takes as it stands
OPEN_FOLDERS = Path("/proc/self/fd")  # where on Linux each has a path by its number
PATIENCE = 10.0  # seconds in which what orbax has begun must end, where something else has failed
SPACE = 1.2  # times the arrays' size is free before they are written
FILES = 16  # files and folders that a checkpoint has at least
Report = Callable[[str], None]


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the training state.
        history: figures of the epochs finished before it.
        images: training images of the run; 0 for weights that have seen none of a run's yet.
        digest: of these images.
        made_with: versions, device and cores, see `vae_jax.run.environment`; empty where that is not known.
        options: it was trained with, each by its dotted name; empty where that is not known.
        run: the digest of the run that it is of, see `vae_jax.runs.folder.Data`; empty where that is not known.
    """

    state: TrainState
    history: list[dict[str, Any]]
    images: int
    digest: str = ""
    made_with: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's defaults are never changed)
    options: dict[str, Any] = {}  # noqa: RUF012
    run: str = ""


class Array(NamedTuple):
    """What a checkpoint tells of an array.

    Attributes:
        type: of its numbers, with its shape, see `_type`.
        sha256: of its bytes.
    """

    type: str
    sha256: str


class Description(NamedTuple):
    """What a checkpoint tells of itself: what it holds but the state, see `Saved`, and how that is stored.

    Attributes:
        format: see `FORMAT`.
        loss: ranks it; None leaves it unranked.
        arrays: by their names.
        files: the SHA-256 of each, by its path in the checkpoint's folder.
    """

    format: int
    loss: float | None
    history: list[dict[str, Any]]
    images: Annotated[int, "[0, 2147483647]"]
    arrays: dict[str, Array]
    files: dict[str, str]
    digest: str = ""
    made_with: dict[str, str] = {}  # noqa: RUF012
    options: dict[str, Json] = {}  # noqa: RUF012
    run: str = ""


class _Format(NamedTuple):
    """What every version tells in the same way."""

    format: Annotated[int, "[1, inf)"]


class _Sealed(NamedTuple):
    """What the file of a description holds."""

    sha256: str
    checkpoint: dict[str, Any]


class DamageError(Exception):
    """A checkpoint is not as it was saved."""


class _DeletedError(Exception):
    """A checkpoint is not there any more."""


def save(folder: Path, saved: Saved, loss: float | None = None, *, read_back: bool = False) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        folder: of the checkpoints.
        saved: what it is to hold.
        loss: ranks it; None (inside an epoch) leaves it unranked.
        read_back: reads it once it is written, and compares.

    Raises:
        UserError: if it cannot be written, or what was written cannot be read.
    """
    state = jax.tree.map(np.asarray, saved.state)  # numpy's arrays save in half the time, and belong to no device
    arrays = _named(state)
    place = folder / str(int(state.step))
    try:
        with uninterrupted(), replacing_folder(place) as making:  # orbax, interrupted, leaves threads that complain
            # Asked first: of a disk that is full orbax's threads would print tracebacks of their own.
            needed, free = SPACE * sum(array.nbytes for array in arrays.values()), shutil.disk_usage(making).free
            if free < needed:
                raise OSError(f"no space left on the disk: {free / 1e6:,.1f} MB, of {needed / 1e6:,.1f} MB needed")
            if (left := _files_left(making)) < FILES:
                raise OSError(f"no room for files left on the disk: {left:,.0f} (inodes), of {FILES} needed")
            # By its number: orbax would make the folder again, if it was removed meanwhile.
            with _plain(making, by_number=True) as plain, _silenced():
                _orbax().save(plain / "state", args=ocp.args.StandardSave(_as_dicts(state)))
            description = {
                "format": FORMAT,
                "loss": loss,
                **{name: value for name, value in saved._asdict().items() if name != "state"},
                "arrays": {
                    name: {"type": _type(array), "sha256": _sha256(array.tobytes())} for name, array in arrays.items()
                },
                "files": _files(making),
            }
            content = {"sha256": _sha256(_canonical(description)), "checkpoint": description}
            write_text(making / DESCRIPTION, json.dumps(content))
            if read_back:
                try:
                    _arrays(making, typed(description, Description), state)
                except Exception as error:
                    raise OSError(f"what was written cannot be read: {_reason(error)}") from error
    except UserError:  # it says all by itself
        raise
    except Exception as error:
        check_held(place)  # where the folder is gone, that is the reason
        raise UserError(f"{place}: the checkpoint cannot be saved; {_reason(error)}") from error


class Keeper:
    """Writes a run's checkpoints and keeps the newest few of them, and the one with the lowest loss."""

    def __init__(self, folder: Path, keep: int, report: Report, newest: int | None = None):
        """Opens, and creates if need be, a folder of checkpoints; what is damaged there is moved out of the way.

        Args:
            folder: of the checkpoints.
            keep: how many of the newest are kept.
            report: is told of what is moved.
            newest: the step that the run goes on from, if any: checkpoints of later ones were passed over.
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
                    loss = _description(path).loss
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
            each for i in range(len(taken) + 1) if (each := f"{name}.{i}" if i else name) not in taken
        )
        path.rename(place)
        report(f"{path}: {reason}; moved to {place}")

    def save(self, saved: Saved, loss: float | None = None) -> None:
        """See `save`; afterwards older checkpoints are deleted. The first is read back before the run goes on."""
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
    """Reads the newest or the best of the checkpoints that are sound, or None if there has been none yet.

    Args:
        folder: of the checkpoints.
        which: "latest" or "best".
        template: training images -> a state of the same structure, shapes and types; only its shapes are used.
        report: is told of each damaged checkpoint that is passed over.
        check: is given what a checkpoint tells of itself before its arrays are looked at; may refuse it.

    Raises:
        UserError: if all are damaged, or a sound one is another model's, another mode's or a newer version's.
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
            found = {step: description for step in steps if (description := undamaged(step, _description))}
            steps = sorted(found, key=lambda step: (_rank(found[step].loss), step), reverse=True)
        for step in steps:
            if saved := undamaged(step, lambda path: _read(path, template, check)):
                return saved
    except _DeletedError:  # by a training that goes on: there is a newer one
        return restore(folder, which, template, report, check)
    raise UserError(f"{passed_over[0]}; expected a sound checkpoint, found none: begin the run anew")


def _read(folder: Path, template: Callable[[int], TrainState], check: Callable[[Description], None]) -> Saved:
    """One checkpoint, verified.

    Raises:
        DamageError: if it is not as it was saved.
        UserError: if it is another model's, another mode's or a newer version's, or `check` refuses it.
    """
    description = _description(folder)
    check(description)
    # Whatever fails here, as a user's own code may, says nothing about the checkpoint.
    expected = jax.eval_shape(lambda: template(description.images))
    _check_types(folder, _named(expected), description.arrays)
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
    _check_step(int(folder.name), int(state.step), description)
    known = {name: getattr(description, name) for name in Saved._fields[1:]}
    return Saved(jax.tree.map(jnp.asarray, state), **known)


def _check_step(name: int, step: int, description: Description) -> None:
    """Refuses a state of another step than the checkpoint's name says, or with the figures of more or fewer epochs.

    Raises:
        DamageError: naming both.
    """
    if step != name:
        raise DamageError(f"damaged, its arrays are those of step {step}")
    batch, epochs = description.options.get("train.batch_size"), len(description.history)
    if description.images and type(batch) is int and batch > 0:
        finished = step // -(-description.images // batch)
        if epochs != finished:
            raise DamageError(f"damaged, {DESCRIPTION}: expected figures of {finished} epochs; found {epochs}")


def _arrays(folder: Path, description: Description, like: TrainState) -> TrainState:
    """The state in a checkpoint's folder, of the structure, shapes and types of `like`, compared with what was saved.

    Raises:
        DamageError: naming the first array that is not as it was saved; or another error of orbax.
    """
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    with _plain(folder) as plain, _silenced():
        state = _orbax().restore(plain / "state", args=ocp.args.StandardRestore(_as_dicts(like)))
    state = state._replace(variables=Variables(**state.variables))
    for name, array in _named(state).items():
        sha256 = description.arrays[name].sha256
        if _sha256(array.tobytes()) != sha256:
            raise DamageError(f"damaged, {name} is not as it was saved")
    return state


def _as_dicts(state: TrainState) -> TrainState:
    """The state as orbax gets it, which would take the fields of nested tuples by their places."""
    return state._replace(variables=state.variables._asdict())  # type: ignore[arg-type]


def _check_types(folder: Path, expected: dict[str, Any], found: dict[str, Array]) -> None:
    """Refuses another model's checkpoint, or one of jax's other mode, naming the first array that differs."""
    for name in [*expected, *found]:
        wanted = _type(expected[name]) if name in expected else None
        is_there = cut(found[name].type) if name in found else None
        if wanted == is_there:
            continue
        if wanted and is_there and wanted.replace("64[", "32[") == is_there.replace("64[", "32["):
            now, was = ("on", "without") if "64[" in wanted else ("off", "with")
            raise UserError(
                f"{folder}: expected jax's 64-bit mode to be as the run was trained, {was} it, found it {now}; set "
                f"JAX_ENABLE_X64={int(was == 'with')} ({name} is {is_there}, not {wanted})"
            )
        raise UserError(
            f"{folder}: expected a checkpoint of the model in config.yaml, with {cut(name, PATH)} {wanted}; found "
            f"{is_there}"
        )


def _description(folder: Path) -> Description:
    """What a checkpoint tells of itself, once it is verified that all its files are as they were saved.

    Raises:
        DamageError: naming the first file that is not.
        UserError: if a newer version has written it.
    """
    try:
        if not (folder / DESCRIPTION).exists() and (folder / "run").exists():
            raise _other_format(folder, 1)
        sealed = parse(read_bytes(folder / DESCRIPTION, HISTORY_LIMIT), _Sealed, HISTORY_LIMIT)
        content = sealed.checkpoint
        if sealed.sha256 != _sha256(_canonical(content)):
            raise DamageError(f"damaged, {DESCRIPTION} is not as it was saved")
        if (made := typed(content, _Format).format) != FORMAT:
            raise _other_format(folder, made)
        # What it says is looked at after its hash: whoever can write it can hash it too.
        description = typed(content, Description)
        for number, epoch in enumerate(description.history):
            if typed(epoch, Epoch, f"history[{number}]").epoch != number + 1:
                raise UnfitError(f"history[{number}].epoch: expected {number + 1}; found {epoch['epoch']}")
        found = _paths(folder)
        for name in sorted({*description.files, *found}):
            if name not in found or name not in description.files:
                what = "missing" if name not in found else "none of its files"
                raise DamageError(f"damaged, {cut(name, PATH)} is {what}")
        for name, path in sorted(found.items()):
            if _file_sha256(path) != description.files[name]:
                raise DamageError(f"damaged, {cut(name, PATH)} is not as it was saved")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamageError(f"damaged, {Path(error.filename).name} is missing") from error
    except OSError as error:  # too many open files, no permission, …: nothing that is wrong with the checkpoint
        raise UserError(f"{error.filename or folder}: cannot be read; {error.strerror or error}") from error
    except UnfitError as error:
        raise DamageError(f"damaged, {DESCRIPTION}: {error}") from error
    return description


def _other_format(folder: Path, made: int) -> UserError:
    if made > FORMAT:
        return UserError(f"{folder}: expected a checkpoint of format {FORMAT}, found {made}; update vae_jax")
    return UserError(
        f"{folder}: expected a checkpoint of format {FORMAT}, found {made}, of a version before the first release; "
        f"train the run anew"
    )


def _rank(loss: float | None) -> float:
    """Higher is better; what has no finite loss comes last."""
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


def _is_step(path: Path) -> bool:
    return path.name.isascii() and path.name.isdigit() and is_folder(path)


def _files_left(folder: Path) -> float:
    """How many files a file system has room for, whatever their size."""
    if not hasattr(os, "statvfs"):  # Windows
        return math.inf
    found = os.statvfs(folder)
    return float(found.f_favail) if found.f_files else math.inf  # some do not count


def _orbax() -> ocp.Checkpointer:
    # In the foreground: an asynchronous save reports its failure only at the next call, with little to wait for.
    # And in this process alone: of several, orbax would wait for the others.
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options
    )


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that lets its tasks end before it is closed.

    Orbax closes its own under what still writes where something else has failed, and each of that tells a traceback.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            ended, _ = self.run_until_complete(asyncio.wait(tasks, timeout=PATIENCE))
            for each in ended:
                if not each.cancelled():
                    each.exception()  # otherwise asyncio tells it
        super().close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # of one that could not be made, since too many files are open
            self.close()


@contextmanager
def _silenced() -> Iterator[None]:
    """Within it errors are raised only: what orbax does at the same time tells whole tracebacks of its own as well."""
    logger, hook, new_loop = logging.getLogger("absl"), sys.excepthook, asyncio.new_event_loop
    level, threads = logger.level, set(threading.enumerate())
    logger.setLevel(logging.CRITICAL + 1)
    sys.excepthook = lambda *_: None
    asyncio.new_event_loop = _Loop
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            try:
                yield
            except BaseException:  # what orbax has begun ends here, not later
                for thread in set(threading.enumerate()) - threads:
                    thread.join(PATIENCE)
                # By `type`: to ask an object of another package for its `__class__` may run code, and raise.
                for each in [each for each in gc.get_objects() if type(each) is CoroutineType]:
                    waits = inspect.getcoroutinestate(each) == inspect.CORO_CREATED
                    if waits and "orbax" in each.cr_code.co_filename:
                        each.close()
                raise
    finally:
        logger.setLevel(level)
        sys.excepthook = hook
        asyncio.new_event_loop = new_loop


@contextmanager
def _plain(folder: Path, by_number: bool = False) -> Iterator[Path]:
    """Within it another path of the same folder where orbax may read something else from its own, or if asked to.

    Orbax globs below the path that it is given, and takes others for addresses: of [1], * or gs: it writes half of a
    checkpoint without a word.

    Raises:
        UserError: if there is no other path.
    """
    folder = folder.absolute()
    path = folder.as_posix().removeprefix(folder.drive)
    strange = "".join(sorted({char for char in path if not char.isalnum() and char not in PLAIN}))
    if not strange and not (by_number and OPEN_FOLDERS.is_dir()):
        yield folder
    elif OPEN_FOLDERS.is_dir():
        number = os.open(folder, os.O_RDONLY)
        try:
            yield OPEN_FOLDERS / str(number)
        finally:
            os.close(number)
    else:
        with tempfile.TemporaryDirectory(prefix="vae_jax-") as place:
            link = Path(place) / "checkpoint"
            try:
                link.symlink_to(folder, target_is_directory=True)
            except OSError as error:  # on Windows it is a right that few have
                raise UserError(
                    f"{folder}: expected a path of letters, digits and {PLAIN} for checkpoints, where the system makes "
                    f"no symbolic link ({error.strerror or error}); found {strange}"
                ) from error
            yield link


def _named(tree: Any) -> dict[str, Any]:
    """Every array by its name."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _type(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(description: dict[str, Any]) -> bytes:
    return json.dumps(description, sort_keys=True).encode()


def _files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a checkpoint's folder, but of those that hold it; see `_paths`."""
    return {name: _file_sha256(path) for name, path in _paths(folder).items()}


def _paths(folder: Path) -> dict[str, Path]:
    """These files, by their paths in the folder.

    Raises:
        OSError: if one, or a folder, cannot be read; Python's own ways through folders pass over what is denied.
    """

    def refuse(error: OSError) -> None:
        raise error

    paths = [Path(place) / name for place, _, files in os.walk(folder, onerror=refuse) for name in files]
    files = (path for path in sorted(paths) if stat.S_ISREG(path.stat().st_mode))
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path for name, path in names.items() if name != DESCRIPTION}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's words for it are hundreds
        return in_words(OSError(int(code[1]), os.strerror(int(code[1]))))
    if isinstance(error, OSError) and error.errno:
        return in_words(error)
    return brief(error, 200) or type(error).__name__
