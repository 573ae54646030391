"""Images from an .npy or .npz file.

Nothing is unpickled, and no size that a header claims is believed before it is compared with the file's.
"""

import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from vae_jax import memory
from vae_jax.config import DataConfig, expand
from vae_jax.data.dataset import Split, check_levels, to_labels, to_levels
from vae_jax.data.resize import Resizer, check_size
from vae_jax.data.shape import Kind, choose
from vae_jax.data.source import SPLIT_OF, Opened, Report, Splits, file_state, required
from vae_jax.errors import UserError

PARTS = {  # a word in any case that names images or labels; before or after it may stand a split's, as in x_train
    **dict.fromkeys(("x", "image", "images", "data"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets"), "labels"),
}
UNPACKED_LIMIT = 4 << 30  # bytes; a compressed array can claim any size, and a zip bomb does
HEADER_LIMIT = 10_000  # bytes; numpy's own limit, which it looks at after it has read them


def array(config: DataConfig, report: Report) -> Opened:
    """Images (n, h, w[, c]), uint8, bool or floats in [0, 1].

    An .npz file may add labels, a test and a validation split: its arrays' names say what they are, see `PARTS`.

    Raises:
        UserError: the file is missing or damaged, or its arrays are of another kind.
    """
    path = expand(required(config.path, "data.path", "array"))
    if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        kind = "another file" if path.is_file() else "a special file"
        found = "a folder" if path.is_dir() else kind if path.exists() else "nothing"
        raise UserError(f"data.path {path}: expected an .npy or .npz file, found {found}")
    with _damage_named(path):
        names = _names(path)
        arrays: dict[tuple[str, str], str] = {}
        for name in names:
            if (place := _place(name)) is not None and arrays.setdefault(place, name) != name:
                both = f"{arrays[place]} and {name}"
                raise UserError(f"{path}: expected one array of {' '.join(place)}, found {both}")
        if ("train", "images") not in arrays:
            expected = "training images in an array named x_train, train_images, train or images"
            raise UserError(f"{path}: expected {expected}, found {', '.join(names) or 'none'}")
        headers = {split: _checked(path, name) for (split, part), name in arrays.items() if part == "images"}
    used = {name for (split, _), name in arrays.items() if split in headers}
    if ignored := sorted(set(names) - used):
        report(f"{path}: ignoring {', '.join(ignored)}")
    if any(header.dtype.kind == "b" for header in headers.values()):
        report(f"{path}: False and True are taken for levels 0 and 255")

    def read(resizer: Resizer) -> Splits:
        with _damage_named(path):
            splits = {}
            for split in headers:
                images = _images(path, arrays[split, "images"])
                name = arrays.get((split, "labels"))
                labels = None if name is None else _labels(path, name, len(images))
                splits[split] = Split(resizer.stack(images, len(images), split), labels)
            return Splits(**splits)

    def kinds() -> list[Kind]:
        return [
            Kind(header.shape[2], header.shape[1], header.shape[3:] not in ((), (1,)), header.where, header.shape[0])
            for header in headers.values()
        ]

    size, channels = choose(config, kinds, str(path), report)
    shapes = [(size, size, channels)] + [(size, size)] * (channels == 1)
    ready = all(header.shape[1:] in shapes and header.dtype == np.uint8 for header in headers.values())
    return Opened(path.stem, read, None if ready else file_state(path), size, channels, in_arrays=True)


def _place(name: str) -> tuple[str, str] | None:
    """The split and the part of it that an array's name says it is: x_train, test_labels, val, images; or None."""
    words = name.lower().split("_")
    if len(words) > 2:
        return None
    splits, parts = ([table[word] for word in words if word in table] for table in (SPLIT_OF, PARTS))
    if len(splits) + len(parts) < len(words) or len(splits) > 1 or len(parts) > 1:
        return None
    return (splits or ["train"])[0], (parts or ["images"])[0]


@dataclass(frozen=True)
class _Header:
    """What an .npy header says, and where (for messages)."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into a UserError; numpy's and zipfile's parsers raise many kinds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about headers that Python 2 wrote
            yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: expected a whole {path.suffix} file, found a damaged one ({reason})") from error


def _names(path: Path) -> list[str]:
    """The names of the arrays in a file; an .npy file's one array is called images."""
    if path.suffix.lower() == ".npy":
        return ["images"]
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[Any, _Header]]:
    """Opens one array's .npy stream and reads its header, which must agree with the stream's size."""
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            yield file, _header(file, os.fstat(file.fileno()).st_size, str(path))
        return
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}, {name}: expected it as np.savez or np.savez_compressed writes it, found another")
        if info.compress_type != zipfile.ZIP_STORED and info.file_size > UNPACKED_LIMIT:
            raise UserError(
                f"{path}, {name}: expected at most {UNPACKED_LIMIT:,} bytes of compressed data, found "
                f"{info.file_size:,}; save it uncompressed (np.savez) and as uint8"
            )
        if info.compress_type == zipfile.ZIP_STORED and info.file_size > path.stat().st_size:
            raise UserError(f"{path}, {name}: expected at most the file's size, found a claim of {info.file_size:,}")
        with archive.open(info) as file:
            yield file, _header(file, info.file_size, f"{path}, {name}")


