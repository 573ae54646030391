"""One program in several processes, on one machine or many, connected by jax's runtime.

If one process is lost, the others end: none can go on without its part of a batch. They say so and exit with `LOST`.
"""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import jax

from vae_jax.device.coordinator import BIND, claimed
from vae_jax.errors import UserError, argument, printable, say_if_aborted

HEARTBEAT = 20  # seconds after which a silent process counts as lost
FAREWELL = 600  # seconds for all processes to end, once one has
LOST = 75  # exit code of a process that has lost another: sysexits' "temporary failure", worth trying again
# Words in a program's errors once another process is gone, on a CPU and elsewhere.
SIGNS = ("Gloo", "coordination service", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection", "heartbeat")


def join(
    coordinator: str | None, processes: int | None, process: int | None, wait: int, report: Callable[[str], None]
) -> None:
    """Makes this process one of several; must be called before anything asks jax for its devices.

    The first process listens at the coordinator's address, or at JAX_COORDINATOR_BIND_ADDRESS, and nowhere else.

    Args:
        coordinator: "HOST:PORT" of the first process; None takes it from Slurm, Kubernetes or Open MPI.
        processes: number of processes; None as above.
        process: number of this one, from 0 on; None as above.
        wait: seconds in which all must have started.
        report: takes a line for the user.

    Raises:
        UserError: if the processes are not specified, the first one cannot listen there, or they do not meet in time.
    """
    name = argument("coordinator" if coordinator else "distributed")
    unspecified = (
        f"{argument('distributed')}: expected {argument('coordinator')} HOST:PORT, {argument('processes')} and "
        f"{argument('process')}, or an environment that sets them (Slurm, Kubernetes, Open MPI)"
    )
    try:
        coordinator, processes, process = _detected(coordinator, processes, process, wait)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{unspecified}; {error!s:.200}") from error
    listens = os.environ.get(BIND) or coordinator
    unmet = (
        f"{argument('distributed')}: expected {processes or 'all'} processes to meet at "
        f"{coordinator or 'the first one'} within {wait} s ({argument('wait')})"
    )

    def initialize() -> None:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=FAREWELL,
            coordinator_bind_address=listens,
        )

    first = claimed(listens, BIND if listens != coordinator else name, report) if listens and process == 0 else None
    with first or nullcontext(), _one_line(unmet):
        try:
            _interruptibly(initialize)
        except (ValueError, TypeError) as error:
            raise UserError(f"{unspecified}; {error!s:.200}") from error
        except RuntimeError as error:
            raise UserError(f"{unmet}; {error!s:.200}") from error
    aborted = "jax's runtime has ended this process, most likely since"  # below the runtime's own lines
    say_if_aborted(f"process {jax.process_index()}: {aborted} {_ended()}", LOST)


def _ended() -> str:
    on = argument("resume", True)
    return f"another process has ended, or cannot be reached; once all have ended, the same command with {on} goes on"


def joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone."""
    return joined() and any(sign in str(error) for sign in SIGNS)


def complaint(error: BaseException) -> str:
    """The message for the user that another process is gone."""
    return f"process {jax.process_index()}: {_ended()} ({error!s:.200})"


def leave(code: int) -> None:
    """Ends this process; after a failure it does not wait for the others, which then fail in turn."""
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


def _detected(
    coordinator: str | None, processes: int | None, process: int | None, wait: int
) -> tuple[str | None, int | None, int | None]:
    """The first process's address, the number of processes and this one's, as far as the environment sets them.

    jax does the same first when it joins, under a private name. If a version of jax has renamed it, jax detects them
    itself and listens at all addresses.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if None in (coordinator, processes, process):
        with suppress(ImportError, AttributeError, TypeError):
            from jax._src.clusters import ClusterEnv

            detect = ClusterEnv.auto_detect_unset_distributed_params
            return detect(coordinator, processes, process, None, None, wait)[:3]
    return coordinator, processes, process


def _interruptibly(call: Callable[[], None]) -> None:
    """Calls a function that ignores Ctrl-C, so that Ctrl-C is heard; raises what it raises.

    After Ctrl-C the function goes on until this process ends.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@contextmanager
def _one_line(message: str) -> Iterator[None]:
    """A context in which a process that jax's runtime aborts prints only this message and exits with 2.

    The runtime's own lines are held back and shown at the end, unless an error is raised, which says enough.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        shown = os.dup(2)
        # A thread of the runtime aborts; the callback it has for that is not offered by `jax.distributed`.
        say_if_aborted(message, 2, shown)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.close(shown)
        held.seek(0)
        os.write(2, held.read())
