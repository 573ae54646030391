"""The choices that suit a platform: a model and its loop are built for one, which need not be this process's.

A program may be built for another machine: to export it, or to count its kernels. So code that builds never asks for
the devices; it asks `current()`, the platform that `vae_jax.model.build` was given.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


class Platform(NamedTuple):
    """The choices that suit a platform.

    Attributes:
        convolution: the pair that `model.convolution: auto` means, see `vae_jax.blocks.convolution`.
        tile: images of a batch that are computed together, so that they stay in a cache; None for the whole batch.
        slow_native_loops: whether XLA's own convolution is several times slower inside a compiled loop.
        length: steps of a compiled loop, if the number must be fixed; None if it may be an argument.
        packed: whether a loop carries vectors instead of trees, see `vae_jax.programs.packing`.
        one_pass: whether BatchNorm's two sums are taken in one pass over the batch, which rounds differently.
    """

    convolution: str
    tile: int | None = None
    slow_native_loops: bool = False
    length: int | None = None
    packed: bool = False
    one_pass: bool = False


# By jax's names of the backends. The convolutions are measured on CPUs and on an H100, where XLA's own are 5 to 20
# times slower than the products. A TPU's units are made for convolutions; nothing has been measured on one. On a GPU a
# loop of unknown length waits for the host in every step (openxla/xla, while_thunk.cc). A call of 32 steps takes longer
# than its launch; the steps left over are calls of one step. XLA chooses between Triton's products and cuBLAS's there.
# cuBLAS's alone are fewer kernels (102 a step, not 131), yet a step of the article takes 1.2 to 1.4 times as long with
# them (benchmarks/README.md). On a CPU vectors are slower: they are split and joined again in every step.
PLATFORMS = {
    "cpu": Platform("matmul", tile=128, slow_native_loops=True),
    "gpu": Platform("matmul", length=32, packed=True, one_pass=True),
    "tpu": Platform("native"),
}

_chosen: ContextVar[Platform | None] = ContextVar("platform", default=None)


def here() -> Platform:
    """The platform of this process's devices."""
    return PLATFORMS.get(jax.default_backend(), PLATFORMS["tpu"])


def current() -> Platform:
    """The platform for which a model is being traced; otherwise this process's."""
    return _chosen.get() or here()


@contextmanager
def built_for(platform: Platform) -> Iterator[None]:
    """A context in which `current()` gives this platform."""
    token = _chosen.set(platform)
    try:
        yield
    finally:
        _chosen.reset(token)


def on(platform: Platform, function: Callable[P, R]) -> Callable[P, R]:
    """The function, traced for this platform."""

    @wraps(function)
    def traced(*arguments: P.args, **options: P.kwargs) -> R:
        with built_for(platform):
            return function(*arguments, **options)

    return traced
