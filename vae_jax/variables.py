"""The numbers of a model."""

from typing import NamedTuple

from jaxtyping import PyTree


class Variables(NamedTuple):
    """All numbers of a model.

    Attributes:
        params: the trained numbers.
        state: numbers that training updates without a gradient, by name: "batch_stats" (BatchNorm's running
            statistics), other Flax collections of a user's network, and the states of parts that have one.
    """

    params: PyTree
    state: dict[str, PyTree] = {}  # noqa: RUF012 (a NamedTuple's defaults are never changed)
