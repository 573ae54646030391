"""What checkpoints cost: saving one each epoch with a hash of every array and file, and verifying on resuming.

    .venv/bin/python benchmarks/checkpoints.py [--config article] [options of `vae-jax train`]

Trains one run to its end, then resumes it for one more epoch. The first save and the first restore are listed apart,
since they start orbax up.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from vae_jax import cli
from vae_jax.cli.compiled import keep_compiled


def main():
    keep_compiled()  # as the command does, before jax is imported
    from vae_jax.config import load_config
    from vae_jax.runs import checkpoint, train

    seconds = defaultdict(list)

    def timed(name, function):
        def call(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[name].append(time.perf_counter() - began)

        return call

    checkpoint.Keeper.save = timed("save", checkpoint.Keeper.save)
    checkpoint.Keeper.__init__ = timed("verify all", checkpoint.Keeper.__init__)
    checkpoint.restore = timed("verify and restore", checkpoint.restore)
    trained = []
    fit = train.fit

    train.fit = lambda *arguments, **options: trained.append(fit(*arguments, **options)) or trained[-1]
    options = sys.argv[1:] or ["--config", "article"]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        if cli.main(["train", "--out", out, *options]):
            sys.exit(2)
        saves = list(seconds["save"])
        training = sum(epoch["train_seconds"] for epoch in trained[0].history)
        epochs = load_config(Path(out) / "config.yaml").train.epochs
        if cli.main(["train", "--out", out, "--resume", *options, f"--train.epochs={epochs + 1}"]):
            sys.exit(2)
    saving, first, later = sum(saves), saves[0] * 1e3, statistics.median(saves[1:]) * 1e3
    checking = seconds["verify all"][1] + seconds["verify and restore"][0]
    print(f"training {training:.2f} s in {epochs} epochs, evaluations and compilation excluded")
    print(f"saving {saving:.3f} s: the first {first:.0f} ms, then {later:.0f} ms each")
    print(f"verifying and restoring on resuming {checking * 1e3:.0f} ms")
    print(f"saving is {saving / training:.2%} of training, with one resumption {(saving + checking) / training:.2%}")


if __name__ == "__main__":
    main()
