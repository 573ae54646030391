"""Which results of a function depend on an argument, read off the traced program without computing anything."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal
from jaxtyping import PyTree

CALLS = ("jit", "pjit")  # names of the primitives that call a traced function with the same arguments


def depends(function: Callable[..., PyTree], *arguments: Any) -> bool:
    """Whether any result of `function(*arguments)` depends on the first argument.

    Args:
        function: to be traced.
        arguments: arrays, or their shapes and types.
    """
    traced = jax.make_jaxpr(function)(*arguments)
    count = len(jax.tree.leaves(arguments[0]))
    return any(_reached(traced.jaxpr, [i < count for i in range(len(traced.jaxpr.invars))]))


def _reached(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Whether a marked input may reach a result, for all results of a traced program."""
    marked = {variable for variable, is_marked in zip(jaxpr.invars, inputs, strict=True) if is_marked}

    def marks(variables: Any) -> list[bool]:
        return [not isinstance(variable, Literal) and variable in marked for variable in variables]

    for equation in jaxpr.eqns:
        input_marks = marks(equation.invars)
        if any(input_marks):
            call = equation.primitive.name in CALLS
            results = _reached(equation.params["jaxpr"].jaxpr, input_marks) if call else [True] * len(equation.outvars)
            marked |= {variable for variable, is_marked in zip(equation.outvars, results, strict=True) if is_marked}
    return marks(jaxpr.outvars)
