"""How operations of jax become steps of a page's program: one rule for each primitive, by its name.

A rule is a function of the steps so far, the equation's parameters, its inputs, at least one of which is known in the
page only, and the types of its results; it returns the results.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vae_jax.errors import UserError
from vae_jax.pages.steps import Slot, Steps, Value, kind_of, row_major

Rule = Callable[[Steps, dict[str, Any], list[Value], list[Any]], list[Value]]

SAME = ("copy", "copy_p", "optimization_barrier", "reduce_precision", "sharding_constraint", "pvary", "stop_gradient")
UNARY = (
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "cos", "cosh", "erf", "erfc", "exp"),
    *("exp2", "expm1", "floor", "is_finite", "log", "log1p", "logistic", "neg", "not", "rsqrt", "sign", "sin", "sinh"),
    *("sqrt", "square", "tan", "tanh"),
)
BINARY = (
    *("add", "and", "atan2", "div", "eq", "ge", "gt", "le", "lt", "max", "min", "mul", "ne", "or", "pow", "rem"),
    *("shift_left", "shift_right_arithmetic", "shift_right_logical", "sub", "xor"),
)
REDUCTIONS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod"}
TRUTHS = {"reduce_and": "min", "reduce_or": "max"}
CUMULATIONS = {"cumsum": "sum", "cumprod": "prod", "cummax": "max", "cummin": "min", "cumlogsumexp": "logsumexp"}
ROUND = {0: "round_away", 1: "round_even"}


def unknown(what: str) -> UserError:
    """The refusal of an operation without a rule."""
    return UserError(f"decoder: expected operations that a page can compute (docs/explore.md); found {what}")


def _unary(name: str) -> Rule:
    def rule(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
        kind = kind_of(types[0].dtype)
        function = f"{name}_bool" if name == "not" and kind == "bool" else name
        return [steps.add("unary", inputs, types[0].shape, kind, f=function)]

    return rule


def _binary(name: str) -> Rule:
    def rule(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
        kind = kind_of(types[0].dtype)
        function = f"{name}_int" if name in ("mul", "div", "rem") and kind == "int" else name
        return [steps.add("binary", inputs, types[0].shape, kind, f=function)]

    return rule


def _same(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    return inputs


def _convert(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    value, kind = inputs[0], kind_of(types[0].dtype)
    assert isinstance(value, Slot)
    return [value if value.kind == kind else steps.add("convert", [value], value.shape, kind)]


def _integer_pow(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    exponent, kind = np.asarray(params["y"], np.int32), kind_of(types[0].dtype)
    function = "pow_int" if kind == "int" else "pow"
    return [steps.add("binary", [inputs[0], exponent], types[0].shape, kind, f=function)]


def _round(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    return [steps.add("unary", inputs, types[0].shape, "float", f=ROUND[int(params["rounding_method"])])]


def _clamp(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    (low, value, high), shape, kind = inputs, types[0].shape, kind_of(types[0].dtype)
    above = steps.add("binary", [value, low], shape, kind, f="max")
    return [steps.add("binary", [above, high], shape, kind, f="min")]


def _select(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    return [steps.add("select", inputs, types[0].shape, kind_of(types[0].dtype))]


# --- Moving numbers --------------------------------------------------------------------------------------------------


def _broadcast(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    value, shape = inputs[0], types[0].shape
    assert isinstance(value, Slot)
    strides = [0] * len(shape)
    for axis, size, stride in zip(params["broadcast_dimensions"], value.shape, row_major(value.shape), strict=True):
        strides[axis] = 0 if size == 1 else stride
    return [steps.viewed(value, shape, strides)]


def _reshape(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    value = inputs[0]
    if params.get("dimensions") is not None:
        value = steps.transposed(value, params["dimensions"])
    return [steps.reshaped(value, types[0].shape)]


def _as_shape(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    return [steps.reshaped(inputs[0], types[0].shape)]


def _transpose(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    return [steps.transposed(inputs[0], params["permutation"])]


def reversed_along(steps: Steps, value: Value, axes: Sequence[int]) -> Value:
    """The value with these axes running backwards."""
    if isinstance(value, np.ndarray):
        return np.flip(value, tuple(axes))
    usual = row_major(value.shape)
    strides = [-stride if axis in axes else stride for axis, stride in enumerate(usual)]
    return steps.viewed(value, value.shape, strides, sum((value.shape[axis] - 1) * usual[axis] for axis in axes))


def _rev(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    return [reversed_along(steps, inputs[0], params["dimensions"])]


def sliced(steps: Steps, value: Value, starts: Sequence[int], shape: Sequence[int], by: Sequence[int]) -> Value:
    """Every `by`-th element from `starts` on."""
    if isinstance(value, np.ndarray):
        return value[tuple(slice(a, a + (n - 1) * b + 1, b) for a, n, b in zip(starts, shape, by, strict=True))]
    usual = row_major(value.shape)
    offset = sum(start * stride for start, stride in zip(starts, usual, strict=True))
    return steps.viewed(value, shape, [step * stride for step, stride in zip(by, usual, strict=True)], offset)


def _slice(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    by = params["strides"] or [1] * len(types[0].shape)
    return [sliced(steps, inputs[0], params["start_indices"], types[0].shape, by)]


def _split(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    parts, first, axis = [], 0, params["axis"]
    for kind in types:
        starts = [first if place == axis else 0 for place in range(len(kind.shape))]
        parts.append(sliced(steps, inputs[0], starts, kind.shape, [1] * len(kind.shape)))
        first += kind.shape[axis]
    return parts


def joined(steps: Steps, values: Sequence[Value], axis: int, shape: Sequence[int], kind: str) -> Slot:
    """The values one after another along an axis."""
    strides, first, parts = row_major(shape), 0, []
    for value in values:
        parts.append((value, strides, first * strides[axis]))
        first += value.shape[axis]
    return steps.put(shape, kind, np.zeros((), np.float32), parts)


def _concatenate(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    return [joined(steps, inputs, params["dimension"], types[0].shape, kind_of(types[0].dtype))]


def _stack(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    axis, shape = params["axis"], types[0].shape
    parts = [steps.reshaped(value, (*shape[:axis], 1, *shape[axis + 1 :])) for value in inputs]
    return [joined(steps, parts, axis, shape, kind_of(types[0].dtype))]


def _unstack(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    value, axis, parts = inputs[0], params["axis"], []
    shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
    for number, kind in enumerate(types):
        starts = [number if place == axis else 0 for place in range(len(shape))]
        parts.append(steps.reshaped(sliced(steps, value, starts, shape, [1] * len(shape)), kind.shape))
    return parts


def _pad(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    value, fill = inputs
    starts, counts, offset, strides = [], [], 0, []
    usual = row_major(types[0].shape)
    for axis, (low, _, inner) in enumerate(params["padding_config"]):
        size, step = types[0].shape[axis], inner + 1
        start = max(0, -(low // step)) if low < 0 else 0  # the first element that is not cut off
        count = max(0, min(value.shape[axis] - start, -(-(size - low - start * step) // step)))
        starts.append(start)
        counts.append(count)
        offset += (low + start * step) * usual[axis]
        strides.append(step * usual[axis])
    kept = sliced(steps, value, starts, counts, [1] * len(counts)) if math.prod(counts) else None
    parts = [] if kept is None else [(kept, strides, int(offset))]
    return [steps.put(types[0].shape, kind_of(types[0].dtype), fill, parts)]


def _gather(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    operand, indices = inputs
    numbers, sizes, kind = params["dimension_numbers"], params["slice_sizes"], kind_of(types[0].dtype)
    strides, axes = row_major(operand.shape), len(operand.shape)
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(axes) if axis not in dropped]
    batch = indices.shape[:-1]
    first = np.zeros(batch, np.int32)  # where an index's own part of the operand begins
    for axis, of in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        along = np.arange(batch[of], dtype=np.int32) * strides[axis]
        first = first + along.reshape([-1 if place == of else 1 for place in range(len(batch))])
    mode, fill = str(params["mode"]), params.get("fill_value")
    fills = "FILL" in mode.upper() or mode == "1"
    if fill is None:
        fill = {"float": np.nan, "int": np.iinfo(np.int32).min, "bool": True}[kind]
    fillings = [np.asarray(fill, types[0].dtype)] if fills else []  # a constant, since JSON has no infinities
    count, size = math.prod(batch), math.prod(sizes[axis] for axis in kept)
    made = steps.add(
        "gather",
        [operand, steps.reshaped(indices, (count, indices.shape[-1])), first.reshape(count), *fillings],
        (count, size),
        kind,
        strides=[strides[axis] for axis in numbers.start_index_map],
        most=[operand.shape[axis] - sizes[axis] for axis in numbers.start_index_map],
        slice=[sizes[axis] for axis in kept],
        slice_strides=[strides[axis] for axis in kept],
    )
    whole = steps.reshaped(made, (*batch, *(sizes[axis] for axis in kept)))
    offsets, rest = numbers.offset_dims, iter(range(len(batch)))
    order = [
        len(batch) + offsets.index(place) if place in offsets else next(rest) for place in range(len(types[0].shape))
    ]
    return [steps.transposed(whole, order)]


def _dynamic_slice(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    operand, *starts = inputs
    strides, sizes = row_major(operand.shape), types[0].shape
    indices = joined(steps, [steps.reshaped(start, (1, 1)) for start in starts], 1, (1, len(starts)), "int")
    made = steps.add(
        "gather",
        [operand, indices, np.zeros(1, np.int32)],
        (1, math.prod(sizes)),
        kind_of(types[0].dtype),
        strides=strides,
        most=[whole - size for whole, size in zip(operand.shape, sizes, strict=True)],
        slice=sizes,
        slice_strides=strides,
    )
    return [steps.reshaped(made, sizes)]


# --- Sums and products -----------------------------------------------------------------------------------------------


def _reduction(name: str) -> Rule:
    def rule(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
        value, axes = inputs[0], params["axes"]
        kept = [axis for axis in range(len(value.shape)) if axis not in axes]
        shape = math.prod(value.shape[axis] for axis in kept), math.prod(value.shape[axis] for axis in axes)
        rows = steps.reshaped(steps.transposed(value, [*kept, *axes]), shape)
        made = steps.add("reduce", [rows], shape[:1], kind_of(types[0].dtype), f=name)
        return [steps.reshaped(made, types[0].shape)]

    return rule


def _truth(name: str) -> Rule:
    def rule(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
        if types[0].dtype != np.bool_:  # of the bits of whole numbers
            raise unknown(f"{name} of {types[0].dtype}")
        return _reduction(TRUTHS[name])(steps, params, inputs, types)

    return rule


def _cumulation(name: str) -> Rule:
    def rule(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
        value, axis = inputs[0], params["axis"]
        order = [place for place in range(len(value.shape)) if place != axis] + [axis]
        back = [order.index(place) for place in range(len(order))]
        turned = steps.transposed(value, order)
        shape = turned.shape
        turned = reversed_along(steps, turned, [len(shape) - 1]) if params["reverse"] else turned
        rows = steps.reshaped(turned, (math.prod(shape[:-1]), shape[-1]))
        made = steps.reshaped(steps.add("cumulate", [rows], rows.shape, kind_of(types[0].dtype), f=name), shape)
        made = reversed_along(steps, made, [len(shape) - 1]) if params["reverse"] else made
        return [steps.transposed(made, back)]

    return rule


def _dot(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    (contracted, batched), kind = params["dimension_numbers"], kind_of(types[0].dtype)
    rows = []
    for value, summed, shared in zip(inputs, contracted, batched, strict=True):
        free = [axis for axis in range(len(value.shape)) if axis not in (*summed, *shared)]
        sizes = [math.prod(value.shape[axis] for axis in axes) for axes in (shared, free, summed)]
        rows.append(steps.reshaped(steps.transposed(value, [*shared, *free, *summed]), sizes))
    shape = rows[0].shape[0], rows[0].shape[1], rows[1].shape[1]
    return [steps.reshaped(steps.add("matmul", rows, shape, kind), types[0].shape)]


def _convolution(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
    of_images, of_kernel, of_result = params["dimension_numbers"]
    axes = len(of_images) - 2
    if axes not in (1, 2) or params["batch_group_count"] != 1:
        raise unknown(f"a convolution of {axes} axes in {params['batch_group_count']} groups of the batch")
    images, kernel = steps.transposed(inputs[0], of_images), steps.transposed(inputs[1], of_kernel)
    shape = tuple(types[0].shape[axis] for axis in of_result)
    pairs = {
        "strides": params["window_strides"],
        "low": [low for low, _ in params["padding"]],
        "spread": params["lhs_dilation"],
        "taps": params["rhs_dilation"],
    }
    if axes == 1:  # an image of one row
        images = steps.reshaped(images, (*images.shape[:2], 1, images.shape[2]))
        kernel = steps.reshaped(kernel, (*kernel.shape[:2], 1, kernel.shape[2]))
        pairs = {name: [0 if name == "low" else 1, *pair] for name, pair in pairs.items()}
    four = shape if axes == 2 else (*shape[:2], 1, shape[2])
    pairs = {name: [int(number) for number in pair] for name, pair in pairs.items()}
    made = steps.add("convolve", [images, kernel], four, "float", groups=params["feature_group_count"], **pairs)
    order = [of_result.index(axis) for axis in range(axes + 2)]
    return [steps.transposed(steps.reshaped(made, shape), order)]


def _arg(name: str) -> Rule:
    def rule(steps: Steps, params: dict[str, Any], inputs: list[Value], types: list[Any]) -> list[Value]:
        if len(params["axes"]) != 1:
            raise unknown(f"{name} along several axes")
        return _reduction(name)(steps, params, inputs, types)

    return rule


RULES: dict[str, Rule] = {
    **{name: _unary(name) for name in UNARY},
    **{name: _binary(name) for name in BINARY},
    **dict.fromkeys(SAME, _same),
    "add_any": _binary("add"),
    **{name: _reduction(function) for name, function in REDUCTIONS.items()},
    **{name: _truth(name) for name in TRUTHS},
    **{name: _cumulation(function) for name, function in CUMULATIONS.items()},
    "argmax": _arg("argmax"),
    "argmin": _arg("argmin"),
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "expand_dims": _as_shape,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "round": _round,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "squeeze": _as_shape,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
}


def apply(steps: Steps, equation: Any, inputs: list[Value]) -> list[Value]:
    """The results of an equation.

    Raises:
        UserError: naming a primitive that has no rule.
    """
    name = equation.primitive.name
    if name not in RULES:
        raise unknown(name)
    types = [variable.aval for variable in equation.outvars]
    if not all(hasattr(kind, "dtype") and hasattr(kind, "shape") for kind in types):
        raise unknown(f"{name} of {types[0]}")
    return RULES[name](steps, equation.params, inputs, types)


def is_coarse(dtype: Any) -> bool:
    """Whether numbers of this type are floats of fewer bits than a page's."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits < 32
