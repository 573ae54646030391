"""The pictures at a run's end."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vae_jax.config import (
    Config,
)
from vae_jax.data import Dataset
from vae_jax.keys import make_keys
from vae_jax.model.model import Model
from vae_jax.pictures.plots import latent_plane
from vae_jax.pictures.sheet import Picture, grid


def draw_samples(folder: Path, config: Config, model: Model) -> None:
    """Draws the picture of samples from the prior in a run folder."""
    assert model.sample is not None
    count = config.output.figure_images
    labels = jnp.arange(count) % config.model.classes if config.model.classes else None
    pictures = np.asarray(model.sample(make_keys(config.seed).samples, count, labels))
    grid(folder / "figures" / "samples.png", pictures, columns=max(1, int(count**0.5)))


def draw_latent_plane(path: Path, use: Model, data: Dataset, side: int = 20) -> Picture:
    """Draws the picture of a two-dimensional latent space: the test images' places and the points' decoded pictures."""
    means = np.asarray(use.encode(data.test.images)["mu"])
    # The square holds most of the prior's mass and all images; the test images' panel shows the same square.
    extent = float(np.ceil(max(3.0, np.abs(means).max(initial=0.0))))
    line = np.linspace(-extent, extent, side)
    points = np.stack(np.meshgrid(line, line[::-1]), -1).reshape(-1, 2)  # the first row is the plane's top
    decoded = np.asarray(use.decode(points))
    return latent_plane(path, means, data.test.labels, decoded, extent, data.class_names)
