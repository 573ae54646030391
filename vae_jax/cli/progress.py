"""Shows how far a long command is: a live bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vae_jax.cli.common import say
from vae_jax.errors import on_terminal

FIRST_WAIT, LONGEST_WAIT = 15.0, 600.0  # seconds without a line; the wait doubles from line to line


class Lines:
    """Says how far a command is, where no bar can be drawn, and how long the rest will take at this speed."""

    def __init__(self, what: str) -> None:
        """Starts the time of a command, which the lines call `what`."""
        self._what = what
        self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when it was shown first, and how much was done already
        self._wait = FIRST_WAIT

    def heard(self) -> None:
        """Waits longer with the next line, since the command has printed a line of its own."""
        self._last = time.monotonic()

    def show(self, done: int, total: int, more: str = "") -> None:
        """Prints a line if the last one is long ago."""
        now = time.monotonic()
        self._first = begun, before = self._first or (now, done)  # compiling came before, or what a run had already
        if not before < done < total or now - self._last < self._wait:
            return
        self._last, self._wait = now, min(2 * self._wait, LONGEST_WAIT)
        left = span((now - begun) * (total - done) / (done - before))
        say(f"{self._what}: {done / total:.0%}{more}, about {left} left")


def span(seconds: float) -> str:
    """A length of time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def bar_of(*columns: Any) -> Any:
    """Rich's progress bar with these columns, on standard error; it disappears at the end."""
    from rich.console import Console
    from rich.progress import Progress

    # Standard output passes through the bar's console only if both are the same terminal.
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=on_terminal(sys.stdout))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A context with a function of (done, total): a live bar on a terminal, elsewhere lines."""
    if not on_terminal(sys.stderr):
        yield Lines(what).show
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    bar = bar_of(TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    task = bar.add_task("", total=None)
    with bar:
        yield lambda done, total: bar.update(task, total=total, completed=done)
