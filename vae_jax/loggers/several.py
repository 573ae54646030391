"""The loggers of a run: chosen by their names, begun together, and left out where they fail."""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vae_jax.errors import UserError, argument, brief, listed, message_of
from vae_jax.files.checked import read_json
from vae_jax.files.replace import write_text
from vae_jax.loggers import LOGGERS
from vae_jax.loggers.base import LoggedRun, Logger, Pictures, Start
from vae_jax.registry import check_functions, lookup, users_line

NOTE = "run.json"  # in RUN/logs: the run's name for logs, and which have begun
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Note(NamedTuple):
    """A run's note of its logs.

    Attributes:
        id: see `LoggedRun.id`.
        loggers: the names of all that have begun.
    """

    id: str
    loggers: list[str]


def chosen(names: str | Sequence[str]) -> dict[str, Start]:
    """The loggers of these names, or of those with commas between them; imports no package of theirs.

    Raises:
        UserError: if there is none of a name, its package is not installed, or a name comes twice.
    """
    option, starts = argument("log"), {}
    for name in [name.strip() for name in names.split(",")] if isinstance(names, str) else names:
        if name in starts:
            raise UserError(f"{option}: expected every logger once; found {name} twice")
        starts[name] = lookup(LOGGERS, name, option, ("run",))
        if name in LOGGERS and not _is_installed(name):
            raise UserError(
                f"{option}: expected {name} to be installed; found no such package; pip install 'vae_jax[{name}]'"
            )
    return starts


def _is_installed(package: str) -> bool:
    """Whether a package is installed; a folder of its name, as wandb leaves one in the working folder, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def read_note(folder: Path) -> Note | None:
    """The note in RUN/logs; None if nothing was logged yet.

    Raises:
        UserError: if it is damaged.
    """
    try:
        note = read_json(folder / NOTE, Note)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not ID.fullmatch(note.id):
        raise UserError(f"{folder / NOTE}: expected an id of letters, digits, - and _; found {note.id!r:.80}")
    return note


def left_out(folder: Path, names: Sequence[str]) -> str:
    """A line about logs of earlier trainings that a run does not go on with; empty if there are none."""
    try:
        note = read_note(folder)
    except UserError as error:
        return f"warning: {error}"
    earlier = [name for name in note.loggers if name not in names] if note else []
    return f"{folder}: not continued, since {argument('log')} does not name {listed(earlier)}" if earlier else ""


class Loggers:
    """The open logs of a run."""

    def __init__(
        self,
        starts: Mapping[str, Start],
        run: LoggedRun,
        history: Sequence[dict[str, Any]],
        pictures_of: Callable[[int], Pictures],
    ):
        """Begins them, or goes on with them, and gives them the epochs that they lack.

        Args:
            starts: by name.
            run: of which the `id` is filled in here.
            history: the figures of the epochs that are trained already.
            pictures_of: an epoch's number -> its pictures.
        """
        self._report, self._pictures_of, self._logs = run.report, pictures_of, {}
        try:
            note = read_note(run.folder)
        except UserError as error:
            note = None
            run.report(f"warning: {error}; the logs begin again as another run")
        note = note or Note(f"{re.sub('[^A-Za-z0-9_-]+', '-', run.name)[:40]}-{secrets.token_hex(4)}", [])
        note = Note(note.id, list(dict.fromkeys([*note.loggers, *starts])))
        write_text(run.folder / NOTE, json.dumps(note._asdict()) + "\n")
        for name, start in starts.items():
            self._do(name, lambda name=name, start=start: self._start(name, start, run._replace(id=note.id), history))

    def _start(self, name: str, start: Start, run: LoggedRun, history: Sequence[dict[str, Any]]) -> None:
        log = start(run)
        if not isinstance(log, Logger):
            raise UserError(f"expected a vae_jax.loggers.Logger from it; found {type(log).__name__}")
        check_functions(log, name)
        self._logs[name] = log
        if log.place:
            self._report(f"log: {name} in {log.place}")
        for figures in history:
            self._epoch(log, figures)

    def _epoch(self, log: Logger, figures: dict[str, Any]) -> None:
        number = figures["epoch"]
        if number not in log.held:
            for title, path in self._pictures_of(number):
                log.picture(title, path, number)
            log.epoch(dict(figures))

    def epoch(self, figures: dict[str, Any]) -> None:
        """Logs an epoch."""
        for name, log in list(self._logs.items()):
            self._do(name, lambda log=log: self._epoch(log, figures))

    def end(self, summary: dict[str, Any] | None = None, pictures: Pictures = ()) -> None:
        """Closes the logs: of a run that has ended, with its summary and pictures, or of one that has stopped."""
        for name, log in list(self._logs.items()):
            self._do(name, lambda log=log: self._end(log, summary, pictures))
        self._logs.clear()

    def _end(self, log: Logger, summary: dict[str, Any] | None, pictures: Pictures) -> None:
        if summary is None or log.ended == summary["epochs"]:
            log.end(None)
            return
        for title, path in pictures:
            log.picture(title, path, summary["epochs"])
        log.end(dict(summary))

    def _do(self, name: str, act: Callable[[], None]) -> None:
        """Does something with a log, which is left out from then on if that fails."""
        try:
            act()
        except (Exception, SystemExit) as error:
            self._logs.pop(name, None)
            why = users_line(error) or f"{type(error).__name__}: {brief(message_of(error))}"
            why = brief(message_of(error)) if isinstance(error, UserError) else why
            self._report(f"warning: {argument('log', name)}: {why}; the run goes on without it")
