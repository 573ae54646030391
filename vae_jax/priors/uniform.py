"""The prior with equally likely codes."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.posteriors import Latents
from vae_jax.priors.base import Aggregate, Prior, codes_in
from vae_jax.shapes import Shapes


def uniform(options: None, shapes: Shapes) -> Prior:
    """p(k) = 1/K at every place, of a posterior whose z are made of codes."""
    codes = codes_in(shapes, "uniform")
    nats = math.prod(codes.shape) * math.log(codes.values)

    def log_prob(params: PyTree, z: Float[Array, "..."], aggregate: Aggregate) -> Float[Array, "*batch"]:
        return jnp.full(z.shape[: z.ndim - len(shapes.latent_shape or (0,))], -nats, z.dtype)

    def sample(params: PyTree, key: Key[Array, ""], count: int, aggregate: Aggregate) -> Latents:
        assert aggregate.vectors
        return aggregate.vectors(jax.random.randint(key, (count, *codes.shape), 0, codes.values))

    return Prior(log_prob, sample, kind="uniform", support="codes")
