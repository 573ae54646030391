"""The VAE's objective, and its variants with other weights of the KL."""

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp

from vae_jax.errors import UserError
from vae_jax.objectives.base import Around, Terms, check_gradient
from vae_jax.options import TRACED, one_of, only


@dataclass(frozen=True)
class KLOptions:
    """Of an objective with a KL term.

    Attributes:
        kl: analytic, sampled (one sample of log q(z|x) − log p(z)) or auto: analytic if there is a closed form.
    """

    kl: Annotated[str, one_of("auto", "analytic", "sampled")] = "auto"


@dataclass(frozen=True)
class VAEOptions(KLOptions):
    """Of vae.

    Attributes:
        beta: weight of the KL term in nats; 1 is the ELBO, others the β-VAE.
        gradient: standard or stl (sticking the landing: without the score of q).
        schedule: of beta: constant, warmup (linear from 0) or cyclical (the same again and again).
        warmup_epochs: of schedule warmup.
        cycle_epochs: of schedule cyclical, the length of a cycle …
        cycle_ratio: … and the part of it in which beta rises.
        free_bits: nats of KL per dimension, averaged over a batch, that cost nothing.
    """

    beta: Annotated[float, "[0, inf)", TRACED] = 1.0
    gradient: Annotated[str, one_of("standard", "stl")] = "standard"
    schedule: Annotated[str, one_of("constant", "warmup", "cyclical")] = "constant"
    warmup_epochs: Annotated[float, "(0, inf)", only(schedule="warmup"), TRACED] = 10.0
    cycle_epochs: Annotated[float, "(0, inf)", only(schedule="cyclical"), TRACED] = 10.0
    cycle_ratio: Annotated[float, "(0, 1]", only(schedule="cyclical"), TRACED] = 0.5
    free_bits: Annotated[float, "[0, inf)"] = 0.0


@dataclass(frozen=True)
class CapacityOptions(KLOptions):
    """Of capacity_vae.

    Attributes:
        capacity: the KL in nats that it grows to …
        capacity_epochs: … over so many epochs …
        capacity_weight: … and the weight of the distance from it.
    """

    capacity: Annotated[float, "[0, inf)", TRACED] = 25.0
    capacity_epochs: Annotated[float, "(0, inf)", TRACED] = 50.0
    capacity_weight: Annotated[float, "[0, inf)", TRACED] = 100.0


def vae(key, model, images, options: VAEOptions) -> Terms:
    """−log p(x|z) + β·KL(q(z|x) ‖ p(z)), in nats per image.

    β = 1 gives −ELBO (Kingma & Welling 2013, equation 10, one sample of z; with `kl: sampled` equation 6); other values
    the β-VAE (Higgins et al. 2017, equation 4). β may follow a schedule. With free bits the KL costs
    Σ_j max(λ, mean over the batch of KL_j) in training (Kingma et al. 2016, equation 15). With gradient stl the sampled
    KL's gradient has no score of q (Roeder et al. 2017, equation 8).
    """
    draw, reconstruction, kl = _parts(key, model, images, options.kl, options.gradient)
    cost = kl
    if options.free_bits:  # in training; in evaluation the cost is every image's KL
        bits = jnp.maximum(options.free_bits, draw.kl_by_dimension.mean(0)).sum()
        cost = jnp.where(jnp.isinf(model.epoch), kl, bits)
    beta = options.beta * SCHEDULES[options.schedule](options, model.epoch)
    terms = {"loss": _with_own(draw, reconstruction + beta * cost), "reconstruction": reconstruction, "kl": kl}
    return terms | draw.figures


def capacity_vae(key, model, images, options: CapacityOptions) -> Terms:
    """−log p(x|z) + γ·|KL(q(z|x) ‖ p(z)) − C|, C growing linearly (Burgess et al. 2018, equation 8); nats per image."""
    draw, reconstruction, kl = _parts(key, model, images, options.kl)
    capacity = options.capacity * jnp.minimum(1.0, model.epoch / options.capacity_epochs)
    loss = reconstruction + options.capacity_weight * jnp.abs(kl - capacity)
    return {"loss": _with_own(draw, loss), "reconstruction": reconstruction, "kl": kl} | draw.figures


def _parts(key, model, images, kl, gradient="standard"):
    """A draw, its −log p(x|z), and its KL in closed form or from the sample."""
    draw = model.draw(key, images)
    if gradient == "stl":
        return draw, -draw.log_px, model.log_posterior(draw.z, draw.heads) - draw.log_pz
    if kl == "sampled" or draw.kl is None:
        return draw, -draw.log_px, draw.log_q - draw.log_pz
    return draw, -draw.log_px, draw.kl


def _with_own(draw, loss):
    """The loss plus the posterior's term."""
    return loss if draw.cost is None else loss + draw.cost


def _cyclical(options, epoch):
    within = jnp.where(jnp.isinf(epoch), options.cycle_epochs, epoch % options.cycle_epochs)
    return jnp.minimum(1.0, within / (options.cycle_ratio * options.cycle_epochs))


# Factors of β by epoch; 1 in the end.
SCHEDULES = {
    "constant": lambda options, epoch: 1.0,
    # Bowman et al. 2016, section 3.1; Sønderby et al. 2016, equation 8: linear from 0.
    "warmup": lambda options, epoch: jnp.minimum(1.0, epoch / options.warmup_epochs),
    # Fu et al. 2019, equations 4 and 5: rising in the first part of every cycle.
    "cyclical": _cyclical,
}


def check_kl(options: KLOptions, around: Around) -> None:
    """Refuses an analytic KL if there is no closed form.

    Raises:
        UserError: naming the option and the parts.
    """
    if options.kl == "analytic" and not (around.closed or around.posterior.decodes):
        raise UserError(
            f"objective.kl: expected sampled or auto with {around.q} and {around.p}, whose KL has no closed form; "
            f"found analytic"
        )


def check_vae(options: VAEOptions, around: Around) -> None:
    """Refuses options that make no sense together, or with these parts.

    Raises:
        UserError: naming the option and the reason.
    """
    check_kl(options, around)
    if around.posterior.single and around.closed and around.closed is around.posterior.kl.get("uniform"):
        for name, value, usual in (("beta", options.beta, 1.0), ("schedule", options.schedule, "constant")):
            if value != usual:
                raise UserError(
                    f"objective.{name}: expected {usual} with {around.q} and {around.p}, whose KL is the same for "
                    f"every image, so that its weight changes nothing in training; found {value}"
                )
    stl = options.gradient == "stl"
    if options.kl == "analytic" and stl:
        raise UserError(
            "objective.gradient: expected standard with an analytic KL, which has no score of q to leave out; found stl"
        )
    by_dimension = around.closed and around.closed.by_dimension
    if options.free_bits and not (by_dimension and options.kl != "sampled" and not stl):
        combination = f"{around.q}, {around.p}, objective.kl {options.kl} and objective.gradient {options.gradient}"
        raise UserError(
            f"objective.free_bits: expected 0 with {combination}: it needs each dimension's KL in closed form; found "
            f"{options.free_bits}"
        )
    check_gradient(options.gradient, around)
