"""The networks: sizes, names, quirks and initialisation."""

import math
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.blocks.im2col import output_size
from vae_jax.config import Config, ModelConfig, adapted
from vae_jax.errors import UserError
from vae_jax.networks import build, count_parameters
from vae_jax.networks.convolutional import plan
from vae_jax.networks.layers import ACTIVATIONS, normalize
from vae_jax.networks.residual import KERNEL, padding
from vae_jax.networks.residual import plan as residual_plan
from vae_jax.shapes import Shapes
from vae_jax.variables import Variables

HEADS = {"mu": 20, "log_var": 20}
ARTICLE = ModelConfig()


def heads_of(size):
    return dict.fromkeys(HEADS, size)


def run(config, shape, batch=3, outputs=1, **options):
    """Parameters, heads and decoded images of a fresh network."""
    network = build(config, Shapes(shape, config.latent, 0, heads_of(config.latent), outputs))
    variables = network.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (batch, *shape))

    def both(autoencoder):
        found = autoencoder.encode(images)
        return found, autoencoder.decode(found["mu"])

    (found, logits), updated = jax.jit(partial(network.apply, function=both, **options))(variables)
    return variables, found, logits, updated


def test_the_articles_network():
    variables, heads, logits, _ = run(ARTICLE, (32, 32, 1))
    assert count_parameters(variables.params) == 165_409
    assert {name: head.shape for name, head in heads.items()} == {"mu": (3, 20), "log_var": (3, 20)}
    assert logits.shape == (3, 32, 32, 1)
    assert plan(ARTICLE.options, (32, 32, 1)).sizes == (32, 16, 8, 4, 1)
    assert plan(ARTICLE.options, (32, 32, 1)).paddings == (1, 1, 1, 0)
    assert plan(ARTICLE.options, (32, 32, 1)).widths == (64, 64, 32, 16, 1)
    assert set(variables.params["encoder"]) == {
        *(f"{kind}{i}" for kind in ("conv", "BN") for i in (1, 2, 3, 4)),
        "fc1",
        "fc_mu",
        "fc_log_var",
    }
    assert set(variables.params["decoder"]) == {"fc2", "dec1", "deb1", "dec2", "deb2", "dec3", "deb3", "dec4"}


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (20, 1), (28, 1), (31, 1), (48, 3), (64, 3)])
def test_other_images_are_derived(size, channels):
    config = replace(ARTICLE, channels=(4, 6)) if size == 8 else replace(ARTICLE, channels=(2, 3, 4, 5))
    _, heads, logits, _ = run(config, (size, size, channels), batch=2)
    assert logits.shape == (2, size, size, channels)
    assert heads["mu"].shape == (2, 20)


@pytest.mark.parametrize(
    "changes",
    [
        {"latent": 2},
        {"channels": (5, 7)},
        {"kernel": 3},
        {"kernel": 5, "strides": (1, 2, 2, 3)},
        {"strides": (2, 2, 1, 2)},
        {"paddings": (2, 1, 1, 0)},
        {"hidden": 10},
        {"batch_norm": False},
        {"hidden_activation": True},
        {"head_activation": False, "head_dropout": 0.0},
        {"initialization": "lecun"},
        {"convolution": "native"},
        *({"activation": name} for name in ACTIVATIONS),
    ],
    ids=str,
)
def test_everything_is_switchable(changes):
    config = replace(ARTICLE, channels=(2, 3, 4, 5))
    config = replace(config, **changes)
    variables, heads, logits, _ = run(config, (32, 32, 1), batch=2)
    assert logits.shape == (2, 32, 32, 1)
    assert heads["mu"].shape == (2, config.latent)
    assert np.isfinite(logits).all()
    assert bool(variables.state) == config.options.batch_norm


