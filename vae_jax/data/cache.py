"""Resized images on disk, as one uncompressed .npz file per data set and size.

The file's zip format carries a CRC of every array, which is checked on reading: damage is found and the
file is made anew. The cache folder can be deleted at any time.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vae_jax.config import DataConfig
from vae_jax.data.dataset import Split
from vae_jax.data.source import Report, Splits
from vae_jax.folder import user_cache

FORMAT = "1"  # a part of the key: count up whenever the same input gives other images


def cache_folder(config: DataConfig) -> Path:
    """Where everything is kept: `data.cache_dir`, or by default vae_jax in the user's cache folder."""
    return Path(config.cache_dir).expanduser() if config.cache_dir else user_cache()


def cached(
    folder: Path,
    name: str,
    key: tuple[str, ...],
    shape: tuple[int, int, int],
    make: Callable[[], Splits],
    report: Report,
) -> Splits:
    """Reads the splits from the cache, or makes them and keeps them there.

    Args:
        folder: the cache folder; where it cannot be written, that is reported and nothing is kept.
        name: the beginning of the file's name.
        key: everything that determines the content.
        shape: (height, width, channels) of one image.
        make: makes the splits where they are not there or damaged.
        report: is told what happens.
    """
    digest = hashlib.sha256(repr((FORMAT, key, shape)).encode()).hexdigest()[:20]
    path = folder / "images" / f"{name}-{'x'.join(map(str, shape))}-{digest}.npz"
    try:
        return _read(path, shape)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        report(f"{path} cannot be read ({type(error).__name__}): making it anew")
    splits = make()
    try:
        _write(path, splits)
        report(f"cached in {path}")
    except OSError as error:
        report(f"the images are not cached: {error}")
    return splits


def _write(path: Path, splits: Splits) -> None:
    """Writes beside the file and renames: another process sees the whole file or none."""
    arrays = {"train_images": splits.train.images}
    if splits.train.labels is not None:
        arrays["train_labels"] = splits.train.labels
    if splits.test is not None:
        arrays["test_images"] = splits.test.images
        if splits.test.labels is not None:
            arrays["test_labels"] = splits.test.labels
    if splits.class_names is not None:
        arrays["class_names"] = np.array(splits.class_names, dtype=np.str_)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", suffix=".npz", delete=False) as file:
        try:
            np.savez(file, allow_pickle=False, **arrays)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _read(path: Path, shape: tuple[int, int, int]) -> Splits:
    """Reads what `_write` wrote; raises any kind of exception where the file is damaged."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    splits = {}
    for split in ("train", "test"):
        if split == "train" or "test_images" in arrays:
            images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
            if (
                images.dtype != np.uint8
                or images.shape[1:] != shape
                or (labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]))
            ):
                raise ValueError(f"unexpected arrays in {path}")
            splits[split] = Split(images, labels)
    names = arrays.get("class_names")
    return Splits(**splits, class_names=None if names is None else tuple(map(str, names)))
