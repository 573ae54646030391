"""Diagnostics: against closed forms, sums written out, and encoders made up so that the answer is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax.config import Config, ModelConfig, TrainConfig
from vae_jax.errors import UserError
from vae_jax.evaluation import diagnostics
from vae_jax.evaluation.latents import make_posteriors
from vae_jax.model.build import build
from vae_jax.model.model import make_model
from vae_jax.posteriors.gaussian import diagonal_log_prob, diagonal_transform

CONFIG = Config(model=ModelConfig(network="mlp", layers=(16,), latent=3), train=TrainConfig(epochs=1))


def pairwise(z, heads):
    every = jnp.broadcast_to(z[:, None], (len(z), *heads["mu"].shape))
    return diagonal_log_prob(
        {}, every, {name: jnp.broadcast_to(head[None], every.shape) for name, head in heads.items()}
    )


def drawn(mu, scale, seed=0):
    """Heads of N(mu, scale²), one z from each, and its log q(z|x) and log p(z)."""
    heads = {"mu": jnp.float32(mu), "log_var": jnp.full(mu.shape, 2 * np.log(scale), jnp.float32)}
    z, log_q = diagonal_transform({}, jax.random.normal(jax.random.key(seed), mu.shape), heads)
    return heads, z, log_q, jax.scipy.stats.norm.logpdf(z).sum(-1)


def test_active_units():
    """Means that vary by s over the images, and one that does not vary at all: variance s², active above 0.01."""
    scale = np.array([1.0, 0.11, 0.09, 0.0])
    units = np.random.RandomState(0).randn(1000, 1)
    units = (units - units.mean()) / units.std()
    variances = diagnostics.unit_variances(jnp.asarray(units * scale + 5, jnp.float32))
    np.testing.assert_allclose(variances, scale**2, rtol=1e-4, atol=1e-12)
    assert diagnostics.active_units(variances) == 2
    assert diagnostics.active_units(variances, threshold=0.0081) >= 2
    assert diagnostics.active_units(variances, threshold=0.5) == 1


def test_log_aggregate_is_the_sum_written_out(monkeypatch):
    """In blocks of 4, the last one filled up: log q(z) by scipy, for all images and for a part of 50."""
    monkeypatch.setattr(diagnostics, "BLOCK", 4)
    mu = np.random.RandomState(1).randn(10, 2)
    heads, z, _, _ = drawn(mu, 0.5)
    density = np.exp(stats.norm.logpdf(np.asarray(z)[:, None], mu[None], 0.5).sum(-1))
    done = []
    found = diagnostics.aggregate_log_prob(pairwise, heads, z, on_progress=lambda *each: done.append(each))
    np.testing.assert_allclose(found, np.log(density.mean(1)), rtol=1e-5)
    assert done == [(4, 10), (8, 10), (10, 10)]
    own = np.diag(density)
    others = (density.sum(1) - own) / 9
    found = diagnostics.aggregate_log_prob(pairwise, heads, z, total=50)
    np.testing.assert_allclose(found, np.log(own / 50 + others * 49 / 50), rtol=1e-5)
    with pytest.raises(ValueError, match="at least the 10"):
        diagnostics.aggregate_log_prob(pairwise, heads, z, total=9)


def test_a_part_of_the_images_leaves_q_without_bias():
    """The mean over all choices of 2 of 4 images, with z's own among them, is the density under all 4, exactly."""
    heads, z, _, _ = drawn(np.random.RandomState(2).randn(4, 1), 0.7)

    def density(*chosen):
        part = {name: head[np.array(chosen)] for name, head in heads.items()}
        return np.exp(diagnostics.aggregate_log_prob(pairwise, part, z[np.array(chosen)], total=4)[0])

    parts = [density(0, other) for other in (1, 2, 3)]
    np.testing.assert_allclose(np.mean(parts), density(0, 1, 2, 3), rtol=1e-5)
    assert np.std(parts) > 0.01


def test_collapsed_posteriors_tell_nothing():
    """q(z|x) = N(m, s²) whatever x: no information, and KL(q(z) ‖ p(z)) has its closed form."""
    found = diagnostics.elbo_surgery(pairwise, *drawn(np.full((4000, 2), 0.5), 0.8))
    assert abs(found.mutual_information) < 1e-5
    kl = 2 * (0.5 * (0.25 + 0.64 - 1) - np.log(0.8))
    # log q − log p has this standard deviation, by quadrature.
    x = np.linspace(-8, 8, 20_001)
    weight = stats.norm.pdf(x, 0.5, 0.8) * (x[1] - x[0])
    ratio = stats.norm.logpdf(x, 0.5, 0.8) - stats.norm.logpdf(x)
    deviation = np.sqrt(2 * (weight @ ratio**2 - (weight @ ratio) ** 2) / 4000)
    assert abs(found.aggregate_kl - kl) < 4 * deviation
    assert found.limit == pytest.approx(np.log(4000))


def test_separated_posteriors_tell_each_image():
    mu = 100.0 * np.arange(300)[:, None]
    found = diagnostics.elbo_surgery(pairwise, *drawn(mu, 1.0))
    assert found.mutual_information == pytest.approx(np.log(300), abs=1e-4)
    found = diagnostics.elbo_surgery(pairwise, *drawn(mu, 1.0), total=1000)
    assert found.mutual_information == pytest.approx(found.limit, abs=1e-4) == np.log(1000)


