"""Discretized logistics: distributions of the 256 grey levels themselves, and mixtures of them.

The mass of a level is the logistic's between the middles to its neighbours; the darkest and the brightest level also
get all mass beyond them (Kingma et al. 2016; Salimans et al. 2017, equation 2). Locations and scales are in the units
of the images, in which a level is 1/255; locations are sigmoids of the decoder's output, within [0, 1].
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vae_jax.blocks.tiles import Images, to_features
from vae_jax.likelihoods.base import Likelihood, Outputs, sum_pixels
from vae_jax.likelihoods.gaussian import floored
from vae_jax.shapes import Shapes

LEVEL = 1 / 255
# A mass is at most 1, so the floor serves the arithmetic only: it is small enough for one level to get all but 1e-7 of
# the mass, and large enough for x − μ, divided by it, to keep three digits in float32.
FLOOR = LEVEL / 32
START = math.log(0.1)  # the logarithm of a scale if the decoder gives 0: neither one level nor all of them
OF_LEVELS: dict[str, Any] = {
    "treatments": ("grey",),
    "reason": "it is a distribution of the 256 grey levels themselves",
    "measure": "levels",
    "over": ("levels",),
}


@dataclass(frozen=True)
class MixtureOptions:
    """Of discretized_logistic_mixture.

    Attributes:
        components: of the mixture, for each pixel.
    """

    components: Annotated[int, "[1, 1024]"] = 5


def discretized_logistic(options: None, shapes: Shapes) -> Likelihood:
    """Independent pixels; the decoder gives the logit of a pixel's location and the logarithm of its scale."""

    def log_prob(params: PyTree, outputs: Outputs, images: Images) -> Float[Array, " batch"]:
        location, raw = jnp.split(to_features(outputs), 2, 1)
        return sum_pixels(log_mass(to_features(images), location, raw))

    def mean(params: PyTree, outputs: Outputs) -> Images:
        return level_mean(*jnp.split(outputs, 2, -1))

    return Likelihood(2, log_prob, mean, **OF_LEVELS)


def discretized_logistic_mixture(options: MixtureOptions, shapes: Shapes) -> Likelihood:
    """Independent pixels, each a mixture of `options.components` discretized logistics.

    The decoder gives first the logits of the components' weights, then their locations, then their scales. Every
    channel has weights of its own, and channels are independent given z. Salimans et al. (2017, section 2.2) share the
    weights, and let red move green's location and both move blue's.
    """
    components = options.components

    def log_prob(params: PyTree, outputs: Outputs, images: Images) -> Float[Array, " batch"]:
        x = to_features(images)
        tiles, channels, *rest = x.shape
        parts = to_features(outputs).reshape(tiles, 3, components, channels, *rest)
        weights, location, raw = parts[:, 0], parts[:, 1], parts[:, 2]
        log_masses = log_mass(jnp.broadcast_to(x[:, None], location.shape), location, raw)
        return sum_pixels(jax.nn.logsumexp(jax.nn.log_softmax(weights, 1) + log_masses, 1))

    def mean(params: PyTree, outputs: Outputs) -> Images:
        parts = outputs.reshape(*outputs.shape[:3], 3, components, -1)
        weights, location, raw = parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2, :, :]
        return (jax.nn.softmax(weights, -2) * level_mean(location, raw)).sum(-2)

    return Likelihood(3 * components, log_prob, mean, **OF_LEVELS)


def log_mass(
    x: Float[Array, "*shape"], location: Float[Array, "*shape"], raw: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """log P(x) of grey levels x = 0, 1/255, …, 1, in nats.

    With a and b the ends of a level's interval in units of the scale,

        log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − exp(b − a))

    in which nothing underflows, however far the level is. (The difference of two rounded sigmoids would be 0 there;
    Salimans et al.'s code takes the density in its place.)

    Args:
        x: grey levels in [0, 1].
        location: from the decoder, before the sigmoid.
        raw: from the decoder; raw + START is the logarithm of the scale above its floor.
    """
    log_scale = floored(raw + START, FLOOR)
    centered, inverse = x - jax.nn.sigmoid(location), jnp.exp(-log_scale)
    below = jnp.where(x < 1 - LEVEL / 2, jax.nn.log_sigmoid((centered + LEVEL / 2) * inverse), 0)
    above = jnp.where(x > LEVEL / 2, jax.nn.log_sigmoid((LEVEL / 2 - centered) * inverse), 0)
    inner = jnp.abs(x - 0.5) < 0.5 - LEVEL / 2
    return below + above + jnp.where(inner, _log_one_minus_exp(math.log(LEVEL) - log_scale), 0)


def _log_one_minus_exp(log_width: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 − exp(−w)) from log w, where w itself may underflow."""
    width = jnp.exp(log_width)
    narrow = width < 1e-3
    # The branch that is not chosen must be finite too, or its gradient, times 0, is NaN.
    exact = jnp.log(-jnp.expm1(-jnp.where(narrow, 1.0, width)))
    return jnp.where(narrow, log_width - width / 2 + jnp.square(width) / 24, exact)


def level_mean(location: Float[Array, "*shape"], raw: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """E[x|z] without rounding to grey levels, which is less than half a level from the exact one.

    E[clip(L, 0, 1)] = ∫₀¹ P(L > t) dt = s·(softplus(μ/s) − softplus((μ − 1)/s)), for a logistic L.

    Args:
        location: as in `log_mass`.
        raw: as in `log_mass`.
    """
    # Beyond a scale of 100 the mean is 1/2 to less than half a level, and the difference would be rounding error.
    scale = jnp.exp(jnp.minimum(floored(raw + START, FLOOR), math.log(100)))
    mu = jax.nn.sigmoid(location)
    return scale * (jax.nn.softplus(mu / scale) - jax.nn.softplus((mu - 1) / scale))
