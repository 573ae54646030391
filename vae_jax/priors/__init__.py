"""Priors p(z): one function each, and one line here."""

from vae_jax.config import PriorConfig, entry_of
from vae_jax.priors.base import Aggregate, Prior
from vae_jax.priors.flow import flow
from vae_jax.priors.mixture import mixture
from vae_jax.priors.pixelcnn import pixelcnn
from vae_jax.priors.standard_normal import standard_normal, standard_normal_log_prob
from vae_jax.priors.transformer import transformer
from vae_jax.priors.uniform import uniform
from vae_jax.priors.vamp import vamp
from vae_jax.shapes import Shapes

__all__ = ["PRIORS", "Aggregate", "Prior", "get", "standard_normal_log_prob"]

# (options, Shapes) -> Prior; the annotation of `options` names the dataclass of its options.
PRIORS = {
    "standard_normal": standard_normal,
    "mixture": mixture,
    "vamp": vamp,
    "flow": flow,
    "uniform": uniform,
    "pixelcnn": pixelcnn,
    "transformer": transformer,
}


def get(config: PriorConfig, shapes: Shapes) -> Prior:
    """The configured prior.

    Raises:
        UserError: if the name is unknown, or an option has a value that it cannot have.
    """
    return entry_of("prior", config.name)(config.options, shapes)
