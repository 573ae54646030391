"""The Gaussian likelihood, its variance fixed, learned once, or the decoder's for each pixel.

Means are sigmoids of the decoder's output: pixels lie in [0, 1], so a mean outside would never be right, and a picture
needs no clipping; with a fixed variance this is the squared error that a plain autoencoder here minimises.

Learned standard deviations are FLOOR + exp(s) and not exp(s). Many pixels are the same in every image (a black
border), and there the likelihood of a narrower and narrower Gaussian grows without bound: what it gains says nothing
about the images, and training ends in infinities (Mattei & Frellsen 2018).
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.layout import Images, to_features
from vae_jax.likelihoods.base import Likelihood, Outputs, sum_pixels
from vae_jax.likelihoods.bernoulli import pixel_mean
from vae_jax.options import one_of
from vae_jax.shapes import Shapes

FLOOR = 1 / 510  # half a grey level: nothing finer is in the images
TREATMENTS = ("grey", "dequantized")
REASON = "where all pixels are 0 or 1 a learned variance falls to its floor"


@dataclass(frozen=True)
class GaussianOptions:
    """Of gaussian.

    Attributes:
        variance: fixed, shared (one for all pixels, learned) or pixel (one for each, from the decoder).
        scale: the standard deviation where it is fixed, and where it starts otherwise; grey levels are 0 to 1.
    """

    variance: Annotated[str, one_of("fixed", "shared", "pixel")] = "fixed"
    scale: Annotated[float, "[0.001, 1000]"] = 0.1


def gaussian(options: GaussianOptions, shapes: Shapes) -> Likelihood:
    """Independent Gaussian pixels.

    Raises:
        UserError: if `options.scale` is below what a learned one can be.
    """
    return VARIANCES[options.variance](options)


def fixed(options: GaussianOptions) -> Likelihood:
    """The standard deviation is `options.scale`: up to a constant the squared error, divided by 2·scale²."""
    return Likelihood(
        1,
        lambda params, outputs, images: gaussian_log_prob(outputs, jnp.asarray(math.log(options.scale)), images),
        lambda params, outputs: pixel_mean(outputs),
        measure="density",
    )


def shared(options: GaussianOptions) -> Likelihood:
    """One learned standard deviation for all pixels, from `options.scale` on: the σ-VAE (Rybkin et al. 2021)."""
    start = _raw(options.scale)

    def init(key: Key[Array, ""]) -> PyTree:
        return {"log_scale": jnp.full((), start, float)}

    return Likelihood(
        1,
        lambda params, outputs, images: gaussian_log_prob(outputs, floored(params["log_scale"], FLOOR), images),
        lambda params, outputs: pixel_mean(outputs),
        init,
        treatments=TREATMENTS,
        reason=REASON,
        measure="density",
    )


def pixel(options: GaussianOptions) -> Likelihood:
    """Each pixel's own standard deviation, from the decoder (Kingma & Welling 2013, appendix C.2).

    The decoder's second number is added to an offset, so that training starts near `options.scale`.
    """
    start = _raw(options.scale)

    def log_prob(params: PyTree, outputs: Outputs, images: Images) -> Float[Array, " batch"]:
        means, raw = jnp.split(outputs, 2, -1)
        return gaussian_log_prob(means, floored(raw + start, FLOOR), images)

    return Likelihood(
        2,
        log_prob,
        lambda params, outputs: pixel_mean(jnp.split(outputs, 2, -1)[0]),
        treatments=TREATMENTS,
        reason=REASON,
        measure="density",
    )


VARIANCES = {"fixed": fixed, "shared": shared, "pixel": pixel}


def gaussian_log_prob(outputs: Images, log_scale: Images | Float[Array, ""], images: Images) -> Float[Array, " batch"]:
    """log p(x|z) of independent Gaussian pixels with means σ(outputs), in nats per image, summed over pixels.

    `log_scale` is the logarithm of the standard deviation, one for each pixel or one for all.
    """
    outputs, images = to_features(outputs), to_features(images)
    log_scale = to_features(log_scale) if log_scale.ndim else log_scale
    normal = (images - pixel_mean(outputs)) * jnp.exp(-log_scale)
    return sum_pixels(-0.5 * jnp.square(normal) - log_scale - 0.5 * math.log(2 * math.pi))


def floored(raw: Float[Array, "*shape"], floor: float) -> Float[Array, "*shape"]:
    """log(floor + exp(raw)): the logarithm of a scale that never falls to `floor`, nor loses its gradient there."""
    return jnp.logaddexp(raw, jnp.full_like(raw, math.log(floor)))


def _raw(scale: float) -> float:
    """Where a learned scale starts: the inverse of `floored`."""
    if scale <= FLOOR:
        raise UserError(
            f"likelihood.scale: expected more than half a grey level, {FLOOR:.3g}, where it is learned; found {scale}"
        )
    return math.log(scale - FLOOR)
