"""Optimisers, and weight decay of kernels only."""

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
        evaluated: (state, params) -> params to evaluate, sample from and save as weights; None for the trained ones.
        elementwise: whether all parameters may be one vector (see `vae_jax.programs.packing`): the change of a number
            depends on that number, on whether it is in a kernel, and on sums over all numbers, as a global norm, but on
            no array's shape.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]
    evaluated: Callable[[PyTree, PyTree], PyTree] | None = None
    elementwise: bool = False


Rule = optax.GradientTransformation | Optimizer  # interchangeable if only init and update matter


def of_optax(rule: optax.GradientTransformation, elementwise: bool = False) -> Optimizer:
    """The Optimizer of an optax transformation; `elementwise`, see `Optimizer`."""
    return Optimizer(cast(Any, rule.init), rule.update, elementwise=elementwise)


def is_kernel(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at a path, as jax gives it, is a kernel."""
    return bool(path) and getattr(path[-1], "key", None) == KERNEL


def decay_kernels(rate: float | Array) -> optax.GradientTransformation:
    """Adds the kernels times `rate` to the updates, packed or not, and nothing for other parameters."""

    def kernels_of(params: PyTree) -> PyTree:
        """The parameters with zeros in place of all but kernels."""
        kernels = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if is_kernel(path) else jnp.zeros_like(leaf), unpack(params)
        )
        return pack_like(params, kernels)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda change, kernel: change + rate * kernel, updates, kernels_of(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def descend(
    direction: optax.GradientTransformation, learning_rate: optax.Schedule, weight_decay: float | Array = 0.0
) -> optax.GradientTransformation:
    """Steps of minus the learning rate times a direction, with weight decay of kernels.

    The decay is decoupled (Loshchilov & Hutter 2019): a step takes the learning rate times `weight_decay` of a kernel.
    """
    parts = [direction, decay_kernels(weight_decay), optax.scale_by_learning_rate(learning_rate)]
    return cast(optax.GradientTransformation, optax.chain(*parts))
