"""Training speed side by side in one run: vae_jax, PyTorch eager, PyTorch at its best, Flax as usual, Flax scanned.

    make bench        or        .venv/bin/python benchmarks/train_speed.py --batch 64 256 1024 --chart speed.png

The article's network and recipe in all of them, the same images in memory. Each has a process of its own and they
take turns, so that a noisy machine disturbs all alike; what counts is the ratio of the medians. "first step" is the
time from the model's definition to the end of the first step, compilation included and nothing cached.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import statistics
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Options, serve, torch_variants

OURS = "vae_jax"
TRIAL_ROUNDS = 3


class Contender:
    """A contender's process, seen from here."""

    def __init__(self, name: str, options: Options, seconds: float):
        """Starts it and waits for its first step.

        Raises:
            RuntimeError: if it cannot run here; the message is its own.
        """
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.steps_there_are = max(32, 12800 // options.batch)
        arguments = (theirs, name, options, self.steps_there_are)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.batch, self.variant = options.batch, options.variant
        self.speeds: list[float] = []
        self.first_step = self._receive()
        self._turn(2)  # caches, allocators, thread pools
        self.steps = 2
        took = self._turn(self.steps)
        # In pairs, as the scan takes them, and no more than there are images for.
        self.steps = min(self.steps_there_are, max(2, 2 * round(seconds / took)))

    def _receive(self) -> Any:
        try:
            found = self.connection.recv()
        except EOFError:
            raise RuntimeError(f"its process ended with code {self.process.exitcode}") from None
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def _turn(self, steps: int) -> float:
        self.connection.send(steps)
        return self._receive()

    def turn(self, seconds: float) -> None:
        """Trains for about so many seconds and notes the speed, in images a second."""
        done = took = 0
        while took < seconds:
            took += self._turn(self.steps)
            done += self.steps
        self.speeds.append(done * self.batch / took)

    def end(self) -> dict[str, float]:
        """Ends the process; its peak memory in MB."""
        self.connection.send(None)
        memory = self._receive()
        self.process.join()
        return memory


def start(name: str, options: Options, seconds: float) -> Contender | None:
    """The contender, or None if it cannot run, which is printed."""
    tell(f"batch {options.batch}: starting {' '.join((name, *options.variant))}")
    try:
        return Contender(name, options, seconds)
    except RuntimeError as error:
        tell(f"{name} {' '.join(options.variant)} left out: {error}")
        return None


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def take_turns(contenders: list[Contender], rounds: int, seconds: float) -> None:
    for number in range(rounds):
        if sys.stderr.isatty():
            print(f"round {number + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
        for contender in contenders:
            contender.turn(seconds)


def best_variant(options: Options, seconds: float) -> tuple[Contender | None, dict[str, float]]:
    """The fastest of PyTorch's ways, still running, and the speed of each in a trial in which they took turns."""
    started = [start("PyTorch best", options._replace(variant=variant), seconds) for variant in torch_variants()]
    running = []
    for contender in filter(None, started):
        try:
            take_turns([contender], 1, seconds)
            running.append(contender)
        except RuntimeError as error:  # CUDA graphs fail later than at the first step
            tell(f"PyTorch best {' '.join(contender.variant)} left out: {error}")
    take_turns(running, TRIAL_ROUNDS, seconds)
    running.sort(key=lambda contender: statistics.median(contender.speeds))
    trial = {" ".join(contender.variant): statistics.median(contender.speeds) for contender in running}
    for contender in running[:-1]:
        contender.end()
    if not running:
        return None, trial
    running[-1].speeds.clear()
    return running[-1], trial


def compare(options: Options, names: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Lets the contenders take turns at one batch size."""
    running, trial = {}, {}
    for name in names:
        if name == "PyTorch best":
            running[name], trial = best_variant(options, seconds / 2)
        else:
            running[name] = start(name, options, seconds)
    running = {name: contender for name, contender in running.items() if contender}
    take_turns(list(running.values()), rounds, seconds)
    rows = {
        name: {
            "variant": " ".join(contender.variant),
            "images_per_second": statistics.median(contender.speeds),
            "speeds": contender.speeds,
            "first_step_seconds": contender.first_step,
            "peak_memory_mb": contender.end(),
        }
        for name, contender in running.items()
    }
    return {"batch": options.batch, "trial": trial, "rows": rows}


def products(batches: list[int], precision: str) -> dict[str, Any]:
    """Operations, the machine's peak and what the products alone would allow; in a process of its own as well."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_products, (batches, precision))


def _products(batches: list[int], precision: str) -> dict[str, Any]:
    import jax

    jax.config.update("jax_default_matmul_precision", "highest" if precision == "float32" else "default")
    from products import alone, model_flops
    from products import peak as jax_peak
    from products import products as products_of

    from vae_jax.config import Config

    config = Config()
    config = replace(config, model=replace(config.model, precision=precision))
    found: dict[str, Any] = {
        "model_flops_per_image": model_flops(config),
        "peak_flops": {"jax": max(jax_peak(size, precision) for size in (1024, 2048))},
        "batches": {},
    }
    with contextlib.suppress(ImportError):
        found["peak_flops"]["torch"] = _torch_peak(precision)
    for batch in batches:
        there = products_of(config, batch)
        if there is not None:
            flops = sum(product.flops * times for product, times in there.items())
            found["batches"][batch] = {"flops_per_image": flops / batch, "images_per_second": batch / alone(there)}
    return found


def _torch_peak(precision: str, size: int = 2048) -> float:
    import time

    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = torch.ones(size, size, device="cuda" if torch.cuda.is_available() else "cpu", dtype=dtype)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(5):
            y = x @ x
        y[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 5 * 2 * size**3 / best


def device() -> str:
    """The name of the device, asked in another process: here none is opened."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_device)


def _device() -> str:
    import jax

    device = jax.devices()[0]
    return f"{os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind


def table(found: dict[str, Any], work: dict[str, Any]) -> str:
    """One batch size as Markdown."""
    batch, rows = found["batch"], found["rows"]
    flops, peak = work["model_flops_per_image"], max(work["peak_flops"].values())
    ours = rows[OURS]["images_per_second"]
    lines = [
        f"| batch {batch} | images/s | from – to | {OURS} is | first step, s | peak MB | GFLOP/s | of the peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        speed, speeds = row["images_per_second"], row["speeds"]
        label = f"{name} ({row['variant']})" if row["variant"] else name
        memory = " + ".join(f"{mb:,.0f} {where}" for where, mb in row["peak_memory_mb"].items())
        lines.append(
            f"| {label} | {speed:,.0f} | {min(speeds):,.0f} – {max(speeds):,.0f} | {ours / speed:.2f}x "
            f"| {row['first_step_seconds']:.1f} | {memory} | {speed * flops / 1e9:,.0f} | {speed * flops / peak:.0%} |"
        )
    if batch in work["batches"]:
        bound = work["batches"][batch]["images_per_second"]
        lines.append(
            f"| the products alone | {bound:,.0f} | | {ours / bound:.2f}x | | | {bound * flops / 1e9:,.0f} "
            f"| {bound * flops / peak:.0%} |"
        )
    return "\n".join(lines)


def chart(path: Path, results: list[dict[str, Any]], where: str) -> None:
    """Images a second as bars, one group for each batch size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(results[0]["rows"])
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        rows = [result["rows"].get(name) for result in results]
        speeds = [row["images_per_second"] if row else 0 for row in rows]
        spread = [
            [speed - min(row["speeds"]) if row else 0 for row, speed in zip(rows, speeds, strict=True)],
            [max(row["speeds"]) - speed if row else 0 for row, speed in zip(rows, speeds, strict=True)],
        ]
        places = [group + (i - (len(names) - 1) / 2) * width for group in range(len(results))]
        bars = axes.bar(places, speeds, width * 0.92, yerr=spread, label=name, capsize=2, ecolor="0.4")
        axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], fontsize=7, padding=2)
    axes.set_xticks(range(len(results)), [f"batch {result['batch']}" for result in results])
    axes.set_ylabel("images trained a second")
    axes.set_title(f"The article's VAE, {where}", fontsize=10)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.08))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024], help="images in a batch")
    parser.add_argument("--rounds", type=int, default=9, help="how often they take turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a turn takes")
    parser.add_argument("--precision", default="float32", choices=["float32", "tensorfloat32", "bfloat16"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw a bar chart")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    names = [OURS, *(name for name in options.contenders if name != OURS)]
    versions = {}
    for package in ("vae_jax", "jax", "flax", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            names = [name for name in names if package != "torch" or "PyTorch" not in name]
            tell(f"{package} is not installed: what needs it is left out")

    where = device()
    results = [
        compare(Options(batch, options.precision), names, options.rounds, options.seconds) for batch in options.batch
    ]
    work = products(options.batch, options.precision)
    if options.chart:
        chart(options.chart, results, where)
    if options.json:
        print(
            json.dumps(
                {
                    "device": where,
                    "precision": options.precision,
                    "versions": versions,
                    "work": work,
                    "results": results,
                }
            )
        )
        return
    print(f"{where}; products in {options.precision}; " + ", ".join(f"{name} {v}" for name, v in versions.items()))
    peaks = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {name}" for name, flops in work["peak_flops"].items())
    print(f"a step takes {work['model_flops_per_image'] / 1e6:.2f} MFLOP an image; peak of a large product: {peaks}")
    for result in results:
        print()
        print(table(result, work))
        if result["trial"]:
            trial = ", ".join(f"{name} {speed:,.0f}" for name, speed in result["trial"].items())
            print(f"\nPyTorch's ways, images/s in a trial: {trial}")


if __name__ == "__main__":
    main()
