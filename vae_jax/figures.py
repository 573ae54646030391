"""Arrays in, pictures out."""

import io
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image

from vae_jax.device.memory import check
from vae_jax.errors import UserError, cut, listed
from vae_jax.files.replace import replacing

Pictures = Float[np.ndarray, "n height width channels"]

LABEL = 100  # characters of a name in a picture
GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # what matplotlib says of a sign that its font does not have
LINE, GAP = 2, 8  # pixels between the pictures of a sheet
PIXELS = (1 << 31) - 1  # of a picture; Pillow counts in 32 bits
# One colour for each class, up to ten told apart by colour-blind readers too (Tableau's).
COLORMAPS = {10: "tab10", 20: "tab20"}


if TYPE_CHECKING:
    OwnPath = Path
else:  # Path itself can be the base of a class from Python 3.12 on only
    OwnPath = WindowsPath if os.name == "nt" else PosixPath


class Picture(OwnPath):
    """The path of a PNG, which a notebook shows as the picture."""

    def _repr_png_(self) -> bytes | None:
        with suppress(OSError):  # of a file that was moved or deleted since
            return self.read_bytes()
        return None


def _save(path: Path, write: Any) -> Picture:
    """Writes a PNG so that no half-written file is ever seen."""
    with replacing(path) as file:
        write(file)
    return Picture(path)


