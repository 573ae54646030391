"""The squared error, in which a plain autoencoder's code is decoded: no likelihood, but made as one is."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vae_jax.layout import Images, to_features
from vae_jax.likelihoods.base import Likelihood, sum_pixels
from vae_jax.links import LINKS
from vae_jax.shapes import Shapes


def squared(shapes: Shapes) -> Likelihood:
    """Minus the squared error in place of log p(x|z); the mean is the link of what an example's numbers are."""
    link = LINKS[shapes.support]

    def log_prob(params: PyTree, outputs: Images, images: Images) -> Float[Array, " batch"]:
        if shapes.support == "categories":  # whose link is over the channels
            return -squared_error(link(outputs), images, LINKS["reals"])
        return -squared_error(outputs, images, link)

    return Likelihood(1, log_prob, lambda params, outputs: link(outputs))


def squared_error(
    outputs: Images, images: Images, link: Callable[[Array], Array] = LINKS["levels"]
) -> Float[Array, " batch"]:
    """‖x − link(outputs)‖² per image, summed over pixels: the L2 loss of a plain autoencoder, whose last layer is σ.

    The link is of one number.
    """
    return sum_pixels(jnp.square(to_features(images) - link(to_features(outputs))))
