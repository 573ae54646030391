"""The standard normal prior."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.posteriors import Latents
from vae_jax.priors.base import Aggregate, Prior
from vae_jax.shapes import Shapes


def standard_normal_log_prob(z: Latents) -> Float[Array, "*batch"]:
    """log N(z; 0, I)."""
    return -0.5 * (math.log(2 * math.pi) + jnp.square(z)).sum(-1)


def standard_normal(options: None, shapes: Shapes) -> Prior:
    """N(0, I) (Kingma & Welling 2013, section 3)."""

    def log_prob(params: PyTree, z: Latents, aggregate: Aggregate) -> Float[Array, "*batch"]:
        return standard_normal_log_prob(z)

    def sample(params: PyTree, key: Key[Array, ""], count: int, aggregate: Aggregate) -> Float[Array, "count latent"]:
        return jax.random.normal(key, (count, shapes.latent))

    return Prior(log_prob, sample, kind="standard_normal")
