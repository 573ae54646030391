"""Priors p(z), as pure functions."""

import jax
from jaxtyping import Array, Float, Key


def standard_normal_sample(key: Key[Array, ""], images: int, latent: int) -> Float[Array, "images latent"]:
    """z ~ N(0, I)."""
    return jax.random.normal(key, (images, latent))
