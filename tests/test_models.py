"""The networks: sizes, names, quirks and initialisation."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.config import ModelConfig
from vae_jax.errors import UserError
from vae_jax.models import Variables, build, count_parameters
from vae_jax.models.convolutional import plan
from vae_jax.models.layers import ACTIVATIONS

HEADS = ("mu", "log_var")
ARTICLE = ModelConfig()


def run(config, shape, heads=HEADS, batch=3, **options):
    """Parameters, heads and decoded images of a fresh network."""
    network = build(config, shape, heads)
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
    assert plan(ARTICLE, (32, 32, 1)).sizes == (32, 16, 8, 4, 1)
    assert plan(ARTICLE, (32, 32, 1)).paddings == (1, 1, 1, 0)
    assert plan(ARTICLE, (32, 32, 1)).widths == (64, 64, 32, 16, 1)
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
    assert bool(variables.batch_stats) == config.batch_norm


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
        ({"precision": "float16"}, (32, 32, 1), r"model\.precision: .*bfloat16.*found 'float16'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(changes, shape, reason):
    with pytest.raises(UserError, match=reason):
        build(replace(ARTICLE, **changes), shape, HEADS)


def test_pytorchs_initialisation():
    params = build(ARTICLE, (32, 32, 1), HEADS).init(jax.random.key(0)).params
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
    params = build(config, (32, 32, 1), HEADS).init(jax.random.key(0)).params
    kernel = np.asarray(params["decoder"]["dec1"]["kernel"])
    assert kernel.std() == pytest.approx(1024**-0.5, rel=0.02)
    assert not np.asarray(params["decoder"]["dec1"]["bias"]).any()


def test_layers_do_not_share_their_numbers():
    params = build(ARTICLE, (32, 32, 1), HEADS).init(jax.random.key(0)).params
    kernels = [params["encoder"][name]["kernel"] for name in ("fc_mu", "fc_log_var")]
    assert not np.isclose(*kernels).any()
    other = build(ARTICLE, (32, 32, 1), HEADS).init(jax.random.key(1)).params
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
    before, after = (state.batch_stats["encoder"]["BN1"] for state in (trained[0][0], trained[0][3]))
    assert not np.array_equal(before["mean"], after["mean"])
    assert not np.array_equal(before["var"], after["var"])


@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics(unbiased):
    config = replace(ARTICLE, unbiased_running_variance=unbiased, batch_norm_momentum=0.25)
    network = build(config, (32, 32, 1), HEADS)
    variables = network.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 1))
    encode = partial(network.apply, function=lambda model: model.encode(images)["mu"], train=True)
    _, updated = jax.jit(encode)(variables, key=jax.random.key(2))
    layer = variables.params["encoder"]["conv1"]
    padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), (1, 2))[:, ::2, ::2]
    out = np.einsum("nhwij,ijo->onhw", windows, layer["kernel"][:, :, 0]).reshape(8, -1) + layer["bias"][:, None]
    found = updated.batch_stats["encoder"]["BN1"]
    np.testing.assert_allclose(found["mean"], 0.25 * out.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.75 + 0.25 * out.var(1, ddof=int(unbiased)), rtol=1e-5)


def test_given_masks_replace_drawn_ones():
    network = build(ARTICLE, (32, 32, 1), HEADS)
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
        results[precision] = logits, updated.batch_stats["encoder"]["BN2"]["var"]
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
        network = build(config, (32, 32, 1), HEADS)
        variables = jax.eval_shape(network.init, jax.random.key(0))

        def loss(params, batch_stats, images):
            def both(autoencoder):
                return autoencoder.decode(autoencoder.encode(images)["mu"]).sum()

            return network.apply(Variables(params, batch_stats), both, jax.random.key(1), train=True)[0]

        images = jax.ShapeDtypeStruct((4, 32, 32, 1), jnp.float32)
        program = str(jax.make_jaxpr(jax.grad(loss))(*variables, images))
        products = re.findall(r"(?:dot_general|conv_general_dilated)\[.*?\n *\] ", program, re.DOTALL)
        assert len(products) >= 30
        return {re.search(r"precision=(\S+?)[,\s]", product + " ")[1] for product in products}, "bf16" in program

    exact, rounded, halved = precisions("float32"), precisions("tensorfloat32"), precisions("bfloat16")
    assert all("HIGHEST" in found for found in exact[0])
    assert not exact[1]
    assert not any("HIGHEST" in found for found in rounded[0])
    assert not any("HIGHEST" in found for found in halved[0])
    assert halved[1]
