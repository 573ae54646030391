"""The Bernoulli likelihood."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax.blocks.tiles import Images, to_features
from vae_jax.likelihoods.base import Likelihood, sum_pixels
from vae_jax.shapes import Shapes


def bernoulli(options: None, shapes: Shapes) -> Likelihood:
    """Independent Bernoulli pixels; the decoder gives logits."""
    return Likelihood(
        1,
        lambda params, logits, images: bernoulli_log_prob(logits, images),
        lambda params, logits: pixel_mean(logits),
        treatments=("grey", "static", "dynamic"),
        reason="its pixels are 0 or 1, or grey levels that stand for probabilities",
        measure="binary",
        over=("levels", "reals"),
        interval=(0.0, 1.0),
    )


def bernoulli_log_prob(logits: Images, images: Images) -> Float[Array, " batch"]:
    """log p(x|z) of independent Bernoulli pixels, in nats per image, summed over pixels.

    Grey levels in [0, 1] count as probabilities: minus the binary cross-entropy, which is not a normalised
    likelihood then and has a floor above 0 (the entropy of the grey levels). Computed from logits
    (Kingma & Welling 2013, appendix C.1), so value and gradient stay finite at any logit.
    """
    logits, images = to_features(logits), to_features(images)
    # x·l − softplus(l), in the form that never takes the exponential of a positive number. The same condition chooses
    # both parts, so that the gradient is right at l = 0 too, where max and abs would choose different sides.
    positive = logits > 0
    softplus = jnp.where(positive, logits, 0) + jnp.log1p(jnp.exp(jnp.where(positive, -logits, logits)))
    log_prob = images * logits - softplus
    return sum_pixels(log_prob)


def pixel_mean(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """E[x|z], the picture that a decoder's logits give, in [0, 1]."""
    return jax.nn.sigmoid(logits)
