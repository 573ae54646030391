"""The kind and shape of a data set's examples: images, vectors, sequences of vectors, or categories."""

from typing import Any, NamedTuple

from vae_jax.errors import UserError

MOST_VALUES = 1 << 16  # of a category: the networks get one number for each


class Kind(NamedTuple):
    """What examples of a kind have in common.

    Attributes:
        axes: of an example as the networks take it; the last one is the channels'.
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
NOT_IMAGE = tuple(name for name in KINDS if name != "image")


class Spec(NamedTuple):
    """The kind and shape of one example.

    Attributes:
        shape: as the networks take it: (height, width, channels), (features,), (length, channels) or (length, values).
        kind: one of KINDS.
    """

    shape: tuple[int, ...]
    kind: str = "image"

    @property
    def support(self) -> str:
        """The kind of its numbers, see `Kind`."""
        return KINDS[self.kind].support

    @property
    def noun(self) -> str:
        """The word for it in reports."""
        return KINDS[self.kind].noun

    @property
    def is_picture(self) -> bool:
        """Whether it can be shown as a picture."""
        return self.support == "levels"

    @property
    def values(self) -> int:
        """The number of values of a category; 0 if there are no categories."""
        return self.shape[-1] if self.support == "categories" else 0

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in memory, where a category is one number."""
        return self.shape[: len(stored_axes(self.kind))]

    @property
    def dtype(self) -> Any:
        """The type of its numbers in memory."""
        import numpy as np  # here, since a command's help does without it

        return np.min_scalar_type(self.values - 1) if self.values else np.dtype(np.uint8 if self.is_picture else "f4")

    def __str__(self) -> str:
        size = "x".join(map(str, self.stored))
        numbers = {"levels": "", "reals": " numbers", "categories": f" categories of {self.values} values"}
        return size + numbers[self.support]


def stored_axes(kind: str) -> tuple[str, ...]:
    """The axes of an example in memory, where a category is one number."""
    axes = KINDS[kind].axes
    return axes[:-1] if KINDS[kind].support == "categories" else axes


def kinds_hint(axes: int) -> str:
    """A hint at the kinds, other than image, whose arrays have this many axes; empty if there are none."""
    kinds = [name for name in NOT_IMAGE if len(stored_axes(name)) == axes - 1]
    return f"kind may be {' or '.join(kinds)}" if kinds else ""


def spec_of(kind: str | None, shape: tuple[int, ...]) -> Spec:
    """The specification of examples of a shape.

    Args:
        kind: `data.kind`; None takes the only kind with these axes.
        shape: as the networks take an example.

    Raises:
        UserError: if several kinds have these axes, or the kind has others.
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
