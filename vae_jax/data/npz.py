"""Arrays in .npy and .npz files: headers are compared with the file's size before an array is read.

Nothing is unpickled, and no size in a header is trusted.
"""

import io
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

from vae_jax.errors import UserError, brief
from vae_jax.files.checked import UnfitError, open_file

UNPACKED_LIMIT = 4 << 30  # bytes: a compressed array can claim any size, and a zip bomb does
HEADER_LIMIT = 10_000  # bytes: numpy's limit, which numpy checks only after reading them
READ_LIMIT = 1 << 24  # bytes read at once: zipfile reads a directory of members as a whole, numpy in parts


@dataclass(frozen=True)
class Header:
    """The content of an .npy header.

    Attributes:
        where: the file and the array's name, for messages.
        shape: of the array.
        dtype: of the array, never objects.
        compressed: whether its data are.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    compressed: bool

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the array takes."""
        return prod(self.shape) * self.dtype.itemsize


class Arrays:
    """An open .npy or .npz file.

    Attributes:
        names: of its arrays; an .npy file's only array is called images.
    """

    def __init__(self, file: io.BufferedIOBase, path: Path):
        """Reads the names; whoever opened `file` closes it, `path` is for messages."""
        self._file, self._path = file, path
        self._zip = None if path.suffix.lower() == ".npy" else zipfile.ZipFile(file)
        self.names = ["images"] if self._zip is None else [name.removesuffix(".npy") for name in self._zip.namelist()]

    def header(self, name: str) -> Header:
        """An array's header, which agrees with the size of its data.

        Raises:
            UserError: if it does not, or is too large.
        """
        size = os.fstat(self._file.fileno()).st_size
        if self._zip is None:
            self._file.seek(0)
            return _header(self._file, size, str(self._path), False)
        where, info = f"{self._path}, {name}", self._zip.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{where}: expected it as np.savez or np.savez_compressed writes it, found another")
        compressed = info.compress_type != zipfile.ZIP_STORED
        if compressed and info.file_size > UNPACKED_LIMIT:
            raise UserError(
                f"{where}: expected at most {UNPACKED_LIMIT:,} bytes of compressed data, found "
                f"{info.file_size:,}; save it uncompressed (np.savez) and as uint8"
            )
        if not compressed and info.file_size > size:
            raise UserError(f"{where}: expected at most the file's size, found a claim of {info.file_size:,}")
        with self._zip.open(info) as member:
            return _header(member, info.file_size, where, compressed)

    def read(self, name: str) -> np.ndarray:
        """Reads an array whose header has been checked; checks a zip file's checksum."""
        if self._zip is None:
            self._file.seek(0)
            return np.lib.format.read_array(self._file, allow_pickle=False)
        with self._zip.open(f"{name}.npy") as member:  # opened again: after going back zipfile compares no checksum
            return np.lib.format.read_array(member, allow_pickle=False)


@contextmanager
def opened(path: Path) -> Iterator[Arrays]:
    """A context with an open file, in which errors of numpy's and zipfile's parsers become a UserError.

    Raises:
        UserError: if it is damaged or cannot be read; in the second case caused by the OSError.
    """
    try:
        with _Bounded(io.FileIO(path, opener=open_file)) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about headers that Python 2 wrote
            yield Arrays(file, path)
    except (UserError, MemoryError):
        raise
    except UnfitError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the parsers raise many kinds
        reason = brief(error) or type(error).__name__
        raise UserError(f"{path}: expected a whole {path.suffix} file, found a damaged one ({reason})") from error


class _Bounded(io.BufferedReader):
    """A file that refuses to read very much at once."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > READ_LIMIT:
            raise ValueError(f"{size:,} bytes of names")
        return super().read(size)


def _header(file: Any, size: int, where: str, compressed: bool) -> Header:
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
    try:
        shape, _, dtype = parse(file)
    except MemoryError as error:  # Python's parser raises it for deeply nested brackets
        raise ValueError("its header") from error
    body = size - file.tell()
    if dtype.hasobject or min(shape, default=1) == 0:
        raise UserError(f"{where}: expected an array of at least one number, found {dtype} of shape {shape}")
    if min(shape, default=1) < 1 or prod(shape) * dtype.itemsize != body:
        raise UserError(f"{where}: the header says {dtype} {shape}, which does not fit {body:,} bytes of data")
    return Header(where, shape, dtype, compressed)
