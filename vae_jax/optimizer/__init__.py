"""The configured optimiser with its schedule, clipping, averages and accumulation."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from vae_jax.config import Config, entry_of
from vae_jax.errors import UserError
from vae_jax.optimizer.adam import adam, adamax, adamw, schedule_free
from vae_jax.optimizer.around import accumulated, averaged, clipped
from vae_jax.optimizer.base import Optimizer, Rule, decay_kernels, of_optax
from vae_jax.optimizer.momentum import lion, rmsprop, sgd
from vae_jax.optimizer.muon import muon
from vae_jax.optimizer.schedules import ENDING, SCHEDULES, STAGES, schedule
from vae_jax.options import NO_NUMBERS, of_unknown_value, traced_of

__all__ = ["ENDING", "OPTIMIZERS", "SCHEDULES", "STAGES", "Optimizer", "Rule", "build", "decay_kernels", "schedule"]

# (options, learning rate by the update) -> Optimizer, or an optax transformation; the annotation of `options` names
# the dataclass of its options.
OPTIMIZERS = {
    "adam": adam,
    "adamw": adamw,
    "adamax": adamax,
    "sgd": sgd,
    "rmsprop": rmsprop,
    "lion": lion,
    "muon": muon,
    "schedule_free": schedule_free,
}


def build(config: Config, epoch: int, numbers: Mapping[str, Any] = NO_NUMBERS) -> Optimizer:
    """The configured optimiser with its schedule, clipping, averages and accumulation.

    Args:
        config: of the run.
        epoch: batches in an epoch.
        numbers: by dotted name, arguments of a compiled program in place of the configuration's numbers.

    Raises:
        UserError: if there is no such optimiser, or a user's factory gives no optax transformation.
    """
    name, train = config.optimizer.name, config.train
    rate = numbers.get("train.learning_rate", train.learning_rate)
    by_batch, batches = schedule(train, rate, epoch), train.accumulate
    # An update's learning rate is that of its last batch.
    by_update = by_batch if batches == 1 else lambda count: by_batch((count + 1) * batches - 1)
    options = config.optimizer.options_with(numbers)
    traced = ["the learning rate", *traced_of(options)]

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            with of_unknown_value(f"optimizer.name {name}", traced):
                return function(*arguments, **more)

        return call

    rule = guarded(entry_of("optimizer", name))(options, by_update)
    if not isinstance(rule, Rule):
        kind = f"{type(rule).__module__}.{type(rule).__name__}"
        raise UserError(f"optimizer.name: expected {name} to give an optax.GradientTransformation; found {kind}")
    rule = rule if isinstance(rule, Optimizer) else of_optax(rule)
    rule = rule._replace(init=guarded(rule.init), update=guarded(rule.update))
    if train.gradient_clip is not None:
        rule = clipped(rule, train.gradient_clip)
    if train.ema_decay is not None:
        rule = averaged(rule, train.ema_decay)
    return accumulated(rule, batches, train.reduction == "mean") if batches > 1 else rule
