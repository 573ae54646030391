"""What is done to an image's levels: the probabilities, the ranges, and what stays the same."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import data
from vae_jax.config import DataConfig
from vae_jax.data import binarize as static
from vae_jax.data.binarize import binarize
from vae_jax.data.treatments import TREATMENTS
from vae_jax.errors import UserError

LEVELS = np.array([0, 1, 51, 128, 254, 255], np.uint8)
MANY = np.broadcast_to(LEVELS, (100_000, 6))


def test_every_treatment_has_its_name_where_data_are_loaded():
    assert set(static.TREATMENTS) == set(TREATMENTS)


def test_grey_is_the_level_divided_by_255():
    np.testing.assert_allclose(TREATMENTS["grey"](None, jnp.asarray(LEVELS)), LEVELS / 255, rtol=1e-6)
    np.testing.assert_array_equal(TREATMENTS["static"](None, jnp.asarray(LEVELS[[0, -1]])), [0, 1])


@pytest.mark.parametrize(
    "drawn", [lambda: TREATMENTS["dynamic"](jax.random.key(0), jnp.asarray(MANY)), lambda: binarize(MANY, 0) / 255]
)
def test_a_binarised_pixel_is_one_with_its_levels_probability(drawn):
    found = np.asarray(drawn())
    assert set(np.unique(found)) == {0, 1}
    p = LEVELS / 255
    assert (np.abs(found.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / 100_000)).all()  # black and white exactly


def test_dynamic_binarisation_is_fresh_for_each_key_and_repeats_for_the_same():
    levels = jnp.asarray(MANY)
    first, again, other = (np.asarray(TREATMENTS["dynamic"](jax.random.key(key), levels)) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_dequantised_levels_are_uniform_within_their_bin():
    found = np.asarray(TREATMENTS["dequantized"](jax.random.key(0), jnp.asarray(MANY)), np.float64) * 256 - LEVELS
    assert found.min() > -1e-4
    assert found.max() < 1 + 1e-4
    np.testing.assert_allclose(found.mean(0), 0.5, atol=5 / (12 * 100_000) ** 0.5)
    np.testing.assert_allclose(found.var(0), 1 / 12, rtol=0.02)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dequantised_levels_stay_below_1_and_in_their_bins(monkeypatch, dtype):
    """At the largest number that is drawn, which the sum with 255 would round up to 256."""
    with jax.enable_x64(dtype is np.float64):
        highest = dtype(1) - jnp.finfo(dtype).eps
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, highest))
        levels = jnp.arange(256, dtype=jnp.uint8)
        highest_of_each = np.asarray(jax.jit(TREATMENTS["dequantized"])(jax.random.key(0), levels))
        binarised = np.asarray(TREATMENTS["dynamic"](jax.random.key(0), levels))
    assert highest_of_each.dtype == dtype
    assert highest_of_each[-1] == np.nextafter(dtype(1), dtype(0))
    assert (highest_of_each <= (np.arange(256) + 1) / 256).all()
    assert (binarised == (np.arange(256) == 255)).all()


def test_dequantised_levels_are_below_1_among_a_million():
    drawn = TREATMENTS["dequantized"](jax.random.key(1), jnp.full(1_000_000, 255, jnp.uint8))
    assert 255 / 256 <= float(drawn.min()) < float(drawn.max()) < 1


def test_static_binarisation_is_done_once_with_the_same_result_each_time():
    config = DataConfig(image_size=8, treatment="static", validation=50.0)
    first, again = data.load(config), data.load(config)
    for split in ("train", "validation", "test"):
        images = getattr(first, split).images
        assert set(np.unique(images)) == {0, 255}
        np.testing.assert_array_equal(images, getattr(again, split).images)
        grey = getattr(data.load(replace(config, treatment="grey")), split).images
        assert not images[grey == 0].any()
        assert (images[grey == 255] == 255).all()
    with pytest.raises(UserError, match=r"data\.treatment: expected one of grey, .*found 'binary'"):
        data.load(replace(config, treatment="binary"))
