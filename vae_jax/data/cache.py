"""Resized images on disk, as one uncompressed .npz file per data set and size.

The file's zip format carries a CRC of every array, which is checked on reading: damage is found and the
file is made anew. The cache folder can be deleted at any time.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax import memory
from vae_jax.config import DataConfig, expand
from vae_jax.data.dataset import Split
from vae_jax.data.lock import locked
from vae_jax.data.source import SPLITS, Report, Splits
from vae_jax.errors import UserError
from vae_jax.folder import user_cache

FORMAT = "3"  # a part of the key: count up whenever the same input gives other images or the file another content
TEXTS = ("class_names", "skipped", "notes")  # of the splits, beside their arrays
ABANDONED = 24 * 3600.0  # seconds after which a file is no longer being written
NO_HOME = "there is no home folder (HOME); data.cache_dir names another one"  # why `cache_folder` gives None


def cache_folder(config: DataConfig) -> Path | None:
    """Where everything is kept: `data.cache_dir`, or by default vae_jax in the user's cache folder, if there is one."""
    return expand(config.cache_dir) if config.cache_dir else user_cache()


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
        folder: the cache folder; where there is none, or it cannot be written, that is reported and nothing is kept.
        name: the beginning of the file's name.
        key: everything that determines the content.
        shape: (height, width, channels) of one image.
        make: makes the splits where they are not there or damaged.
        report: is told what happens.
    """
    if folder is None:
        report(f"the images are not cached: {NO_HOME}")
        return make()
    digest = hashlib.sha256(repr((FORMAT, key, shape)).encode()).hexdigest()[:20]
    path = folder / "images" / f"{name}-{'x'.join(map(str, shape))}-{digest}.npz"
    if (found := _found(path, shape, lambda line: None)) is not None:
        return found
    with locked(path.with_name(f".lock-{digest}"), name, report) as alone:
        # Another process may have made it, and let go of the lock, since.
        if (found := _found(path, shape, report)) is not None:
            return found
        splits = make()
        try:
            _write(path, f".new-{digest}-", splits, alone)
            report(f"cached in {path}")
        except OSError as error:
            report(f"the images are not cached: {error}")
    return splits


def _found(path: Path, shape: tuple[int, int, int], report: Report) -> Splits | None:
    """What the cache holds, or None where it is not there or damaged."""
    try:
        return _read(path, shape)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        report(f"{path} cannot be read ({type(error).__name__}): making it anew")
        return None


def _write(path: Path, prefix: str, splits: Splits, alone: bool) -> None:
    """Writes beside the file and renames: another process sees the whole file or none.

    Args:
        path: of the file.
        prefix: of the name of the file beside it.
        splits: its content.
        alone: no other process writes this file now, and what begins like its name was left by one that died.
    """
    text = json.dumps({name: getattr(splits, name) for name in TEXTS})
    arrays = {"text": np.frombuffer(text.encode(), np.uint8)}
    for name in SPLITS:
        if (split := getattr(splits, name)) is not None:
            arrays[f"{name}_images"] = split.images
            if split.labels is not None:
                arrays[f"{name}_labels"] = split.labels
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".new-*"):
        with suppress(OSError):
            if (alone and left.name.startswith(prefix)) or time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, suffix=".npz", delete=False) as file:
        try:
            np.savez(file, allow_pickle=False, **arrays)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _read(path: Path, shape: tuple[int, int, int]) -> Splits:
    """Reads what `_write` wrote; raises any kind of exception where the file is damaged.

    Raises:
        UserError: there is not enough memory for it.
    """
    with path.open("rb") as file:
        memory.check(os.fstat(file.fileno()).st_size, f"data.image_size {shape[0]}: the images in {path}")
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    text = json.loads(arrays["text"].tobytes())
    splits: dict[str, Any] = {}
    for split in SPLITS:
        if split == "train" or f"{split}_images" in arrays:
            images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
            if (
                images.dtype != np.uint8
                or images.shape[1:] != shape
                or (labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]))
            ):
                raise ValueError(f"unexpected arrays in {path}")
            splits[split] = Split(images, labels)
    texts: dict[str, Any] = {name: None if text[name] is None else tuple(text[name]) for name in TEXTS}
    return Splits(**splits, **texts)
