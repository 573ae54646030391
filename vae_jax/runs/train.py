"""Trains a run into its folder: starts, resumes or overwrites it."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_jax.config import (
    Config,
    check_used,
    resolve_parts,
)
from vae_jax.data import Dataset, settled
from vae_jax.device.devices import Devices
from vae_jax.errors import Diverged, Stopped, argument, counted
from vae_jax.files.lock import writing
from vae_jax.runs import own_parts
from vae_jax.runs.fit import fit
from vae_jax.runs.folder import absolute_start, check_folder, check_start, delete
from vae_jax.runs.identity import check_alike, check_shape
from vae_jax.runs.reading import checkpoint_to_resume
from vae_jax.runs.recorder import Follower, Recorder
from vae_jax.training.figures import has_stopped
from vae_jax.training.loop import compiling
from vae_jax.training.state import Progress, Trained, TrainState

if TYPE_CHECKING:
    from vae_jax.loggers.base import Start


def train(
    config: Config,
    data: Dataset,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    devices: Devices | None = None,
    report: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict[str, Any], TrainState], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    trust_code: bool = False,
    log: str | Sequence[str] = (),
) -> Trained:
    """Trains the configured model into a run folder.

    Args:
        config: of the run.
        data: the images.
        folder: of the run; created.
        resume: continue the run in it, or start one if there is none.
        overwrite: delete the run in it first.
        devices: to train on, together; by default one. Of several processes the first writes the folder, which all see.
        report: called with a line of text now and then.
        on_progress: see `vae_jax.runs.fit.fit`.
        on_epoch: see `vae_jax.runs.fit.fit`.
        should_stop: called about once a second; whether to save and stop.
        trust_code: with `resume`, run copies of users' files in the folder even if this user's training has not put
            them there. Files that `config` names run anyway.
        log: loggers: "tensorboard", "wandb", "trackio" or a user's own, "FILE.py:ENTRY" (docs/loggers.md). One that
            fails is reported and left out, and the run goes on.

    Raises:
        UserError: if the folder is in the way, in use or cannot be written, the images do not have the configured size
            and channels, a checkpoint cannot be saved, a logger is unknown or not installed, or for the reasons of
            `fit`.
        Stopped: after it has stopped by `should_stop`.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> trained = vae_jax.train_run(config, data, "runs/example")
        >>> vae_jax.load_run("runs/example").history == trained.history
        True
    """
    from vae_jax.runs.finetune import start_from_run

    folder, devices = Path(folder), devices or Devices()
    loggers = loggers_named(log)
    config = own_parts.absolute(absolute_start(settled(config, data)))
    check_used(config)
    check_shape(config, data)
    check_folder(folder, resume, overwrite)
    if overwrite:
        check_start(config.train.start, folder)
    devices.wait()
    with writing(folder) if devices.writes else nullcontext():
        check_folder(folder, resume, overwrite)  # again, since another process may have been here meanwhile
        earlier = None
        if resume and (folder / "config.yaml").exists():
            config = own_parts.as_kept(config, folder, trust_code, own_parts.names_in(config))
            earlier = checkpoint_to_resume(config, data, folder, report, trust_code=trust_code)
            for line in own_parts.changes(folder):
                report(f"warning: {line}")
        elif resume:
            report(f"no run in {folder} yet: beginning one")
        config = resolve_parts(config)
        make_recorder = Recorder if devices.writes else Follower

        def stop_of_all() -> bool:
            return bool(devices.agree(should_stop(), np.any))

        recorder = make_recorder(config, data, folder, stop_of_all, devices, log=loggers)
        check_alike(config, recorder.digest, earlier, devices)  # now all have read what the first will overwrite

        def on_start() -> None:  # all checks are done
            if overwrite and devices.writes:
                delete(folder)
            recorder.open(earlier, report)
            if recorder.should_stop():
                raise Stopped("stopped before the first step")

        def record_epoch(epoch: dict[str, Any], state: TrainState) -> None:
            recorder.epoch(epoch, state)
            if on_epoch:
                on_epoch(epoch, state)
            recorder.stop_after(epoch, state)

        with compiling() as pool:  # orbax takes a third of a second to import, in which the model can be compiled
            pool.submit(import_module, "vae_jax.runs.checkpoint")
        began = time.perf_counter()
        begun = (earlier.state, earlier.history) if earlier else None
        if begun is None and config.train.start is not None:
            begun = start_from_run(config, data.image_shape, len(data.train), report, trust_code), []
        with recorder.closing_logs():
            try:
                trained = fit(
                    config,
                    data,
                    devices=devices,
                    resume=begun,
                    on_start=on_start,
                    on_progress=on_progress,
                    on_chunk=recorder.chunk,
                    on_epoch=record_epoch,
                )
            except Diverged as error:
                going_on = f"{argument('resume', True)}, train.skip_nonfinite true"
                on = f" or go on from step {recorder.saved_step} with {going_on}"
                how = f"{argument('overwrite', True)} or another {argument('folder')}"
                hint = f"start again ({how}){on if recorder.saved_step else ''}"
                recorder.diverged(error)
                raise Diverged(f"{error}; {hint}") from error
            if has_stopped(config, trained.history):
                report(stopped_line(config, trained.history))
            recorder.finish(trained, time.perf_counter() - began)
        return trained


def loggers_named(names: str | Sequence[str]) -> "dict[str, Start]":
    """The loggers of these names, see `vae_jax.loggers.several.chosen`; for none of them it imports nothing."""
    if names == ():
        return {}
    from vae_jax.loggers.several import chosen

    return chosen(names)


def stopped_line(config: Config, history: list[dict[str, Any]]) -> str:
    """The line about a run that has stopped early."""
    count = config.train.patience or 0
    return f"stopped after epoch {len(history)}: validation loss has not fallen for {counted(count, 'epoch')}"
