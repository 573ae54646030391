"""Times the decoder of a run as this package calls it and as the exported files are called, side by side.

vae-jax train --config article --out runs/article
python benchmarks/exports.py runs/article
"""

import argparse
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import onnxruntime

from vae_jax.interop.export import export
from vae_jax.runs.reading import load, use

BATCHES, ROUNDS, SECONDS = (1, 7, 100), 5, 0.5


def milliseconds(call: Callable[[], object]) -> float:
    """The time of a call, the median over rounds of many."""
    call()
    times = []
    for _ in range(ROUNDS):
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < SECONDS:
            call()
            count += 1
        times.append(1000 * (time.perf_counter() - begun) / count)
    return float(np.median(times))


def main(folder: Path) -> None:
    model, shape = use(load(folder)), np.asarray(use(load(folder)).draw(jax.random.key(0), 1)).shape[1:]
    with tempfile.TemporaryDirectory() as made:
        for to, name in (("stablehlo", "model.zip"), ("onnx", "model.onnx")):
            export(folder, Path(made) / name, to)
        archive = zipfile.ZipFile(Path(made) / "model.zip")
        hlo = jax.jit(jax.export.deserialize(archive.read("decode.jax")).call)
        session = onnxruntime.InferenceSession(Path(made) / "model.onnx", providers=["CPUExecutionProvider"])
    print("| batch | vae_jax, ms | StableHLO | ONNX |\n|---|---|---|---|")
    for batch in BATCHES:
        z = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        calls = {
            "ours": lambda z=z: np.asarray(model.decode(z)),
            "hlo": lambda z=z: np.asarray(hlo(z)["pictures"]),
            "onnx": lambda z=z: session.run(None, {"z": z}),
        }
        ours, hlo_time, onnx_time = (milliseconds(call) for call in calls.values())
        print(f"| {batch} | {ours:.3f} | {hlo_time:.3f} | {onnx_time:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder")
    main(parser.parse_args().run)
