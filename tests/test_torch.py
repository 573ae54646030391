"""The PyTorch twin: the same function, the same gradients, the same training, from shared weights, noise and masks."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import layout, objectives, optimizer, train
from vae_jax.config import Config, ModelConfig, ObjectiveConfig
from vae_jax.errors import UserError
from vae_jax.interop.torch_weights import to_state_dict
from vae_jax.objectives import Model

torch = pytest.importorskip("torch", reason="needs the extra torch")
from vae_jax.interop.torch_twin import ACTIVATIONS, TorchTwin  # noqa: E402

ARTICLE = Config()
PLAIN = replace(  # every quirk off, odd sizes, colour
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


class Pair:
    """Both networks with the same weights, a batch, noise and masks."""

    def __init__(self, config, shape, batch=16):
        self.config = config
        self.network, self.objective = train.build(config, shape)
        self.heads = self.objective.posterior.heads
        variables = self.network.init(jax.random.key(0))
        # Running statistics as after some training, so that evaluation mode is not trivial.
        random = np.random.RandomState(0)
        dtype = jnp.zeros(()).dtype
        self.variables = variables._replace(
            batch_stats=jax.tree.map(
                lambda x: jnp.asarray(x + 0.3 * random.rand(*x.shape), dtype), variables.batch_stats
            )
        )
        self.images = np.asarray(random.rand(batch, *shape), dtype)
        self.noise = np.asarray(random.randn(batch, config.model.latent), dtype)
        self.twin = TorchTwin(config.model, shape, self.heads).to(
            torch.float64 if dtype == jnp.float64 else torch.float32
        )
        self.load()
        side = self.twin.plan.sizes[-1]
        units = {"dropout_fc2": self.twin.plan.widths[0] * side**2} | {
            f"dropout_{head}": config.model.latent for head in self.heads
        }
        rates = {
            name: config.model.decoder_dropout if name == "dropout_fc2" else config.model.head_dropout for name in units
        }
        self.masks = {name: random.rand(batch, count) >= rates[name] for name, count in units.items()}

    def load(self):
        state = {name: torch.tensor(array) for name, array in to_state_dict(self.variables).items()}
        self.twin.load_state_dict(state, strict=True)

    @property
    def flax_masks(self):
        masks = {name: {"mask": mask.T} for name, mask in self.masks.items()}
        return {"decoder": {"dropout_fc2": masks.pop("dropout_fc2")}, "encoder": masks}

    def terms(self, params, train, images=None, noise=None, masks=None):
        images = jnp.asarray(self.images if images is None else images)
        noise = self.noise if noise is None else noise

        def sample(key, heads):
            return heads["mu"] + noise * jnp.exp(heads["log_var"] / 2) if "log_var" in heads else heads["mu"]

        def function(autoencoder):
            model = Model(autoencoder.encode, sample, autoencoder.decode)
            return self.objective.terms(jax.random.key(0), model, images, self.config.objective)

        return self.network.apply(
            self.variables._replace(params=params), function, train=train, masks=masks or self.flax_masks
        )

    def torch_terms(self, images=None, noise=None, masks=None):
        images = np.asarray(self.images if images is None else images).transpose(0, 3, 1, 2)
        masks = {name: torch.tensor(mask) for name, mask in (masks or self.masks).items()}
        noise = torch.tensor(self.noise if noise is None else noise)
        return self.twin(torch.tensor(images), self.config.objective, noise, masks)


@pytest.mark.parametrize("name", CASES)
def test_the_forward_pass_in_evaluation(name):
    pair = Pair(*CASES[name])
    pair.twin.eval()

    def both(autoencoder):
        heads = autoencoder.encode(jnp.asarray(pair.images))
        return heads, autoencoder.decode(jnp.asarray(pair.noise))

    (heads, logits), _ = jax.jit(partial(pair.network.apply, function=both))(pair.variables)
    with torch.no_grad():
        expected = pair.twin.encode(torch.tensor(pair.images.transpose(0, 3, 1, 2)))
        expected_logits = pair.twin.decode(torch.tensor(pair.noise)).numpy().transpose(0, 2, 3, 1)
        expected_terms = pair.torch_terms()
    for head in pair.heads:
        np.testing.assert_allclose(heads[head], expected[head].numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5, rtol=0)
    terms, _ = jax.jit(partial(pair.terms, train=False))(pair.variables.params)
    for found, other in zip(terms, expected_terms, strict=True):
        np.testing.assert_allclose(found, other.numpy(), rtol=1e-5, atol=1e-5)


def gradients(pair):
    """Gradients of the summed loss in training mode and updated statistics, ours and PyTorch's, by PyTorch's names."""
    pair.twin.train()

    def loss(params):
        terms, updated = pair.terms(params, True)
        return terms.loss.sum(), updated

    gradient, updated = jax.jit(jax.grad(loss, has_aux=True))(pair.variables.params)
    pair.twin.zero_grad()
    pair.torch_terms()[0].sum().backward()
    found = to_state_dict(pair.variables._replace(params=gradient, batch_stats={}))
    expected = {name: parameter.grad.numpy() for name, parameter in pair.twin.named_parameters()}
    assert set(found) == set(expected)
    statistics = to_state_dict(updated._replace(params={}), steps=1)
    expected_statistics = {name: buffer.numpy() for name, buffer in pair.twin.named_buffers()}
    assert set(statistics) == set(expected_statistics)
    return found, expected, statistics, expected_statistics


def dead(config):
    """Names of the biases that feed a BatchNorm, whose true gradient is 0."""
    if not config.model.batch_norm:
        return set()
    layers = len(config.model.channels)
    return {f"conv{i + 1}.bias" for i in range(layers)} | {f"dec{i + 1}.bias" for i in range(layers - 1)}


def check_gradients(pair, tolerance, dead_tolerance):
    found, expected, statistics, expected_statistics = gradients(pair)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        if name in dead(pair.config):
            assert np.abs(gradient).max() <= dead_tolerance * largest
            assert np.abs(found[name]).max() <= dead_tolerance * largest
        else:
            assert np.abs(found[name] - gradient).max() <= tolerance * np.abs(gradient).max(), name
    for name, statistic in expected_statistics.items():
        np.testing.assert_allclose(statistics[name], statistic, rtol=10 * tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", ["article", "plain", "unnormalised"])
def test_gradients_and_statistics_in_training(name):
    check_gradients(Pair(*CASES[name]), 1e-4, 1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_gradients_in_double_precision(name):
    """With few channels a BatchNorm's gradient cancels almost to 0: only here do all cases have digits to compare."""
    check_gradients(Pair(*CASES[name]), 1e-9, 1e-12)


