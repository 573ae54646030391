"""Translates a traced JAX function into an ONNX graph. Needs the package onnx, of the extra `onnx`.

The function's first axis may be symbolic: the batch. What does not depend on the inputs is computed here, once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal
from onnx import ModelProto, checker, helper, shape_inference

from vae_jax.errors import argument, brief
from vae_jax.interop.functions import for_any_batch, refused
from vae_jax.interop.onnx_operations import ELEMENTWISE, OPERATIONS, elementwise, split
from vae_jax.interop.onnx_tensors import Graph, Value, value_of
from vae_jax.interop.onnx_views import VIEWS

OPSET, IR = 18, 10  # of 2022 and 2024: onnxruntime from 1.18 on reads both
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "remat": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}


def to_onnx(
    function: Callable[..., Any], inputs: dict[str, jax.ShapeDtypeStruct], outputs: Sequence[str], about: str = ""
) -> ModelProto:
    """The ONNX model of a function.

    Args:
        function: arrays -> an array, or a dict with an array for every output.
        inputs: names, shapes and types of its arguments; their first axes are the batch, which may be symbolic.
        outputs: names of its results.
        about: a text on the model, kept in the file.

    Raises:
        UserError: if the function needs an operation that is not translated, naming it.
    """
    with for_any_batch(argument("to", "onnx")):
        traced = jax.make_jaxpr(function)(*inputs.values())
    graph = Graph()
    graph.batch = next(iter(inputs))
    arguments = [
        Value(tuple(shape.shape), np.dtype(shape.dtype), tuple(range(len(shape.shape))), name, len(shape.shape))
        for name, shape in inputs.items()
    ]
    values = [value_of(constant) for constant in traced.consts]
    with for_any_batch(argument("to", "onnx")):
        results = _run(graph, traced.jaxpr, [*values, *arguments])
    named = {}
    for name, value in zip(outputs, results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.full(value)], [name], name=name))
        named[name] = value
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vae_jax",
            [_described(name, value.shape, value.dtype) for name, value in zip(inputs, arguments, strict=True)],
            [_described(name, value.shape, value.dtype) for name, value in named.items()],
            graph.initializers,
            about,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="vae_jax",
        doc_string=about,
    )
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise refused("onnx", f"expected operations as ONNX has them; found others: {brief(error)}") from error
    return model


def _described(name: str, shape: tuple[Any, ...], dtype: np.dtype) -> Any:
    sizes = [size if isinstance(size, int) else "batch" for size in shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), sizes)


def _run(graph: Graph, jaxpr: Any, arguments: Sequence[Value]) -> list[Value]:
    """The values of a traced program's results."""
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], arguments, strict=True))

    def read(variable: Any) -> Value:
        if isinstance(variable, Literal):
            return value_of(np.asarray(variable.val, getattr(variable.aval, "dtype", None)))
        return values[variable]

    for equation in _needed(jaxpr):
        name, given = equation.primitive.name, [read(variable) for variable in equation.invars]
        if name in CALLS:
            inner = equation.params[CALLS[name]]
            closed = hasattr(inner, "consts")
            constants = [value_of(constant) for constant in inner.consts] if closed else []
            results = _run(graph, inner.jaxpr if closed else inner, [*constants, *given])
        else:
            results = _translated(graph, equation, name, given)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations on which a traced program's results depend."""
    wanted, needed = set(filter(_is_variable, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if wanted & set(equation.outvars):
            needed.append(equation)
            wanted |= set(filter(_is_variable, equation.invars))
    return needed[::-1]


def _is_variable(variable: Any) -> bool:
    return not isinstance(variable, Literal)


def _translated(graph: Graph, equation: Any, name: str, given: Sequence[Value]) -> list[Value]:
    """The values of an equation's results."""
    if name == "split":
        return split(graph, given[0], [variable.aval for variable in equation.outvars], equation.params)
    aval = equation.outvars[0].aval
    if name not in VIEWS and all(isinstance(size, int) for size in aval.shape):
        numbers = [value.known for value in given]
        if not any(array is None for array in numbers):
            return [value_of(equation.primitive.bind(*numbers, **equation.params))]
    if name in VIEWS:
        return [VIEWS[name](graph, given[0], tuple(aval.shape), equation.params)]
    if name in ELEMENTWISE:
        return [elementwise(graph, ELEMENTWISE[name], given, aval, equation.params)]
    if name in OPERATIONS and len(equation.outvars) == 1:
        return [OPERATIONS[name](graph, given, aval, equation.params)]
    raise refused("onnx", f"expected a network of operations that are translated; found {name}")
