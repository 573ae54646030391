"""The order of axes inside the networks: tiles of images, feature-major.

Outside, images are (batch, height, width, channels). Inside they are features, (tiles, channels, height, width, tile).
The last axis has the same pixel of neighbouring images, so that every copy and every sum on a CPU runs along long
contiguous rows. A tile has few enough images for a convolution's columns to stay in the cache. On a platform without
tiles (see `vae_jax.device.platforms`) the batch is one tile. Examples of other kinds have other axes between the batch
and the channels, or none.

`to_features` and `to_images` are inverses, and XLA removes one after the other: a likelihood that computes on
`to_features` of the decoder's images moves nothing.
"""

from jaxtyping import Array, Float

from vae_jax.device.platforms import current
from vae_jax.shapes import Size

Features = Float[Array, "tiles channels *places tile"]
Images = Float[Array, "batch *places channels"]


def tiles(batch: Size) -> int:
    """How many tiles of equal size a batch is split into; 1 if it has no divisor near the wanted size."""
    wanted = current().tile
    if not wanted:
        return 1
    return next((batch // size for size in range(wanted, wanted // 2 - 1, -1) if batch and batch % size == 0), 1)


def to_features(images: Images) -> Features:
    """Images, batch first, as features."""
    batch, *shape = images.shape
    count = tiles(batch)
    return _turned(images.reshape(count, batch // count, *shape))


def to_images(features: Features) -> Images:
    """Features as images, batch first."""
    images = _turned(features)
    return images.reshape(-1, *images.shape[2:])


def _turned(array: Array) -> Array:
    """The array with its second and last axes exchanged."""
    last = array.ndim - 1
    return array.transpose(0, last, *range(2, last), 1)
