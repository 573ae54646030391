"""From the configuration to a data set: open the source, read or cache it, hold out test and validation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vae_jax.config import DataConfig, expand
from vae_jax.data.array import array
from vae_jax.data.binarize import TREATMENTS, binarize
from vae_jax.data.cache import cache_folder, cached
from vae_jax.data.dataset import Dataset, Split, hold_out
from vae_jax.data.digits import digits
from vae_jax.data.folder import folder
from vae_jax.data.idx import FASHION_MNIST, KMNIST, MNIST
from vae_jax.data.resize import Resizer
from vae_jax.data.source import Report, Source, listed
from vae_jax.data.tfds import tfds
from vae_jax.errors import UserError
from vae_jax.registry import lookup

SOURCES: dict[str, Source] = {
    "digits": digits,
    "mnist": MNIST,
    "fashion_mnist": FASHION_MNIST,
    "kmnist": KMNIST,
    "tfds": tfds,
    "folder": folder,
    "array": array,
}


def load(config: DataConfig, *, report: Report | None = None) -> Dataset:
    """Loads a data set into memory.

    Args:
        config: which one, and what is done to its images.
        report: is told in short lines what takes time and what goes another way than usual.

    Returns:
        The data set, its images uint8, (images, image_size, image_size, channels). Which ones are held
        out depends on their number alone, not on a run's seed. Training images stay in the source's order.

    Raises:
        UserError: an option, a file or the network does not let it.
    """
    report = report or (lambda line: None)
    lookup(dict.fromkeys(TREATMENTS), config.treatment, "data.treatment")
    opened = lookup(SOURCES, config.source, "data.source")(config, report)
    resizer = Resizer(config.image_size, config.channels, report)
    if opened.fingerprint is None:
        splits = opened.read(resizer)
    else:
        key = (config.source, opened.name, str(config.skip_bad), *opened.fingerprint)
        splits = cached(cache_folder(config), config.source, key, resizer.shape, lambda: opened.read(resizer), report)
    if splits.skipped:
        report(f"data.skip_bad: {len(splits.skipped):,} images are left out")
        for line in listed(splits.skipped):
            report(f"  {line}")
    train, test = splits.train, splits.test
    if test is None:
        if config.test == 0:
            raise UserError(f"data.test: expected more than 0, found 0, and {opened.name} has no test split of its own")
        train, test = hold_out(train, config.test, "data.test")
    validation = None
    if config.validation != 0:
        train, validation = hold_out(train, config.validation, "data.validation")
    if config.treatment == "static":
        train, test = _binarized(train, 1), _binarized(test, 2)
        validation = validation and _binarized(validation, 3)
    return Dataset(opened.name, train, test, validation, splits.class_names, splits.skipped)


def _binarized(split: Split, seed: int) -> Split:
    return replace(split, images=binarize(split.images, seed))


def read_images(paths: Sequence[str | Path], config: DataConfig) -> UInt8[np.ndarray, "images size size channels"]:
    """PNG and JPEG files as a data set of this configuration would hold them.

    Raises:
        UserError: one of them cannot be read; names it.
    """
    files = [expand(path) for path in paths]
    for path in files:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "a special file" if path.exists() else "no such file"
            raise UserError(f"{path}: expected an image file, found {found}")
    resizer = Resizer(config.image_size, config.channels)
    images = resizer.stack((resizer.read(path, str(path)) for path in files), len(files))
    return binarize(images, 0) if config.treatment == "static" else images
