"""Adam and its variants."""

from dataclasses import dataclass
from typing import Annotated

import jax
import optax
import optax.contrib
from jaxtyping import PyTree

from vae_jax.optimizer.base import Optimizer, descend, of_optax
from vae_jax.options import TRACED


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


def adam(options: AdamOptions, learning_rate: optax.Schedule) -> Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return of_optax(optax.adam(learning_rate, options.b1, options.b2, options.eps), elementwise=True)


@dataclass(frozen=True)
class AdamWOptions(AdamOptions):
    """Of adamw.

    Attributes:
        weight_decay: of kernels; a step takes the learning rate times this of them.
    """

    weight_decay: Annotated[float, "[0, inf)", TRACED] = 1e-2


def adamw(options: AdamWOptions, learning_rate: optax.Schedule) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    direction = optax.scale_by_adam(options.b1, options.b2, options.eps)
    return of_optax(descend(direction, learning_rate, options.weight_decay), elementwise=True)


@dataclass(frozen=True)
class AdamaxOptions:
    """Of adamax.

    Attributes:
        b1: decay of the first moment.
        b2: decay of the largest gradient.
        eps: added to the largest gradient.
    """

    b1: Annotated[float, "[0, 1)"] = 0.9
    b2: Annotated[float, "[0, 1)"] = 0.999
    eps: Annotated[float, "(0, inf)", TRACED] = 1e-8


def adamax(options: AdamaxOptions, learning_rate: optax.Schedule) -> Optimizer:
    """Adam with the infinity norm in place of the second moment (Kingma & Ba 2015, section 7.1)."""
    return of_optax(optax.adamax(learning_rate, options.b1, options.b2, options.eps), elementwise=True)


@dataclass(frozen=True)
class ScheduleFreeOptions:
    """Of schedule_free.

    Attributes:
        b1: of the average in the point at which the gradient is taken; the rest is of the newest point.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of kernels; a step takes the learning rate times this of them.
    """

    b1: Annotated[float, "(0, 1)"] = 0.9
    b2: Annotated[float, "[0, 1)"] = 0.999
    eps: Annotated[float, "(0, inf)", TRACED] = 1e-8
    weight_decay: Annotated[float, "[0, inf)", TRACED] = 0.0


def schedule_free(options: ScheduleFreeOptions, learning_rate: optax.Schedule) -> Optimizer:
    """AdamW with averages in place of a falling learning rate (Defazio et al. 2024).

    The average of the points so far is evaluated, weighted by the square of the largest learning rate until then.
    """
    # Adam without a first moment: the averages take its place.
    direction = optax.scale_by_rms(options.b2, options.eps, eps_in_sqrt=False, bias_correction=True)
    steps = descend(direction, learning_rate, options.weight_decay)
    averaging = optax.contrib.schedule_free(steps, learning_rate, options.b1)

    def evaluated(opt_state: PyTree, params: PyTree) -> PyTree:
        # (y − (1 − b1)·z) / b1, written so that it is exactly y if z is, as before the first step.
        ahead = (1 - options.b1) / options.b1
        return jax.tree.map(lambda y, z: y + ahead * (y - z), params, opt_state.z)

    return of_optax(averaging, elementwise=True)._replace(evaluated=evaluated)
