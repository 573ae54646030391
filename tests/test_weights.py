"""A trained model in one file comes back bit for bit, and a file that is not that is refused in one line."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

import vae_jax
from vae_jax.config import Config, DataConfig, ModelConfig, PosteriorConfig, PriorConfig, TrainConfig
from vae_jax.errors import UserError
from vae_jax.model.build import build
from vae_jax.training.start import start_from

CONFIG = Config(seed=4, model=ModelConfig(channels=(4, 6), latent=3))


def untrained(config=CONFIG, shape=(8, 8, 1), names=None):
    """A model with parameters and running statistics that no initialisation gives."""
    network, objective = build(config, shape)
    variables = network.init(jax.random.key(1))
    random = np.random.RandomState(0)
    variables = jax.tree.map(lambda leaf: leaf + jnp.asarray(random.rand(*leaf.shape), leaf.dtype), variables)
    return vae_jax.Trained(config, shape, start_from(config, objective, variables, 0), [], names)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return vae_jax.save_weights(untrained(), tmp_path_factory.mktemp("weights") / "model.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        Config(
            model=ModelConfig(network="mlp", latent=3, classes=2),
            posterior=PosteriorConfig(name="iaf"),
            prior=PriorConfig(name="mixture", components=4),
        ),
    ],
    ids=["convolutional", "mlp"],
)
def test_it_comes_back_bit_for_bit(tmp_path, small_data, config):
    trained = untrained(config, names=("zero", "one"))
    path = vae_jax.save_weights(trained, tmp_path / "model.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = vae_jax.load_weights(path)
    assert (loaded.config, loaded.image_shape, loaded.class_names) == (config, (8, 8, 1), ("zero", "one"))
    assert jax.tree.structure(loaded.state) == jax.tree.structure(trained.state)
    for before, after in zip(jax.tree.leaves(trained.state), jax.tree.leaves(loaded.state), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    labels = small_data.test.labels % 2 if config.model.classes else None
    first, second = (vae_jax.use(model).reconstruct(small_data.test.images, labels) for model in (trained, loaded))
    np.testing.assert_array_equal(first, second)


def test_the_file_has_names_by_path_and_nothing_of_this_machine(tmp_path, file):
    with safe_open(file, framework="numpy") as stored:
        metadata, names = stored.metadata(), set(stored.keys())
    variables = untrained().state.variables
    assert len(names) == len(jax.tree.leaves(variables))
    assert "params.encoder.fc_mu.kernel" in names
    assert sum(name.endswith(".encoder.BN1.mean") for name in names) == 1
    assert (metadata["format"], metadata["version"]) == ("vae_jax", "1")
    placed = replace(
        CONFIG, data=DataConfig(source="mnist", manual_dir="/home/me/secret"), train=TrainConfig(start="/home/me/first")
    )
    path = vae_jax.save_weights(untrained(placed), tmp_path / "model.safetensors")
    assert b"/home/me" not in path.read_bytes()
    assert vae_jax.load_weights(path).config == replace(CONFIG, data=DataConfig(source="mnist"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda arrays, about: arrays.pop("params.encoder.fc_mu.bias"), "missing: params.encoder.fc_mu.bias$"),
        (lambda arrays, about: arrays.update(more=np.zeros(2)), "not expected: more$"),
        (
            lambda arrays, about: arrays.update({"params.encoder.fc_mu.bias": np.zeros(5, np.float32)}),
            r"of another shape: params.encoder.fc_mu.bias \(expected 3, found 5\)$",
        ),
        (
            lambda arrays, about: arrays.update({"params.encoder.fc_mu.bias": np.zeros(3)}),
            r"of another type: params.encoder.fc_mu.bias \(expected float32, found float64\)$",
        ),
        (
            lambda arrays, about: about["options"].update({"model.wings": 2}),
            "model.wings: expected an option of a configuration; found none of that name",
        ),
        (lambda arrays, about: about["options"].update(name="article"), "options .*; found name$"),
        (lambda arrays, about: about["options"].update({"model.latent": -1}), "model.latent: expected .*found -1"),
        (lambda arrays, about: about["options"].update({"model.latent": [[]]}), "model.latent: "),
        (lambda arrays, about: about.pop("options"), "metadata, model: options: expected an object; found nothing"),
        (lambda arrays, about: about.update(image_shape=[8, 8]), r"image_shape: expected height, width, channels"),
        (
            lambda arrays, about: about["options"].update({"model.network": "evil.py:Network"}),
            "expected a model of the package's own parts; found evil.py:Network, .* use trust_code=True$",
        ),
    ],
)
def test_another_model_is_refused(tmp_path, file, change, expected):
    arrays = load_file(file)
    with safe_open(file, framework="numpy") as stored:
        metadata = stored.metadata()
    about = json.loads(metadata["model"])
    change(arrays, about)
    path = tmp_path / "changed.safetensors"
    path.write_bytes(save(arrays, {**metadata, "model": json.dumps(about)}))
    with pytest.raises(UserError, match=expected) as refused:
        vae_jax.load_weights(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_another_file_is_refused(tmp_path, file):
    path = tmp_path / "other.safetensors"
    with pytest.raises(UserError, match="expected a file of weights; found no such file"):
        vae_jax.load_weights(path)
    for metadata, found in (
        (None, "found format none, version none$"),
        ({"format": "pt"}, "found format pt, version none; vae-jax import takes PyTorch's$"),
        ({"format": "vae_jax", "version": "2"}, "version 1; found format vae_jax, version 2$"),
        ({"format": "vae_jax", "version": "1"}, "metadata, model: expected JSON"),
    ):
        path.write_bytes(save({"a": np.zeros(2)}, metadata))
        with pytest.raises(UserError, match=found):
            vae_jax.load_weights(path)
    for content in (b"", b"nothing of the kind", file.read_bytes()[:-5], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"expected a (whole )?safetensors file"):
            vae_jax.load_weights(path)
    with pytest.raises(UserError, match=r"expected a file name ending in \.safetensors; found \.npz"):
        vae_jax.save_weights(untrained(), tmp_path / "model.npz")


def test_code_runs_once_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tall.py").write_text(
        "from vae_jax.priors import Prior\n"
        "import jax, jax.numpy as jnp\n"
        "def tall(options, shapes):\n"
        "    latent = shapes.latent\n"
        "    sample = lambda params, key, count, aggregate: 2 * jax.random.normal(key, (count, latent))\n"
        "    return Prior(lambda params, z, aggregate: -jnp.square(z).sum(-1) / 8, sample)\n"
    )
    config = replace(CONFIG, prior=PriorConfig(name="tall.py:tall"))
    path = vae_jax.save_weights(untrained(config), "model.safetensors")
    with pytest.raises(UserError, match="trust_code=True"):
        vae_jax.load_weights(path)
    sample = vae_jax.use(vae_jax.load_weights(path, trust_code=True)).sample
    assert sample is not None
    assert sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)
