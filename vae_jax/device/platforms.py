"""What suits a platform, chosen in one place: a model and its loop are built for one, which need not be this process's.

A program for another machine is built where that machine is not: to export it, or to count its kernels. So nothing that
is built asks which devices there are; it asks `current()`, which is what `composition.build` was given.
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
    """What suits it.

    Attributes:
        convolution: the pair that `model.convolution: auto` stands for, see `vae_jax.blocks.convolution`.
        tile: images of a batch that are computed together, so that they stay in a cache; None for the whole batch.
        slow_native_loops: whether XLA's own convolution is several times slower inside a compiled loop.
        length: steps of a compiled loop, where their number must be known before; None where it may be an argument.
        packed: whether a loop carries vectors instead of trees, see `vae_jax.programs.packing`.
        one_pass: whether BatchNorm's two sums are taken in one pass over the batch, which rounds otherwise.
    """

    convolution: str
    tile: int | None = None
    slow_native_loops: bool = False
    length: int | None = None
    packed: bool = False
    one_pass: bool = False


# As jax names the backends. The convolutions are measured on CPUs and on an H100, where XLA's own are 5 to 20 times
# slower than the products; a TPU's units are made for convolutions, and nothing has been measured on one.
# A loop on a GPU whose length is not known waits for the host in every step (openxla/xla, while_thunk.cc). A call of 32
# steps takes longer than to ask for it, and what is left over is as many calls of one step.
# XLA chooses between Triton's products and cuBLAS's there. cuBLAS's alone are fewer kernels (102 a step, not 131), yet
# a step of the article takes 1.2 to 1.4 times as long with them (benchmarks/README.md).
# On a CPU vectors are slower: they are cut up and joined again in every step.
PLATFORMS = {
    "cpu": Platform("matmul", tile=128, slow_native_loops=True),
    "gpu": Platform("matmul", length=32, packed=True, one_pass=True),
    "tpu": Platform("native"),
}

_chosen: ContextVar[Platform | None] = ContextVar("platform", default=None)


def here() -> Platform:
    """That of this process's devices."""
    return PLATFORMS.get(jax.default_backend(), PLATFORMS["tpu"])


def current() -> Platform:
    """That for which a model is being traced; outside of one, this process's."""
    return _chosen.get() or here()


@contextmanager
def built_for(platform: Platform) -> Iterator[None]:
    """Within it, `current()` is this one."""
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
