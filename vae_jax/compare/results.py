"""Results files: independent runs of one model in one framework, and the comparison of two frameworks' runs."""

import json
import math
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.compare.level import DIFFERS, NO_DIFFERENCE, UNTESTED
from vae_jax.errors import UserError, brief, cut
from vae_jax.files.checked import UnfitError, load, read_bytes

SIGNIFICANCE = 0.05
TEST = (
    "Welch's two-sided t-test of the mean test loss after the last common epoch, at the level 0.05; it takes runs as "
    "independent, and their losses as roughly normal, of any variance"
)


def read(path: Path) -> dict[str, Any]:
    """Reads a results file and checks it against `results.schema.json`.

    Raises:
        UserError: naming the place in the file, what was expected and what was found.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        results = load(read_bytes(path), finite=True)
    except UnfitError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: expected a results file; {error.strerror or error}") from error
    schema = json.loads(files("vae_jax.compare").joinpath("results.schema.json").read_bytes())
    error = best_match(Draft202012Validator(schema).iter_errors(results))
    if error:
        raise UserError(f"{path}: {cut(error.json_path, 100)}: {brief(error.message, 200)}")
    for i, run in enumerate(results["runs"]):
        numbers = [epoch["epoch"] for epoch in run["epochs"]]
        if numbers != list(range(1, len(numbers) + 1)):
            raise UserError(f"{path}: $.runs[{i}].epochs: expected epochs 1, 2, 3, … in order; found another order")
    seeds = [run["seed"] for run in results["runs"]]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: $.runs: expected each seed once; found {sorted(seeds)}"[:300])
    return results


def losses(results: dict[str, Any], name: str = "test_loss") -> np.ndarray:
    """A figure by run and epoch, (runs, epochs), for the epochs that all runs have; NaN where it is missing."""
    epochs = min(len(run["epochs"]) for run in results["runs"])
    figures = [[epoch.get(name, math.nan) for epoch in run["epochs"][:epochs]] for run in results["runs"]]
    return np.array(figures, np.float64)


def with_distinct_names(results: list[dict[str, Any]], taken: Iterable[str]) -> list[dict[str, Any]]:
    """The results with distinct names of frameworks that are not taken: a second PyTorch is "PyTorch (2)"."""
    names, renamed = set(taken), []
    for entry in results:
        name, number = entry["framework"], 1
        while name in names:
            number += 1
            name = f"{entry['framework']} ({number})"
        names.add(name)
        renamed.append({**entry, "framework": name})
    return renamed


def incomparable(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The reasons why two frameworks' losses should not be compared; empty if they may be."""
    names = ("unit", "data", "train_images", "test_images")
    return [f"{name} {theirs[name]}, not {ours[name]}" for name in names if ours[name] != theirs[name]]


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Whether the two frameworks' test losses differ, see `TEST`."""
    from scipy import stats

    names = {"a": ours["framework"], "b": theirs["framework"]}
    a, b = losses(ours), losses(theirs)
    epoch = min(a.shape[1], b.shape[1])
    a, b = a[:, epoch - 1], b[:, epoch - 1]
    difference: float | None = float(a.mean() - b.mean())
    outcome: dict[str, Any] = {**names, "epoch": epoch, "runs": [len(a), len(b)], "difference": difference}
    reasons = incomparable(ours, theirs)
    if ours["unit"] != theirs["unit"]:
        outcome["difference"] = None
    if not reasons and min(len(a), len(b)) < 2:
        reasons = ["fewer than two runs"]
    if not reasons and a.var() + b.var() == 0:
        reasons = ["no spread between runs"]
    if reasons:
        return {**outcome, "verdict": UNTESTED, "why": reasons}
    test: Any = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(1 - SIGNIFICANCE)
    return {
        **outcome,
        "t": float(test.statistic),
        "degrees_of_freedom": float(test.df),
        "p": float(test.pvalue),
        "interval": [float(low), float(high)],
        "verdict": DIFFERS if test.pvalue < SIGNIFICANCE else NO_DIFFERENCE,
    }


def cost(results: dict[str, Any]) -> dict[str, float | None]:
    """Medians over all epochs except every run's first, if there are more: it is still warming up."""
    medians = {}
    for name in ("images_per_second", "train_seconds"):
        figures = losses(results, name)
        figures = figures[:, 1:] if figures.shape[1] > 1 else figures
        median = float(np.median(figures))
        medians[name] = median if math.isfinite(median) else None
    for name in ("peak_memory", "peak_device_memory"):
        size = results.get(f"{name}_bytes")
        medians[f"{name}_mb"] = None if size is None else size / 2**20
    return medians
