"""The optimiser with its schedule and clipping, from the configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import optax

from vae_jax.config import Config, TrainConfig, entry_of
from vae_jax.errors import UserError
from vae_jax.options import TRACED


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


class Elementwise(optax.GradientTransformation):
    """An optimiser for which all parameters may as well be one vector.

    What it does to a number depends on that number's gradients and on sums over all of them, as a global norm, but on
    no array's shape.
    """

    __slots__ = ()


@dataclass(frozen=True)
class AdamOptions:
    """Of adam.

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """

    b1: Annotated[float, "[0, 1)"] = 0.9
    b2: Annotated[float, "[0, 1)"] = 0.999
    eps: Annotated[float, "(0, inf)", TRACED] = 1e-8


def adam(options: AdamOptions, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015)."""
    return Elementwise(*optax.adam(learning_rate, options.b1, options.b2, options.eps))


# Each: (options, learning rate by the step) -> optax transformation; the annotation of `options` names its options.
OPTIMIZERS = {"adam": adam}


def build(config: Config, epoch: int) -> optax.GradientTransformation:
    """The configured optimiser with its schedule and clipping, for a run whose epochs have `epoch` steps.

    Raises:
        UserError: if there is no such optimiser, or a user's gives no optax transformation.
    """
    name = config.optimizer.name
    rule = entry_of("optimizer", name)(config.optimizer.options, schedule(config.train, epoch))
    if not isinstance(rule, optax.GradientTransformation):
        kind = f"{type(rule).__module__}.{type(rule).__name__}"
        raise UserError(f"optimizer.name: expected {name} to give an optax.GradientTransformation; found {kind}")
    if config.train.gradient_clip is None:
        return rule
    clipped = optax.chain(optax.clip_by_global_norm(config.train.gradient_clip), rule)
    return Elementwise(*clipped) if isinstance(rule, Elementwise) else clipped
