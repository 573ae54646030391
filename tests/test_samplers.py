"""Samplers fitted to latents: they draw from what they were fitted to, and the same for the same key."""

import jax
import numpy as np
import pytest

from vae_jax.cli.sample import SOURCES
from vae_jax.config import Config, ModelConfig, ObjectiveConfig
from vae_jax.errors import UserError
from vae_jax.evaluation import samplers
from vae_jax.model.build import build
from vae_jax.model.model import make_model


def two_islands(count):
    """Half N((−3, 0), R), half N((3, 6), R), with correlated R: far from a standard normal, and of another scale."""
    random = np.random.RandomState(0)
    root = np.array([[0.5, 0.0], [0.4, 0.3]])
    middle = np.array([[-3.0, 0.0], [3.0, 6.0]])[np.arange(count) % 2]
    return np.float32(middle + random.randn(count, 2) @ root.T), root @ root.T


def test_the_command_line_knows_them_all():
    assert ("prior", *samplers.SAMPLERS) == SOURCES


def check_islands(z, covariance, tolerance):
    right = z[:, 0] > 0
    np.testing.assert_allclose(right.mean(), 0.5, atol=tolerance)
    for island, middle in ((z[~right], (-3, 0)), (z[right], (3, 6))):
        np.testing.assert_allclose(island.mean(0), middle, atol=tolerance)
        np.testing.assert_allclose(np.cov(island.T), covariance, atol=tolerance)


def test_gmm_draws_what_it_was_fitted_to():
    """4,000 draws, of a spread below 0.6: means to 0.06 and covariances, at most 0.25, to the same are 4 deviations."""
    latents, covariance = two_islands(4000)
    sample = samplers.gaussian_mixture(latents, jax.random.key(0), components=2)
    check_islands(np.asarray(sample(jax.random.key(1), 4000)), covariance, 0.06)
    np.testing.assert_array_equal(sample(jax.random.key(2), 5), sample(jax.random.key(2), 5))
    assert (np.asarray(sample(jax.random.key(2), 5)) != sample(jax.random.key(3), 5)).all()


def test_gmm_of_few_latents():
    z = samplers.gaussian_mixture(np.float32([[1, 2], [3, 4]]), jax.random.key(0))(jax.random.key(1), 50)
    assert np.abs(np.asarray(z)[:, None] - np.float32([[1, 2], [3, 4]])).max(-1).min(-1).max() < 0.01


def test_second_stage_of_a_gaussian():
    """What a small VAE can hold exactly, with another middle and scale: correlated, of variances 4 and 0.09."""
    root = np.array([[2.0, 0.0], [0.2, 0.2236]])
    latents = np.float32(np.array([50.0, -2.0]) + np.random.RandomState(0).randn(2000, 2) @ root.T)
    done = []
    sample = samplers.second_stage(latents, jax.random.key(0), lambda *each: done.append(each), steps=1000)
    assert done[-1] == (1000, 1000)
    assert len(done) == samplers.CALLS
    z = np.asarray(sample(jax.random.key(1), 4000))
    np.testing.assert_allclose((z.mean(0) - latents.mean(0)) / latents.std(0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(z.T), np.cov(latents.T), rtol=0.15)
    np.testing.assert_array_equal(sample(jax.random.key(2), 5), sample(jax.random.key(2), 5))


def test_second_stage_of_two_islands():
    """From one standard normal to both, equally often: few draws lie between, where one Gaussian puts many more."""
    latents, _ = two_islands(2000)
    sample = samplers.second_stage(latents, jax.random.key(0), steps=1000)
    z = np.asarray(sample(jax.random.key(1), 4000))

    def outside(z):
        return (np.linalg.norm(z[:, None] - np.array([[-3, 0], [3, 6]]), axis=-1).min(-1) > 2.5).mean()

    gaussian = np.random.RandomState(1).multivariate_normal(latents.mean(0), np.cov(latents.T), 4000)
    print(outside(z), outside(gaussian))
    assert outside(latents) < 0.001
    assert outside(z) < outside(gaussian) / 3
    np.testing.assert_allclose((z[:, 0] > 0).mean(), 0.5, atol=0.05)


def test_latents_that_are_not_finite():
    latents = np.float32([[1, 2], [np.nan, 4]])
    for fit in samplers.SAMPLERS.values():
        with pytest.raises(UserError, match="finite numbers"):
            fit(latents, jax.random.key(0))


def test_an_autoencoder_becomes_generative(small_data):
    """Fitted to its codes: with a component for each of two of them, every z drawn is one of these codes."""
    config = Config(
        model=ModelConfig(network="mlp", layers=(16,), latent=3), objective=ObjectiveConfig(name="autoencoder")
    )
    network, objective = build(config, small_data.image_shape)
    variables = network.init(jax.random.key(0))
    images = small_data.train.images[:2]
    sample = samplers.fit_sampler("gmm", network, variables, images, jax.random.key(1))
    z = np.asarray(sample(jax.random.key(2), 20))
    codes = np.asarray(make_model(network, objective, variables).encode(images)["mu"])
    assert np.abs(z[:, None] - codes).max(-1).min(-1).max() < 0.01
    with pytest.raises(UserError, match="source: expected one of gmm, second_stage; found 'kde'"):
        samplers.fit_sampler("kde", network, variables, images, jax.random.key(1))


def test_a_posterior_is_drawn_from_not_its_mean(small_data):
    """With one image many times, what is fitted is that image's posterior."""
    config = Config(model=ModelConfig(network="mlp", layers=(16,), latent=1))
    network, objective = build(config, small_data.image_shape)
    variables = network.init(jax.random.key(0))
    images = np.repeat(small_data.train.images[:1], 2000, 0)
    z = np.asarray(samplers.fit_sampler("gmm", network, variables, images, jax.random.key(1))(jax.random.key(2), 2000))
    heads = make_model(network, objective, variables).encode(images[:1])
    scale = float(np.exp(heads["log_var"][0, 0] / 2))
    assert z.mean() == pytest.approx(float(heads["mu"][0, 0]), abs=6 * scale / np.sqrt(2000))
    assert z.std() == pytest.approx(scale, rel=6 / np.sqrt(4000))
