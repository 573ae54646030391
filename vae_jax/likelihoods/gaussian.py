"""The Gaussian likelihood, its variance fixed, learned once, or the decoder's for each pixel.

Means are sigmoids of the decoder's output: pixels lie in [0, 1], so a mean outside would never be right, and a picture
needs no clipping. With a fixed variance this is the squared error that a plain autoencoder here minimises. For real
numbers the means are the decoder's output itself.

Learned standard deviations are FLOOR + exp(s) and not exp(s). Many pixels are the same in every image (a black
border), and there a narrower and narrower Gaussian gains likelihood without bound. That gain says nothing about the
images, and training ends in infinities (Mattei & Frellsen 2018). The unit of real numbers is known from `scale` only:
their floor is a thousandth of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.blocks.tiles import Images, to_features
from vae_jax.errors import UserError
from vae_jax.likelihoods.base import Likelihood, Outputs, sum_pixels
from vae_jax.links import LINKS
from vae_jax.options import one_of
from vae_jax.shapes import Shapes

FLOOR = 1 / 510  # half a grey level: nothing finer is in the images
OVER = ("levels", "reals")
LEARNED: dict[str, Any] = {
    "treatments": ("grey", "dequantized"),
    "reason": "where all pixels are 0 or 1 a learned variance falls to its floor",
    "measure": "density",
    "over": OVER,
}


@dataclass(frozen=True)
class GaussianOptions:
    """Of gaussian.

    Attributes:
        variance: fixed, shared (one for all pixels, learned) or pixel (one for each, from the decoder).
        scale: the standard deviation, or its start if it is learned; grey levels are 0 to 1, real numbers in their
            own unit.
    """

    variance: Annotated[str, one_of("fixed", "shared", "pixel")] = "fixed"
    scale: Annotated[float, "[0.001, 1000]"] = 0.1


def gaussian(options: GaussianOptions, shapes: Shapes) -> Likelihood:
    """Independent Gaussian pixels.

    Raises:
        UserError: if `options.scale` is below the floor of a learned one.
    """
    return VARIANCES[options.variance](options, shapes.support)


def fixed(options: GaussianOptions, support: str) -> Likelihood:
    """The standard deviation is `options.scale`: up to a constant the squared error, divided by 2·scale²."""
    link, log_scale = LINKS[support], math.log(options.scale)
    return Likelihood(
        1,
        lambda params, outputs, images: gaussian_log_prob(outputs, jnp.asarray(log_scale), images, link),
        lambda params, outputs: link(outputs),
        measure="density",
        over=OVER,
    )


def shared(options: GaussianOptions, support: str) -> Likelihood:
    """One learned standard deviation for all pixels, from `options.scale` on: the σ-VAE (Rybkin et al. 2021)."""
    link, floor = LINKS[support], _floor(options.scale, support)
    start = _raw(options.scale, floor)

    def init(key: Key[Array, ""]) -> PyTree:
        return {"log_scale": jnp.full((), start, float)}

    return Likelihood(
        1,
        lambda params, outputs, images: gaussian_log_prob(outputs, floored(params["log_scale"], floor), images, link),
        lambda params, outputs: link(outputs),
        init,
        **LEARNED,
    )


def pixel(options: GaussianOptions, support: str) -> Likelihood:
    """One standard deviation for each pixel, from the decoder (Kingma & Welling 2013, appendix C.2).

    The decoder's second number is added to an offset, so that training starts near `options.scale`.
    """
    link, floor = LINKS[support], _floor(options.scale, support)
    start = _raw(options.scale, floor)

    def log_prob(params: PyTree, outputs: Outputs, images: Images) -> Float[Array, " batch"]:
        means, raw = jnp.split(outputs, 2, -1)
        return gaussian_log_prob(means, floored(raw + start, floor), images, link)

    return Likelihood(2, log_prob, lambda params, outputs: link(jnp.split(outputs, 2, -1)[0]), **LEARNED)


VARIANCES = {"fixed": fixed, "shared": shared, "pixel": pixel}


def gaussian_log_prob(
    outputs: Images,
    log_scale: Images | Float[Array, ""],
    images: Images,
    link: Callable[[Array], Array] = LINKS["levels"],
) -> Float[Array, " batch"]:
    """log p(x|z) of independent Gaussian pixels with means link(outputs), in nats per image, summed over pixels.

    `log_scale` is the logarithm of the standard deviation, one for each pixel or one for all.
    """
    outputs, images = to_features(outputs), to_features(images)
    log_scale = to_features(log_scale) if log_scale.ndim else log_scale
    normal = (images - link(outputs)) * jnp.exp(-log_scale)
    return sum_pixels(-0.5 * jnp.square(normal) - log_scale - 0.5 * math.log(2 * math.pi))


def floored(raw: Float[Array, "*shape"], floor: float) -> Float[Array, "*shape"]:
    """log(floor + exp(raw)), the logarithm of a scale that neither falls to `floor` nor loses its gradient there."""
    return jnp.logaddexp(raw, jnp.full_like(raw, math.log(floor)))


def _floor(scale: float, support: str) -> float:
    return FLOOR if support == "levels" else scale / 1000


def _raw(scale: float, floor: float) -> float:
    """The start of a learned scale: the inverse of `floored`."""
    if scale <= floor:
        raise UserError(
            f"likelihood.scale: expected more than half a grey level, {FLOOR:.3g}, if it is learned; found {scale}"
        )
    return math.log(scale - floor)
