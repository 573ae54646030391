"""Writes a comparison's files: FOLDER/comparison.json (all figures), comparison.md (tables), comparison.png."""

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.compare import results
from vae_jax.compare.level import Level
from vae_jax.errors import counted
from vae_jax.files.replace import write_text
from vae_jax.files.tables import escaped
from vae_jax.pictures.plots import comparison

QUESTIONS = {
    "function": "the same function?",
    "gradient": "the same gradient?",
    "trajectory": "the same training?",
    "result": "the same result, at what cost?",
}
COSTS = ["framework", "version", "device", "parameters", "images/s", "seconds per epoch", "peak memory, MB",
         "of the device, MB", "notes"]  # fmt: skip
PACKAGES = ("vae_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")


FILES = ("comparison.json", "comparison.md", "comparison.png", "results_*.json")


def files_in(folder: Path) -> list[Path]:
    """The files in a folder that a comparison has written."""
    return sorted(path for pattern in FILES for path in folder.glob(pattern))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file as a whole; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def write(folder: Path, config: dict[str, Any], data: str, epochs: int, levels: dict[str, Level]) -> None:
    """Writes the three files with the levels answered so far; `epochs` are those of the independent runs."""
    import jax

    from vae_jax.device.devices import described

    content = {
        "format": "vae_jax comparison",
        "version": 1,
        "data": data,
        "device": described(jax.devices()[0]),
        "versions": _versions(),
        "config": config,
        "epochs": epochs,
        "levels": {name: level._asdict() for name, level in levels.items()},
    }
    write_json(folder / "comparison.json", content)
    write_text(folder / "comparison.md", markdown(content))
    _draw(folder / "comparison.png", content)


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[escaped(cell) for cell in row] for row in [columns, *rows]]
    return [f"| {' | '.join(row)} |" for row in [cells[0], ["---"] * len(columns), *cells[1:]]]


def markdown(content: dict[str, Any]) -> str:
    """The comparison as text: a table of the levels, then a section per level."""
    levels, versions = content["levels"], content["versions"]
    lines = [
        "# vae_jax beside PyTorch",
        "",
        f"Data: {escaped(content['data'])}. Device: {escaped(content['device'])}. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.",
        "",
        *_table(
            ["level", "verdict", "figures"],
            [[f"**{name}**: {QUESTIONS[name]}", level["verdict"], level["summary"]] for name, level in levels.items()],
        ),
    ]
    for name, level in levels.items():
        lines += ["", f"## {name.capitalize()}", "", *_SECTIONS[name](level["details"])]
    return "\n".join(lines) + "\n"


def _function(details: dict[str, Any]) -> list[str]:
    single, double = details["float32"], details["float64"]
    rows = [
        [row["layer"], "x".join(map(str, row["shape"])), f"{row['largest']:.3g}", f"{row['difference']:.1e}",
         f"{in_double['difference']:.1e}", _mark(row, in_double)]
        for row, in_double in zip(single["layers"], double["layers"], strict=True)
    ]  # fmt: skip
    return [
        f"Same weights, the same {single['images']} test images, evaluation mode. Tolerance: {single['tolerance']:g} "
        f"(float64 {double['tolerance']:g}) of the larger of 1 and the output's largest entry.",
        "",
        *_table(["output", "shape", "largest entry", "largest difference", "in float64", "within"], rows),
    ]


def _gradient(details: dict[str, Any]) -> list[str]:
    single, double = details["float32"], details["float64"]
    rows = [
        [row["tensor"], row["kind"], f"{row['largest']:.3g}", f"{row['relative']:.1e}", f"{in_double['relative']:.1e}",
         _mark(row, in_double)]
        for row, in_double in zip(single["tensors"], double["tensors"], strict=True)
    ]  # fmt: skip
    return [
        "Same weights, batch, noise and dropout masks, training mode. Error: the largest difference by the tensor's "
        f"largest entry; tolerance {single['tolerance']:g} (float64 {double['tolerance']:g}). A bias that feeds a "
        "BatchNorm has a true gradient of 0: there the figure is its largest entry by that of all gradients, "
        f"tolerance {single['dead_tolerance']:g} ({double['dead_tolerance']:g}). PyTorch computes with its own kernels "
        "here, not with oneDNN's, which round more coarsely.",
        "",
        *_table(["tensor", "what", "largest entry", "error", "in float64", "within"], rows),
    ]


