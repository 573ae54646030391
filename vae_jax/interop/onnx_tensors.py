"""Arrays of a traced function as tensors of an ONNX graph, whose axes may lie in another order.

A graph's tensors keep the order of axes of the layers that made them: a transposition, a new axis of size 1 and a
broadcast are noted in a `Value`, and done only where an operation needs them. So convolutions of features that lie
feature-major in JAX become plain NCHW convolutions, without transpositions between them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper, numpy_helper


class Value(NamedTuple):
    """An array of the traced function.

    Attributes:
        shape: its sizes; the batch may be symbolic.
        dtype: its type.
        axes: of every axis the axis of the tensor; None for an axis that the tensor lacks, along which it repeats.
            Axes of the tensor that no axis names have the size 1.
        tensor: the tensor's name in the graph; or its numbers, if they are known.
        rank: of the tensor.
    """

    shape: tuple[Any, ...]
    dtype: np.dtype
    axes: tuple[int | None, ...]
    tensor: str | np.ndarray
    rank: int

    @property
    def known(self) -> np.ndarray | None:
        """The array's numbers, if they are known."""
        if isinstance(self.tensor, str) or not all(isinstance(size, int) for size in self.shape):
            return None
        return np.broadcast_to(arranged(self.tensor, self, range(len(self.shape))), self.shape)


def value_of(array: Any) -> Value:
    """An array whose numbers are known."""
    array = np.asarray(array)
    return Value(array.shape, array.dtype, tuple(range(array.ndim)), array, array.ndim)


def arranged(array: np.ndarray, value: Value, order: Sequence[int]) -> np.ndarray:
    """The value's known tensor with the axes in this order, of size 1 where it lacks one."""
    present = [place for axis in order if (place := value.axes[axis]) is not None]
    rest = [axis for axis in range(value.rank) if axis not in present]
    array = array.transpose([*present, *rest]).reshape([array.shape[axis] for axis in present])
    return np.expand_dims(array, [place for place, axis in enumerate(order) if value.axes[axis] is None])


class Graph:
    """An ONNX graph in the making."""

    def __init__(self) -> None:
        """Makes an empty graph."""
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: dict[Any, str] = {}
        self._count = 0
        self.batch: str | None = None  # the name of an input whose first axis is the batch

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and gives the output's name."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Adds a node with several outputs, and gives their names."""
        self._count += 1
        names = [f"{operator}_{self._count}_{number}" for number in range(count)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"{operator}_{self._count}", **attributes))
        return names

    def constant(self, array: Any, dtype: Any = None) -> str:
        """The name of a tensor with these numbers."""
        array = np.array(array, dtype, order="C")
        key = array.tobytes(), array.shape, array.dtype.str
        if key not in self._names:
            self._names[key] = f"constant_{len(self._names)}"
            self.initializers.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def arrange(self, value: Value, order: Sequence[int], whole: bool = False) -> str:
        """The name of a tensor with the value's axes in this order.

        Args:
            value: to be arranged.
            order: of axes of the value, with all that its tensor has.
            whole: whether axes along which it repeats get their full size; else they have the size 1.
        """
        if isinstance(value.tensor, str):
            name = value.tensor
            present = [place for axis in order if (place := value.axes[axis]) is not None]
            rest = [axis for axis in range(value.rank) if axis not in present]
            if (turned := [*present, *rest]) != list(range(value.rank)):
                name = self.node("Transpose", name, perm=turned)
            if rest:
                name = self.node("Squeeze", name, self.constant(range(len(present), value.rank), np.int64))
            if missing := [place for place, axis in enumerate(order) if value.axes[axis] is None]:
                name = self.node("Unsqueeze", name, self.constant(missing, np.int64))
        else:
            name = self.constant(arranged(value.tensor, value, order))
        if whole and any(value.axes[axis] is None and value.shape[axis] != 1 for axis in order):
            name = self.node("Expand", name, self.sizes([value.shape[axis] for axis in order]))
        return name

    def full(self, value: Value) -> str:
        """The name of a tensor that is the value, axis by axis."""
        return self.arrange(value, range(len(value.shape)), whole=True)

    def sizes(self, sizes: Sequence[Any]) -> str:
        """The name of a tensor with these sizes, one of which may be the batch."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(sizes, np.int64)
        assert self.batch
        batch = self.node("Shape", self.batch, start=0, end=1)
        parts = [self.constant([size], np.int64) if isinstance(size, int) else batch for size in sizes]
        return self.node("Concat", *parts, axis=0)

    def reshape(self, name: str, sizes: Sequence[Any]) -> str:
        """The name of the tensor with other sizes, at most one of them symbolic."""
        target = [size if isinstance(size, int) else -1 for size in sizes]
        return self.node("Reshape", name, self.constant(target, np.int64))
