"""`python -m vae_jax` is `vae-jax`: the process's entry, after which Ctrl-C ends with one line."""

import gc
import os
import signal
import sys
from contextlib import suppress

if __name__ == "__main__" and not sys.flags.safe_path:
    with suppress(OSError):  # a working folder that is gone holds no files
        if sys.path[:1] == [os.getcwd()]:
            del sys.path[0]  # `python -m` puts it there, and a file in it could hide a package

from vae_jax.interruption import end_at_once


def main() -> int:
    """Runs the command of this process's arguments; returns its exit code, see `vae_jax.cli.main`."""
    # Imports and jax's tracing make many objects and few cycles: frequent collections took a sixth of a start.
    gc.set_threshold(100_000, 50, 100)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    from vae_jax import cli

    try:
        return cli.main()
    finally:
        gc.freeze()  # the process ends: another collection over a million objects would take a second


if __name__ == "__main__":
    sys.exit(main())
