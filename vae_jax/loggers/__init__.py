"""Loggers: where a run's figures and pictures go besides its folder.

A logger never stops a run: where it fails, one line says so, and the run goes on without it.
"""

from collections.abc import Callable

from vae_jax.loggers import tensorboard, trackio, wandb
from vae_jax.loggers.base import LoggedRun as LoggedRun
from vae_jax.loggers.base import Logger as Logger

# Begin the log of a run, or go on with it; each imports its package when it is called.
LOGGERS: dict[str, Callable[[LoggedRun], Logger]] = {
    "tensorboard": tensorboard.start,
    "wandb": wandb.start,
    "trackio": trackio.start,
}
