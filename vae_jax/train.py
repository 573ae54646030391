"""Training: one step, one chunk of steps, one run. No files, no printing: what happens is handed to callbacks.

The epoch is a loop, compiled once or for a few lengths. A call runs as many steps of it as asked, so progress can be
shown and the run can be saved between calls; which step belongs to which call changes nothing, since every step's loss
has its own place in the state and every step's key is folded from the step's number.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from vae_jax import networks, objectives, optimizer
from vae_jax.blocks.convolution import is_slow_in_loops
from vae_jax.config import Config, as_used, numbers_of
from vae_jax.data.dataset import Dataset, Split
from vae_jax.data.shape import settled
from vae_jax.device.devices import Devices, cores
from vae_jax.device.feed import Feed, Shard
from vae_jax.device.platforms import Platform, built_for, current
from vae_jax.errors import Diverged, UserError, listed
from vae_jax.evaluation.evaluator import make_evaluator, means
from vae_jax.keys import StepKeys, begin_key, epoch_key, make_keys, phase_key, step_key, step_keys
from vae_jax.model.build import build
from vae_jax.model.composition import PARTS, Composition
from vae_jax.networks import BATCH_STATS
from vae_jax.objectives import BoundModel, Objective, Phase, Terms, loss_of
from vae_jax.objectives.base import in_order
from vae_jax.optimizer import Optimizer, Rule
from vae_jax.options import NO_NUMBERS
from vae_jax.programs import staging
from vae_jax.programs.packing import pack, pack_like, unpack
from vae_jax.programs.sizes import check_memory
from vae_jax.variables import Variables

REDUCTIONS = {"sum": jnp.sum, "mean": jnp.mean}
STEPS = 2**31 - 1  # of a run, counted in 32 bits
BEGIN_IMAGES = 256  # of which a codebook is made
FIRST_CHUNK = 8  # steps of a run's first call; from then on a call takes about a second


History = list[dict[str, Any]]  # figures of every epoch, see `fit`
StepOf = Callable[[Mapping[str, Any]], Callable[..., Any]]  # the step by the numbers, see `step_of`


class TrainState(NamedTuple):
    """All that changes in a run, and all that a checkpoint needs.

    Attributes:
        step: steps taken.
        variables: parameters and running statistics.
        opt_state: the optimiser's.
        sums: of each step of the current epoch, the batch's sum of each of the objective's figures, the loss first,
            (steps, figures); NaN where the step was skipped.
    """

    step: Int[Array, ""]
    variables: Variables
    opt_state: PyTree
    sums: Float[Array, "steps figures"]


def epoch_order(key: Key[Array, ""], epoch: Int[Array, ""], images: int) -> Int[Array, " images"]:
    """The order in which an epoch, counted from 0, takes the training images; `key` is the run's for shuffling."""
    return jax.random.permutation(epoch_key(key, epoch), jnp.arange(images, dtype=jnp.int32))


class Progress(NamedTuple):
    """Where a run stands, between two calls of the compiled loop.

    Attributes:
        epoch: the current one, from 1.
        step: steps taken in it.
        steps: steps an epoch has.
        loss: mean loss per image over the epoch so far, skipped steps left out; of several members the mean.
        images_per_second: of training in this epoch, of all members together, compilation and evaluation excluded (in
            the first epoch it shares the cores with what is compiled for the evaluation).
    """

    epoch: int
    step: int
    steps: int
    loss: float
    images_per_second: float


class Trained(NamedTuple):
    """A trained model with everything needed to use it.

    Attributes:
        config: of the run.
        image_shape: (height, width, channels), or of an example of another kind as the networks take it.
        state: the final state.
        history: figures of every epoch, see `fit`.
        class_names: of the labels it was trained with, by number; None where they have none.
    """

    config: Config
    image_shape: tuple[int, ...]
    state: TrainState
    history: list[dict[str, Any]]
    class_names: tuple[str, ...] | None = None

    @property
    def variables(self) -> Variables:
        """What the model is used with: the optimiser may evaluate other parameters than it trains, as their average."""
        return used(self.config, self.state)

    def __repr__(self) -> str:
        from vae_jax.model.notebook import line

        return line(self)

    def _repr_html_(self) -> str:
        from vae_jax.model.notebook import table

        return table(self)


class Fixed(NamedTuple):
    """What stays the same in all steps of a run, beside its images: arguments of the compiled loop.

    Attributes:
        key: of the run's steps.
        numbers: values of the options that only change numbers, by dotted name; see `step_of`.
    """

    key: Key[Array, ""]
    numbers: Mapping[str, Any] = {}


def fixed_of(config: Config) -> Fixed:
    """What a run of this configuration has."""
    return Fixed(make_keys(config.seed).steps, numbers_of(config))


def step_of(config: Config, network: Composition, objective: Objective, epoch: int) -> StepOf:
    """The configured step, of an epoch of so many, by the numbers in place of the configuration's; see `make_step`.

    They are arguments of the program, not constants in it: so a member of a sweep is bit for bit its single run, and a
    program serves all their values.
    """

    def of(numbers: Mapping[str, Any]) -> Callable[..., Any]:
        options = config.objective.options_with(numbers)
        return make_step(config, network, objective, optimizer.build(config, epoch, numbers), options)

    return of


