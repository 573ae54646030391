"""Draws curves and maps with matplotlib."""

import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64

from vae_jax.errors import counted, cut, listed

if TYPE_CHECKING:
    OwnPath = Path
else:  # only from Python 3.12 on Path can be the base of a class
    OwnPath = WindowsPath if os.name == "nt" else PosixPath
from vae_jax.pictures.sheet import Picture, save_picture

LABEL = 100  # characters of a name in a picture
GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # matplotlib's warning of a sign that its font lacks
# One colour per class; colour-blind readers too can distinguish the ten (Tableau's).
COLORMAPS = {10: "tab10", 20: "tab20"}


def loss_curve(path: Path, history: list[dict[str, Any]], unit_of: Callable[[str], str]) -> Picture:
    """Saves the loss, its parts and an objective's other figures by epoch; `unit_of` gives a figure's unit."""
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
        axes.set(title=plain({"kl": "KL"}.get(part, part)), xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.grid(alpha=0.3)
        if i == 0 or unit_of(part) != unit_of(parts[0]):
            axes.set_ylabel(plain(unit_of(part)))
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
    """Saves a two-dimensional latent space: the places of test images, and the pictures decoded from its points.

    Args:
        path: of the PNG.
        means: the posterior's means of test images.
        labels: their classes, or None.
        decoded: pictures of a square grid over [−extent, extent]², row by row from the top left.
        extent: half the side of the square shown.
        class_names: the labels' names, by number; shown if there are at most 20.
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
            bar.set_ticklabels([plain(name) for number, name in enumerate(class_names) if number in present])
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
    """Saves the picture of a comparison of frameworks, without panels that have no data.

    Args:
        path: of the PNG.
        losses: test losses of the frameworks' independent runs by epoch, drawn as mean, standard deviation and runs.
        curves: the frameworks' losses by step, trained from the same weights with the same random numbers.
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
                label=plain(f"{name} ({counted(len(runs), 'run')})"),
            )
            axes.plot(epochs, runs.T, color=f"C{i}", alpha=0.35, linewidth=0.7)
            if len(runs) > 1:
                spread = runs.std(0, ddof=1)
                axes.fill_between(epochs, mean - spread, mean + spread, color=f"C{i}", alpha=0.15)
        axes.set(title="independent runs: test loss", xlabel="epoch", ylabel=plain(unit))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    if curves:
        axes = figure.add_subplot(1, sum(panels), next(places))
        for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
            axes.plot(np.arange(1, len(curve) + 1), curve, style, label=plain(name))
        axes.set(title="same weights and noise: training loss", xlabel="step", ylabel=plain(unit))
        axes.legend()
        axes.grid(alpha=0.3)
    if gaps:
        axes = figure.add_subplot(1, sum(panels), next(places))
        for name, gap in gaps.items():
            axes.semilogy(np.arange(1, len(gap) + 1), np.maximum(gap, np.finfo(float).eps / 4), label=plain(name))
        axes.set(title="relative gap of these losses", xlabel="step")
        axes.legend()
        axes.grid(alpha=0.3)
    return save_figure(path, figure)


def plain(label: str, most: int = LABEL) -> str:
    """Text on one line that matplotlib shows unchanged, not as mathematics or as a name that legends leave out."""
    text = cut(label, most).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save_figure(path: Path, figure: Any) -> Picture:
    """Saves a matplotlib figure; warns once, in one line, of all signs that its font lacks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved = save_picture(path, lambda file: figure.savefig(file, format="png", dpi=120))
    missing: dict[str, None] = {}
    for warning in caught:
        if glyph := GLYPH.match(str(warning.message)):
            missing[chr(int(glyph[1]))] = None
        else:
            warnings.warn(warning.message, warning.category, stacklevel=2)
    if missing:
        warnings.warn(f"{path}: boxes stand for signs that the font lacks: {listed(missing)}", stacklevel=2)
    return saved


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure outside pyplot's global state: it needs no display and leaves nothing open."""
    load()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def load() -> None:
    """Imports the modules that draw curves, which takes a second."""
    load_matplotlib()
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


def load_matplotlib() -> None:
    """Imports matplotlib without MPLBACKEND: a notebook passes its backend on to programs that do not have it."""
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
            matplotlib.rcParams["backend"] = backend  # for other drawings of this process