@pytest.mark.usefixtures("float64")
def test_gradients_of_a_batch_of_several_tiles(monkeypatch):
    monkeypatch.setattr(layout, "TILE", 8)
    pair = Pair(*CASES["article"])
    assert layout.tiles(len(pair.images)) > 1
    check_gradients(pair, 1e-9, 1e-12)


@pytest.mark.usefixtures("float64")
def test_a_trajectory_in_double_precision():
    """The same batches, noise and masks for 40 steps of Adam: both losses stay together."""
    pair = Pair(*CASES["article"])
    transformation = optimizer.build(pair.config.train, 40)
    state = transformation.init(pair.variables.params)

    @jax.jit
    def step(variables, state, images, noise, masks):
        def loss(params):
            pair.variables = variables
            terms, updated = pair.terms(params, True, images, noise, masks)
            return terms.loss.sum(), updated

        (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(variables.params)
        change, state = transformation.update(gradient, state)
        return updated._replace(params=jax.tree.map(jnp.add, variables.params, change)), state, value

    adam = torch.optim.Adam(pair.twin.parameters(), 1e-3, (0.9, 0.999), 1e-8)
    pair.twin.train()
    random = np.random.RandomState(1)
    variables = pair.variables
    for _ in range(40):
        images, noise = random.rand(*pair.images.shape), random.randn(*pair.noise.shape)
        pair.masks = {name: random.rand(*mask.shape) >= 0.2 for name, mask in pair.masks.items()}
        variables, state, loss = step(variables, state, images, noise, pair.flax_masks)
        adam.zero_grad()
        expected = pair.torch_terms(images, noise)[0].sum()
        expected.backward()
        adam.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-9)


def test_the_twin_starts_like_pytorch_and_names_its_parameters_like_the_article():
    twin = TorchTwin(ARTICLE.model, (32, 32, 1), ("mu", "log_var"))
    assert sum(parameter.numel() for parameter in twin.parameters()) == 165_409
    assert {"conv1.weight", "BN1.running_var", "BN1.num_batches_tracked", "fc_log_var.bias", "deb3.weight"} <= set(
        twin.state_dict()
    )
    network, _ = train.build(ARTICLE, (32, 32, 1))
    ours = to_state_dict(network.init(jax.random.key(0)))
    for name, tensor in twin.state_dict().items():
        assert ours[name].shape == tensor.shape
        assert str(ours[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        bound = float(tensor.abs().max())
        if bound and tensor.numel() > 200 and name.endswith("weight"):
            assert np.abs(ours[name]).max() == pytest.approx(bound, rel=0.05), name


def test_both_know_the_same_activations_and_what_pytorch_lacks_is_refused():
    from vae_jax.models.layers import ACTIVATIONS as OURS

    assert set(ACTIVATIONS) == set(OURS)
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    for name, activation in ACTIVATIONS.items():
        np.testing.assert_allclose(OURS[name](x), activation(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="unbiased_running_variance"):
        TorchTwin(replace(ARTICLE.model, unbiased_running_variance=False), (32, 32, 1), ("mu",))
    assert "denoising_autoencoder" in objectives.OBJECTIVES
    twin = TorchTwin(ARTICLE.model, (32, 32, 1), ("mu", "log_var"))
    with pytest.raises(UserError, match="denoising_autoencoder"):
        twin(torch.zeros(2, 1, 32, 32), ObjectiveConfig(name="denoising_autoencoder"))
