"""A checkpoint's description of itself, and whether its files agree with it."""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vae_jax.config import Json
from vae_jax.errors import PATH, UserError, cut
from vae_jax.files.checked import HISTORY_LIMIT, UnfitError, parse, read_bytes, typed
from vae_jax.training.figures import Epoch

FORMAT = 3  # raised when older versions cannot read what is written; 3 is the first that stays readable
DESCRIPTION = "checkpoint.json"


class Array(NamedTuple):
    """A checkpoint's description of an array.

    Attributes:
        type: of its numbers, with its shape, see `type_of`.
        sha256: of its bytes.
    """

    type: str
    sha256: str


class Description(NamedTuple):
    """A checkpoint's description: its content without the state, see `Saved`, and how the state is stored.

    Attributes:
        format: see `FORMAT`.
        loss: ranks it; None leaves it unranked.
        arrays: by their names.
        files: their SHA-256, by the path in the checkpoint's folder.
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
    """The part of a description that every version has."""

    format: Annotated[int, "[1, inf)"]


class _Sealed(NamedTuple):
    """A description in its file, with its hash."""

    sha256: str
    checkpoint: dict[str, Any]


class DamageError(Exception):
    """A checkpoint is not as it was saved."""


def check_step(name: int, step: int, description: Description) -> None:
    """Refuses a state of another step than the checkpoint's name, or with figures of more or fewer epochs.

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


def check_types(folder: Path, expected: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Refuses another model's checkpoint, or one of jax's other mode, naming the first array that differs."""
    for name in [*expected, *arrays]:
        expected_type = type_of(expected[name]) if name in expected else None
        found_type = cut(arrays[name].type) if name in arrays else None
        if expected_type == found_type:
            continue
        if expected_type and found_type and expected_type.replace("64[", "32[") == found_type.replace("64[", "32["):
            now, was = ("on", "without") if "64[" in expected_type else ("off", "with")
            raise UserError(
                f"{folder}: expected jax's 64-bit mode to be as the run was trained, {was} it, found it {now}; set "
                f"JAX_ENABLE_X64={int(was == 'with')} ({name} is {found_type}, not {expected_type})"
            )
        raise UserError(
            f"{folder}: expected a checkpoint of the model in config.yaml, with {cut(name, PATH)} {expected_type}; "
            f"found {found_type}"
        )


def read_description(folder: Path) -> Description:
    """A checkpoint's description, after all its files are verified.

    Raises:
        DamageError: naming the first file that is not as it was saved.
        UserError: if a newer version has written it.
    """
    try:
        if not (folder / DESCRIPTION).exists() and (folder / "run").exists():
            raise _other_format(folder, 1)
        sealed = parse(read_bytes(folder / DESCRIPTION, HISTORY_LIMIT), _Sealed, HISTORY_LIMIT)
        content = sealed.checkpoint
        if sealed.sha256 != sha256_of(canonical(content)):
            raise DamageError(f"damaged, {DESCRIPTION} is not as it was saved")
        if (made := typed(content, _Format).format) != FORMAT:
            raise _other_format(folder, made)
        # Checked even with the right hash: whoever can write the file can hash it too.
        description = typed(content, Description)
        for number, epoch in enumerate(description.history):
            if typed(epoch, Epoch, f"history[{number}]").epoch != number + 1:
                raise UnfitError(f"history[{number}].epoch: expected {number + 1}; found {epoch['epoch']}")
        paths = _paths(folder)
        for name in sorted({*description.files, *paths}):
            if name not in paths or name not in description.files:
                what = "missing" if name not in paths else "none of its files"
                raise DamageError(f"damaged, {cut(name, PATH)} is {what}")
        for name, path in sorted(paths.items()):
            if _file_sha256(path) != description.files[name]:
                raise DamageError(f"damaged, {cut(name, PATH)} is not as it was saved")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamageError(f"damaged, {Path(error.filename).name} is missing") from error
    except OSError as error:  # too many open files, no permission, …: the checkpoint may be undamaged
        raise UserError(f"{error.filename or folder}: cannot be read; {error.strerror or error}") from error
    except UnfitError as error:
        raise DamageError(f"damaged, {DESCRIPTION}: {error}") from error
    return description


def _other_format(folder: Path, made: int) -> UserError:
    if made > FORMAT:
        return UserError(f"{folder}: expected a checkpoint of format {FORMAT}, found {made}; update vae_jax")
    return UserError(
        f"{folder}: expected a checkpoint of format {FORMAT}, found {made}, of a version before the first release; "
        f"train the run again"
    )


def type_of(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(description: dict[str, Any]) -> bytes:
    return json.dumps(description, sort_keys=True).encode()


def sealed_text(description: dict[str, Any]) -> str:
    """The text of a description's file, with its hash."""
    return json.dumps({"sha256": sha256_of(canonical(description)), "checkpoint": description})


def files_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a checkpoint's folder but its description."""
    return {name: _file_sha256(path) for name, path in _paths(folder).items()}


def _paths(folder: Path) -> dict[str, Path]:
    """Every file below a checkpoint's folder but its description, by its path in the folder.

    Raises:
        OSError: if a file or a folder cannot be read; by default Python skips unreadable folders.
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


def resealed(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """The content of a checkpoint's description after a change, with its new hash.

    Args:
        folder: of the checkpoint, which `read_description` has verified.
        change: the description, as it is in the file -> the changed one.
    """
    sealed = parse(read_bytes(folder / DESCRIPTION, HISTORY_LIMIT), _Sealed, HISTORY_LIMIT)
    return sealed_text(change(sealed.checkpoint)).encode()
