"""One compiled program that trains many runs that differ in numbers only.

On an accelerator the members train side by side (`vmap`). On a CPU, whose cores one member fills, they train in turn
inside the program (`lax.map`), which saves the time between calls and keeps a member's arithmetic that of a single run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from vae_jax import optimizer
from vae_jax.blocks.convolution import is_slow_in_loops
from vae_jax.config import Config, at_default, numbers_of, traced_in
from vae_jax.data.dataset import Dataset
from vae_jax.device import memory
from vae_jax.device.feed import fits
from vae_jax.errors import Diverged, UserError
from vae_jax.evaluation.evaluator import make_terms
from vae_jax.keys import begin_key, make_keys
from vae_jax.model.batches import block
from vae_jax.model.build import build
from vae_jax.objectives import Terms
from vae_jax.training.checks import (
    check_batches,
    check_jax,
    check_labels,
    check_numbers,
    check_parameters,
    check_patience,
)
from vae_jax.training.driver import Program, drive
from vae_jax.training.figures import History
from vae_jax.training.loop import (
    Loop,
    begin_loop,
    compiling,
    epoch_parts,
    lengths,
    make_calls,
    make_packing,
    make_steps,
    needs_of,
)
from vae_jax.training.single import epoch_order
from vae_jax.training.start import first_images, start_from
from vae_jax.training.state import Fixed, TrainState, evaluated_variables, names_of
from vae_jax.training.step import all_finite, step_of, watched

SHARE = 0.8  # of the free memory, which a program may take
MOST = 500  # members of a program; also half of the files that a process may open: a member's folder has a lock
Numbers = dict[str, Array]  # of all members, by option, see `vae_jax.training.state.Fixed`


class Run(NamedTuple):
    """One run of several.

    Attributes:
        config: of the run.
        resume: the state and the history that it goes on from, or None to start fresh.
    """

    config: Config
    resume: tuple[TrainState, History] | None = None


def shared_config(config: Config) -> Config:
    """The configuration without the options in which members of one program may differ."""
    return at_default(config, ["seed", *traced_in(config)])


def _over_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of one member's arguments as a function of all members'."""
    if jax.default_backend() != "cpu":
        return jax.vmap(function)
    return lambda *arguments: lax.map(lambda member: function(*member), arguments)


class Images:
    """A data set on the device, once for all programs.

    Attributes:
        data: the data set.
    """

    def __init__(self, data: Dataset):
        """Copies the data set to the device."""
        self.data = data
        splits = {"train": data.train, "test": data.test, "validation": data.validation}
        self._splits = {
            name: (jnp.asarray(split.images), None if split.labels is None else jnp.asarray(split.labels, jnp.int32))
            for name, split in splits.items()
            if split is not None
        }

    def of(self, name: str, config: Config) -> tuple[Array, Array | None]:
        """A split's images, and their labels if the model gets them."""
        images, labels = self._splits[name]
        return images, labels if config.model.classes else None


