"""Approximate posteriors q(z|x): one function each, and one line here."""

from vae_jax.config import PosteriorConfig
from vae_jax.posteriors.base import KL, Heads, Latents, Posterior, Sample
from vae_jax.posteriors.flows import iaf, planar
from vae_jax.posteriors.gaussian import diagonal_gaussian, full_gaussian, point
from vae_jax.registry import lookup

__all__ = ["KL", "POSTERIORS", "Heads", "Latents", "Posterior", "Sample", "get", "point"]

# Each: (config, latent dimensions) -> Posterior.
POSTERIORS = {
    "diagonal_gaussian": diagonal_gaussian,
    "full_gaussian": full_gaussian,
    "planar": planar,
    "iaf": iaf,
}


def get(config: PosteriorConfig, latent: int) -> Posterior:
    """The configured posterior over `latent` dimensions.

    Raises:
        UserError: if the name is unknown.
    """
    return lookup(POSTERIORS, config.name, "posterior.name", ("config", "latent"))(config, latent)
