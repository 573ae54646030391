"""Optimisers that keep one number for each parameter, or none."""

from dataclasses import dataclass
from typing import Annotated

import optax

from vae_jax.optimizer.base import Optimizer, descend, of_optax
from vae_jax.options import TRACED


@dataclass(frozen=True)
class SgdOptions:
    """Of sgd.

    Attributes:
        momentum: decay of the sum of gradients that a step follows; 0 for the gradient itself.
        nesterov: look one step of the momentum ahead; without momentum nothing changes.
        weight_decay: of kernels; a step takes the learning rate times this of them.
    """

    momentum: Annotated[float, "[0, 1)"] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, "[0, inf)", TRACED] = 0.0


def sgd(options: SgdOptions, learning_rate: optax.Schedule) -> Optimizer:
    """Stochastic gradient descent with momentum, or Nesterov's (Sutskever et al. 2013)."""
    direction = optax.trace(options.momentum, options.nesterov) if options.momentum else optax.identity()
    return of_optax(descend(direction, learning_rate, options.weight_decay), elementwise=True)


@dataclass(frozen=True)
class RmspropOptions:
    """Of rmsprop.

    Attributes:
        decay: of the mean square of the gradient.
        eps: added to the mean square, below the root.
        centered: divide by the standard deviation in place of the root mean square.
        momentum: decay of the sum of steps; 0 for none.
    """

    decay: Annotated[float, "[0, 1)"] = 0.9
    eps: Annotated[float, "(0, inf)", TRACED] = 1e-8
    centered: bool = False
    momentum: Annotated[float, "[0, 1)"] = 0.0


def rmsprop(options: RmspropOptions, learning_rate: optax.Schedule) -> Optimizer:
    """RMSProp (Tieleman & Hinton 2012), centred as in Graves 2013."""
    rule = optax.rmsprop(
        learning_rate,
        options.decay,
        options.eps,
        centered=options.centered,
        momentum=options.momentum or None,
    )
    return of_optax(rule, elementwise=True)


@dataclass(frozen=True)
class LionOptions:
    """Of lion.

    Attributes:
        b1: of the momentum in the direction whose sign is taken; the rest is of the gradient.
        b2: decay of the momentum.
        weight_decay: of kernels; a step takes the learning rate times this of them.
    """

    b1: Annotated[float, "[0, 1)"] = 0.9
    b2: Annotated[float, "[0, 1)"] = 0.99
    weight_decay: Annotated[float, "[0, inf)", TRACED] = 1e-3


def lion(options: LionOptions, learning_rate: optax.Schedule) -> Optimizer:
    """The sign of a momentum (Chen et al. 2023); it wants a learning rate 3 to 10 times smaller than Adam's."""
    direction = optax.scale_by_lion(options.b1, options.b2)
    return of_optax(descend(direction, learning_rate, options.weight_decay), elementwise=True)
