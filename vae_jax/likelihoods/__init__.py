"""Likelihoods p(x|z): one function each, and one line here."""

from vae_jax.config import LikelihoodConfig, entry_of
from vae_jax.likelihoods.base import Likelihood, bits_per_dimension, described, measured
from vae_jax.likelihoods.bernoulli import bernoulli, bernoulli_log_prob, pixel_mean
from vae_jax.likelihoods.categorical import categorical
from vae_jax.likelihoods.continuous_bernoulli import continuous_bernoulli
from vae_jax.likelihoods.gaussian import gaussian
from vae_jax.likelihoods.logistic import discretized_logistic, discretized_logistic_mixture
from vae_jax.likelihoods.squared_error import squared, squared_error
from vae_jax.shapes import Shapes

__all__ = [
    "LIKELIHOODS",
    "Likelihood",
    "bernoulli_log_prob",
    "bits_per_dimension",
    "described",
    "get",
    "measured",
    "over",
    "pixel_mean",
    "squared",
    "squared_error",
]

# (options, Shapes) -> Likelihood; the annotation of `options` names the dataclass of its options.
LIKELIHOODS = {
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "discretized_logistic": discretized_logistic,
    "discretized_logistic_mixture": discretized_logistic_mixture,
    "categorical": categorical,
}


def get(config: LikelihoodConfig, shapes: Shapes) -> Likelihood:
    """The configured likelihood of images.

    Raises:
        UserError: if the name is unknown, or an option has a value that it cannot have.
    """
    return entry_of("likelihood", config.name)(config.options, shapes)


def over(shapes: Shapes) -> list[str]:
    """The names of the package's likelihoods for data of this support."""
    plain = {name: LikelihoodConfig(name) for name in LIKELIHOODS}
    return [name for name, config in plain.items() if shapes.support in get(config, shapes).over]
