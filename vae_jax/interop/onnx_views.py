"""JAX's operations that leave the tensors of an ONNX graph as they are, or only change their sizes."""

import math
from collections.abc import Callable
from typing import Any

from vae_jax.interop.onnx_tensors import Graph, Value


def _transpose(graph: Graph, value: Value, shape: tuple[Any, ...], params: Any) -> Value:
    return value._replace(shape=shape, axes=tuple(value.axes[axis] for axis in params["permutation"]))


def _broadcast(graph: Graph, value: Value, shape: tuple[Any, ...], params: Any) -> Value:
    axes: list[int | None] = [None] * len(shape)
    for axis, place in enumerate(params["broadcast_dimensions"]):
        if value.shape[axis] == shape[place]:  # else it has the size 1, and repeats
            axes[place] = value.axes[axis]
    return value._replace(shape=shape, axes=tuple(axes))


def _squeeze(graph: Graph, value: Value, shape: tuple[Any, ...], params: Any) -> Value:
    kept = [axis for axis in range(len(value.shape)) if axis not in params["dimensions"]]
    return value._replace(shape=shape, axes=tuple(value.axes[axis] for axis in kept))


def _same(graph: Graph, value: Value, shape: tuple[Any, ...], params: Any) -> Value:
    return value


def _reshape(graph: Graph, value: Value, shape: tuple[Any, ...], params: Any) -> Value:
    if params.get("dimensions") is not None:
        order = params["dimensions"]
        turned = tuple(value.shape[axis] for axis in order)
        value = _transpose(graph, value, turned, {"permutation": order})
    groups = _groups(value.shape, shape)
    axes: list[int | None] = [None] * len(shape)
    if all(len(before) == len(after) == 1 for before, after in groups):
        for (before,), (after,) in groups:
            axes[after] = value.axes[before]
        return value._replace(shape=shape, axes=tuple(axes))
    # A group's axes must lie side by side; the groups keep the order of the tensor.
    repeating = any(value.axes[axis] is None for before, after in groups if len(before) > 1 for axis in before)
    groups.sort(key=lambda group: min((p for a in group[0] if (p := value.axes[a]) is not None), default=0))
    order = [axis for before, _ in groups for axis in before]
    units = [axis for axis in range(len(value.shape)) if axis not in order and value.axes[axis] is not None]
    name = graph.arrange(value, [*order, *units], whole=repeating or any(value.axes[axis] is None for axis in order))
    places = [place for _, after in groups for place in after]
    for number, place in enumerate(places):
        axes[place] = number
    return Value(shape, value.dtype, tuple(axes), graph.reshape(name, [shape[p] for p in places]), len(places))


def _groups(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[tuple[list[int], list[int]]]:
    """Pairs of neighbouring axes with the same product, of two shapes of an array; axes of size 1 are left out."""
    old = [axis for axis, size in enumerate(before) if size != 1]
    new = [axis for axis, size in enumerate(after) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while old or new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := math.prod(before[i] for i in left)) != (b := math.prod(after[i] for i in right)):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        groups.append((left, right))
    return groups


VIEWS: dict[str, Callable[[Graph, Value, tuple[Any, ...], Any], Value]] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "expand_dims": lambda graph, value, shape, params: _reshape(graph, value, shape, {}),
    "reshape": _reshape,
    "copy": _same,
    "stop_gradient": _same,
    "optimization_barrier": _same,
}
