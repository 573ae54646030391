"""The matrix-product convolution against XLA's own, and the laws the pair obeys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.blocks.convolution import CONVOLUTIONS, choose
from vae_jax.blocks.im2col import output_size
from vae_jax.device.platforms import PLATFORMS, built_for
from vae_jax.errors import UserError

MATMUL, NATIVE = CONVOLUTIONS["matmul"], CONVOLUTIONS["native"]


@st.composite
def cases(draw):
    side, stride = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, side - 1))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    sizes = [output_size(size, side, stride, padding) for size in (height, width)]
    if min(sizes) < 1:
        height, width = height + side, width + side
        sizes = [output_size(size, side, stride, padding) for size in (height, width)]
    inner, outer, tile = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    tiles = draw(st.integers(1, 2))
    random = np.random.RandomState(draw(st.integers(0, 1000)))
    x = random.randn(tiles, inner, height, width, tile)
    y = random.randn(tiles, outer, *sizes, tile)
    kernel = random.randn(side, side, inner, outer)
    return jnp.array(x), jnp.array(y), jnp.array(kernel), stride, padding, (height, width)


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@settings(deadline=None, max_examples=15, database=None, derandomize=True)
@given(st.data())
def test_equals_xlas_convolution_with_its_gradients(data):
    x, y, kernel, stride, padding, size = data.draw(cases())
    for map_of, argument in (("forward", x), ("transpose", y)):
        extra = () if map_of == "forward" else (size,)
        results = []
        for pair in (MATMUL, NATIVE):

            def out_and_gradients(argument, kernel, pair=pair, name=map_of, extra=extra):
                function = getattr(pair, name)
                out, pull = jax.vjp(lambda a, k: function(a, k, stride, padding, *extra), argument, kernel)
                return out, *pull(jnp.sin(out))

            results.append(jax.jit(out_and_gradients)(argument, kernel))
        for found, expected in zip(*results, strict=True):
            close(found, expected)


@pytest.mark.usefixtures("float64")
@settings(deadline=None, max_examples=15, database=None, derandomize=True)
@given(st.data())
def test_each_is_the_others_adjoint(data):
    x, y, kernel, stride, padding, size = data.draw(cases())

    @jax.jit
    def products(x, y, kernel):
        transposed = MATMUL.transpose(y, kernel, stride, padding, size)
        return jnp.vdot(y, MATMUL.forward(x, kernel, stride, padding)), jnp.vdot(transposed, x)

    forward, transpose = products(x, y, kernel)
    np.testing.assert_allclose(forward, transpose, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_under_vmap_scan_and_a_second_gradient():
    random = np.random.RandomState(0)
    xs, kernel = jnp.array(random.randn(3, 2, 2, 6, 6, 4)), jnp.array(random.randn(4, 4, 2, 3))

    def energy(pair, x, kernel):
        y = jnp.tanh(pair.forward(x, kernel, 2, 1))
        return jnp.square(pair.transpose(y, kernel, 2, 1, (6, 6))).sum()

    for transform in (
        lambda f: jax.vmap(lambda x: f(x, kernel))(xs),
        lambda f: jax.lax.scan(lambda carry, x: (carry, f(x, kernel)), 0, xs)[1],
        lambda f: jax.jit(jax.grad(lambda k: jnp.square(jax.grad(f, 1)(xs[0], k)).sum()))(kernel),
        lambda f: jax.grad(lambda k: jax.lax.scan(lambda sum, x: (sum + f(x, k), None), 0.0, xs)[0])(kernel),
        lambda f: jax.grad(lambda xs: jax.lax.map(lambda x: f(x, kernel), xs).sum())(xs),
        lambda f: jax.grad(lambda k: jax.checkpoint(lambda k: f(xs[0], k))(k))(kernel),
    ):
        close(transform(lambda x, k: energy(MATMUL, x, k)), transform(lambda x, k: energy(NATIVE, x, k)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tiles", [1, 2])
def test_every_differentiation_mode_and_their_mixtures(tiles):
    """Of a convolution and a transposed one with a bend between them, as in a network."""
    random = np.random.RandomState(0)
    x, kernel = jnp.array(random.randn(tiles, 2, 5, 4, 2)), jnp.array(random.randn(3, 3, 2, 2))
    dx, dk = jnp.array(random.randn(*x.shape)), jnp.array(random.randn(*kernel.shape))

    def modes(pair):
        def network(x, k):
            return pair.transpose(jnp.tanh(pair.forward(x, k, 2, 1)), k, 2, 1, (5, 4))

        def energy(t, u):
            return jnp.square(network(x + t * dx, kernel + u * dk)).sum()

        return (
            jax.jvp(network, (x, kernel), (dx, dk)),
            jax.jacfwd(lambda t: network(x + t * dx, kernel))(0.1),
            jax.hessian(energy, (0, 1))(0.1, 0.2),
            jax.jvp(jax.grad(lambda k: jnp.square(network(x, k)).sum()), (kernel,), (dk,)),
            jax.vmap(jax.grad(lambda k: jnp.square(network(x, k)).sum()))(jnp.stack([kernel, dk])),
            jax.vmap(lambda x: network(x, kernel), 1, 2)(jnp.stack([x, dx], 1)),
        )

    jax.tree.map(close, *(jax.jit(lambda pair=pair: modes(pair))() for pair in (MATMUL, NATIVE)))


def test_the_choice():
    assert choose("matmul") is MATMUL
    for platform, expected in (("cpu", MATMUL), ("gpu", MATMUL), ("tpu", NATIVE)):
        with built_for(PLATFORMS[platform]):
            assert choose("auto") is expected
    with pytest.raises(UserError, match=r"model\.convolution: .*matmul.*found 'winograd'"):
        choose("winograd")
