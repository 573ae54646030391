"""trackio, whose database is in RUN/logs/trackio, or in SWEEP/logs/trackio.

TRACKIO_DIR names another folder, TRACKIO_SPACE_ID a space and TRACKIO_SERVER_URL a server in its place.
A process has one folder for all that trackio writes. trackio raises next to nothing: what it warns of counts as a
failure here, and at the end its database is looked at.
"""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import copy_context
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from vae_jax.errors import UserError
from vae_jax.loggers.base import LoggedRun, Logger, check_no_links, make_own_folder, table

PROJECT = "vae_jax"
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # where these name a place, it is not a folder


def start(run: LoggedRun) -> Logger:
    """Begins a run of trackio's, or goes on with it.

    Raises:
        UserError: if there is a link in its folder in the run, or trackio warns of something.
        Exception: of trackio's.
    """
    trackio = _imported(run)
    storage, where = import_module("trackio.sqlite_storage").SQLiteStorage, import_module("trackio.utils").TRACKIO_DIR
    elsewhere = next((place for name in ELSEWHERE if (place := os.environ.get(name))), "")

    def rows() -> list[dict[str, Any]]:
        return [] if elsewhere else storage.get_logs(PROJECT, run=run.id)

    def units(names: Iterable[str]) -> dict[str, str]:
        return {f"unit of {name}": unit for name in names if (unit := run.unit_of(name))}

    earlier = rows()
    epochs = [row for row in earlier if "epoch" in row]
    config = {**run.config, **units(epochs[0] if epochs else ())}
    with _as_error():
        # In a context of its own, in which no other run is ended, and which this process does not look at when it ends.
        begin = partial(trackio.init, PROJECT, name=run.id, config=config, resume="allow", embed=False)
        tracked = copy_context().run(begin)
    held = {row["step"] for row in epochs}
    if elsewhere:  # where all is up to the step that it goes on with
        held = set(range(1, getattr(tracked, "_next_step", 1)))
    ended = max((row["step"] for row in earlier if "summary" in row), default=0)
    logged: set[int] = set()
    pictures: dict[str, Any] = {}

    def log(step: int, row: dict[str, Any]) -> None:
        with _as_error():
            tracked.log({**row, **pictures}, step=step)
        pictures.clear()

    def epoch(figures: dict[str, Any]) -> None:
        if not logged and isinstance(tracked.config, dict):  # it is written with the first row
            tracked.config |= units(figures)
        log(figures["epoch"], figures)
        logged.add(figures["epoch"])

    def picture(name: str, path: Path, epoch: int) -> None:
        pictures[name] = trackio.Image(str(path))

    def end(summary: dict[str, Any] | None) -> None:
        if summary is not None:
            log(summary["epochs"], {"summary": trackio.Markdown(table(summary))})
        with _as_error():
            tracked.finish()
        if not elsewhere and (missing := logged.difference(row["step"] for row in rows() if "epoch" in row)):
            raise UserError(f"{where}: expected epoch {min(missing)} in trackio's database, found none")

    return Logger(epoch, picture, end, frozenset(held), ended, elsewhere or str(where))


def _imported(run: LoggedRun) -> Any:
    """trackio, which takes its folder from the environment when it is imported.

    Raises:
        UserError: if there is a link in its folder in the run.
    """
    own = None if os.environ.get("TRACKIO_DIR") else make_own_folder(run.shared, "trackio")
    if own:
        check_no_links(own)
    began = "trackio" in sys.modules
    try:
        if own and not began:
            os.environ["TRACKIO_DIR"] = str(own)
        trackio = import_module("trackio")
        import_module("matplotlib.figure")  # trackio looks into it, which fails while another thread imports it
    finally:
        if own:
            os.environ.pop("TRACKIO_DIR", None)
    where = import_module("trackio.utils").TRACKIO_DIR
    if own and began and own != Path(where):
        with suppress(OSError):  # an earlier log is in it
            own.rmdir()
        run.report(f"trackio: {run.name} is logged into {where}, since this process has begun to log there")
    return trackio


@contextmanager
def _as_error() -> Iterator[None]:
    """A context without trackio's prints, which raises what it warns of.

    Raises:
        UserError: with its first warning.
    """
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(StringIO()):
        warnings.simplefilter("always")
        yield
    if caught:
        raise UserError(str(caught[0].message))
