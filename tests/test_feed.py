"""Images on their way to the device."""

import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.device import feed
from vae_jax.device.devices import Devices
from vae_jax.device.feed import Feed

IMAGES = np.arange(23 * 4, dtype=np.uint8).reshape(23, 2, 2, 1)
ORDER = jnp.asarray(np.random.RandomState(0).permutation(23))


def places(shards):
    """The images of each place, in the order in which they come."""
    for shard in shards:
        for place in range(shard.first, shard.last):
            yield np.asarray(shard.images[shard.order[place - shard.first]])


@pytest.mark.parametrize(
    ("shard_images", "sizes"), [(0, [23]), (8, [8, 8, 7]), (11, [8, 8, 7]), (1, [8, 8, 7]), (13, [12, 11]), (99, [23])]
)
@pytest.mark.parametrize("order", [None, ORDER])
def test_every_place_gets_its_image(shard_images, sizes, order):
    found = Feed(IMAGES, shard_images, 4)
    shards = list(found.shards(order))
    assert [shard.last - shard.first for shard in shards] == sizes
    assert {shard.images.shape for shard in shards} == {found.shapes[0].shape}
    np.testing.assert_array_equal(list(places(shards)), IMAGES if order is None else IMAGES[order])


def test_from_a_place_on():
    np.testing.assert_array_equal(list(places(Feed(IMAGES, 8, 4).shards(ORDER, 12))), IMAGES[ORDER[12:]])


class Device:
    """A device with a small memory."""

    def memory_stats(self):
        return {"bytes_limit": 320}


def test_what_does_not_fit_is_streamed(monkeypatch):
    assert Feed(IMAGES, 0, 4).shapes[0].shape[0] == 23
    monkeypatch.setattr(feed.jax, "local_devices", lambda: [Device()])
    assert not feed.fits(IMAGES)
    assert Feed(IMAGES, 0, 1).shapes[0].shape[0] == 2  # images of 4 bytes in an eighth of a quarter of 320
    assert feed.fits(IMAGES[:20])
    assert Feed(IMAGES[:20], 0, 4).shapes[0].shape[0] == 20


def test_processes_go_through_the_same_shards(monkeypatch):
    """The device of another process has half of this one's memory."""
    devices = Devices()
    monkeypatch.setattr(feed.jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(devices, "agree", lambda value, reduce: reduce(np.array([value, value / 2])))
    assert Feed(IMAGES[:15], 0, 4).size == 0  # 60 bytes in a quarter of 320
    assert Feed(IMAGES[:15], 0, 4, devices=devices).size == 8
