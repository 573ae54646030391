"""The one type every data source gives, and the way to it from arrays."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vae_jax.config import DataConfig
from vae_jax.device import memory
from vae_jax.errors import PATH, UserError, cut, listed, quoted
from vae_jax.spec import KINDS, MOST_VALUES, Spec, others, stored_axes

DARK = 127  # the brightest level of images that are dark, or whose levels do not reach to 255
WHOLE = 1 << 24  # float32 holds all whole numbers up to it
TEST = DataConfig.test  # of the images, held out where there are none to test on
# The kind of numbers and the number of axes of a stored array, by what its examples are.
STORED = {"image": ("u", 4), "vector": ("f", 2), "sequence": ("f", 3), "categories": ("u", 2)}


@dataclass(frozen=True)
class Split:
    """Images of one split, in order, or examples of another kind; checked when it is made.

    Attributes:
        images: uint8, (images, height, width, channels), at least one, grey (1 channel) or RGB (3). Or float32 vectors
            (n, features) or sequences (n, length, channels); or categories, unsigned, (n, length).
        labels: int64, (images,), from 0 on; or None where the source has none. Other whole numbers are converted.
        kind: one of `vae_jax.spec.KINDS`; None stands for vector where the array is of floats (n, features), and else
            for image.

    Raises:
        UserError: if they are anything else.
    """

    __no_type_check__ = True  # what is wrong is told below in one line, with or without a type checker

    images: Shaped[np.ndarray, "images *stored"]
    labels: Int64[np.ndarray, " images"] | None = None
    kind: Any = None

    def __post_init__(self):
        images = _array(self.images, "images")
        kind = self.kind or kind_of(images.shape, images.dtype)
        known = STORED.get(kind) == (images.dtype.kind, images.ndim) and images.size
        sized = kind == "categories" or images.dtype == (np.uint8 if kind == "image" else np.float32)
        if not (known and sized) or (kind == "image" and images.shape[3] not in (1, 3)):
            raise UserError(
                f"images: expected uint8 levels 0 to 255 of at least one image, (n, height, width, 1 or 3); found "
                f"{_described(images)}; Dataset.from_arrays takes floats in [0, 1] and images (n, height, width) too, "
                f"and with kind float32 vectors and sequences, and unsigned categories (n, length)"
            )
        if images.dtype.kind == "f":
            _check_finite(images, images, "images")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "kind", kind)
        if self.labels is not None:
            object.__setattr__(self, "labels", to_labels(self.labels, len(images)))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def form(self) -> str:
        """The shape of an example as it is stored, and its kind if it is no image, in words."""
        shape = "x".join(map(str, self.images.shape[1:]))
        return shape if self.kind == "image" else f"{shape} ({self.kind})"

    def take(self, indices: np.ndarray) -> "Split":
        """The images with these indices, and their labels."""
        return Split(self.images[indices], None if self.labels is None else self.labels[indices], self.kind)

    def spread(self, count: int) -> "Split":
        """So many of the images, in order, or all where there are no more: the same ones every time.

        One of each of `count` equal parts, chosen at random in it: the first ones would be of one class in a source
        that is sorted, and every k-th in one whose classes take turns.
        """
        if count >= len(self):
            return self
        ends = np.arange(count + 1) * len(self) // count
        place = np.random.RandomState(0).random_sample(count)  # the legacy generator's stream is frozen for good
        return self.take(ends[:-1] + (place * np.diff(ends)).astype(np.int64))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, as every source gives it: grey or RGB levels 0 to 255, or examples of another kind; checked
    when it is made.

    Attributes:
        name: what it is called in reports, for example "mnist".
        train: the training images.
        test: the test images, never trained on.
        validation: held out of the training images (`data.validation`), or None.
        class_names: the labels' names, by number; or None where the source has none.
        skipped: the images that were left out (`data.skip_bad`), each with the reason.
        darkness_said: where levels stay far below 255, that has been said; if not, training warns of it.
        values: of a category, which is a number from 0 to values - 1: 0 stands for as many as there are.

    Raises:
        UserError: if the splits' images are of different shapes, the class names do not fit the labels, or a category
            is beyond `values`.
    """

    __no_type_check__ = True  # as for `Split`

    name: str
    train: Split
    test: Split
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    darkness_said: bool = field(default=False, kw_only=True, repr=False, compare=False)
    values: int = field(default=0, kw_only=True)

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise UserError(f"name: expected the data set's name; found {type(self.name).__name__}")
        for name, split in (("train", self.train), ("test", self.test), ("validation", self.validation)):
            if not isinstance(split, Split) and (split is not None or name != "validation"):
                raise UserError(f"{name}: expected a Split; found {type(split).__name__}")
            if split is not None and split.form != self.train.form:
                noun = KINDS[self.train.kind].noun
                raise UserError(
                    f"{name}: expected {noun}s of {self.train.form}, as the training {noun}s are; found {split.form}"
                )
        self._settle_values()
        if self.class_names is not None:
            object.__setattr__(self, "class_names", self._checked_names())

    def _settle_values(self) -> None:
        """Categories in the smallest type that holds all of `values`."""
        most = max(int(split.images.max()) for split in self.splits) + 1 if self.train.kind == "categories" else 0
        if (self.values and self.values < most) or (self.values and not most):
            raise UserError(
                f"values: expected {f'at least {most}' if most else 'none'} in {self.name}; found {self.values}"
            )
        object.__setattr__(self, "values", self.values or most)
        for name in ("train", "test", "validation") if most else ():
            if (split := getattr(self, name)) is not None and split.images.dtype != self.spec.dtype:
                object.__setattr__(self, name, replace(split, images=split.images.astype(self.spec.dtype)))

    def _checked_names(self) -> tuple[str, ...]:
        names = self.class_names
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            raise UserError(f"class_names: expected a name for each label; found {names!r:.200}")
        names = tuple(map(str, names or ()))
        if len(set(names)) < len(names):
            twice = next(name for number, name in enumerate(names) if name in names[:number])
            raise UserError(f"class_names: expected a name for one class only; found {quoted(twice)} twice")
        labels = [split.labels for split in self.splits if split.labels is not None]
        if not labels:
            raise UserError(f"class_names: expected none, since no split has labels; found {len(names):,}")
        if (highest := max(int(found.max()) for found in labels)) >= len(names):
            raise UserError(f"class_names: expected a name for each label up to {highest}; found {len(names):,} names")
        return names

    @property
    def splits(self) -> tuple[Split, ...]:
        """Training and test images, and those for validation if there are any."""
        return (self.train, self.test) if self.validation is None else (self.train, self.test, self.validation)

    @property
    def spec(self) -> Spec:
        """What an example is."""
        return Spec((*self.train.images.shape[1:], *([self.values] if self.values else ())), self.train.kind)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of one image; of another example the shape that the networks take."""
        return self.spec.shape

    def interval(self) -> tuple[float, float]:
        """The least and the largest of its numbers, as the networks take them."""
        if self.spec.support != "reals":
            return 0.0, 1.0
        return min(float(each.images.min()) for each in self.splits), max(
            float(each.images.max()) for each in self.splits
        )

    def darkness(self) -> list[str]:
        """What `darkness` says of its images, unless that has been said."""
        if self.darkness_said or not self.spec.is_picture:
            return []
        names = ("train", "test", "validation")
        brightest = {name: int(split.images.max()) for name, split in zip(names, self.splits, strict=False)}
        return darkness(self.name, brightest, in_arrays=True)

    def warn_of_darkness(self) -> None:
        """Warns of what `darkness` says: whoever trains may have made the data set by hand."""
        for line in self.darkness():
            warnings.warn(line, stacklevel=3)

    def renumbered(self, class_names: Sequence[str] | None) -> "Dataset":
        """The same images with the numbers that their classes have among these names, those of a trained model.

        Where there are no names here or there, the numbers stay as they are.

        Raises:
            UserError: if it has classes of other names.
        """
        if self.class_names is None or class_names is None:
            return self
        class_names = tuple(class_names)
        if unknown := [name for name in self.class_names if name not in class_names]:
            known, others = (listed(map(quoted, names)) for names in (class_names, unknown))
            raise UserError(f"{cut(self.name, PATH)}: expected no other classes than {known}; found {others}")
        numbers = np.array([class_names.index(name) for name in self.class_names], np.int64)

        def renumber(split: Split) -> Split:
            return split if split.labels is None else replace(split, labels=numbers[split.labels])

        train, test, *validation = map(renumber, self.splits)
        return replace(self, train=train, test=test, validation=next(iter(validation), None), class_names=class_names)

    @classmethod
    def from_arrays(
        cls,
        train: Any,
        train_labels: Any = None,
        *,
        test: Any = TEST,
        test_labels: Any = None,
        validation: Any = None,
        validation_labels: Any = None,
        class_names: Any = None,
        name: str = "arrays",
        kind: str | None = None,
        values: int | None = None,
        report: Callable[[str], None] = warnings.warn,
    ) -> "Dataset":
        """A data set of one's own arrays, of numpy or jax.

            data = Dataset.from_arrays(images, labels)                              # a fifth held out for testing
            data = Dataset.from_arrays(images, test=test_images, validation=1000)   # 1,000 held out for validation

        Args:
            train: images (n, height, width) or (n, height, width, 1 or 3): uint8; or bools or floats in [0, 1], which
                are multiplied by 255 and rounded. Or vectors, floats (n, features); or what `kind` says.
            train_labels: whole numbers from 0 on, (n,).
            test: images likewise; or how many of the training images to hold out, as `data.test` does: below 1 a
                fraction, from 1 on a number.
            test_labels: of images given as `test`.
            validation: likewise; None for none.
            validation_labels: of images given as `validation`.
            class_names: the labels' names, by number.
            name: of the data set in reports.
            kind: image; vector, (n, features), or sequence, (n, length, channels), which are kept as float32 as they
                are; or categories, whole numbers from 0 on, (n, length). None stands for vector where the training
                array is of floats (n, features), and for image where it has more axes.
            values: of a category, which is a number from 0 to values - 1; None stands for as many as there are.
            report: is told in a line of levels that stay far below 255, where white may be another number, and of
                numbers that differ by less than float32 holds.

        Raises:
            UserError: naming the argument, what was expected and what was found.
        """

        if kind is not None and kind not in tuple(KINDS):
            raise UserError(f"kind: expected {' or '.join(KINDS)}; found {quoted(str(kind))}")
        values = values.item() if isinstance(values, np.integer) else values
        if values is not None and not (type(values) is int and 1 <= values <= MOST_VALUES):
            raise UserError(f"values: expected a whole number from 1 to {MOST_VALUES:,}; found {values!r:.40}")
        train = _array(train, "train")
        of_all = kind or kind_of(train.shape, train.dtype)

        def split(images: Any, labels: Any, what: str) -> Split:
            images = to_stored(_array(images, what), of_all, what, report)
            return Split(images, None if labels is None else to_labels(labels, len(images), f"{what}_labels"), of_all)

        kept = split(train, train_labels, "train")
        held: dict[str, Split | None] = {}
        for what, images, labels in (("test", test, test_labels), ("validation", validation, validation_labels)):
            if images is None and what == "validation":
                held[what] = None
            elif isinstance(images, int | float | np.number) and not isinstance(images, bool):
                kept, held[what] = hold_out(kept, float(images), what)
            else:
                held[what] = split(images, labels, what)
                continue
            if labels is not None:
                raise UserError(f"{what}_labels: expected the images that they are of as {what}; found none")
        assert held["test"] is not None
        if class_names is not None and not isinstance(class_names, list | tuple | np.ndarray):
            kind = type(class_names).__name__
            raise UserError(f"class_names: expected a list of names, by the labels' numbers; found a {kind}")
        names = None if class_names is None else tuple(class_names)
        data = cls(name, kept, held["test"], held["validation"], names, values=values or 0)
        for line in data.darkness():
            report(line)
        return replace(data, darkness_said=True)


def hold_out(split: Split, amount: int | float, option: str) -> tuple[Split, Split]:
    """Takes images out of a split at random, always the same ones.

    Args:
        split: the images to take from.
        amount: below 1 a fraction, rounded up; from 1 on a number of images.
        option: the option that asks for it, for error messages.

    Returns:
        What is left, in order, and what was taken out, shuffled (a source may be sorted by class).

    Raises:
        UserError: the amount is negative or not a whole number, or leaves no image.
    """
    if not (0 < amount < 1 or (amount >= 1 and float(amount).is_integer())):
        raise UserError(f"{option}: expected a fraction below 1 or a whole number of images, found {amount}")
    total = len(split)
    # rounded first: 0.07 * 100 is 7.000000000000001 in floating point
    count = ceil(round(amount * total, 6)) if amount < 1 else int(amount)
    if count >= total:
        raise UserError(f"{option}: expected to leave images for training, found {count:,} to hold out of {total:,}")
    memory.check(split.images.nbytes, f"{option}: another copy of {total:,} images")
    order = np.random.RandomState(0).permutation(total)  # the legacy generator's stream is frozen for good
    return split.take(np.sort(order[count:])), split.take(order[:count])


def to_levels(images: np.ndarray, where: str) -> UInt8[np.ndarray, "..."]:
    """Images as levels 0 to 255: bools and floats in [0, 1] are scaled by 255 and rounded, some images at a time.

    Raises:
        UserError: naming `where`, if they are neither these nor uint8; the message tells how to scale them.
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
            scale += f"; {others(3)}" if others(images.ndim) else ""
            raise UserError(f"{where}: expected floats in [0, 1], found levels from {low} to {high}{scale}")
        np.rint(part * 255.0, out=out[start : start + step], casting="unsafe")
    return out