def _header(file: Any, size: int, where: str) -> _Header:
    """Reads the .npy header of a binary file of `size` bytes."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"{where}: expected .npy format 1.0 or 2.0, found {version[0]}.{version[1]}")
    field, parse = {
        (1, 0): (2, np.lib.format.read_array_header_1_0),
        (2, 0): (4, np.lib.format.read_array_header_2_0),
    }[version]
    if (length := int.from_bytes(file.read(field), "little")) > HEADER_LIMIT:
        raise UserError(f"{where}: expected an .npy header of at most {HEADER_LIMIT:,} bytes, found {length:,}")
    file.seek(-field, os.SEEK_CUR)
    shape, _, dtype = parse(file)
    body = size - file.tell()
    if dtype.hasobject or min(shape, default=1) < 1 or prod(shape) * dtype.itemsize != body:
        raise UserError(f"{where}: the header says {dtype} {shape}, which does not fit {body:,} bytes of data")
    return _Header(where, shape, dtype)


def _checked(path: Path, name: str) -> _Header:
    """The header of an array of images."""
    with _member(path, name) as (_, header):
        shape, dtype = header.shape, header.dtype
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        raise UserError(f"{header.where}: expected images (n, h, w) or (n, h, w, 1, 3 or 4), found shape {shape}")
    check_levels(dtype, header.where)
    check_size(shape[2], shape[1], header.where)
    return header


def _array(path: Path, name: str) -> tuple[_Header, np.ndarray]:
    with _member(path, name) as (file, header):
        memory.check(prod(header.shape) * header.dtype.itemsize, f"{header.where}, {header.dtype} {header.shape}")
        file.seek(0)
        return header, np.lib.format.read_array(file, allow_pickle=False)


def _images(path: Path, name: str) -> UInt8[np.ndarray, "n h w *c"]:
    """Reads images; floats and bools are scaled by 255 and rounded."""
    header, images = _array(path, name)
    return to_levels(images, header.where)


def _labels(path: Path, name: str, count: int) -> Int64[np.ndarray, " n"]:
    """Reads labels, one integer an image, (n,) or Keras's (n, 1)."""
    with _member(path, name) as (_, header):
        if header.shape not in ((count,), (count, 1)) or header.dtype.kind not in "iu":
            kind = "text" if header.dtype.kind in "US" else str(header.dtype)
            raise UserError(
                f"{header.where}: expected {count:,} whole numbers as labels, found {kind} of shape {header.shape}; "
                f"names of classes come with folders, or with vae_jax.Dataset.from_arrays"
            )
    return to_labels(_array(path, name)[1], count, header.where)
