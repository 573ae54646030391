"""PNG and JPEG files in a folder; the folders in it are the classes."""

import stat
from pathlib import Path

import numpy as np

from vae_jax.config import DataConfig
from vae_jax.data.dataset import Split
from vae_jax.data.resize import Resizer, decode
from vae_jax.data.source import Opened, Report, Splits, required
from vae_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg")


def folder(config: DataConfig, report: Report) -> Opened:
    """Images labelled by the folder in data.path that they are in; those directly in data.path have no label.

    Where data.path holds the folders train and test, these two are the splits. What is hidden is left out.

    Raises:
        UserError: there is no such folder, no image in it, or there are images both with and without label.
    """
    root = Path(required(config.path, "data.path", "folder")).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path {root}: expected a folder, found {'a file' if root.exists() else 'nothing'}")
    root = root.resolve()
    try:
        split = (root / "train").is_dir() and (root / "test").is_dir()
        found = {name: _classes(root / name) for name in ("train", "test")} if split else {"train": _classes(root)}
        paths = [path for classes in found.values() for images in classes.values() for path in images]
        fingerprint = tuple(part for path in paths for part in _state(path))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    names = tuple(sorted({name for classes in found.values() for name in classes} - {""}))

    def read(resizer: Resizer) -> Splits:
        splits = {split: _read(classes, names, resizer) for split, classes in found.items()}
        return Splits(**splits, class_names=names or None)

    return Opened(root.name, read, fingerprint)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of one split by class; the class "" holds images without a label."""
    entries = _visible(folder)
    direct = [entry for entry in entries if _is_image(entry)]
    seen = {folder.resolve(), *folder.resolve().parents}
    classes = {entry.name: images for entry in entries if entry.is_dir() and (images := _images(entry, set(seen)))}
    if direct and classes:
        raise UserError(
            f"{folder}: expected images in it or in its folders, found both ({direct[0].name} and the folder "
            f"{next(iter(classes))})"
        )
    if not direct and not classes:
        raise UserError(f"{folder}: expected PNG or JPEG images in it or in its folders, found none")
    return classes or {"": direct}


def _images(folder: Path, seen: set[Path]) -> list[Path]:
    """All images below a folder, by name; a folder already seen is not entered, so links cannot loop."""
    if folder.resolve() in seen:
        return []
    seen.add(folder.resolve())
    images = []
    for entry in _visible(folder):
        images += _images(entry, seen) if entry.is_dir() else [entry] if _is_image(entry) else []
    return images


def _visible(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def _state(path: Path) -> tuple[str, ...]:
    """What tells whether an image file has changed; reading a pipe or a device could wait forever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: expected an image file, found a special file")
    return str(path), str(status.st_size), str(status.st_mtime_ns)


def _read(classes: dict[str, list[Path]], names: tuple[str, ...], resizer: Resizer) -> Split:
    """Decodes the images of one split, class by class."""
    paths = [path for images in classes.values() for path in images]
    images = resizer.stack((decode(path, str(path)) for path in paths), len(paths))
    if "" in classes:
        return Split(images)
    labels = [names.index(name) for name, of_class in classes.items() for _ in of_class]
    return Split(images, np.array(labels, np.int64))
