"""A run's changing state, its fixed values, and its result."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax import objectives, optimizer
from vae_jax.config import Config, numbers_of
from vae_jax.errors import UserError, listed
from vae_jax.keys import make_keys
from vae_jax.objectives import Objective
from vae_jax.optimizer import Rule
from vae_jax.options import NO_NUMBERS
from vae_jax.variables import Variables


class TrainState(NamedTuple):
    """All that changes in a run, which is all that a checkpoint needs.

    Attributes:
        step: steps taken.
        variables: parameters and running statistics.
        opt_state: the optimiser's.
        sums: over the batch, of the objective's figures, the loss first, for the steps of the current epoch,
            (steps, figures); NaN for a skipped step.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> state = vae_jax.fit(config, data).state
        >>> int(state.step), state.sums.shape
        (23, (23, 3))
    """

    step: Int[Array, ""]
    variables: Variables
    opt_state: PyTree
    sums: Float[Array, "steps figures"]


class Progress(NamedTuple):
    """A run's progress, between two calls of the compiled loop.

    Attributes:
        epoch: the current one, from 1.
        step: steps taken in it.
        steps: steps an epoch has.
        loss: mean loss per image over the epoch so far, without skipped steps; of several members the mean.
        images_per_second: of training in this epoch, of all members together, without compilation and evaluation (in
            the first epoch the cores also compile the evaluation).
    """

    epoch: int
    step: int
    steps: int
    loss: float
    images_per_second: float


class Trained(NamedTuple):
    """A trained model with all that its use needs.

    Attributes:
        config: of the run.
        image_shape: (height, width, channels), or of an example of another kind as the networks take it.
        state: the final state.
        history: figures of every epoch, see `fit`.
        class_names: of the labels it was trained with, by number; None if they have none.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> trained = vae_jax.fit(config, data)
        >>> trained.image_shape, trained.class_names[:3], sorted(trained.variables.params)
        ((8, 8, 1), ('0', '1', '2'), ['decoder', 'encoder'])
    """

    config: Config
    image_shape: tuple[int, ...]
    state: TrainState
    history: list[dict[str, Any]]
    class_names: tuple[str, ...] | None = None

    @property
    def variables(self) -> Variables:
        """The variables to use: the optimiser may evaluate other parameters than it trains, as their average."""
        return evaluated_variables(self.config, self.state)

    def __repr__(self) -> str:
        from vae_jax.model.notebook import line

        return line(self)

    def _repr_html_(self) -> str:
        from vae_jax.model.notebook import table

        return table(self)


class Fixed(NamedTuple):
    """Values that all steps of a run share beside its images, as arguments of the compiled loop.

    Attributes:
        key: of the run's steps.
        numbers: values of the options that only change numbers, by dotted name; see `step_of`.
    """

    key: Key[Array, ""]
    numbers: Mapping[str, Any] = {}


def fixed_of(config: Config) -> Fixed:
    """The fixed values of a run of this configuration."""
    return Fixed(make_keys(config.seed).steps, numbers_of(config))


def one_phase(objective: Objective) -> bool:
    """Whether a step has one loss, for all parameters."""
    return objective.trains is None and not objective.then


def init_optimizer(transformation: Rule, objective: Objective, params: PyTree) -> PyTree:
    """The optimiser's state before the first step; one for every phase, if there are several.

    Raises:
        UserError: if a phase trains parts that the model does not have.
    """
    if one_phase(objective):
        return transformation.init(params)
    for phase in objective.phases:
        if unknown := [name for name in phase.trains if name not in params]:
            what = f"objective.name, phase {phase.name or 'first'}"
            raise UserError(f"{what}: expected trains to name some of {listed(params)}; found {listed(unknown)}")
        loses = not getattr(phase.optimizer(transformation), "evaluated", None)
        if loses and getattr(transformation, "evaluated", None):
            raise UserError(
                f"objective.name, phase {phase.name}: expected an optimizer that keeps what is evaluated in place of "
                f"the trained weights (train.ema_decay, schedule_free); found one without `evaluated`"
            )
    phases = [(phase.optimizer(transformation), objective.trained(phase, params)) for phase in objective.phases]
    return tuple(rule.init(trained) for rule, trained in phases)


def evaluated_variables(config: Config, state: TrainState, numbers: Mapping[str, Any] = NO_NUMBERS) -> Variables:
    """The variables to evaluate, to sample from and to save as weights; training goes on from `state.variables`.

    The optimiser's parameters replace the trained ones, if it has any.
    """
    rule, (params, parts) = optimizer.build(config, 1, numbers), state.variables
    objective = objectives.get(config.objective)
    if one_phase(objective):
        return Variables(rule.evaluated(state.opt_state, params), parts) if rule.evaluated else state.variables
    for phase, opt_state in zip(objective.phases, state.opt_state, strict=True):
        if (evaluated := getattr(phase.optimizer(rule), "evaluated", None)) is not None:
            params = {**params, **evaluated(opt_state, objective.trained(phase, params))}
    return Variables(params, parts)


def names_of(objective: Objective) -> tuple[str, ...]:
    """The names of the figures of an objective from `build`."""
    assert objective.figures
    return objective.figures.names
