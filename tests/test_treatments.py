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
from vae_jax.errors import UserError
from vae_jax.treatments import TREATMENTS

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