def make_step(
    config: Config,
    network: Composition,
    objective: Objective,
    transformation: Rule,
    options: Any = None,
) -> Callable[..., tuple[Variables, PyTree, Float[Array, " figures"]]]:
    """One pure update: (variables, opt_state, images, key, labels=None, epoch=inf) -> (variables, opt_state, sums).

    `images` is as a split holds them, uint8, (batch, height, width, channels), `labels` (batch,) where the model is
    told them, and `epoch` how many the run has trained, with the fraction; the step's sums, of the loss and its parts,
    are over the batch. What is packed (see `make_packing`) comes back packed. `options` are the objective's, by default
    the configuration's. With `train.skip_nonfinite` an update whose loss or gradient is not finite changes nothing, and
    its sums are NaN.
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
        own = step_keys(key)
        targets = network.treat(own.treatment, images)
        now, figures, gradients = variables if single else unpack(variables), {}, []
        states = [opt_state] if single else list(opt_state)
        for number, phase in enumerate(objective.phases):
            keys = own if number == 0 else step_keys(phase_key(key, number))

            def loss(
                trained: PyTree, now: Variables = now, phase: Phase = phase, keys: StepKeys = keys
            ) -> tuple[Array, tuple[Variables, Terms]]:
                def terms(model: BoundModel) -> Terms:
                    return phase.terms(keys.objective, model, targets, options)

                params = trained if single else {**now.params, **trained}
                then = unpack(now._replace(params=params))
                more = {"labels": labels, "epoch": epoch, "streams": keys.streams}
                result, updated = network.apply(then, terms, keys.dropout, train=not phase.still, **more)
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
        sums = batch_sums([figures[name] for name in in_order(figures)], network.platform)
        then = (now, states[0]) if single else (pack_like(variables, now), tuple(states))
        if config.train.skip_nonfinite:
            finite = all_finite((sums, gradients, watched(*then)))
            then = jax.tree.map(lambda then, now: jnp.where(finite, then, now), then, (variables, opt_state))
            sums = jnp.where(finite, sums, jnp.nan)
        return then[0], then[1], sums

    return step


def one_phase(objective: Objective) -> bool:
    """Whether a step has one loss, for all parameters."""
    return objective.trains is None and not objective.then


def init_optimizer(transformation: Rule, objective: Objective, params: PyTree) -> PyTree:
    """The optimiser's state before the first step; of several phases one each.

    Raises:
        UserError: if a phase trains what the model does not have.
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
    return tuple(own.init(trained) for own, trained in phases)


def used(config: Config, state: TrainState, numbers: Mapping[str, Any] = NO_NUMBERS) -> Variables:
    """The variables that are evaluated, sampled from and saved as weights, with the optimiser's own parameters where it
    has them; training goes on from `state.variables`."""
    rule, (params, own) = optimizer.build(config, 1, numbers), state.variables
    objective = objectives.get(config.objective)
    if one_phase(objective):
        return Variables(rule.evaluated(state.opt_state, params), own) if rule.evaluated else state.variables
    for phase, opt_state in zip(objective.phases, state.opt_state, strict=True):
        if (evaluated := getattr(phase.optimizer(rule), "evaluated", None)) is not None:
            params = {**params, **evaluated(opt_state, objective.trained(phase, params))}
    return Variables(params, own)


def names_of(objective: Objective) -> tuple[str, ...]:
    """The names of an objective's figures, as `build` gives it."""
    assert objective.figures
    return objective.figures.names


def batch_sums(terms: Sequence[Array], platform: Platform) -> Float[Array, " figures"]:
    """The sums over a batch of each image's figures."""
    if not platform.packed:
        return jnp.stack([part.sum() for part in terms])
    # Where a kernel costs more than what it computes, the three are one; the barrier keeps XLA from adding up all
    # pixels once for each image and once more for all.
    return lax.optimization_barrier(jnp.stack(terms)).sum(1)


def watched(variables: Variables, opt_state: PyTree) -> PyTree:
    """What must stay finite in training; a user's own collections may hold what they like, as a mask of −∞."""
    state = {name: part for name, part in variables.state.items() if name in (BATCH_STATS, *PARTS)}
    return variables._replace(state=state), opt_state


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in the tree is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


class Packing(NamedTuple):
    """How a loop's state is carried, see `vae_jax.programs.packing`.

    Attributes:
        pack: state -> state, as the loop takes it.
        unpack: its inverse.
    """

    pack: Callable[[TrainState], TrainState]
    unpack: Callable[[TrainState], TrainState]


def make_packing(platform: Platform, transformation: Optimizer, objective: Objective | None = None) -> Packing:
    """As suits the platform; parameters and the optimiser's state stay trees if their shapes matter to it, or the
    objective has several phases."""
    whole = transformation.elementwise and (objective is None or one_phase(objective))

    def pack_state(state: TrainState) -> TrainState:
        params, own = state.variables
        opt_state = state.opt_state
        if whole:
            params = pack(params)
            opt_state = pack_like(jax.eval_shape(transformation.init, params), opt_state)
        packed = {name: pack(part) for name, part in own.items()}
        return state._replace(variables=Variables(params, packed), opt_state=opt_state)

    return Packing(pack_state, unpack) if platform.packed else Packing(lambda state: state, lambda state: state)


class Loop(NamedTuple):
    """Compiled steps of an epoch.

    Attributes:
        run: (state, images, labels, order, start, fixed, first, last) -> state, see `make_steps`; it takes the state's
            buffers over.
        memory: bytes of the arrays of a step.
        needs: bytes that a call needs beside its arguments.
        length: of how many steps a call should be a multiple.
    """

    run: Callable[..., TrainState]
    memory: int
    needs: int
    length: int = 1


