"""Quantisation without a codebook: levels (FSQ) against the paper's numbers, signs (LFQ) against all of their codes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import posteriors
from vae_jax.config import Config, adapted
from vae_jax.errors import UserError
from vae_jax.model.build import build
from vae_jax.shapes import Shapes

LEVELS = (8, 5, 5, 5)


def made(name, latent, places=(1,), **options):
    """A posterior with some options changed."""
    changed = {"places": list(places), **options}
    config = adapted(Config(), **{"posterior.name": name}, **{f"posterior.{n}": v for n, v in changed.items()})
    made = posteriors.get(config.posterior, Shapes((8, 8, 1), latent))
    return made._replace(center=jax.jit(made.center))  # compiled at once, it takes less


def heads_of(vectors):
    """Heads of images with one place."""
    return {"mu": jnp.asarray(vectors, jnp.float32)[:, None, :]}


def bound(u, levels, xp=np):
    """Mentzer et al.'s bound with artanh, in double precision, and half of the levels."""
    levels = np.asarray(levels)
    offset, reach = np.where(levels % 2, 0, 0.5), (levels - 1) * 1.001 / 2
    shift = np.broadcast_to(np.arctanh(offset / reach), np.shape(u))
    reach, offset = (np.broadcast_to(each, np.shape(u)) for each in (reach, offset))
    return reach * xp.tanh(u + shift) - offset


# --- FSQ -------------------------------------------------------------------------------------------------------------


def test_the_bound_in_double_precision():
    np.testing.assert_array_equal(bound(np.zeros(4), LEVELS), np.zeros(4))
    np.testing.assert_allclose(
        bound(np.array([1, -1, 0.3, -0.3]), LEVELS), [2.3576462, -1.5247115, 0.58320785, -0.58320785], rtol=1e-7
    )
    np.testing.assert_allclose(bound(np.full(4, 99.0), LEVELS), [3.0035, 2.002, 2.002, 2.002], rtol=1e-12)
    np.testing.assert_allclose(bound(np.full(4, -99.0), LEVELS), [-4.0035, -2.002, -2.002, -2.002], rtol=1e-12)


@pytest.mark.parametrize(
    ("u", "code", "index"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 0), 500),
        ((1, -1, 0.3, -0.3), (0.5, -1, 0.5, -0.5), 326),
        ((9, 9, 9, 9), (0.75, 1, 1, 1), 999),
        ((-9, -9, -9, -9), (-1, -1, -1, -1), 0),
    ],
)
def test_codes_and_their_numbers(u, code, index):
    posterior = made("fsq", 4)
    sample = posterior.center({}, heads_of([u]))
    np.testing.assert_array_equal(sample.z[0, 0], code)
    assert int(sample.codes[0, 0]) == index
    assert int(posterior.codes.of({}, sample.z)[0, 0]) == index
    np.testing.assert_array_equal(posterior.codes.vectors({}, sample.codes), sample.z)
    again = posterior.transform({}, (), heads_of([u]))
    np.testing.assert_array_equal(again.z, sample.z)
    assert (again.cost, again.state, dict(again.figures)) == (None, None, {})


@pytest.mark.parametrize("levels", [LEVELS, (3, 4), (7, 6, 3), (512, 3)])
def test_a_fine_grid_hits_every_code(levels):
    """Codes are the rounded bound, counted as the paper says; the codes' vectors are theirs, and no others."""
    posterior = made("fsq", len(levels), levels=list(levels))
    middle = np.asarray(levels) // 2
    axes = [np.arctanh(np.linspace(-0.99999, 0.99999, 4 * count + 1)) for count in levels]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(levels)).astype(np.float32)
    sample = posterior.center({}, heads_of(grid))
    index = np.asarray(sample.codes)[:, 0]
    assert (index.dtype, len(np.unique(index))) == (np.int32, math.prod(levels))
    assert (index.min(), index.max(), posterior.codes.values) == (0, math.prod(levels) - 1, math.prod(levels))
    inside = bound(grid.astype(float), levels)
    rounded = np.round(inside)
    clear = (np.abs(np.abs(inside - np.floor(inside)) - 0.5) > 1e-3).all(1)  # between two levels either is right
    assert clear.mean() > 0.5
    np.testing.assert_allclose(np.asarray(sample.z)[clear, 0], (rounded / middle)[clear], rtol=1e-6)
    expected = ((rounded + middle) * np.cumprod([1, *levels[:-1]])).sum(1)
    np.testing.assert_array_equal(index[clear], expected[clear])
    every = jnp.arange(math.prod(levels), dtype=jnp.int32)[:, None]
    z = posterior.codes.vectors({}, every)
    np.testing.assert_array_equal(posterior.codes.of({}, z), every)
    assert len(np.unique(np.asarray(z)[:, 0], axis=0)) == math.prod(levels)
    assert set(np.unique(z[..., -1] * middle[-1]).round(5)) == set(range(-middle[-1], levels[-1] - middle[-1]))


