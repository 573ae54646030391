"""The pictures of a sweep."""

import math
import os
from itertools import product
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    OwnPath = Path
else:  # Path itself can be the base of a class from Python 3.12 on only
    OwnPath = WindowsPath if os.name == "nt" else PosixPath
from vae_jax.pictures.plots import LABEL, load_matplotlib, new_figure, plain, save_figure
from vae_jax.pictures.sheet import Picture

WIDEST = 30.0  # inches of a picture


def sweep_curves(
    path: Path, curves: dict[str, dict[str, Float[np.ndarray, "..."]]], unit: str, title: str = ""
) -> Picture:
    """Saves each setting's figures by epoch: the mean over its seeds, and their standard deviation as a band.

    Args:
        path: of the PNG.
        curves: by the setting's name and the figure's, (seeds, epochs) each; empty where all have diverged.
        unit: of the figures.
        title: above them.
    """
    parts = list(next(iter(curves.values())))
    figure = new_figure(1.0 + 4.0 * max(2, len(parts)), 4.2)
    panels = [figure.add_subplot(1, len(parts), number) for number in range(1, len(parts) + 1)]
    shades = _shades(len(curves))
    for axes, part in zip(panels, parts, strict=True):
        for color, (name, found) in zip(shades, curves.items(), strict=True):
            if not found[part].size:
                axes.plot([], [], "x", color=color, label=plain(name))
                continue
            epochs, mean = np.arange(1, found[part].shape[1] + 1), found[part].mean(0)
            axes.plot(epochs, mean, "o-" if len(epochs) < 20 else "-", markersize=3, color=color, label=plain(name))
            if len(found[part]) > 1:
                spread = found[part].std(0, ddof=1)
                axes.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        axes.set(title=plain(part), xlabel="epoch", ylabel=plain(unit))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if len(curves) <= 16:
        panels[-1].legend(fontsize="small")
    spread = any(len(found[parts[0]]) > 1 for found in curves.values())
    above = ["mean over seeds, with their standard deviation" if spread else "", title]
    figure.suptitle(plain("; ".join(filter(None, above)), 4 * LABEL))
    return save_figure(path, figure)


def sweep_grid(
    path: Path, settings: dict[str, list[str]], cells: dict[Any, dict[str, list[float]]], unit: str, title: str = ""
) -> Picture:
    """Saves the final figures against the swept values: of one option as a line, of more as a grid.

    Args:
        path: of the PNG.
        settings: the values of each option.
        cells: by the setting, as pairs of option and value, and the figure's name: a value for each seed; empty where
            all have diverged. What has no cell is left white.
        unit: of the figures.
        title: above them.
    """
    *others, last = settings
    rows = list(product(*(settings[option] for option in others)))
    columns = settings[last]
    parts = list(next(iter(cells.values())))
    width = max(1.0 + 4.0 * max(2, len(parts)), 0.8 * len(parts) * len(columns))
    figure = new_figure(min(width, WIDEST), min(max(4.0, 1.2 + 0.45 * len(rows)), WIDEST))
    figure.suptitle(plain(title, 4 * LABEL))
    # Of very many values only some are named, and a scale tells the figures instead of each cell.
    every_column, every_row = (math.ceil(0.3 * count / WIDEST) for count in (len(parts) * len(columns), len(rows)))
    written = 0.45 * len(parts) * len(columns) <= WIDEST and every_row == 1
    for number, part in enumerate(parts, 1):
        axes = figure.add_subplot(1, len(parts), number)
        places = [[(*zip(others, row, strict=True), (last, value)) for value in columns] for row in rows]
        found = [[cells[place][part] if place in cells else [] for place in line] for line in places]
        mean = np.array([[np.mean(each) if each else np.nan for each in line] for line in found])
        axes.set(title=plain(f"{part} ({unit})"), xlabel=plain(last))
        axes.set_xticks(range(0, len(columns), every_column), [plain(value) for value in columns[::every_column]])
        if not others:
            spread = [np.std(each, ddof=1) if len(each) > 1 else 0.0 for each in found[0]]
            axes.errorbar(range(len(columns)), mean[0], spread, fmt="o-", capsize=3)
            for place, values in enumerate(found[0]):
                axes.plot([place] * len(values), values, ".", color="C0", alpha=0.35)
                if not values and places[0][place] in cells:
                    axes.annotate(
                        "diverged", (place, 0.5), xycoords=("data", "axes fraction"), ha="center", rotation=90
                    )
            axes.set(
                xlim=(-0.5, len(columns) - 0.5), ylabel="" if number > 1 else "mean over seeds, ± standard deviation"
            )
            axes.grid(alpha=0.3)
            continue
        image = axes.imshow(mean, cmap="viridis", aspect="auto")
        if not written:
            figure.colorbar(image, label="white: all diverged" if np.isnan(mean).any() else "")
        middle = np.nanmean(mean) if np.isfinite(mean).any() else 0.0
        for (row, column), value in np.ndenumerate(mean) if written else ():
            if places[row][column] not in cells:
                continue
            text = "diverged" if np.isnan(value) else f"{value:.4g}"
            axes.text(column, row, text, ha="center", va="center", color="white" if value <= middle else "black")
        axes.set_yticks(range(0, len(rows), every_row), [plain(", ".join(row)) for row in rows[::every_row]])
        axes.set_ylabel(plain(", ".join(others)))
    return save_figure(path, figure)


def _shades(count: int) -> list[Any]:
    """So many colours that can be told apart."""
    if count <= 10:
        return [f"C{number}" for number in range(count)]
    load_matplotlib()
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.95, count)))
