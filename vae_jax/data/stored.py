"""Converts arrays to the form in which examples are stored: uint8 images, float32 vectors and sequences, categories."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vae_jax.device import memory
from vae_jax.errors import UserError, listed
from vae_jax.spec import MOST_VALUES, kinds_hint, stored_axes

WHOLE = 1 << 24  # float32 holds all whole numbers up to it


def to_levels(images: np.ndarray, where: str) -> UInt8[np.ndarray, "..."]:
    """Images as levels 0 to 255: bools and floats in [0, 1] are scaled by 255 and rounded, some images at a time.

    Raises:
        UserError: naming `where`, if they are neither these nor uint8; the message says how to scale them.
    """
    if images.dtype == np.uint8:
        return images
    check_levels(images.dtype, where)
    memory.check(images.size, f"{where}: {images.shape} as uint8")
    out = np.empty(images.shape, np.uint8)
    step = max(1, (1 << 24) // max(1, prod(images.shape[1:])))
    for start in range(0, len(images), step):
        part = images[start : start + step]
        low, high = part.min(), part.max()  # NaN if any level is NaN
        if not (low >= 0 and high <= 1):
            scale = "; divide them by 255" if low >= 0 and 1 < high <= 255 else ""
            scale = "; take (images + 1) / 2" if -1 <= low < 0 and high <= 1 else scale
            scale += f"; {kinds_hint(3)}" if kinds_hint(images.ndim) else ""
            raise UserError(f"{where}: expected floats in [0, 1], found levels from {low} to {high}{scale}")
        np.rint(part * 255.0, out=out[start : start + step], casting="unsafe")
    return out


def check_levels(dtype: np.dtype, where: str) -> None:
    """Refuses a type of numbers that `to_levels` does not take.

    Raises:
        UserError: naming `where`, the type, and how to scale it.
    """
    if dtype == np.uint8 or dtype.kind in "fb":
        return
    white = 255 if dtype.itemsize > 2 else np.iinfo(dtype).max if dtype.kind in "iu" else 0
    scale = f"; if {white} is white, take (images / {white}).astype(np.float32)" if dtype.kind in "iu" else ""
    raise UserError(f"{where}: expected uint8, bool or floats in [0, 1], found {dtype}{scale}")


def as_array(values: Any, what: str) -> np.ndarray:
    """A plain numpy array from one of any library, jax for example."""
    if isinstance(values, np.ma.MaskedArray):
        raise UserError(f"{what}: expected an array without a mask; fill it, as with .filled(0); found a masked array")
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.asarray(values)
    except Exception as error:  # another library's array may raise anything: PyTorch's raises RuntimeError
        raise UserError(f"{what}: expected an array; {error!s:.200}") from error


def described(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def kind_of(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """The kind that an array is taken for by default."""
    return "vector" if len(shape) == 2 and dtype.kind == "f" else "image"


def to_stored(
    array: np.ndarray, kind: str, what: str, report: Callable[[str], None]
) -> Shaped[np.ndarray, "n *stored"]:
    """An array in the form in which a split holds examples of a kind.

    Args:
        array: of any numbers.
        kind: one of `vae_jax.spec.KINDS`.
        what: the array's name, with which messages begin.
        report: gets a line if numbers differ by less than float32 can hold.

    Raises:
        UserError: if it is not of this kind.
    """
    if kind == "image":
        return _pictures(array, what)
    whole = kind == "categories"
    axes = 1 + len(stored_axes(kind))
    if array.ndim != axes or 0 in array.shape or array.dtype.kind not in ("iub" if whole else "fiub"):
        numbers = "whole numbers from 0 on" if whole else "real numbers"
        shape = f"(n, {', '.join(stored_axes(kind))})"
        raise UserError(f"{what}: expected {kind}, {numbers} {shape}; found {described(array)}")
    return _categories(array, what) if whole else _reals(array, what, report)


def _pictures(images: np.ndarray, what: str) -> UInt8[np.ndarray, "n h w c"]:
    """Images as uint8 with an axis of channels."""
    shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if not shaped or 0 in images.shape or images.dtype.kind not in "ufb":
        hint = f"; {kinds_hint(images.ndim)}" if kinds_hint(images.ndim) else ""
        raise UserError(
            f"{what}: expected images (n, height, width) or (n, height, width, 1 or 3), uint8 or floats in [0, 1]; "
            f"found {described(images)}{hint}"
        )
    levels = to_levels(images, what)
    return levels if levels.ndim == 4 else levels[..., None]


def _categories(array: np.ndarray, what: str) -> Shaped[np.ndarray, "n length"]:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= MOST_VALUES:
        raise UserError(f"{what}: expected categories from 0 to {MOST_VALUES - 1:,}; found {low} to {high}")
    return array.astype(np.min_scalar_type(high))


def _reals(array: np.ndarray, what: str, report: Callable[[str], None]) -> Shaped[np.ndarray, "n *stored"]:
    memory.check(4 * array.size, f"{what}: {array.shape} as float32")
    with np.errstate(over="ignore"):  # infinities are refused below
        kept = array.astype(np.float32)
    check_finite(kept, array, what)
    if array.dtype.kind in "iu" and (most := max(abs(int(array.min())), abs(int(array.max())))) > WHOLE:
        raise UserError(f"{what}: expected whole numbers up to {WHOLE:,}, which float32 holds; found {most:,}")
    if array.dtype in (np.float16, np.float32, np.bool_):  # float32 holds them exactly
        return kept
    lost = []
    for column in range(array.shape[-1]):  # one at a time to save memory
        given, rounded = array[..., column].astype(float).ravel(), kept[..., column].ravel()
        with np.errstate(over="ignore"):
            spread = given.std()
        lost.append(spread > 0 and np.abs(given - rounded).max() > 1e-3 * spread)
    if columns := np.flatnonzero(lost).tolist():
        report(
            f"{what}: kept as float32, too coarse for how little the numbers of column {listed(map(str, columns))} "
            f"differ; subtract their means or multiply them first"
        )
    return kept


def check_finite(kept: np.ndarray, given: np.ndarray, what: str) -> None:
    """Refuses NaN, infinities, and numbers too large for float32."""
    finite = np.isfinite(kept)
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), kept.shape)
        where = f"{given[place]}, in row {place[0]}"
        raise UserError(f"{what}: expected finite numbers that float32 holds; found {where}")


def to_labels(labels: Any, count: int, what: str = "labels") -> Int64[np.ndarray, " n"]:
    """Labels as int64, (n,), checked.

    Raises:
        UserError: naming `what`, if they are no `count` whole numbers from 0 on.
    """
    labels = as_array(labels, what)
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        expected = f"{count:,} whole numbers from 0 on, one for each image"
        hint = "; names go into class_names, and their numbers here" if labels.dtype.kind in "OUST" else ""
        raise UserError(f"{what}: expected {expected}; found {described(labels)}{hint}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**31:
        raise UserError(f"{what}: expected numbers from 0 to {2**31 - 1}; found {low} to {high}")
    return labels.reshape(count).astype(np.int64, copy=False)