def test_four_levels_are_not_symmetric():
    posterior = made("fsq", 1, levels=[4])
    z = posterior.center({}, heads_of(np.linspace(-6, 6, 200)[:, None])).z
    np.testing.assert_array_equal(np.unique(z), [-1, -0.5, 0, 0.5])


def test_the_gradient_is_the_bounds():
    posterior, levels = made("fsq", 3, levels=[8, 5, 4]), np.array([8, 5, 4])
    vectors, weights = np.random.RandomState(0).randn(2, 50, 3)

    def function(vectors):
        return (jnp.asarray(weights, jnp.float32) * posterior.center({}, heads_of(vectors)).z[:, 0]).sum()

    step = 1e-6
    slope = (bound(vectors + step, levels) - bound(vectors - step, levels)) / (2 * step)
    found = jax.grad(function)(jnp.asarray(vectors, jnp.float32))
    np.testing.assert_allclose(found, weights * slope / (levels // 2), rtol=1e-4, atol=1e-6)


def test_places_and_leading_axes_of_fsq():
    posterior = made("fsq", 4, (2, 3))
    mu = jnp.asarray(np.random.RandomState(0).randn(4, 5, 2, 3, 4), jnp.float32)
    sample = jax.jit(posterior.transform)({}, (), {"mu": mu})
    assert (sample.z.shape, sample.codes.shape, sample.log_q.shape) == ((4, 5, 2, 3, 4), (4, 5, 2, 3), (4, 5))
    np.testing.assert_array_equal(posterior.codes.vectors({}, sample.codes), sample.z)
    np.testing.assert_array_equal(posterior.codes.of({}, sample.z), sample.codes)
    np.testing.assert_array_equal(posterior.center({}, {"mu": mu[1, 2]}).z, sample.z[1, 2])
    kl = posterior.kl["uniform"].total({"mu": mu}, {})
    np.testing.assert_allclose(kl, np.full((4, 5), 6 * math.log(1000)), rtol=1e-6)


@pytest.mark.parametrize(("name", "latent"), [("fsq", 4), ("lfq", 13)])
def test_bfloat16_heads_are_counted_exactly(name, latent):
    posterior = made(name, latent)
    heads = {"mu": jnp.asarray(3 * np.random.RandomState(0).randn(500, 1, latent), jnp.bfloat16)}
    rounded = posterior.center({}, heads)
    exact = posterior.center({}, {"mu": heads["mu"].astype(jnp.float32)})
    np.testing.assert_array_equal(rounded.z, exact.z)
    np.testing.assert_array_equal(posterior.codes.of({}, rounded.z), exact.codes)
    assert len(np.unique(exact.codes)) > 200


# --- LFQ -------------------------------------------------------------------------------------------------------------


def test_signs_by_hand():
    """0 counts as +1; of 3 signs the first varies fastest; the gradient passes straight through."""
    posterior = made("lfq", 3, commitment=0.5, entropy=0)
    vectors = np.array([[0.3, -2.0, 0.0], [-0.1, -0.2, 5.0]])
    sample = posterior.transform({}, (), heads_of(vectors))
    np.testing.assert_array_equal(sample.z[:, 0], [[1, -1, 1], [-1, -1, 1]])
    np.testing.assert_array_equal(sample.codes[:, 0], [5, 4])
    np.testing.assert_allclose(sample.cost, 0.5 * np.square(vectors - sample.z[:, 0]).sum(1), rtol=1e-6)
    np.testing.assert_allclose(sample.figures["commitment"], sample.cost, rtol=1e-6)
    slope = jax.grad(lambda mu: (posterior.center({}, heads_of(mu)).z ** 3).sum())(jnp.asarray(vectors, jnp.float32))
    np.testing.assert_array_equal(slope, np.full((2, 3), 3.0))
    to_cost = jax.grad(lambda mu: posterior.center({}, heads_of(mu)).cost.sum())(jnp.asarray(vectors, jnp.float32))
    np.testing.assert_allclose(to_cost, vectors - np.asarray(sample.z[:, 0]), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_entropies_against_all_codes(temperature):
    """8 codes at 2 places of 5 images, with a softmax of −‖E − code‖²/τ over them.

    A place's entropy is that over all codes. The mean's is that of its dimensions: all of it where they are
    independent, and more where they are not.
    """
    posterior = made("lfq", 3, (2,), temperature=temperature, commitment=0, entropy=0.7, diversity=2.0)
    mu = np.random.RandomState(0).randn(5, 2, 3)
    sample = posterior.center({}, {"mu": jnp.asarray(mu, jnp.float32)})
    codes = np.array([*itertools.product((-1, 1), repeat=3)])
    scores = -np.square(mu[..., None, :] - codes).sum(-1) / temperature
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    entropies = -(shares * np.log(shares)).sum(-1)
    np.testing.assert_allclose(sample.figures["entropy"], entropies.sum(1), rtol=1e-5)
    up = np.einsum("bpk,kd->d", shares, codes > 0) / 10
    of_dimensions = -(up * np.log(up) + (1 - up) * np.log(1 - up)).sum()
    assert sample.figures["entropy_of_mean"].shape == ()
    np.testing.assert_allclose(sample.figures["entropy_of_mean"], 2 * of_dimensions, rtol=1e-5)
    mean = shares.mean((0, 1))
    assert of_dimensions > -(mean * np.log(mean)).sum() + 1e-3
    np.testing.assert_allclose(sample.cost, 0.7 * (entropies.sum(1) - 2 * 2 * of_dimensions), rtol=1e-5)
    # The same vector everywhere: the dimensions are independent.
    alike = posterior.center({}, {"mu": jnp.broadcast_to(jnp.asarray(mu[:1, :1], jnp.float32), mu.shape)}).figures
    np.testing.assert_allclose(alike["entropy_of_mean"], 2 * entropies[0, 0], rtol=1e-5)


def test_independent_signs_have_the_entropy_of_all_codes():
    """Vectors whose every combination of signs occurs once: their mean is a product over dimensions."""
    posterior = made("lfq", 3)
    vectors = 0.2 * np.array([*itertools.product((-1, 2), repeat=3)]) * [1, 0.5, 3]
    found = posterior.center({}, heads_of(vectors)).figures["entropy_of_mean"]
    codes = np.array([*itertools.product((-1, 1), repeat=3)])
    scores = np.exp(-np.square(vectors[:, None, :] - codes).sum(-1))
    mean = (scores / scores.sum(-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found, -(mean * np.log(mean)).sum(), rtol=1e-5)


def test_certain_signs_have_no_entropy_and_no_nan():
    posterior = made("lfq", 2, temperature=0.01)

    def cost(mu):
        sample = posterior.center({}, heads_of(mu))
        return sample.cost.sum(), sample.figures

    slope, figures = jax.grad(cost, has_aux=True)(jnp.array([[300.0, -300.0], [300.0, 300.0], [1e4, 1e4]]))
    np.testing.assert_allclose(figures["entropy"], np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(figures["entropy_of_mean"], math.log(3) - 2 / 3 * math.log(2), rtol=1e-5)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("latent", [1, 30])
def test_numbers_of_signs(latent):
    """As many as fit 32 bits."""
    posterior = made("lfq", latent, (3,))
    numbers = np.random.RandomState(0).randint(0, 2**latent, (2, 4, 3))
    numbers[0, 0] = [0, 2**latent - 1, 2 ** (latent - 1)]
    z = posterior.codes.vectors({}, jnp.asarray(numbers))
    assert (z.shape, set(np.unique(z))) == ((2, 4, 3, latent), {-1.0, 1.0})
    np.testing.assert_array_equal(posterior.codes.of({}, z), numbers)
    np.testing.assert_array_equal(z[0, 0, 1], np.ones(latent))
    sample = posterior.center({}, {"mu": z})
    np.testing.assert_array_equal(sample.codes, numbers)
    np.testing.assert_allclose(posterior.kl["uniform"].total({"mu": z}, {}), 3 * latent * math.log(2), rtol=1e-6)


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "latent", "options", "message"),
    [
        ("fsq", 3, {}, r"model\.latent: expected 4, as many dimensions as posterior\.levels has; found 3"),
        ("fsq", 2, {"levels": [5, 2]}, r"posterior\.levels: expected at least 3 levels .* flat .*; found 2"),
        ("fsq", 2, {"levels": [1, 5]}, r"posterior\.levels: expected at least 3 levels .*; found 1"),
        ("fsq", 2, {"levels": [5, 513]}, r"posterior\.levels: expected a number in \[1, 512\]; found 513"),
        ("fsq", 4, {"levels": []}, r"posterior\.levels: expected at least one number; found none"),
        ("fsq", 4, {"levels": [512] * 4}, r"posterior\.levels: expected a product of at most 2,147,483,647"),
        ("lfq", 31, {}, r"model\.latent: expected at most 30 with posterior lfq.*; found 31"),
        ("lfq", 3, {"temperature": 0}, r"posterior\.temperature: expected a number in \(0, inf\)"),
        ("lfq", 3, {"places": None}, r"posterior\.places: expected the shape of the codes"),
        ("fsq", 4, {"places": None}, r"posterior\.places: expected the shape of the codes"),
    ],
)
def test_what_does_not_fit_is_refused(name, latent, options, message):
    given = {"model.network": "mlp", "model.latent": latent, "posterior.name": name, "prior.name": "uniform"}
    more = {f"posterior.{option}": value for option, value in {"places": [4], **options}.items()}

    def build_it():
        build(adapted(Config(), **given, **more), (8, 8, 1))

    with pytest.raises(UserError, match=message) as refused:
        build_it()
    assert len(str(refused.value).splitlines()) == 1
