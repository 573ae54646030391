"""The VAE's objective, and its variants that weigh the KL otherwise."""

import jax
import jax.numpy as jnp

from vae_jax.objectives.base import Terms


def vae(key, model, images, config) -> Terms:
    """−log p(x|z) + β·KL(q(z|x) ‖ p(z)), in nats per image.

    β = 1 gives −ELBO (Kingma & Welling 2013, equation 10, one sample of z; with `kl: sampled` equation 6); others the
    β-VAE (Higgins et al. 2017, equation 4). β may follow a schedule. With free bits the KL costs
    Σ_j max(λ, mean over the batch of KL_j) in training (Kingma et al. 2016, equation 15). With gradient stl the sampled
    KL's gradient has no score of q (Roeder et al. 2017, equation 8).
    """
    draw, reconstruction, kl = _parts(key, model, images, config)
    cost = kl
    if config.free_bits:  # in training; evaluation gives every image its own KL
        bits = jnp.maximum(config.free_bits, draw.kl_by_dimension.mean(0)).sum()
        cost = jnp.where(jnp.isinf(model.epoch), kl, bits)
    # Kept from being simplified away where it is 1: so a member of a sweep is bit for bit its single run.
    beta = jax.lax.optimization_barrier(jnp.asarray(config.beta, float))
    beta = beta * SCHEDULES[config.schedule](config, model.epoch)
    return {"loss": _with_own(draw, reconstruction + beta * cost), "reconstruction": reconstruction, "kl": kl}


def capacity_vae(key, model, images, config) -> Terms:
    """−log p(x|z) + γ·|KL(q(z|x) ‖ p(z)) − C|, C growing linearly (Burgess et al. 2018, equation 8); nats per image."""
    draw, reconstruction, kl = _parts(key, model, images, config)
    capacity = config.capacity * jnp.minimum(1.0, model.epoch / config.capacity_epochs)
    loss = reconstruction + config.capacity_weight * jnp.abs(kl - capacity)
    return {"loss": _with_own(draw, loss), "reconstruction": reconstruction, "kl": kl}


def _parts(key, model, images, config):
    """A draw, −log p(x|z) of its sample and the KL, in its closed form or from the sample."""
    draw = model.draw(key, images)
    if config.gradient == "stl":
        return draw, -draw.log_px, model.log_posterior(draw.z, draw.heads) - draw.log_pz
    if config.kl == "sampled" or draw.kl is None:
        return draw, -draw.log_px, draw.log_q - draw.log_pz
    return draw, -draw.log_px, draw.kl


def _with_own(draw, loss):
    """The loss with what the posterior adds to it."""
    return loss if draw.cost is None else loss + draw.cost


def _cyclical(config, epoch):
    within = jnp.where(jnp.isinf(epoch), config.cycle_epochs, epoch % config.cycle_epochs)
    return jnp.minimum(1.0, within / (config.cycle_ratio * config.cycle_epochs))


# What β is multiplied with, by epoch; 1 in the end.
SCHEDULES = {
    "constant": lambda config, epoch: 1.0,
    # Bowman et al. 2016, section 3.1; Sønderby et al. 2016, equation 8: linear from 0.
    "warmup": lambda config, epoch: jnp.minimum(1.0, epoch / config.warmup_epochs),
    # Fu et al. 2019, equations 4 and 5: rising in the first part of every cycle.
    "cyclical": _cyclical,
}
