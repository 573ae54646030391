"""The continuous Bernoulli (Loaiza-Ganem & Cunningham 2019): a density on [0, 1], which the Bernoulli is not.

With the logit l of λ, the paper's C(λ) λˣ (1−λ)¹⁻ˣ (equations 5 to 7) is the exponential family
p(x) = exp(l·x) · l / (eˡ − 1), or with u = l/2

    log p(x) = l·(x − 1/2) − log(sinh u / u)

in which the removable singularity at λ = 1/2 is at u = 0, and no part is large unless the sum is.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax.blocks.tiles import Images, to_features
from vae_jax.likelihoods.base import Likelihood, sum_pixels
from vae_jax.shapes import Shapes

# log(sinh u / u) = Σ 2²ⁿ B₂ₙ u²ⁿ / (2n·(2n)!), n = 1, 2, …; for |u| < 1/2 the rest is below 3e-14.
SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575)


def continuous_bernoulli(options: None, shapes: Shapes) -> Likelihood:
    """Independent continuous Bernoulli pixels; the decoder gives logits."""
    return Likelihood(
        1,
        lambda params, logits, images: continuous_bernoulli_log_prob(logits, images),
        lambda params, logits: continuous_bernoulli_mean(logits),
        treatments=("grey", "dequantized"),
        reason="at pixels that are all 0 or 1 its density has no bound",
        measure="density",
        over=("levels", "reals"),
        interval=(0.0, 1.0),
    )


def continuous_bernoulli_log_prob(logits: Images, images: Images) -> Float[Array, " batch"]:
    """log p(x|z) of independent continuous Bernoulli pixels, in nats per image, summed over pixels."""
    logits, images = to_features(logits), to_features(images)
    return sum_pixels(logits * (images - 0.5) - log_sinhc(logits / 2))


def continuous_bernoulli_mean(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """E[x|z], equation 8: 1/2 + (coth u − 1/u) / 2, the derivative of the family's log-normaliser."""
    u = logits / 2
    return 0.5 + 0.5 * jax.jvp(log_sinhc, (u,), (jnp.ones_like(u),))[1]


def log_sinhc(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(sinh u / u), with its derivative, at any u."""
    # The branch that is not chosen must be finite too, or its gradient, times 0, is NaN.
    small = jnp.abs(u) < 0.5
    square = jnp.square(jnp.where(small, u, 0))
    series = jnp.zeros_like(u)
    for coefficient in reversed(SERIES):
        series = (series + coefficient) * square
    far = jnp.where(small, 1.0, jnp.abs(u))
    return jnp.where(small, series, far + jnp.log1p(-jnp.exp(-2 * far)) - jnp.log(2 * far))
