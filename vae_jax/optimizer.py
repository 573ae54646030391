"""The optimiser: Adam with a schedule and clipping, from the configuration."""

from collections.abc import Callable

import optax

from vae_jax.config import TrainConfig
from vae_jax.registry import lookup


def _exponential(config: TrainConfig, steps: int) -> optax.Schedule:
    return optax.exponential_decay(config.learning_rate, max(1, steps // config.epochs), config.decay_rate)


# Each gives the schedule after the warm-up, which takes `steps` steps.
SCHEDULES: dict[str, Callable[[TrainConfig, int], optax.Schedule]] = {
    "constant": lambda config, steps: optax.constant_schedule(config.learning_rate),
    "cosine": lambda config, steps: optax.cosine_decay_schedule(config.learning_rate, max(1, steps)),
    "linear": lambda config, steps: optax.linear_schedule(config.learning_rate, 0.0, max(1, steps)),
    "exponential": _exponential,
}


def build(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) as configured, for a run of `steps` steps.

    Raises:
        UserError: if the schedule is unknown.
    """
    schedule = lookup(SCHEDULES, config.schedule, "train.schedule")(config, steps - config.warmup_steps)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [config.warmup_steps])
    adam = optax.adam(schedule, config.adam_b1, config.adam_b2, config.adam_eps)
    if config.gradient_clip is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), adam)
