"""Tiles of images: how a batch is split, and that nothing is moved twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.blocks.tiles import tiles, to_features, to_images
from vae_jax.device.platforms import PLATFORMS, built_for
from vae_jax.likelihoods import bernoulli_log_prob

TILE = PLATFORMS["cpu"].tile


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(0, 1), (1, 1), (TILE, 1), (2 * TILE, 2), (1024, 1024 // TILE), (1009, 1), (250, 2), (3 * 67, 3)],
)
def test_a_batch_is_split_into_equal_tiles_where_it_has_a_divisor(batch, expected):
    with built_for(PLATFORMS["cpu"]):
        assert tiles(batch) == expected
    with built_for(PLATFORMS["gpu"]):
        assert tiles(batch) == 1


@pytest.mark.parametrize("batch", [3, 2 * TILE])
def test_features_and_images_are_each_others_inverse(batch):
    images = jnp.asarray(np.random.RandomState(0).rand(batch, 2, 3, 4))
    features = to_features(images)
    count = tiles(batch)
    assert features.shape == (count, 4, 2, 3, batch // count)
    np.testing.assert_array_equal(to_images(features), images)
    last = features[-1, 1, 0, 2, -1]
    assert last == images[-1, 0, 2, 1]


def test_a_likelihood_of_a_decoders_features_moves_nothing():
    features = jnp.ones((2, 1, 4, 4, TILE))
    targets = jnp.full((2, 1, 4, 4, TILE), 0.25)

    def loss(features, targets):
        return bernoulli_log_prob(to_images(features), to_images(targets))

    compiled = jax.jit(loss).lower(features, targets).compile().as_text()
    assert "transpose(" not in compiled
    assert "log" in compiled
