"""Approximate posteriors q(z|x): one function each, and one line here."""

from vae_jax.config import PosteriorConfig, entry_of
from vae_jax.posteriors.base import KL, Codes, Heads, Latents, Posterior, Sample
from vae_jax.posteriors.bernoulli import bernoulli
from vae_jax.posteriors.categorical import categorical
from vae_jax.posteriors.codebook import codebook
from vae_jax.posteriors.finite import fsq, lfq
from vae_jax.posteriors.flows import iaf, planar
from vae_jax.posteriors.gaussian import diagonal_gaussian, full_gaussian, point
from vae_jax.shapes import Shapes

__all__ = ["KL", "POSTERIORS", "Codes", "Heads", "Latents", "Posterior", "Sample", "get", "point"]

# (options, Shapes) -> Posterior; the annotation of `options` names the dataclass of its options.
POSTERIORS = {
    "diagonal_gaussian": diagonal_gaussian,
    "full_gaussian": full_gaussian,
    "planar": planar,
    "iaf": iaf,
    "codebook": codebook,
    "fsq": fsq,
    "lfq": lfq,
    "categorical": categorical,
    "bernoulli": bernoulli,
}


def get(config: PosteriorConfig, shapes: Shapes) -> Posterior:
    """The configured posterior.

    Raises:
        UserError: if the name is unknown, or an option has a value that it cannot have.
    """
    return entry_of("posterior", config.name)(config.options, shapes)
