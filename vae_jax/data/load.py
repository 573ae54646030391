"""Loads a configured data set: opens the source, reads or caches it, holds out test and validation images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vae_jax.config import DataConfig, check_section, expand
from vae_jax.data.array import array
from vae_jax.data.binarize import TREATMENTS, binarize
from vae_jax.data.cache import cache_folder, cached
from vae_jax.data.dataset import Dataset, darkness, hold_out
from vae_jax.data.digits import digits
from vae_jax.data.folder import folder
from vae_jax.data.idx import FASHION_MNIST, KMNIST, MNIST
from vae_jax.data.image_size import check_configured
from vae_jax.data.resize import Resizer
from vae_jax.data.source import Opened, Report, Source, Splits
from vae_jax.data.split import Split
from vae_jax.data.tfds import tfds
from vae_jax.errors import UserError, counted, first
from vae_jax.registry import lookup
from vae_jax.spec import NOT_IMAGE

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
        config: the data set and how it is prepared.
        report: gets short lines on steps that take time and on anything unusual.

    Returns:
        The data set, its images uint8, (images, image_size, image_size, channels), of the size and channels that
        `resolve` gives, or examples of another kind. Which ones are held out depends only on their number, not on a
        run's seed. Training images stay in the source's order.

    Raises:
        UserError: if an option, a file or the network prevents it.

    Examples:
        >>> import vae_jax
        >>> data = vae_jax.load_data(vae_jax.load_config("digits").data)
        >>> data.image_shape, len(data.train), len(data.test)
        ((32, 32, 1), 1437, 360)
    """
    check_section(config)
    report = report or (lambda line: None)
    lookup(dict.fromkeys(TREATMENTS), config.treatment, "data.treatment")
    opened, config = _open(config, report)
    resizer = None if config.kind in NOT_IMAGE else _resizer(config, report)
    if resizer is None:
        splits = opened.read(None)
    elif opened.fingerprint is None:
        splits = _read(opened, resizer)
    else:
        key = (config.source, opened.name, str(config.skip_bad), *opened.fingerprint)
        splits = cached(cache_folder(config), config.source, key, resizer.shape, lambda: _read(opened, resizer), report)
    for line in splits.notes:
        report(line)
    if splits.skipped:
        report(f"data.skip_bad: {counted(len(splits.skipped), 'image')} left out")
        for line in first(splits.skipped):
            report(f"  {line}")
    train, test, validation = splits.train, splits.test, splits.validation
    if validation is not None and config.validation != 0:
        raise UserError(
            f"data.validation: expected 0, since {opened.name} has a validation split of its own; found "
            f"{config.validation:g}"
        )
    if test is None:
        if config.test == 0:
            raise UserError(f"data.test: expected more than 0, found 0, and {opened.name} has no test split of its own")
        train, test = hold_out(train, config.test, "data.test")
    if config.validation != 0:
        train, validation = hold_out(train, config.validation, "data.validation")
    if config.treatment == "static":
        train, test = _binarized(train, 1), _binarized(test, 2)
        validation = validation and _binarized(validation, 3)
    if config.values and train.kind == "categories":
        held = [split for split in (train, test, validation) if split is not None]
        most = max(int(split.images.max()) for split in held) + 1
        if config.values < most:
            raise UserError(
                f"data.values: expected at least {most}, since categories of {opened.name} go up to {most - 1}; found "
                f"{config.values}"
            )
    about = {"darkness_said": True, "values": config.values or 0}
    return Dataset(opened.name, train, test, validation, splits.class_names, splits.skipped, **about)


def resolve(config: DataConfig, *, report: Report | None = None) -> DataConfig:
    """The configuration with the image size and channels that `load` chooses if it sets none.

    Raises:
        UserError: if an option or a file prevents it, or the images' sizes differ too much.
    """
    if config.is_settled:
        return config  # the images may be missing
    return _open(config, report or (lambda line: None))[1]


def _open(config: DataConfig, report: Report) -> tuple[Opened, DataConfig]:
    """The opened source, and the configuration with the size and channels of its images."""
    opened = lookup(SOURCES, config.source, "data.source")(config, report)
    if config.kind not in (None, opened.kind):
        made = ", of data that were made in Python or have changed" if config.is_settled else ""
        raise UserError(
            f"data.kind: expected {opened.kind}, as data of source {config.source} are; found {config.kind}{made}"
        )
    if opened.kind != "image":
        config = replace(config, kind=opened.kind, shape=config.shape or opened.shape)
        check_section(config)
        check_configured(config, opened.name, shape=opened.shape)
        return opened, config
    size = opened.image_size if config.image_size is None else config.image_size
    channels = opened.channels if config.channels is None else config.channels
    return opened, replace(config, image_size=size, channels=channels)


def _resizer(config: DataConfig, report: Report = lambda line: None) -> Resizer:
    size, _, channels = config.image_shape
    return Resizer(size, channels, report)


def _read(opened: Opened, resizer: Resizer) -> Splits:
    """All images of a source, with a note if levels stay far below 255, see `darkness`."""
    splits = opened.read(resizer)
    return replace(splits, notes=(*splits.notes, *darkness(opened.name, resizer.brightest, opened.in_arrays)))


def _binarized(split: Split, seed: int) -> Split:
    return replace(split, images=binarize(split.images, seed))


def read_images(paths: Sequence[str | Path], config: DataConfig) -> UInt8[np.ndarray, "images size size channels"]:
    """The images in files, as a data set of this configuration would hold them.

    Raises:
        UserError: naming a file that cannot be read; or if the data are no images.
    """
    if config.kind in NOT_IMAGE:
        raise UserError(f"data.kind: expected image for image files to be read; found {config.kind}")
    files = [expand(path) for path in paths]
    for path in files:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "a special file" if path.exists() else "no such file"
            raise UserError(f"{path}: expected an image file, found {kind}")
    resizer = _resizer(resolve(config))
    images = resizer.stack((resizer.read(path, str(path)) for path in files), len(files))
    return binarize(images, 0) if config.treatment == "static" else images
