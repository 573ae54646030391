"""Data sets in memory: one file per source, all of which give a `Dataset`."""

from vae_jax.data.dataset import Dataset
from vae_jax.data.image_size import settled
from vae_jax.data.load import SOURCES, load, read_images, resolve
from vae_jax.data.split import Split

__all__ = ["SOURCES", "Dataset", "Split", "load", "read_images", "resolve", "settled"]
