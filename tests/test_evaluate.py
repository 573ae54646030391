"""Evaluation and use: batches change nothing, noise comes from the key, shapes are as promised."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import vae_jax
from vae_jax import evaluate, train
from vae_jax.config import Config, ModelConfig, TrainConfig
from vae_jax.errors import UserError
from vae_jax.keys import make_keys

CONFIG = Config(model=ModelConfig(channels=(4, 6), latent=3), train=TrainConfig(epochs=1, batch_size=16))


@pytest.fixture(scope="module")
def trained(small_data):
    return train.fit(CONFIG, small_data)


def terms(trained, images, latent="sample", key=0, config=CONFIG):
    network, objective = train.build(config, trained.image_shape)
    evaluator = evaluate.make_evaluator(config, network, objective, images, latent)
    return evaluator(trained.state.variables, jax.random.key(key))


def test_every_image_has_its_terms_whatever_the_batches(trained, small_data, monkeypatch):
    whole = terms(trained, small_data.train.images, "mean")
    monkeypatch.setattr(evaluate, "BATCH", 16)  # 70 images: the last batch is filled up and cut again
    for found, expected in zip(terms(trained, small_data.train.images, "mean"), whole, strict=True):
        assert found.shape == (70,)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = terms(trained, small_data.train.images[7:8], "mean")
    np.testing.assert_allclose(alone.loss[0], whole.loss[7], rtol=1e-5)


def test_noise_comes_from_the_key_and_differs_between_batches(trained, small_data, monkeypatch):
    images = np.repeat(small_data.test.images[:1], 8, 0)
    first, again, other = (terms(trained, images, key=key).loss for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()
    monkeypatch.setattr(evaluate, "BATCH", 4)
    batches = np.asarray(terms(trained, images).loss).reshape(2, 4)
    assert len(np.unique(batches)) == 8
    with pytest.raises(UserError, match="sample or mean; found 'mode'"):
        terms(trained, images, "mode")


def test_streaming_the_images_changes_no_term(trained, small_data, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 4)
    images = small_data.train.images[:23]
    whole = terms(trained, images)
    streamed = replace(CONFIG, train=replace(CONFIG.train, shard_images=8))
    for found, expected in zip(terms(trained, images, config=streamed), whole, strict=True):
        assert found.shape == (23,)
        np.testing.assert_array_equal(found, expected)


def test_the_mean_is_the_sample_without_noise(trained, small_data):
    images = small_data.test.images
    mean = terms(trained, images, "mean")
    samples = np.mean([np.asarray(terms(trained, images, key=key).reconstruction) for key in range(20)], 0)
    assert mean.reconstruction.mean() < samples.mean()
    np.testing.assert_allclose(mean.kl, terms(trained, images).kl, rtol=1e-6)


def test_fit_reports_what_the_evaluator_finds(trained, small_data):
    loss, reconstruction, kl = evaluate.means(terms_with_run_key(trained, small_data.test.images))
    figures = trained.history[-1]
    assert (figures["test_loss"], figures["test_reconstruction"], figures["test_kl"]) == (loss, reconstruction, kl)


def terms_with_run_key(trained, images):
    network, objective = train.build(CONFIG, trained.image_shape)
    evaluator = evaluate.make_evaluator(CONFIG, network, objective, images)
    return evaluator(trained.state.variables, make_keys(CONFIG.seed).evaluate)


def test_a_model_in_use(trained, small_data):
    model = vae_jax.use(trained)
    heads = model.encode(small_data.train.images)
    assert {name: head.shape for name, head in heads.items()} == {"mu": (70, 3), "log_var": (70, 3)}
    pictures = model.reconstruct(small_data.train.images)
    assert pictures.shape == (70, 8, 8, 1)
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    np.testing.assert_allclose(pictures, model.decode(heads["mu"]), rtol=1e-6)
    samples = model.sample(jax.random.key(0), 5)
    assert samples.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(samples, model.sample(jax.random.key(0), 5))
    assert not np.array_equal(samples, model.sample(jax.random.key(1), 5))
    assert not np.array_equal(samples[0], samples[1])


def test_pictures_in_0_to_1_are_not_taken_for_levels(trained, small_data):
    with pytest.raises(UserError, match="expected uint8 levels 0 to 255; found float32"):
        vae_jax.use(trained).encode(np.float32(small_data.test.images / 255))


def test_an_autoencoder_has_no_prior_to_sample_from(small_data):
    config = replace(CONFIG, objective=replace(CONFIG.objective, name="autoencoder"))
    model = vae_jax.use(train.fit(config, small_data))
    assert model.sample is None
    assert set(model.encode(small_data.test.images)) == {"mu"}
