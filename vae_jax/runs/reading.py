"""Reads a run back from its folder, to use it or to go on."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vae_jax.config import (
    Config,
    resolve_parts,
)
from vae_jax.data import Dataset, resolve
from vae_jax.errors import UserError, argument
from vae_jax.files import checked
from vae_jax.files.folders import is_folder
from vae_jax.model.build import build
from vae_jax.model.model import Model, make_model
from vae_jax.runs import own_parts
from vae_jax.runs.folder import read_config, read_data
from vae_jax.runs.hub import downloaded
from vae_jax.training.start import start, start_from
from vae_jax.training.state import Trained

if TYPE_CHECKING:
    from vae_jax.runs.checkpoint import Saved
    from vae_jax.runs.description import Description
from vae_jax.runs.folder import DIVERGED
from vae_jax.runs.identity import changed_run_options, check_same_run, digest_of, plain_options, present_options


class _Line(NamedTuple):
    """The part of a line of RUN/metrics.jsonl that is read."""

    epoch: int


def load(
    folder: str | Path,
    checkpoint: str = "latest",
    report: Callable[[str], None] = warnings.warn,
    trust_code: bool = False,
) -> Trained:
    """The model in a run folder.

    Args:
        folder: of the run, or its address on the hub, see `vae_jax.runs.hub`; nothing is written there.
        checkpoint: "latest" or "best".
        report: called with a line for every damaged checkpoint, which is passed over, and if the configuration or a
            user's file has changed since.
        trust_code: run the code that the run's folder or configuration names, even if this user's training has not put
            it there.

    Raises:
        UserError: if it is no run or has no undamaged checkpoint, or it names code that is not trusted.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> _ = vae_jax.train_run(config, data, "runs/example")
        >>> trained = vae_jax.load_run("runs/example")
        >>> trained.config.model.network, len(trained.history)
        ('mlp', 1)
    """
    folder = downloaded(folder, report)
    config = read_config(folder)
    used = own_parts.as_kept(config, folder, trust_code)
    config = replace(config, data=resolve(config.data))
    configured = plain_options(own_parts.by_copy(config, folder))
    config = resolve_parts(replace(used, data=config.data))
    configured = present_options(configured, config, folder)
    for line in own_parts.changes(folder):
        report(line)
    shape = config.data.image_shape

    def check(description: "Description") -> None:
        check_same_run(folder, description)
        then = present_options({**description.options}, config, folder) if description.options else {}
        if changed := changed_run_options(configured, then, configured):
            report(f"warning: {folder}/config.yaml is not what the run was trained with; changed: {changed}")

    saved = _restore(folder, checkpoint, config, shape, report, check)
    if saved is None:
        why = f"it diverged, see {DIVERGED}" if (folder / DIVERGED).is_file() else "has its first epoch finished?"
        raise UserError(f"{folder}: expected a run with checkpoints, found none; {why}")
    noted = read_data(folder)
    return Trained(config, shape, saved.state, saved.history, noted and noted.class_names)


def _restore(
    folder: Path,
    which: str,
    config: Config,
    shape: tuple[int, ...],
    report: Callable[[str], None],
    check: "Callable[[Description], None]",
) -> "Saved | None":
    from vae_jax.runs.checkpoint import restore  # orbax takes a second to import

    if not is_folder(folder / "checkpoints"):
        return None
    return restore(folder / "checkpoints", which, lambda images: start(config, shape, images), report, check)


def use(trained: Trained) -> Model:
    """The trained model in use: encode, decode, reconstruct and sample, compiled.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> model = vae_jax.use(vae_jax.fit(config, data))
        >>> model.encode(data.test.images[:3])["mu"].shape
        (3, 20)
    """
    composition, objective = build(trained.config, trained.image_shape)
    return make_model(composition, objective, trained.variables)


def checkpoint_to_resume(
    config: Config,
    data: Dataset,
    folder: Path,
    report: Callable[[str], None],
    digest: str | None = None,
    trust_code: bool = False,
) -> "Saved | None":
    """The newest checkpoint of the run in a folder, to go on from; None if there is none yet.

    Args:
        config: to go on with.
        data: to go on with.
        folder: of the run.
        report: called with a line for every damaged checkpoint, which is passed over.
        digest: `digest_of` config and data, if it is known already.
        trust_code: see `train`.

    Raises:
        UserError: if the run is not continued as it began.
    """
    config = resolve_parts(own_parts.as_kept(config, folder, trust_code, own_parts.names_in(config)))
    if edited := own_parts.edited(folder):
        raise UserError(f"{edited[0]}; {argument('resume', True)} continues a run as it began")
    now = plain_options(own_parts.by_copy(config, folder))
    configured = present_options(plain_options(own_parts.by_copy(read_config(folder), folder)), config, folder)

    def check(then: dict[str, Any]) -> None:
        """Refuses to continue a run with other options; `configured` stands in for an older checkpoint's options."""
        if changed := changed_run_options(now, then or configured, configured):
            raise UserError(f"{folder}: {argument('resume', True)} continues a run as it began; changed: {changed}")
        if changed := changed_run_options(configured, then, configured):
            report(f"warning: {folder}/config.yaml was changed, and is rewritten as the run began: {changed}")

    def check_description(description: "Description") -> None:
        check_same_run(folder, description)
        check(present_options({**description.options}, config, folder) if description.options else {})

    earlier = _restore(folder, "latest", config, data.image_shape, report, check_description)
    if earlier is None:
        check({})
        if epochs := _epochs(folder):
            raise UserError(
                f"{folder}/checkpoints: expected a checkpoint, since metrics.jsonl has {epochs} epochs; found none; "
                f"put one back there, or start the run again in another folder"
            )
        return None
    if not earlier.images:
        _, objective = build(config, data.image_shape)
        return earlier._replace(state=start_from(config, objective, earlier.state.variables, len(data.train)))
    if earlier.images != len(data.train):
        raise UserError(
            f"{folder}: the run was trained on {earlier.images} images, found {len(data.train)}; a run continues "
            f"on the same data only"
        )
    if earlier.digest != (digest or digest_of(config, data)):
        what = "images, labels or classes" if config.model.classes else "images"
        raise UserError(f"{folder}: the run was trained on other {what}; a run continues on the same data only")
    if data.validation is not None and any("validation_loss" not in epoch for epoch in earlier.history):
        raise UserError(
            f"{folder}: the run was trained without validation images, found {len(data.validation):,}; a run continues "
            f"on the same data only"
        )
    begun = -(-int(earlier.state.step) // -(-earlier.images // config.train.batch_size))
    if begun > config.train.epochs:
        raise UserError(f"train.epochs: expected at least the {begun} epochs the run has; found {config.train.epochs}")
    return earlier


def _epochs(folder: Path) -> int:
    """The number of epochs in a run's metrics, which are written after an epoch's checkpoint.

    Raises:
        UserError: if they are damaged, so that the number is unknown.
    """
    try:
        return sum(1 for _ in checked.read_lines(folder / "metrics.jsonl", _Line))
    except FileNotFoundError:
        return 0
