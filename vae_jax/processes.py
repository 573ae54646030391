"""One program in several processes, on one machine or on many, with jax's own runtime between them.

A process that is lost ends the others: none can go on without its part of a batch. They say so and exit with `LOST`.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

import jax

from vae_jax.errors import UserError, printable

HEARTBEAT = 20  # seconds after which a process that is silent counts as lost
FAREWELL = 600  # seconds in which all processes must have ended, once one has
LOST = 75  # exit code of a process that has lost another: sysexits' "temporary failure", worth trying again
# What the errors of a program say whose other processes are gone, on a CPU and elsewhere.
SIGNS = ("Gloo", "coordination service", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection", "heartbeat")
MESSAGE = "another process has ended, or cannot be reached; once all have ended, the same command with --resume goes on"

_kept: list[object] = []  # what C code calls must not be collected


def join(coordinator: str | None, processes: int | None, process: int | None, wait: int) -> None:
    """Makes this process one of several; to be called before anything asks jax for its devices.

    Args:
        coordinator: "HOST:PORT" of the first process; None where Slurm, Kubernetes or Open MPI tell.
        processes: how many there are, likewise.
        process: which one this is, from 0 on, likewise.
        wait: seconds in which all must have begun.

    Raises:
        UserError: if nothing tells, or the processes do not find one another.
    """
    unmet = (
        f"--distributed: expected {processes or 'all'} processes to meet at {coordinator or 'the first one'} within "
        f"{wait} s (--wait)"
    )
    _abort_with(unmet, 2)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=FAREWELL,
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--distributed: expected --coordinator HOST:PORT, --processes and --process, or an environment that tells "
            f"them (Slurm, Kubernetes, Open MPI); {error!s:.200}"
        ) from error
    except RuntimeError as error:
        raise UserError(f"{unmet}; {error!s:.200}") from error
    aborted = "jax's runtime has ended this process, most likely since"  # lines of its own stand above
    _abort_with(f"process {jax.process_index()}: {aborted} {MESSAGE}", LOST)


def joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone."""
    return joined() and any(sign in str(error) for sign in SIGNS)


def complaint(error: BaseException) -> str:
    """What a user is told of it."""
    return f"process {jax.process_index()}: {MESSAGE} ({error!s:.200})"


def leave(code: int) -> None:
    """Ends this process; where it has failed it does not wait for the others, which then fail in turn."""
    if not joined():
        return
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code:
        os._exit(code)
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:
        print(f"vae-jax: error: {printable(complaint(error))}", file=sys.stderr, flush=True)
        os._exit(LOST)


def _abort_with(message: str, code: int) -> None:
    """Where a thread of jax's runtime finds that the processes are not together, it aborts this one: with this message.

    The runtime has a callback for it, which `jax.distributed` does not offer.
    """
    line = f"vae-jax: error: {printable(message)}\n".encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
        os.write(2, line)
        os._exit(code)

    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    install(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
    _kept.append(on_abort)
