"""Ctrl-C ends a command at any moment, with one line and nothing half-written.

Python raises KeyboardInterrupt in whatever code is running, where it may be lost: in a callback of the garbage
collection, in a destructor, in an import that is given up, in code that catches everything. So it is raised again until
the command has ended. A second Ctrl-C does not wait for that.
"""

import _thread
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

CODE = 128 + signal.SIGINT  # exit code, as shells have it
IMPORT = "<frozen importlib._bootstrap>"  # the file of the code that imports modules
LINE = "vae-jax: interrupted"
SAME = 0.5  # seconds in which another SIGINT is the same Ctrl-C: `timeout` and others send two at once


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised to end the command."""


class _Watch(weakref.ref[Interrupted]):
    """A reference to an exception; once that is gone its callback gets this, as if it were a signal's number."""

    def __index__(self) -> int:
        return int(signal.SIGINT)


class Listener:
    """Listens to Ctrl-C while a command runs, unless it is ignored or other code handles it.

    Attributes:
        pressed: whether Ctrl-C was pressed.
    """

    def __init__(self, end: Callable[[], None] | None = None):
        """Prepares.

        Args:
            end: ends the process at once; called for a second Ctrl-C, and for one while a module is being imported.
                Without it these are raised like the first.
        """
        self.pressed = False
        self._end, self._at = end, 0.0
        self._command: FrameType | None = None
        self._raised: _Watch | None = None
        self._handler = None
        self._hooks = sys.unraisablehook, sys.excepthook

    def __enter__(self) -> "Listener":
        ours = (signal.default_int_handler, end_at_once)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) in ours:
            sys.unraisablehook, sys.excepthook = self._unraisable, self._uncaught
            self._handler = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._command = self._raised = None
        if self._handler:
            signal.signal(signal.SIGINT, end_at_once if self._end else self._handler)
            sys.unraisablehook, sys.excepthook = self._hooks

    def hear(self, command: Callable[[], int]) -> int:
        """Calls a command, once; the caller catches what it raises, and looks at `pressed`.

        Raises:
            KeyboardInterrupt: in the command, for Ctrl-C.
        """
        self._command = sys._getframe()  # from here on Ctrl-C is raised
        if self.pressed:
            raise Interrupted
        return command()

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler of Ctrl-C, called between two instructions of the main thread."""
        lost = self._raised is not None and self._raised() is None
        first, self.pressed = not self.pressed, True
        if first:
            self._at = time.monotonic()
        elif not lost:  # pressed again while the first is being raised
            if time.monotonic() - self._at < SAME:
                return
            if self._end:
                self._end()
        importing = False
        while frame is not None and frame is not self._command:
            importing = importing or frame.f_code.co_filename == IMPORT
            frame = frame.f_back
        if importing and self._end:  # C++ code that makes a module crashes if Python code raises in it
            self._end()
        if frame is not None:  # else the command has not begun, or is over
            raise self._exception()  # no variable here may hold it, since its traceback holds this frame

    def _exception(self) -> Interrupted:
        exception = Interrupted()
        # A callback in C: the next Ctrl-C cannot interrupt it.
        self._raised = _Watch(exception, _thread.interrupt_main)  # pyright: ignore[reportArgumentType]
        return exception

    def _unraisable(self, lost: object) -> None:
        if not self.pressed:  # a command that is being given up prints nothing
            self._hooks[0](lost)  # pyright: ignore[reportArgumentType] (typeshed's own, which Python does not name)

    def _uncaught(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        """The hook by which C code prints an exception that it turns into another, as numpy does while imported."""
        if issubclass(kind, Interrupted):
            sys.last_type = sys.last_value = sys.last_traceback = None
        else:
            self._hooks[1](kind, error, traceback)


def end_at_once(*_: object) -> None:
    """Ends this process, for Ctrl-C before and after a command, when nothing has to be undone."""
    end(LINE)


def end(line: str) -> None:
    """Ends this process as interrupted, with a line; safe in a signal's handler."""
    shown = "\x1b[?25h" if os.isatty(2) else ""  # shows the cursor, which a bar hides
    with suppress(OSError, ValueError, RuntimeError):  # it may be written to as the signal comes
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{shown}{line}\n".encode())
    os._exit(CODE)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A context that puts Ctrl-C off until its end, for code that must not be done by half."""
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C goes to the main thread only
        yield
        return
    pressed = False

    def remember(*_: object) -> None:
        nonlocal pressed
        pressed = True

    handler = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)
