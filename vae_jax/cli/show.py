"""`vae-jax show`: shows runs side by side, as a table."""

import json
import shutil
from typing import Any

from vae_jax.cli.common import Verb, answer, runs_argument
from vae_jax.config import expand
from vae_jax.errors import printable
from vae_jax.files.folders import shown_as

FIGURES = ("test_loss", "test_reconstruction", "test_kl")


def _options(parser: Any) -> None:
    runs_argument(parser)
    parser.add_argument("--sort", action="store_true", help="the lowest test loss first")
    parser.add_argument("--json", action="store_true", help="print one JSON object per run, a line each")
    parser.add_argument("--all", action="store_true", help="show all options, not only those in which runs differ")


def _run(options: Any) -> None:
    from vae_jax.runs.overview import differing, option_values, overview, runs_in

    runs = [overview(folder) for folder in runs_in(map(expand, options.runs))]
    if options.sort:  # runs without a finite loss come last
        runs.sort(key=lambda run: (not (run.last("test_loss") or 0) < float("inf"), run.last("test_loss") or 0))
    changed = (option_values if options.all else differing)(runs)
    rows = []
    for place, run in enumerate(runs):
        best = run.best()
        rows.append(
            {
                "run": shown_as(run.folder),
                "state": run.state,
                "data": run.data,
                "epochs": len(run.history),
                **{figure: run.last(figure) for figure in FIGURES if run.last(figure) is not None},
                **({"best_loss": best[0], "best_epoch": best[1]} if best else {}),
                "unit": run.unit,
                "parameters": run.summary.get("parameters"),
                "images_per_second": run.summary.get("images_per_second"),
                **{name: values[place] for name, values in changed.items()},
            }
        )
    if options.json:
        for row in rows:
            answer(json.dumps(row, ensure_ascii=False))
        return
    for line in table(rows, shutil.get_terminal_size((120, 24)).columns):
        answer(line)
    for run in runs:
        if run.reason:
            answer(f"{shown_as(run.folder)}: {run.reason}")


def table(rows: list[dict[str, Any]], width: int = 120) -> list[str]:
    """The lines of a table, a run a line; if it is wider than this, a run a column; of a single run a value a line."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if any(_text(row, name) for row in rows)]
    if len(rows) == 1:
        widest = max(map(len, columns))
        return [f"{name:<{widest}}  {_text(rows[0], name)}" for name in columns]
    cells = [columns, *([_text(row, name) or "–" for name in columns] for row in rows)]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns]
    if sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True)) > width:
        cells, numeric = list(map(list, zip(*cells, strict=True))), [False] * len(cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    ]


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, float):
        return f"{value:,.0f}" if name == "images_per_second" else f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if name == "parameters" else str(value)
    return "" if value is None else printable(str(value))


VERBS = {
    "show": Verb(
        "show runs side by side: what they are, their figures, and the options in which they differ",
        _options,
        _run,
        "examples:\n"
        "  vae-jax show runs/digits\n"
        "  vae-jax show runs/* --sort\n"
        "  vae-jax show sweeps/beta --json                  for another program",
        usage="RUN…",
    ),
}
