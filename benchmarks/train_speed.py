"""Training speed against PyTorch eager, side by side in one run.

    make bench            or    .venv/bin/python benchmarks/train_speed.py --batch 64 --json

The article's network and recipe on both sides, the same images in memory, float32. The two take turns, so that a
noisy machine disturbs both alike; the medians of the rounds are compared. Compilation is measured apart.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import torch

from vae_jax import optimizer, train
from vae_jax.config import Config
from vae_jax.interop.torch_twin import TorchTwin

SHAPE = (32, 32, 1)


def jax_runner(images, batch):
    """A function that trains so many steps, and the seconds its compilation took."""
    config = Config()
    config = replace(config, train=replace(config.train, batch_size=batch))
    network, objective = train.build(config, SHAPE)
    step = train.make_step(config, network, objective, optimizer.build(config.train, 1000))
    state = train.start(config, SHAPE, len(images))
    resident, keys = jnp.asarray(images), train.make_keys(0)
    order = jax.random.permutation(keys.shuffle, len(images))
    began = time.perf_counter()
    loop = train.make_loop(step, batch, batch)
    loop = loop.lower(state, resident, order, keys.steps, jnp.int32(0), jnp.int32(0)).compile()
    compile_seconds = time.perf_counter() - began

    def run(steps):
        nonlocal state
        state = loop(state, resident, order, keys.steps, jnp.int32(0), jnp.int32(steps))
        jax.block_until_ready(state)

    return run, compile_seconds


def torch_runner(images, batch):
    """A function that trains so many steps as the article's script does: eager, the loss read at every step."""
    config = Config()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    twin = TorchTwin(config.model, SHAPE, ("mu", "log_var")).to(device).train()
    adam = torch.optim.Adam(twin.parameters(), config.train.learning_rate)
    resident = torch.tensor(images.transpose(0, 3, 1, 2) / np.float32(255)).to(device)
    order = torch.randperm(len(images)).to(device)

    def run(steps):
        total = 0.0
        for i in range(steps):
            x = resident[order[i * batch : (i + 1) * batch]]
            loss = twin(x, config.objective)[0].sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.item()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=9, help="how often the two take turns")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long a turn takes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    steps_there_are = max(100, 6400 // options.batch)
    images = np.random.RandomState(0).randint(0, 256, (steps_there_are * options.batch, *SHAPE), np.uint8)
    ours, compile_seconds = jax_runner(images, options.batch)
    runners = {"vae_jax": ours, "PyTorch eager": torch_runner(images, options.batch)}
    steps = {}
    for name, run in runners.items():
        run(5)  # caches, allocators, thread pools
        began = time.perf_counter()
        run(10)
        steps[name] = min(steps_there_are, max(10, round(10 * options.seconds / (time.perf_counter() - began))))
    speeds = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name, run in runners.items():
            began = time.perf_counter()
            run(steps[name])
            speeds[name].append(steps[name] * options.batch / (time.perf_counter() - began))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    ratio = medians["vae_jax"] / medians["PyTorch eager"]
    if options.json:
        versions = {name: version(name) for name in ("jax", "torch")}
        found = {"batch": options.batch, "images_per_second": speeds, "ratio": ratio}
        print(json.dumps({**found, "compile_seconds": compile_seconds, "versions": versions}))
        return
    print(
        f"batch {options.batch}, {options.rounds} rounds, {jax.devices()[0].device_kind}; "
        f"compilation {compile_seconds:.1f} s"
    )
    for name, found in speeds.items():
        print(f"{name:14} {medians[name]:8,.0f} images/s  (from {min(found):,.0f} to {max(found):,.0f})")
    print(f"ratio of the medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
