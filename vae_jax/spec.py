"""What one example of a data set is: an image, a vector, a sequence of vectors, or categories."""

from typing import Any, NamedTuple

from vae_jax.errors import UserError

MOST_VALUES = 1 << 16  # of categories: the networks see one number for each


class Kind(NamedTuple):
    """What examples of a kind have in common.

    Attributes:
        axes: of an example as the networks take it; the last one is that of its channels.
        support: what its numbers are: "levels" in [0, 1], "reals", or "categories", the last axis one-hot.
        noun: what reports call an example.
    """

    axes: tuple[str, ...]
    support: str
    noun: str = "example"


KINDS = {
    "image": Kind(("height", "width", "channels"), "levels", "image"),
    "vector": Kind(("features",), "reals"),
    "sequence": Kind(("length", "channels"), "reals"),
    "categories": Kind(("length", "values"), "categories"),
}
OTHERS = tuple(name for name in KINDS if name != "image")


class Spec(NamedTuple):
    """What one example is.

    Attributes:
        shape: as the networks take it: (height, width, channels), (features,), (length, channels) or (length, values).
        kind: one of KINDS.
    """

    shape: tuple[int, ...]
    kind: str = "image"

    @property
    def support(self) -> str:
        """What its numbers are, see `Kind`."""
        return KINDS[self.kind].support

    @property
    def noun(self) -> str:
        """What reports call it."""
        return KINDS[self.kind].noun

    @property
    def is_picture(self) -> bool:
        """Whether it can be looked at."""
        return self.support == "levels"

    @property
    def values(self) -> int:
        """How many values a category has; 0 where there are no categories."""
        return self.shape[-1] if self.support == "categories" else 0

    @property
    def stored(self) -> tuple[int, ...]:
        """Its shape in memory, where a category is one number."""
        return self.shape[: len(stored_axes(self.kind))]

    @property
    def dtype(self) -> Any:
        """Of its numbers in memory."""
        import numpy as np  # which a command's help can do without

        return np.min_scalar_type(self.values - 1) if self.values else np.dtype(np.uint8 if self.is_picture else "f4")

    def __str__(self) -> str:
        size = "x".join(map(str, self.stored))
        numbers = {"levels": "", "reals": " numbers", "categories": f" categories of {self.values} values"}
        return size + numbers[self.support]


def stored_axes(kind: str) -> tuple[str, ...]:
    """Of an example of a kind in memory, where a category is one number."""
    axes = KINDS[kind].axes
    return axes[:-1] if KINDS[kind].support == "categories" else axes


def others(axes: int) -> str:
    """A hint at the kinds, other than image, whose arrays have so many axes; empty where there are none."""
    kinds = [name for name in OTHERS if len(stored_axes(name)) == axes - 1]
    return f"kind may be {' or '.join(kinds)}" if kinds else ""


def spec_of(kind: str | None, shape: tuple[int, ...]) -> Spec:
    """Of examples of a shape.

    Args:
        kind: `data.kind`; where it is None the shape tells it.
        shape: as the networks take an example.

    Raises:
        UserError: if it does not, or the kind has other axes.
    """
    shape, axes = tuple(shape), {name: f"({', '.join(known.axes)})" for name, known in KINDS.items()}
    fitting = [name for name, known in KINDS.items() if len(known.axes) == len(shape)]
    if kind is None and len(fitting) == 1:
        kind = fitting[0]
    if kind not in fitting:
        known = " or ".join(f"{name} {axes[name]}" for name in fitting or KINDS)
        given = "null" if kind is None else f"{kind} {axes[kind]}"
        raise UserError(f"data.kind: expected {known} for examples of shape {shape}; found {given}")
    return Spec(shape, kind)