def _mark(single: dict[str, Any], double: dict[str, Any]) -> str:
    return "yes" if single["within"] and double["within"] else "in float64" if double["within"] else "**no**"


def _trajectory(details: dict[str, Any]) -> list[str]:
    steps = len(details["float64"]["gap"])
    shown = sorted({max(1, round(steps * part)) for part in (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1)})
    rows = [
        [str(step), f"{details['float32']['vae_jax'][step - 1]:.4f}", f"{details['float32']['pytorch'][step - 1]:.4f}",
         *(f"{details[precision]['gap'][step - 1]:.1e}" for precision in ("float32", "float64"))]
        for step in shown
    ]  # fmt: skip
    return [
        "The same initial weights, batch order, noise and dropout masks at every step; ours are the losses of "
        f"`vae_jax.fit`. Float64 is to stay within {details['tolerance']:g}; in float32 rounding grows chaotically, in "
        "any framework.",
        "",
        *_table(["step", "vae_jax", "PyTorch", "relative gap", "in float64"], rows),
    ]


def _result(details: dict[str, Any]) -> list[str]:
    entries = details["results"]
    unit = entries[0]["unit"]
    runs = {entry["framework"]: results.losses(entry) for entry in entries if entry["unit"] == unit}
    epochs = max(losses.shape[1] for losses in runs.values())

    def cell(losses: np.ndarray, epoch: int) -> str:
        if epoch >= losses.shape[1]:
            return ""
        spread = f" ± {losses[:, epoch].std(ddof=1):.2f}" if len(losses) > 1 else ""
        return f"{losses[:, epoch].mean():.2f}{spread}"

    rows = [[str(i + 1), *(cell(losses, i) for losses in runs.values())] for i in range(epochs)]
    costs = [
        [
            entry["framework"],
            entry.get("framework_version", ""),
            entry.get("device", ""),
            _number(entry.get("parameters")),
            *map(_number, results.cost(entry).values()),
            entry.get("notes", ""),
        ]
        for entry in entries
    ]
    return [
        f"Independent runs, each framework in its own way (initialisation, shuffling, noise and dropout are its own). "
        f"Data: {escaped(entries[0]['data'])}. Test loss, {escaped(unit)}: mean ± standard deviation over "
        f"runs.",
        "",
        *_table(["epoch", *(f"{name} ({counted(len(losses), 'run')})" for name, losses in runs.items())], rows),
        "",
        f"Test: {details['test']}.",
        "",
        *(f"- {escaped(_sentence(test))}." for test in details["tests"]),
        "",
        "Cost: medians over epochs, without each run's first where there are more; PyTorch trains eagerly. Peak memory "
        "beyond the libraries' own, compilation included.",
        "",
        *_table(COSTS, costs),
    ]


def _sentence(test: dict[str, Any]) -> str:
    from vae_jax.compare.result import sentence

    return sentence(test)


def _number(value: int | float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


_SECTIONS = {"function": _function, "gradient": _gradient, "trajectory": _trajectory, "result": _result}


def _draw(path: Path, content: dict[str, Any]) -> None:
    levels = content["levels"]
    losses, curves, gaps, unit = {}, {}, {}, "nats per image"
    if "trajectory" in levels:
        details = levels["trajectory"]["details"]
        names = {"vae_jax, float32": "vae_jax", "PyTorch, float32": "pytorch"}
        curves = {name: np.array(details["float32"][key]) for name, key in names.items()}
        gaps = {precision: np.array(details[precision]["gap"]) for precision in ("float32", "float64")}
    if "result" in levels:
        entries = levels["result"]["details"]["results"]
        unit = entries[0]["unit"]
        losses = {entry["framework"]: results.losses(entry) for entry in entries if entry["unit"] == unit}
    if losses or curves:
        comparison(path, losses, curves, gaps, unit)
