"""`Dataset`, which every data source gives, and how to make one from arrays."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np

from vae_jax.config import DataConfig
from vae_jax.data.split import Split
from vae_jax.data.stored import as_array, kind_of, to_labels, to_stored
from vae_jax.device import memory
from vae_jax.errors import PATH, UserError, cut, listed, quoted
from vae_jax.spec import KINDS, MOST_VALUES, Spec

DARK = 127  # images with no brighter level are dark, or their white is below 255
TEST = DataConfig.test  # share of the images held out if there are no test images


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: images of grey or RGB levels 0 to 255, or examples of another kind; checked when made.

    Attributes:
        name: for reports, for example "mnist".
        train: the training images.
        test: the test images, never trained on.
        validation: held out of the training images (`data.validation`), or None.
        class_names: the labels' names, by number; None if the source has none.
        skipped: the images that were left out (`data.skip_bad`), with the reasons.
        darkness_said: whether the user knows that levels stay far below 255; if not, training warns of it.
        values: of a category, which is a number from 0 to values - 1; 0 takes as many as there are.

    Raises:
        UserError: if the splits' images have different shapes, the class names do not fit the labels, or a category is
            beyond `values`.

    Examples:
        >>> import numpy as np
        >>> import vae_jax
        >>> images = np.full((100, 8, 8), 255, np.uint8)
        >>> data = vae_jax.Dataset.from_arrays(images, np.arange(100) % 10)
        >>> data.image_shape, len(data.train), len(data.test)
        ((8, 8, 1), 80, 20)
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
        """Sets `values`, and stores categories in the smallest type that holds them."""
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
        if (highest := max(int(numbers.max()) for numbers in labels)) >= len(names):
            raise UserError(f"class_names: expected a name for each label up to {highest}; found {len(names):,} names")
        return names

    def names_of(self, labels: Sequence[int] | np.ndarray | None) -> list[str]:
        """The classes of labels, by name, or by number if they have no names; empty for None."""
        numbers = [] if labels is None else [int(label) for label in labels]
        return [self.class_names[number] if self.class_names else str(number) for number in numbers]

    @property
    def splits(self) -> tuple[Split, ...]:
        """The training, test and, if there are any, validation images."""
        return (self.train, self.test) if self.validation is None else (self.train, self.test, self.validation)

    @property
    def spec(self) -> Spec:
        """The kind and shape of an example."""
        return Spec((*self.train.images.shape[1:], *([self.values] if self.values else ())), self.train.kind)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of one image, or another example's shape as the networks take it."""
        return self.spec.shape

    def interval(self) -> tuple[float, float]:
        """The smallest and the largest of its numbers, as the networks take them."""
        if self.spec.support != "reals":
            return 0.0, 1.0
        return min(float(split.images.min()) for split in self.splits), max(
            float(split.images.max()) for split in self.splits
        )

    def darkness(self) -> list[str]:
        """The lines of `darkness` on its images, unless the user knows them."""
        if self.darkness_said or not self.spec.is_picture:
            return []
        names = ("train", "test", "validation")
        brightest = {name: int(split.images.max()) for name, split in zip(names, self.splits, strict=False)}
        return darkness(self.name, brightest, in_arrays=True)

    def warn_of_darkness(self) -> None:
        """Warns with the lines of `darkness`: the data set may have been made by hand."""
        for line in self.darkness():
            warnings.warn(line, stacklevel=3)

    def renumbered(self, class_names: Sequence[str] | None) -> "Dataset":
        """The data set with its labels numbered as these names are, those of a trained model.

        Without names on either side the numbers stay as they are.

        Raises:
            UserError: if it has a class that is not among these names.
        """
        if self.class_names is None or class_names is None:
            return self
        class_names = tuple(class_names)
        if unknown := [name for name in self.class_names if name not in class_names]:
            known, strange = (listed(map(quoted, names)) for names in (class_names, unknown))
            raise UserError(f"{cut(self.name, PATH)}: expected no other classes than {known}; found {strange}")
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
        """A data set from your own arrays, of numpy or jax.

            data = Dataset.from_arrays(images, labels)                              # a fifth held out for testing
            data = Dataset.from_arrays(images, test=test_images, validation=1000)   # 1,000 held out for validation

        Args:
            train: images (n, height, width) or (n, height, width, 1 or 3): uint8; or bools or floats in [0, 1], which
                are multiplied by 255 and rounded. Or vectors, floats (n, features); or another `kind`.
            train_labels: whole numbers from 0 on, (n,).
            test: images as above; or the share of the training images to hold out, as `data.test`: below 1 a fraction,
                from 1 on a number.
            test_labels: of images given as `test`.
            validation: as `test`; None for none.
            validation_labels: of images given as `validation`.
            class_names: the labels' names, by number.
            name: of the data set in reports.
            kind: image; vector, (n, features), or sequence, (n, length, channels), whose numbers are kept as float32;
                or categories, whole numbers from 0 on, (n, length). None means vector if the training array holds
                floats (n, features), and image if it has more axes.
            values: of a category, which is a number from 0 to values - 1; None takes as many as there are.
            report: gets a line if levels stay far below 255, so that white may be another number, and if numbers differ
                by less than float32 can hold.

        Raises:
            UserError: naming the argument, what was expected and what was found.
        """

        if kind is not None and kind not in tuple(KINDS):
            raise UserError(f"kind: expected {' or '.join(KINDS)}; found {quoted(str(kind))}")
        values = values.item() if isinstance(values, np.integer) else values
        if values is not None and not (type(values) is int and 1 <= values <= MOST_VALUES):
            raise UserError(f"values: expected a whole number from 1 to {MOST_VALUES:,}; found {values!r:.40}")
        train = as_array(train, "train")
        common = kind or kind_of(train.shape, train.dtype)

        def split(images: Any, labels: Any, what: str) -> Split:
            images = to_stored(as_array(images, what), common, what, report)
            return Split(images, None if labels is None else to_labels(labels, len(images), f"{what}_labels"), common)

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
    """Takes images out of a split at random, but always the same ones.

    Args:
        split: the images to take from.
        amount: below 1 a fraction, rounded up; from 1 on a number of images.
        option: the option that asks for it, for error messages.

    Returns:
        The images left, in order, and those taken out, shuffled (a source may be sorted by class).

    Raises:
        UserError: if the amount is negative or not a whole number, or leaves no image.
    """
    if not (0 < amount < 1 or (amount >= 1 and float(amount).is_integer())):
        raise UserError(f"{option}: expected a fraction below 1 or a whole number of images, found {amount}")
    total = len(split)
    # rounded first: 0.07 * 100 is 7.000000000000001 in floating point
    count = ceil(round(amount * total, 6)) if amount < 1 else int(amount)
    if count >= total:
        raise UserError(f"{option}: expected to leave images for training, found {count:,} to hold out of {total:,}")
    memory.check(split.images.nbytes, f"{option}: another copy of {total:,} images")
    order = np.random.RandomState(0).permutation(total)  # the legacy generator's stream never changes
    return split.take(np.sort(order[count:])), split.take(order[:count])


def darkness(name: str, brightest: dict[str, int], in_arrays: bool) -> list[str]:
    """A line on a data set whose levels stay far below 255, as they do if white is another number.

    Args:
        name: of the data set.
        brightest: the highest level of each split's images.
        in_arrays: whether the user has arrays, which a line of code scales, or files.
    """
    dark = {split: level for split, level in brightest.items() if level <= DARK}
    if not dark:
        return []
    white = max(dark.values())
    levels = ", ".join(f"{level} among the {split} images" for split, level in dark.items())
    scale = f"; if {white} is white, scale them"
    scale += f": (images * (255 / {white})).round().astype(np.uint8)" if in_arrays else f" by 255 / {white}"
    return [f"{name}: white is 255, but the brightest level is {levels}{scale if white else ''}"]
