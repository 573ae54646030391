"""A sweep beside its members' single runs: are they the same, and what does it cost?

    python benchmarks/sweep.py [--epochs 5] [--seeds 8] [--float64]

8 seeds x 4 values of β on the digits, trained as one program and one by one, taking turns on the same machine. In
float64 every epoch's losses are compared, in float32 the losses of the first 20 steps. The times are those of all
epochs but the first, in which programs are compiled; evaluation after each epoch is in them.
"""

import argparse
import json
import time

import jax
import numpy as np

from vae_jax import data
from vae_jax.config import load_config
from vae_jax.runs.fit import fit
from vae_jax.sweeps.plan import make_sweep, members_of
from vae_jax.training import several


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--betas", default="0.5,1,2,4")
    parser.add_argument("--float64", action="store_true", help="compare to the last epoch, in double precision")
    return parser.parse_args()


def single(config, images):
    """A run's epochs, its steps' losses and its seconds from the end of the first epoch on."""
    steps, marks = [], []

    def on_epoch(figures, state):
        steps.append(np.asarray(state.sums[:, 0], np.float64))
        marks.append(time.perf_counter())

    trained = fit(config, images, on_epoch=on_epoch)
    return trained.history, np.concatenate(steps), marks[-1] - marks[0]


def together(configs, images):
    """The same of all members, and the seconds of all."""
    program = several.program_that_fits(configs, several.Images(images))
    if program.size < len(configs):
        raise SystemExit("the memory does not hold all members")
    steps, marks = [[] for _ in configs], []

    def on_epoch(number, figures, state):
        steps[number].append(np.asarray(state.sums[:, 0], np.float64))
        if number == len(configs) - 1:
            marks.append(time.perf_counter())

    ended = several.fit(program, [several.Run(config) for config in configs], on_epoch=on_epoch)
    return [history for _, history in ended], [np.concatenate(each) for each in steps], marks[-1] - marks[0]


def main():
    options = parse()
    if options.float64:
        jax.config.update("jax_enable_x64", True)
    base = load_config("digits", **{"train.epochs": options.epochs})
    images = data.load(base.data)
    found = members_of(make_sweep(base, options.seeds, [f"objective.beta={options.betas}"]))
    configs = [member.config for member in found]
    # The machine's speed drifts: half of the single runs come before the sweep and half after it.
    half = len(configs) // 2
    singles = [single(config, images) for config in configs[:half]]
    histories, steps, seconds = together(configs, images)
    singles += [single(config, images) for config in configs[half:]]
    alone, epoch_gap, step_gap, early_gap = 0.0, 0.0, 0.0, 0.0
    for config, history, own, (expected, expected_steps, took) in zip(configs, histories, steps, singles, strict=True):
        alone += took
        for now, then in zip(history, expected, strict=True):
            for name in ("train_loss", "test_loss", "test_reconstruction", "test_kl"):
                epoch_gap = max(epoch_gap, abs(now[name] - then[name]) / abs(then[name]))
        gaps = np.abs(own - expected_steps) / np.abs(expected_steps)
        early_gap, step_gap = max(early_gap, float(gaps[:20].max())), max(step_gap, float(gaps.max()))
        print(
            f"seed {config.seed}, β {config.objective.beta}: first 20 steps {gaps[:20].max():.1e}, all {gaps.max():.1e}"
        )
    print(
        json.dumps(
            {
                "device": str(jax.devices()[0]),
                "members": len(configs),
                "epochs": options.epochs,
                "precision": "float64" if options.float64 else "float32",
                "gap_of_epochs": epoch_gap,
                "gap_of_first_20_steps": early_gap,
                "gap_of_steps": step_gap,
                "seconds_together": seconds,
                "seconds_one_by_one": alone,
                "ratio": seconds / alone,
                "in_single_runs": seconds / (alone / len(configs)),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
