"""The learning rate's schedules."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from vae_jax.config import TrainConfig


def _steps(config: TrainConfig, epoch: int) -> int:
    """Steps left after the warm-up in a run whose epochs have `epoch` steps."""
    return max(1, config.epochs * epoch - config.warmup_steps)


STAGES = 8  # of the schedule "burda"; the last one has no end

# Each gives the schedule after the warm-up, from the configuration and the steps in an epoch.
SCHEDULES: dict[str, Callable[[TrainConfig, int], optax.Schedule]] = {
    "constant": lambda config, epoch: optax.constant_schedule(config.learning_rate),
    "cosine": lambda config, epoch: optax.cosine_decay_schedule(config.learning_rate, _steps(config, epoch)),
    "linear": lambda config, epoch: optax.linear_schedule(config.learning_rate, 0.0, _steps(config, epoch)),
    "exponential": lambda config, epoch: optax.exponential_decay(config.learning_rate, epoch, config.decay_rate),
    # Burda et al. 2016, section 5: 3^i epochs at the learning rate times 10^(-i/7); the paper has i from 0 to 7.
    "burda": lambda config, epoch: optax.join_schedules(
        [optax.constant_schedule(config.learning_rate * 10 ** (-stage / 7)) for stage in range(STAGES)],
        [epoch * (3 ** (stage + 1) - 1) // 2 for stage in range(STAGES - 1)],
    ),
}
ENDING = ("cosine", "linear")  # these depend on how many epochs there will be


def schedule(config: TrainConfig, epoch: int) -> optax.Schedule:
    """The learning rate by the step, for a run whose epochs have `epoch` steps."""
    rate = SCHEDULES[config.schedule](config, epoch)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [config.warmup_steps])
    # In the precision that is set: optax would divide whole numbers in single precision.
    return lambda count: rate(jnp.asarray(count, float))
