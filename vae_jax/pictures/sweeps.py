"""Draws the pictures of a sweep."""

import math
import os
from itertools import product
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    OwnPath = Path
else:  # only from Python 3.12 on Path can be the base of a class
    OwnPath = WindowsPath if os.name == "nt" else PosixPath
from vae_jax.pictures.plots import LABEL, load_matplotlib, new_figure, plain, save_figure
from vae_jax.pictures.sheet import Picture

WIDEST = 30.0  # inches of a picture


def sweep_curves(
    path: Path, curves: dict[str, dict[str, Float[np.ndarray, "..."]]], unit: str, title: str = ""
) -> Picture:
    """Saves the settings' figures by epoch: the mean over the seeds, and their standard deviation as a band.

    Args:
        path: of the PNG.
        curves: (seeds, epochs), by the setting's name and the figure's; empty if all have diverged.
        unit: of the figures.
        title: above them.
    """
    parts = list(next(iter(curves.values())))
    figure = new_figure(1.0 + 4.0 * max(2, len(parts)), 4.2)
    panels = [figure.add_subplot(1, len(parts), number) for number in range(1, len(parts) + 1)]
    shades = _shades(len(curves))
    for axes, part in zip(panels, parts, strict=True):
        for color, (name, figures) in zip(shades, curves.items(), strict=True):
            if not figures[part].size:
                axes.plot([], [], "x", color=color, label=plain(name))
                continue
            epochs, mean = np.arange(1, figures[part].shape[1] + 1), figures[part].mean(0)
            axes.plot(epochs, mean, "o-" if len(epochs) < 20 else "-", markersize=3, color=color, label=plain(name))
            if len(figures[part]) > 1:
                spread = figures[part].std(0, ddof=1)
                axes.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        axes.set(title=plain(part), xlabel="epoch", ylabel=plain(unit))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if len(curves) <= 16:
        panels[-1].legend(fontsize="small")
    spread = any(len(figures[parts[0]]) > 1 for figures in curves.values())
    above = ["mean over seeds, with their standard deviation" if spread else "", title]
    figure.suptitle(plain("; ".join(filter(None, above)), 4 * LABEL))
    return save_figure(path, figure)


def sweep_grid(
    path: Path, settings: dict[str, list[str]], cells: dict[Any, dict[str, list[float]]], unit: str, title: str = ""
) -> Picture:
    """Saves the final figures against the swept values: of one option as a line, of more as a grid.

    Args:
        path: of the PNG.
        settings: the options' values.
        cells: by the setting, as pairs of option and value, and the figure's name: one value per seed; empty if all
            have diverged. A setting without a cell is left white.
        unit: of the figures.
        title: above them.
    """
    *outer, last = settings
    rows = list(product(*(settings[option] for option in outer)))
    columns = settings[last]
    parts = list(next(iter(cells.values())))
    width = max(1.0 + 4.0 * max(2, len(parts)), 0.8 * len(parts) * len(columns))
    figure = new_figure(min(width, WIDEST), min(max(4.0, 1.2 + 0.45 * len(rows)), WIDEST))
    figure.suptitle(plain(title, 4 * LABEL))
    # If there are very many values, only some are named, and a scale replaces the figures in the cells.
    every_column, every_row = (math.ceil(0.3 * count / WIDEST) for count in (len(parts) * len(columns), len(rows)))
    written = 0.45 * len(parts) * len(columns) <= WIDEST and every_row == 1
    for number, part in enumerate(parts, 1):
        axes = figure.add_subplot(1, len(parts), number)
        places = [[(*zip(outer, row, strict=True), (last, value)) for value in columns] for row in rows]
        figures = [[cells[place][part] if place in cells else [] for place in line] for line in places]
        mean = np.array([[np.mean(seeds) if seeds else np.nan for seeds in line] for line in figures])
        axes.set(title=plain(f"{part} ({unit})"), xlabel=plain(last))
        axes.set_xticks(range(0, len(columns), every_column), [plain(value) for value in columns[::every_column]])
        if not outer:
            spread = [np.std(seeds, ddof=1) if len(seeds) > 1 else 0.0 for seeds in figures[0]]
            axes.errorbar(range(len(columns)), mean[0], spread, fmt="o-", capsize=3)
            for place, values in enumerate(figures[0]):
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
        axes.set_ylabel(plain(", ".join(outer)))
    return save_figure(path, figure)


def _shades(count: int) -> list[Any]:
    """`count` distinguishable colours."""
    if count <= 10:
        return [f"C{number}" for number in range(count)]
    load_matplotlib()
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.95, count)))
