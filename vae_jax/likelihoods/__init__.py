"""Likelihoods p(x|z): one function each, and one line here."""

from vae_jax.config import LikelihoodConfig
from vae_jax.likelihoods.base import Likelihood, bits_per_dimension, measured
from vae_jax.likelihoods.bernoulli import bernoulli, bernoulli_log_prob, pixel_mean, squared_error
from vae_jax.likelihoods.continuous_bernoulli import continuous_bernoulli
from vae_jax.likelihoods.gaussian import gaussian
from vae_jax.likelihoods.logistic import discretized_logistic, discretized_logistic_mixture
from vae_jax.registry import lookup

__all__ = [
    "LIKELIHOODS",
    "Likelihood",
    "bernoulli_log_prob",
    "bits_per_dimension",
    "get",
    "measured",
    "pixel_mean",
    "squared_error",
]

# Each: (config, image shape) -> Likelihood.
LIKELIHOODS = {
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "discretized_logistic": discretized_logistic,
    "discretized_logistic_mixture": discretized_logistic_mixture,
}


def get(config: LikelihoodConfig, image_shape: tuple[int, int, int]) -> Likelihood:
    """The configured likelihood of images of (height, width, channels).

    Raises:
        UserError: if the name is unknown.
    """
    return lookup(LIKELIHOODS, config.name, "likelihood.name", ("config", "image_shape"))(config, image_shape)
