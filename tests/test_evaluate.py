"""Evaluation and use: batches change nothing, noise comes from the key, shapes are as promised."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vae_jax
from vae_jax import networks
from vae_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from vae_jax.errors import UserError
from vae_jax.evaluation.evaluator import make_evaluator, means
from vae_jax.keys import make_keys
from vae_jax.model import batches
from vae_jax.model.build import build
from vae_jax.model.model import make_model
from vae_jax.runs.fit import fit

CONFIG = Config(model=ModelConfig(channels=(4, 6), latent=3), train=TrainConfig(epochs=1, batch_size=16))


@pytest.fixture(scope="module")
def trained(small_data):
    return fit(CONFIG, small_data)


def terms(trained, images, latent="sample", key=0, config=CONFIG):
    network, objective = build(config, trained.image_shape)
    evaluator = make_evaluator(config, network, objective, images, latent)
    return evaluator(trained.state.variables, jax.random.key(key))


def test_every_image_has_its_terms_whatever_the_batches(trained, small_data, monkeypatch):
    whole = terms(trained, small_data.train.images, "mean")
    monkeypatch.setattr(batches, "BATCH", 16)  # 70 images: the last batch is filled up and cut again
    for name, found in terms(trained, small_data.train.images, "mean").items():
        assert found.shape == (70,)
        np.testing.assert_allclose(found, whole[name], rtol=1e-5)
    alone = terms(trained, small_data.train.images[7:8], "mean")
    np.testing.assert_allclose(alone["loss"][0], whole["loss"][7], rtol=1e-5)


def test_noise_comes_from_the_key_and_differs_between_batches(trained, small_data, monkeypatch):
    images = np.repeat(small_data.test.images[:1], 8, 0)
    first, again, other = (terms(trained, images, key=key)["loss"] for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()
    monkeypatch.setattr(batches, "BATCH", 4)
    losses = np.asarray(terms(trained, images)["loss"]).reshape(2, 4)
    assert len(np.unique(losses)) == 8
    with pytest.raises(UserError, match="sample or mean; found 'mode'"):
        terms(trained, images, "mode")


def test_streaming_the_images_changes_no_term(trained, small_data, monkeypatch):
    monkeypatch.setattr(batches, "BATCH", 4)
    images = small_data.train.images[:23]
    whole = terms(trained, images)
    streamed = replace(CONFIG, train=replace(CONFIG.train, shard_images=8))
    for name, found in terms(trained, images, config=streamed).items():
        assert found.shape == (23,)
        np.testing.assert_array_equal(found, whole[name])


def test_the_mean_is_the_sample_without_noise(trained, small_data):
    images = small_data.test.images
    mean = terms(trained, images, "mean")
    samples = np.mean([np.asarray(terms(trained, images, key=key)["reconstruction"]) for key in range(20)], 0)
    assert mean["reconstruction"].mean() < samples.mean()
    np.testing.assert_allclose(mean["kl"], terms(trained, images)["kl"], rtol=1e-6)


def test_fit_reports_what_the_evaluator_finds(trained, small_data):
    figures = means(terms_with_run_key(trained, small_data.test.images))
    assert list(figures) == ["loss", "reconstruction", "kl"]
    assert figures == {name: trained.history[-1][f"test_{name}"] for name in figures}


def terms_with_run_key(trained, images):
    network, objective = build(CONFIG, trained.image_shape)
    evaluator = make_evaluator(CONFIG, network, objective, images)
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


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (np.int32, r"images: expected uint8 levels 0 to 255 or floats in \[0, 1\]; found int32$"),
        (lambda images: images.astype(str).tolist(), r"found <U3$"),
        (lambda images: images / 200, r"images: expected .* floats in \[0, 1\]; found 0\.\d+ to 1\.275$"),
        (lambda images: jnp.asarray(images / 255 - 1), r"found -\d\.\d+ to 0\.0$"),
        (lambda images: np.where(images == images[0, 0, 0, 0], np.nan, 0.5), r"found nan to nan$"),
        (lambda images: np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0))), r"\(n, 8, 8, 1\) .*found \(20, 9, 9, 1\)$"),
        (lambda images: images.repeat(3, 3), r"found \(20, 8, 8, 3\)"),
        (lambda images: images[..., 0], r"found \(20, 8, 8\)$"),
        (lambda images: images[0], r"found \(8, 8, 1\); one image alone is images\[None\]"),
        (lambda images: images[:0], r"with n at least 1; found \(0, 8, 8, 1\)"),
    ],
)
def test_images_of_another_kind_are_refused(trained, small_data, change, found):
    model = vae_jax.use(trained)
    for function in (model.encode, model.reconstruct):
        with pytest.raises(UserError, match=found):
            function(change(small_data.test.images))


def test_floats_are_taken_as_they_are(trained, small_data):
    images = small_data.test.images
    model = vae_jax.use(trained)
    for floats in (np.float32(images / 255), images / 255, (images / 255).tolist(), jnp.asarray(images / 255)):
        np.testing.assert_allclose(model.reconstruct(floats), model.reconstruct(images), rtol=1e-6)
    dynamic = replace(CONFIG, data=DataConfig(treatment="dynamic"))
    network, objective = build(dynamic, trained.image_shape)
    drawing = make_model(network, objective, trained.state.variables)
    np.testing.assert_allclose(drawing.encode(images / 255)["mu"], model.encode(images)["mu"], rtol=1e-5, atol=1e-6)
    assert not np.allclose(drawing.encode(images)["mu"], model.encode(images)["mu"], atol=1e-3)


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_a_model_in_use_is_differentiable_and_can_be_transformed(small_data, float64, network):
    """Inside vmap, jit, jacfwd and grad it gives what it gives outside, and derivatives are those of differences."""
    sizes = {} if network == "mlp" else {"channels": (4, 6)}
    config = Config(model=ModelConfig(network=network, activation="tanh", latent=3, **sizes))
    parts = build(config, small_data.image_shape)
    model = make_model(*parts, parts[0].init(jax.random.key(0)))

    def decode_one(z):
        return model.decode(z[None])[0]

    z, direction = np.random.RandomState(1).randn(2, 5, 3)
    pictures = model.decode(z)
    for decode in (jax.vmap(decode_one), jax.jit(model.decode), jax.jit(jax.vmap(decode_one))):
        np.testing.assert_allclose(decode(z), pictures, rtol=1e-12)
    jacobians = jax.vmap(jax.jacfwd(decode_one))(z)
    assert jacobians.shape == (5, 8, 8, 1, 3)
    step = 1e-5
    differences = (model.decode(z + step * direction) - model.decode(z - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.einsum("nhwcz,nz->nhwc", jacobians, direction), differences, atol=1e-8)

    @jax.jit
    def code(images):
        return jnp.sin(model.encode(images)["mu"]).sum()

    images = 0.1 + 0.8 * small_data.test.images[:4] / 255
    change = np.random.RandomState(2).randn(*images.shape)
    slope = (jax.grad(code)(images) * change).sum()
    assert abs(slope) > 1e-3
    difference = (code(images + step * change) - code(images - step * change)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    np.testing.assert_allclose(code(images), jnp.sin(model.encode(images)["mu"]).sum(), rtol=1e-10)


@pytest.mark.parametrize("treatment", ["grey", "dynamic"])
def test_all_images_at_once_inside_a_transformation_are_as_in_batches(trained, small_data, monkeypatch, treatment):
    network, objective = build(replace(CONFIG, data=DataConfig(treatment=treatment)), trained.image_shape)
    monkeypatch.setattr(batches, "BATCH", 32)
    model = make_model(network, objective, trained.state.variables)
    images = small_data.train.images
    np.testing.assert_allclose(jax.jit(model.reconstruct)(images), model.reconstruct(images), rtol=1e-5)
    key = jax.random.key(3)
    np.testing.assert_allclose(jax.jit(model.sample, static_argnums=1)(key, 40), model.sample(key, 40), rtol=1e-5)


def test_what_is_known_of_a_traced_array_is_checked(trained, small_data):
    model = vae_jax.use(trained)
    images = small_data.test.images / 255
    with pytest.raises(UserError, match=r"images: expected shape \(n, 8, 8, 1\) .*one image alone is images\[None\]"):
        jax.vmap(model.encode)(images)
    with pytest.raises(UserError, match=r"z: expected shape \(n, 3\)"):
        jax.jit(model.decode)(np.zeros((2, 4)))
    with pytest.raises(UserError, match="labels: expected none"):
        jax.jit(model.encode)(images, np.zeros(20, int))
    with pytest.raises(UserError, match="n: expected a whole number, known before anything is traced"):
        jax.jit(model.sample)(jax.random.key(0), 3)
    assert jax.jit(model.encode)(2 * images)["mu"].shape == (20, 3)  # numbers are not known there


def test_labels_inside_a_transformation(small_data):
    config = replace(CONFIG, model=replace(CONFIG.model, classes=10))
    parts = build(config, small_data.image_shape)
    model = make_model(*parts, parts[0].init(jax.random.key(0)))
    z, labels = np.random.RandomState(0).randn(4, 3), np.arange(4)

    def decode_one(z, label):
        return model.decode(z[None], label[None])[0]

    np.testing.assert_allclose(jax.vmap(decode_one)(z, labels), model.decode(z, labels), rtol=1e-5)
    for wrong in (labels[:3], labels[:, None], labels / 2):
        with pytest.raises(UserError, match="labels: expected 4 whole numbers"):
            jax.jit(model.decode)(z, wrong)


def test_latents_of_another_kind_are_refused(trained):
    model = vae_jax.use(trained)
    for z, found in (
        (np.zeros((2, 4)), r"z: expected shape \(n, 3\) with n at least 1; found \(2, 4\)$"),
        (np.zeros(3), r"found \(3,\); one z alone is z\[None\]"),
        (np.zeros((0, 3)), r"found \(0, 3\)"),
        ([["a", "b", "c"]], "z: expected real numbers; found <U1"),
        (np.zeros((1, 3), complex), "z: expected real numbers; found complex128"),
    ):
        with pytest.raises(UserError, match=found):
            model.decode(z)
    np.testing.assert_array_equal(model.decode([[0, 1, 2]]), model.decode(jnp.array([[0.0, 1.0, 2.0]])))
    with pytest.raises(UserError, match="n: expected at least 1; found 0"):
        model.sample(jax.random.key(0), 0)


@pytest.mark.parametrize("treatment", ["grey", "dynamic"])
def test_few_images_take_a_small_batch_and_come_out_as_among_many(trained, small_data, monkeypatch, treatment):
    """Each image is treated the same however many others are with it, and a few programs serve every number."""
    network, objective = build(replace(CONFIG, data=DataConfig(treatment=treatment)), trained.image_shape)
    sizes = []

    def apply(variables, function, *arguments, **options):
        """The network, watched: how many images or z it is given at once."""

        def look(model):
            return function(
                model._replace(
                    encode=lambda images: sizes.append(len(images)) or model.encode(images),
                    decode=lambda z: sizes.append(len(z)) or model.decode(z),
                )
            )

        return network.apply(variables, look, *arguments, **options)

    monkeypatch.setattr(batches, "BATCH", 50)
    model = make_model(network._replace(apply=apply), objective, trained.state.variables)
    images = small_data.train.images
    whole = model.encode(images)["mu"]
    pictures = model.decode(whole)
    assert sizes == [50, 32, 50, 32]  # of 70
    sizes.clear()
    for count in (1, 2, 3, 4, 5, 7, 33, 49, 50):
        mu = model.encode(images[:count])["mu"]
        np.testing.assert_allclose(mu, whole[:count], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(model.decode(np.asarray(mu)), pictures[:count], rtol=1e-4, atol=1e-5)
    assert sizes == [1, 1, 2, 2, 4, 4, 8, 8]
    if treatment == "dynamic":  # the second batch's noise is another one's
        assert not np.allclose(model.encode(images[50:])["mu"], whole[50:])


def test_an_autoencoder_has_no_prior_to_sample_from(small_data):
    config = replace(CONFIG, objective=replace(CONFIG.objective, name="autoencoder"))
    model = vae_jax.use(fit(config, small_data))
    assert model.sample is None
    assert set(model.encode(small_data.test.images)) == {"mu"}
