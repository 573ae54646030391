"""Shared by the commands that draw: labels by name, blocks of images, files of pictures and arrays."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_jax.cli.common import (
    answer,
    say,
    target,
)
from vae_jax.config import expand
from vae_jax.errors import UserError, listed
from vae_jax.files.replace import replacing
from vae_jax.runs.folder import read_config, read_data
from vae_jax.spec import NOT_IMAGE

if TYPE_CHECKING:
    from vae_jax.model.model import Model
    from vae_jax.pictures.sheet import Sheet
    from vae_jax.training.state import Trained


NUMBER = re.compile(r"[+-]?[0-9]{1,9}")


def label_option(parser: Any, what: str) -> None:
    meaning = f"a class's name or number, if the model gets labels (model.classes): {what}"
    parser.add_argument("--label", default=None, help=meaning)


def label_of(options: Any) -> int | None:
    """The number of the given class, or None without one; a name comes before a number.

    Raises:
        UserError: if the model gets no labels or has no such class, or there is no such run.
    """
    label, folder = options.label, expand(options.run)
    classes = read_config(folder).model.classes
    if label is None:
        return None
    if not classes:
        raise UserError(f"--label: expected none for a model that gets no labels (model.classes 0); found {label}")
    noted = read_data(folder)
    names = (noted.class_names if noted else None) or ()
    number = int(label) if NUMBER.fullmatch(label) else None
    if label in names[:classes]:
        if number not in (None, names.index(label)):
            say(f"--label {label}: the class of this name, whose number is {names.index(label)}")
        return names.index(label)
    if number is None or not 0 <= number < classes:
        named = [f"{number} {name}" for number, name in enumerate(names[:classes]) if name != str(number)]
        known = f"a number from 0 to {classes - 1}" + (f" or a class's name ({listed(named)})" * bool(named))
        raise UserError(f"--label: expected {known}; found {label}")
    return number


def save_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz file as a whole, see `replacing`."""
    import numpy as np

    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _save_blocks(path: Path, name: str, count: int, blocks: Iterator[tuple[Sequence[int], Any]]) -> None:
    """Writes `count` pictures or examples, which come in blocks, as `save_arrays(path, **{name: …})` would."""
    import zipfile

    import numpy as np

    with (
        replacing(path) as file,
        zipfile.ZipFile(file, "w") as made,
        made.open(f"{name}.npy", "w", force_zip64=True) as images,
    ):
        for numbers, pictures in blocks:
            if not numbers[0]:
                header = np.lib.format.header_data_from_array_1_0(pictures)
                np.lib.format.write_array_header_1_0(images, {**header, "shape": (count, *pictures.shape[1:])})
            images.write(pictures.tobytes())


BLOCK = 1 << 26  # bytes of pictures that are decoded together


def decoded(
    model: "Model", shape: tuple[int, ...], count: int, inputs_of: Callable[[range], tuple[Any, Any]]
) -> Iterator[tuple[range, Any]]:
    """Decodes pictures block by block, to save memory; gives their numbers and the pictures.

    The blocks are whole batches, so that a picture is the same as if all were decoded together.

    Args:
        model: decodes.
        shape: of a picture.
        count: of the pictures.
        inputs_of: numbers of pictures -> their z and their labels.
    """
    import numpy as np

    from vae_jax.model.batches import BATCH

    size = max(1, BLOCK // (4 * math.prod(shape) * BATCH)) * BATCH
    for first in range(0, count, size):
        numbers = range(first, min(first + size, count))
        yield numbers, np.asarray(model.decode(*inputs_of(numbers)))


ARRAYS = "; a name ending in .npz, the default if the data are no images, gets the array `images` or `examples`"


def picture_target(options: Any, stem: str) -> Path:
    """The file for pictures, or for arrays of examples that are no pictures.

    Raises:
        UserError: as `target`; or if its ending is a picture's and the examples are no pictures.
    """
    config = read_config(expand(options.run)).data
    path = target(options, f"{stem}.npz" if config.kind in NOT_IMAGE else f"{stem}.png", ".png", ".npz")
    if config.kind in NOT_IMAGE and path.suffix != ".npz":
        raise UserError(
            f"--out: expected a name ending in .npz, since data of kind {config.kind} are no pictures; found {path}"
        )
    return path


def free(path: Path, options: Any) -> Path:
    """The file, or if the command has chosen its name and it exists, the next one with a number: PICTURE_2.png."""
    numbered, number = path, 1
    while options.out is None and numbered.exists():
        number += 1
        numbered = path.with_stem(f"{path.stem}_{number}")
    return numbered


def sheet_of(path: Path, shape: tuple[int, ...], count: int, columns: int, what: str, **words: Any) -> "Sheet | None":
    """The sheet of `count` pictures, with words on it, see `Words`; None if an array is written."""
    from vae_jax.pictures.sheet import Sheet, Words

    return None if path.suffix == ".npz" else Sheet(count, shape, columns, what=what, words=Words(**words))


def write_pictures(
    path: Path, sheet: "Sheet | None", trained: "Trained", count: int, blocks: Iterator[tuple[Sequence[int], Any]]
) -> None:
    """Writes pictures that come in blocks, as a sheet or as an array; of an array the blocks are in order."""
    if sheet is None:
        _save_blocks(path, f"{trained.config.data.noun}s", count, blocks)
        answer(str(path))
        return
    for numbers, pictures in blocks:
        sheet.put(numbers, pictures)
    answer(str(sheet.save(path)))
