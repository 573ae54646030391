"""Refuses what cannot be trained, before anything is compiled."""

import jax
import numpy as np

from vae_jax import networks, optimizer
from vae_jax.config import Config, as_used
from vae_jax.data.dataset import Dataset
from vae_jax.data.split import Split
from vae_jax.errors import UserError
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.model.composition import Composition
from vae_jax.programs.sizes import check_memory

STEPS = 2**31 - 1  # most steps of a run, which are counted in 32 bits


def check_jax() -> None:
    """Refuses settings of jax with which no model trains.

    Raises:
        UserError: naming the setting and why.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise UserError("jax_disable_jit: expected it off, since an epoch is one compiled loop; found it on")
    if (setting := jax.config.jax_numpy_dtype_promotion) == "strict":  # type: ignore[attr-defined]
        raise UserError(
            f"jax_numpy_dtype_promotion: expected standard, since optax's Adam mixes floats with whole numbers; "
            f"found {setting}"
        )


def check_batches(config: Config, images: int, composition: Composition) -> None:
    """Refuses too many steps, and batches of one image if a network's images depend on one another.

    Raises:
        UserError: if a step's number would not fit 32 bits, or a batch of the epoch would hold one image only, which
            BatchNorm cannot normalise.
    """
    size = config.train.batch_size
    steps = -(-images // size)
    if steps * config.train.epochs > STEPS:
        raise UserError(
            f"train.epochs: expected at most {STEPS // steps:,}, since an epoch has {steps:,} steps and at most "
            f"{STEPS:,} are counted; found {config.train.epochs}"
        )
    if (size > 1 and images % size != 1) or not composition.ties().couples:
        return
    description = (
        "a batch of one image" if size == 1 else f"a last batch of one image ({images} images in batches of {size})"
    )
    raise UserError(
        f"train.batch_size: expected at least two images for {config.model.network}, in which the images of a batch "
        f"depend on one another (BatchNorm), found {description}; change train.batch_size or data.validation, or take "
        f"a network without it (of ours, model.batch_norm false)"
    )


def check_parameters(config: Config, composition: Composition) -> None:
    """Refuses a network whose parameters, with their gradient and the optimiser's state, do not fit into memory.

    Raises:
        UserError: naming the number of parameters.
    """
    shapes = jax.eval_shape(composition.init, make_keys(config.seed).init)
    opt_state = jax.eval_shape(optimizer.build(config, 1).init, shapes.params)
    held = [shapes.params, shapes.params, opt_state]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))
    check_memory(size, f"model: training its {networks.count_parameters(shapes.params):,} parameters")


def memory_options(config: Config, size: int) -> str:
    """The options that determine the memory of a step of `size` images, for messages."""
    samples = as_used(config, "objective.samples", "objective.groups")
    return f"train.batch_size {size}" + f", {samples}" * bool(samples)


def labels_for(config: Config, split: Split) -> np.ndarray | None:
    """The labels of a split's images if the model gets them, else None."""
    return split.labels if config.model.classes else None


def check_labels(config: Config, data: Dataset) -> None:
    """Refuses images without the labels that the model needs.

    Raises:
        UserError: naming what was expected and found.
    """
    if not config.model.classes:
        return
    for name, split in (("training", data.train), ("test", data.test), ("validation", data.validation)):
        if split is None:
            continue
        if split.labels is None:
            raise UserError(f"model.classes: expected {name} images with labels; found none in {data.name}")
        if not 0 <= split.labels.min(initial=0) <= split.labels.max(initial=0) < config.model.classes:
            raise UserError(
                f"model.classes: expected labels from 0 to {config.model.classes - 1} in {data.name}; found "
                f"{split.labels.min()} to {split.labels.max()} among its {name} images"
            )


def check_numbers(config: Config, data: Dataset) -> None:
    """Refuses data with numbers outside the likelihood's interval.

    Raises:
        UserError: naming what was expected and found.
    """
    if data.spec.support != "reals":  # all other numbers are in [0, 1]
        return
    if (interval := build(config, data.image_shape).composition.likelihood.interval) is None:
        return
    (least, most), (low, high) = interval, data.interval()
    if not least <= low <= high <= most:
        raise UserError(
            f"likelihood.name: expected one of any real numbers, as gaussian, or data in [{least:g}, {most:g}]; found "
            f"{config.likelihood.name} and numbers from {low:g} to {high:g} in {data.name}"
        )


def check_patience(config: Config, data: Dataset) -> None:
    """Refuses early stopping without validation images.

    Raises:
        UserError: if there are no validation images, or only one of the two options is set.
    """
    if config.train.patience is not None and data.validation is None:
        raise UserError(
            f"train.patience: expected validation images, by whose loss training stops; found none in {data.name}; set "
            f"data.validation"
        )
    if config.train.patience is None and config.train.min_delta:
        raise UserError("train.min_delta: expected train.patience with it; found null")
