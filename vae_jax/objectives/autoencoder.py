"""The plain autoencoder's objective, and the denoising autoencoder's."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from vae_jax.errors import UserError
from vae_jax.likelihoods import squared_error
from vae_jax.objectives.base import Around, Terms
from vae_jax.options import TRACED, one_of


@dataclass(frozen=True)
class DenoisingOptions:
    """Of denoising_autoencoder.

    Attributes:
        corruption: of the input: gaussian (added noise) or masking (pixels, or whole categories, set to 0).
        corruption_level: the noise's standard deviation (grey levels are 0 to 1), or the fraction masked.
    """

    corruption: Annotated[str, one_of("gaussian", "masking")] = "gaussian"
    corruption_level: Annotated[float, "[0, 1]", TRACED] = 0.3


def autoencoder(key, model, images, options) -> Terms:
    """‖x − x̂‖² per image, summed over pixels (the L2 loss); the code is not sampled."""
    return _reconstruct(key, model, images, images)


def denoising_autoencoder(key, model, images, options: DenoisingOptions) -> Terms:
    """‖x − x̂‖² per image, where x̂ is made from a corrupted x (Vincent et al. 2008, section 2.3)."""
    noise_key, key = jax.random.split(key)
    corrupted = CORRUPTIONS[options.corruption](noise_key, images, options.corruption_level, model.support)
    return _reconstruct(key, model, corrupted, images)


def _reconstruct(key, model, inputs, targets) -> Terms:
    error = squared_error(model.draw(key, inputs, targets=targets).outputs, targets, model.support)
    return {"loss": error, "reconstruction": error, "kl": jnp.zeros_like(error)}


def _gaussian(key, images, level, support):
    noisy = images + level * jax.random.normal(key, images.shape, images.dtype)
    return jnp.clip(noisy, 0, 1) if support == "levels" else noisy


def _masking(key, images, level, support):
    shape = (*images.shape[:-1], 1) if support == "categories" else images.shape
    return jnp.where(jax.random.bernoulli(key, level, shape), 0, images)


def check_corruption(options: DenoisingOptions, around: Around) -> None:
    """Refuses Gaussian noise for data of categories.

    Raises:
        UserError: naming the option.
    """
    if options.corruption == "gaussian" and around.support == "categories":
        raise UserError("objective.corruption: expected masking for data of categories; found gaussian")


CORRUPTIONS = {"gaussian": _gaussian, "masking": _masking}
