"""The learning rate's schedules."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from vae_jax.config import TrainConfig


def _steps(config: TrainConfig, epoch: int) -> int:
    """Steps left after the warm-up in a run whose epochs have `epoch` steps."""
    return max(1, config.epochs * epoch - config.warmup_steps)


STAGES = 8  # of the schedule "burda"; the last one has no end

# The schedule after the warm-up, from the configuration, its learning rate and the steps in an epoch.
SCHEDULES: dict[str, Callable[[TrainConfig, Array | float, int], optax.Schedule]] = {
    "constant": lambda config, rate, epoch: optax.constant_schedule(rate),
    "cosine": lambda config, rate, epoch: optax.cosine_decay_schedule(rate, _steps(config, epoch)),
    "linear": lambda config, rate, epoch: optax.linear_schedule(rate, 0.0, _steps(config, epoch)),
    "exponential": lambda config, rate, epoch: optax.exponential_decay(rate, epoch, config.decay_rate),
    # Burda et al. 2016, section 5: 3^i epochs at the learning rate times 10^(-i/7); the paper has i from 0 to 7.
    "burda": lambda config, rate, epoch: optax.join_schedules(
        [optax.constant_schedule(rate * 10 ** (-stage / 7)) for stage in range(STAGES)],
        [epoch * (3 ** (stage + 1) - 1) // 2 for stage in range(STAGES - 1)],
    ),
}
ENDING = ("cosine", "linear")  # these depend on the number of epochs


def schedule(config: TrainConfig, rate: Array | float, epoch: int) -> optax.Schedule:
    """The learning rate by the step, `rate` at its highest, for a run whose epochs have `epoch` steps."""
    by_step = SCHEDULES[config.schedule](config, rate, epoch)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, rate, config.warmup_steps)
        by_step = optax.join_schedules([warmup, by_step], [config.warmup_steps])
    # In the precision of jax's setting: optax would divide whole numbers in single precision.
    return lambda count: by_step(jnp.asarray(count, float))
