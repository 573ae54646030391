"""The squared error, which a plain autoencoder has in place of a likelihood, with the same functions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax.blocks.tiles import Images, to_features
from vae_jax.likelihoods.base import Likelihood, sum_pixels
from vae_jax.links import LINKS
from vae_jax.shapes import Shapes


def squared(shapes: Shapes) -> Likelihood:
    """Minus the squared error in place of log p(x|z); the mean is the link of the decoder's output."""
    support = shapes.support
    return Likelihood(
        1,
        lambda params, outputs, images: -squared_error(outputs, images, support),
        lambda params, outputs: LINKS[support](outputs),
        over=(support,),
    )


def squared_error(outputs: Images, images: Images, support: str = "levels") -> Float[Array, " batch"]:
    """‖x − link(outputs)‖² per image, summed over pixels: the L2 loss of a plain autoencoder, whose last layer is σ.

    `support` is the kind of an example's numbers, which has the link.
    """
    link = LINKS[support]
    if support == "categories":  # whose link is over the last axis
        outputs, link = link(outputs), LINKS["reals"]
    return sum_pixels(jnp.square(to_features(images) - link(to_features(outputs))))
