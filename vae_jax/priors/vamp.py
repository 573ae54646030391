"""The VampPrior: a mixture of the run's own posterior at learned pseudo-inputs."""

import math
from collections.abc import Callable

import jax
from jax.nn import logsumexp
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.links import LINKS
from vae_jax.posteriors import Latents
from vae_jax.priors.base import Aggregate, Prior
from vae_jax.priors.mixture import ComponentsOptions
from vae_jax.shapes import Shapes


def vamp(options: ComponentsOptions, shapes: Shapes) -> Prior:
    """1/K Σ q(z|uₖ) (Tomczak & Welling 2018, equation 9), the uₖ learned with the rest.

    A pseudo-input is the sigmoid of trained numbers, so that it is an image in [0, 1] and no pixel ever loses its
    gradient; it starts as noise around grey. It is the softmax for categories, and for real numbers the trained numbers
    themselves, which start as standard normal noise.
    """
    link = LINKS[shapes.support]

    def init(key: Key[Array, ""]) -> PyTree:
        return {"pseudo_inputs": jax.random.normal(key, (options.components, *shapes.image_shape))}

    def log_prob(params: PyTree, z: Latents, aggregate: Aggregate) -> Float[Array, "*batch"]:
        within = aggregate.log_prob(z, pseudo_inputs(params, link))
        return logsumexp(within, -1) - math.log(options.components)

    def sample(params: PyTree, key: Key[Array, ""], count: int, aggregate: Aggregate) -> Float[Array, "count latent"]:
        which, noise = jax.random.split(key)
        chosen = jax.random.randint(which, (count,), 0, options.components)
        return aggregate.sample(noise, pseudo_inputs(params, link)[chosen])

    return Prior(log_prob, sample, init, posterior=True)


def pseudo_inputs(
    params: PyTree, link: Callable[[Array], Array] = LINKS["levels"]
) -> Float[Array, "components *shape"]:
    """The inputs uₖ; images are in [0, 1]."""
    return link(params["pseudo_inputs"])
