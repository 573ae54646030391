"""The squared error, in which a plain autoencoder's code is decoded: no likelihood, but made as one is."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax.layout import Images, to_features
from vae_jax.likelihoods.base import Likelihood, sum_pixels
from vae_jax.links import LINKS
from vae_jax.shapes import Shapes


def squared(shapes: Shapes) -> Likelihood:
    """Minus the squared error in place of log p(x|z); the mean is the link of what an example's numbers are."""
    link = LINKS[shapes.support]
    return Likelihood(
        1, lambda params, outputs, images: -squared_error(outputs, images, link), lambda params, outputs: link(outputs)
    )


def squared_error(
    outputs: Images, images: Images, link: Callable[[Array], Array] = LINKS["levels"]
) -> Float[Array, " batch"]:
    """‖x − link(outputs)‖² per image, summed over pixels: the L2 loss of a plain autoencoder, whose last layer is σ."""
    return sum_pixels(jnp.square(to_features(images - link(outputs))))
