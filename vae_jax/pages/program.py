"""A traced function as a program of simple steps, which `program.js` runs in a page.

What does not depend on the arguments is computed here, so that a page has numbers in the place of, for example, all of
BatchNorm's statistics. A primitive without a rule is refused by its name.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from vae_jax.blocks.convolution import COMPUTED_BY
from vae_jax.pages.rules import apply, is_coarse, joined, sliced, unknown
from vae_jax.pages.steps import Slot, Steps, Value, kind_of

# The primitives that call a traced function with the same arguments, and the parameter that holds it.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
COMPUTED = {primitive.name: function for primitive, function in COMPUTED_BY.items()}
LONGEST = 256  # passes of a loop that are written out one after another


class Program(NamedTuple):
    """A function that a page computes.

    Attributes:
        steps: see `vae_jax.pages.steps`, as JSON takes them.
        results: the numbers of the steps that compute the results.
        coarse: whether the function computes with floats of fewer than 32 bits, where a page has 32.
    """

    steps: list[dict[str, Any]]
    results: list[int]
    coarse: bool

    def as_json(self) -> dict[str, Any]:
        """What `program.js` reads."""
        return {"steps": self.steps, "results": self.results}


def program_of(function: Callable[..., Any], arguments: Mapping[str, jax.ShapeDtypeStruct]) -> Program:
    """The program of a function of arrays.

    Args:
        function: of as many arrays; gives an array, or several.
        arguments: their names in the page, shapes and types.

    Raises:
        UserError: naming an operation that a page cannot compute.
    """
    traced = jax.make_jaxpr(function)(*arguments.values())
    translation = _Translation()
    inputs: list[Value] = [
        translation.steps.input(name, argument.shape, kind_of(argument.dtype)) for name, argument in arguments.items()
    ]
    results = translation.run(traced.jaxpr, list(map(_known, traced.consts)), inputs)
    return Program(*translation.steps.finished(results), translation.coarse)


def _known(value: Any) -> Any:
    """A constant as numpy has it; keys of random numbers stay jax's."""
    return value if jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.extended) else np.asarray(value)


class _Translation:
    """Follows traced functions equation by equation."""

    def __init__(self) -> None:
        self.steps, self.coarse = Steps(), False

    def run(self, jaxpr: Any, consts: list[Any], inputs: list[Any]) -> list[Any]:
        """The results of a traced function, each known or a `Slot`."""
        values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(variable: Any) -> Any:
            return _known(variable.val) if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name in CALLS:
            inner = params[CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), list(map(_known, getattr(inner, "consts", ()))), inputs)
        if not any(isinstance(value, Slot) for value in inputs):
            results = equation.primitive.bind(*inputs, **params)
            return list(map(_known, results if equation.primitive.multiple_results else [results]))
        self.coarse |= any(is_coarse(getattr(variable.aval, "dtype", None)) for variable in equation.outvars)
        if name in COMPUTED:
            return self._inline(partial(COMPUTED[name], **params), equation.invars, inputs)
        if name == "scan":
            return self._loop(equation, inputs)
        if name == "cond" and not isinstance(inputs[0], Slot):
            branch = params["branches"][int(np.clip(inputs[0], 0, len(params["branches"]) - 1))]
            return self.run(branch.jaxpr, list(map(_known, branch.consts)), inputs[1:])
        return apply(self.steps, equation, inputs)

    def _inline(self, function: Callable[..., Any], variables: Any, inputs: list[Any]) -> list[Any]:
        """The results of a function that is traced now."""
        shapes = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in variables]
        traced = jax.make_jaxpr(function)(*shapes)
        return self.run(traced.jaxpr, list(map(_known, traced.consts)), inputs)

    def _loop(self, equation: Any, inputs: list[Any]) -> list[Any]:
        """A loop of known length, its passes one after another."""
        params, length = equation.params, equation.params["length"]
        if length > LONGEST:
            raise unknown(f"a loop of {length:,} passes, more than {LONGEST}")
        fixed, carried = params["num_consts"], params["num_carry"]
        consts, carry, rows = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
        body, made = params["jaxpr"], []
        for number in reversed(range(length)) if params["reverse"] else range(length):
            row = [self._row(value, number) for value in rows]
            results = self.run(body.jaxpr, list(map(_known, body.consts)), [*consts, *carry, *row])
            carry = results[:carried]
            made.append(results[carried:])
        made = made[::-1] if params["reverse"] else made
        stacked = []
        for column, variable in enumerate(equation.outvars[carried:]):
            parts = [self.steps.reshaped(results[column], (1, *variable.aval.shape[1:])) for results in made]
            stacked.append(joined(self.steps, parts, 0, variable.aval.shape, kind_of(variable.aval.dtype)))
        return [*carry, *stacked]

    def _row(self, value: Any, number: int) -> Any:
        shape = value.shape[1:]
        start = [number, *(0 for _ in shape)]
        return self.steps.reshaped(sliced(self.steps, value, start, (1, *shape), [1] * len(value.shape)), shape)
