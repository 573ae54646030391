"""A report: one page on a run, or on several side by side, from what their folders hold."""

import base64
import math
import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.config import Config, options_of
from vae_jax.errors import counted
from vae_jax.files.folders import is_copy, name_of, shown_as
from vae_jax.options import as_text
from vae_jax.pages.page import escaped, page
from vae_jax.runs.folder import pictures
from vae_jax.runs.overview import Overview, differing, public_options

MOST_PICTURES = 24 << 20  # bytes of pictures in a page
SPLITS = ("train", "validation", "test")
CURVES = 12  # runs whose curves are drawn together
EPOCH = "reconstructions_epoch_"
CAPTIONS = {
    "loss": "the loss and its parts by epoch",
    "samples": "samples from the prior",
    "latent_plane": "the latent plane: test images by their z, and pictures decoded from a grid of it",
}


def report(runs: Sequence[Overview]) -> str:
    """The page, as HTML: configuration in words, figures with units, curves, pictures, versions, and how to repeat it.

    Args:
        runs: at least one; of several the differences of configuration are marked.
    """
    body, left = [], MOST_PICTURES
    if len(runs) > 1:
        title = f"{counted(len(runs), 'run')} side by side"
        body += [f"<h1>{title}</h1>", _comparison(runs), _curves(runs)]
    else:
        title = name_of(runs[0].folder)
    changed = differing(runs)
    for name, run in zip(names_of(runs), runs, strict=True):
        section, left = _section(run, name, "h2" if len(runs) > 1 else "h1", changed, left)
        body.append(section)
    return page(title, "\n".join(body))


def names_of(runs: Sequence[Overview]) -> list[str]:
    """The runs' folders without the path that all share."""
    folders = [Path(shown_as(run.folder)).absolute() for run in runs]
    shared = os.path.commonpath([folder.parent for folder in folders])
    return [os.path.relpath(folder, shared) for folder in folders]


def data_of(run: Overview) -> str:
    """The data's name, of a folder or a file without the path."""
    name = run.data or run.config.data.name or run.config.data.source
    return Path(name).name if run.config.data.path else name


def in_words(run: Overview) -> str:
    """What a run is and where it ended, in a few sentences."""
    config, summary, options = run.config, run.summary, public_options(run.config)
    size = f" with {summary['parameters']:,} parameters" if "parameters" in summary else ""
    parts = [f"The network {options['model.network']}{size} and {counted(config.model.latent, 'latent dimension')}"]
    parts.append(f"objective {options['objective.name']}")
    if run.last("test_kl"):
        parts += [f"{part} {options[f'{part}.name']}" for part in ("posterior", "prior", "likelihood")]
    if config.model.classes:
        parts.append(f"{config.model.classes} labels")
    data = data_of(run)
    if "train_images" in summary:
        data += f" ({summary['train_images']:,} training and {summary['test_images']:,} test examples)"
    trained = (
        f"Trained on {data} for {_epochs(run)}, in batches of "
        f"{config.train.batch_size}, with {options['optimizer.name']}, learning rate {config.train.learning_rate:g}"
    )
    sentences = [f"{'; '.join(parts)}.", f"{trained}."]
    if (loss := run.last("test_loss")) is not None:
        sentences.append(f"The last test loss is {loss:,.2f} {run.unit}{_split_of_loss(run)}.")
    return " ".join(sentences)


def _epochs(run: Overview) -> str:
    done, planned = len(run.history), run.config.train.epochs
    return counted(done, "epoch") if done == planned else f"{counted(done, 'epoch')} of {planned}"


def _split_of_loss(run: Overview) -> str:
    parts = run.last("test_reconstruction"), run.last("test_kl")
    return "" if None in parts or not parts[1] else f": reconstruction {parts[0]:,.2f}, KL {parts[1]:,.2f}"


