"""A run in memory: no files, no printing; callbacks get the events."""

from collections.abc import Callable
from typing import Any

from vae_jax.config import Config
from vae_jax.data.dataset import Dataset
from vae_jax.data.image_size import settled
from vae_jax.device.devices import Devices
from vae_jax.errors import Diverged
from vae_jax.training.checks import check_jax
from vae_jax.training.driver import drive
from vae_jax.training.single import Single
from vae_jax.training.state import Progress, Trained, TrainState


def fit(
    config: Config,
    data: Dataset,
    *,
    devices: Devices | None = None,
    resume: tuple[TrainState, list[dict[str, Any]]] | None = None,
    on_start: Callable[[], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_chunk: Callable[[TrainState, list[dict[str, Any]]], None] | None = None,
    on_epoch: Callable[[dict[str, Any], TrainState], None] | None = None,
) -> Trained:
    """Trains the configured model.

    Args:
        config: of the run.
        data: the images.
        devices: to train on, together; by default one. The result is that of one device, up to rounding.
        resume: a state and its history to go on from; by default the run starts fresh.
        on_start: called before the first step, after all checks.
        on_progress: called about once a second with the run's progress.
        on_chunk: called as often inside an epoch, with the state and the history so far: the place to save.
        on_epoch: called after every epoch with its figures and the state. The state's buffers are used
            again after a callback returns; copy what you keep.

    Returns:
        The trained model. Its history has one dict an epoch: "epoch"; "train_loss", "train_reconstruction", "train_kl"
        and so on for all of the objective's figures (means over the epoch's images as it trained); the same with
        "test_" and, with a validation split, "validation_" (z sampled); "article_train_loss" and
        "article_test_loss" (the figure the article prints: the mean over batches of the batch's sum);
        "images_per_second" and "train_seconds" (compilation and evaluation excluded), "compile_seconds" and
        "chunk_steps"; with `train.skip_nonfinite`, "skipped_steps", which the means leave out. Figures are per image,
        in the objective's units.

    Raises:
        UserError: if the configuration does not fit the data, or nothing trains with jax's settings.
        Diverged: if the loss or the gradient becomes infinite or NaN; with `train.skip_nonfinite`, in all steps of an
            epoch.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> trained = vae_jax.fit(config, data)
        >>> [(epoch["epoch"], 0 < epoch["test_loss"] < 60) for epoch in trained.history]
        [(1, True)]
    """
    check_jax()
    config, devices = settled(config, data), devices or Devices()
    if resume is None and config.train.start is not None:
        from vae_jax.runs.finetune import start_from_run

        resume = start_from_run(config, data.image_shape, len(data.train)), []
    program = Single(config, data, devices, resume)
    if on_start:
        on_start()
    _, history = resume or (None, [])
    (ended,) = drive(
        program,
        [config],
        [list(history)],
        on_progress=on_progress,
        on_chunk=on_chunk and (lambda members, get: on_chunk(*get(0))),
        on_epoch=on_epoch and (lambda member, figures, state: on_epoch(figures, state)),
    )
    if isinstance(ended, Diverged):
        raise ended
    return Trained(config, data.image_shape, *ended, data.class_names)
