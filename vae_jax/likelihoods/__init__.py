"""Likelihoods p(x|z): one function each, and one line here."""

from vae_jax.config import LikelihoodConfig
from vae_jax.likelihoods.base import Likelihood
from vae_jax.likelihoods.bernoulli import bernoulli, bernoulli_log_prob, pixel_mean, squared_error
from vae_jax.registry import lookup

__all__ = ["LIKELIHOODS", "Likelihood", "bernoulli_log_prob", "get", "pixel_mean", "squared_error"]

# Each: (config, image shape) -> Likelihood.
LIKELIHOODS = {
    "bernoulli": bernoulli,
}


def get(config: LikelihoodConfig, image_shape: tuple[int, int, int]) -> Likelihood:
    """The configured likelihood of images of (height, width, channels).

    Raises:
        UserError: if the name is unknown.
    """
    return lookup(LIKELIHOODS, config.name, "likelihood.name")(config, image_shape)
