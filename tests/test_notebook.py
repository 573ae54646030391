"""What a notebook shows: a table of a trained model, and a picture of what it draws."""

import io
from dataclasses import replace
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from PIL import Image

import vae_jax
from vae_jax import networks
from vae_jax.config import Config, ModelConfig, ObjectiveConfig
from vae_jax.model.build import build
from vae_jax.model.model import Model
from vae_jax.training.start import start_from

CONFIG = Config(model=ModelConfig(network="mlp", latent=3))


def trained(config=CONFIG, shape=(8, 8, 1), history=()):
    network, objective = build(config, shape)
    variables = network.init(jax.random.key(0))
    return vae_jax.Trained(config, shape, start_from(config, objective, variables, 0), list(history))


def cells(html):
    """A table's rows, each heading with its text."""
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed(html)
    return dict(zip(texts[::2], texts[1::2], strict=True))


def test_a_trained_model_is_a_table():
    history = [{"epoch": 1, "train_loss": 200.0, "test_loss": 1234.567, "train_seconds": 1.0, "images_per_second": 9.0}]
    model = trained(history=history)
    rows = cells(model._repr_html_())
    parameters = networks.count_parameters(model.state.variables.params)
    assert rows == {
        "data": "digits, 8×8×1, grey",
        "network": "mlp, 3 latent dimensions",
        "parameters": f"{parameters:,}",
        "objective": "vae",
        "posterior": "diagonal_gaussian",
        "prior": "standard_normal",
        "likelihood": "bernoulli",
        "trained": "1 epoch, 0 steps, seed 0",
        "train loss": "200.00 nats per image",
        "test loss": "1,234.57 nats per image",
    }
    assert repr(model).startswith("Trained(data: digits, 8×8×1, grey; objective: vae; network: mlp")
    assert len(repr(model)) < 200


def test_what_has_no_prior_or_history_is_a_table_without_them():
    rows = cells(trained(replace(CONFIG, objective=ObjectiveConfig(name="autoencoder")))._repr_html_())
    assert set(rows) == {"data", "network", "parameters", "objective", "trained"}
    named = trained()._replace(config=replace(CONFIG, data=replace(CONFIG.data, source="tfds", name="<b>&")))
    assert "<b>" not in named._repr_html_()
    assert cells(named._repr_html_())["data"].startswith("<b>&")


@pytest.mark.parametrize("classes", [0, 3])
def test_a_model_is_a_picture_of_its_samples(classes):
    model = vae_jax.use(trained(replace(CONFIG, model=replace(CONFIG.model, classes=classes))))
    assert model.classes == classes
    with Image.open(io.BytesIO(model._repr_png_())) as image:
        drawn = np.asarray(image)
    labels = np.arange(32) % classes if classes else None
    first = np.rint(np.asarray(model.sample(jax.random.key(0), 32, labels))[0, :, :, 0] * 255)
    scale = 192 // 8
    np.testing.assert_array_equal(drawn[2 : 2 + 8 * scale : scale, 2 : 2 + 8 * scale : scale], first)
    assert repr(model) == f"Model(latent=3, classes={classes})"


def test_what_draws_no_pictures_shows_none():
    model = vae_jax.use(trained(replace(CONFIG, objective=ObjectiveConfig(name="autoencoder"))))
    assert model._repr_png_() is None
    assert repr(model) == "Model(latent=3, classes=0, without a prior)"

    def sample(key, n, labels=None):
        return np.zeros((n, 4, 4, 5))

    assert Model(sample, sample, sample, sample, 2)._repr_png_() is None
