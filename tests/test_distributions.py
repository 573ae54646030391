"""Likelihood, posterior and KL against closed forms, Monte Carlo and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.likelihoods import bernoulli_log_prob, pixel_mean, squared_error
from vae_jax.posteriors import DIAGONAL_GAUSSIAN, POINT, diagonal_gaussian_kl
from vae_jax.priors import standard_normal_sample

numbers = st.floats(-5, 5, width=32)


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


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=3))
def test_kl_is_never_negative_and_zero_at_the_prior(values):
    mu, log_var = jnp.asarray(values, jnp.float32).T
    assert float(diagonal_gaussian_kl({"mu": mu[None], "log_var": log_var[None]})[0]) >= -1e-5
    zero = jnp.zeros((1, 3))
    assert float(diagonal_gaussian_kl({"mu": zero, "log_var": zero})[0]) == 0


def test_kl_equals_its_monte_carlo_estimate():
    heads = {"mu": jnp.array([[0.5, -1.0]]), "log_var": jnp.array([[-1.0, 0.7]])}
    many = {name: jnp.repeat(head, 400_000, 0) for name, head in heads.items()}
    z = np.asarray(DIAGONAL_GAUSSIAN.sample(jax.random.key(0), many), np.float64)
    mu, log_var = (np.asarray(heads[name], np.float64) for name in ("mu", "log_var"))
    ratio = 0.5 * (z**2 - (z - mu) ** 2 / np.exp(log_var) - log_var).sum(1)
    error = ratio.std() / len(ratio) ** 0.5
    assert float(diagonal_gaussian_kl(heads)[0]) == pytest.approx(ratio.mean(), abs=5 * error)


def test_samples_have_the_posteriors_moments_and_are_differentiable():
    heads = {"mu": jnp.full((200_000, 1), 2.0), "log_var": jnp.full((200_000, 1), np.log(9.0, dtype=np.float32))}
    z = np.asarray(DIAGONAL_GAUSSIAN.sample(jax.random.key(0), heads))
    assert z.mean() == pytest.approx(2, abs=5 * 3 / len(z) ** 0.5)
    assert z.std() == pytest.approx(3, abs=5 * 3 / (2 * len(z)) ** 0.5)

    def total(mu, log_var):
        return DIAGONAL_GAUSSIAN.sample(jax.random.key(1), {"mu": mu, "log_var": log_var}).sum()

    mu, log_var = jnp.zeros((4, 2)), jnp.ones((4, 2))
    noise = np.asarray(jax.random.normal(jax.random.key(1), (4, 2)))
    gradients = jax.grad(total, (0, 1))(mu, log_var)
    np.testing.assert_allclose(gradients[0], np.ones((4, 2)))
    np.testing.assert_allclose(gradients[1], noise * np.exp(0.5) / 2, rtol=1e-5)


def test_a_point_posterior_is_its_mean():
    heads = {"mu": jnp.arange(4.0).reshape(2, 2)}
    np.testing.assert_array_equal(POINT.sample(jax.random.key(0), heads), heads["mu"])


def test_the_prior():
    z = np.asarray(standard_normal_sample(jax.random.key(0), 100_000, 2))
    assert z.shape == (100_000, 2)
    np.testing.assert_allclose(z.mean(0), 0, atol=5 / len(z) ** 0.5)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=5 * 2**0.5 / len(z) ** 0.5)
