"""Bounds for samples without a gradient, as bits, which estimate the gradient from the score of q.

An estimator gives the gradient of E f(b) with respect to the bits' logits, for b ~ q and a cost f. f is differentiated
as usual with respect to its other arguments. The estimate reaches the encoder by a term of value 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp, sigmoid, softplus
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.blocks.perceptron import init_perceptron, perceptron
from vae_jax.errors import UserError
from vae_jax.objectives.base import Around, BoundModel, Draw, Images, Terms
from vae_jax.objectives.importance import SamplesOptions
from vae_jax.objectives.vae import KLOptions, check_kl
from vae_jax.options import one_of
from vae_jax.posteriors import Heads

Costs = Float[Array, "*samples batch"]
Bits = Float[Array, "*lead latent"]
Logits = Float[Array, "*lead latent"]
Control = Callable[[Logits], Array]


@dataclass(frozen=True)
class ScoreOptions(KLOptions):
    """Of score_vae.

    Attributes:
        gradient: reinforce (without a baseline), loo (a sample's baseline is the mean of the others) or disarm
            (antithetic pairs of bits).
        samples: of z for each image in training; with disarm they are pairs.
    """

    gradient: Annotated[str, one_of("reinforce", "loo", "disarm")] = "loo"
    samples: Annotated[int, "[1, 1000]"] = 2

    def __post_init__(self):
        if self.gradient == "loo" and self.samples < 2:
            raise UserError(f"objective.samples: expected at least 2 with gradient loo; found {self.samples}")
        if self.gradient == "disarm" and self.samples % 2:
            raise UserError(f"objective.samples: expected an even number with gradient disarm; found {self.samples}")


@dataclass(frozen=True)
class RelaxOptions(KLOptions):
    """Of relax_vae.

    Attributes:
        samples: of z for each image in training.
        hidden: units of the control network's hidden layer.
    """

    samples: Annotated[int, "[1, 1000]"] = 2
    hidden: Annotated[int, "[1, 65536]"] = 32


@dataclass(frozen=True)
class VIMCOOptions(SamplesOptions):
    """Of vimco."""

    samples: Annotated[int, "[2, 1000]"] = 5


def score_vae(key: Key[Array, ""], model: BoundModel, images: Images, options: ScoreOptions) -> Terms:
    """−ELBO, in nats per image, with an unbiased gradient for a posterior whose samples have none.

    (REINFORCE: Williams 1992; its leave-one-out baseline: Kool et al. 2019; DisARM: Dong et al. 2020.) The loss is the
    mean over an image's samples; out of training it is of one sample.
    """
    if not model.train:
        return _terms(model.draw(key, images), options.kl)[0]
    if options.gradient != "disarm":
        draw = model.draw(key, images, options.samples)
        terms, costs = _terms(draw, options.kl)
        weights = leave_one_out(costs) if options.gradient == "loo" else costs
        return terms | {"loss": terms["loss"] + of_scores(weights, draw.log_q).mean(0)}
    assert model.noise
    heads, u = model.encode(images), model.noise(key, (options.samples // 2, len(images)))
    draw = _draw_of(model, images, heads, jnp.concatenate([u, 1 - u]))
    terms, costs = _terms(draw, options.kl)
    pairs, logits = len(u), jnp.broadcast_to(heads["mu"], u.shape)
    gradient = disarm(costs[:pairs], costs[pairs:], draw.z[:pairs], draw.z[pairs:], logits)
    return terms | {"loss": terms["loss"] + of_gradient(gradient.mean(0), heads["mu"])}


def relax_vae(key: Key[Array, ""], model: BoundModel, images: Images, options: RelaxOptions) -> Terms:
    """−ELBO, in nats per image, with RELAX's unbiased gradient (Grathwohl et al. 2018).

    The control network is a small perceptron of the relaxed bits and the logits. A phase of its own trains it to make
    the gradient's variance small.
    """
    if not model.train:
        return _terms(model.draw(key, images), options.kl)[0]
    terms, gradient, logits = _relaxed(key, model, images, options)
    return terms | {"loss": terms["loss"] + of_gradient(gradient, logits)}


def fit_control(key: Key[Array, ""], model: BoundModel, images: Images, options: RelaxOptions) -> Terms:
    """The square of RELAX's gradient with respect to an image's logits.

    The gradient's mean does not depend on the control network, so its mean square is the variance but for a constant.
    """
    _, gradient, _ = _relaxed(key, model, images, options)
    return {"loss": jnp.square(gradient).sum(-1)}


def init_control(
    key: Key[Array, ""], options: RelaxOptions, shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> dict[str, PyTree]:
    """The control network, whose output starts as 0."""
    return {"control": init_perceptron(key, [2 * shape[-1], options.hidden, 1])}


def vimco(key: Key[Array, ""], model: BoundModel, images: Images, options: VIMCOOptions) -> Terms:
    """−log (1/K Σ w), in nats per image, with an unbiased gradient for a posterior whose samples have none.

    (VIMCO; Mnih & Rezende 2016.) w = p(x|z)·p(z) / q(z|x).
    """
    draw = model.draw(key, images, options.samples)
    kl = draw.log_q - draw.log_pz
    log_w = draw.log_px - kl
    loss = jnp.log(options.samples) - logsumexp(log_w, 0)
    if model.train:
        loss = loss - of_scores(vimco_weights(log_w), draw.log_q).sum(0)
    return {"loss": loss, "reconstruction": -draw.log_px.mean(0), "kl": kl.mean(0)} | _figures(draw)


def check_score(options: ScoreOptions, around: Around) -> None:
    """Refuses an analytic KL if there is no closed form, and antithetic pairs if z are no bits.

    Raises:
        UserError: naming the option and the posterior.
    """
    check_kl(options, around)
    if options.gradient == "disarm" and not _are_bits(around):
        raise UserError(
            f"objective.gradient: expected reinforce or loo with {around.q}, whose z are no bits; found disarm"
        )


def check_relax(options: RelaxOptions, around: Around) -> None:
    """Refuses an analytic KL if there is no closed form, and z that are no bits.

    Raises:
        UserError: naming the posterior.
    """
    check_kl(options, around)
    if not _are_bits(around):
        raise UserError(f"objective.name: expected score_vae with {around.q}, whose z are no bits; found relax_vae")


def leave_one_out(costs: Float[Array, "samples *any"]) -> Float[Array, "samples *any"]:
    """A sample's cost less the mean of the other samples', K/(K − 1)·(f − mean of all) (Kool et al. 2019)."""
    return (costs - costs.mean(0, keepdims=True)) * (len(costs) / (len(costs) - 1))


def of_scores(weights: Float[Array, "*any"], log_q: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Zeros with the gradient Σ weights·∇log q."""
    return lax.stop_gradient(weights) * (log_q - lax.stop_gradient(log_q))


def of_gradient(gradient: Logits, logits: Logits) -> Float[Array, "*any"]:
    """Zeros with this gradient with respect to the logits."""
    return (lax.stop_gradient(gradient) * (logits - lax.stop_gradient(logits))).sum(-1)


def disarm(
    costs: Float[Array, "*any"], antithetic_costs: Float[Array, "*any"], bits: Bits, antithetic: Bits, logits: Logits
) -> Logits:
    """DisARM's gradient (Dong et al. 2020), of bits u > 1 − p and the antithetic u < p of the same u.

    ½·(f(b) − f(b̃))·(b − b̃)·σ(|α|); b − b̃ is the paper's (−1)^b̃ where the two differ, and 0 elsewhere.
    """
    return ((costs - antithetic_costs) / 2)[..., None] * (bits - antithetic) * sigmoid(jnp.abs(logits))


def relax(
    costs: Float[Array, "samples *any"],
    u: Bits,
    v: Bits,
    logits: Logits,
    control: Control,
) -> Logits:
    """RELAX's gradient (Grathwohl et al. 2018), whose mean does not depend on the control c.

    (f(b) − c(z̃))·(b − p) + ∂c(z) − ∂c(z̃), z = α + logit u, b = 1 where z > 0, and z̃ a sample of z given b, by noise v
    (Tucker et al. 2017). With several samples the mean of the other samples' f − c is subtracted from a sample's.

    Args:
        costs: f(b).
        u: uniform noise that the bits are made of, (samples, *any, latent).
        v: further uniform noise.
        logits: α, shaped as u.
        control: z -> c(z), for every row by itself.
    """
    bits = (u > sigmoid(-logits)).astype(logits.dtype)

    def difference(logits: Logits) -> tuple[Array, Array]:
        conditioned = control(relaxed_given(bits, v, logits))
        return (control(logits + logit(u)) - conditioned).sum(), conditioned

    gradient, conditioned = jax.grad(difference, has_aux=True)(logits)
    weights = costs - conditioned
    weights = leave_one_out(weights) if len(costs) > 1 else weights
    return weights[..., None] * (bits - sigmoid(logits)) + gradient


def relaxed_given(bits: Bits, v: Bits, logits: Logits) -> Logits:
    """A sample of z = α + logit u, u uniform, given the bits z > 0, by other uniform noise v.

    With u = 1 − p + v·p where b = 1, and v·(1 − p) where b = 0 (Tucker et al. 2017), written so that nothing overflows.
    """
    above = softplus(logit(v) + softplus(logits))
    below = -softplus(-logit(v) + softplus(-logits))
    return jnp.where(bits > 0.5, above, below)


def logit(u: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """log(u/(1 − u))."""
    return jnp.log(u) - jnp.log1p(-u)


def vimco_weights(log_w: Float[Array, "samples *any"]) -> Float[Array, "samples *any"]:
    """L − L⁻ᵏ for each sample k: the bound, less the bound with the other samples' geometric mean for w_k.

    (Mnih & Rezende 2016, section 2.)
    """
    samples = len(log_w)
    log_w = log_w - log_w.max(0, keepdims=True)  # cancels in the differences, and keeps the sums precise
    means_of_rest = (log_w.sum(0, keepdims=True) - log_w) / (samples - 1)
    is_own = jnp.eye(samples, dtype=bool).reshape(samples, samples, *(1,) * (log_w.ndim - 1))
    shape = (samples, *log_w.shape)
    replaced = jnp.where(
        jnp.broadcast_to(is_own, shape), jnp.broadcast_to(means_of_rest, shape), jnp.broadcast_to(log_w[:, None], shape)
    )
    return logsumexp(log_w, 0, keepdims=True) - logsumexp(replaced, 0)


def _are_bits(around: Around) -> bool:
    codes = around.posterior.codes
    return codes is not None and codes.values == 2 and codes.shape == around.posterior.shape


def _draw_of(model: BoundModel, images: Images, heads: Heads, noise: PyTree) -> Draw:
    """A Draw like that of `BoundModel.draw`, from this noise, (samples, batch, …)."""
    assert model.transform
    samples = len(jax.tree.leaves(noise)[0])
    sample = model.transform(noise, jax.tree.map(lambda head: jnp.broadcast_to(head, (samples, *head.shape)), heads))
    outputs, kl = model.decode(sample.z), model.kl and model.kl(heads)
    log_px, log_pz = model.log_likelihood(images, outputs), model.log_prior(sample.z)
    return Draw(sample.z, sample.log_q, log_pz, log_px, kl, None, sample.cost, heads, outputs, sample.figures)


def _terms(draw: Draw, how: str) -> tuple[Terms, Costs]:
    """−ELBO and its parts, (batch,), and the samples' costs, whose mean it is, (*samples, batch)."""
    costs = -draw.log_px if draw.cost is None else draw.cost - draw.log_px
    parts = {"reconstruction": -_mean(draw.log_px), **_figures(draw)}
    if how != "sampled" and draw.kl is not None:
        return {"loss": _mean(costs) + draw.kl, "kl": draw.kl, **parts}, costs
    kl = draw.log_q - draw.log_pz
    costs = costs + kl
    return {"loss": _mean(costs), "kl": _mean(kl), **parts}, costs


def _figures(draw: Draw) -> Terms:
    return {name: _mean(figure) for name, figure in draw.figures.items()}


def _mean(array: Float[Array, "*samples batch"]) -> Float[Array, " batch"]:
    """The mean over the samples, if there is an axis of them."""
    return array.mean(0) if array.ndim == 2 else array


def _relaxed(key: Any, model: BoundModel, images: Images, options: RelaxOptions) -> tuple[Terms, Logits, Logits]:
    """The terms without the gradient's estimate, RELAX's gradient for the logits, (batch, latent), and the logits."""
    assert model.noise
    key, v_key = jax.random.split(key)
    lead = options.samples, len(images)
    heads, u, v = model.encode(images), model.noise(key, lead), model.noise(v_key, lead)
    terms, costs = _terms(_draw_of(model, images, heads, u), options.kl)
    logits = lax.stop_gradient(jnp.broadcast_to(heads["mu"], u.shape))

    def control(z: Logits) -> Float[Array, "samples batch"]:
        return perceptron(model.own["control"], jnp.concatenate([sigmoid(z), sigmoid(logits)], -1))[..., 0]

    gradient = relax(lax.stop_gradient(costs), u, v, logits, control)
    return terms, gradient.mean(0), heads["mu"]