def events(run: Overview) -> list[str]:
    """What did not go as planned: how a run ended early, what was skipped."""
    lines = []
    if run.state == "diverged":
        lines.append(run.reason.strip())
    elif run.state != "finished":
        lines.append(f"The run is {run.state}: {counted(len(run.history), 'epoch')} of {run.config.train.epochs}.")
    elif len(run.history) < run.config.train.epochs:
        lines.append(f"It stopped early, after {counted(len(run.history), 'epoch')} of {run.config.train.epochs}.")
    skipped = sum(int(epoch.get("skipped_steps") or 0) for epoch in run.history)
    if skipped:
        lines.append(f"{counted(skipped, 'update')} skipped, since the loss or its gradient was not finite.")
    return lines


def repeat(config: Config) -> str:
    """The command that trains such a run, with every option that is not the default."""
    usual = options_of(Config())
    options = {
        name: value
        for name, value in public_options(config).items()
        if usual.get(name, ...) != value and not name.startswith(("output.", "data.cache_dir"))
    }
    flags = [f"--{name} {shlex.quote(as_text(value))}" for name, value in options.items()]
    return " \\\n  ".join(["vae-jax train --out runs/again", *flags])


def _section(run: Overview, name: str, heading: str, changed: dict[str, Any], left: int) -> tuple[str, int]:
    """A run's part of the page, and how many bytes of pictures are left for the others."""
    said = events(run)
    lines = [
        "<section>",
        f"<{heading}>{escaped(name)}</{heading}>",
        f"<p>{escaped(in_words(run))}</p>",
        *(f'<p class="warning">{escaped(line)}</p>' for line in said),
        *([] if said else ['<p class="quiet">Nothing was skipped, and the run is finished.</p>']),
        _figures(run),
    ]
    shown, left_out = [], []
    for path in _pictures(run.folder):
        if (size := path.stat().st_size) > left:
            left_out.append(path.name)
            continue
        left -= size
        shown.append(_picture(path))
    lines += shown
    if left_out:
        most = MOST_PICTURES >> 20
        text = f"Left out, since a page has at most {most} MB of pictures: {', '.join(left_out)}."
        lines.append(f'<p class="warning">{escaped(text)}</p>')
    lines += [
        "<details><summary>How to repeat it</summary>",
        f"<pre>{escaped(repeat(run.config))}</pre>",
        *([] if is_copy(run.folder) else [_beside(run.folder)]),
        "</details>",
        _environment(run),
        _options(run, changed),
        "</section>",
    ]
    return "\n".join(lines), left


def _beside(folder: Path) -> str:
    """How a run is repeated where its folder is at hand."""
    config = escaped(shlex.quote(f"{name_of(folder)}/config.yaml"))
    return f"<p>or, beside its folder: <code>vae-jax train --config {config} --out runs/again</code></p>"


def _figures(run: Overview) -> str:
    """The figures of the last epoch and of the best one, by split, with their units."""
    if not run.history:
        return '<p class="quiet">It has no figures yet.</p>'
    last, units = run.history[-1], run.summary.get("units") or {}
    names = dict.fromkeys(
        what
        for name, value in last.items()
        for split, _, what in [name.partition("_")]
        if split in SPLITS and what != "seconds" and isinstance(value, int | float)
    )
    splits = [split for split in SPLITS if any(f"{split}_{name}" in last for name in names)]
    rows = [
        [name.replace("_", " "), *(_number(last.get(f"{split}_{name}")) for split in splits), units.get(name, run.unit)]
        for name in names
    ]
    table = _table([f"epoch {last['epoch']}", *splits, "unit"], rows)
    if best := run.best():
        by = "validation" if any("validation_loss" in epoch for epoch in run.history) else "test"
        table += f"<p>The lowest {by} loss is {_number(best[0])} {escaped(run.unit)}, after epoch {best[1]}.</p>"
    return table


def _environment(run: Overview) -> str:
    summary = run.summary
    rows = [
        *([["device", str(summary["device"])]] if "device" in summary else []),
        *([["cores", str(summary["cores"])]] if "cores" in summary else []),
        *([["duration", f"{summary['seconds']:,.0f} s in all"]] if "seconds" in summary else []),
        *([["speed", f"{summary['images_per_second']:,.0f} examples/s"]] if "images_per_second" in summary else []),
        *([name, str(version)] for name, version in (summary.get("versions") or {}).items()),
    ]
    if not rows:
        return ""
    return f"<details><summary>Versions and device</summary>{_table(['', ''], rows)}</details>"