class Sheet:
    """A picture made of pictures, row by row, that come in blocks; small ones are enlarged by a whole factor."""

    def __init__(self, count: int, shape: tuple[int, ...], columns: int, gap_after_rows: int = 0, what: str = ""):
        """Looks at whether it can be drawn; nothing is allocated yet.

        Args:
            count: of the pictures.
            shape: of each, (height, width, channels), grey or RGB.
            columns: pictures in a row.
            gap_after_rows: leaves a wider gap after so many rows; 0 for none.
            what: asks for so many, for the message; it begins with the options to blame.

        Raises:
            UserError: if the picture is larger than a PNG is made here.
            NotEnough: if it does not fit into memory.
        """
        self._height, self._width, self._channels = shape
        self._columns, self._rows = columns, -(-count // columns)
        self._scale = max(1, 768 // (columns * self._width))
        self._gap_after_rows = gap_after_rows
        self._canvas = None
        height, width = self._size = (
            self._top(self._rows - 1) + self._height * self._scale + LINE,
            columns * (self._width * self._scale + LINE) + LINE,
        )
        what = what or f"a picture of {count:,} pictures"
        if height * width > PIXELS:
            raise UserError(
                f"{what}: expected a picture of at most {PIXELS:,} pixels; found one of {width:,} x {height:,}"
            )
        each = 1 if self._channels == 1 else self._channels + 4  # of RGB Pillow takes a copy, with 4 bytes a pixel
        check(height * width * each, f"{what}: {width:,} x {height:,} pixels")

    def _top(self, row: int) -> int:
        gaps = row // self._gap_after_rows * GAP if self._gap_after_rows else 0
        return LINE + row * (self._height * self._scale + LINE) + gaps

    def put(self, places: Sequence[int], pictures: Pictures) -> None:
        """Draws pictures in [0, 1] at these places, which are counted row by row from 0."""
        if self._canvas is None:
            self._canvas = np.full((*self._size, self._channels), 255, np.uint8)
        for place, levels in zip(places, np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8), strict=True):
            large = levels.repeat(self._scale, 0).repeat(self._scale, 1)
            row, column = divmod(place, self._columns)
            top, left = self._top(row), column * (self._width * self._scale + LINE) + LINE
            self._canvas[top : top + large.shape[0], left : left + large.shape[1]] = large

    def write(self, file: Any) -> None:
        """Writes it as a PNG; something must have been put."""
        assert self._canvas is not None
        Image.fromarray(self._canvas[..., 0] if self._channels == 1 else self._canvas).save(file, "PNG")

    def save(self, path: Path) -> Picture:
        """Saves it as a PNG."""
        return _save(path, self.write)


def png(pictures: Pictures, columns: int) -> bytes:
    """The PNG of pictures in [0, 1], grey or RGB, as a grid, row by row, see `Sheet`."""
    sheet = Sheet(len(pictures), pictures.shape[1:], columns)
    sheet.put(range(len(pictures)), pictures)
    file = io.BytesIO()
    sheet.write(file)
    return file.getvalue()


def grid(path: Path, pictures: Pictures, columns: int, gap_after_rows: int = 0) -> Picture:
    """Saves pictures in [0, 1] as a grid, row by row, see `Sheet`.

    Args:
        path: of the PNG.
        pictures: grey or RGB.
        columns: pictures in a row.
        gap_after_rows: leaves a wider gap after so many rows; 0 for none.
    """
    sheet = Sheet(len(pictures), pictures.shape[1:], columns, gap_after_rows)
    sheet.put(range(len(pictures)), pictures)
    return sheet.save(path)


class Pairs:
    """A picture of rows of originals, each row above the row of its reconstructions, that come in blocks."""

    def __init__(self, count: int, shape: tuple[int, ...], columns: int = 16, what: str = ""):
        """Looks at whether it can be drawn, see `Sheet`."""
        self._columns = min(columns, count)
        rows = 2 * -(-count // self._columns)
        self._sheet = Sheet(rows * self._columns, shape, self._columns, gap_after_rows=2, what=what)

    def put(self, first: int, above: Pictures, below: Pictures) -> None:
        """Draws originals, the first of them with this number, and their reconstructions."""
        numbers = np.arange(first, first + len(above))
        places = numbers + numbers // self._columns * self._columns
        # In the precision of the finer, as if they were one array.
        dtype = np.result_type(above, below)
        for pictures, further in ((above, 0), (below, self._columns)):
            self._sheet.put((places + further).tolist(), pictures.astype(dtype, copy=False))

    def save(self, path: Path) -> Picture:
        """Saves it as a PNG."""
        return self._sheet.save(path)


def pairs(path: Path, above: Pictures, below: Pictures, columns: int = 16) -> Picture:
    """Saves rows of originals, each row above the row of its reconstructions."""
    drawn = Pairs(len(above), above.shape[1:], columns)
    drawn.put(0, above, below)
    return drawn.save(path)


def loss_curve(path: Path, history: list[dict[str, Any]], unit_of: Callable[[str], str]) -> Picture:
    """Saves the loss, its parts and an objective's other figures by epoch; `unit_of` gives the unit of each."""
    epochs = [figures["epoch"] for figures in history]
    marker = "o" if len(epochs) < 20 else None
    names = [name.removeprefix("test_") for name in history[0] if name.startswith("test_")]
    parts = [name for name in names if name not in ("reconstruction", "kl") or any(e.get("train_kl") for e in history)]
    figure = new_figure(3.0 * max(3, len(parts)), 3.6)
    for i, part in enumerate(parts):
        axes = figure.add_subplot(1, len(parts), i + 1)
        for split, style in (("train", "--"), ("validation", ":"), ("test", "-")):
            if f"{split}_{part}" in history[0]:
                axes.plot(
                    epochs, [figures[f"{split}_{part}"] for figures in history], style, marker=marker, label=split
                )
        axes.set(title=_plain({"kl": "KL"}.get(part, part)), xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.grid(alpha=0.3)
        if i == 0 or unit_of(part) != unit_of(parts[0]):
            axes.set_ylabel(_plain(unit_of(part)))
        if i == 0:
            axes.legend()
    return save_figure(path, figure)


def latent_plane(
    path: Path,
    means: Float[np.ndarray, "n 2"],
    labels: Int64[np.ndarray, " n"] | None,
    decoded: Float[np.ndarray, "tiles height width channels"],
    extent: float,
    class_names: tuple[str, ...] | None = None,
) -> Picture:
    """Saves a two-dimensional latent space: where test images lie, and what its points decode to.

    Args:
        path: of the PNG.
        means: the posterior's means of test images.
        labels: their classes, or None.
        decoded: pictures of a square grid over [−extent, extent]², row by row from the top left.
        extent: half the side of the square shown.
        class_names: the labels' names, by number; shown where there are at most 20.
    """
    figure = new_figure(11.0, 5.4)
    scatter = figure.add_subplot(1, 2, 1)
    shades = {}
    if labels is not None:
        colormap = next((name for most, name in COLORMAPS.items() if np.ptp(labels) < most), "viridis")
        shades = {"cmap": colormap, "vmin": labels.min() - 0.5, "vmax": labels.max() + 0.5}
    points = scatter.scatter(means[:, 0], means[:, 1], s=4, c=labels, **shades)
    if labels is not None:
        present = np.unique(labels)
        bar = figure.colorbar(points, ax=scatter, ticks=present, label="class")
        if class_names and len(class_names) <= 20:
            bar.set_ticklabels([_plain(name) for number, name in enumerate(class_names) if number in present])
    scatter.set(title="test images", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    scatter.set(xlim=(-extent, extent), ylim=(-extent, extent))
    side = math.isqrt(len(decoded))
    _, height, width, channels = decoded.shape
    tiles = decoded.reshape(side, side, height, width, channels).transpose(0, 2, 1, 3, 4)
    tiles = tiles.reshape(side * height, side * width, channels)
    plane = figure.add_subplot(1, 2, 2)
    plane.imshow(tiles.squeeze(), cmap="gray", vmin=0, vmax=1, extent=(-extent, extent, -extent, extent))
    plane.set(title="decoded", xlabel="$z_1$", ylabel="$z_2$")
    return save_figure(path, figure)


def comparison(
    path: Path,
    losses: dict[str, Float[np.ndarray, "_runs _epochs"]],
    curves: dict[str, Float[np.ndarray, " steps"]],
    gaps: dict[str, Float[np.ndarray, " steps"]],
    unit: str,
) -> Picture:
    """Saves what a comparison of frameworks looks like; a panel without data is left out.

    Args:
        path: of the PNG.
        losses: test losses of each framework's independent runs by epoch, drawn as mean, standard deviation and runs.
        curves: each framework's loss by step, trained from the same weights with the same random numbers.
        gaps: relative differences of these losses by precision, drawn on a logarithmic axis.
        unit: of the losses.
    """
    panels = [bool(losses), bool(curves), bool(gaps)]
    figure = new_figure(4.6 * max(1, sum(panels)), 3.8)
    places = iter(range(1, 4))
    if losses:
        axes = figure.add_subplot(1, sum(panels), next(places))
        for i, (name, runs) in enumerate(losses.items()):
            epochs, mean = np.arange(1, runs.shape[1] + 1), runs.mean(0)
            axes.plot(
                epochs,
                mean,
                "o-" if len(epochs) < 20 else "-",
                color=f"C{i}",
                label=_plain(f"{name} ({len(runs)} runs)"),
            )
            axes.plot(epochs, runs.T, color=f"C{i}", alpha=0.35, linewidth=0.7)
            if len(runs) > 1:
                spread = runs.std(0, ddof=1)
                axes.fill_between(epochs, mean - spread, mean + spread, color=f"C{i}", alpha=0.15)
        axes.set(title="independent runs: test loss", xlabel="epoch", ylabel=_plain(unit))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    if curves:
        axes = figure.add_subplot(1, sum(panels), next(places))
        for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
            axes.plot(np.arange(1, len(curve) + 1), curve, style, label=_plain(name))
        axes.set(title="same weights and noise: training loss", xlabel="step", ylabel=_plain(unit))
        axes.legend()
        axes.grid(alpha=0.3)
    if gaps:
        axes = figure.add_subplot(1, sum(panels), next(places))
        for name, gap in gaps.items():
            axes.semilogy(np.arange(1, len(gap) + 1), np.maximum(gap, np.finfo(float).eps / 4), label=_plain(name))
        axes.set(title="relative gap of these losses", xlabel="step")
        axes.legend()
        axes.grid(alpha=0.3)
    return save_figure(path, figure)


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
                axes.plot([], [], "x", color=color, label=_plain(name))
                continue
            epochs, mean = np.arange(1, found[part].shape[1] + 1), found[part].mean(0)
            axes.plot(epochs, mean, "o-" if len(epochs) < 20 else "-", markersize=3, color=color, label=_plain(name))
            if len(found[part]) > 1:
                spread = found[part].std(0, ddof=1)
                axes.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        axes.set(title=_plain(part), xlabel="epoch", ylabel=_plain(unit))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if len(curves) <= 16:
        panels[-1].legend(fontsize="small")
    spread = any(len(found[parts[0]]) > 1 for found in curves.values())
    above = ["mean over seeds, with their standard deviation" if spread else "", title]
    figure.suptitle(_plain("; ".join(filter(None, above)), 4 * LABEL))
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
    figure.suptitle(_plain(title, 4 * LABEL))
    # Of very many values only some are named, and a scale tells the figures instead of each cell.
    every_column, every_row = (math.ceil(0.3 * count / WIDEST) for count in (len(parts) * len(columns), len(rows)))
    written = 0.45 * len(parts) * len(columns) <= WIDEST and every_row == 1
    for number, part in enumerate(parts, 1):
        axes = figure.add_subplot(1, len(parts), number)
        places = [[(*zip(others, row, strict=True), (last, value)) for value in columns] for row in rows]
        found = [[cells[place][part] if place in cells else [] for place in line] for line in places]
        mean = np.array([[np.mean(each) if each else np.nan for each in line] for line in found])
        axes.set(title=_plain(f"{part} ({unit})"), xlabel=_plain(last))
        axes.set_xticks(range(0, len(columns), every_column), [_plain(value) for value in columns[::every_column]])
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
        axes.set_yticks(range(0, len(rows), every_row), [_plain(", ".join(row)) for row in rows[::every_row]])
        axes.set_ylabel(_plain(", ".join(others)))
    return save_figure(path, figure)


def _shades(count: int) -> list[Any]:
    """So many colours that can be told apart."""
    if count <= 10:
        return [f"C{number}" for number in range(count)]
    _load_matplotlib()
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.95, count)))


def _plain(label: str, most: int = LABEL) -> str:
    """Text that matplotlib takes as it stands, not as mathematics or as a name that no legend shows; on one line."""
    text = cut(label, most).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save_figure(path: Path, figure: Any) -> Picture:
    """Saves a matplotlib figure; warns once, in one line, of all the signs that its font does not have."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        saved = _save(path, lambda file: figure.savefig(file, format="png", dpi=120))
    missing: dict[str, None] = {}
    for each in told:
        if glyph := GLYPH.match(str(each.message)):
            missing[chr(int(glyph[1]))] = None
        else:
            warnings.warn(each.message, each.category, stacklevel=2)
    if missing:
        warnings.warn(f"{path}: boxes stand for what the font does not have: {listed(missing)}", stacklevel=2)
    return saved


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure outside pyplot's global state, so no display is needed and nothing is left open."""
    load()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def load() -> None:
    """Imports what draws curves, which takes a second."""
    _load_matplotlib()
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


def _load_matplotlib() -> None:
    """Imports matplotlib without a look at MPLBACKEND: a notebook hands its own to programs that do not have it."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # for whatever else this process draws
