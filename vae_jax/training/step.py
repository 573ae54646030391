"""One update of the parameters, as a pure function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from vae_jax import optimizer
from vae_jax.config import Config
from vae_jax.device.platforms import Platform
from vae_jax.errors import UserError, listed
from vae_jax.keys import StepKeys, phase_key, step_keys
from vae_jax.model.composition import PARTS, Composition
from vae_jax.networks import BATCH_STATS
from vae_jax.objectives import BoundModel, Objective, Phase, Terms, loss_of
from vae_jax.objectives.base import in_order
from vae_jax.optimizer import Rule
from vae_jax.programs.packing import pack_like, unpack
from vae_jax.training.state import names_of, one_phase
from vae_jax.variables import Variables

REDUCTIONS = {"sum": jnp.sum, "mean": jnp.mean}
StepOf = Callable[[Mapping[str, Any]], Callable[..., Any]]  # the step by the numbers, see `step_of`


def step_of(config: Config, composition: Composition, objective: Objective, epoch: int) -> StepOf:
    """The configured step as a function of numbers that replace the configuration's; see `make_step`.

    `epoch` is the steps of an epoch. The numbers are arguments of the program, not constants in it: so a member of a
    sweep is bit for bit its single run, and one program serves all values.
    """

    def of(numbers: Mapping[str, Any]) -> Callable[..., Any]:
        options = config.objective.options_with(numbers)
        return make_step(config, composition, objective, optimizer.build(config, epoch, numbers), options)

    return of


def make_step(
    config: Config,
    composition: Composition,
    objective: Objective,
    transformation: Rule,
    options: Any = None,
) -> Callable[..., tuple[Variables, PyTree, Float[Array, " figures"]]]:
    """One pure update: (variables, opt_state, images, key, labels=None, epoch=inf) -> (variables, opt_state, sums).

    `images` are as a split holds them, uint8, (batch, height, width, channels), `labels` (batch,) if the model gets
    them, and `epoch` is how many epochs the run has trained, with the fraction. The step's sums, of the loss and its
    parts, are over the batch. Packed arguments (see `make_packing`) come back packed. `options` are the objective's, by
    default the configuration's. With `train.skip_nonfinite` an update whose loss or gradient is not finite changes
    nothing, and its sums are NaN.
    """
    reduce = REDUCTIONS[config.train.reduction]
    single = one_phase(objective)
    options = config.objective.options if options is None else options

    def step(
        variables: Variables,
        opt_state: PyTree,
        images: Shaped[Array, "batch *stored"],
        key: Key[Array, ""],
        labels: Int[Array, " batch"] | None = None,
        epoch: Float[Array, ""] | float = jnp.inf,
    ) -> tuple[Variables, PyTree, Float[Array, " figures"]]:
        first_keys = step_keys(key)
        targets = composition.treat(first_keys.treatment, images)
        now, figures, gradients = variables if single else unpack(variables), {}, []
        states = [opt_state] if single else list(opt_state)
        for number, phase in enumerate(objective.phases):
            keys = first_keys if number == 0 else step_keys(phase_key(key, number))

            def loss(
                trained: PyTree, now: Variables = now, phase: Phase = phase, keys: StepKeys = keys
            ) -> tuple[Array, tuple[Variables, Terms]]:
                def terms(model: BoundModel) -> Terms:
                    return phase.terms(keys.objective, model, targets, options)

                params = trained if single else {**now.params, **trained}
                then = unpack(now._replace(params=params))
                more = {"labels": labels, "epoch": epoch, "streams": keys.streams}
                result, updated = composition.apply(then, terms, keys.dropout, train=not phase.still, **more)
                return reduce(loss_of(phase, result)), (updated, result)

            trained = now.params if single else objective.trained(phase, now.params)
            gradient, (updated, result) = jax.grad(loss, has_aux=True)(trained)
            gradients.append(gradient)
            figures |= result
            change, states[number] = phase.optimizer(transformation).update(gradient, states[number], trained)
            params = optax.apply_updates(trained, change)
            params = params if single else now.params | cast(dict[str, PyTree], params)
            now = Variables(params, pack_like(now.state, updated.state))
        if objective.figures and set(figures) != set(names_of(objective)):
            known, given = listed(names_of(objective)), listed(in_order(figures))
            raise UserError(f"objective.name: expected the same figures of every batch, {known}; found {given}")
        sums = batch_sums([figures[name] for name in in_order(figures)], composition.platform)
        then = (now, states[0]) if single else (pack_like(variables, now), tuple(states))
        if config.train.skip_nonfinite:
            finite = all_finite((sums, gradients, watched(*then)))
            then = jax.tree.map(lambda then, now: jnp.where(finite, then, now), then, (variables, opt_state))
            sums = jnp.where(finite, sums, jnp.nan)
        return then[0], then[1], sums

    return step


def batch_sums(terms: Sequence[Array], platform: Platform) -> Float[Array, " figures"]:
    """The sums over a batch of the images' figures."""
    if not platform.packed:
        return jnp.stack([part.sum() for part in terms])
    # A kernel costs more here than what it computes, so all sums are one kernel; the barrier keeps XLA from adding up
    # all pixels once for each image and once more for all.
    return lax.optimization_barrier(jnp.stack(terms)).sum(1)


def watched(variables: Variables, opt_state: PyTree) -> PyTree:
    """The variables and the state that must stay finite; users' collections need not, as a mask of −∞."""
    state = {name: part for name, part in variables.state.items() if name in (BATCH_STATS, *PARTS)}
    return variables._replace(state=state), opt_state


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in the tree is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
