"""Images, or examples of other kinds, from an .npy or .npz file."""

import numpy as np
from jaxtyping import Int64

from vae_jax.config import DataConfig, expand
from vae_jax.data.image_size import Kind, choose
from vae_jax.data.npz import Arrays, Header, opened
from vae_jax.data.resize import Resizer, check_size
from vae_jax.data.source import SPLIT_OF, Opened, Report, Splits, file_state, required
from vae_jax.data.split import Split
from vae_jax.data.stored import check_levels, kind_of, to_labels, to_levels, to_stored
from vae_jax.device import memory
from vae_jax.errors import UserError, cut, listed
from vae_jax.spec import kinds_hint

PARTS = {  # words in any case that name images or labels; a split's word may come before or after, as in x_train
    **dict.fromkeys(("x", "image", "images", "data"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets"), "labels"),
}


def array(config: DataConfig, report: Report) -> Opened:
    """Images (n, h, w[, c]), uint8, bool or floats in [0, 1]; vectors, floats (n, features); or another `data.kind`.

    An .npz file may add labels, a test and a validation split, by the names of its arrays, see `PARTS`.

    Raises:
        UserError: if the file is missing or damaged, or its arrays are of another kind.
    """
    path = expand(required(config.path, "data.path", "array"))
    if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        kind = "another file" if path.is_file() else "a special file"
        actual = "a folder" if path.is_dir() else kind if path.exists() else "nothing"
        raise UserError(f"data.path {path}: expected an .npy or .npz file, found {actual}")
    with opened(path) as file:
        names = file.names
        arrays: dict[tuple[str, str], str] = {}
        for name in names:
            if (place := _place(name)) is not None and arrays.setdefault(place, name) != name:
                both = f"{cut(arrays[place])} and {cut(name)}"
                raise UserError(f"{path}: expected one array of {' '.join(place)}, found {both}")
        if ("train", "images") not in arrays:
            expected = "training images in an array named x_train, train_images, train or images"
            raise UserError(f"{path}: expected {expected}, found {listed(names) or 'none'}")
        headers = {split: file.header(name) for (split, part), name in arrays.items() if part == "images"}
        first = headers["train"]
        kind = config.kind or kind_of(first.shape, first.dtype)
        if kind == "image":
            for header in headers.values():
                _check_header(header)
    used = {name for (split, _), name in arrays.items() if split in headers}
    if ignored := sorted(set(names) - used):
        report(f"{path}: ignoring {listed(ignored)}")
    if kind == "image" and any(header.dtype.kind == "b" for header in headers.values()):
        report(f"{path}: False and True are taken for levels 0 and 255")

    def read(resizer: Resizer | None) -> Splits:
        with opened(path) as file:
            splits = {}
            for split in headers:
                header, images = _array(file, arrays[split, "images"])
                if resizer:
                    images = resizer.stack(to_levels(images, header.where), len(images), split)
                else:
                    images = to_stored(images, kind, header.where, report)
                name = arrays.get((split, "labels"))
                labels = None if name is None else _labels(file, name, len(images))
                splits[split] = Split(images, labels, kind)
            return Splits(**splits)

    if kind != "image":
        return Opened(path.stem, read, kind=kind, shape=first.shape[1:])

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
    """The split and the part of it that an array's name means (x_train, test_labels, val, images), or None."""
    words = name.lower().split("_")
    if len(words) > 2:
        return None
    splits, parts = ([table[word] for word in words if word in table] for table in (SPLIT_OF, PARTS))
    if len(splits) + len(parts) < len(words) or len(splits) > 1 or len(parts) > 1:
        return None
    return (splits or ["train"])[0], (parts or ["images"])[0]


def _check_header(header: Header) -> None:
    """Refuses an array that does not hold images."""
    shape, dtype = header.shape, header.dtype
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        hint = f"; data.{kinds_hint(len(shape))}" if kinds_hint(len(shape)) else ""
        raise UserError(
            f"{header.where}: expected images (n, h, w) or (n, h, w, 1, 3 or 4), found shape {shape} of {dtype}{hint}"
        )
    check_levels(dtype, header.where)
    check_size(shape[2], shape[1], header.where)


def _array(file: Arrays, name: str) -> tuple[Header, np.ndarray]:
    header = file.header(name)
    memory.check(header.nbytes, f"{header.where}, {header.dtype} {header.shape}")
    return header, file.read(name)


def _labels(file: Arrays, name: str, count: int) -> Int64[np.ndarray, " n"]:
    """Reads labels, one integer per image, (n,) or Keras's (n, 1)."""
    header = file.header(name)
    if header.shape not in ((count,), (count, 1)) or header.dtype.kind not in "iu":
        kind = "text" if header.dtype.kind in "US" else str(header.dtype)
        raise UserError(
            f"{header.where}: expected {count:,} whole numbers as labels, found {kind} of shape {header.shape}; "
            f"names of classes come with folders, or with vae_jax.Dataset.from_arrays"
        )
    return to_labels(_array(file, name)[1], count, header.where)
