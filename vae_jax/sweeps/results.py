"""A sweep's tables and pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.data import Dataset
from vae_jax.files.held import make_inside
from vae_jax.files.replace import write_text
from vae_jax.files.tables import csv_text, escaped
from vae_jax.objectives import FIGURES
from vae_jax.pictures.sweeps import sweep_curves, sweep_grid
from vae_jax.sweeps.plan import Sweep
from vae_jax.sweeps.ranking import Outcome, Ranking, ranking

MOST_CURVES = 100  # in a picture
OF_BOUNDS = ("kl", "negative_elbo")  # figures that exist with a likelihood only


def write_results(folder: Path, sweep: Sweep, outcomes: list[Outcome], data: Dataset) -> None:
    """Writes the tables and the pictures of a sweep that has ended."""
    settings = _by_setting(outcomes)
    ranks = {setting: ranking(sweep, group[0].member.config, data) for setting, group in settings.items()}
    rows = []
    for outcome in outcomes:
        last, rank = outcome.history[-1] if outcome.history else {}, ranks[tuple(outcome.member.setting.items())]
        rows.append(
            {
                **outcome.member.setting,
                "seed": outcome.member.config.seed,
                "epochs": len(outcome.history),
                **{
                    name: value
                    for name, value in last.items()
                    if name.split("_")[0] in ("train", "validation", "test") and name != "train_seconds"
                },
                **({"ranked_by": rank.of(last)} if last else {}),
                "unit": rank.unit,
                "measure": rank.measure,
                "diverged": outcome.failure,
                "folder": outcome.member.name,
            }
        )
    ends = ("unit", "measure", "diverged", "folder")
    columns = list({name: None for row in rows for name in row if name not in ends})
    write_text(folder / "members.csv", csv_text([*columns, *ends], rows))

    table = summarize(settings, ranks)
    write_text(folder / "table.csv", csv_text(list(table[0]), table))
    write_text(folder / "table.md", markdown(sweep, table, list(ranks.values()), own_figures(settings)))
    make_inside(folder / "figures")
    kinds: dict[Ranking, dict[Any, list[Outcome]]] = {}
    for setting, group in settings.items():
        kinds.setdefault(ranks[setting], {})[setting] = group
    for number, (rank, settings_of_rank) in enumerate(kinds.items(), 1):  # figures that do not compare share no axis
        _draw(folder / "figures", sweep, rank, settings_of_rank, f"_{number}" if len(kinds) > 1 else "")


def _draw(folder: Path, sweep: Sweep, rank: Ranking, settings: dict[Any, list[Outcome]], suffix: str) -> None:
    """Draws the pictures of the settings of one ranking."""
    shown = {rank.name: rank.of}
    for part, title in (("reconstruction", "reconstruction"), ("kl", "KL")) if rank.generative else ():
        shown[f"{rank.split} {title}"] = rank._replace(parts=(part,)).of
    curves, cells, standing_of = {}, {}, {}
    for setting, group in settings.items():
        finished = [outcome for outcome in group if not outcome.failure]
        name = ", ".join(f"{option.rpartition('.')[2]} {value}" for option, value in setting) or "all seeds"
        if len(finished) < len(group):
            name += f" ({len(group) - len(finished)} of {len(group)} diverged)"
        curves[name] = {
            title: np.array([[of(epoch) for epoch in outcome.history] for outcome in finished])
            for title, of in shown.items()
        }
        cells[setting] = {title: [of(outcome.history[-1]) for outcome in finished] for title, of in shown.items()}
        standing_of[name] = float(np.mean(cells[setting][rank.name])) if finished else math.inf  # as in the table
    titles = [rank.kind] if suffix else []
    if len(curves) > MOST_CURVES:
        best = sorted(curves, key=standing_of.__getitem__)[:MOST_CURVES]
        titles.append(f"the {MOST_CURVES} settings with the lowest {rank.name}, of {len(curves):,}")
        curves = {name: curves[name] for name in best}
    sweep_curves(folder / f"curves{suffix}.png", curves, rank.unit, "; ".join(titles))
    if sweep.settings:
        values = {
            option: [value for value in values if any((option, value) in setting for setting in cells)]
            for option, values in sweep.settings.items()
        }
        sweep_grid(folder / f"grid{suffix}.png", values, cells, rank.unit, titles[0] if suffix else "")


def _by_setting(outcomes: list[Outcome]) -> dict[tuple[tuple[str, str], ...], list[Outcome]]:
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(outcome.member.setting.items()), []).append(outcome)
    return groups


def summarize(settings: dict[Any, list[Outcome]], ranks: dict[Any, Ranking]) -> list[dict[str, Any]]:
    """A row for each setting: mean and standard deviation over the seeds that have not diverged."""
    rows, own_names = [], own_figures(settings)
    for setting, group in settings.items():
        rank = ranks[setting]
        last = [outcome.history[-1] for outcome in group if not outcome.failure]
        row: dict[str, Any] = {**dict(setting), "seeds": len(group), "diverged": len(group) - len(last)}
        values = {part: [epoch.get(f"{rank.split}_{part}", math.nan) for epoch in last] for part in FIGURES}
        values["negative_elbo"] = [a + b for a, b in zip(values["reconstruction"], values["kl"], strict=True)]
        for part in own_names:
            values[part] = [epoch[f"{rank.split}_{part}"] for epoch in last if f"{rank.split}_{part}" in epoch]
        for part, numbers in values.items():
            if part in OF_BOUNDS and not rank.generative:  # there is none
                numbers = []
            row[f"{rank.split}_{part}"] = float(np.mean(numbers)) if numbers else math.nan
            row[f"{rank.split}_{part}_std"] = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else math.nan
        row["ranked_by"] = float(np.mean([rank.of(epoch) for epoch in last])) if last else math.nan
        rows.append(row | {"unit": rank.unit, "measure": rank.measure})
    return rows


def own_figures(settings: dict[Any, list[Outcome]]) -> list[str]:
    """The names of the objectives' figures beside FIGURES, sorted."""
    last = [outcome.history[-1] for group in settings.values() for outcome in group if outcome.history]
    names = {name.removeprefix("test_") for epoch in last for name in epoch if name.startswith("test_")}
    return sorted(names.difference(FIGURES))