class Several(Program):
    """Training and evaluation of a fixed number of members, compiled once.

    Attributes:
        size: how many members.
        pack: states -> states, packed for `train`, see `vae_jax.training.loop.Packing`; `unpack` is the inverse.
        splits: names of the splits to evaluate.
        names: of the objective's figures.
        compile_seconds: how long compiling took.
        needs: bytes that it takes to run, without the images.
        initial: (seeds, numbers) -> states of members that start fresh.
        slow: whether it has XLA's own convolution in a loop on a CPU, see `is_slow_in_loops`.
    """

    call_seconds = 5.0  # of a call after the first; every member's state is checked between calls

    def __init__(self, configs: Sequence[Config], images: Images, size: int):
        """Compiles the program.

        Args:
            configs: of the members, with one `shared_config`.
            images: which all members share.
            size: how many members train at once.
        """
        data = images.data
        began = time.perf_counter()
        self.config, self.size, self.count = configs[0], size, len(data.train)
        self._states: TrainState | None = None
        self._network, self._objective = build(self.config, data.image_shape)
        self.names = names_of(self._objective)
        batch_size = self.batch_size = self.config.train.batch_size
        self.steps = -(-self.count // batch_size)
        self._images = images.of("train", self.config)
        self.splits = ["test"] if data.validation is None else ["test", "validation"]
        self._first = first_images(self.config, data.train)
        self.initial = jax.jit(_over_members(self._start))
        self._finite = jax.jit(jax.vmap(all_finite))
        platform = self._network.platform
        self.pack, self.unpack = make_packing(platform, optimizer.build(self.config, self.steps), self._objective)
        if platform.packed:
            self.pack, self.unpack = jax.jit(jax.vmap(self.pack)), jax.jit(jax.vmap(self.unpack))

        seeds, numbers = self.arguments([self.config] * size)
        states = jax.eval_shape(self.initial, seeds, numbers)
        orders, flags, zero = jax.ShapeDtypeStruct((size, self.count), jnp.int32), np.ones(size, bool), np.int32(0)
        arguments = (jax.eval_shape(self.pack, states), flags, orders, seeds, numbers, *self._images, zero)
        self.slow, begun, looks = False, [], {}
        with compiling() as pool:
            for end, batch, steps in epoch_parts(self.count, batch_size):
                lowered = {
                    length: jax.jit(partial(self._train, batch, length), donate_argnums=0).lower(
                        *arguments, *([zero] if length is None else [])
                    )
                    for length in lengths(platform, steps)
                }
                self.slow = self.slow or any(map(is_slow_in_loops, lowered.values()))
                begun.append((end, batch, begin_loop(lowered, pool)))
            for split in self.splits:
                shown = images.of(split, self.config)
                lowered = jax.jit(self._terms).lower(states, seeds, numbers, *shown)
                looks[split] = pool.submit(lowered.compile), shown
            shuffle = jax.jit(jax.vmap(self._shuffle, (0, None))).lower(seeds, jnp.int32(0))
            self.shuffle = pool.submit(shuffle.compile).result()
            self.parts = [(end, batch, loop()) for end, batch, loop in begun]
            self._evaluators = {split: (program.result(), shown) for split, (program, shown) in looks.items()}
        self.compile_seconds = time.perf_counter() - began
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((states, orders)))
        programs = [self.shuffle, *(program for program, _ in self._evaluators.values())]
        self.needs = held + max(*map(needs_of, programs), *(loop.needs for _, _, loop in self.parts))

    def arguments(self, configs: Sequence[Config]) -> tuple[Array, Numbers]:
        """The seeds and the numbers of options, in which members may differ."""
        numbers = jax.tree.map(lambda *values: jnp.stack(values), *map(numbers_of, configs))
        return jnp.asarray([config.seed for config in configs], jnp.uint32), numbers

    def take(self, members: Sequence[Run]) -> None:
        """Takes the members to train, at most `size`.

        Raises:
            UserError: if one begins with another run's weights and does not bring them.
        """
        if strange := [member for member in members if member.config.train.start and not member.resume]:
            raise UserError(
                f"train.start: expected members that bring the weights they begin with; found one without those of "
                f"{strange[0].config.train.start}"
            )
        surplus = [members[-1]] * (self.size - len(members))  # never trained; the program needs its size
        filled_up = [*members, *surplus]
        self._seeds, self._numbers = self.arguments([member.config for member in filled_up])
        resumed = [member.resume[0] for member in filled_up if member.resume]
        if resumed:
            states = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *resumed)
        else:
            states = self.initial(self._seeds, self._numbers)
        self._states = self.pack(states)

    def start(self) -> tuple[TrainState, int]:
        states, self._states = self._states, None
        assert states is not None
        return states, int(states.step[0])

    def shards(self, epoch: int, first: int) -> Iterator[tuple[int, Array]]:
        """The members' orders of the images, as one part: the device holds all images."""
        yield self.count, self.shuffle(self._seeds, jnp.int32(epoch))

    def train(
        self, loop: Loop, states: TrainState, alive: Bool[np.ndarray, " n"], shard: Array, first: int, last: int
    ) -> TrainState:
        """Takes the packed states' buffers over."""
        bounds = np.int32(first), np.int32(last)
        return loop.run(states, alive, shard, self._seeds, self._numbers, *self._images, *bounds)

    def sums(self, states: TrainState) -> Float[np.ndarray, "n steps figures"]:
        """The members' sums."""
        return np.asarray(states.sums, np.float64)

    def finite(self, states: TrainState) -> Bool[np.ndarray, " n"]:
        """Whether the members' states are finite."""
        return np.asarray(self._finite(watched(*states[1:3])))

    def whole(self, states: TrainState) -> "_Whole":
        """All members' states."""
        return _Whole(self.unpack(states))

    def member(self, whole: "_Whole", number: int) -> TrainState:
        """One member's state, on the host."""
        return _at(whole.host, number)

    def evaluate(self, split: str, whole: "_Whole") -> list[Terms]:
        """The members' terms, (images,) each."""
        evaluate, shown = self._evaluators[split]
        terms = jax.device_get(evaluate(whole.states, self._seeds, self._numbers, *shown))
        return [_at(terms, number) for number in range(self.size)]

    def agree(self, value: Any) -> Any:
        """The value, since there is one process."""
        return value

    def _start(self, seed: Array, numbers: Numbers) -> TrainState:
        key = make_keys(seed).init
        variables = self._network.init(key)
        if self._network.posterior.begin:
            variables = self._network.begin(variables, begin_key(key), *self._first)
        return start_from(self.config, self._objective, variables, self.count, numbers)

    def _shuffle(self, seed: Array, epoch: Array) -> Array:
        return epoch_order(make_keys(seed).shuffle, epoch, self.count)

    def _train(self, size, length, states, alive, orders, seeds, numbers, images, labels, first, *last):
        def member(state, alive, order, seed, numbers):
            step = step_of(self.config, self._network, self._objective, self.steps)
            stride = self.config.train.batch_size
            steps = make_calls(step, stride, size, length) if length else make_steps(step, stride, size)

            def train(state: TrainState) -> TrainState:
                fixed = Fixed(make_keys(seed).steps, numbers)
                return steps(state, images, labels, order, jnp.int32(0), fixed, first, *last)

            return lax.cond(alive, train, lambda state: state, state)

        return _over_members(member)(states, alive, orders, seeds, numbers)

    def _terms(self, states, seeds, numbers, images, labels):
        size = block(self.config, self._objective, len(images))
        terms = make_terms(self.config, self._network, self._objective, size)

        def member(state, seed, numbers):
            variables = evaluated_variables(self.config, state, numbers)
            key = make_keys(seed).evaluate
            return terms(variables, images, labels, jnp.int32(0), key, numbers=numbers)

        return _over_members(member)(states, seeds, numbers)


