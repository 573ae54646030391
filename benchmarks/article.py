"""The article in full: wall-clock of `vae-jax train --config article`, from the command to the last picture.

    .venv/bin/python benchmarks/article.py --data.manual_dir DIR [options of `vae-jax train`]

Twice with a cache of compiled programs of its own: cold, then warm. The data are cached before.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vae_jax.folder import user_cache


def train(cache: Path, arguments: list[str]) -> tuple[float, dict]:
    """One run: its seconds and its last epoch's figures."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "vae_jax", "train", "--config", "article", "--out", f"{out}/run"]
        command += ["--data.cache_dir", str(user_cache()), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment["XDG_CACHE_HOME"] = str(cache)
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            sys.exit(done.stderr)
        return seconds, json.loads(Path(out, "run", "metrics.jsonl").read_text().splitlines()[-1])


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "unused", [*arguments, "--train.epochs=1"])  # reads the data
        for kind in ("cold", "warm"):
            seconds, epoch = train(Path(folder) / "compiled", arguments)
            print(
                f"{kind}: {seconds:.1f} s for {epoch['epoch']} epochs; test {epoch['test_loss']:.2f} nats per image; "
                f"compilation {epoch['compile_seconds']:.1f} s, last epoch {epoch['train_seconds']:.2f} s "
                f"({epoch['images_per_second']:,.0f} images/s)"
            )


if __name__ == "__main__":
    main()
