"""Likelihood against closed forms and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.likelihoods import bernoulli_log_prob, pixel_mean, squared_error


def images_of(values):
    return jnp.asarray(values, float).reshape(1, 1, -1, 1)


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=4, max_size=4))
def test_bernoulli_is_minus_the_cross_entropy(pixels):
    logits, levels = np.array(pixels).T
    p = 1 / (1 + np.exp(-logits))
    expected = (levels * np.log(p) + (1 - levels) * np.log1p(-p)).sum()
    assert float(bernoulli_log_prob(images_of(logits), images_of(levels))[0]) == pytest.approx(
        expected, rel=1e-4, abs=1e-4
    )


@pytest.mark.parametrize("logit", [1e4, -1e4, 0.0, 88.8, -103.0])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_bernoulli_and_its_gradient_are_finite_and_right_at_extreme_logits(logit, level):
    value, gradient = jax.value_and_grad(lambda x: bernoulli_log_prob(images_of([x]), images_of([level]))[0])(logit)
    assert float(value) == pytest.approx(level * logit - np.logaddexp(0, logit), rel=1e-6)
    assert float(gradient) == pytest.approx(level - 1 / (1 + np.exp(-np.clip(logit, -700, 700))), abs=1e-6)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_squared_error_and_its_gradient_are_finite_at_extreme_logits(logit):
    value, gradient = jax.value_and_grad(lambda x: squared_error(images_of([x]), images_of([0.25]))[0])(logit)
    assert float(value) == pytest.approx((0.25 - (logit > 0)) ** 2)
    assert float(gradient) == 0


def test_squared_error_sums_over_pixels():
    error = squared_error(images_of([0.0, 0.0, 0.0]), images_of([0.5, 0.0, 1.0]))
    np.testing.assert_allclose(error, [0.5])
    np.testing.assert_allclose(pixel_mean(images_of([0.0, np.log(3)])).ravel(), [0.5, 0.75], rtol=1e-6)
