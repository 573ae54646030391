"""The Gaussian likelihood, its variance fixed, learned once, or the decoder's for each pixel.

Means are sigmoids of the decoder's output: pixels lie in [0, 1], so a mean outside would never be right, and a picture
needs no clipping; with a fixed variance this is the squared error that a plain autoencoder here minimises.

Learned standard deviations are FLOOR + exp(s) and not exp(s). Many pixels are the same in every image (a black
border), and there the likelihood of a narrower and narrower Gaussian grows without bound: what it gains says nothing
about the images, and training ends in infinities (Mattei & Frellsen 2018).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.config import LikelihoodConfig
from vae_jax.errors import UserError
from vae_jax.layout import Images, to_features
from vae_jax.likelihoods.base import Likelihood, Outputs, sum_pixels
from vae_jax.likelihoods.bernoulli import pixel_mean
from vae_jax.registry import lookup

FLOOR = 1 / 510  # half a grey level: nothing finer is in the images
TREATMENTS = ("grey", "dequantized")
REASON = "where all pixels are 0 or 1 a learned variance falls to its floor"


def gaussian(config: LikelihoodConfig, image_shape: tuple[int, int, int]) -> Likelihood:
    """Independent Gaussian pixels.

    Raises:
        UserError: if `config.variance` is unknown, or `config.scale` is below what a learned one can be.
    """
    return lookup(VARIANCES, config.variance, "likelihood.variance")(config)


def fixed(config: LikelihoodConfig) -> Likelihood:
    """The standard deviation is `config.scale`: up to a constant the squared error, divided by 2·scale²."""
    return Likelihood(
        1,
        lambda params, outputs, images: gaussian_log_prob(outputs, jnp.asarray(math.log(config.scale)), images),
        lambda params, outputs: pixel_mean(outputs),
        measure="density",
    )


def shared(config: LikelihoodConfig) -> Likelihood:
    """One learned standard deviation for all pixels, which starts at `config.scale`: the σ-VAE (Rybkin et al. 2021)."""
    start = _raw(config.scale)

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


def pixel(config: LikelihoodConfig) -> Likelihood:
    """Each pixel's own standard deviation, from the decoder (Kingma & Welling 2013, appendix C.2).

    The decoder's second number is added to an offset, so that training starts near `config.scale`.
    """
    start = _raw(config.scale)

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
