"""Brings images to the device: all at once, or in shards, of which one is loaded while another is in use."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from vae_jax.device.devices import Devices

SHARE = 0.25  # of the device's memory that a split may fill; the rest is for the other splits and the training


class Shard(NamedTuple):
    """Images on the device, and their places in an order.

    Attributes:
        first: the first place.
        last: the place after the last.
        images: as a split holds them, uint8, (images, height, width, channels).
        labels: of the images, (images,), if the feed has labels.
        order: for every place from `first` on, the index in `images` of its image.
    """

    first: int
    last: int
    images: Shaped[Array, "images *stored"]
    labels: Int[Array, " images"] | None
    order: Int[Array, " places"]


def limit() -> float:
    """Bytes that images may fill on a device; infinite if it reports no memory, as a CPU, which holds them already."""
    return SHARE * (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)


def fits(images: Shaped[np.ndarray, "images *stored"]) -> bool:
    """Whether the images can stay on a device."""
    return images.nbytes <= limit()


class Feed:
    """Brings images to the device in an order."""

    def __init__(
        self,
        images: Shaped[np.ndarray, "images *stored"],
        shard_images: int,
        multiple: int,
        labels: Int[np.ndarray, " images"] | None = None,
        devices: Devices | None = None,
    ):
        """Takes the images.

        Args:
            images: all of them.
            shard_images: images in a shard; up to three shards are on the device: in use, being loaded and done with. 0
                takes all images if they fit, else shards of an eighth of `limit`.
            multiple: a shard holds a multiple of this many images, at least twice as many.
            labels: of the images, if wanted.
            devices: to spread them over; one by default.
        """
        self._devices = devices or Devices()
        # The smallest of all processes' limits, since all must go through the same shards.
        most = self._devices.agree(limit(), np.min) * self._devices.count
        if not shard_images and images.nbytes > most:
            shard_images = int(most / 8 / images[0].nbytes)
        # XLA makes another program for a shard of one batch, whose last bits differ.
        size = max(2, shard_images // multiple) * multiple
        self.images, self.size = images, size if shard_images and size < len(images) else 0
        # All shards have the same shape, so that one compiled program serves all.
        self._resident = None if self.size else self._devices.images(images)
        self._labels = None if labels is None else np.asarray(labels, np.int32)
        self._places = self._devices.whole(jnp.arange(self.size or len(images), dtype=jnp.int32))

    @property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """The shapes of a shard's images, and of its labels and order."""
        count = self.size or len(self.images)
        return self._devices.shapes(count, self.images.shape[1:], self.images.dtype)

    def shards(self, order: Int[Array, " images"] | None = None, first: int = 0) -> Iterator[Shard]:
        """The images from place `first` of the order on; without an order, in their own."""
        count = len(self.images)
        if self._resident is not None:
            labels = None if self._labels is None else self._devices.whole(jnp.asarray(self._labels))
            yield Shard(0, count, self._resident, labels, self._places if order is None else self._devices.whole(order))
            return
        rows = np.arange(count) if order is None else np.asarray(order)

        def load(place: int) -> Any:
            chosen = rows[place : place + self.size]
            # The last shard is padded with images that are not used.
            chosen = np.pad(chosen, (0, self.size - len(chosen)), "edge")
            labels = None if self._labels is None else self._devices.whole(jax.device_put(self._labels[chosen]))
            return self._devices.images(self.images, chosen), labels

        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(load, first)
            for place in range(first, count, self.size):
                images, labels = loading.result()
                if place + self.size < count:
                    loading = pool.submit(load, place + self.size)
                yield Shard(place, min(place + self.size, count), images, labels, self._places)