def check_levels(dtype: np.dtype, where: str) -> None:
    """Refuses a kind of numbers that `to_levels` does not take.

    Raises:
        UserError: naming `where`, the kind, and how to scale it.
    """
    if dtype == np.uint8 or dtype.kind in "fb":
        return
    white = 255 if dtype.itemsize > 2 else np.iinfo(dtype).max if dtype.kind in "iu" else 0
    scale = f"; if {white} is white, take (images / {white}).astype(np.float32)" if dtype.kind in "iu" else ""
    raise UserError(f"{where}: expected uint8, bool or floats in [0, 1], found {dtype}{scale}")


def darkness(name: str, brightest: dict[str, int], in_arrays: bool) -> list[str]:
    """A line on a data set whose levels stay far below 255, as they do where white is another number.

    Args:
        name: of the data set.
        brightest: the highest level of each split's images.
        in_arrays: the user has them as arrays, which a line of code scales; else as files.
    """
    dark = {split: level for split, level in brightest.items() if level <= DARK}
    if not dark:
        return []
    white = max(dark.values())
    levels = ", ".join(f"{level} among the {split} images" for split, level in dark.items())
    scale = f"; if {white} is white, scale them"
    scale += f": (images * (255 / {white})).round().astype(np.uint8)" if in_arrays else f" by 255 / {white}"
    return [f"{name}: white is 255, but the brightest level is {levels}{scale if white else ''}"]


