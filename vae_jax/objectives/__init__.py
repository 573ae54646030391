"""Objectives: one short pure function each, and one line here."""

from vae_jax.config import ObjectiveConfig
from vae_jax.objectives.autoencoder import CORRUPTIONS, autoencoder, denoising_autoencoder
from vae_jax.objectives.base import Model, Objective, Terms, bind
from vae_jax.objectives.vae import vae
from vae_jax.posteriors import POINT
from vae_jax.registry import lookup

__all__ = ["OBJECTIVES", "Model", "Objective", "Terms", "bind", "get"]

OBJECTIVES = {
    "vae": Objective(vae),
    "autoencoder": Objective(autoencoder, POINT, "squared error per image", generative=False),
    "denoising_autoencoder": Objective(denoising_autoencoder, POINT, "squared error per image", generative=False),
}


def get(config: ObjectiveConfig) -> Objective:
    """The configured objective.

    Raises:
        UserError: if the name, or the corruption's, is unknown.
    """
    lookup(CORRUPTIONS, config.corruption, "objective.corruption")
    return lookup(OBJECTIVES, config.name, "objective.name")
