"""Checks the outputs of a model's parts while they are traced: a wrong shape would be broadcast silently."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vae_jax.errors import UserError, listed
from vae_jax.shapes import Size

Shape = tuple[Size, ...]


def expect(what: str, value: Any, shape: Shape) -> None:
    """Refuses a value that is no array of floating-point numbers of this shape.

    Args:
        what: the part that gives it, for the message; begins with the option to blame.
        value: to check.
        shape: that it must have.

    Raises:
        UserError: naming both shapes.
    """
    if kind(value) != _floats(shape):
        raise UserError(f"{what}: expected {_floats(shape)}; found {kind(value)}")


def expect_all(what: str, values: Any, shapes: Mapping[str, Shape]) -> None:
    """Refuses a value that is no dict of arrays with exactly these names and shapes, see `expect`.

    Raises:
        UserError: naming the first that is missing, not expected or of another shape.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{what}: expected a dict with {', '.join(shapes)}; found {kind(values)}")
    names = listed(values) or "nothing"
    if values.keys() != shapes.keys():
        raise UserError(f"{what}: expected {', '.join(shapes)}; found {names}")
    for name, shape in shapes.items():
        expect(f"{what}, {name}", values[name], shape)


def _floats(shape: Shape) -> str:
    return f"floats of shape {shape}"


def kind(value: Any) -> str:
    """The type of a value, in words."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    if jnp.issubdtype(value.dtype, jnp.floating):
        return _floats(tuple(value.shape))
    return f"{value.dtype} of shape {tuple(value.shape)}"
