"""JAX's operations as nodes of an ONNX graph, by the names of their primitives."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax
from onnx import helper

from vae_jax.interop.functions import refused
from vae_jax.interop.onnx_tensors import Graph, Value

# --- Element by element -----------------------------------------------------------------------------------------------

Emit = Callable[..., str]  # (graph, names of the arguments, the result's type, parameters) -> the result's name


def _node(operator: str) -> Emit:
    return lambda graph, names, dtype, params: graph.node(operator, *names)


def _cast(graph: Graph, names: Sequence[str], dtype: np.dtype, params: Any) -> str:
    return graph.node("Cast", *names, to=helper.np_dtype_to_tensor_dtype(dtype))


def _one(graph: Graph, dtype: np.dtype) -> str:
    return graph.constant(1, dtype)


def _power(graph: Graph, names: Sequence[str], dtype: np.dtype, params: Any) -> str:
    return graph.node("Pow", names[0], graph.constant(params["y"], dtype))


def _select(graph: Graph, names: Sequence[str], dtype: np.dtype, params: Any) -> str:
    if len(names) != 3:
        raise refused("onnx", f"expected a choice between two; found one between {len(names) - 1}")
    which, if_false, if_true = names
    return graph.node("Where", which, if_true, if_false)


def _round(graph: Graph, names: Sequence[str], dtype: np.dtype, params: Any) -> str:
    if params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return graph.node("Round", *names)
    moved = graph.node("Add", graph.node("Abs", *names), graph.constant(0.5, dtype))
    return graph.node("Mul", graph.node("Sign", *names), graph.node("Floor", moved))


def _log1p(graph: Graph, x: str, dtype: np.dtype) -> str:
    """log(1 + x) to full precision: log(u) · x / (u − 1) with u = 1 + x as it is rounded (Kahan)."""
    one = _one(graph, dtype)
    u = graph.node("Add", x, one)
    moved = graph.node("Sub", u, one)
    none = graph.node("Equal", moved, graph.constant(0, dtype))
    ratio = graph.node("Div", x, graph.node("Where", none, one, moved))
    # Where 1 + x is infinite, so is the logarithm, and the ratio is no number.
    endless = graph.node("IsInf", u)
    scaled = graph.node("Mul", graph.node("Log", u), graph.node("Where", endless, one, ratio))
    return graph.node("Where", none, x, scaled)


def _expm1(graph: Graph, x: str, dtype: np.dtype) -> str:
    """exp(x) − 1 to full precision: 2t / (1 − t) with t = tanh(x / 2) near 0."""
    one, two = _one(graph, dtype), graph.constant(2, dtype)
    t = graph.node("Tanh", graph.node("Div", x, two))
    near = graph.node("Less", graph.node("Abs", x), one)
    small = graph.node("Where", near, t, graph.constant(0, dtype))
    ratio = graph.node("Div", graph.node("Mul", two, small), graph.node("Sub", one, small))
    return graph.node("Where", near, ratio, graph.node("Sub", graph.node("Exp", x), one))


ELEMENTWISE: dict[str, Emit] = {
    **{
        name: _node(operator)
        for name, operator in {
            "abs": "Abs",
            "add": "Add",
            "add_any": "Add",
            "and": "And",
            "ceil": "Ceil",
            "cos": "Cos",
            "div": "Div",
            "eq": "Equal",
            "erf": "Erf",
            "exp": "Exp",
            "floor": "Floor",
            "ge": "GreaterOrEqual",
            "gt": "Greater",
            "le": "LessOrEqual",
            "log": "Log",
            "logistic": "Sigmoid",
            "lt": "Less",
            "max": "Max",
            "min": "Min",
            "mul": "Mul",
            "neg": "Neg",
            "not": "Not",
            "or": "Or",
            "pow": "Pow",
            "sign": "Sign",
            "sin": "Sin",
            "sqrt": "Sqrt",
            "sub": "Sub",
            "tanh": "Tanh",
        }.items()
    },
    "clamp": lambda graph, names, dtype, params: graph.node("Min", graph.node("Max", *names[:2]), names[2]),
    "convert_element_type": _cast,
    # Its error is absolute: below 1e-7 of 1, where jax keeps small values.
    "erfc": lambda graph, names, dtype, params: graph.node("Sub", _one(graph, dtype), graph.node("Erf", *names)),
    "expm1": lambda graph, names, dtype, params: _expm1(graph, names[0], dtype),
    "integer_pow": _power,
    "log1p": lambda graph, names, dtype, params: _log1p(graph, names[0], dtype),
    "round": _round,
    "rem": lambda graph, names, dtype, params: graph.node("Mod", *names, fmod=1),
    "is_finite": lambda graph, names, dtype, params: graph.node(
        "Not", graph.node("Or", graph.node("IsInf", *names), graph.node("IsNaN", *names))
    ),
    "ne": lambda graph, names, dtype, params: graph.node("Not", graph.node("Equal", *names)),
    "rsqrt": lambda graph, names, dtype, params: graph.node("Reciprocal", graph.node("Sqrt", *names)),
    "select_n": _select,
    "square": lambda graph, names, dtype, params: graph.node("Mul", *names, *names),
}


def _order_of(values: Sequence[Value]) -> list[int]:
    """The order of axes in which values are combined: that of the largest tensor of the graph, if it has them all."""
    leader = max(values, key=lambda value: (isinstance(value.tensor, str), sum(a is not None for a in value.axes)))
    wanted = {axis for value in values for axis, place in enumerate(value.axes) if place is not None}
    held = {axis: place for axis, place in enumerate(leader.axes) if place is not None}
    if wanted <= held.keys():
        return sorted(held, key=lambda axis: held[axis])
    return sorted(wanted)


def elementwise(graph: Graph, emit: Emit, given: Sequence[Value], aval: Any, params: Any) -> Value:
    rank = len(aval.shape)
    # lax takes numbers without axes for `clamp` and `select_n`, beside arrays.
    given = [
        value if len(value.shape) == rank else value._replace(shape=aval.shape, axes=(None,) * rank) for value in given
    ]
    order = _order_of(given)
    name = emit(graph, [graph.arrange(value, order) for value in given], np.dtype(aval.dtype), params)
    axes = tuple(order.index(axis) if axis in order else None for axis in range(rank))
    return Value(tuple(aval.shape), np.dtype(aval.dtype), axes, name, len(order))


# --- Products, sums and the rest --------------------------------------------------------------------------------------


def _result(aval: Any, name: str, axes: Sequence[int] | None = None) -> Value:
    rank = len(aval.shape)
    return Value(tuple(aval.shape), np.dtype(aval.dtype), tuple(range(rank) if axes is None else axes), name, rank)


def _product(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    (left_axes, right_axes), (left_batch, right_batch) = params["dimension_numbers"]
    left, right = given
    free = [axis for axis in range(len(left.shape)) if axis not in (*left_axes, *left_batch)]
    other = [axis for axis in range(len(right.shape)) if axis not in (*right_axes, *right_batch)]
    if left_batch or (left.known is None and right.known is None):
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        of_left = [next(letters) for _ in left.shape]
        of_right = [next(letters) for _ in right.shape]
        for a, b in zip((*left_axes, *left_batch), (*right_axes, *right_batch), strict=True):
            of_right[b] = of_left[a]
        out = [of_left[a] for a in (*left_batch, *free)] + [of_right[b] for b in other]
        equation = f"{''.join(of_left)},{''.join(of_right)}->{''.join(out)}"
        return _result(aval, graph.node("Einsum", graph.full(left), graph.full(right), equation=equation))
    swapped = left.known is not None  # the known array is the second factor
    if swapped:
        left, right, left_axes, right_axes, free, other = right, left, right_axes, left_axes, other, free
    name = graph.arrange(left, [*free, *left_axes], whole=True)
    inner = math.prod(left.shape[axis] for axis in left_axes)
    if len(left_axes) != 1:
        name = graph.reshape(name, [*(left.shape[axis] for axis in free), inner])
    assert right.known is not None
    weights = right.known.transpose([*right_axes, *other]).reshape(inner, -1)
    name = graph.node("MatMul", name, graph.constant(weights))
    if len(other) != 1:
        name = graph.reshape(name, [*(left.shape[axis] for axis in free), *(right.shape[axis] for axis in other)])
    axes = list(range(len(free) + len(other)))
    return _result(aval, name, axes[len(free) :] + axes[: len(free)] if swapped else axes)


def _convolution(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    numbers = params["dimension_numbers"]
    x = graph.arrange(given[0], numbers.lhs_spec, whole=True)
    kernel, padding = given[1].known, params["padding"]
    dilations, strides, spread = params["rhs_dilation"], params["window_strides"], params["lhs_dilation"]
    if kernel is None or params["batch_group_count"] != 1:
        raise refused("onnx", "expected convolutions with weights that are known; found one without")
    kernel = kernel.transpose(numbers.rhs_spec)  # (out, in, *sides)
    reach = [(side - 1) * dilation for side, dilation in zip(kernel.shape[2:], dilations, strict=True)]
    groups = params["feature_group_count"]
    if all(step == 1 for step in spread):
        pads = [low for low, _ in padding] + [high for _, high in padding]
        more = {"strides": strides, "pads": pads}
        operator = "Conv"
    elif all(step == 1 for step in strides) and groups == 1:
        # A convolution of an image spread out is a transposed one, with the kernel turned round.
        flipped = kernel[(slice(None), slice(None), *(slice(None, None, -1) for _ in reach))]
        kernel, operator = flipped.swapaxes(0, 1), "ConvTranspose"
        low = [span - first for span, (first, _) in zip(reach, padding, strict=True)]
        high = [span - last for span, (_, last) in zip(reach, padding, strict=True)]
        more = {"strides": spread, "pads": low + [max(0, last) for last in high]}
        more["output_padding"] = [max(0, -last) for last in high]
    else:
        raise refused("onnx", "expected convolutions with strides, or transposed ones; found one that is both")
    if min(more["pads"]) < 0:
        raise refused("onnx", f"expected convolutions with padding of at least 0; found {more['pads']}")
    limits = zip(more.get("output_padding", ()), spread, dilations, strict=False)
    if any(further >= max(step, dilation) for further, step, dilation in limits):
        raise refused("onnx", "expected transposed convolutions with less further padding than their stride")
    name = graph.node(operator, x, graph.constant(kernel), group=groups, dilations=dilations, **more)
    return _result(aval, name, [numbers.out_spec.index(axis) for axis in range(len(aval.shape))])


def _reduction(operator: str) -> Callable[..., Value]:
    def reduce(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
        (value,) = given
        if not params["axes"]:
            return value
        axes = graph.constant(params["axes"], np.int64)
        return _result(aval, graph.node(operator, graph.full(value), axes, keepdims=0))

    return reduce


def _largest(operator: str) -> Callable[..., Value]:
    def find(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
        name = graph.node(operator, graph.full(given[0]), axis=params["axes"][0], keepdims=0)
        return _result(aval, graph.node("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))))

    return find


def _concatenation(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    order = _order_of(given)
    order += [axis for axis in range(len(aval.shape)) if axis not in order]
    names = [graph.arrange(value, order, whole=True) for value in given]
    name = graph.node("Concat", *names, axis=order.index(params["dimension"]))
    return _result(aval, name, [order.index(axis) for axis in range(len(order))])


def _stack(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    axis = graph.constant([params["axis"]], np.int64)
    layers = [graph.node("Unsqueeze", graph.full(value), axis) for value in given]
    return _result(aval, graph.node("Concat", *layers, axis=params["axis"]))


def _slice(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    (value,) = given
    cut = [axis for axis, size in enumerate(value.shape) if size != aval.shape[axis]]
    strides = params["strides"] or (1,) * len(value.shape)
    bounds = [[of[axis] for axis in cut] for of in (params["start_indices"], params["limit_indices"])]
    parts = [graph.constant(numbers, np.int64) for numbers in (*bounds, cut, [strides[axis] for axis in cut])]
    return _result(aval, graph.node("Slice", graph.full(value), *parts))


def split(graph: Graph, value: Value, avals: Sequence[Any], params: Any) -> list[Value]:
    """The pieces of an array along an axis."""
    inputs = graph.full(value), graph.constant(params["sizes"], np.int64)
    names = graph.several("Split", len(avals), *inputs, axis=params["axis"])
    return [_result(aval, name) for aval, name in zip(avals, names, strict=True)]


def _padding(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    value, filling = given
    low, high, inner = zip(*params["padding_config"], strict=True)
    if any(inner) or min(*low, *high) < 0:
        raise refused("onnx", "expected padding around arrays; found padding inside, or less than none")
    pads = graph.constant([*low, *high], np.int64)
    return _result(aval, graph.node("Pad", graph.full(value), pads, graph.full(filling)))


def _numbers(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    """Whole numbers from 0 on along an axis."""
    size, axis = params["shape"][params["dimension"]], params["dimension"]
    axes = tuple(0 if place == axis else None for place in range(len(aval.shape)))
    dtype = np.dtype(aval.dtype)
    if isinstance(size, int):
        return Value(tuple(aval.shape), dtype, axes, np.arange(size, dtype=dtype), 1)
    length = graph.node("Squeeze", graph.sizes([size]), graph.constant([0], np.int64))
    counted = graph.node("Range", graph.constant(0, np.int64), length, graph.constant(1, np.int64))
    name = graph.node("Cast", counted, to=helper.np_dtype_to_tensor_dtype(dtype))
    return Value(tuple(aval.shape), dtype, axes, name, 1)


def _lookup(graph: Graph, given: Sequence[Value], aval: Any, params: Any) -> Value:
    """Entries of a table along one axis, by their numbers, as of a codebook; or one piece of a table, as x[:, 2:5]."""
    table, numbers = given
    of, sizes = params["dimension_numbers"], params["slice_sizes"]
    starts = numbers.known
    if starts is not None and starts.ndim == 1 and not of.operand_batching_dims:
        cut = list(of.start_index_map)
        bounds = starts.tolist(), [start + sizes[axis] for start, axis in zip(starts.tolist(), cut, strict=True)], cut
        name = graph.node("Slice", graph.full(table), *(graph.constant(part, np.int64) for part in bounds))
        if of.collapsed_slice_dims:
            name = graph.node("Squeeze", name, graph.constant(of.collapsed_slice_dims, np.int64))
        return _result(aval, name)
    (axis,) = of.start_index_map if len(of.start_index_map) == 1 else (-1,)
    whole = all(size == (1 if place == axis else table.shape[place]) for place, size in enumerate(sizes))
    if not whole or tuple(of.collapsed_slice_dims) != (axis,) or of.operand_batching_dims:
        raise refused("onnx", "expected entries of a table along one axis; found another gather")
    places = graph.node("Squeeze", graph.full(numbers), graph.constant([-1], np.int64))
    count = len(numbers.shape) - 1
    # The node puts the numbers' axes where the table's axis was; the others keep their order.
    kept = iter([*range(axis), *range(axis + count, len(aval.shape))])
    new = iter(range(axis, axis + count))
    axes = [next(kept) if place in of.offset_dims else next(new) for place in range(len(aval.shape))]
    return _result(aval, graph.node("Gather", graph.full(table), places, axis=axis), axes)


OPERATIONS: dict[str, Callable[[Graph, Sequence[Value], Any, Any], Value]] = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "argmax": _largest("ArgMax"),
    "argmin": _largest("ArgMin"),
    "concatenate": _concatenation,
    "stack": _stack,
    "slice": _slice,
    "pad": _padding,
    "gather": _lookup,
    "iota": _numbers,
}
