"""Where a training step's time goes on a CPU: the compiled program's operations by kind and by layer.

    .venv/bin/python benchmarks/profile_step.py [--batch 64] [--top 25]

The times are those of jax's profiler, summed over the threads and divided by the steps; operations run beside each
other where they do not depend on each other, so the sum is more than a step takes, which is measured apart.
"""

import argparse
import re
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.config import Config
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.training.loop import make_loop
from vae_jax.training.start import start
from vae_jax.training.state import fixed_of
from vae_jax.training.step import step_of

SHAPE = (32, 32, 1)
STEPS = 20
# By an operation's name, which tells its last part, and where it comes from; the first pattern that matches counts.
KINDS = {
    "sums": r"^\S*reduce|reduce_sum",
    "products": r"^(ynn_fusion|dot)",
    "im2col: joining shifted windows": r"^concatenate",
    "padding": r"^\S*pad",
    "copies": r"^\S*copy",
}


def compiled_loop(batch: int):
    """The loop that training runs, and its arguments but the last."""
    config = Config()
    config = replace(config, train=replace(config.train, batch_size=batch))
    network, objective = build(config, SHAPE)
    step = step_of(config, network, objective, 1000)
    images = jnp.asarray(np.random.RandomState(0).randint(0, 256, (100 * batch, *SHAPE), np.uint8))
    keys, zero = make_keys(0), jnp.int32(0)
    state = start(config, SHAPE, len(images))
    arguments = images, None, jax.random.permutation(keys.shuffle, len(images)), zero, fixed_of(config), zero
    return make_loop(step, batch, batch).lower(state, *arguments, zero).compile(), state, arguments


def places(program: str) -> dict[str, str]:
    """Where in the model each operation of a compiled program comes from."""
    found = {}
    for name, source in re.findall(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', program, re.MULTILINE):
        layer = re.findall(r"/((?:conv|BN|fc|dec|deb|dropout)_?\w+)", source)
        back = "backward " if "transpose(" in source else ""
        found[name] = back + (layer[-1] if layer else source.split("/")[-1]) + f" ({source.split('/')[-1]})"
    return found


def kind_of(name: str, source: str, spent: float) -> str:
    """What an operation does."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, f"{name} {source}"):
            return kind
    return "other operations under 10 µs each" if spent < 1e-5 else "other: normalisation, activation, loss, …"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--top", type=int, default=25, help="operations listed one by one")
    options = parser.parse_args()
    loop, state, arguments = compiled_loop(options.batch)
    state = jax.block_until_ready(loop(state, *arguments, jnp.int32(STEPS)))
    took = []
    for _ in range(7):
        began = time.perf_counter()
        state = jax.block_until_ready(loop(state, *arguments, jnp.int32(STEPS)))
        took.append((time.perf_counter() - began) / STEPS)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(loop(state, *arguments, jnp.int32(STEPS)))
        trace = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
        program = loop.as_text()
        source, seconds = places(program), defaultdict(float)
        names = set(re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = ", program, re.MULTILINE))
        for plane in trace.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in names and not event.name.startswith("while"):
                        seconds[event.name] += event.duration_ns / 1e9 / STEPS
    kinds = defaultdict(float)
    for name, spent in seconds.items():
        kinds[kind_of(name, source.get(name, ""), spent)] += spent
    total = sum(seconds.values())
    print(
        f"batch {options.batch}: a step takes {np.median(took) * 1e3:.2f} ms; "
        f"its operations add up to {total * 1e3:.2f} ms\n"
    )
    print("| kind | µs a step | share |\n|---|---:|---:|")
    for kind, spent in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {spent * 1e6:,.0f} | {spent / total:.0%} |")
    print("\n| operation | from | µs a step |\n|---|---|---:|")
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1])[: options.top]:
        print(f"| {name} | {source.get(name, '')} | {spent * 1e6:,.0f} |")


if __name__ == "__main__":
    main()
