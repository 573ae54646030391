"""One run's program, on one device or on several."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vae_jax import optimizer
from vae_jax.config import Config
from vae_jax.data.dataset import Dataset
from vae_jax.device.devices import Devices
from vae_jax.device.feed import Feed, Shard
from vae_jax.evaluation.evaluator import make_evaluator
from vae_jax.keys import epoch_key, make_keys
from vae_jax.model.build import build
from vae_jax.objectives import Terms
from vae_jax.programs.sizes import check_memory
from vae_jax.training.checks import (
    check_batches,
    check_labels,
    check_numbers,
    check_parameters,
    check_patience,
    labels_for,
    memory_options,
)
from vae_jax.training.driver import Program
from vae_jax.training.figures import History
from vae_jax.training.loop import Loop, begin_loop, compiling, epoch_parts, lower_loop, make_packing
from vae_jax.training.start import first_images, start
from vae_jax.training.state import TrainState, evaluated_variables, fixed_of, names_of
from vae_jax.training.step import all_finite, step_of, watched


def epoch_order(key: Key[Array, ""], epoch: Int[Array, ""], images: int) -> Int[Array, " images"]:
    """The order in which an epoch, counted from 0, takes the training images; `key` is the run's for shuffling."""
    return jax.random.permutation(epoch_key(key, epoch), jnp.arange(images, dtype=jnp.int32))


class Single(Program):
    """One run's program, on one device or on several; see `Program`."""

    size, call_seconds = 1, 1.0

    def __init__(
        self, config: Config, data: Dataset, devices: Devices, resume: tuple[TrainState, History] | None = None
    ):
        """Compiles the program.

        Args:
            config: of the run, settled.
            data: the images.
            devices: to train on.
            resume: a state and its history to go on from.

        Raises:
            UserError: if the configuration does not fit the data, or memory does not suffice.
        """
        self.count, self.batch_size, self._devices = len(data.train), config.train.batch_size, devices
        composition, objective = build(config, data.image_shape)
        check_batches(config, self.count, composition)
        check_parameters(config, composition)
        self.names, self.steps = names_of(objective), -(-self.count // self.batch_size)
        transformation = optimizer.build(config, self.steps)
        step = step_of(config, composition, objective, self.steps)
        self._keys = make_keys(config.seed)

        some = first_images(config, data.train) if composition.posterior.begin and not resume else None
        state = resume[0] if resume else start(config, data.image_shape, self.count, some)
        # A copy, since the loop takes its argument's buffers over and the caller's state must survive.
        state = devices.whole(jax.jit(partial(jax.tree.map, jnp.copy))(state))
        pack_state, self._unpack = make_packing(composition.platform, transformation, objective)
        if composition.platform.packed:
            pack_state, self._unpack = (jax.jit(function, **devices.outputs) for function in (pack_state, self._unpack))
        variables, state = state.variables, pack_state(state)
        check_labels(config, data)
        check_numbers(config, data)
        check_patience(config, data)
        data.warn_of_darkness()
        labels = labels_for(config, data.train)
        self._feed = Feed(data.train.images, config.train.shard_images, self.batch_size, labels, devices)
        self._evaluators = {
            name: make_evaluator(
                config, composition, objective, split.images, labels=labels_for(config, split), devices=devices
            )
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
                lowered = lower_loop(step, self.batch_size, size, devices, arguments, composition.platform, times)
                loops.append((end, size, begin_loop(lowered, pool)))
            small = [
                self._shuffle.lower(self._keys.shuffle, zero),
                self._finite.lower(watched(state.variables, state.opt_state)),
            ]
            if composition.platform.packed:
                small.append(cast(Any, self._unpack).lower(state))
            small = [pool.submit(program.compile) for program in small]
            for evaluate in self._evaluators.values():
                evaluate.prepare(variables, self._evaluation_key, pool)
            self.parts = [(end, size, loop()) for end, size, loop in loops]
            for program in small:
                program.result()
        del variables  # if the state is packed, a copy of it
        self.compile_seconds = time.perf_counter() - began
        for _, size, loop in self.parts:
            check_memory(loop.memory, f"{memory_options(config, size)}: the arrays of a step")
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
        return [self._evaluators[split](evaluated_variables(self._config, whole), self._evaluation_key)]

    def agree(self, value: Any) -> Any:
        return self._devices.agree(value)
