"""What posteriors of codes share: where the codes of an image are, and the bound that a uniform prior gives."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vae_jax.errors import UserError
from vae_jax.posteriors.base import KL, Codes, Heads, Posterior
from vae_jax.shapes import Shapes


def precise(heads: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """In single precision, or the double it has: what is nearest must not depend on a network's rounding."""
    return heads.astype(jnp.promote_types(heads.dtype, jnp.float32))


def places_of(places: tuple[int, ...] | None, shapes: Shapes) -> tuple[int, ...]:
    """The shape of an image's codes: as `posterior.places` says, or the network's own map.

    Raises:
        UserError: if neither is known.
    """
    found = shapes.places() if places is None else places
    if found is None:
        raise UserError(
            "posterior.places: expected the shape of the codes, as [16], with a network that has no map; found null"
        )
    return found


def over_codes(
    codes: Codes,
    shape: tuple[int, ...],
    transform: Callable[..., Any],
    center: Callable[..., Any],
    **more: Any,
) -> Posterior:
    """A posterior with all of q(z|x) on one row of codes: its KL from uniform codes is log values at every place."""
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
