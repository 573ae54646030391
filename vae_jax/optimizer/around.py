"""Wrappers of any optimiser: clipping, an average of the weights, several batches for one update."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int, PyTree

from vae_jax.optimizer.base import Optimizer


def clipped(rule: Optimizer, norm: float) -> Optimizer:
    """The optimiser with gradients clipped to this global norm."""
    chain = optax.chain(optax.clip_by_global_norm(norm), cast(Any, rule))

    return _within(rule, cast(Any, chain.init), chain.update, lambda state: state[1])


class Averaged(NamedTuple):
    """The state of `averaged`.

    Attributes:
        updates: so far.
        average: of the parameters.
        rule: the state of the optimiser within.
    """

    updates: Int[Array, ""]
    average: PyTree
    rule: PyTree


def averaged(rule: Optimizer, decay: float) -> Optimizer:
    """The optimiser with an exponential moving average of the parameters, which is evaluated.

    After update t the average is d times the old one plus 1 − d times the new parameters, with d the smaller one of
    `decay` and (1 + t)/(10 + t): a long memory would hold on to the initialisation.
    """

    def init(params: PyTree) -> Averaged:
        # A copy, since training donates the buffers of both.
        return Averaged(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), rule.init(params))

    def update(gradient: PyTree, state: Averaged, params: PyTree) -> tuple[PyTree, Averaged]:
        change, within = rule.update(gradient, state.rule, params)
        now = optax.apply_updates(params, change)
        now = rule.evaluated(within, now) if rule.evaluated else now
        updates = state.updates + 1
        t = jnp.asarray(updates, float)
        d = jnp.minimum(decay, (1 + t) / (10 + t))
        average = jax.tree.map(lambda then, now: (d * then + (1 - d) * now).astype(then.dtype), state.average, now)
        return change, Averaged(updates, average, within)

    return rule._replace(init=init, update=update, evaluated=lambda state, params: state.average)


class Accumulated(NamedTuple):
    """The state of `accumulated`.

    Attributes:
        batches: since the last update.
        gradient: their sum.
        rule: the state of the optimiser within.
    """

    batches: Int[Array, ""]
    gradient: PyTree
    rule: PyTree


def accumulated(rule: Optimizer, batches: int, mean: bool) -> Optimizer:
    """The optimiser with one update every `batches` batches, by the sum or the mean of their gradients."""

    def init(params: PyTree) -> Accumulated:
        return Accumulated(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), rule.init(params))

    def update(gradient: PyTree, state: Accumulated, params: PyTree) -> tuple[PyTree, Accumulated]:
        total = jax.tree.map(jnp.add, state.gradient, gradient)

        def change() -> tuple[PyTree, Accumulated]:
            whole = jax.tree.map(lambda leaf: leaf / batches, total) if mean else total
            change, within = rule.update(whole, state.rule, params)
            return change, Accumulated(jnp.zeros_like(state.batches), jax.tree.map(jnp.zeros_like, total), within)

        def wait() -> tuple[PyTree, Accumulated]:
            return jax.tree.map(jnp.zeros_like, params), Accumulated(state.batches + 1, total, state.rule)

        return lax.cond(state.batches == batches - 1, change, wait)

    return _within(rule, init, update, lambda state: state.rule)


def _within(rule: Optimizer, init: Any, update: Any, inner: Callable[[PyTree], PyTree]) -> Optimizer:
    """The optimiser with another init and update; `inner` takes its own state out of theirs."""
    inner_evaluated = rule.evaluated
    evaluated = None if inner_evaluated is None else lambda state, params: inner_evaluated(inner(state), params)
    return rule._replace(init=init, update=update, evaluated=evaluated)