@pytest.mark.parametrize(
    ("changes", "shape", "reason"),
    [
        ({}, (8, 8, 1), r"convolution 4 of 4 .* does not fit into 1x1 pixels, from images of 8x8"),
        ({"kernel": 20}, (8, 8, 1), "does not fit"),
        ({"strides": (2, 2)}, (32, 32, 1), r"model\.strides: expected one value for each of the 4"),
        ({"paddings": (1,)}, (32, 32, 1), r"model\.paddings: expected one value"),
        ({"paddings": (4, 1, 1, 0)}, (32, 32, 1), r"model\.paddings: expected less than model\.kernel \(4\); found 4"),
        ({}, (32, 28, 1), "expected a square image; found 32x28"),
        ({"activation": "swich"}, (32, 32, 1), r"model\.activation: .*found 'swich'"),
        ({"initialization": "zeros"}, (32, 32, 1), r"model\.initialization: .*found 'zeros'"),
        ({"network": "resnet"}, (32, 32, 1), r"model\.network: .*found 'resnet'"),
        ({"network": "residual"}, (32, 28, 1), "model.network residual: expected a square image; found 32x28"),
        ({"network": "residual"}, (8, 8, 1), "model.channels: expected at most 3 stages"),
        ({"network": "mlp", "activation": "swich"}, (8, 8, 1), r"model\.activation: .*found 'swich'"),
        ({"precision": "float16"}, (32, 32, 1), r"model\.precision: .*bfloat16.*found 'float16'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(changes, shape, reason):
    with pytest.raises(UserError, match=reason):
        build(replace(ARTICLE, **changes), Shapes(shape, 20, 0, HEADS))


# --- Multi-layer perceptrons and residual networks --------------------------------------------------------------------


def dense(*units):
    """Parameters of fully connected layers, from the first's inputs to the last's outputs."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(units))


def test_burdas_network():
    """784-200-200-(50, 50) and 50-200-200-784 (Burda et al. 2016, section 5)."""
    config = ModelConfig(network="mlp", latent=50, layers=(200, 200), activation="tanh")
    variables, heads, logits, _ = run(config, (28, 28, 1))
    assert count_parameters(variables.params["encoder"]) == dense(784, 200, 200, 100)
    assert count_parameters(variables.params["decoder"]) == dense(50, 200, 200, 784)
    assert set(variables.params["encoder"]) == {"hidden", "fc_mu", "fc_log_var"}
    assert {name: head.shape for name, head in heads.items()} == {"mu": (3, 50), "log_var": (3, 50)}
    assert logits.shape == (3, 28, 28, 1)


@pytest.mark.parametrize("gated", [False, True])
def test_an_mlp_is_its_formula(gated):
    config = ModelConfig(network="mlp", latent=3, layers=(7, 5), activation="tanh", gated=gated)
    shape = (2, 3, 3)
    variables, heads, logits, _ = run(config, shape, outputs=2)
    encoder, decoder = (variables.params[part] for part in ("encoder", "decoder"))
    gates = dense(18, 7, 5) + dense(3, 5, 7) if gated else 0
    expected = dense(18, 7, 5, 6) + dense(3, 5, 7, 36) + gates
    assert count_parameters(variables.params) == expected

    def linear(layer, x):
        return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

    def hidden(layers, x):
        for i in (1, 2):
            h = linear(layers[f"fc{i}"], x)
            x = h / (1 + np.exp(-linear(layers[f"gate{i}"], x))) if gated else np.tanh(h)
        return x

    images = np.asarray(jax.random.uniform(jax.random.key(1), (3, *shape)))
    h = hidden(encoder["hidden"], images.reshape(3, -1))
    for name, head in heads.items():
        np.testing.assert_allclose(head, linear(encoder[f"fc_{name}"], h), rtol=1e-4, atol=1e-6)
    h = hidden(decoder["hidden"], np.asarray(heads["mu"]))
    np.testing.assert_allclose(logits, linear(decoder["fc_out"], h).reshape(3, 2, 3, 6), rtol=1e-4, atol=1e-6)


RESIDUAL = ModelConfig(network="residual", latent=3, channels=(2, 3))


def model_of(network, **options):
    """A network of three latents, with those of the options that it has."""
    options = {f"model.{name}": value for name, value in options.items()}
    return adapted(Config(), **options, **{"model.network": network, "model.latent": 3}).model


@pytest.mark.parametrize(
    ("network", "size", "channels", "outputs"),
    [
        ("residual", 28, 1, 1),
        ("residual", 33, 3, 2),
        ("residual", 64, 1, 3),
        ("residual", 5, 3, 1),
        ("mlp", 33, 3, 2),
    ],
)
def test_images_of_any_size_channels_and_outputs(network, size, channels, outputs):
    config = model_of(network, channels=(2, 3), layers=(4,))
    _, heads, logits, _ = run(config, (size, size, channels), batch=2, outputs=outputs)
    assert logits.shape == (2, size, size, outputs * channels)
    assert {name: head.shape for name, head in heads.items()} == {"mu": (2, 3), "log_var": (2, 3)}
    assert np.isfinite(logits).all()
    # A picture is not the same everywhere, nor for every latent.
    assert np.asarray(logits).std((1, 2)).min() > 0
    assert np.asarray(logits).std(0).max((0, 1)).min() > 0


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_residual_networks_layers(blocks, batch_norm):
    config = replace(RESIDUAL, blocks=blocks, batch_norm=batch_norm)
    variables = jax.eval_shape(build(config, Shapes((7, 7, 1), 3, 0, heads_of(3), 2)).init, jax.random.key(0))

    def conv(side, inner, outer):
        return side * side * inner * outer

    norms = 2 * batch_norm
    block = {width: 2 * (conv(3, width, width) + width * (1 + norms)) for width in (2, 3)}
    stages = blocks * (block[2] + block[3]) + (2 + 3) * norms
    encoder = conv(4, 1, 2) + 2 + conv(4, 2, 3) + 3 + stages + dense(3 * 2 * 2, 6)
    decoder = dense(3, 3 * 2 * 2) + stages + conv(4, 3, 2) + 2 + conv(4, 2, 2) + 2
    assert count_parameters(variables.params["encoder"]) == encoder
    assert count_parameters(variables.params["decoder"]) == decoder
    assert bool(variables.state) == batch_norm
    assert {"fc_mu", "fc_log_var"} < set(variables.params["encoder"])


@pytest.mark.parametrize("network", ["mlp", "residual"])
def test_the_gradient_reaches_every_parameter_and_nothing_is_random(network):
    """Not through a ReLU, which may happen to be off; without BatchNorm, which undoes the biases before it."""
    config = model_of(network, channels=(2, 3), layers=(4, 5), activation="tanh", batch_norm=False)
    network = build(config, Shapes((6, 6, 1), 3, 0, heads_of(3)))
    variables = network.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 6, 6, 1))

    @jax.jit
    def gradient(params):
        def both(autoencoder):
            heads = autoencoder.encode(images)
            return jnp.sin(autoencoder.decode(heads["mu"] + jnp.exp(heads["log_var"]))).sum()

        return jax.value_and_grad(lambda params: network.apply(Variables(params, {}), both, train=True)[0])(params)

    first, second = gradient(variables.params), gradient(variables.params)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    for path, leaf in jax.tree.leaves_with_path(first[1]):
        # What lies on a border can miss an image of no more pixels; most of each kernel cannot.
        assert np.mean(np.asarray(leaf) != 0) > 0.5, path


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("blocks", [0, 1])
def test_biases_that_batch_norm_undoes_have_no_gradient(blocks):
    """In a residual network all of its convolutions' but the last one's."""
    network = build(replace(RESIDUAL, activation="tanh", blocks=blocks), Shapes((6, 6, 1), 3, 0, heads_of(3)))
    variables = network.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 6, 6, 1), float)

    def is_dead(path):
        names = [each.key for each in path]
        return names[-1] == "bias" and names[-2].startswith(("conv", "dec")) and names[-2] != "dec1"

    @jax.jit
    def loss(params):
        def both(autoencoder):
            heads = autoencoder.encode(images)
            return jnp.sin(autoencoder.decode(heads["mu"] + jnp.exp(heads["log_var"]))).sum()

        return network.apply(variables._replace(params=params), both, train=True)[0]

    shifted = jax.tree.map_with_path(lambda path, leaf: leaf + is_dead(path), variables.params)
    assert loss(shifted) == pytest.approx(float(loss(variables.params)), rel=1e-10)
    dead = {is_dead(path): 0 for path, _ in jax.tree.leaves_with_path(variables.params)}
    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables.params)):
        dead[is_dead(path)] += 1
        assert np.asarray(leaf).any() != is_dead(path), path
    assert (
        dead[True] == 2 * 2 * (1 + 2 * blocks) - 1
    )  # of two halves of two stages, each with blocks of two; not dec1's


def test_a_residual_block_adds_to_what_it_is_given():
    """With all of a block's last convolutions at 0, blocks are the identity: the network is the one without them."""
    images = jax.random.uniform(jax.random.key(1), (2, 5, 5, 1))
    with_blocks, without = (
        build(replace(RESIDUAL, blocks=blocks), Shapes((5, 5, 1), 3, 0, heads_of(3))) for blocks in (1, 0)
    )
    variables = with_blocks.init(jax.random.key(0))

    def silent(path, leaf):
        names = [each.key for each in path]
        return 0 * leaf if names[1].startswith("block") and names[2] == "conv2" else leaf

    def bare(tree):
        return {
            part: {name: layer for name, layer in layers.items() if "block" not in name}
            for part, layers in tree.items()
        }

    def both(autoencoder):
        heads = autoencoder.encode(images)
        return heads, autoencoder.decode(heads["mu"])

    variables = variables._replace(params=jax.tree.map_with_path(silent, variables.params))
    found = jax.jit(partial(with_blocks.apply, function=both))(variables)[0]
    variables = Variables(bare(variables.params), bare(variables.state))
    expected = jax.jit(partial(without.apply, function=both))(variables)[0]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("size", range(1, 10))
def test_stages_halve_and_round_up(size):
    most = math.ceil(math.log2(size))
    sizes = residual_plan(replace(RESIDUAL, channels=(1,) * max(most, 1)).options, (size, size, 1)) if most else (1,)
    assert sizes[-1] == 1
    for before, after in pairwise(sizes):
        assert after == math.ceil(before / 2)
        # Not one pixel is left out, nor would the transposed convolution leave one at its bias.
        assert output_size(before, KERNEL, 2, padding(before)) == after
        reached = {2 * i - padding(before) + tap for i in range(after) for tap in range(KERNEL)}
        assert reached >= set(range(before))
    with pytest.raises(UserError, match=rf"at most {most} stages.*{size}x{size}; found {most + 1}"):
        residual_plan(replace(RESIDUAL, channels=(1,) * (most + 1)).options, (size, size, 1))


def test_pytorchs_initialisation():
    params = build(ARTICLE, Shapes((32, 32, 1), 20, 0, HEADS)).init(jax.random.key(0)).params
    # A transposed convolution counts its output channels: dec1 64 -> 64, dec4 16 -> 1.
    fan_ins = {"conv1": 16, "conv4": 512, "fc1": 64, "fc_mu": 128, "fc2": 20, "dec1": 1024, "dec4": 16}
    for name, fan_in in fan_ins.items():
        layer = params["encoder"].get(name) or params["decoder"][name]
        bound = fan_in**-0.5
        for array in layer.values():
            assert float(jnp.abs(array).max()) <= bound
        kernel = np.asarray(layer["kernel"])
        assert np.abs(kernel).max() > 0.9 * bound
        # The deviation of a uniform is bound/√3; its estimate from n numbers varies by about 0.45/√n of it.
        assert kernel.std() == pytest.approx(bound / 3**0.5, rel=5 * 0.45 / kernel.size**0.5)
    assert float(params["encoder"]["BN1"]["scale"].min()) == 1
    assert float(jnp.abs(params["encoder"]["BN1"]["bias"]).max()) == 0


def test_lecuns_initialisation():
    config = replace(ARTICLE, initialization="lecun")
    params = build(config, Shapes((32, 32, 1), 20, 0, HEADS)).init(jax.random.key(0)).params
    kernel = np.asarray(params["decoder"]["dec1"]["kernel"])
    assert kernel.std() == pytest.approx(1024**-0.5, rel=0.02)
    assert not np.asarray(params["decoder"]["dec1"]["bias"]).any()


def test_layers_do_not_share_their_numbers():
    params = build(ARTICLE, Shapes((32, 32, 1), 20, 0, HEADS)).init(jax.random.key(0)).params
    kernels = [params["encoder"][name]["kernel"] for name in ("fc_mu", "fc_log_var")]
    assert not np.isclose(*kernels).any()
    other = build(ARTICLE, Shapes((32, 32, 1), 20, 0, HEADS)).init(jax.random.key(1)).params
    assert not np.isclose(kernels[0], other["encoder"]["fc_mu"]["kernel"]).any()


def test_dropout_and_batch_norm_are_off_in_evaluation_and_on_in_training():
    first = run(ARTICLE, (32, 32, 1))
    second = run(ARTICLE, (32, 32, 1))
    np.testing.assert_array_equal(first[2], second[2])
    jax.tree.map(np.testing.assert_array_equal, first[3], first[0])  # the running statistics stay

    trained = [run(ARTICLE, (32, 32, 1), train=True, key=jax.random.key(seed), batch=200) for seed in (1, 2)]
    assert not np.array_equal(trained[0][1]["mu"], trained[1][1]["mu"])
    dropped = np.mean(np.asarray(trained[0][1]["mu"]) == 0)
    assert dropped == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 4000) ** 0.5)
    before, after = (state.state["batch_stats"]["encoder"]["BN1"] for state in (trained[0][0], trained[0][3]))
    assert not np.array_equal(before["mean"], after["mean"])
    assert not np.array_equal(before["var"], after["var"])


@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics(unbiased):
    config = replace(ARTICLE, unbiased_running_variance=unbiased, batch_norm_momentum=0.25)
    network = build(config, Shapes((32, 32, 1), 20, 0, HEADS))
    variables = network.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 1))
    encode = partial(network.apply, function=lambda model: model.encode(images)["mu"], train=True)
    _, updated = jax.jit(encode)(variables, key=jax.random.key(2))
    layer = variables.params["encoder"]["conv1"]
    padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), (1, 2))[:, ::2, ::2]
    out = np.einsum("nhwij,ijo->onhw", windows, layer["kernel"][:, :, 0]).reshape(8, -1) + layer["bias"][:, None]
    found = updated.state["batch_stats"]["encoder"]["BN1"]
    np.testing.assert_allclose(found["mean"], 0.25 * out.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.75 + 0.25 * out.var(1, ddof=int(unbiased)), rtol=1e-5)


