"""What a logger is given and what it gives."""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from vae_jax.errors import UserError
from vae_jax.files.held import check_held, check_no_link, make_inside


class LoggedRun(NamedTuple):
    """A run as a logger is given it, before the first step of a training.

    Attributes:
        folder: where the logger may write, RUN/logs, absolute; it exists.
        name: of the run's folder.
        id: the same whenever the run goes on, unlike that of any other run: letters, digits, "-" and "_".
        config: the options' values by their dotted names, as JSON has them.
        unit_of: a figure's name, as "test_loss" -> its unit in words; empty if it has none.
        epochs: that are trained already. Of later ones that the log may hold, of a run that was cut back to its last
            checkpoint, nothing counts: they are trained again.
        report: says a line to the user.
        group: the name of the sweep that the run is a member of; empty for other runs.
        shared: where a logger may write that has one place for all runs of a process: SWEEP/logs of a sweep, which may
            not exist yet; for other runs `folder`.
    """

    folder: Path
    name: str
    id: str
    config: Mapping[str, Any]
    unit_of: Callable[[str], str]
    epochs: int
    report: Callable[[str], None]
    group: str
    shared: Path


class Logger(NamedTuple):
    """A log that is open. Its functions may raise anything: none of them is called again then.

    Attributes:
        epoch: (figures) is given an epoch's figures, with its number as "epoch", see `vae_jax.fit`.
        picture: (name, path, epoch) is given a PNG file; an epoch's pictures come before its figures, those of a run's
            end before `end`.
        end: (summary) closes the log; None if the run has not ended but stopped.
        held: the epochs that the log holds already; all others are given to `epoch`, those trained earlier at once.
        ended: the epoch whose end, with its pictures and summary, the log holds already; 0 for none.
        place: where the log is, as the user may want to know it.
    """

    epoch: Callable[[dict[str, Any]], None]
    picture: Callable[[str, Path, int], None]
    end: Callable[[dict[str, Any] | None], None]
    held: Set[int] = frozenset()
    ended: int = 0
    place: str = ""


Start = Callable[[LoggedRun], Logger]
Pictures = Sequence[tuple[str, Path]]


def make_own_folder(place: Path, name: str) -> Path:
    """Makes a logger's folder in RUN/logs or SWEEP/logs, where a package writes, which follows links.

    Raises:
        UserError: if it is a link.
        OSError: if it cannot be made.
    """
    folder = make_inside(place) / name
    check_held(folder)
    check_no_link(place.parent, folder)
    folder.mkdir(exist_ok=True)
    return folder


def check_no_links(folder: Path) -> None:
    """Refuses a folder with a link in it, through which a package would write elsewhere.

    Raises:
        UserError: naming the link.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise UserError(f"{path}: expected a file or a folder of the log's own, found a link")


def table(values: Mapping[str, Any]) -> str:
    """Values by name as a Markdown table; texts are text in it."""
    cells = [(name, str(value).replace("|", "\\|").replace("\n", " ")) for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])