def test_surgery_of_two_gaussians_by_quadrature():
    """Means at ±1, 500 images at each: the information and the KL are integrals of a mixture of two."""
    found = diagnostics.elbo_surgery(pairwise, *drawn(np.repeat([[-1.0], [1.0]], 1000, 0), 0.6))
    x = np.linspace(-7, 7, 20_001)
    either = [stats.norm.pdf(x, mu, 0.6) for mu in (-1, 1)]
    q = np.mean(either, 0)
    step = x[1] - x[0]
    information = np.mean([(each * np.log(each / q)).sum() for each in either]) * step
    kl = (q * (np.log(q) - stats.norm.logpdf(x))).sum() * step
    for value, expected in ((found.mutual_information, information), (found.aggregate_kl, kl)):
        assert value == pytest.approx(expected, abs=0.05)  # 2,000 draws of figures that spread by less than 0.6


def test_linear_probe_and_neighbours():
    random = np.random.RandomState(0)
    labels = np.arange(300) % 3
    # Classes in a row: one wide dimension of noise, which the probe's standardisation makes no matter of.
    z = np.stack([labels + 0.1 * random.randn(300), 1000 * random.randn(300)], 1).astype(np.float32)
    first, then = slice(0, 150), slice(150, None)
    assert diagnostics.linear_probe(z[first], labels[first], z[then], labels[then]) > 0.95
    assert diagnostics.nearest_neighbours(z[first], labels[first], z[then], labels[then]) < 0.6
    # Two rings: nothing linear tells them apart, the neighbours do.
    angle, ring = 2 * np.pi * random.rand(400), np.arange(400) % 2
    z = ((1 + ring) * np.stack([np.cos(angle), np.sin(angle)])).T.astype(np.float32)
    first, then = slice(0, 300), slice(300, None)
    assert diagnostics.linear_probe(z[first], ring[first], z[then], ring[then]) < 0.7
    assert diagnostics.nearest_neighbours(z[first], ring[first], z[then], ring[then]) > 0.95
    # Latents that say nothing, and fewer images than neighbours.
    constant = np.zeros((4, 2), np.float32)
    assert diagnostics.linear_probe(constant, np.array([0, 1, 1, 1]), constant, np.array([1, 1, 1, 0])) == 0.75
    assert diagnostics.nearest_neighbours(constant, np.array([0, 1, 1, 1]), constant, np.array([1, 1, 1, 0])) == 0.75


@pytest.fixture(scope="module")
def untrained(small_data):
    network, objective = build(CONFIG, small_data.image_shape)
    return network, objective, network.init(jax.random.key(0))


def test_diagnose(untrained, small_data):
    network, objective, variables = untrained
    key, reported = jax.random.key(1), []
    found = diagnostics.diagnose(
        CONFIG, network, variables, small_data.test, key, train=small_data.train, report=reported.append
    )
    assert not reported
    posteriors = make_posteriors(network, variables)(key, small_data.test.images)
    model = make_model(network, objective, variables)
    np.testing.assert_allclose(posteriors.centers, model.encode(small_data.test.images)["mu"], rtol=1e-6)
    np.testing.assert_allclose(found["unit_variances"], np.var(posteriors.centers, 0), rtol=1e-4)
    assert found["active_units"] == sum(variance > 0.01 for variance in found["unit_variances"])
    # The two parts of the KL, sampled at the same z, add up to it; q(z) here by scipy.
    scale = np.exp(np.asarray(posteriors.heads["log_var"]) / 2)
    log_q = stats.norm.logpdf(np.asarray(posteriors.z)[:, None], np.asarray(posteriors.centers)[None], scale[None]).sum(
        -1
    )
    log_p = stats.norm.logpdf(np.asarray(posteriors.z)).sum(-1)
    log_aggregate = np.log(np.exp(log_q).mean(1))
    assert found["mutual_information"] == pytest.approx((np.diag(log_q) - log_aggregate).mean(), abs=1e-4)
    assert found["aggregate_kl"] == pytest.approx((log_aggregate - log_p).mean(), abs=1e-4)
    assert found["mutual_information_limit"] == pytest.approx(np.log(20))
    error = np.square(small_data.test.images / 255 - np.asarray(model.reconstruct(small_data.test.images)))
    assert found["squared_error"] == pytest.approx(error.sum((1, 2, 3)).mean(), rel=1e-5)
    assert found["squared_error_per_pixel"] == pytest.approx(error.mean(), rel=1e-5)
    assert 0 <= found["probe_accuracy"] <= 1
    assert 0 <= found["knn_accuracy"] <= 1
    alone = diagnostics.diagnose(CONFIG, network, variables, small_data.test, key)
    assert alone["probe_accuracy"] is alone["knn_accuracy"] is None


def test_an_autoencoder_has_no_aggregate_posterior(small_data):
    config = replace(CONFIG, objective=replace(CONFIG.objective, name="autoencoder"))
    network, _ = build(config, small_data.image_shape)
    variables, reported = network.init(jax.random.key(0)), []
    with pytest.raises(UserError, match="objective autoencoder, whose code has no density"):
        diagnostics.check_density(config, network)
    found = diagnostics.diagnose(config, network, variables, small_data.test, jax.random.key(1), report=reported.append)
    assert len(reported) == 1
    assert found["aggregate_kl"] is found["mutual_information"] is None
    assert found["squared_error"] > 0


def test_a_posterior_without_a_density_is_named(untrained):
    network, _, _ = untrained
    without = network._replace(posterior=network.posterior._replace(log_prob=None))
    with pytest.raises(UserError, match="posterior diagonal_gaussian, whose density is known at its own samples only"):
        diagnostics.check_density(CONFIG, without)
