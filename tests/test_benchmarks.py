"""The benchmarks count what they say they count, and their contenders train the article's model."""

import math
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from vae_jax.config import Config

IMAGES = np.random.RandomState(0).randint(0, 256, (16, 32, 32, 1), np.uint8)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Their folder, from which they import each other."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def test_operations_are_those_pytorch_counts():
    torch = pytest.importorskip("torch", reason="needs PyTorch: the extra `torch`")
    from products import model_flops
    from torch.utils.flop_counter import FlopCounterMode

    from vae_jax.interop.torch_twin import TorchTwin

    twin = TorchTwin(Config().model, (32, 32, 1), ("mu", "log_var")).train()
    with FlopCounterMode(display=False) as counter:
        twin(torch.rand(2, 1, 32, 32), Config().objective)[0].sum().backward()
    assert model_flops(Config()) == counter.get_total_flops() / 2


def test_every_product_of_a_step_is_found():
    from products import Product, model_flops, products

    assert Product((2, 3), (3, 5), (((1,), (0,)), ((), ())), "float32").flops == 2 * 2 * 3 * 5
    assert Product((7, 2, 3), (7, 3, 5), (((2,), (1,)), ((0,), (0,))), "float32").flops == 7 * 2 * 2 * 3 * 5
    small, large = products(Config(), 64), products(Config(), 256)
    assert isinstance(small, Counter)
    flops = [sum(product.flops * times for product, times in found.items()) for found in (small, large)]
    # Ours takes a few more than the model needs: a transposed convolution computes a border that is cut off.
    assert 1.0 <= flops[0] / 64 / model_flops(Config()) < 1.25
    assert flops[1] == 4 * flops[0]


@pytest.mark.parametrize("name", ["vae_jax", "PyTorch eager", "PyTorch best"])
def test_contenders_run(name):
    if "PyTorch" in name:
        pytest.importorskip("torch", reason="needs PyTorch: the extra `torch`")
    from contenders import CONTENDERS, Options

    variant = ("channels_last", "fused") if name == "PyTorch best" else ()
    run = CONTENDERS[name](Options(4, "float32", variant), IMAGES)
    run(2)
    run(4)


def test_the_flax_contender_learns_the_articles_model():
    from contenders import Options, _flax

    step, state, resident, order = _flax(Options(8, "float32"), IMAGES)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state[0])) == 165_409
    assert len(jax.tree.leaves(state[1])) == 14  # seven BatchNorms
    step, losses = jax.jit(step), []
    for i in range(40):
        state, loss = step(state, resident, order, i % 2)
        losses.append(float(loss) / 8)
    # Random pixels at first: a little over ln 2 each, and KL near 0.
    assert losses[0] == pytest.approx(1024 * math.log(2), rel=0.1)
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 5