def test_given_masks_replace_drawn_ones():
    network = build(ARTICLE, Shapes((32, 32, 1), 20, 0, HEADS))
    variables = network.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 32, 32, 1))
    mask = np.zeros((20, 4), bool)
    mask[3] = True
    masks = {"encoder": {"dropout_mu": {"mask": mask}, "dropout_log_var": {"mask": ~mask}}}
    encode = partial(network.apply, function=lambda model: model.encode(images), train=True, masks=masks)
    heads, _ = jax.jit(encode)(variables, key=jax.random.key(2))
    np.testing.assert_array_equal(np.asarray(heads["mu"] != 0), mask.T)
    np.testing.assert_array_equal(np.asarray(heads["log_var"] != 0), ~mask.T)


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_is_near_float32_and_keeps_its_state_in_float32(train):
    config = replace(ARTICLE, head_dropout=0.0, decoder_dropout=0.0)
    results = {}
    for precision in ("float32", "tensorfloat32", "bfloat16"):
        _, heads, logits, updated = run(
            replace(config, precision=precision), (32, 32, 1), batch=16, train=train, key=jax.random.key(2)
        )
        assert {array.dtype.name for array in jax.tree.leaves((heads, logits, updated))} == {"float32"}
        results[precision] = logits, updated.state["batch_stats"]["encoder"]["BN2"]["var"]
    for exact, rounded in zip(results["float32"], results["bfloat16"], strict=True):
        error = np.abs(np.asarray(exact - rounded)).max() / np.abs(np.asarray(exact)).max()
        assert error < 0.05  # 8 bits of mantissa through eight layers
    assert not np.array_equal(results["float32"][0], results["bfloat16"][0])
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(results["float32"][0], results["tensorfloat32"][0])


