"""One process at a time where several would make the same thing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, what: str, report: Callable[[str], None]) -> Iterator[bool]:
    """Holds the lock with the file `path`; a process that dies lets go of it.

    Gives whether it is held: where no file can be written or locked, each process works for itself.

    Args:
        path: of the lock's file, there only while it is held.
        what: is prepared, for the report that another process prepares it.
        report: is told when there is something to wait for.
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
        # While it is held: a process that waits for a file that is gone notices, and begins anew.
        with suppress(OSError):
            path.unlink()
        lock.release()
