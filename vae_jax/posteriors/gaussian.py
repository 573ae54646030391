"""Gaussian posteriors, and an autoencoder's point, which stands in for a posterior."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PyTree

from vae_jax.posteriors.base import KL, Heads, Latents, Posterior
from vae_jax.shapes import Shapes

LOG_2PI = math.log(2 * math.pi)


def diagonal_gaussian(options: None, shapes: Shapes) -> Posterior:
    """N(μ, diag σ²) (Kingma & Welling 2013, equation 9)."""
    return Posterior(
        {"mu": shapes.latent, "log_var": shapes.latent},
        diagonal_transform,
        log_prob=diagonal_log_prob,
        kl={"standard_normal": KL(lambda heads, _: diagonal_kl(heads).sum(-1), lambda heads, _: diagonal_kl(heads))},
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


def full_gaussian(options: None, shapes: Shapes) -> Posterior:
    """N(μ, LLᵀ), L lower triangular with the diagonal exp(½ log σ²) (Kingma & Welling 2019, section 2.5.1)."""
    latent = shapes.latent
    heads = {"mu": latent, "log_var": latent, "lower": latent * (latent - 1) // 2}
    return Posterior(
        {name: size for name, size in heads.items() if size},
        full_transform,
        log_prob=full_log_prob,
        kl={"standard_normal": KL(lambda heads, _: full_kl(heads))},
    )


def cholesky(heads: Heads) -> Float[Array, "*batch latent latent"]:
    """L: exp(½ log σ²) on the diagonal, and below it the rows of `lower`, if any, one after the other."""
    diagonal = jnp.exp(heads["log_var"] / 2)
    if "lower" not in heads:
        return diagonal[..., None]
    latent = diagonal.shape[-1]
    places = np.full((latent, latent), latent * (latent + 1) // 2)  # above the diagonal, the last number: 0
    places[np.diag_indices(latent)] = np.arange(latent)
    places[np.tril_indices(latent, -1)] = np.arange(latent, latent * (latent + 1) // 2)
    numbers = jnp.concatenate([diagonal, heads["lower"], jnp.zeros_like(diagonal[..., :1])], -1)
    return numbers[..., places]


def full_transform(params: PyTree, noise: Latents, heads: Heads) -> tuple[Latents, Float[Array, "*batch"]]:
    """z = μ + Lε, ε ~ N(0, I), and its log-density (Kingma & Welling 2019, equations 2.40 and 2.44)."""
    log_prob = -0.5 * (LOG_2PI + heads["log_var"] + jnp.square(noise)).sum(-1)
    moved = jnp.einsum("...ij,...j->...i", cholesky(heads), noise, precision=lax.Precision.HIGHEST)
    return heads["mu"] + moved, log_prob


def full_log_prob(params: PyTree, z: Latents, heads: Heads) -> Float[Array, "*batch"]:
    """log N(z; μ, LLᵀ)."""
    noise = solve_triangular(cholesky(heads), (z - heads["mu"])[..., None], lower=True)[..., 0]
    return -0.5 * (LOG_2PI + heads["log_var"] + jnp.square(noise)).sum(-1)


def full_kl(heads: Heads) -> Float[Array, "*batch"]:
    """KL(N(μ, LLᵀ) ‖ N(0, I)) in nats: ½ (tr LLᵀ + μᵀμ − D − log |LLᵀ|)."""
    below = jnp.square(heads["lower"]).sum(-1) if "lower" in heads else 0.0
    return diagonal_kl(heads).sum(-1) + 0.5 * below


def _point(params: PyTree, noise: Latents, heads: Heads) -> tuple[Latents, Float[Array, "*batch"]]:
    return heads["mu"], jnp.zeros(heads["mu"].shape[:-1])


def point(options: None, shapes: Shapes) -> Posterior:
    """An autoencoder's code: all mass on one z, so there is no density."""
    return Posterior({"mu": shapes.latent}, _point)
