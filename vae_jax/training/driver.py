"""The only loop over epochs and calls, for one run or many side by side.

It writes no files and prints nothing; callbacks get the events.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from vae_jax.config import Config
from vae_jax.errors import Diverged
from vae_jax.objectives import Terms
from vae_jax.training.divergence import check_finite, diverged
from vae_jax.training.figures import History, has_stopped, means_of_steps, split_figures, train_figures
from vae_jax.training.loop import Loop, rounded
from vae_jax.training.state import Progress, TrainState

FIRST_CHUNK = 8  # steps of a run's first call; from then on a call takes about a second


class Program(ABC):
    """Compiled training and evaluation of some runs, the members, side by side, for `drive`.

    Only the program itself looks into the states that it carries.

    Attributes:
        size: how many members.
        count: training images.
        steps: of an epoch.
        batch_size: images of a step, but for the epoch's last one.
        names: of the objective's figures.
        parts: the epoch's full batches, then its last, smaller one: (end of the part, images in a batch, compiled).
        splits: names of the splits to evaluate.
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
        """The states, whose buffers `train` takes over, and how many steps they have taken."""

    @abstractmethod
    def shards(self, epoch: int, first: int) -> Iterator[tuple[int, Any]]:
        """An epoch's images from place `first` on, in parts: (place after the part's last image, part)."""

    @abstractmethod
    def train(self, loop: Loop, states: Any, alive: Bool[np.ndarray, " n"], shard: Any, first: int, last: int) -> Any:
        """The states after steps first … last−1 of an epoch; only members that are alive train."""

    @abstractmethod
    def sums(self, states: Any) -> Float[np.ndarray, "n steps figures"]:
        """The members' `TrainState.sums`."""

    @abstractmethod
    def finite(self, states: Any) -> Bool[np.ndarray, " n"]:
        """Whether the state after a member's last step is finite, for all members."""

    @abstractmethod
    def whole(self, states: Any) -> Any:
        """The states as trees, valid until the next call of `train`."""

    @abstractmethod
    def member(self, whole: Any, number: int) -> TrainState:
        """One member's state, from the result of `whole`."""

    @abstractmethod
    def evaluate(self, split: str, whole: Any) -> list[Terms]:
        """The members' terms of a split's images."""

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
        configs: of the members; all have the same number of epochs.
        histories: of the members so far; they grow.
        on_progress: called after every call inside an epoch with the members' progress.
        on_chunk: called after that with the numbers of the members that train and a function that gives such a member's
            state and history.
        on_epoch: called after every epoch, once for each member, with its number, figures and state.
        on_epoch_end: called after that with the members' progress.
        on_diverged: called when a member diverges, with its number and the error.

    Returns:
        For every member its final state and history, or the error with which it diverged. A member that diverges, or
        stops early, is left as it is, and the rest go on.
    """
    train, steps, size = configs[0].train, program.steps, program.batch_size
    failures: list[Diverged | None] = [None] * len(configs)
    states, taken = program.start()
    alive = np.zeros(program.size, bool)
    # An epoch that has begun is finished first, even if the run would have stopped by a patience that is lower now.
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
                    # A gradient that is not finite shows in the next step's loss, or in the state after it.
                    sums, left_finite = program.sums(states), program.finite(states)
                    for member in np.flatnonzero(alive).tolist():
                        so_far, is_finite = sums[member, :done], bool(left_finite[member])
                        try:
                            check_finite(configs[member], so_far, is_finite, epoch, steps, histories[member])
                        except Diverged as error:
                            fail(member, error)
                    training = np.flatnonzero(alive).tolist()
                    if done < steps and training:
                        if on_progress:
                            losses = [
                                means_of_steps(sums[member, :done], done * size, size)[0][0] for member in training
                            ]
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
                for split, of_members in terms.items():
                    figures |= split_figures(split, of_members[member], size)
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
        del whole, terms  # without packing these are the states themselves, whose memory the next epoch takes over
        if on_epoch_end:
            on_epoch_end(Progress(epoch + 1, steps, steps, loss, images / seconds))
    whole = program.whole(states)
    ended = [failure or program.member(whole, member) for member, failure in enumerate(failures)]
    return [
        state if isinstance(state, Diverged) else (state, history)
        for state, history in zip(ended, histories, strict=True)
    ]


def _look(program: Program, whole: Any, histories: list[History], member: int) -> tuple[TrainState, History]:
    return program.member(whole, member), histories[member]
