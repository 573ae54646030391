"""Approximate posteriors q(z|x), as pure functions of the encoder's heads."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Heads = dict[str, Float[Array, "batch latent"]]
Latents = Float[Array, "batch latent"]


class Posterior(NamedTuple):
    """A family of posteriors.

    Attributes:
        heads: names of the encoder's heads it is made of; "mu" is always one of them.
        sample: (key, heads) -> z, differentiable in the heads.
    """

    heads: tuple[str, ...]
    sample: Callable[[Key[Array, ""], Heads], Latents]


def mean(key: Key[Array, ""], heads: Heads) -> Latents:
    """The posterior's mean, in place of a sample; the key is not used."""
    return heads["mu"]


def diagonal_gaussian_sample(key: Key[Array, ""], heads: Heads) -> Latents:
    """z = μ + ε·exp(½ log σ²), ε ~ N(0, I): the reparameterization (Kingma & Welling 2013, section 2.4)."""
    noise = jax.random.normal(key, heads["mu"].shape, heads["mu"].dtype)
    return heads["mu"] + noise * jnp.exp(heads["log_var"] / 2)


def diagonal_gaussian_kl(heads: Heads) -> Float[Array, " batch"]:
    """KL(q(z|x) ‖ N(0, I)) in nats per image: −½ Σ (1 + log σ² − μ² − σ²) (Kingma & Welling 2013, appendix B)."""
    mu, log_var = heads["mu"], heads["log_var"]
    return -0.5 * (1 + log_var - jnp.square(mu) - jnp.exp(log_var)).sum(1)


DIAGONAL_GAUSSIAN = Posterior(("mu", "log_var"), diagonal_gaussian_sample)
POINT = Posterior(("mu",), mean)  # an autoencoder's code: all mass on one z
