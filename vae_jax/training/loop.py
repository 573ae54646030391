"""Steps of an epoch as compiled programs.

A call runs any number of steps, so that progress can be shown and the run saved between calls. The division into calls
changes nothing: a step's loss has its own place in the state, and its key is folded from the step's number.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Shaped

from vae_jax.blocks.convolution import is_slow_in_loops
from vae_jax.device.devices import Devices, cores
from vae_jax.device.platforms import Platform, built_for, current
from vae_jax.keys import step_key
from vae_jax.objectives import Objective
from vae_jax.optimizer import Optimizer
from vae_jax.programs import staging
from vae_jax.programs.packing import pack, pack_like, unpack
from vae_jax.training.state import Fixed, TrainState, one_phase
from vae_jax.training.step import StepOf
from vae_jax.variables import Variables


class Packing(NamedTuple):
    """How a loop carries its state, see `vae_jax.programs.packing`.

    Attributes:
        pack: state -> state, packed for the loop.
        unpack: its inverse.
    """

    pack: Callable[[TrainState], TrainState]
    unpack: Callable[[TrainState], TrainState]


def make_packing(platform: Platform, transformation: Optimizer, objective: Objective | None = None) -> Packing:
    """The platform's packing.

    Parameters and the optimiser's state stay trees if their shapes matter to the optimiser, or the objective has
    several phases.
    """
    packs_all = transformation.elementwise and (objective is None or one_phase(objective))

    def pack_state(state: TrainState) -> TrainState:
        params, parts = state.variables
        opt_state = state.opt_state
        if packs_all:
            params = pack(params)
            opt_state = pack_like(jax.eval_shape(transformation.init, params), opt_state)
        packed = {name: pack(part) for name, part in parts.items()}
        return state._replace(variables=Variables(params, packed), opt_state=opt_state)

    return Packing(pack_state, unpack) if platform.packed else Packing(lambda state: state, lambda state: state)


class Loop(NamedTuple):
    """Compiled steps of an epoch.

    Attributes:
        run: (state, images, labels, order, start, fixed, first, last) -> state, see `make_steps`; it takes the state's
            buffers over.
        memory: bytes of the arrays of a step.
        needs: bytes that a call needs beside its arguments.
        length: the number of steps of which a call's steps should be a multiple.
    """

    run: Callable[..., TrainState]
    memory: int
    needs: int
    length: int = 1


def needs_of(program: Any) -> int:
    """Bytes that a compiled program needs beside its arguments."""
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


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
    """The lowered programs of a part of an epoch, of `steps` steps, for arguments of these shapes.

    They are keyed by the steps of a call; the key None is one program that runs any number of steps, `make_steps`.
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
    """A pool that compiles programs by `pool.submit(lowered.compile)`, with two cores for a program at a time.

    Programs begin in the order in which they are submitted, and may end after the context. After an error in the
    context, waiting programs are dropped. Wait for a program before you call it: a call would compile it twice.
    """
    pool = ThreadPoolExecutor(max(1, cores() // 2))  # XLA keeps two busy with one program
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(wait=False)


def begin_loop(lowered: dict[int | None, jax.stages.Lowered], pool: Executor) -> Callable[[], Loop]:
    """Begins to compile the programs of `lower_loop`; the function that it gives waits for them."""
    begun = {length: pool.submit(program.compile) for length, program in lowered.items()}
    return lambda: loop_of({length: program.result() for length, program in begun.items()})


def lengths(platform: Platform, steps: int) -> Sequence[int | None]:
    """The steps of the calls for which a part of an epoch, of `steps`, needs programs; None is any number."""
    return [None] if platform.length is None else sorted({min(steps, platform.length), 1})


def loop_of(programs: dict[int | None, Any]) -> Loop:
    """The loop of compiled programs, keyed by the steps of a call: with one of 1 step, or one, None, of any number."""
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
    """About `steps` steps, a multiple of the loop's length; at least one."""
    whole = max(1, round(steps))
    return whole - whole % loop.length if whole > loop.length else whole


def make_steps(step: StepOf, stride: int, size: int, devices: Devices | None = None) -> Callable[..., TrainState]:
    """Steps first … last−1 of an epoch.

    (state, images, labels, order, start, fixed, first, last) -> state; labels are None if the model gets none.

    Step i takes the `size` images from place i·stride on of the epoch's permutation, whose places from `start` on are
    in `order`. The bounds are arguments, so that one compilation serves calls of any length (a program of `make_calls`
    serves one length; the steps are the same). Batches are split over the devices, if there are any.
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
    """Steps first … first+length−1 of an epoch, as in `make_steps`.

    (state, images, labels, order, start, fixed, first) -> state.
    """
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
        batch, key = split(images[chosen]), step_key(fixed.key, state.step)
        epoch = state.step.astype(float) / len(state.sums)
        batch_labels = None if labels is None else labels[chosen]
        parts = state.variables, state.opt_state, batch, key, batch_labels, epoch
        variables, opt_state, sums = step(fixed.numbers)(*parts)
        return TrainState(state.step + 1, variables, opt_state, lax.dynamic_update_index_in_dim(state.sums, sums, i, 0))

    return one


def epoch_parts(images: int, batch_size: int) -> list[tuple[int, int, int]]:
    """An epoch's full batches, then its last, smaller one: (end of the part, images in a batch, how many batches)."""
    full, remainder = divmod(images, batch_size)
    parts = [(full, batch_size, full), (full + (remainder > 0), remainder, 1)]
    return [part for part in parts if part[1] and part[2]]
