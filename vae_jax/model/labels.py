"""Labels of a conditional model: further channels of the images, and further numbers beside z."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vae_jax.errors import UserError


def _one_hot(labels: Int[Array, " batch"] | None, classes: int, dtype: Any) -> Array:
    if labels is None:
        raise UserError(
            f"model.classes: expected one of {classes} labels for each image, which the networks need; found none"
        )
    return jax.nn.one_hot(labels, classes, dtype=dtype)


def with_planes(images: Array, labels: Int[Array, " batch"] | None, classes: int) -> Array:
    """Images with one-hot labels as further channels (the conditional VAE's encoder)."""
    if not classes:
        return images
    hot = _one_hot(labels, classes, images.dtype)
    planes = hot.reshape(hot.shape[0], *(1,) * (images.ndim - 2), classes)
    return jnp.concatenate([images, jnp.broadcast_to(planes, (*images.shape[:-1], classes))], -1)


def with_labels(z: Array, labels: Int[Array, " batch"] | None, classes: int) -> Array:
    """z with its label beside it (the conditional VAE's decoder, Sohn et al. 2015, section 4.1)."""
    if not classes:
        return z
    hot = _one_hot(labels, classes, z.dtype)
    samples = z.shape[0] // hot.shape[0]
    hot = jnp.broadcast_to(hot, (samples, *hot.shape)).reshape(z.shape[0], *(1,) * (z.ndim - 2), classes)
    return jnp.concatenate([z, jnp.broadcast_to(hot, (*z.shape[:-1], classes))], -1)
