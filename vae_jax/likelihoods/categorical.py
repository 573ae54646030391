"""The categorical likelihood, of tokens or of the columns of a table of categories."""

import jax
from jaxtyping import Array, Float

from vae_jax.blocks.tiles import Images, to_features
from vae_jax.likelihoods.base import Likelihood, sum_pixels
from vae_jax.links import LINKS
from vae_jax.shapes import Shapes


def categorical(options: None, shapes: Shapes) -> Likelihood:
    """Independent categories; the decoder gives logits, (batch, length, values). The mean is the probabilities."""
    return Likelihood(
        1,
        lambda params, logits, images: categorical_log_prob(logits, images),
        lambda params, logits: LINKS["categories"](logits),
        measure="categories",
        over=("categories",),
    )


def categorical_log_prob(logits: Images, images: Images) -> Float[Array, " batch"]:
    """log p(x|z) of one-hot categories in nats: Σ over the length of log softmax(logits) at the category."""
    return sum_pixels(to_features(images) * jax.nn.log_softmax(to_features(logits), 1))
