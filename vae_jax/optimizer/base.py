"""What an optimiser is, and weight decay: of kernels only."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from vae_jax.programs.packing import pack_like, unpack

KERNEL = "kernel"  # the name of weights in Flax's layers, and in ours


class Optimizer(NamedTuple):
    """An optax transformation that may evaluate other parameters than it trains.

    Attributes:
        init: params -> state.
        update: (gradient, state, params) -> (change, state).
        evaluated: (state, params) -> params: what is evaluated, sampled from and saved as weights; None where that is
            what is trained.
        elementwise: whether all parameters may as well be one vector (see `vae_jax.programs.packing`): what is done to
            a number depends on that number, on whether it is in a kernel, and on sums over all of them, as a global
            norm, but on no array's shape.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]
    evaluated: Callable[[PyTree, PyTree], PyTree] | None = None
    elementwise: bool = False


Rule = optax.GradientTransformation | Optimizer  # either can be used as the other where only init and update matter


def of_optax(rule: optax.GradientTransformation, elementwise: bool = False) -> Optimizer:
    """A transformation of optax's; elementwise, see `Optimizer`."""
    return Optimizer(cast(Any, rule.init), rule.update, elementwise=elementwise)


def is_kernel(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at a path, as jax gives it, is a kernel."""
    return bool(path) and getattr(path[-1], "key", None) == KERNEL


def decay_kernels(rate: float | Array) -> optax.GradientTransformation:
    """Adds the kernels times `rate` to what comes in, and nothing to other parameters, packed or not."""

    def kernels_of(params: PyTree) -> PyTree:
        """The parameters with zeros for what is no kernel."""
        kernels = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if is_kernel(path) else jnp.zeros_like(leaf), unpack(params)
        )
        return pack_like(params, kernels)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda own, kernel: own + rate * kernel, updates, kernels_of(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def descend(
    direction: optax.GradientTransformation, learning_rate: optax.Schedule, weight_decay: float | Array = 0.0
) -> optax.GradientTransformation:
    """Steps against a direction, of the learning rate's length, that also take a part of each kernel away.

    The decay is decoupled (Loshchilov & Hutter 2019): a step takes the learning rate times `weight_decay` of a kernel.
    """
    parts = [direction, decay_kernels(weight_decay), optax.scale_by_learning_rate(learning_rate)]
    return cast(optax.GradientTransformation, optax.chain(*parts))
