"""Likelihoods against closed forms, quadrature and independent formulas, and laws that hold for each of them."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.config import Config, LikelihoodConfig, adapted
from vae_jax.data.treatments import TREATMENTS
from vae_jax.errors import UserError
from vae_jax.likelihoods import (
    Likelihood,
    bernoulli_log_prob,
    bits_per_dimension,
    get,
    measured,
    over,
    pixel_mean,
    squared_error,
)
from vae_jax.likelihoods.continuous_bernoulli import continuous_bernoulli_mean, log_sinhc
from vae_jax.likelihoods.logistic import log_mass
from vae_jax.shapes import Shapes

SHAPES = Shapes((1, 1, 1), 2)

level_log_mass = jax.jit(log_mass)
LEVELS = np.arange(256) / 255


def sized(name):
    return adapted(Config(), **{"likelihood.name": name, "likelihood.components": 3}).likelihood


OF_IMAGES = over(SHAPES)
CONFIGS = {
    **{
        name: adapted(Config(), **{"likelihood.name": name, "likelihood.components": 3}).likelihood
        for name in OF_IMAGES
    },
    **{f"gaussian_{variance}": LikelihoodConfig("gaussian", variance=variance) for variance in ("shared", "pixel")},
}
each = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@cache
def made(config, shape=(1, 1, 1)):
    """(outputs, images) -> log p, its gradient and the mean, compiled, with fresh parameters."""
    likelihood = get(config, Shapes(shape, 2))

    @jax.jit
    def run(outputs, images):
        params = likelihood.init(jax.random.key(0))
        log_prob, pull = jax.vjp(lambda outputs: likelihood.log_prob(params, outputs, images), outputs)
        return log_prob, pull(jnp.ones_like(log_prob))[0], likelihood.mean(params, outputs)

    return run


def run(config, outputs, pixels):
    """The same for single pixels: outputs (count, size) and pixels (count,), as numpy arrays."""
    outputs, pixels = jnp.asarray(outputs, float), jnp.asarray(pixels, float)
    log_prob, gradient, mean = made(config)(outputs[:, None, None, :], pixels[:, None, None, None])
    return np.asarray(log_prob), np.asarray(gradient)[:, 0, 0], np.asarray(mean).ravel()


def test_values_of_different_measures_are_said_apart():
    def kind(name, treatment, **parts):
        return measured(get(LikelihoodConfig(name), SHAPES)._replace(**parts), name, treatment)

    kinds = {(name, treatment): kind(name, treatment) for name in OF_IMAGES for treatment in TREATMENTS}
    assert kinds["bernoulli", "static"] == "probabilities of statically binarised pixels"
    assert kinds["bernoulli", "grey"] == "cross-entropies of grey levels"  # no distribution of them
    assert kinds["gaussian", "grey"] == kinds["continuous_bernoulli", "grey"] == "densities of grey levels"
    assert kinds["discretized_logistic", "grey"] == kinds["discretized_logistic_mixture", "grey"]
    assert kinds["discretized_logistic", "grey"] == "probabilities of grey levels"
    assert len({kinds["gaussian", treatment] for treatment in TREATMENTS}) == 4  # other data
    # A user's own is compared with itself, or with what says the same word.
    own = [kind("gaussian", "grey", measure=""), kind("bernoulli", "grey", measure="")]
    assert own == ["values of likelihood gaussian of grey levels", "values of likelihood bernoulli of grey levels"]
    assert kind("gaussian", "grey", measure="counts") == kind("bernoulli", "grey", measure="counts")


def images_of(values):
    return jnp.asarray(values, float).reshape(1, 1, -1, 1)


def support(config):
    """Points of one pixel, with their weights in a sum or an integral over all it can be."""
    measure = get(config, SHAPES).measure
    if measure == "binary":
        return np.array([0.0, 1.0]), np.ones(2)
    if measure == "levels":
        return LEVELS, np.ones(256)
    assert measure == "density"
    if config.name == "gaussian":  # equal steps, all but exact for it, with deviations here between 0.01 and 1
        return np.arange(-10, 11, 0.004), 0.004
    nodes, weights = np.polynomial.legendre.leggauss(100)
    return (nodes + 1) / 2, weights / 2


# --- Laws that hold for every likelihood ------------------------------------------------------------------------------


@each
@pytest.mark.usefixtures("float64")
def test_probabilities_add_up_to_one_and_have_the_mean(config):
    points, weights = support(config)
    several = np.random.RandomState(0).uniform(-2, 2, (4, get(config, SHAPES).outputs))
    log_prob, _, means = run(config, np.repeat(several, len(points), 0), np.tile(points, 4))
    mass = weights * np.exp(log_prob.reshape(4, -1))
    np.testing.assert_allclose(mass.sum(1), 1, rtol=1e-9)
    # The logistics' mean leaves out that levels are rounded.
    error = 1e-4 if config.name.startswith("discretized") else 1e-9
    np.testing.assert_allclose(means.reshape(4, -1)[:, 0], (mass * points).sum(1), rtol=0, atol=error)


@each
def test_an_image_is_the_sum_of_its_pixels(config):
    """Catches a layout in which numbers of one pixel or channel go to another."""
    shape = height, width, channels = 2, 2, 3
    size, batch = get(config, Shapes(shape, 2)).outputs, 2
    random = np.random.RandomState(0)
    outputs = random.randn(batch, height, width, size * channels)
    images = random.randint(0, 256, (batch, *shape)) / 255
    found = made(config, shape)(jnp.asarray(outputs, float), jnp.asarray(images, float))
    # The first number of every channel comes before the second of any.
    single = outputs.reshape(batch, height, width, size, channels).swapaxes(3, 4)
    log_prob, gradient, mean = run(config, single.reshape(-1, size), images.ravel())
    np.testing.assert_allclose(found[0], log_prob.reshape(batch, -1).sum(1), rtol=1e-5)
    gradient = gradient.reshape(single.shape).swapaxes(3, 4).reshape(outputs.shape)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], mean.reshape(images.shape), rtol=1e-5)


@each
def test_values_gradients_and_means_are_finite_at_extreme_outputs(config):
    extremes = np.array([0.0, 1e-6, 0.5, 20.0, 100.0, 1e4, 14_540.0, 1e6, 1e18, 1e30])
    extremes = np.concatenate([extremes, -extremes[1:]])
    outputs = np.random.RandomState(0).choice(extremes, (4000, get(config, SHAPES).outputs))
    outputs[: len(extremes)] = extremes[:, None]
    pixels = np.tile([0.0, 1 / 255, 0.5, 1.0], 4000)
    log_prob, gradient, means = run(config, np.repeat(outputs, 4, 0), pixels)
    assert np.isfinite(log_prob).all()
    assert np.isfinite(gradient).all()
    assert means.min() >= 0
    assert means.max() <= 1
    likelihood = get(config, SHAPES)
    params = likelihood.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda outputs: likelihood.mean(params, outputs).sum()))
    assert np.isfinite(gradient(jnp.asarray(outputs[:, None, None, :], float))).all()


@each
@pytest.mark.usefixtures("float64")
def test_the_gradient_is_that_of_finite_differences(config):
    size, step = get(config, SHAPES).outputs, 1e-5
    points = np.random.RandomState(1).randn(9, 1, size)
    # Each point with 0 and with a step either way in each direction.
    around = np.concatenate([np.zeros((1, size)), step * np.eye(size), -step * np.eye(size)])
    outputs = (points + around).reshape(-1, size)
    pixels = np.repeat(np.tile([0.0, 128 / 255, 1.0], 3), len(around))
    log_prob, gradient, _ = run(config, outputs, pixels)
    log_prob = log_prob.reshape(9, -1)
    differences = (log_prob[:, 1 : 1 + size] - log_prob[:, 1 + size :]) / (2 * step)
    found = gradient.reshape(9, -1, size)[:, 0]
    np.testing.assert_allclose(found, differences, rtol=1e-6, atol=1e-7)
    assert np.abs(found).max(0).min() > 1e-3  # every number of the decoder's matters


@each
def test_each_says_for_which_data_it_is_one(config):
    likelihood = get(config, SHAPES)
    assert set(likelihood.treatments) <= set(TREATMENTS)
    assert bool(likelihood.reason) == (set(likelihood.treatments) != set(TREATMENTS))


def test_bits_per_dimension():
    """A uniform density says nothing about a level, which then takes its 8 bits, and a level of mass 1 none."""
    uniform = Likelihood(1, lambda *_: jnp.zeros(1), lambda *_: jnp.zeros(1), measure="density")
    levels = uniform._replace(measure="levels")
    assert bits_per_dimension(uniform, "dequantized", 0.0, 784) == 8
    assert bits_per_dimension(levels, "grey", 0.0, 784) == 0
    assert bits_per_dimension(levels, "grey", 12 * np.log(256), 12) == pytest.approx(8)
    nats, size = 1234.5, 3072  # Theis et al. 2016: log₂ of the density of levels in [0, 256), which is 256 times wider
    expected = (nats + size * np.log(256)) / (size * np.log(2))
    assert bits_per_dimension(uniform, "dequantized", nats, size) == pytest.approx(expected)
    for likelihood, treatment in (
        (uniform, "grey"),  # of a density there
        (uniform, "static"),
        (uniform._replace(measure="binary"), "grey"),  # cross-entropies
        (uniform._replace(measure="binary"), "dynamic"),  # of 2 levels
        (uniform._replace(measure=""), "dequantized"),
    ):
        assert bits_per_dimension(likelihood, treatment, nats, size) is None


@pytest.mark.usefixtures("float64")
def test_bits_of_a_density_bound_those_of_the_levels_it_implies():
    """Of one level: −log₂ of the density's mass in its bin, at most the mean over the bin of the density's bits."""
    config, level = CONFIGS["continuous_bernoulli"], 200
    nodes, node_weights = np.polynomial.legendre.leggauss(50)
    inside = (level + (nodes + 1) / 2) / 256
    log_prob, _, _ = run(config, np.full((50, 1), 300.0), inside)
    mass = (np.exp(log_prob) * node_weights).sum() / 2 / 256
    bits = bits_per_dimension(get(config, SHAPES), "dequantized", -(log_prob * node_weights).sum() / 2, 1)
    assert -np.log2(mass) < bits < -np.log2(mass) + 0.1


# --- Bernoulli --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=4, max_size=4))
def test_bernoulli_is_minus_the_cross_entropy(pixels):
    logits, levels = np.array(pixels).T
    p = 1 / (1 + np.exp(-logits))
    expected = (levels * np.log(p) + (1 - levels) * np.log1p(-p)).sum()
    assert float(bernoulli_log_prob(images_of(logits), images_of(levels))[0]) == pytest.approx(
        expected, rel=1e-4, abs=1e-4
    )


@pytest.mark.parametrize("logit", [1e4, -1e4, 0.0, 88.8, -103.0])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_bernoulli_and_its_gradient_are_finite_and_right_at_extreme_logits(logit, level):
    value, gradient = jax.value_and_grad(lambda x: bernoulli_log_prob(images_of([x]), images_of([level]))[0])(logit)
    assert float(value) == pytest.approx(level * logit - np.logaddexp(0, logit), rel=1e-6)
    assert float(gradient) == pytest.approx(level - 1 / (1 + np.exp(-np.clip(logit, -700, 700))), abs=1e-6)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_squared_error_and_its_gradient_are_finite_at_extreme_logits(logit):
    value, gradient = jax.value_and_grad(lambda x: squared_error(images_of([x]), images_of([0.25]))[0])(logit)
    assert float(value) == pytest.approx((0.25 - (logit > 0)) ** 2)
    assert float(gradient) == 0


def test_squared_error_sums_over_pixels():
    error = squared_error(images_of([0.0, 0.0, 0.0]), images_of([0.5, 0.0, 1.0]))
    np.testing.assert_allclose(error, [0.5])
    np.testing.assert_allclose(pixel_mean(images_of([0.0, np.log(3)])).ravel(), [0.5, 0.75], rtol=1e-6)


# --- Continuous Bernoulli ---------------------------------------------------------------------------------------------

# Both sides of where the series ends (|l| = 1), its middle, and far away.
LOGITS = np.array([1e-9, 1e-4, 0.03, 0.7, 0.999999, 1.000001, 1.5, 7.0, 40.0, 100.0])
LOGITS = np.concatenate([-LOGITS[::-1], LOGITS])


@pytest.mark.usefixtures("float64")
def test_continuous_bernoulli_is_the_papers():
    """Equations 5 to 8 as they are printed, which lose their digits near 1/2, and at 1 if λ is rounded."""
    logits = LOGITS[(np.abs(LOGITS) > 0.5) & (np.abs(LOGITS) < 10)]
    lam = scipy.special.expit(logits)
    artanh = np.arctanh(1 - 2 * lam)
    for x in (0.0, 0.3, 1.0):
        log_prob, _, mean = run(CONFIGS["continuous_bernoulli"], logits[:, None], np.full_like(logits, x))
        expected = np.log(2 * artanh / (1 - 2 * lam)) + x * np.log(lam) + (1 - x) * np.log1p(-lam)
        np.testing.assert_allclose(log_prob, expected, atol=1e-11)
        np.testing.assert_allclose(mean, lam / (2 * lam - 1) + 1 / (2 * artanh), atol=1e-11)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 2e-7), ("float64", 1e-12)])
def test_continuous_bernoulli_is_accurate_at_its_singularity_and_far_away(dtype, error):
    with jax.enable_x64(dtype == "float64"):
        logits = jnp.asarray(LOGITS, dtype)
        found, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_sinhc)))(logits / 2)
        means = jax.jit(continuous_bernoulli_mean)(logits)
    # In numbers of 64 bits; below 0.01 the first terms of the series are more exact than the formulas.
    u = np.asarray(logits, np.longdouble) / 2
    near, safe = np.abs(u) < 0.01, np.where(np.abs(u) < 0.01, 1, u)
    value = np.where(near, u**2 / 6 - u**4 / 180, np.log(np.sinh(safe) / safe))
    slope = np.where(near, u / 3 - u**3 / 45 + 2 * u**5 / 945, 1 / np.tanh(safe) - 1 / safe)
    np.testing.assert_allclose(found, value.astype(float), rtol=error, atol=error)
    np.testing.assert_allclose(slopes, slope.astype(float), rtol=error, atol=error)
    np.testing.assert_allclose(means, (slope / 2 + 0.5).astype(float), rtol=0, atol=error)


@pytest.mark.parametrize("logit", [7e3, 14_536.0, 14_538.0, 2e4, 1e10, 1e30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_continuous_bernoulli_and_its_gradient_are_right_at_any_logit(logit, sign):
    logits, pixels = np.full((3, 1), sign * logit), np.array([0.0, 0.3, 1.0])
    log_prob, gradient, _ = run(CONFIGS["continuous_bernoulli"], logits, pixels)
    expected = sign * logit * (pixels - 0.5) - (logit / 2 - np.log(logit))  # sinh u = e^|u| / 2
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-6 * logit)
    np.testing.assert_allclose(gradient[:, 0], pixels - 0.5 - sign * (0.5 - 1 / logit), atol=1e-6)


# --- Gaussian ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", [0.01, 0.1, 2.0])
def test_gaussians_start_at_the_configured_scale(scale):
    random = np.random.RandomState(0)
    logits, x = random.randn(3, 1, 1, 1), random.rand(3, 1, 1, 1)
    expected = scipy.stats.norm.logpdf(x, scipy.special.expit(logits), scale).ravel()
    for variance, outputs in (("fixed", logits), ("shared", logits), ("pixel", np.concatenate([logits, 0 * x], -1))):
        likelihood = get(LikelihoodConfig("gaussian", variance=variance, scale=scale), SHAPES)
        params = likelihood.init(jax.random.key(0))
        found = jax.jit(likelihood.log_prob)(params, jnp.asarray(outputs), jnp.asarray(x))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_a_shared_scale_learns_the_residuals_deviation():
    """Rybkin et al. (2021), equation 7: the best shared σ² is the mean squared error."""
    likelihood = get(CONFIGS["gaussian_shared"], Shapes((8, 8, 1), 2))
    random = np.random.RandomState(0)
    outputs, x = jnp.asarray(random.randn(4, 8, 8, 1)), jnp.asarray(random.rand(4, 8, 8, 1))
    gradient = jax.jit(jax.grad(lambda params: likelihood.log_prob(params, outputs, x).sum()))
    deviation = float(jnp.sqrt(squared_error(outputs, x).sum() / x.size))
    slopes = [
        float(gradient({"log_scale": jnp.full((), np.log(factor * deviation - 1 / 510))})["log_scale"])
        for factor in (0.9, 1, 1.1)
    ]
    assert slopes[0] > 1
    assert slopes[1] == pytest.approx(0, abs=1e-8)
    assert slopes[2] < -1


def test_a_learned_scale_ends_at_half_a_grey_level():
    found = run(CONFIGS["gaussian_pixel"], np.array([[0.0, -1e4]]), np.array([0.5]))[0]
    assert float(found[0]) == pytest.approx(scipy.stats.norm.logpdf(0, scale=1 / 510), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"name": "gaussian", "variance": "diagonal"},
            "likelihood.variance: expected one of fixed, shared, pixel; found",
        ),
        (
            {"name": "gaussian", "variance": "pixel", "scale": 0.0015},
            "likelihood.scale: expected more than half a",
        ),
        ({"name": "gauss"}, "likelihood.name: expected one of bernoulli, .*did you mean gaussian"),
    ],
)
def test_what_there_is_not_is_refused(options, reason):
    with pytest.raises(UserError, match=reason):
        get(LikelihoodConfig(**options), SHAPES)


# --- Discretized logistics --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_the_mass_of_a_level_is_the_difference_of_scipys_distribution_function():
    location, raw = 0.4, -2.0
    scale = 1 / 255 / 32 + 0.1 * np.exp(raw)
    edges = np.concatenate([[-np.inf], LEVELS[:-1] + 1 / 510, [np.inf]])
    below, above = (
        f(edges, scipy.special.expit(location), scale) for f in (scipy.stats.logistic.cdf, scipy.stats.logistic.sf)
    )
    expected = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))  # neither keeps its digits near 1
    found = level_log_mass(jnp.asarray(LEVELS), jnp.full(256, location), jnp.full(256, raw))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9)


def test_the_mass_of_far_levels_is_right_where_sigmoids_round_to_the_same_number():
    """Levels up to 500 scales away have the mass of the density in their middle times their width, times a factor."""
    location, raw = jnp.full(256, 0.0), jnp.full(256, -4.6)
    scale = 1 / 255 / 32 + 0.1 * np.exp(-4.6)
    z = np.abs(LEVELS - 0.5) / scale
    mass = np.log(2 * np.sinh(1 / 510 / scale)) - z  # e^-z (e^h − e^-h), for z ≫ 1
    inner = (z > 40) & (LEVELS > 0) & (LEVELS < 1)
    assert inner.sum() > 100
    assert mass[inner].min() < -300
    found = np.asarray(level_log_mass(jnp.asarray(LEVELS, jnp.float32), location, raw))
    np.testing.assert_allclose(found[inner], mass[inner], rtol=1e-5)


def test_a_level_can_have_nearly_all_of_the_mass():
    """Else every pixel of a black border would cost a learned model more than nothing."""
    found = level_log_mass(jnp.array([0.0, 128 / 255]), jnp.array([-30.0, np.log(128 / 127)]), jnp.full(2, -30.0))
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_the_mean_is_never_half_a_level_from_the_exact_one():
    config = CONFIGS["discretized_logistic"]
    numbers = [(location, raw) for location in (-9.0, -1.0, 0.0, 0.003, 3.0) for raw in (-30.0, -4.0, 0.0, 6.0, 30.0)]
    log_prob, _, means = run(config, np.repeat(numbers, 256, 0), np.tile(LEVELS, len(numbers)))
    exact = (np.exp(log_prob) * np.tile(LEVELS, len(numbers))).reshape(-1, 256).sum(1)
    np.testing.assert_allclose(means.reshape(-1, 256)[:, 0], exact, rtol=0, atol=1 / 510)


def test_a_mixture_of_one_is_its_component_and_weights_mix():
    random = np.random.RandomState(0)
    parts, levels = random.randn(5, 3, 3), LEVELS[random.randint(0, 256, 5)]  # (pixel, number, component)
    one, mixture = CONFIGS["discretized_logistic"], CONFIGS["discretized_logistic_mixture"]
    each = run(one, parts[:, 1:].swapaxes(1, 2).reshape(15, 2), np.repeat(levels, 3))[0].reshape(5, 3)
    expected = np.log((scipy.special.softmax(parts[:, 0], 1) * np.exp(each)).sum(1))
    np.testing.assert_allclose(run(mixture, parts.reshape(5, 9), levels)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(run(replace(mixture, components=1), parts[:, :, 0], levels)[0], each[:, 0], rtol=1e-5)
