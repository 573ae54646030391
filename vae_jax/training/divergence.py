"""Stops training that is not finite, with the remedies that help most often."""

from typing import Any

import numpy as np
from jaxtyping import Float

from vae_jax.config import Config
from vae_jax.errors import Diverged


def check_finite(
    config: Config,
    sums: Float[np.ndarray, "done figures"],
    left_finite: bool,
    epoch: int,
    steps: int,
    history: list[dict[str, Any]],
) -> None:
    """Stops a run whose losses are not finite, or what its last step left: parameters, statistics, optimiser's state.

    Raises:
        Diverged: naming the first such step of the epoch.
    """
    finite: Any = np.isfinite(sums).all(1)
    may_go_on = finite.all() or (config.train.skip_nonfinite and (finite.any() or len(sums) < steps))
    if left_finite and may_go_on:
        return
    if may_go_on:
        bad, reason = len(sums), f"parameters or the optimiser's state are not finite after step {len(sums)} of {steps}"
    else:
        bad = int(np.flatnonzero(~finite)[0])
        reason = f"the loss of step {bad + 1} of {steps} is {sums[bad, 0]}"
    last_finite = []
    if before := np.flatnonzero(finite[:bad]).tolist():
        per_image = sums[before[-1], 0] / config.train.batch_size  # only an epoch's last step has fewer images
        last_finite.append(f"loss {per_image:.6g} per {config.data.noun} in step {before[-1] + 1}")
    if history:
        last_finite.append(f"test loss {history[-1]['test_loss']:.6g} after epoch {history[-1]['epoch']}")
    raise diverged(config, epoch, reason, ", ".join(last_finite) or "none")


def diverged(config: Config, epoch: int, reason: str, last_finite: str) -> Diverged:
    return Diverged(f"training diverged in epoch {epoch + 1}: {reason}; last finite: {last_finite}; {remedies(config)}")


def remedies(config: Config) -> str:
    """The options that most likely help if training diverges."""
    train = config.train
    steps = [
        f"a lower train.learning_rate (now {train.learning_rate:g})",
        *(["train.gradient_clip"] if train.gradient_clip is None else []),
        *(["train.warmup_steps"] if not train.warmup_steps else []),
        *(["model.precision float32"] if config.model.precision == "bfloat16" else []),
        *(["train.skip_nonfinite, if it is rare"] if not train.skip_nonfinite else []),
    ]
    return f"what helps most often: {', '.join(steps)}"
