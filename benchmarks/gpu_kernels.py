"""Counts the GPU kernels of one training step, in the program that XLA compiles for an H100. Needs no GPU.

    python benchmarks/gpu_kernels.py [--config article residual burda_vae] [--batch 64] [--precision float32] [--json]

The program is the loop that `vae-jax train` runs there, lowered and compiled for a device that is not there. A small
model's step on an H100 takes about 1.8 µs times the count (measured: 195 kernels 351 µs, 72 kernels 121 to 139 µs), and
the count is the same every time. Where XLA would try ways of computing a product on the device it takes the one it
thinks best, so with a GPU a few products may have another kernel more or less.

Needs jax's CUDA plugin and CUDA's ptxas, on any machine:

    pip install 'jax[cuda13]'        or, without the libraries of CUDA, jax-cuda13-plugin and jax-cuda13-pjrt
    CUDA_HOME=/usr/local/cuda python benchmarks/gpu_kernels.py
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

CONFIGS = ("article", "residual", "burda_vae")
NO_KERNELS = ("get-tuple-element", "bitcast", "constant", "parameter", "tuple", "after-all")


class Count(NamedTuple):
    """The kernels of a loop's step.

    Attributes:
        kinds: how many of each kind.
        open_loops: loops in the program whose number of turns is not known; each waits for the host in every turn.
        seconds: that compiling took.
        text: the compiled program.
    """

    kinds: Counter[str]
    open_loops: int
    seconds: float
    text: str


def missing() -> str | None:
    """What is not there that this needs; None if all is."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return "jax's CUDA plugin, as jax-cuda13-plugin"
    return None if ptxas() else "CUDA's ptxas (CUDA_HOME names the folder of its folder bin)"


def ptxas() -> Path | None:
    """CUDA's folder, in whose folder bin its assembler is."""
    for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if folder and Path(folder, "bin", "ptxas").exists():
            return Path(folder)
    found = shutil.which("ptxas")
    return Path(found).resolve().parents[1] if found else None


def prepare() -> None:
    """To be called before jax is imported: there is no driver here, and no GPU."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={ptxas()}".strip()


def h100() -> Any:
    """Where arrays lie on one H100 that is not there: for jax.ShapeDtypeStruct."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    device = Path(__file__).with_name("h100.txt").read_text()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=device
    )
    return NamedSharding(Mesh(np.array(topology.devices), ("x",)), PartitionSpec())


def configuration(name: str, precision: str, batch: int | None) -> Any:
    """A configuration of ours by its name, or the residual network as it is by default."""
    from vae_jax.config import load_config

    residual = {"model.network": "residual", "data.image_size": 32}
    config = load_config(**residual) if name == "residual" else load_config(name)
    train = config.train if batch is None else replace(config.train, batch_size=batch)
    return replace(config, train=train, model=replace(config.model, precision=precision))


def lowered_loop(config: Any) -> Any:
    """The loop over an epoch's full batches as `vae_jax.runs.fit.fit` lowers it, for an H100."""
    import jax
    import jax.numpy as jnp

    from vae_jax import optimizer
    from vae_jax.device.platforms import PLATFORMS
    from vae_jax.model.build import build
    from vae_jax.training.loop import lower_loop, make_packing
    from vae_jax.training.start import start
    from vae_jax.training.state import fixed_of
    from vae_jax.training.step import step_of

    platform, there = PLATFORMS["gpu"], h100()
    shape, batch = (config.data.image_size, config.data.image_size, 1), config.train.batch_size
    steps = 1000
    network, objective = build(config, shape, platform)
    transformation = optimizer.build(config, steps)
    step = step_of(config, network, objective, steps)
    packing = make_packing(platform, transformation)
    state = jax.eval_shape(lambda: packing.pack(start(config, shape, steps * batch)))
    images = jax.ShapeDtypeStruct((steps * batch, *shape), jnp.uint8)
    order, number = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((steps * batch,), ()))
    fixed = jax.eval_shape(lambda: fixed_of(config))
    arguments = state, images, None, order, number, fixed, number, number
    arguments = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there), arguments)
    return lower_loop(step, batch, batch, None, arguments, platform, steps)[platform.length]


def count(config: Any) -> Count:
    """The kernels of a step of this configuration's training."""
    began = time.perf_counter()
    text = lowered_loop(config).compile().as_text()
    seconds = time.perf_counter() - began
    return Count(*counted(text), seconds, text)


def counted(text: str) -> tuple[Counter[str], int]:
    """Of a compiled program: the kernels of its largest loop's turn by kind, and how many loops have an open end."""
    loops = re.findall(r"^.* while\(.*$", text, re.MULTILINE)
    bodies = [re.findall(r"body=%?([\w.\-]+)", line)[0] for line in loops]
    kinds = max((operations(text, body) for body in bodies), key=Counter.total)
    return kinds, sum("known_trip_count" not in line for line in loops)


def operations(text: str, name: str) -> Counter[str]:
    """What a computation of a compiled program launches, by kind."""
    body = re.search(rf"^%?{re.escape(name)} .*?^}}", text, re.MULTILINE | re.DOTALL)
    assert body
    kinds: Counter[str] = Counter()
    for line in body.group().splitlines():
        operation = re.search(r"= (?:\([^)]*\)|\S+) ([\w\-]+)\(", line)
        if operation and operation.group(1) not in NO_KERNELS:
            kind = re.search(r"kind=(\w+)|custom_call_target=\"([^\"]+)\"", line)
            kinds[" ".join(filter(None, (operation.group(1), *(kind.groups() if kind else ()))))] += 1
    return kinds


def main() -> None:
    """Prints the table or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=CONFIGS, help="of ours, or residual")
    parser.add_argument("--batch", type=int, help="images in a batch; by default the configuration's")
    parser.add_argument("--precision", default="float32", choices=["float32", "tensorfloat32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="print one object, kernels a step by configuration")
    parser.add_argument("--dump", type=Path, metavar="FOLDER", help="write the compiled programs there")
    options = parser.parse_args()
    if lacks := missing():
        sys.exit(f"gpu_kernels: expected {lacks}; found none")
    prepare()
    counts = {}
    for name in options.config:
        found = count(configuration(name, options.precision, options.batch))
        counts[name] = found.kinds.total()
        if options.dump:
            options.dump.mkdir(parents=True, exist_ok=True)
            (options.dump / f"{name}.txt").write_text(found.text)
        if not options.json:
            kinds = ", ".join(f"{number} {kind}" for kind, number in found.kinds.most_common())
            print(f"{name}: {found.kinds.total()} kernels a step: {kinds}")
            print(f"    compiled in {found.seconds:.0f} s", flush=True)
        if found.open_loops:
            print(f"{name}: {found.open_loops} loops of unknown length", file=sys.stderr)
    if options.json:
        print(json.dumps(counts))


if __name__ == "__main__":
    main()
