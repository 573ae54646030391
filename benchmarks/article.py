"""The article in full: where the time of `vae-jax train --config article` goes, from the command to the last picture.

    .venv/bin/python benchmarks/article.py --data.manual_dir DIR [--rounds 3] [options of `vae-jax train`]

Each round trains twice with a cache of compiled programs of its own: cold, then warm. The data are cached before. What
is done beside the training, in another thread, is in the total only as far as it was waited for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import wraps
from pathlib import Path

STAGES = (
    "imports",
    "data",
    "tracing",
    "compiling",
    "training",
    "evaluation",
    "checkpoints",
    "pictures",
    "rest",
    "total",
)


def inner(began: float, arguments: list[str]) -> None:
    """`vae-jax train` that ends by printing the seconds of every stage."""
    from vae_jax import cli
    from vae_jax.cli.compiled import keep_compiled

    keep_compiled()  # as the command does, before jax is imported
    from vae_jax import data
    from vae_jax.evaluation.evaluator import Evaluator
    from vae_jax.runs import checkpoint, final_pictures, recorder
    from vae_jax.training import single

    seconds = dict.fromkeys(STAGES, 0.0)
    seconds["imports"] = time.time() - began
    running: list[str] = []

    def timed(owner, name: str, stage: str) -> None:
        """Has the function's time counted for the stage, but what an inner stage of it takes."""
        function = getattr(owner, name)

        @wraps(function)
        def measured(*args, **options):
            start = time.perf_counter()
            running.append(stage)
            try:
                return function(*args, **options)
            finally:
                running.pop()
                took = time.perf_counter() - start
                seconds[stage] += took
                if running:
                    seconds[running[-1]] -= took

        setattr(owner, name, measured)

    timed(data, "load", "data")
    timed(single, "lower_loop", "tracing")
    timed(Evaluator, "_lower", "tracing")
    timed(Evaluator, "__call__", "evaluation")
    timed(checkpoint, "save", "checkpoints")
    timed(checkpoint.Keeper, "__init__", "checkpoints")
    timed(recorder.Recorder, "epoch", "pictures")  # and, as an inner stage, the checkpoint
    timed(recorder.Recorder, "finish", "pictures")
    for owner, name in ((recorder, "pairs"), (final_pictures, "grid"), (recorder, "loss_curve")):
        timed(owner, name, "pictures")
    sys.argv = ["vae-jax", "train", *arguments]
    code = cli.main()
    out = Path(arguments[arguments.index("--out") + 1])
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds["training"] = sum(epoch["train_seconds"] for epoch in history)
    seconds["compiling"] = history[0]["compile_seconds"] - seconds["tracing"]  # what was waited for
    print(json.dumps({"seconds": seconds, "last": history[-1]}))
    sys.exit(code)


def measure(cache: Path, arguments: list[str]) -> tuple[dict[str, float], dict]:
    """One run: seconds of its stages, and its last epoch's figures."""
    from vae_jax.files.user import user_cache

    with tempfile.TemporaryDirectory() as out:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment["XDG_CACHE_HOME"] = str(cache)
        began = time.time()
        command = [sys.executable, __file__, "--inner", str(began), "--config", "article", "--out", f"{out}/run"]
        command += ["--data.cache_dir", str(user_cache()), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        total = time.time() - began
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = found["seconds"]
    seconds["rest"] = total - sum(seconds.values())
    return seconds | {"total": total}, found["last"]


def main() -> None:
    if sys.argv[1:2] == ["--inner"]:
        inner(float(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    options, arguments = parser.parse_known_args()
    found: dict[str, list] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder) / "unused", [*arguments, "--train.epochs=1"])  # reads the data
        for i in range(options.rounds):
            for kind in found:
                found[kind].append(measure(Path(folder) / str(i), arguments))
    print(f"| seconds | {' | '.join(STAGES)} | nats per image |")
    print(f"|---|{'---:|' * (len(STAGES) + 1)}")
    for kind, rows in found.items():
        medians = [statistics.median(seconds[stage] for seconds, _ in rows) for stage in STAGES]
        shown = " | ".join(f"{each:.2f}" for each in medians)
        print(f"| {kind} | {shown} | {rows[-1][1]['test_loss']:.2f} |")


if __name__ == "__main__":
    main()
