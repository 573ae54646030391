"""Time from the command to the first finished training step, with a cold and a warm compilation cache.

    .venv/bin/python benchmarks/startup.py [--config article] [--rounds 3] [options of `vae-jax train`]

Each round starts `vae-jax train` twice with a cache folder of its own: first it is empty, then it holds what the first
left. The data are cached before: reading and resizing them is not part of it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vae_jax.files.user import user_cache

STAGES = ("imports", "data", "first step")


def inner(began: float, arguments: list[str]) -> None:
    """`vae-jax train` that prints the seconds since `began` at each stage, and stops after the first step."""
    from vae_jax import cli
    from vae_jax.cli.compiled import keep_compiled

    keep_compiled()  # as the command does, before jax is imported
    from vae_jax.runs import train

    seconds = {"imports": time.time() - began}
    fit = train.fit

    def stop(progress):
        seconds["first step"] = time.time() - began
        print(*(seconds[stage] for stage in STAGES), flush=True)
        os._exit(0)

    def timed_fit(*args, **options):
        seconds["data"] = time.time() - began
        return fit(*args, **(options | {"on_progress": stop}))

    train.fit = timed_fit
    sys.argv = ["vae-jax", "train", *arguments, "--train.chunk_steps=1"]
    cli.main()


def measure(cache: Path, arguments: list[str]) -> list[float]:
    """Seconds to each stage of one start."""
    with tempfile.TemporaryDirectory() as out:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment["XDG_CACHE_HOME"] = str(cache)
        command = [sys.executable, __file__, "--inner", str(time.time()), *arguments, "--out", out, "--overwrite"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def main():
    if sys.argv[1:2] == ["--inner"]:
        inner(float(sys.argv[2]), sys.argv[3:])
        sys.exit("the first step was never finished")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="article", help="a shipped configuration or a YAML file")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    options, rest = parser.parse_known_args()
    arguments = ["--config", options.config, "--data.cache_dir", str(user_cache()), *rest]
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder) / "unused", arguments)  # reads the data, and the libraries into the disk cache
        found = {"cold": [], "warm": []}
        for i in range(options.rounds):
            for kind in found:
                found[kind].append(measure(Path(folder) / str(i), arguments))
    print("seconds from the command, medians:", *STAGES, sep="  ")
    for kind, rows in found.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        last = [row[-1] for row in rows]
        print(kind, *(f"{seconds:.2f}" for seconds in medians), f"(from {min(last):.2f} to {max(last):.2f})", sep="  ")


if __name__ == "__main__":
    main()
