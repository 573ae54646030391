"""Importance-weighted bounds: several samples of z an image, weighted by w = p(x|z)·p(z) / q(z|x)."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.nn import logsumexp, softmax

from vae_jax.errors import UserError
from vae_jax.objectives.base import Around, Terms, check_gradient
from vae_jax.options import TRACED, one_of

FLOOR = 1e-20  # keeps a weight's gradient from being 0; float32 does not see it beside 1


@dataclass(frozen=True)
class SamplesOptions:
    """Of an importance-weighted bound.

    Attributes:
        samples: k, of z for each image, or in each group of samples if there are groups.
    """

    samples: Annotated[int, "[1, 1000000]"] = 5


@dataclass(frozen=True)
class IWAEOptions(SamplesOptions):
    """Of iwae.

    Attributes:
        gradient: standard; stl (sticking the landing: without the score of q) or dreg (doubly reparameterized).
    """

    gradient: Annotated[str, one_of("standard", "stl", "dreg")] = "standard"


@dataclass(frozen=True)
class PIWAEOptions(SamplesOptions):
    """Of piwae.

    Attributes:
        groups: M, of samples, averaged over.
    """

    groups: Annotated[int, "[1, 1000000]"] = 4


@dataclass(frozen=True)
class MIWAEOptions(IWAEOptions, PIWAEOptions):
    """Of miwae."""


@dataclass(frozen=True)
class CIWAEOptions(SamplesOptions):
    """Of ciwae.

    Attributes:
        elbo_weight: of the ELBO, between 0 (IWAE) and 1 (ELBO).
    """

    elbo_weight: Annotated[float, "[0, 1]", TRACED] = 0.5


def iwae(key, model, images, options: IWAEOptions) -> Terms:
    """−log (1/k Σ w), in nats per image (Burda et al. 2016, equation 8); weights per image, over its samples.

    Gradient stl leaves out the score of q (Roeder et al. 2017, section 6.3), which is biased for k > 1; dreg is the
    unbiased doubly reparameterized gradient (Tucker et al. 2019, equation 8).
    """
    return _bound(key, model, images, options, groups=1)


def miwae(key, model, images, options: MIWAEOptions) -> Terms:
    """The mean over M groups of the IWAE bound of k samples each (Rainforth et al. 2018, equation 8)."""
    return _bound(key, model, images, options, groups=options.groups)


def piwae(key, model, images, options: PIWAEOptions) -> Terms:
    """IWAE of all M·k samples for the decoder and the prior, MIWAE for the posterior; the loss is IWAE's.

    (Rainforth et al. 2018, section 5.)
    """
    heads = model.encode(images)
    total = options.groups * options.samples
    z, log_q, weigh = _redirect(*model.sample(key, heads, total))
    log_w, parts = _weigh(model, images, z, log_q)
    within = softmax(_grouped(log_w, options.groups), 1).reshape(log_w.shape) / options.groups
    loss = jnp.log(total) - logsumexp(log_w, 0)
    return {"loss": jax.lax.stop_gradient(loss) + weigh(log_w, softmax(log_w, 0), within), **parts}


def ciwae(key, model, images, options: CIWAEOptions) -> Terms:
    """−β·ELBO − (1 − β)·IWAE, β being `objective.elbo_weight` (Rainforth et al. 2018, equation 12)."""
    log_w, parts = _weigh_draw(model.draw(key, images, options.samples))
    bound = logsumexp(log_w, 0) - jnp.log(options.samples)
    return {"loss": -options.elbo_weight * log_w.mean(0) - (1 - options.elbo_weight) * bound, **parts}


def is_dreg(options: IWAEOptions) -> bool:
    """Whether the gradient weighs the samples' gradients one by one."""
    return options.gradient == "dreg"


def check_iwae(options: IWAEOptions, around: Around) -> None:
    """Refuses a gradient that needs an unknown q(z|x), and a posterior whose samples are all the same."""
    check_samples(options, around)
    check_gradient(options.gradient, around)


def check_samples(options: SamplesOptions, around: Around) -> None:
    """Refuses a posterior whose samples are all the same.

    Raises:
        UserError: naming the posterior.
    """
    if around.posterior.single:
        raise UserError(
            f"objective.name: expected vae or another with one sample an image with {around.q}, whose samples are all "
            f"the same; found {type(options).__name__.removesuffix('Options').lower()}"
        )


def _bound(key, model, images, options, groups) -> Terms:
    weigh = None
    if options.gradient == "standard":
        log_w, parts = _weigh_draw(model.draw(key, images, groups * options.samples))
    else:
        heads = model.encode(images)
        z, log_q = model.sample(key, heads, groups * options.samples)
        if options.gradient == "dreg":
            z, log_q, weigh = _redirect(z, log_q)
        log_w, parts = _weigh(model, images, z, model.log_posterior(z, heads))
    loss = jnp.log(options.samples) - logsumexp(_grouped(log_w, groups), 1).mean(0)
    if weigh is not None:
        weights = softmax(_grouped(log_w, groups), 1).reshape(log_w.shape)
        loss = jax.lax.stop_gradient(loss) + weigh(log_w, weights / groups, jnp.square(weights) / groups)
    return {"loss": loss, **parts}


def _weigh(model, images, z, log_q):
    """log w of samples z, (samples, batch), and the terms but the loss."""
    return _parts(model.log_likelihood(images, model.decode(z)), log_q, model.log_prior(z))


def _weigh_draw(draw):
    """The same of a draw of the model."""
    return _parts(draw.log_px, draw.log_q, draw.log_pz)


def _parts(log_px, log_q, log_pz):
    reconstruction, kl = -log_px, log_q - log_pz
    return -reconstruction - kl, {"reconstruction": reconstruction.mean(0), "kl": kl.mean(0)}


def _grouped(log_w, groups):
    return log_w.reshape(groups, -1, log_w.shape[1])


@jax.custom_vjp
def _tag(z, log_q):
    return z, log_q, jnp.zeros_like(log_q), jnp.zeros_like(log_q)


def _tag_bwd(_, cotangents):
    z, log_q, weight, weight_of_q = cotangents
    factor = weight_of_q / jnp.where(weight == 0, 1, weight)  # both are 0 if the image's loss weighs nothing
    return z * factor.reshape(*factor.shape, *(1,) * (z.ndim - factor.ndim)), log_q * factor


_tag.defvjp(lambda z, log_q: (_tag(z, log_q), None), _tag_bwd)


def _redirect(z, log_q):
    """Samples whose gradient may have other weights than the decoder's and the prior's.

    Returns z and log q(z|x), for log w, and a function (log w, weights, weights of q), all (samples, batch), -> a loss
    of value 0, (batch,). Its gradient is −Σ weights·∇log w, but the part through these samples has the weights of q. A
    sample's weight reaches `_tag` as the gradient of the first of two zeros, its weight of q as that of the second, so
    that one pass through the decoder serves both.
    """
    z, log_q, zero, zero_of_q = _tag(z, log_q)

    def loss(log_w, weights, weights_of_q):
        weights, weights_of_q, value = jax.lax.stop_gradient((weights + FLOOR, weights_of_q, log_w))
        return -(weights * (log_w - value + zero) + weights_of_q * zero_of_q).sum(0)

    return z, log_q, loss
