"""Results files: independent runs of one model in one framework, ours or another's, and what they tell together."""

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
    """A results file, checked against `results.schema.json`.

    Raises:
        UserError: naming the place in the file, what was expected and what was found.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        found = load(read_bytes(path), finite=True)
    except UnfitError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: expected a results file; {error.strerror or error}") from error
    schema = json.loads(files("vae_jax.compare").joinpath("results.schema.json").read_bytes())
    error = best_match(Draft202012Validator(schema).iter_errors(found))
    if error:
        raise UserError(f"{path}: {cut(error.json_path, 100)}: {brief(error.message, 200)}")
    for i, run in enumerate(found["runs"]):
        numbers = [epoch["epoch"] for epoch in run["epochs"]]
        if numbers != list(range(1, len(numbers) + 1)):
            raise UserError(f"{path}: $.runs[{i}].epochs: expected epochs 1, 2, 3, … in order; found another order")
    seeds = [run["seed"] for run in found["runs"]]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: $.runs: expected each seed once; found {sorted(seeds)}"[:300])
    return found


def losses(results: dict[str, Any], name: str = "test_loss") -> np.ndarray:
    """A figure by run and epoch, (runs, epochs), as far as all runs go; NaN where it is not told."""
    epochs = min(len(run["epochs"]) for run in results["runs"])
    figures = [[epoch.get(name, math.nan) for epoch in run["epochs"][:epochs]] for run in results["runs"]]
    return np.array(figures, np.float64)


def named_apart(results: list[dict[str, Any]], taken: Iterable[str]) -> list[dict[str, Any]]:
    """The results with names of frameworks that are not taken yet: a second PyTorch is "PyTorch (2)"."""
    names, found = set(taken), []
    for each in results:
        name, number = each["framework"], 1
        while name in names:
            number += 1
            name = f"{each['framework']} ({number})"
        names.add(name)
        found.append({**each, "framework": name})
    return found


def incomparable(results: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Why two frameworks' losses should not be compared; empty where nothing speaks against it."""
    names = ("unit", "data", "train_images", "test_images")
    return [f"{name} {other[name]}, not {results[name]}" for name in names if results[name] != other[name]]


def compare(results: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Whether the two frameworks' test losses differ, see `TEST`."""
    from scipy import stats

    names = {"a": results["framework"], "b": other["framework"]}
    a, b = losses(results), losses(other)
    epoch = min(a.shape[1], b.shape[1])
    a, b = a[:, epoch - 1], b[:, epoch - 1]
    difference: float | None = float(a.mean() - b.mean())
    found: dict[str, Any] = {**names, "epoch": epoch, "runs": [len(a), len(b)], "difference": difference}
    reasons = incomparable(results, other)
    if results["unit"] != other["unit"]:
        found["difference"] = None
    if not reasons and min(len(a), len(b)) < 2:
        reasons = ["fewer than two runs"]
    if not reasons and a.var() + b.var() == 0:
        reasons = ["no spread between runs"]
    if reasons:
        return {**found, "verdict": UNTESTED, "why": reasons}
    test: Any = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(1 - SIGNIFICANCE)
    return {
        **found,
        "t": float(test.statistic),
        "degrees_of_freedom": float(test.df),
        "p": float(test.pvalue),
        "interval": [float(low), float(high)],
        "verdict": DIFFERS if test.pvalue < SIGNIFICANCE else NO_DIFFERENCE,
    }


def cost(results: dict[str, Any]) -> dict[str, float | None]:
    """Medians over all epochs but each run's first, if there are more: it is still warming up."""
    found = {}
    for name in ("images_per_second", "train_seconds"):
        figures = losses(results, name)
        figures = figures[:, 1:] if figures.shape[1] > 1 else figures
        median = float(np.median(figures))
        found[name] = median if math.isfinite(median) else None
    for name in ("peak_memory", "peak_device_memory"):
        size = results.get(f"{name}_bytes")
        found[f"{name}_mb"] = None if size is None else size / 2**20
    return found
