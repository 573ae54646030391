"""The PyTorch twin: the same function, the same gradients, the same training, from shared weights, noise and masks."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from run_fixtures import compiled_once

from vae_jax.blocks.tiles import tiles
from vae_jax.config import Config, ModelConfig, ObjectiveConfig, TrainConfig
from vae_jax.data import Dataset, Split
from vae_jax.device.platforms import PLATFORMS
from vae_jax.errors import UserError
from vae_jax.interop.torch_weights import COUNTER, to_state_dict
from vae_jax.model.build import build
from vae_jax.objectives import OBJECTIVES

torch = pytest.importorskip("torch", reason="needs the extra torch")
from vae_jax.compare.function import function  # noqa: E402
from vae_jax.compare.gradient import gradient  # noqa: E402
from vae_jax.compare.level import AGREES, DIFFERS, Request, judge  # noqa: E402
from vae_jax.compare.pair import Pair, dead_biases, precisely  # noqa: E402
from vae_jax.compare.trajectory import TOLERANCE, _curves  # noqa: E402
from vae_jax.interop import torch_twin  # noqa: E402
from vae_jax.interop.torch_networks import ACTIVATIONS  # noqa: E402
from vae_jax.interop.torch_twin import TorchTwin  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


BATCH = 16
ARTICLE = Config(train=TrainConfig(batch_size=BATCH))
PLAIN = replace(  # every quirk off, odd sizes, colour, the loss averaged
    ARTICLE,
    model=ModelConfig(
        latent=3,
        channels=(4, 6),
        kernel=5,
        strides=(2, 3),
        paddings=(2, 1),
        hidden=7,
        activation="elu",
        hidden_activation=True,
        head_activation=False,
        head_dropout=0.0,
        decoder_dropout=0.0,
    ),
    train=TrainConfig(batch_size=BATCH, reduction="mean"),
)
LARGER = replace(ARTICLE, model=ModelConfig(channels=(2, 3, 4, 5), latent=5))
UNNORMALISED = replace(ARTICLE, model=ModelConfig(batch_norm=False, activation="tanh"))
PLAIN_AE = replace(LARGER, objective=ObjectiveConfig(name="autoencoder"))
CASES = {
    "article": (ARTICLE, (32, 32, 1)),
    "plain": (PLAIN, (13, 13, 3)),
    "larger": (LARGER, (44, 44, 3)),  # 3x3 positions left when flattened
    "unnormalised": (UNNORMALISED, (32, 32, 1)),
    "autoencoder": (PLAIN_AE, (32, 32, 1)),
}


def request(config, shape, steps=40) -> Request:
    images = np.random.RandomState(0).randint(0, 256, (3 * BATCH, *shape), np.uint8)
    data = Dataset("noise", Split(images), Split(images))
    return Request(config, data, steps, (), [], lambda results: None, lambda what, done, total: None)


@pytest.mark.parametrize("name", CASES)
def test_the_function(name):
    level = function(request(*CASES[name]))
    assert level.verdict == AGREES, level.summary
    single = level.details["float32"]["layers"]
    layers = {row["layer"] for row in single}
    assert {"conv1", "fc1", "fc_mu", "fc2", "dec1", "mu (head)", "reconstruction"} <= layers
    assert ("BN1" in layers) == CASES[name][0].model.options.batch_norm
    for row in single:
        assert row["difference"] <= 1e-5
        assert row["largest"] > 0.01


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_statistics_in_training(name):
    config, shape = CASES[name]
    level = gradient(request(config, shape))
    tolerances = {"float32": (1e-4, 1e-6), "float64": (1e-9, 1e-12)}
    for precision, (tolerance, dead_tolerance) in tolerances.items():
        rows = {row["tensor"]: row for row in level.details[precision]["tensors"]}
        scale = max(row["largest"] for row in rows.values() if row["kind"] == "gradient")
        for tensor, row in rows.items():
            if tensor in dead_biases(config):
                assert row["largest"] <= dead_tolerance * scale, tensor
            else:
                assert row["difference"] <= tolerance * row["largest"], tensor
                assert row["largest"] > 0, tensor
    assert level.verdict == AGREES, level.summary
    named = {name for name in Pair(config, shape).twin.state_dict() if not name.endswith(COUNTER)}
    assert set(rows) == named


def test_gradients_of_a_batch_of_several_tiles(monkeypatch):
    monkeypatch.setitem(PLATFORMS, jax.default_backend(), PLATFORMS["cpu"]._replace(tile=8))
    assert tiles(BATCH) > 1
    level = gradient(request(*CASES["article"]))
    assert level.verdict == AGREES, level.summary


def curves(config, shape, steps) -> dict:
    """The trajectory in double precision."""
    with precisely("float64"):
        return _curves(request(config, shape, steps), lambda done: None)


def test_a_trajectory_of_the_article():
    """100 steps of Adam: in double precision both losses stay together."""
    found = curves(*CASES["article"], steps=100)
    assert len(found["gap"]) == len(found["vae_jax"]) == 100
    assert found["largest_gap"] <= 1e-9
    assert found["vae_jax"][-1] < 0.99 * found["vae_jax"][0]  # it has learnt


def test_a_trajectory_with_schedule_and_clipping():
    config, shape = CASES["larger"]
    config = replace(
        config, train=replace(config.train, schedule="cosine", warmup_steps=5, gradient_clip=100.0, learning_rate=0.01)
    )
    assert curves(config, shape, steps=20)["largest_gap"] <= 1e-9


# --- A difference is found -------------------------------------------------------------------------------------------


def test_another_function_is_found(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "leaky_relu", lambda x: torch.nn.functional.leaky_relu(x, 0.0101))
    level = function(request(*CASES["larger"]))
    assert level.verdict == DIFFERS
    rows = {row["layer"]: row["within"] for row in level.details["float64"]["layers"]}
    assert rows["conv1"]
    assert rows["BN1"]
    assert not rows["conv2"]


@pytest.mark.parametrize("what", ["kl", "momentum"])
def test_another_gradient_and_training_are_found(monkeypatch, what):
    original = TorchTwin.forward

    def forward(self, images, config, noise=None, masks=None):
        if what == "kl":
            config = replace(config, changed=(), beta=1.001 * config.options.beta)
        else:
            self.BN1.momentum = 0.1001
        return original(self, images, config, noise, masks)

    monkeypatch.setattr(TorchTwin, "forward", forward)
    level = gradient(request(*CASES["larger"]))
    assert level.verdict == DIFFERS
    within = {row["tensor"]: row["within"] for row in level.details["float64"]["tensors"]}
    if what == "kl":
        assert not within["fc_log_var.weight"]
    else:
        assert [name for name, fine in within.items() if not fine] == ["BN1.running_mean", "BN1.running_var"]


def test_other_noise_is_found(monkeypatch):
    original = Pair.draws
    monkeypatch.setattr(
        Pair, "draws", lambda self, variables, images, key, step: original(self, variables, images, key, step + 1)
    )
    assert curves(*CASES["larger"], steps=3)["largest_gap"] > TOLERANCE


def test_verdicts():
    assert judge({"float32": True, "float64": True}) == AGREES
    assert judge({"float32": True, "float64": False}) == DIFFERS
    assert judge({"float32": False, "float64": False}) == DIFFERS
    assert judge({"float32": False, "float64": True}) == "agrees in float64"


# --- The twin itself -------------------------------------------------------------------------------------------------


def test_the_twin_starts_like_pytorch_and_names_its_parameters_like_the_article():
    twin = TorchTwin(ARTICLE.model, (32, 32, 1), ("mu", "log_var"))
    assert sum(parameter.numel() for parameter in twin.parameters()) == 165_409
    assert {"conv1.weight", "BN1.running_var", "BN1.num_batches_tracked", "fc_log_var.bias", "deb3.weight"} <= set(
        twin.state_dict()
    )
    network, _ = build(ARTICLE, (32, 32, 1))
    ours = to_state_dict(network.init(jax.random.key(0)))
    for name, tensor in twin.state_dict().items():
        assert ours[name].shape == tensor.shape
        assert str(ours[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        bound = float(tensor.abs().max())
        if bound and tensor.numel() > 200 and name.endswith("weight"):
            assert np.abs(ours[name]).max() == pytest.approx(bound, rel=0.05), name


def test_the_precision_is_set_and_left_again():
    for precision in ("float32", "float64"):
        with precisely(precision):
            pair = Pair(LARGER, (32, 32, 1))
            assert str(pair.dtype) == precision
            assert {str(parameter.dtype) for parameter in pair.twin.parameters()} == {f"torch.{precision}"}
            assert not torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled
    assert not jax.config.jax_enable_x64


def test_both_know_the_same_activations():
    from vae_jax.networks.layers import ACTIVATIONS as OURS

    assert set(ACTIVATIONS) == set(OURS)
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    for name, activation in ACTIVATIONS.items():
        np.testing.assert_allclose(OURS[name](x), activation(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_what_pytorch_lacks_is_refused():
    with pytest.raises(UserError, match="unbiased_running_variance"):
        TorchTwin(replace(ARTICLE.model, unbiased_running_variance=False), (32, 32, 1), ("mu",))
    with pytest.raises(UserError, match=r"model\.precision"):
        Pair(replace(ARTICLE, model=replace(ARTICLE.model, precision="bfloat16")), (32, 32, 1))
    assert "denoising_autoencoder" in OBJECTIVES
    twin = TorchTwin(ARTICLE.model, (32, 32, 1), ("mu", "log_var"))
    for name in OBJECTIVES:
        config = ObjectiveConfig(name=name)
        if name in torch_twin.OBJECTIVES:
            assert torch.isfinite(twin(torch.zeros(2, 1, 32, 32), config)[0]).all()
        else:
            with pytest.raises(UserError, match=name):
                twin(torch.zeros(2, 1, 32, 32), config)
