"""An epoch's figures, and whether they end a run."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vae_jax.config import Config
from vae_jax.evaluation.evaluator import means
from vae_jax.objectives import Terms

History = list[dict[str, Any]]  # figures of every epoch, see `fit`


class Epoch(NamedTuple):
    """An epoch's figures, see `fit`; runs need not have those with a default."""

    epoch: Annotated[int, "[1, 1000000]"]
    train_loss: float
    test_loss: float
    images_per_second: Annotated[float, "[0, inf)"]
    train_seconds: Annotated[float, "(0, inf)"]
    chunk_steps: Annotated[int, "[1, 1000000000]"]
    compile_seconds: float = 0.0
    skipped_steps: int = 0
    train_reconstruction: float = math.nan
    train_kl: float = math.nan
    test_reconstruction: float = math.nan
    test_kl: float = math.nan
    validation_loss: float = math.nan
    validation_reconstruction: float = math.nan
    validation_kl: float = math.nan
    article_train_loss: float = math.nan
    article_test_loss: float = math.nan
    article_validation_loss: float = math.nan


def has_stopped(config: Config, history: History) -> bool:
    """Whether a run with these figures has stopped early, see `TrainConfig.patience`."""
    if config.train.patience is None:
        return False
    lowest, since = math.inf, 0
    for figures in history:
        fell = figures["validation_loss"] < lowest - config.train.min_delta
        lowest, since = (figures["validation_loss"], 0) if fell else (lowest, since + 1)
        if since == config.train.patience:
            return True
    return False


def means_of_steps(
    sums: Float[np.ndarray, "steps figures"], images: int, batch_size: int
) -> tuple[Float[np.ndarray, " figures"], Float[np.ndarray, " figures"], int]:
    """Means per image, means per step, and the number of skipped steps, from steps' sums over `images` images.

    The means leave skipped steps out.
    """
    finite = np.isfinite(sums).all(1)
    skipped = np.flatnonzero(~finite)
    # Only an epoch's last step may have fewer images than a full batch.
    images -= sum(min(batch_size, images - step * batch_size) for step in skipped.tolist())
    if not images:
        return np.full(sums.shape[1], np.nan), np.full(sums.shape[1], np.nan), len(skipped)
    total = sums[finite].sum(0)
    return total / images, total / finite.sum(), len(skipped)


def train_figures(
    config: Config, names: Sequence[str], sums: Float[np.ndarray, "steps figures"], count: int
) -> dict[str, float]:
    """An epoch's training figures: means per image of the named figures, and the article's figure."""
    per_image, per_step, skipped = means_of_steps(sums, count, config.train.batch_size)
    return {
        **{f"train_{name}": value for name, value in zip(names, per_image.tolist(), strict=True)},
        "article_train_loss": float(per_step[0]),
        **({"skipped_steps": skipped} if config.train.skip_nonfinite else {}),
    }


def split_figures(split: str, terms: Terms, batch_size: int) -> dict[str, float]:
    """A split's figures: means per image of its terms, and the article's figure."""
    figures, count = means(terms), len(terms["loss"])
    return {
        **{f"{split}_{name}": value for name, value in figures.items()},
        f"article_{split}_loss": figures["loss"] * count / -(-count // batch_size),
    }