def needs_of(program: Any) -> int:
    """Bytes that a compiled program needs beside its arguments."""
    found = program.memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def make_loop(step: StepOf, stride: int, size: int, devices: Devices | None = None) -> Any:
    """`make_steps` as one compiled call, which takes the state's buffers over."""
    return _compiled_on(devices, make_steps(step, stride, size, devices))


def _compiled_on(devices: Devices | None, function: Callable[..., TrainState]) -> Any:
    return jax.jit(function, donate_argnums=0, **(devices.outputs if devices else {}))


def lower_loop(
    step: StepOf,
    stride: int,
    size: int,
    devices: Devices | None,
    arguments: Any,
    platform: Platform,
    steps: int,
) -> dict[int | None, jax.stages.Lowered]:
    """What a part of an epoch, of so many steps, is to be compiled of, for arguments of these shapes.

    Of each program, by the steps of a call: `make_steps`, or with None one that runs any number of them.
    """
    *place, first, _ = arguments
    programs: dict[int | None, jax.stages.Lowered] = {}
    with built_for(platform):
        if platform.length is None:
            lowered = make_loop(step, stride, size, devices).lower(*arguments)
            if not is_slow_in_loops(lowered):
                return {None: lowered}
            platform = platform._replace(length=1)
        for length in lengths(platform, steps):
            calls = make_calls(step, stride, size, length or 1, devices)
            programs[length] = _compiled_on(devices, calls).lower(*place, first)
    return programs


def compile_loop(
    step: StepOf,
    stride: int,
    size: int,
    devices: Devices | None,
    arguments: Any,
    platform: Platform | None = None,
    steps: int = 1,
) -> Loop:
    """`lower_loop`, compiled."""
    lowered = lower_loop(step, stride, size, devices, arguments, platform or current(), steps)
    with compiling() as pool:
        return begin_loop(lowered, pool)()