def markdown(sweep: Sweep, table: list[dict[str, Any]], ranks: list[Ranking], own_names: list[str]) -> str:
    """The table in Markdown; `own_names` are further figures. The best of settings with the same ranking is bold."""
    split, several = ranks[0].split, len(set(ranks)) > 1
    titles = {"loss": "loss", "reconstruction": "reconstruction", "kl": "KL", "negative_elbo": "−ELBO"}
    if not any(rank.generative for rank in ranks):
        titles = {part: title for part, title in titles.items() if part not in OF_BOUNDS}
    titles |= {name: name for name in own_names}
    best = []
    for kind in set(ranks):
        rivals = [row for row, rank in zip(table, ranks, strict=True) if rank == kind]
        finite = [row for row in rivals if math.isfinite(row["ranked_by"])]
        if len(rivals) > 1 and finite:
            best.append(min(finite, key=lambda row: row["ranked_by"]))
    columns = [*sweep.settings, "seeds", *(f"{split} {title}" for title in titles.values())]
    columns += ["unit", "diverged"] if several else ["diverged"]
    words = {*sweep.settings, "unit"}
    lines = [
        f"| {' | '.join(map(escaped, columns))} |",
        "|" + "".join("---|" if name in words else "---:|" for name in columns),
    ]
    for row, rank in zip(table, ranks, strict=True):
        cells = [escaped(str(row[option])) for option in sweep.settings] + [str(row["seeds"])]
        for part in titles:
            mean, spread = row[f"{split}_{part}"], row[f"{split}_{part}_std"]
            cells.append(
                "–" if math.isnan(mean) else f"{mean:.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")
            )
        cells += [escaped(rank.kind)] * several + [str(row["diverged"] or "–")]
        bold = any(row is best_row for best_row in best)
        lines.append("| " + " | ".join(f"**{cell}**" if bold else cell for cell in cells) + " |")
    if several:
        kinds = [escaped(kind) for kind in sorted({rank.kind for rank in ranks})]
        lines += ["", f"Figures of {' and of '.join(kinds)} do not compare."]
    else:
        lines += ["", f"Figures are {escaped(ranks[0].kind)}."]
    return "\n".join(lines) + "\n"
