"""The matrix products of a training step: how many operations they are, and how fast they run alone.

The step is traced, and every `dot_general` in it is found with its shapes and how often it runs.
"""

import math
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vae_jax import optimizer
from vae_jax.blocks.convolution import COMPUTED_BY, CONVOLUTIONS, choose
from vae_jax.config import Config
from vae_jax.model.build import build
from vae_jax.networks.convolutional import plan
from vae_jax.training.start import start
from vae_jax.training.step import make_step

SHAPE = (32, 32, 1)


class Product(NamedTuple):
    """One product: shapes and axes as lax.dot_general takes them."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    axes: Any
    dtype: str

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        (contracted, _), _ = self.axes
        both = math.prod(self.left[axis] for axis in contracted)
        (_, right_contracted), (_, right_batch) = self.axes
        free = [size for axis, size in enumerate(self.right) if axis not in (*right_contracted, *right_batch)]
        return 2 * math.prod(self.left) * math.prod(free) if both else 0


def model_flops(config: Config, shape: tuple[int, int, int] = SHAPE) -> int:
    """Operations of a training step's convolutions and linear layers, per image, whoever computes them.

    Forward, the gradient of the weights and the gradient of the inputs cost the same; the images need no gradient.
    """
    latent, model = config.model.latent, config.model.options
    sizes = plan(model, shape)
    channels = (shape[2], *model.channels)
    side = sizes.sizes[-1]
    encoder = [
        model.kernel**2 * channels[i] * channels[i + 1] * sizes.sizes[i + 1] ** 2 for i in range(len(model.channels))
    ]
    decoder = [
        model.kernel**2 * sizes.widths[i] * sizes.widths[i + 1] * sizes.sizes[-1 - i] ** 2
        for i in range(len(model.channels))
    ]
    flat = side**2 * channels[-1]
    linear = flat * model.hidden + 2 * model.hidden * latent + latent * flat
    return 2 * (3 * (sum(encoder) + sum(decoder) + linear) - encoder[0])


def products(config: Config, batch: int) -> Counter[Product] | None:
    """The products of one of vae_jax's training steps, and how often each runs.

    None where the step's convolutions are XLA's own, as on a TPU: those are no products of their own.
    """
    if choose(config.model.options.convolution) is not CONVOLUTIONS["matmul"]:
        return None
    config = replace(config, train=replace(config.train, batch_size=batch))
    network, objective = build(config, SHAPE)
    step = make_step(config, network, objective, optimizer.build(config, 1000))
    state = jax.eval_shape(lambda: start(config, SHAPE, batch))
    images = jax.ShapeDtypeStruct((batch, *SHAPE), jnp.uint8)
    jaxpr = jax.make_jaxpr(step)(state.variables, state.opt_state, images, jax.random.key(0))
    found: Counter[Product] = Counter()

    def walk(jaxpr: Any, times: int) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                left, right = (variable.aval for variable in equation.invars)
                axes = equation.params["dimension_numbers"]
                found[Product(left.shape, right.shape, axes, left.dtype.name)] += times
            elif compute := COMPUTED_BY.get(equation.primitive):
                behind = partial(compute, **equation.params)
                walk(jax.make_jaxpr(behind)(*(variable.aval for variable in equation.invars)).jaxpr, times)
            inside = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
            for part in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            ):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    walk(part, inside)

    walk(jaxpr.jaxpr, 1)
    return found


def _seconds(function: Any, *arguments: Any, least: float = 0.05) -> float:
    """The least time of a call, by calling it in a compiled loop so often that it takes a while."""
    # Two copies of the first argument take turns, or the loop would be left with the result alone.
    pair = jnp.stack([arguments[0]] * 2)
    result = jax.eval_shape(function, *arguments)

    @jax.jit
    def loop(times, pair, *rest):
        def body(i, _):
            return function(lax.dynamic_index_in_dim(pair, i % 2, 0, keepdims=False), *rest)

        return lax.fori_loop(0, times, body, jnp.zeros(result.shape, result.dtype))

    def measure(times: int) -> float:
        began = time.perf_counter()
        loop(times, pair, *arguments[1:]).block_until_ready()
        return time.perf_counter() - began

    measure(1)
    times = max(2, round(least / max(measure(8) / 8, 1e-7)))
    return min(measure(times) for _ in range(3)) / times


def alone(found: Counter[Product]) -> float:
    """Seconds that these products take one after the other, with their operands in memory and nothing between."""
    total = 0.0
    for product, times in found.items():
        left, right = jnp.ones(product.left, product.dtype), jnp.ones(product.right, product.dtype)
        # The operand that takes turns is copied each time: the smaller one.
        if left.size <= right.size:
            seconds = _seconds(lambda x, y, axes=product.axes: lax.dot_general(x, y, axes), left, right)
        else:
            seconds = _seconds(lambda y, x, axes=product.axes: lax.dot_general(x, y, axes), right, left)
        total += times * seconds
    return total


def peak(size: int, precision: str) -> float:
    """Operations a second of a large square product in jax."""
    x = jnp.ones((size, size), jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    return 2 * size**3 / _seconds(jnp.matmul, x, x)
