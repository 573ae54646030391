"""Bits: a posterior over z in {0, 1}^d, whose samples have no gradient."""

import math

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax.posteriors.base import KL, Codes, Heads, Latents, Posterior, Sample
from vae_jax.shapes import Shapes, Size


def bernoulli(options: None, shapes: Shapes) -> Posterior:
    """Independent bits, z_i = 1 with probability sigmoid(mu_i).

    A bit is 1 where uniform noise u exceeds 1 − p, so 1 − u gives an antithetic pair. No gradient goes through a bit:
    the objectives of `vae_jax.objectives.score` estimate it.
    """
    latent = shapes.latent

    def noise(key: Key[Array, ""], lead: tuple[Size, ...]) -> Float[Array, "*lead latent"]:
        return uniform_noise(key, (*lead, latent))

    def transform(variables: PyTree, u: Float[Array, "*batch latent"], heads: Heads) -> Sample:
        logits = _single(heads["mu"])
        return of_bits(u > sigmoid(-logits), heads)

    def center(variables: PyTree, heads: Heads) -> Sample:
        return of_bits(heads["mu"] > 0, heads)

    def of_bits(bits: Array, heads: Heads) -> Sample:
        z = bits.astype(heads["mu"].dtype)
        return Sample(z, log_prob({}, z, heads))

    def log_prob(variables: PyTree, z: Latents, heads: Heads) -> Float[Array, "*batch"]:
        return log_prob_of_bits(z, _single(heads["mu"]))

    def by_dimension(heads: Heads, prior: PyTree) -> Float[Array, "*batch latent"]:
        logits = _single(heads["mu"])
        negative_entropy = sigmoid(logits) * log_sigmoid(logits) + sigmoid(-logits) * log_sigmoid(-logits)
        return negative_entropy + math.log(2)

    def codes_of(variables: PyTree, z: Latents) -> Int[Array, "*batch latent"]:
        return (z > 0.5).astype(jnp.int32)

    def vectors_of(variables: PyTree, codes: Int[Array, "*batch latent"]) -> Latents:
        return codes.astype(jnp.result_type(float))

    return Posterior(
        {"mu": latent},
        transform,
        log_prob=log_prob,
        kl={"uniform": KL(lambda heads, prior: by_dimension(heads, prior).sum(-1), by_dimension)},
        shape=(latent,),
        noise=noise,
        center=center,
        support="codes",
        codes=Codes(2, (latent,), codes_of, vectors_of, apart=True),
        reparameterized=False,
    )


def uniform_noise(key: Key[Array, ""], shape: tuple[Size, ...]) -> Float[Array, "*shape"]:
    """Uniform numbers in (0, 1), whose logits are finite."""
    kind = jnp.result_type(float)
    return jax.random.uniform(key, shape, kind, minval=jnp.finfo(kind).tiny, maxval=1.0)


def log_prob_of_bits(bits: Float[Array, "*batch latent"], logits: Float[Array, "*batch latent"]) -> Array:
    """Σ b·log p + (1 − b)·log(1 − p), (*batch,), in nats."""
    return (bits * log_sigmoid(logits) + (1 - bits) * log_sigmoid(-logits)).sum(-1)


def _single(x: Array) -> Array:
    """x in single precision, or in double if it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
