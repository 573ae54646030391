"""A lock, so that only one process at a time makes the same data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, what: str, report: Callable[[str], None]) -> Iterator[bool]:
    """A context that holds the lock with the file `path`; a process that dies releases it.

    Gives whether it is held: if no file can be written or locked, processes do not wait for one another.

    Args:
        path: of the lock's file, which exists only while it is held.
        what: the thing that is prepared, for the report.
        report: gets a line if another process prepares it.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report(f"waiting for another process that prepares {what}")
            lock.acquire()
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        # Removed while it is held: a process that waits for a removed file notices, and starts again.
        with suppress(OSError):
            path.unlink()
        lock.release()
