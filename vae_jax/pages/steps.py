"""The steps of a program that a page runs, and the values between them.

A step is a dict that `program.js` reads: "op", "in" (numbers of earlier steps), "shape", "kind" of its numbers (float,
int or bool) and what the operation needs besides. All arrays are in row-major order.
"""

import base64
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vae_jax.errors import UserError

TYPES = {"float": np.dtype("<f4"), "int": np.dtype("<i4"), "bool": np.dtype("u1")}  # of a page's arrays


class Slot(NamedTuple):
    """A value that is known in the page only.

    Attributes:
        number: of the step that computes it.
        shape: of the array.
        kind: of its numbers: float, int or bool.
    """

    number: int
    shape: tuple[int, ...]
    kind: str


Value = np.ndarray | Slot


def kind_of(dtype: Any) -> str:
    """How a page keeps numbers of this type.

    Raises:
        UserError: if they are whole numbers other than int32, which a page's do not hold, or which wrap around earlier.
    """
    if dtype == np.bool_:
        return "bool"
    if jnp.issubdtype(dtype, jnp.floating):
        return "float"
    if dtype == np.int32:
        return "int"
    raise UserError(f"decoder: expected numbers that a page can compute with; found {dtype}")


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of an array in row-major order, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class Steps:
    """Steps in the order in which they are run."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._constants: dict[Any, Slot] = {}

    def add(self, op: str, inputs: Sequence[Value], shape: Sequence[int], kind: str, **more: Any) -> Slot:
        """Adds a step; returns its result."""
        numbers = [self.slot(value).number for value in inputs]
        shape = tuple(map(int, shape))
        self._steps.append({"op": op, "in": numbers, "shape": shape, "kind": kind, **more})
        return Slot(len(self._steps) - 1, shape, kind)

    def input(self, name: str, shape: Sequence[int], kind: str) -> Slot:
        """Adds an argument of the program."""
        return self.add("input", [], shape, kind, name=name)

    def slot(self, value: Value) -> Slot:
        """The value in the page, where a known one becomes a constant.

        Raises:
            UserError: if it has whole numbers beyond 32 bits.
        """
        if isinstance(value, Slot):
            return value
        kind = "float" if jnp.issubdtype(value.dtype, jnp.floating) else "bool" if value.dtype == np.bool_ else "int"
        if kind == "int" and value.size and not -(2**31) <= int(value.min()) <= int(value.max()) < 2**31:
            raise UserError(f"decoder: expected whole numbers of 32 bits; found {int(np.abs(value).max())}")
        array = np.ascontiguousarray(value.astype(TYPES[kind])).reshape(value.shape)
        stored = _without_repeats(array)
        key = array.shape, kind, stored.shape, stored.tobytes()
        if key not in self._constants:
            data = base64.b64encode(stored.tobytes()).decode()
            self._constants[key] = self.add("constant", [], array.shape, kind, stored=stored.shape, data=data)
        return self._constants[key]

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        """The same numbers in the same order."""
        shape = tuple(map(int, shape))
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        return value if shape == value.shape else self.add("reshape", [value], shape, value.kind)

    def viewed(self, value: Slot, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> Value:
        """The elements at offset + Σ index × stride."""
        own = row_major(shape)
        same = all(size == 1 or stride == usual for size, stride, usual in zip(shape, strides, own, strict=True))
        if same and not offset and math.prod(shape) == math.prod(value.shape):
            return self.reshaped(value, shape)
        return self.add("view", [value], shape, value.kind, strides=tuple(map(int, strides)), offset=int(offset))

    def transposed(self, value: Value, axes: Sequence[int]) -> Value:
        """The value with its axes in this order."""
        if isinstance(value, np.ndarray):
            return value.transpose(axes)
        strides = row_major(value.shape)
        return self.viewed(value, [value.shape[axis] for axis in axes], [strides[axis] for axis in axes])

    def put(self, shape: Sequence[int], kind: str, fill: Value, parts: Sequence[tuple[Value, Any, int]]) -> Slot:
        """An array of `fill` with parts in it, (value, strides, offset) each, as for `viewed`."""
        places = [{"strides": tuple(map(int, strides)), "offset": int(offset)} for _, strides, offset in parts]
        return self.add("put", [fill, *(part[0] for part in parts)], shape, kind, parts=places)

    def finished(self, results: Sequence[Value]) -> tuple[list[dict[str, Any]], list[int]]:
        """The steps that these results need, and the results' numbers among them; arguments are kept in any case."""
        numbers = [self.slot(value).number for value in results]
        needed = set(numbers)
        for number in range(len(self._steps) - 1, -1, -1):
            if number in needed:
                needed.update(self._steps[number]["in"])
        kept = [number for number, step in enumerate(self._steps) if number in needed or step["op"] == "input"]
        place = {number: index for index, number in enumerate(kept)}
        steps = [{**self._steps[number], "in": [place[i] for i in self._steps[number]["in"]]} for number in kept]
        return steps, [place[number] for number in numbers]


def _without_repeats(array: np.ndarray) -> np.ndarray:
    """The array with every axis along which nothing changes cut to 1."""
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis) if size > 1 else None
        if first is not None and np.array_equal(first, array.take([1], axis)) and (array == first).all():
            array = first
    return array
