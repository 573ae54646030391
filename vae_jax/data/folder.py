"""PNG and JPEG files in a folder; the folders in it are the classes."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vae_jax.config import DataConfig, expand
from vae_jax.data.dataset import Split
from vae_jax.data.resize import BadImage, Resizer
from vae_jax.data.source import Opened, Report, Splits, listed, required
from vae_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg")
Classes = dict[str, list[Path]]  # images by class, in order; the class "" holds images without a label


def folder(config: DataConfig, report: Report) -> Opened:
    """Images labelled by the folder in data.path that they are in; those directly in data.path have no label.

    Where data.path holds the folders train and test, these two are the splits. What is hidden is left out, and so
    are folders without any image, which are reported; with data.skip_bad also images that cannot be used.

    Raises:
        UserError: there is no such folder, no image in it, or there are images both with and without label.
    """
    root = expand(required(config.path, "data.path", "folder"))
    if not root.is_dir():
        raise UserError(f"data.path {root}: expected a folder, found {'a file' if root.exists() else 'nothing'}")
    root = root.resolve()  # the same data set by whatever way it is named
    try:
        split = (root / "train").is_dir() and (root / "test").is_dir()
        folders = {"train": root / "train", "test": root / "test"} if split else {"train": root}
        found = {name: _classes(folder, report) for name, folder in folders.items()}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    faults: dict[Path, str] = {}
    fingerprint = []
    for path in (path for classes in found.values() for images in classes.values() for path in images):
        try:
            fingerprint += _state(path)
        except BadImage as error:
            if not config.skip_bad:
                raise
            faults[path] = str(error)
            fingerprint.append(str(error))

    def read(resizer: Resizer) -> Splits:
        bad = dict(faults)
        arrays = {name: _stack(classes, resizer, bad, config.skip_bad) for name, classes in found.items()}
        kept = {
            split: {name: good for name, images in classes.items() if (good := [i for i in images if i not in bad])}
            for split, classes in found.items()
        }
        for split, classes in kept.items():
            if not classes:
                some = [bad[path] for images in found[split].values() for path in images]
                raise UserError(
                    f"{folders[split]}: expected images that can be used, found none among {len(some):,}; {some[0]}"
                )
        names = tuple(sorted({name for classes in kept.values() for name in classes} - {""}))
        splits = {name: Split(arrays[name], _labels(classes, names)) for name, classes in kept.items()}
        return Splits(**splits, class_names=names or None, skipped=tuple(bad[path] for path in sorted(bad)))

    return Opened(root.name, read, tuple(fingerprint))


def _classes(folder: Path, report: Report) -> Classes:
    """The images of one split by class."""
    entries = _visible(folder)
    direct = [entry for entry in entries if _is_image(entry)]
    seen = {_place(each) for each in (folder, *folder.parents)}
    found = {entry.name: _images(entry, set(seen)) for entry in entries if entry.is_dir()}
    classes = {name: images for name, images in found.items() if images}
    if direct and classes:
        raise UserError(
            f"{folder}: expected images in it or in its folders, found both ({direct[0].name} and the folder "
            f"{next(iter(classes))})"
        )
    if not direct and not classes:
        raise UserError(f"{folder}: expected PNG or JPEG images in it or in its folders, found none")
    if classes and (empty := [name for name in found if name not in classes]):
        report(f"{folder}: folders without images are no classes: {', '.join(listed(empty))}")
    return classes or {"": direct}


def _images(folder: Path, seen: set[tuple[int, int]]) -> list[Path]:
    """All images below a folder, by name; a folder already seen is not entered, so links cannot loop."""
    images, waiting = [], [folder]
    while waiting:
        entry = waiting.pop()
        if entry.is_dir():
            if (place := _place(entry)) not in seen:
                seen.add(place)
                waiting += reversed(_visible(entry))
        elif _is_image(entry):
            images.append(entry)
    return images


def _place(folder: Path) -> tuple[int, int]:
    """What is the same for a folder and links to it."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _visible(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def _state(path: Path) -> tuple[str, ...]:
    """What tells whether an image file has changed; reading a pipe or a device could wait forever."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadImage(f"{path}: expected an image file, found a special file")
    return str(path), str(status.st_size), str(status.st_mtime_ns), str(os.access(path, os.R_OK))


def _stack(classes: Classes, resizer: Resizer, bad: dict[Path, str], skip: bool) -> np.ndarray:
    """Decodes the images of one split, class by class, but for bad ones; adds to those what turns out to be."""
    paths = [path for images in classes.values() for path in images]

    def images() -> Iterator[np.ndarray | None]:
        for path in paths:
            image = None
            try:
                image = None if path in bad else resizer.read(path, str(path))
            except BadImage as error:
                if not skip:
                    raise
                bad[path] = str(error)
            yield image

    return resizer.stack(images(), len(paths))


def _labels(classes: Classes, names: tuple[str, ...]) -> np.ndarray | None:
    if "" in classes:
        return None
    return np.array([names.index(name) for name, images in classes.items() for _ in images], np.int64)
