"""A user's convolutional network, with Flax's convolutions ("flax") or vae_jax.layers' ("ours"), beside a usual loop.

    .venv/bin/python benchmarks/own_network.py

All train the same small network with GroupNorm on scikit-learn's digits (32x32, batches of 64) and take turns.
"a Python loop" calls one compiled step for each batch; the others are vae_jax's training loop, "in a compiled loop" as
it would be if nothing looked for XLA's own convolution.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import layers, networks
from vae_jax.config import load_config
from vae_jax.data import load
from vae_jax.device.devices import Devices
from vae_jax.model.build import build
from vae_jax.training.loop import compile_loop, make_loop
from vae_jax.training.start import start
from vae_jax.training.state import fixed_of
from vae_jax.training.step import step_of

BATCH = 64


class Flax(nn.Module):
    """Three strided convolutions with GroupNorm and the way back, with Flax's own convolutions."""

    options: object
    shapes: object

    conv, conv_transpose = nn.Conv, nn.ConvTranspose

    def setup(self):
        height, width, channels = self.shapes.image_shape
        self.small = height // 8, width // 8
        self.down = [self.conv(features, (4, 4), strides=(2, 2)) for features in (16, 32, 64)]
        self.up = [self.conv_transpose(features, (4, 4), strides=(2, 2)) for features in (32, 16)]
        self.last = self.conv_transpose(channels * self.shapes.outputs, (4, 4), strides=(2, 2))
        self.norms = [nn.GroupNorm(8) for _ in range(5)]
        self.to_heads = {name: nn.Dense(size) for name, size in self.shapes.heads.items()}
        self.from_z = nn.Dense(self.small[0] * self.small[1] * 64)

    def encode(self, images, train):
        x = images
        for layer, norm in zip(self.down, self.norms[:3], strict=True):
            x = nn.silu(norm(layer(x)))
        return {name: head(x.reshape(len(x), -1)) for name, head in self.to_heads.items()}

    def decode(self, z, train):
        x = self.from_z(z).reshape(-1, *self.small, 64)
        for layer, norm in zip(self.up, self.norms[3:], strict=True):
            x = nn.silu(norm(layer(x)))
        return self.last(x)


class Ours(Flax):
    """The same with ours."""

    conv, conv_transpose = layers.Conv, layers.ConvTranspose


def epochs_of(network: str, way: str, images: np.ndarray) -> Callable[[], None]:
    """A function that trains one epoch, compiled."""
    config = load_config(**{"model.network": network, "train.batch_size": BATCH})
    shape, steps = images.shape[1:], len(images) // BATCH
    composition, objective = build(config, shape)
    step = step_of(config, composition, objective, steps)
    state, fixed = start(config, shape, len(images)), fixed_of(config)
    order, zero = jnp.arange(len(images), dtype=jnp.int32), np.int32(0)
    if way == "a Python loop":
        one = jax.jit(step(fixed.numbers), donate_argnums=(0, 1))
        held = state.variables, state.opt_state

        def epoch() -> None:
            nonlocal held
            for i in range(steps):
                *held, _ = one(*held, images[i * BATCH : (i + 1) * BATCH], jax.random.fold_in(fixed.key, i))
            jax.block_until_ready(held)
    else:
        arguments = jnp.asarray(images), None, order, zero, fixed
        if way == "in a compiled loop":
            run = make_loop(step, BATCH, BATCH)
        else:
            run = compile_loop(step, BATCH, BATCH, Devices(), (state, *arguments, zero, zero)).run

        def epoch() -> None:
            nonlocal state
            state = jax.block_until_ready(run(state, *arguments, zero, np.int32(steps)))

    epoch()
    return epoch


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="in which all take turns")
    parser.add_argument("--compiled-loop", action="store_true", help="Flax's convolutions in a compiled loop, too")
    options = parser.parse_args()
    networks.NETWORKS |= {"flax": Flax, "ours": Ours}
    images = load(load_config("digits").data).train.images
    images = images[: len(images) // BATCH * BATCH]
    ways = [("flax", "a Python loop"), ("flax", "vae_jax"), ("ours", "vae_jax")]
    ways += [("flax", "in a compiled loop")] if options.compiled_loop else []
    epochs = {each: epochs_of(*each, images) for each in ways}
    seconds = {each: [] for each in ways}
    for _ in range(options.rounds):
        for each, epoch in epochs.items():
            began = time.perf_counter()
            epoch()
            seconds[each].append(time.perf_counter() - began)
    usual = median(seconds[ways[0]])
    print(f"{jax.devices()[0].device_kind}, batches of {BATCH}, medians of {options.rounds} rounds")
    for network, way in ways:
        ratio = median(a / b for a, b in zip(seconds[ways[0]], seconds[network, way], strict=True))
        speed = len(images) / usual * ratio
        print(f"{network:6} {way:20} {speed:8,.0f} images/s  {ratio:5.2f}x")


if __name__ == "__main__":
    main()