def _options(run: Overview, changed: dict[str, Any]) -> str:
    rows = [
        [f"<mark>{escaped(name)}</mark>" if name in changed else escaped(name), escaped(as_text(value))]
        for name, value in public_options(run.config).items()
    ]
    marked = " (marked where the runs differ)" if changed else ""
    return f"<details><summary>All options{marked}</summary>{_table(['option', 'value'], rows, raw=True)}</details>"


def are_comparable(runs: Sequence[Overview]) -> bool:
    """Whether the runs' losses have the same unit and are of the same data, as far as their folders say it."""
    return len({run.unit for run in runs if run.unit}) < 2 and len({run.data for run in runs if run.data}) < 2


def _comparison(runs: Sequence[Overview]) -> str:
    """A table of the runs, with the options in which they differ and the lowest loss marked."""
    changed, names = differing(runs), names_of(runs)
    losses = [loss for run in runs if (loss := run.last("test_loss")) is not None and math.isfinite(loss)]
    comparable = are_comparable(runs)
    rows = []
    for place, run in enumerate(runs):
        loss = run.last("test_loss")
        text = _number(loss)
        if comparable and len(losses) > 1 and loss == min(losses):
            text = f"<strong>{text}</strong>"
        rows.append(
            [
                escaped(names[place]),
                escaped(run.state),
                escaped(data_of(run)),
                f"{len(run.history)}",
                text,
                escaped(run.unit),
                *(f"<mark>{escaped(as_text(public_options(run.config).get(name)))}</mark>" for name in changed),
            ]
        )
    head = ["run", "state", "data", "epochs", "test loss", "unit", *changed]
    note = "" if comparable else '<p class="warning">The losses have other units or data, and are not comparable.</p>'
    same = '<p class="quiet">The runs have the same options.</p>' if not changed else ""
    return _table(head, rows, raw=True) + note + same


def _curves(runs: Sequence[Overview]) -> str:
    """The runs' test losses by epoch, in one picture."""
    from vae_jax.pictures.sweeps import sweep_curves

    names = names_of(runs)
    histories = {
        name: np.array([[epoch.get("test_loss", math.nan) for epoch in run.history]], float)
        for name, run in zip(names, runs, strict=True)
        if run.history
    }
    some = dict(list(histories.items())[:CURVES])
    if not some or not are_comparable(runs):
        return ""
    more = f'<p class="quiet">The curves are of the first {CURVES} runs.</p>' if len(histories) > CURVES else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.png"
        unit = next((run.unit for run in runs if run.unit), "")
        sweep_curves(path, {name: {"test loss": history} for name, history in some.items()}, unit)
        return _picture(path, "the test loss by epoch") + more


def _pictures(folder: Path) -> list[Path]:
    """A run's pictures, see `vae_jax.runs.folder.pictures`; the curves come first."""
    return sorted(pictures(folder), key=lambda path: (path.stem != "loss", path.name))


def _picture(path: Path, caption: str = "") -> str:
    if not caption and (epoch := re.fullmatch(EPOCH + r"(\d+)", path.stem)):
        caption = f"test images above their reconstructions, after epoch {int(epoch[1])}"
    caption = caption or CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img class="shown" alt="{escaped(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if math.isfinite(value) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    """An HTML table; `raw` cells are HTML already."""
    top = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head) if any(head) else ""
    lines = []
    for first, *others in rows:
        cells = [cell if raw else escaped(cell) for cell in (first, *others)]
        lines.append(f'<tr><th scope="row">{cells[0]}</th>{"".join(f"<td>{cell}</td>" for cell in cells[1:])}</tr>')
    return f'<div class="wide"><table>{f"<thead><tr>{top}</tr></thead>" if top else ""}{"".join(lines)}</table></div>'