@contextmanager
def compiling() -> Iterator[Executor]:
    """Within it programs begin to be compiled, by `pool.submit(lowered.compile)`, with two cores for each at a time.

    They begin in the order in which they were submitted, and may end after it; where an error leaves it, those that
    wait are given up. Who needs a program waits for it: to call it meanwhile would compile it twice.
    """
    pool = ThreadPoolExecutor(max(1, cores() // 2))  # XLA keeps two busy with one program
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(wait=False)


def begin_loop(lowered: dict[int | None, jax.stages.Lowered], pool: Executor) -> Callable[[], Loop]:
    """Begins to compile the programs of `lower_loop`; what it gives waits for them."""
    begun = {length: pool.submit(program.compile) for length, program in lowered.items()}
    return lambda: loop_of({length: program.result() for length, program in begun.items()})


def lengths(platform: Platform, steps: int) -> Sequence[int | None]:
    """Of how many steps a part of an epoch, of `steps`, needs a program each; None is one for any number."""
    return [None] if platform.length is None else sorted({min(steps, platform.length), 1})


def loop_of(programs: dict[int | None, Any]) -> Loop:
    """A loop out of compiled programs, which are known by the steps of a call: one of a single step is among them, or
    one, None, of any number."""
    memory = max(program.memory_analysis().temp_size_in_bytes for program in programs.values())
    needs = max(map(needs_of, programs.values()))
    if None in programs:
        return Loop(programs[None], memory, needs)
    known = sorted(filter(None, programs), reverse=True)

    def run(state: TrainState, *arguments: Any) -> TrainState:
        *place, first, last = arguments
        while first < last:
            length = next(length for length in known if length <= last - first)
            state = programs[length](state, *place, np.int32(first))
            first += length
        return state

    return Loop(run, memory, needs, known[0])


def rounded(steps: float, loop: Loop) -> int:
    """About so many steps, as suits the loop; one at least."""
    whole = max(1, round(steps))
    return whole - whole % loop.length if whole > loop.length else whole


def make_steps(step: StepOf, stride: int, size: int, devices: Devices | None = None) -> Callable[..., TrainState]:
    """Steps first … last−1 of an epoch.

    (state, images, labels, order, start, fixed, first, last) -> state; labels are None where the model is told none.

    Step i takes the `size` images from place i·stride on of the epoch's permutation, of which `order` holds the
    places from `start` on. The bounds are arguments, so one compilation serves calls of any length (a program
    of `make_calls` serves one length; the steps are the same). Batches are split over the devices, if some are given.
    """
    one = make_one(step, stride, size, devices)

    def loop(
        state: TrainState,
        images: Shaped[Array, "images *stored"],
        labels: Int[Array, " images"] | None,
        order: Int[Array, " places"],
        start: Int[Array, ""],
        fixed: Fixed,
        first: Int[Array, ""],
        last: Int[Array, ""],
    ) -> TrainState:
        def body(i: Int[Array, ""], state: TrainState) -> TrainState:
            return one(state, images, labels, order, start, fixed, i)

        return lax.fori_loop(first, last, body, state)

    return loop


def make_calls(
    step: StepOf, stride: int, size: int, length: int, devices: Devices | None = None
) -> Callable[..., TrainState]:
    """Steps first … first+length−1 of an epoch: (state, images, labels, order, start, fixed, first) -> state, as in
    `make_steps`."""
    one = make_one(step, stride, size, devices)

    def calls(state: TrainState, *arguments: Any) -> TrainState:
        *place, first = arguments
        if length == 1:
            return one(state, *place, first)

        def turn(i: Int[Array, ""], parts: tuple[Any, ...]) -> tuple[Any, ...]:
            return one(TrainState(state.step + i, *parts), *place, first + i)[1:]

        return TrainState(state.step + length, *staging.loop(length, turn, tuple(state[1:])))

    return calls


def make_one(step: StepOf, stride: int, size: int, devices: Devices | None = None) -> Callable[..., TrainState]:
    """Step i of an epoch: (state, images, labels, order, start, fixed, i) -> state, as in `make_steps`."""
    split = devices.split if devices else lambda batch: batch

    def one(
        state: TrainState,
        images: Shaped[Array, "images *stored"],
        labels: Int[Array, " images"] | None,
        order: Int[Array, " places"],
        start: Int[Array, ""],
        fixed: Fixed,
        i: Int[Array, ""],
    ) -> TrainState:
        chosen = lax.dynamic_slice_in_dim(order, i * stride - start, size)
        batch, own_key = split(images[chosen]), step_key(fixed.key, state.step)
        epoch = state.step.astype(float) / len(state.sums)
        batch_labels = None if labels is None else labels[chosen]
        parts = state.variables, state.opt_state, batch, own_key, batch_labels, epoch
        variables, opt_state, sums = step(fixed.numbers)(*parts)
        return TrainState(state.step + 1, variables, opt_state, lax.dynamic_update_index_in_dim(state.sums, sums, i, 0))

    return one


def check_jax() -> None:
    """Refuses settings of jax's with which no model trains.

    Raises:
        UserError: naming the setting and why.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise UserError("jax_disable_jit: expected it off, since an epoch is one compiled loop; found it on")
    if (found := jax.config.jax_numpy_dtype_promotion) == "strict":  # type: ignore[attr-defined]
        raise UserError(
            f"jax_numpy_dtype_promotion: expected standard, since optax's Adam mixes floats with whole numbers; "
            f"found {found}"
        )


def check_batches(config: Config, images: int, network: Composition) -> None:
    """Refuses more steps than are counted, and a batch of one image for a network in which a batch's depend on one
    another.

    Raises:
        UserError: if a step's number would not fit 32 bits, or a batch of the epoch would hold one image only, which
            BatchNorm cannot normalise.
    """
    size = config.train.batch_size
    steps = -(-images // size)
    if steps * config.train.epochs > STEPS:
        raise UserError(
            f"train.epochs: expected at most {STEPS // steps:,}, since an epoch has {steps:,} steps and at most "
            f"{STEPS:,} are counted; found {config.train.epochs}"
        )
    if (size > 1 and images % size != 1) or not network.ties().couples:
        return
    found = "a batch of one image" if size == 1 else f"a last batch of one image ({images} images in batches of {size})"
    raise UserError(
        f"train.batch_size: expected at least two images for {config.model.network}, in which the images of a batch "
        f"depend on one another (BatchNorm), found {found}; change train.batch_size or data.validation, or take a "
        f"network without it (of ours, model.batch_norm false)"
    )


def check_parameters(config: Config, network: Composition) -> None:
    """Refuses a network whose parameters, with their gradient and the optimiser's state, do not fit into memory.

    Raises:
        UserError: naming how many there are.
    """
    shapes = jax.eval_shape(network.init, make_keys(config.seed).init)
    opt_state = jax.eval_shape(optimizer.build(config, 1).init, shapes.params)
    held = [shapes.params, shapes.params, opt_state]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))
    check_memory(size, f"model: training its {networks.count_parameters(shapes.params):,} parameters")


def blamed(config: Config, size: int) -> str:
    """The options that make a step of so many images take as much memory as it does, for messages."""
    samples = as_used(config, "objective.samples", "objective.groups")
    return f"train.batch_size {size}" + f", {samples}" * bool(samples)


def told(config: Config, split: Split) -> np.ndarray | None:
    """The labels of a split's images, where the model is told them."""
    return split.labels if config.model.classes else None


def check_labels(config: Config, data: Dataset) -> None:
    """Refuses images without the labels that the model is to be told.

    Raises:
        UserError: naming what was expected and found.
    """
    if not config.model.classes:
        return
    for name, split in (("training", data.train), ("test", data.test), ("validation", data.validation)):
        if split is None:
            continue
        if split.labels is None:
            raise UserError(f"model.classes: expected {name} images with labels; found none in {data.name}")
        if not 0 <= split.labels.min(initial=0) <= split.labels.max(initial=0) < config.model.classes:
            raise UserError(
                f"model.classes: expected labels from 0 to {config.model.classes - 1} in {data.name}; found "
                f"{split.labels.min()} to {split.labels.max()} among its {name} images"
            )


def check_numbers(config: Config, data: Dataset) -> None:
    """Refuses numbers that the likelihood is none of.

    Raises:
        UserError: naming what was expected and found.
    """
    if data.spec.support != "reals":  # others are in [0, 1]
        return
    if (interval := build(config, data.image_shape).network.likelihood.interval) is None:
        return
    (least, most), (low, high) = interval, data.interval()
    if not least <= low <= high <= most:
        raise UserError(
            f"likelihood.name: expected one of any real numbers, as gaussian, or data in [{least:g}, {most:g}]; found "
            f"{config.likelihood.name} and numbers from {low:g} to {high:g} in {data.name}"
        )


def start(
    config: Config, image_shape: tuple[int, ...], images: int, data: tuple[Array, Array | None] | None = None
) -> TrainState:
    """The state before the first step of a run on this many training images; 0 where they are not known yet.

    Args:
        config: of the run.
        image_shape: of an example.
        images: to train on.
        data: some of them and their labels, see `first_images`, of which parts are made that are made of data.

    Raises:
        UserError: if the configuration does not fit together.
    """
    network, objective = build(config, image_shape)
    key = make_keys(config.seed).init
    variables = network.init(key)
    if data and network.posterior.begin:
        variables = jax.jit(network.begin)(variables, begin_key(key), *data)
    return start_from(config, objective, variables, images)


def first_images(config: Config, split: Split) -> tuple[Array, Array | None]:
    """Images, spread over all of them, of which parts that are made of data begin, and the labels they are told."""
    chosen = split.spread(min(len(split), BEGIN_IMAGES))
    labels = told(config, chosen)
    return jnp.asarray(chosen.images), None if labels is None else jnp.asarray(labels)


def start_from(
    config: Config,
    objective: Objective,
    variables: Variables,
    images: int,
    numbers: Mapping[str, Any] = NO_NUMBERS,
) -> TrainState:
    """The same with these variables, with the optimiser's state fresh."""
    steps = max(1, -(-images // config.train.batch_size))

    # As one program: one by one, jax would compile a program for each shape of array.
    def fresh(params: PyTree) -> tuple[Array, PyTree, Array]:
        opt_state = init_optimizer(optimizer.build(config, steps, numbers), objective, params)
        return jnp.zeros((), jnp.int32), opt_state, jnp.zeros((steps, len(names_of(objective))))

    step, opt_state, sums = jax.jit(fresh)(variables.params)
    return TrainState(step, variables, opt_state, sums)


class Epoch(NamedTuple):
    """An epoch's figures, see `fit`; those with a value here are not there in every run."""

    epoch: Annotated[int, "[1, 1000000]"]
    train_loss: float
    test_loss: float
    images_per_second: Annotated[float, "[0, inf)"]
    train_seconds: Annotated[float, "(0, inf)"]
    chunk_steps: Annotated[int, "[1, 1000000000]"]
    compile_seconds: float = 0.0
    skipped_steps: int = 0
    train_reconstruction: float = math.nan
    train_kl: float = math.nan
    test_reconstruction: float = math.nan
    test_kl: float = math.nan
    validation_loss: float = math.nan
    validation_reconstruction: float = math.nan
    validation_kl: float = math.nan
    article_train_loss: float = math.nan
    article_test_loss: float = math.nan
    article_validation_loss: float = math.nan


def fit(
    config: Config,
    data: Dataset,
    *,
    devices: Devices | None = None,
    resume: tuple[TrainState, list[dict[str, Any]]] | None = None,
    on_start: Callable[[], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_chunk: Callable[[TrainState, list[dict[str, Any]]], None] | None = None,
    on_epoch: Callable[[dict[str, Any], TrainState], None] | None = None,
) -> Trained:
    """Trains the configured model.

    Args:
        config: of the run.
        data: the images.
        devices: to train on, together; by default one. The result is that of one device, up to rounding.
        resume: a state and its history to go on from, instead of starting anew.
        on_start: called before the first step, when all that may be refused has been looked at.
        on_progress: called about once a second with where the run stands.
        on_chunk: called as often inside an epoch, with the state and the history so far: the place to save.
        on_epoch: called after each epoch with its figures and the state: the place for W&B or TensorBoard. The
            state's buffers are used again after a callback returns; copy what you keep.

    Returns:
        The trained model. Its history has one dict per epoch: "epoch"; "train_loss", "train_reconstruction",
        "train_kl" and so on for each of the objective's figures (means over the epoch's images as it trained); the
        same of "test_" and, with a validation split, "validation_" (z sampled); "article_train_loss" and
        "article_test_loss" (the figure the article prints: the mean over batches of the batch's sum);
        "images_per_second" and "train_seconds" (compilation and evaluation excluded), "compile_seconds" and
        "chunk_steps"; with `train.skip_nonfinite`, "skipped_steps", which the means leave out. Figures are per image,
        in the objective's units.

    Raises:
        UserError: if the configuration does not fit the data, or nothing trains as jax is set.
        Diverged: if the loss or the gradient becomes infinite or NaN; with `train.skip_nonfinite`, in all steps of an
            epoch.
    """
    check_jax()
    config, devices = settled(config, data), devices or Devices()
    if resume is None and config.train.start is not None:
        from vae_jax.finetune import begun_from

        resume = begun_from(config, data.image_shape, len(data.train)), []
    program = Single(config, data, devices, resume)
    if on_start:
        on_start()
    _, history = resume or (None, [])
    (ended,) = drive(
        program,
        [config],
        [list(history)],
        on_progress=on_progress,
        on_chunk=on_chunk and (lambda members, get: on_chunk(*get(0))),
        on_epoch=on_epoch and (lambda member, figures, state: on_epoch(figures, state)),
    )
    if isinstance(ended, Diverged):
        raise ended
    return Trained(config, data.image_shape, *ended, data.class_names)


class Program(ABC):
    """Compiled training and evaluation of some runs, the members, side by side: what `drive` needs of it.

    Its states, as it carries them, are nobody else's to look into.

    Attributes:
        size: how many members.
        count: training images.
        steps: of an epoch.
        batch_size: images of a step but the epoch's last one.
        names: of the objective's figures.
        parts: the epoch's full batches, then its last, smaller one: (end of the part, images in a batch, compiled).
        splits: of which there are images to evaluate on.
        call_seconds: how long a call should take.
        compile_seconds: how long compiling took.
    """

    size: int
    count: int
    steps: int
    batch_size: int
    names: tuple[str, ...]
    parts: list[tuple[int, int, Loop]]
    splits: list[str]
    call_seconds: float
    compile_seconds: float

    @abstractmethod
    def start(self) -> tuple[Any, int]:
        """The states, which `train` takes over, and how many steps they have taken."""

    @abstractmethod
    def shards(self, epoch: int, first: int) -> Iterator[tuple[int, Any]]:
        """An epoch's images from this place on: the place after the last of a part, and the part."""

    @abstractmethod
    def train(self, loop: Loop, states: Any, alive: Bool[np.ndarray, " n"], shard: Any, first: int, last: int) -> Any:
        """The states after steps first … last−1 of an epoch, of the members that are alive."""

    @abstractmethod
    def sums(self, states: Any) -> Float[np.ndarray, "n steps figures"]:
        """Each member's `TrainState.sums`."""

    @abstractmethod
    def finite(self, states: Any) -> Bool[np.ndarray, " n"]:
        """Whether what each member's last step left is finite."""

    @abstractmethod
    def whole(self, states: Any) -> Any:
        """The states as trees, which are good until the next call of `train`."""

    @abstractmethod
    def member(self, whole: Any, number: int) -> TrainState:
        """One member's state, of what `whole` gives."""

    @abstractmethod
    def evaluate(self, split: str, whole: Any) -> list[Terms]:
        """Each member's terms of a split's images."""

    @abstractmethod
    def agree(self, value: Any) -> Any:
        """The same value in every process."""


def drive(
    program: Program,
    configs: Sequence[Config],
    histories: list[History],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_chunk: Callable[[list[int], Callable[[int], tuple[TrainState, History]]], None] | None = None,
    on_epoch: Callable[[int, dict[str, Any], TrainState], None] | None = None,
    on_epoch_end: Callable[[Progress], None] | None = None,
    on_diverged: Callable[[int, Diverged], None] | None = None,
) -> list[tuple[TrainState, History] | Diverged]:
    """Trains members side by side; the only loop over epochs and calls.

    Args:
        program: compiled for as many members, or for more.
        configs: of the members; they have as many epochs.
        histories: of the members so far; they grow.
        on_progress: called after each call inside an epoch with where the members stand.
        on_chunk: called after that with the numbers of the members that train and a function that gives such a member's
            state and history.
        on_epoch: called after each epoch, once for each member, with its number, figures and state.
        on_epoch_end: called after that with where the members stand.
        on_diverged: called where a member diverges, with its number and why.

    Returns:
        Of each member its final state and its history; or why it diverged. A member that diverges, or stops early, is
        left as it is, and the others go on.
    """
    train, steps, size = configs[0].train, program.steps, program.batch_size
    failures: list[Diverged | None] = [None] * len(configs)
    states, taken = program.start()
    alive = np.zeros(program.size, bool)
    # An epoch that has begun is ended first, though by a patience that is lower now the run would have stopped.
    alive[: len(configs)] = [taken % steps or not has_stopped(*run) for run in zip(configs, histories, strict=True)]

    def fail(member: int, error: Diverged) -> None:
        failures[member], alive[member] = error, False
        if on_diverged:
            on_diverged(member, error)

    chunk = train.chunk_steps or (histories[0][-1]["chunk_steps"] if histories[0] else FIRST_CHUNK)
    done = taken % steps
    for epoch in range(taken // steps, train.epochs):
        if not alive.any():
            break
        first, seconds, shares, images, loss = done, 0.0, 0.0, 0, math.nan
        began = time.perf_counter()
        for shard_last, shard in program.shards(epoch, done * size):
            shard_end = -(-shard_last // size)
            for end, batch, loop in program.parts:
                while done < min(end, shard_end) and alive.any():
                    length = min(chunk, min(end, shard_end) - done)
                    states = program.train(loop, states, alive, shard, done, done + length)
                    jax.block_until_ready(states)
                    elapsed, count = time.perf_counter() - began, int(alive.sum())
                    if not train.chunk_steps and length == chunk and batch == size:
                        chunk = int(program.agree(rounded(program.call_seconds * length / elapsed, loop)))
                    images += count * min(length * size, program.count - done * size)
                    done, seconds, shares = done + length, seconds + elapsed, shares + elapsed / count
                    # A gradient that is not finite shows in the next step's loss, or in what it left behind.
                    sums, left_finite = program.sums(states), program.finite(states)
                    for member in np.flatnonzero(alive).tolist():
                        own = sums[member, :done]
                        try:
                            check_finite(
                                configs[member], own, bool(left_finite[member]), epoch, steps, histories[member]
                            )
                        except Diverged as error:
                            fail(member, error)
                    training = np.flatnonzero(alive).tolist()
                    if done < steps and training:
                        if on_progress:
                            losses = [_means(sums[member, :done], done * size, size)[0][0] for member in training]
                            loss = float(np.mean(losses))
                            on_progress(Progress(epoch + 1, done, steps, loss, images / seconds))
                        if on_chunk:
                            whole = program.whole(states)
                            on_chunk(training, partial(_look, program, whole, histories))
                            del whole
                    began = time.perf_counter()
        if not alive.any():
            break
        whole, sums = program.whole(states), program.sums(states)
        terms = {split: program.evaluate(split, whole) for split in program.splits}
        for member in np.flatnonzero(alive).tolist():
            config = configs[member]
            figures = {"epoch": epoch + 1, **train_figures(config, program.names, sums[member], program.count)}
            try:
                for split, found in terms.items():
                    figures |= split_figures(split, found[member], size)
                    if not np.isfinite(figures[f"{split}_loss"]):
                        what = f"the {split} loss is {figures[f'{split}_loss']}"
                        raise diverged(config, epoch, what, f"train loss {figures['train_loss']:.6g} in this epoch")
            except Diverged as error:
                fail(member, error)
                continue
            figures |= {
                "images_per_second": (program.count - first * size) / shares,
                "train_seconds": shares,
                "compile_seconds": program.compile_seconds,
                "chunk_steps": chunk,
            }
            histories[member].append(figures)
            alive[member] = not has_stopped(config, histories[member])
            if on_epoch:
                on_epoch(member, figures, program.member(whole, member))
        done = 0
        del whole, terms  # where nothing is packed it is the states themselves, whose memory the next epoch takes over
        if on_epoch_end:
            on_epoch_end(Progress(epoch + 1, steps, steps, loss, images / seconds))
    whole = program.whole(states)
    ended = [failure or program.member(whole, member) for member, failure in enumerate(failures)]
    return [
        state if isinstance(state, Diverged) else (state, history)
        for state, history in zip(ended, histories, strict=True)
    ]


def has_stopped(config: Config, history: History) -> bool:
    """Whether a run with these figures has stopped early, see `TrainConfig.patience`."""
    if config.train.patience is None:
        return False
    lowest, since = math.inf, 0
    for figures in history:
        fell = figures["validation_loss"] < lowest - config.train.min_delta
        lowest, since = (figures["validation_loss"], 0) if fell else (lowest, since + 1)
        if since == config.train.patience:
            return True
    return False


def check_patience(config: Config, data: Dataset) -> None:
    """Refuses early stopping where there is nothing to stop by.

    Raises:
        UserError: if there are no validation images, or only one of the two options is set.
    """
    if config.train.patience is not None and data.validation is None:
        raise UserError(
            f"train.patience: expected validation images, by whose loss training stops; found none in {data.name}; set "
            f"data.validation"
        )
    if config.train.patience is None and config.train.min_delta:
        raise UserError("train.min_delta: expected train.patience with it; found null")


def _look(program: Program, whole: Any, histories: list[History], member: int) -> tuple[TrainState, History]:
    return program.member(whole, member), histories[member]


def epoch_parts(images: int, batch_size: int) -> list[tuple[int, int, int]]:
    """An epoch's full batches, then its last, smaller one: (end of the part, images in a batch, how many batches)."""
    full, remainder = divmod(images, batch_size)
    parts = [(full, batch_size, full), (full + (remainder > 0), remainder, 1)]
    return [part for part in parts if part[1] and part[2]]


class Single(Program):
    """One run's program, on one device or on several; see `Program`."""

    size, call_seconds = 1, 1.0

    def __init__(
        self, config: Config, data: Dataset, devices: Devices, resume: tuple[TrainState, History] | None = None
    ):
        """Compiles.

        Args:
            config: of the run, settled.
            data: the images.
            devices: to train on.
            resume: a state and its history to go on from.

        Raises:
            UserError: if the configuration does not fit the data, or memory does not suffice.
        """
        self.count, self.batch_size, self._devices = len(data.train), config.train.batch_size, devices
        network, objective = build(config, data.image_shape)
        check_batches(config, self.count, network)
        check_parameters(config, network)
        self.names, self.steps = names_of(objective), -(-self.count // self.batch_size)
        transformation = optimizer.build(config, self.steps)
        step = step_of(config, network, objective, self.steps)
        self._keys = make_keys(config.seed)

        some = first_images(config, data.train) if network.posterior.begin and not resume else None
        state = resume[0] if resume else start(config, data.image_shape, self.count, some)
        # Copied, since the loop takes its argument's buffers over: the caller's state survives.
        state = devices.whole(jax.jit(partial(jax.tree.map, jnp.copy))(state))
        pack_state, self._unpack = make_packing(network.platform, transformation, objective)
        if network.platform.packed:
            pack_state, self._unpack = (jax.jit(each, **devices.outputs) for each in (pack_state, self._unpack))
        variables, state = state.variables, pack_state(state)
        check_labels(config, data)
        check_numbers(config, data)
        check_patience(config, data)
        data.warn_of_darkness()
        labels = told(config, data.train)
        self._feed = Feed(data.train.images, config.train.shard_images, self.batch_size, labels, devices)
        self._evaluators = {
            name: make_evaluator(config, network, objective, split.images, labels=told(config, split), devices=devices)
            for name, split in (("test", data.test), ("validation", data.validation))
            if split is not None
        }
        self.splits = list(self._evaluators)

        began = time.perf_counter()
        self._config = config
        self._shuffle = jax.jit(partial(epoch_order, images=self.count))
        self._finite = jax.jit(all_finite)
        self._fixed, self._evaluation_key = devices.whole((fixed_of(config), self._keys.evaluate))
        zero = np.int32(0)
        images, places = self._feed.shapes
        classes = places if config.model.classes else None
        arguments = (state, images, classes, places, zero, self._fixed, zero, zero)
        with compiling() as pool:
            loops = []
            for end, size, times in epoch_parts(self.count, self.batch_size):
                lowered = lower_loop(step, self.batch_size, size, devices, arguments, network.platform, times)
                loops.append((end, size, begin_loop(lowered, pool)))
            small = [
                self._shuffle.lower(self._keys.shuffle, zero),
                self._finite.lower(watched(state.variables, state.opt_state)),
            ]
            if network.platform.packed:
                small.append(cast(Any, self._unpack).lower(state))
            small = [pool.submit(program.compile) for program in small]
            for evaluate in self._evaluators.values():
                evaluate.prepare(variables, self._evaluation_key, pool)
            self.parts = [(end, size, loop()) for end, size, loop in loops]
            for program in small:
                program.result()
        del variables  # where the state is packed, a copy of it
        self.compile_seconds = time.perf_counter() - began
        for _, size, loop in self.parts:
            check_memory(loop.memory, f"{blamed(config, size)}: the arrays of a step")
        for evaluate in self._evaluators.values():
            evaluate.check()
        self._state: TrainState | None = state

    def start(self) -> tuple[TrainState, int]:
        state, self._state = self._state, None
        assert state is not None
        return state, int(state.step)

    def shards(self, epoch: int, first: int) -> Iterator[tuple[int, Shard]]:
        for shard in self._feed.shards(self._shuffle(self._keys.shuffle, jnp.int32(epoch)), first):
            yield shard.last, shard

    def train(self, loop: Loop, states: TrainState, alive: Any, shard: Shard, first: int, last: int) -> TrainState:
        place = shard.images, shard.labels, shard.order, np.int32(shard.first)
        return loop.run(states, *place, self._fixed, np.int32(first), np.int32(last))

    def sums(self, states: TrainState) -> Float[np.ndarray, "1 steps figures"]:
        return np.asarray(states.sums, np.float64)[None]

    def finite(self, states: TrainState) -> Bool[np.ndarray, " 1"]:
        return np.asarray(self._finite(watched(states.variables, states.opt_state)))[None]

    def whole(self, states: TrainState) -> TrainState:
        return self._unpack(states)

    def member(self, whole: TrainState, number: int) -> TrainState:
        return self._devices.local(whole)

    def evaluate(self, split: str, whole: TrainState) -> list[Terms]:
        return [self._evaluators[split](used(self._config, whole), self._evaluation_key)]

    def agree(self, value: Any) -> Any:
        return self._devices.agree(value)


def check_finite(
    config: Config,
    sums: Float[np.ndarray, "done figures"],
    left_finite: bool,
    epoch: int,
    steps: int,
    history: list[dict[str, Any]],
) -> None:
    """Stops a run whose losses, or what the last step left (parameters, running statistics, the optimiser's
    state), are no numbers any more.

    Raises:
        Diverged: naming the first such step of the epoch.
    """
    finite: Any = np.isfinite(sums).all(1)
    may_go_on = finite.all() or (config.train.skip_nonfinite and (finite.any() or len(sums) < steps))
    if left_finite and may_go_on:
        return
    if may_go_on:
        bad, found = len(sums), f"parameters or the optimiser's state are not finite after step {len(sums)} of {steps}"
    else:
        bad = int(np.flatnonzero(~finite)[0])
        found = f"the loss of step {bad + 1} of {steps} is {sums[bad, 0]}"
    last = []
    if before := np.flatnonzero(finite[:bad]).tolist():
        per_image = sums[before[-1], 0] / config.train.batch_size  # only an epoch's last step has fewer images
        last.append(f"loss {per_image:.6g} per {config.data.noun} in step {before[-1] + 1}")
    if history:
        last.append(f"test loss {history[-1]['test_loss']:.6g} after epoch {history[-1]['epoch']}")
    raise diverged(config, epoch, found, ", ".join(last) or "none")


def diverged(config: Config, epoch: int, found: str, last: str) -> Diverged:
    return Diverged(f"training diverged in epoch {epoch + 1}: {found}; last finite: {last}; {remedies(config)}")


def remedies(config: Config) -> str:
    """What most likely helps where a training diverges."""
    train = config.train
    steps = [
        f"a lower train.learning_rate (now {train.learning_rate:g})",
        *(["train.gradient_clip"] if train.gradient_clip is None else []),
        *(["train.warmup_steps"] if not train.warmup_steps else []),
        *(["model.precision float32"] if config.model.precision == "bfloat16" else []),
        *(["train.skip_nonfinite, if it is rare"] if not train.skip_nonfinite else []),
    ]
    return f"what helps most often: {', '.join(steps)}"


def _means(
    sums: Float[np.ndarray, "steps figures"], images: int, batch_size: int
) -> tuple[Float[np.ndarray, " figures"], Float[np.ndarray, " figures"], int]:
    """Of these steps' sums over `images` images, skipped steps left out: means per image, means per step and how many
    are skipped."""
    finite = np.isfinite(sums).all(1)
    skipped = np.flatnonzero(~finite)
    # Only an epoch's last step may have fewer images than a full batch.
    images -= sum(min(batch_size, images - step * batch_size) for step in skipped.tolist())
    if not images:
        return np.full(sums.shape[1], np.nan), np.full(sums.shape[1], np.nan), len(skipped)
    total = sums[finite].sum(0)
    return total / images, total / finite.sum(), len(skipped)


def train_figures(
    config: Config, names: Sequence[str], sums: Float[np.ndarray, "steps figures"], count: int
) -> dict[str, float]:
    """Means per image over the epoch's steps of the figures of these names, and the article's figure."""
    per_image, per_step, skipped = _means(sums, count, config.train.batch_size)
    return {
        **{f"train_{name}": value for name, value in zip(names, per_image.tolist(), strict=True)},
        "article_train_loss": float(per_step[0]),
        **({"skipped_steps": skipped} if config.train.skip_nonfinite else {}),
    }


def split_figures(split: str, terms: Terms, batch_size: int) -> dict[str, float]:
    """Means per image of a split's terms, and the article's figure for it."""
    figures, count = means(terms), len(terms["loss"])
    return {
        **{f"{split}_{name}": value for name, value in figures.items()},
        f"article_{split}_loss": figures["loss"] * count / -(-count // batch_size),
    }
