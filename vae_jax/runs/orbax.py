"""Orbax behind a thin adapter: it gets paths that it takes literally, and prints nothing."""

import asyncio
import gc
import inspect
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CoroutineType

import jax
import orbax.checkpoint as ocp

from vae_jax.errors import UserError

PLAIN = "/.,=+-_ ()~@'&!^;$"  # with letters and digits, the characters of paths that orbax takes literally
OPEN_FOLDERS = Path("/proc/self/fd")  # on Linux an open folder has a path by its number here
PATIENCE = 10.0  # seconds in which orbax's tasks must end after a failure


def checkpointer() -> ocp.Checkpointer:
    # In the foreground: an asynchronous save reports its failure only at the next call, with little to wait for.
    # And in this process alone: orbax would wait for other processes.
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options
    )


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that lets its tasks end before it is closed.

    After a failure orbax closes its loop while tasks are still writing, and every one of them prints a traceback.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            ended, _ = self.run_until_complete(asyncio.wait(tasks, timeout=PATIENCE))
            for task in ended:
                if not task.cancelled():
                    task.exception()  # otherwise asyncio prints it
        super().close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # a loop that could not be made, since too many files are open
            self.close()


@contextmanager
def silenced() -> Iterator[None]:
    """A context in which orbax only raises errors; its tasks and threads would also print tracebacks."""
    logger, hook, new_loop = logging.getLogger("absl"), sys.excepthook, asyncio.new_event_loop
    level, threads = logger.level, set(threading.enumerate())
    logger.setLevel(logging.CRITICAL + 1)
    sys.excepthook = lambda *_: None
    asyncio.new_event_loop = _Loop
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            try:
                yield
            except BaseException:  # orbax's threads and tasks end here, not later
                for thread in set(threading.enumerate()) - threads:
                    thread.join(PATIENCE)
                # By `type`: to ask an object of another package for its `__class__` may run code, and raise.
                for coroutine in [thing for thing in gc.get_objects() if type(thing) is CoroutineType]:
                    waits = inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
                    if waits and "orbax" in coroutine.cr_code.co_filename:
                        coroutine.close()
                raise
    finally:
        logger.setLevel(level)
        sys.excepthook = hook
        asyncio.new_event_loop = new_loop


@contextmanager
def plain_path(folder: Path, by_number: bool = False) -> Iterator[Path]:
    """A path of the folder that orbax takes literally, within the context: by the folder's number if need be.

    Orbax globs below the path that it gets, and takes some paths for addresses: with [1], * or gs: it writes half of a
    checkpoint without a word.

    Raises:
        UserError: if there is no such path.
    """
    folder = folder.absolute()
    path = folder.as_posix().removeprefix(folder.drive)
    strange = "".join(sorted({char for char in path if not char.isalnum() and char not in PLAIN}))
    if not strange and not (by_number and OPEN_FOLDERS.is_dir()):
        yield folder
    elif OPEN_FOLDERS.is_dir():
        number = os.open(folder, os.O_RDONLY)
        try:
            yield OPEN_FOLDERS / str(number)
        finally:
            os.close(number)
    else:
        with tempfile.TemporaryDirectory(prefix="vae_jax-") as place:
            link = Path(place) / "checkpoint"
            try:
                link.symlink_to(folder, target_is_directory=True)
            except OSError as error:  # on Windows few users have this right
                raise UserError(
                    f"{folder}: expected a path of letters, digits and {PLAIN} for checkpoints, where the system makes "
                    f"no symbolic link ({error.strerror or error}); found {strange}"
                ) from error
            yield link
