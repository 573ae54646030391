"""How large the arrays of a function are, read off the traced program, and whether they fit into memory."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from vae_jax.blocks.convolution import COMPUTED_BY
from vae_jax.device import memory

# Operations whose results are in memory, whatever a compiler fuses: matrix products and convolutions, also our own.
PRODUCTS = {"dot_general", "conv_general_dilated", *(primitive.name for primitive in COMPUTED_BY)}


def check_memory(needed: int, what: str) -> None:
    """Refuses more memory than there is, see `vae_jax.device.memory.check`, on a CPU.

    There the process would end without a word; on other devices jax raises an error.
    """
    if jax.default_backend() == "cpu":
        memory.check(needed, what)


def largest_operation(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of the arguments and results of the largest operation of a function that is not compiled.

    Args:
        function: to be traced.
        arguments: arrays, or their shapes and types.
    """
    traced = jax.make_jaxpr(function)(*arguments)
    return max((_bytes(equation.invars) + _bytes(equation.outvars) for equation in traced.jaxpr.eqns), default=0)


def largest_product(jaxpr: Any) -> int:
    """Bytes of the largest result of a matrix product or convolution in a traced program, which needs this at least."""
    return max(
        (_bytes(equation.outvars) for equation in equations(jaxpr) if equation.primitive.name in PRODUCTS), default=0
    )


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a traced program and of the programs in it."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from equations_in(equation)


def equations_in(equation: Any) -> Iterator[Any]:
    """The equation, then those of the programs in it."""
    yield equation
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield from equations(inner)


def _bytes(variables: Any) -> int:
    avals = [variable.aval for variable in variables]
    return sum(aval.size * aval.dtype.itemsize for aval in avals if hasattr(aval, "dtype"))
