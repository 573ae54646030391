"""Priors p(z): one function each, and one line here."""

from vae_jax.config import PriorConfig
from vae_jax.priors.base import Aggregate, Prior
from vae_jax.priors.flow import flow
from vae_jax.priors.mixture import mixture
from vae_jax.priors.standard_normal import standard_normal, standard_normal_log_prob
from vae_jax.priors.vamp import vamp
from vae_jax.registry import lookup

__all__ = ["PRIORS", "Aggregate", "Prior", "get", "standard_normal_log_prob"]

# Each: (config, latent dimensions, image shape) -> Prior.
PRIORS = {
    "standard_normal": standard_normal,
    "mixture": mixture,
    "vamp": vamp,
    "flow": flow,
}


def get(config: PriorConfig, latent: int, image_shape: tuple[int, int, int]) -> Prior:
    """The configured prior over `latent` dimensions, for images of (height, width, channels).

    Raises:
        UserError: if the name is unknown.
    """
    return lookup(PRIORS, config.name, "prior.name", ("config", "latent", "image_shape"))(config, latent, image_shape)