def _array(values: Any, what: str) -> np.ndarray:
    """A plain numpy array of what may be another kind, jax's for example."""
    if isinstance(values, np.ma.MaskedArray):
        raise UserError(f"{what}: expected an array without a mask; fill it, as with .filled(0); found a masked array")
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.asarray(values)
    except Exception as error:  # of another library's array, of whatever kind: PyTorch raises RuntimeError
        raise UserError(f"{what}: expected an array; {error!s:.200}") from error


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def kind_of(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """What an array is taken for of which nothing else is said."""
    return "vector" if len(shape) == 2 and dtype.kind == "f" else "image"


def to_stored(
    array: np.ndarray, kind: str, what: str, report: Callable[[str], None]
) -> Shaped[np.ndarray, "n *stored"]:
    """An array as a split holds examples of a kind.

    Args:
        array: of any numbers.
        kind: one of `vae_jax.spec.KINDS`.
        what: the array, which messages begin with.
        report: is told of numbers that differ by less than float32 holds.

    Raises:
        UserError: if it is none of this kind.
    """
    if kind == "image":
        return _pictures(array, what)
    whole = kind == "categories"
    axes = 1 + len(stored_axes(kind))
    if array.ndim != axes or 0 in array.shape or array.dtype.kind not in ("iub" if whole else "fiub"):
        numbers = "whole numbers from 0 on" if whole else "real numbers"
        shape = f"(n, {', '.join(stored_axes(kind))})"
        raise UserError(f"{what}: expected {kind}, {numbers} {shape}; found {_described(array)}")
    return _categories(array, what) if whole else _reals(array, what, report)


def _pictures(images: np.ndarray, what: str) -> UInt8[np.ndarray, "n h w c"]:
    """Images as uint8 with their axis of channels."""
    shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if not shaped or 0 in images.shape or images.dtype.kind not in "ufb":
        hint = f"; {others(images.ndim)}" if others(images.ndim) else ""
        raise UserError(
            f"{what}: expected images (n, height, width) or (n, height, width, 1 or 3), uint8 or floats in [0, 1]; "
            f"found {_described(images)}{hint}"
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
    with np.errstate(over="ignore"):  # which is refused
        kept = array.astype(np.float32)
    _check_finite(kept, array, what)
    if array.dtype.kind in "iu" and (most := max(abs(int(array.min())), abs(int(array.max())))) > WHOLE:
        raise UserError(f"{what}: expected whole numbers up to {WHOLE:,}, which float32 holds; found {most:,}")
    if array.dtype in (np.float16, np.float32, np.bool_):  # which float32 holds
        return kept
    lost = []
    for column in range(array.shape[-1]):  # one at a time, since there may be little memory
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


def _check_finite(kept: np.ndarray, given: np.ndarray, what: str) -> None:
    """Refuses numbers that are none, or that float32 does not hold."""
    finite = np.isfinite(kept)
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), kept.shape)
        where = f"{given[place]}, in row {place[0]}"
        raise UserError(f"{what}: expected finite numbers that float32 holds; found {where}")


def to_labels(labels: Any, count: int, what: str = "labels") -> Int64[np.ndarray, " n"]:
    """Labels as int64."""
    labels = _array(labels, what)
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        expected = f"{count:,} whole numbers from 0 on, one for each image"
        hint = "; names go into class_names, and their numbers here" if labels.dtype.kind in "OUST" else ""
        raise UserError(f"{what}: expected {expected}; found {_described(labels)}{hint}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**31:
        raise UserError(f"{what}: expected numbers from 0 to {2**31 - 1}; found {low} to {high}")
    return labels.reshape(count).astype(np.int64, copy=False)