@pytest.mark.parametrize("convolution", ["matmul", "native"])
def test_every_product_forward_and_backward_has_the_configured_precision(convolution):
    def precisions(precision):
        """Of the products and convolutions in a gradient, and the types of what goes into them."""
        config = replace(ARTICLE, precision=precision, convolution=convolution)
        network = build(config, Shapes((32, 32, 1), 20, 0, HEADS))
        variables = jax.eval_shape(network.init, jax.random.key(0))

        def loss(params, state, images):
            def both(autoencoder):
                return autoencoder.decode(autoencoder.encode(images)["mu"]).sum()

            return network.apply(Variables(params, state), both, jax.random.key(1), train=True)[0]

        images = jax.ShapeDtypeStruct((4, 32, 32, 1), jnp.float32)
        program = jax.jit(jax.grad(loss)).lower(variables.params, variables.state, images).as_text()
        products = re.findall(r".*stablehlo\.(?:dot_general|convolution)\b.*", program)
        assert len(products) >= 30
        return ["HIGHEST" in product for product in products], ["bf16" in product for product in products]

    exact, rounded, halved = precisions("float32"), precisions("tensorfloat32"), precisions("bfloat16")
    assert all(exact[0])
    assert not any(exact[1])
    assert not any(rounded[0])
    assert not any(halved[0])
    assert all(halved[1])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("guess", [0.0, 2.9])
