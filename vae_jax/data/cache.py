"""Resized images on disk, as one uncompressed .npz file per data set and size.

The zip format has a CRC of every array, which is checked on reading: a damaged file is made again. The cache folder can
be deleted at any time, and users can share one: a file's mode follows their umask, and a file that may not be read is
left alone.
"""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax.config import DataConfig, expand
from vae_jax.data.dataset import Dataset
from vae_jax.data.npz import Arrays, Header, opened
from vae_jax.data.source import SPLITS, Report, Splits
from vae_jax.data.split import Split
from vae_jax.device import memory
from vae_jax.errors import UserError, listed
from vae_jax.files import checked
from vae_jax.files.replace import NAME_LIMIT, replacing
from vae_jax.files.user import user_cache
from vae_jax.files.wait import locked

FORMAT = "3"  # part of the key: increase it when the same input gives other images, or the file's content changes
NAMES = {"text", *(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))}  # of the arrays
TEXT_LIMIT = 1 << 24  # bytes of the array "text"
ABANDONED = 24 * 3600.0  # seconds after which an unfinished file is no longer being written
NO_HOME = "there is no home folder (HOME); data.cache_dir names another one"  # the reason if `cache_folder` gives None


class _Texts(NamedTuple):
    """The texts that a file holds beside the arrays."""

    class_names: tuple[str, ...] | None
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def cache_folder(config: DataConfig) -> Path | None:
    """The cache folder: `data.cache_dir`, or by default vae_jax in the user's cache folder; None without a home."""
    return expand(config.cache_dir) if config.cache_dir else user_cache()


def is_cache(folder: Path) -> bool:
    """Whether the folder holds a cache already: a run from elsewhere may name any folder."""
    return any((folder / part).is_dir() for part in ("images", "downloads"))


def cached(
    folder: Path | None,
    name: str,
    key: tuple[str, ...],
    shape: tuple[int, int, int],
    make: Callable[[], Splits],
    report: Report,
) -> Splits:
    """Reads the splits from the cache, or makes them and keeps them there.

    Args:
        folder: the cache folder; if it is None or cannot be written, that is reported and nothing is kept.
        name: the beginning of the file's name.
        key: everything that determines the content.
        shape: (height, width, channels) of one image.
        make: makes the splits if they are missing or damaged.
        report: takes a line for the user.
    """
    if folder is None:
        report(f"the images are not cached: {NO_HOME}")
        return make()
    digest = hashlib.sha256(repr((FORMAT, key, shape)).encode()).hexdigest()[:20]
    path = folder / "images" / f"{name}-{'x'.join(map(str, shape))}-{digest}.npz"
    splits, _ = _look_up(path, shape, lambda line: None)
    if splits is not None:
        return splits
    with locked(path.with_name(f".lock-{digest}"), name, report) as alone:
        # Another process may have made it and released the lock since.
        splits, replaceable = _look_up(path, shape, report)
        if splits is not None:
            return splits
        splits = make()
        if replaceable:
            try:
                _write(path, splits, alone)
                report(f"cached in {path}")
            except OSError as error:
                report(f"the images are not cached in {path} ({error.strerror or error})")
    return splits


def _look_up(path: Path, shape: tuple[int, int, int], report: Report) -> tuple[Splits | None, bool]:
    """The cached splits, or None if they are missing or damaged; and whether the file may be replaced.

    Raises:
        NotEnough: if they do not fit into memory.
    """
    try:
        return _read(path, shape), False
    except memory.NotEnough:
        raise
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None, True
        if isinstance(error.__cause__, PermissionError):  # it may be whole for its owner
            report(f"{error} and is left as it is: the images are not cached")
            return None, False
        report(f"{'' if str(path) in str(error) else f'{path}: '}{error}: making it again")
        return None, True


def _write(path: Path, splits: Splits, alone: bool) -> None:
    """Writes beside the file and renames: another process sees the whole file or none.

    Args:
        path: of the file.
        splits: its content.
        alone: no other process writes this file now, so unfinished files beside it come from one that died.

    Raises:
        OSError: if it cannot be written, or `_read` would not take it.
    """
    text = json.dumps({name: getattr(splits, name) for name in _Texts._fields}).encode()
    if len(text) > TEXT_LIMIT:
        raise OSError(f"{len(splits.skipped):,} lines on images that are left out")
    arrays = {"text": np.frombuffer(text, np.uint8)}
    for name in SPLITS:
        if (split := getattr(splits, name)) is not None:
            arrays[f"{name}_images"] = split.images
            if split.labels is not None:
                arrays[f"{name}_labels"] = split.labels
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*.tmp"):
        beside = left.name.startswith(f".{path.name[:NAME_LIMIT]}.")
        with suppress(OSError):
            if (alone and beside) or time.time() - left.lstat().st_mtime > ABANDONED:
                left.unlink()
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path, shape: tuple[int, int, int]) -> Splits:
    """Reads what `_write` wrote, after checking all sizes.

    Raises:
        NotEnough: if it does not fit into memory.
        UserError: if it is damaged or no such file.
    """
    with opened(path) as file:
        headers = _checked_headers(file, shape)
        needed = sum(header.nbytes for header in headers.values())
        memory.check(needed, f"data.image_size {shape[0]}: the images in {path}")
        texts = checked.parse(file.read("text").tobytes(), _Texts)
        splits: dict[str, Split] = {}
        for split in SPLITS:
            if f"{split}_images" in headers:
                labels = file.read(f"{split}_labels") if f"{split}_labels" in headers else None
                splits[split] = Split(file.read(f"{split}_images"), labels)
        result = Splits(**splits, **texts._asdict())
        test = result.test or result.train
        Dataset(path.name, result.train, test, result.validation, result.class_names)  # checks labels
        return result


def _checked_headers(file: Arrays, shape: tuple[int, int, int]) -> dict[str, Header]:
    """The headers of the arrays that `_write` writes.

    Raises:
        UserError: if there are others, or one has another type or shape.
    """
    if len(file.names) > len(NAMES) or not {"text", "train_images"} <= set(file.names) <= NAMES:
        raise UserError(f"expected the arrays of cached images, found {listed(file.names) or 'none'}")
    headers = {name: file.header(name) for name in file.names}
    expected: dict[str, Any] = {"text": (np.uint8, (min(headers["text"].nbytes, TEXT_LIMIT),))}
    for split in SPLITS:
        if (images := headers.get(f"{split}_images")) is not None:
            count = images.shape[:1]
            expected |= {f"{split}_images": (np.uint8, count + shape), f"{split}_labels": (np.int64, count)}
    for name, header in headers.items():
        if header.compressed or (header.dtype, header.shape) != expected.get(name):
            kind = f"{'compressed ' * header.compressed}{header.dtype} {header.shape}"
            raise UserError(f"{header.where}: expected an array of cached images, found {kind}")
    return headers
