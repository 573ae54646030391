"""Gaussian posteriors, and the point that an autoencoder has in place of one."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vae_jax.config import PosteriorConfig
from vae_jax.posteriors.base import Heads, Latents, Posterior

LOG_2PI = math.log(2 * math.pi)


def diagonal_gaussian(config: PosteriorConfig, latent: int) -> Posterior:
    """N(μ, diag σ²) (Kingma & Welling 2013, equation 9)."""
    return Posterior(
        {"mu": latent, "log_var": latent},
        diagonal_transform,
        log_prob=diagonal_log_prob,
        kl=lambda heads: diagonal_kl(heads).sum(-1),
        kl_by_dimension=diagonal_kl,
    )


def diagonal_transform(params: PyTree, noise: Latents, heads: Heads) -> tuple[Latents, Float[Array, "*batch"]]:
    """z = μ + ε·exp(½ log σ²), ε ~ N(0, I) (Kingma & Welling 2013, section 2.4), and its log-density."""
    log_var = heads["log_var"]
    log_prob = -0.5 * (LOG_2PI + log_var + jnp.square(noise)).sum(-1)
    return heads["mu"] + noise * jnp.exp(log_var / 2), log_prob


def diagonal_log_prob(params: PyTree, z: Latents, heads: Heads) -> Float[Array, "*batch"]:
    """log N(z; μ, diag σ²)."""
    log_var = heads["log_var"]
    return -0.5 * (LOG_2PI + log_var + jnp.square(z - heads["mu"]) * jnp.exp(-log_var)).sum(-1)


def diagonal_kl(heads: Heads) -> Float[Array, "*batch latent"]:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats, by dimension: −½ (1 + log σ² − μ² − σ²) (Kingma & Welling 2013, appendix B)."""
    mu, log_var = heads["mu"], heads["log_var"]
    return -0.5 * (1 + log_var - jnp.square(mu) - jnp.exp(log_var))


def _point(params: PyTree, noise: Latents, heads: Heads) -> tuple[Latents, Float[Array, "*batch"]]:
    return heads["mu"], jnp.zeros(heads["mu"].shape[:-1])


def point(config: PosteriorConfig, latent: int) -> Posterior:
    """An autoencoder's code: all mass on one z, so there is no density."""
    return Posterior({"mu": latent}, _point)