def test_batch_norm_in_one_pass_is_batch_norm(guess):
    random = np.random.RandomState(0)
    x, scale, offset = (jnp.asarray(random.randn(*shape)) for shape in ((2, 3, 4, 4, 5), (3,), (3,)))
    x, weights = 3 + x / 2, jnp.asarray(random.randn(*x.shape))

    def results(shift):
        def loss(x, scale, offset):
            y, mean, variance = normalize(x, scale, offset, 1e-5, shift)
            return (y * weights).sum(), (y, mean, variance)

        return jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, offset)

    shift = jnp.full(3, guess)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), results(shift), results(None))


def test_a_constant_channel_has_no_negative_variance_in_one_pass():
    x = jnp.full((1, 1, 3, 3, 8), 1.1)
    y, _, variance = normalize(x, jnp.ones(1), jnp.zeros(1), 1e-5, jnp.full(1, 0.3))
    assert 0 <= variance[0] < 1e-6
    assert np.abs(y).max() < 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_leaky_relus_derivative_is_jaxs(dtype):
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0], dtype)
    for function in (lambda f, x: f(x), lambda f, x: jax.vjp(f, x)[0], lambda f, x: jax.vjp(f, x)[1](x)[0]):
        ours, jaxs = function(ACTIVATIONS["leaky_relu"], x), function(lambda x: jax.nn.leaky_relu(x, 0.01), x)
        assert ours.dtype == jaxs.dtype == x.dtype
        np.testing.assert_array_equal(ours, jaxs)
