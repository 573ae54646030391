"""Shared by posteriors of codes: the places of an image's codes, and the KL from a uniform prior."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vae_jax.errors import UserError
from vae_jax.posteriors.base import KL, Codes, Heads, Posterior
from vae_jax.shapes import Shapes


def precise(heads: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Heads in single precision, or in double if they are: the nearest code must not depend on a network's rounding."""
    return heads.astype(jnp.promote_types(heads.dtype, jnp.float32))


def places_of(places: tuple[int, ...] | None, shapes: Shapes) -> tuple[int, ...]:
    """The shape of an image's codes: `posterior.places`, or that of the network's own map.

    Raises:
        UserError: if neither is known.
    """
    shape = shapes.places() if places is None else places
    if shape is None:
        raise UserError(
            "posterior.places: expected the shape of the codes, as [16], with a network that has no map; found null"
        )
    return shape


def over_codes(
    codes: Codes,
    shape: tuple[int, ...],
    transform: Callable[..., Any],
    center: Callable[..., Any],
    **more: Any,
) -> Posterior:
    """A posterior with all of q(z|x) on one row of codes, whose KL from uniform codes is log(values) a place."""
    nats = math.prod(codes.shape) * math.log(codes.values)

    def uniform(heads: Heads, prior: PyTree) -> Float[Array, "*batch"]:
        return jnp.full(heads["mu"].shape[: -len(shape)], nats, precise(heads["mu"]).dtype)

    return Posterior(
        {"mu": shape},
        transform,
        kl={"uniform": KL(uniform)},
        shape=shape,
        center=center,
        support="codes",
        codes=codes,
        single=True,
        **more,
    )
