"""MNIST and the data sets in its format, which are four gzipped IDX files.

tensorflow-datasets' download manager gets the files, with the addresses and checksums of its builders; they are read
here. The builders themselves would read them with TensorFlow, write every image as a PNG into records and read those
back (5 to 17 s for MNIST); gzip and numpy take half a second.
"""

import gzip
import hashlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vae_jax.config import DataConfig, expand
from vae_jax.data.cache import NO_HOME, cache_folder
from vae_jax.data.download import RemoteFile, download
from vae_jax.data.resize import Resizer
from vae_jax.data.source import Opened, Report, Splits, file_state
from vae_jax.data.split import Split
from vae_jax.device import memory
from vae_jax.errors import UserError
from vae_jax.files.wait import locked

FILES = {  # split: its images and its labels
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
NAMES = FILES["train"] + FILES["test"]
HASHED_LIMIT = 1 << 27  # bytes, several times the largest of these files


def registered_files(builder: str) -> tuple[RemoteFile, ...]:
    """The addresses and checksums that tensorflow-datasets registers for an MNIST-like builder."""
    from tensorflow_datasets.image_classification import mnist

    infos = getattr(mnist, builder).url_infos
    return tuple(RemoteFile(url, int(info.size), info.checksum) for url, info in infos.items())


@dataclass(frozen=True)
class Idx:
    """The source of one data set in MNIST's format.

    Attributes:
        name: of the data set, and of its folder in data.manual_dir.
        files: gives the four files.
        class_names: the labels' names.
    """

    name: str
    files: Callable[[], Sequence[RemoteFile]]
    class_names: tuple[str, ...]

    def __call__(self, config: DataConfig, report: Report) -> Opened:
        """Takes the files from data.manual_dir if it is set, else from the cache folder or a download.

        Raises:
            UserError: if data.manual_dir lacks a file.
        """
        if config.manual_dir is None:
            # The registered checksums determine the content, and tensorflow-datasets' version determines them.
            fingerprint = (version("tensorflow-datasets"),)
            return Opened(self.name, lambda resizer: self._read(self._downloaded(config, report), resizer), fingerprint)
        try:
            paths = self._manual(expand(config.manual_dir))
            fingerprint = tuple(part for path in paths.values() for part in file_state(path))
        except OSError as error:
            raise UserError(f"data.manual_dir {error.filename}: cannot be read ({error.strerror})") from error
        return Opened(self.name, lambda resizer: self._read(self._verified(paths), resizer), fingerprint)

    def _manual(self, folder: Path) -> dict[str, Path]:
        """The four files in folder/<name>/ or folder."""
        paths = {name: path for name in NAMES for path in (folder / name, folder / self.name / name) if path.is_file()}
        if missing := [name for name in NAMES if name not in paths]:
            raise UserError(
                f"data.manual_dir {folder}: expected the four files of {self.name} in it or in its folder "
                f"{self.name}, missing {', '.join(missing)}"
            )
        return paths

    def _verified(self, paths: dict[str, Path]) -> dict[str, bytes]:
        """The contents of the files, once their checksums are as registered."""
        contents = {}
        for file in self.files():
            path = paths[file.name]
            try:
                if (size := path.stat().st_size) > HASHED_LIMIT:
                    raise UserError(f"{path}: expected {self.name}'s, {file.size:,} bytes, found {size:,}")
                with path.open("rb") as opened:
                    sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
                contents[file.name] = path.read_bytes() if sha256 == file.sha256 else b""
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
            if sha256 != file.sha256:
                raise UserError(f"{path}: expected {self.name}'s, sha256 {file.sha256}, found {sha256}{_whose(sha256)}")
        return contents

    def _downloaded(self, config: DataConfig, report: Report) -> dict[str, bytes]:
        """The contents of the files in the cache folder; downloads those that are missing or damaged there."""
        with ExitStack() as stack:
            try:
                if (cache := cache_folder(config)) is None:
                    raise OSError(NO_HOME)
                folder = cache / "downloads" / self.name
                if all(_has(folder / file.name, file) for file in self.files()):  # even in another user's folder
                    return self._verified({name: folder / name for name in NAMES})
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                report(f"the downloaded files are not kept: {error}")
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            paths = {name: folder / name for name in NAMES}
            if stack.enter_context(locked(folder / ".lock", self.name, report)):
                for left in folder.glob(".new-*"):  # from a process that died
                    shutil.rmtree(left, ignore_errors=True)
            wanted = [file for file in self.files() if not _has(paths[file.name], file)]
            if wanted:
                report(f"downloading {self.name}: {sum(file.size for file in wanted) / 1e6:.1f} MB into {folder}")
            try:
                download(wanted, folder)
            except UserError as error:
                raise UserError(
                    f"{self.name}: {error}; with {', '.join(NAMES)} in a folder DIR set data.manual_dir DIR, "
                    "or set data.source digits, folder or array"
                ) from error
            return self._verified(paths)

    def _read(self, contents: dict[str, bytes], resizer: Resizer) -> Splits:
        splits = {}
        for split, (image_file, label_file) in FILES.items():
            images = read_idx(contents[image_file], 3, image_file)
            labels = read_idx(contents[label_file], 1, label_file)
            if len(images) != len(labels):
                raise UserError(
                    f"{self.name}: expected as many labels as images, found {len(images):,} in {image_file} "
                    f"and {len(labels):,} in {label_file}"
                )
            splits[split] = Split(resizer.stack(images, len(images), split), labels.astype(np.int64))
        return Splits(**splits, class_names=self.class_names)


def read_idx(content: bytes, dimensions: int, name: str) -> UInt8[np.ndarray, "..."]:
    """Reads a gzipped IDX file of unsigned bytes.

    Args:
        content: the gzipped file.
        dimensions: of the array: 3 for images (n, h, w), 1 for labels (n,).
        name: of the file, for messages.

    Raises:
        UserError: if it is damaged, or its header does not agree with its content.
    """
    try:
        with gzip.GzipFile(fileobj=BytesIO(content)) as file:
            header = file.read(4 + 4 * dimensions)
            magic = bytes((0, 0, 8, dimensions))
            if header[:4] != magic or len(header) < 4 + 4 * dimensions:
                raise UserError(
                    f"{name}: expected an IDX header, {dimensions} dimensions, found {header.hex() or 'none'}"
                )
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
            size = prod(shape)
            # deflate packs at most 1032-fold: a larger claim is false, and must not make us reserve memory
            if possible := size <= 1032 * len(content):
                memory.check(size, f"{name}, {size:,} bytes {shape}")
            body = file.read(size + 1) if possible else b""
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: expected a whole gzip file, found a damaged one ({error})") from error
    if size == 0 or len(body) != size:
        actual = "more" if len(body) > size else f"{len(body):,}"
        raise UserError(f"{name}: the header says {size:,} bytes {shape}, found {actual}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _has(path: Path, file: RemoteFile) -> bool:
    """Whether a downloaded file exists with the right content.

    Raises:
        PermissionError: if it may not be read; it may be whole for another user.
    """
    try:
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except PermissionError:
        raise
    except OSError:
        return False


def _whose(sha256: str) -> str:
    """The data set that a file belongs to, for a message: they all use the same file names."""
    for source in FAMILY:
        for file in source.files():
            if file.sha256 == sha256:
                return f", which is {source.name}'s {file.name}"
    return ""


MNIST = Idx("mnist", lambda: registered_files("MNIST"), tuple("0123456789"))
FASHION_MNIST = Idx(
    "fashion_mnist",
    lambda: registered_files("FashionMNIST"),
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)
KMNIST = Idx("kmnist", lambda: registered_files("KMNIST"), ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"))
FAMILY = (MNIST, FASHION_MNIST, KMNIST)
