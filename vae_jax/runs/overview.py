"""Runs at a glance: what their folders say of them, side by side, with the options in which they differ."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vae_jax.config import Config
from vae_jax.config.change import options_of
from vae_jax.errors import UserError
from vae_jax.files import checked
from vae_jax.runs import own_parts
from vae_jax.runs.folder import DIVERGED, read_config, read_data, read_reason
from vae_jax.runs.hub import is_address

# In which runs may differ though they are the same models: where files lie and what is kept of them.
PLACES = ("data.manual_dir", "data.cache_dir", "data.path", "train.start")  # options that are paths
OF_PLACES = ("output.", "data.cache_dir", "data.manual_dir", "train.chunk_steps")


class Overview(NamedTuple):
    """What a run's folder says of it.

    Attributes:
        folder: of the run.
        config: the run's.
        data: the data set's name; empty before the first epoch.
        history: the figures of its epochs, see `vae_jax.fit`.
        summary: what summary.json holds; empty unless the run is finished.
        state: finished, diverged, unfinished, or not begun.
        reason: why it diverged; empty if it has not.
    """

    folder: Path
    config: Config
    data: str
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    state: str
    reason: str

    @property
    def unit(self) -> str:
        """The unit of the losses; empty if no file of the run says it."""
        return str(self.summary.get("unit", ""))

    def last(self, figure: str) -> float | None:
        """A figure of the last epoch; None if there is none."""
        value = self.history[-1].get(figure) if self.history else None
        return float(value) if isinstance(value, int | float) else None

    def best(self) -> tuple[float, int] | None:
        """The lowest test loss, or validation loss if images are held out, and the epoch that has it."""
        of = "validation_loss" if any("validation_loss" in epoch for epoch in self.history) else "test_loss"
        losses = [
            (epoch[of], epoch["epoch"])
            for epoch in self.history
            if isinstance(epoch.get(of), int | float) and math.isfinite(epoch[of])
        ]
        return min(losses, default=None)


def overview(folder: Path) -> Overview:
    """What a run's folder says of it; nothing of users' code is loaded.

    Raises:
        UserError: if the folder is not one of a run, or a file in it is damaged.
    """
    config, noted = read_config(folder), read_data(folder)
    history = list(_lines(folder / "metrics.jsonl"))
    summary: dict[str, Any] = {}
    if (folder / "summary.json").exists():
        with checked.named(folder / "summary.json"):
            summary = checked.load(checked.read_bytes(folder / "summary.json"))
            if not isinstance(summary, dict):
                raise checked.UnfitError("expected an object; found something else")
    reason = read_reason(folder) if (folder / DIVERGED).exists() else ""
    state = "diverged" if reason else "finished" if summary else "unfinished" if history else "not begun"
    return Overview(folder, config, noted.name if noted else "", history, summary, state, reason)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        with checked.named(path):
            for number, line in enumerate(checked.read_text(path, checked.HISTORY_LIMIT).splitlines(), 1):
                epoch = checked.load(line.encode())
                if not isinstance(epoch, dict) or not isinstance(epoch.get("epoch"), int):
                    raise checked.UnfitError(f"line {number}: expected an object with epoch, a whole number")
                yield epoch
    except FileNotFoundError:
        return


def runs_in(folders: Iterable[Path]) -> list[Path]:
    """The run folders among these, and those of the sweeps among them.

    Raises:
        UserError: if a folder is neither a run's nor a sweep's.
    """
    runs: list[Path] = []
    for folder in folders:
        if (folder / "sweep.json").is_file() and not (folder / "config.yaml").exists():
            members = sorted(path.parent for path in folder.glob("*/config.yaml"))
            if not members:
                raise UserError(f"{folder}: expected a sweep with runs in it; found none that has begun")
            runs += members
        else:
            read_config(folder)
            runs.append(folder)
    return runs


def option_values(runs: Sequence[Overview]) -> dict[str, list[Any]]:
    """All options of runs, with their values run by run; None if a run has no such option."""
    options = [options_of(run.config) for run in runs]
    return {name: [own.get(name) for own in options] for name in dict.fromkeys(name for own in options for name in own)}


def public_options(config: Config) -> dict[str, Any]:
    """All options for other people's eyes: files of code without their folders, and PATH for places on this machine."""
    names = set(own_parts.names_in(config))
    options = options_of(config)
    for name, value in options.items():
        if isinstance(value, str) and value in names:
            file, _, entry = value.rpartition(":")
            options[name] = f"{Path(file).name}:{entry}"
        elif name in PLACES and value is not None and not is_address(value):
            options[name] = "PATH"
    return options


def differing(runs: Sequence[Overview]) -> dict[str, list[Any]]:
    """The options in which runs differ, but for places of files; see `option_values`."""
    return {
        name: values
        for name, values in option_values(runs).items()
        if not name.startswith(OF_PLACES) and any(value != values[0] for value in values)
    }