def check(config: Config, data: Dataset) -> None:
    """Refuses a configuration or data that members cannot train on.

    Raises:
        UserError: if the configuration does not fit the data, the data do not fit into the device's memory, or nothing
            trains with jax's settings.
    """
    check_jax()
    splits = [split.images for split in (data.train, data.test, data.validation) if split is not None]
    if config.train.shard_images or not all(map(fits, splits)):
        raise UserError(
            f"train.shard_images: expected 0 and images that fill at most a quarter of the device's memory, since "
            f"members share them; found {config.train.shard_images} and up to "
            f"{max(images.nbytes for images in splits) / 1e6:,.0f} MB of images"
        )
    composition, objective = build(config, data.image_shape)
    check_batches(config, len(data.train), composition)
    check_parameters(config, composition)
    check_labels(config, data)
    check_numbers(config, data)
    check_patience(config, data)
    step_of(config, composition, objective, 1)({})


def program_that_fits(configs: Sequence[Config], images: Images, at_most: int | None = None) -> Several:
    """A program for all members, or for as many at a time as fit into memory.

    Args:
        configs: of the members, with one `shared_config`.
        images: which all members share.
        at_most: how many at a time; by default `most`.

    Raises:
        UserError: if not even one fits, or `check` refuses them.
    """
    check(configs[0], images.data)
    size = _even(len(configs), at_most or most())
    while True:
        part, needs = 0.5, "more than there is"
        try:
            program = Several(configs, images, size)
            part, needs = SHARE * _free() / program.needs, f"{program.needs / 1e6:,.0f} MB"
            if part >= 1:
                return program
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):  # some compilers see that it does not fit
                raise
        if size == 1:
            raise UserError(
                f"train.batch_size {configs[0].train.batch_size}: training one member needs {needs}; "
                f"{_free() / 1e6:,.0f} MB are free"
            )
        # The memory that grows with the members is at most all of it.
        size = _even(len(configs), max(1, min(size - 1, int(size * part))))


def most() -> int:
    """How many members a program may have."""
    try:
        import resource
    except ImportError:  # Windows
        return MOST
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(1, min(MOST, files // 2))


def _even(count: int, most: int) -> int:
    """How many members train at once, so that all turns have about the same number."""
    return -(-count // -(-count // most))


def _free() -> int:
    """Free bytes of the device's memory."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats and "bytes_limit" in stats else memory.available()


def fit(
    program: Several, members: Sequence[Run], *, on_start: Callable[[], None] | None = None, **callbacks: Any
) -> list[tuple[TrainState, History] | Diverged]:
    """Trains members side by side; the results are those of `vae_jax.runs.fit.fit`, up to rounding.

    Args:
        program: compiled for as many members, or for more.
        members: to train; all are at the same step.
        on_start: called before the first step.
        **callbacks: those of `vae_jax.training.driver.drive`.

    Returns:
        As `vae_jax.training.driver.drive`; the speeds in a history are a member's share of the total.
    """
    program.take(members)
    if on_start:
        on_start()
    histories = [list(member.resume[1]) if member.resume else [] for member in members]
    return drive(program, [member.config for member in members], histories, **callbacks)


class _Whole:
    """All members' states, and on demand a copy on the host."""

    def __init__(self, states: TrainState):
        self.states = states

    @cached_property
    def host(self) -> TrainState:
        return jax.device_get(self.states)


def _at(tree: PyTree, member: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[member], tree)
