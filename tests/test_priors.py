"""Priors against closed forms, quadrature, their own samples and their limits; the VampPrior in a whole model."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from vae_jax.config import Config, ModelConfig, ObjectiveConfig, PriorConfig, adapted
from vae_jax.errors import UserError
from vae_jax.model.build import build
from vae_jax.posteriors.gaussian import diagonal_log_prob
from vae_jax.priors import PRIORS, Aggregate, get
from vae_jax.priors.vamp import pseudo_inputs
from vae_jax.shapes import Shapes

SMALL = {"prior.components": 3, "prior.flows": 3, "prior.hidden": 8}
SHAPE = (4, 4, 1)


def small(name, latent):
    """A small prior, over so many dimensions."""
    return get(adapted(Config(), **SMALL, **{"prior.name": name}).prior, Shapes(SHAPE, latent))


NAMES = sorted(PRIORS.keys() - {"uniform", "pixelcnn", "transformer"})  # over codes, which have tests of their own
LEARNED = [name for name in NAMES if name != "standard_normal"]


def heads_of(images, latent):
    """A posterior of images, as simple as can be: each latent looks at one row of pixels."""
    rows = images.mean((2, 3))[:, :latent]
    return {"mu": 6 * rows - 3, "log_var": rows - 1}


def aggregate(latent):
    def log_prob(z, images):
        shape = (*z.shape[:-1], len(images), latent)
        heads = {name: jnp.broadcast_to(head, shape) for name, head in heads_of(images, latent).items()}
        return diagonal_log_prob({}, jnp.broadcast_to(z[..., None, :], shape), heads)

    def sample(key, images):
        heads = heads_of(images, latent)
        return heads["mu"] + jnp.exp(heads["log_var"] / 2) * jax.random.normal(key, heads["mu"].shape)

    return Aggregate(log_prob, sample)


def shaken(params, scale=0.5):
    """Parameters as if trained: none of them 0."""
    random = np.random.RandomState(0)
    return jax.tree.map(lambda leaf: leaf + scale * random.randn(*leaf.shape).astype(leaf.dtype), params)


@cache
def example(name, latent, scale=0.5):
    """(params, log_prob of z, sample of a key and a number), of a prior as if trained."""
    prior, given = small(name, latent), aggregate(latent)
    params = shaken(jax.jit(prior.init)(jax.random.key(0)), scale)
    log_prob = jax.jit(lambda params, z: prior.log_prob(params, z, given))
    sample = jax.jit(lambda params, key, count: prior.sample(params, key, count, given), static_argnums=2)
    return params, log_prob, sample


@pytest.mark.parametrize("name", NAMES)
def test_densities_of_one_dimension_integrate_to_1(name):
    params, log_prob, _ = example(name, 1)
    z = np.linspace(-30, 30, 20_001)
    density = np.exp(np.asarray(log_prob(params, jnp.asarray(z[:, None], jnp.float32)), float))
    assert np.trapezoid(density, z) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_densities_of_two_dimensions_integrate_to_1_and_are_those_of_the_samples(name):
    params, log_prob, sample = example(name, 2)
    drawn = np.asarray(sample(params, jax.random.key(1), 20_000), float)
    assert drawn.shape == (20_000, 2)
    center, spread = drawn.mean(0), drawn.std(0)
    axes = [np.linspace(c - 8 * s, c + 8 * s, 601) for c, s in zip(center, spread, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    log_p = np.asarray(log_prob(params, jnp.asarray(grid, jnp.float32)), float)
    mass = np.exp(log_p) * np.prod([axis[1] - axis[0] for axis in axes])
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    moments = (lambda z: z[..., 0], lambda z: z[..., 1], lambda z: z[..., 0] ** 2, lambda z: z.prod(-1))
    pairs = [(moment(grid), moment(drawn)) for moment in moments]
    pairs.append((log_p, np.asarray(log_prob(params, jnp.asarray(drawn, jnp.float32)), float)))
    for expected, found in pairs:
        assert (mass * expected).sum() == pytest.approx(found.mean(), abs=5 * found.std() / len(found) ** 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_z_may_have_any_leading_axes(name):
    params, log_prob, _ = example(name, 2)
    z = jax.random.normal(jax.random.key(0), (2, 3, 2))
    np.testing.assert_allclose(log_prob(params, z), log_prob(params, z.reshape(6, 2)).reshape(2, 3), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.5, 10.0])
def test_values_and_gradients_are_finite_far_out_and_for_large_parameters(name, scale):
    params, log_prob, sample = example(name, 2, scale)
    z = 100 * jax.random.normal(jax.random.key(1), (6, 2))
    found = jax.jit(jax.value_and_grad(lambda params, z: log_prob(params, z).sum(), (0, 1)))(params, z)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.isfinite(sample(params, jax.random.key(2), 10)).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_wherever_values_are(name):
    """At extreme parameters, where a component of a mixture may underflow beside others that do not."""
    count, random = 200, np.random.RandomState(3)
    prior, given = small(name, 2), aggregate(2)

    def extreme(path, leaf):
        values = (0.0, 1.0, 80.0) if "log_var" in jax.tree_util.keystr(path) else (0.0, 1.0, 100.0, 1e4)
        return jnp.asarray(random.choice([*values, *(-value for value in values)], (count, *leaf.shape)), jnp.float32)

    params = jax.tree_util.tree_map_with_path(extreme, jax.eval_shape(prior.init, jax.random.key(0)))
    z = extreme((), np.zeros(2))
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(lambda *at: prior.log_prob(*at, given), (0, 1))))(params, z)
    finite = np.abs(values) < 1e15  # a gradient may be so much larger that it overflows itself
    assert finite.mean() > 0.2
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf[finite]).all()


def test_the_standard_normal_and_what_a_flow_starts_as_are_scipys():
    z = np.random.RandomState(0).randn(7, 3).astype(np.float32)
    expected = multivariate_normal(np.zeros(3)).logpdf(z)
    drawn = []
    for name in ("standard_normal", "flow"):
        prior = small(name, 3)
        params = prior.init(jax.random.key(0))
        np.testing.assert_allclose(prior.log_prob(params, jnp.asarray(z), aggregate(3)), expected, rtol=1e-5)
        drawn.append(np.asarray(prior.sample(params, jax.random.key(1), 5, aggregate(3))))
    np.testing.assert_array_equal(*drawn)


def test_a_mixture_is_the_sum_of_its_components_and_starts_with_the_standard_normals_moments():
    params, log_prob, _ = example("mixture", 2)
    z = np.random.RandomState(0).randn(7, 2).astype(np.float32)
    logits, mu, log_var = (np.asarray(params[name], float) for name in ("logits", "mu", "log_var"))
    weights = np.exp(logits) / np.exp(logits).sum()
    parts = [
        weight * multivariate_normal(mean, np.diag(np.exp(spread))).pdf(z)
        for weight, mean, spread in zip(weights, mu, log_var, strict=True)
    ]
    np.testing.assert_allclose(log_prob(params, jnp.asarray(z)), np.log(sum(parts)), rtol=1e-5)

    start = get(PriorConfig(name="mixture", components=20_000), Shapes(SHAPE, 2)).init(jax.random.key(0))
    second = np.square(np.asarray(start["mu"], float)) + np.exp(np.asarray(start["log_var"], float))
    np.testing.assert_allclose(second.mean(0), 1, atol=5 * 0.5 * (2 / 20_000) ** 0.5)
    assert not np.asarray(start["logits"]).any()


def test_a_flow_depends_on_every_dimension_through_every_other():
    params, log_prob, _ = example("flow", 4)
    curvature = jax.jit(jax.hessian(lambda z: log_prob(params, z)))(jnp.full(4, 0.3))
    assert (np.asarray(curvature) != 0).all()


def test_the_vamp_prior_is_the_mean_of_the_posteriors_at_its_pseudo_inputs():
    params, log_prob, _ = example("vamp", 2)
    images = np.asarray(pseudo_inputs(params))
    assert images.shape == (3, *SHAPE)
    assert images.min() > 0
    assert images.max() < 1
    heads = heads_of(images, 2)
    z = np.random.RandomState(0).randn(7, 2).astype(np.float32)
    within = norm(heads["mu"], np.exp(heads["log_var"] / 2)).logpdf(z[:, None]).sum(-1)
    np.testing.assert_allclose(log_prob(params, jnp.asarray(z)), logsumexp(within, 1) - np.log(3), rtol=1e-5)


def model_with(prior, posterior="diagonal_gaussian", **objective):
    config = Config(model=ModelConfig(network="mlp", latent=3, layers=(8,)), objective=ObjectiveConfig(**objective))
    sizes = {"posterior.flows": 2, "posterior.hidden": 8, "posterior.context": 4}
    return adapted(config, **SMALL, **sizes, **{"prior.name": prior, "posterior.name": posterior})


@pytest.mark.parametrize(
    ("name", "posterior", "objective"),
    [
        *((name, "diagonal_gaussian", {}) for name in LEARNED),
        ("vamp", "iaf", {}),
        ("vamp", "full_gaussian", {"name": "iwae", "gradient": "dreg", "samples": 3}),
        ("flow", "planar", {"name": "iwae", "samples": 3}),
    ],
)
def test_all_of_a_models_parameters_have_a_finite_gradient(name, posterior, objective):
    config = model_with(name, posterior, **objective)
    network, found = build(config, SHAPE)
    variables = jax.jit(network.init)(jax.random.key(0))
    variables = variables._replace(params=shaken(variables.params, 0.3))
    images = jax.random.uniform(jax.random.key(2), (5, *SHAPE))

    def loss(params):
        terms, _ = network.apply(
            variables._replace(params=params),
            lambda model: found.terms(jax.random.key(3), model, images, config.objective.options),
            jax.random.key(4),
            True,
        )
        return terms["loss"].sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables.params)
    assert np.isfinite(value)
    assert "prior" in gradients
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.asarray(gradient).any(), path


def test_a_models_vamp_prior_is_made_of_its_own_posterior():
    network, _ = build(model_with("vamp"), SHAPE)
    variables = jax.jit(network.init)(jax.random.key(0))
    images = pseudo_inputs(variables.params["prior"])
    z = jax.random.normal(jax.random.key(1), (2, 5, 3))

    def parts(model):
        heads = model.encode(images)
        apart = [model.log_posterior(z, {name: head[i] for name, head in heads.items()}) for i in range(3)]
        return heads, model.log_prior(z), jnp.stack(apart)

    heads, found, apart = jax.jit(lambda: network.apply(variables, parts)[0])()
    np.testing.assert_allclose(found, logsumexp(np.asarray(apart), 0) - np.log(3), rtol=1e-5)

    drawn = np.asarray(network.sample_prior(variables, jax.random.key(2), 20_000))
    mu, variance = np.asarray(heads["mu"]), np.exp(np.asarray(heads["log_var"]))
    assert drawn.shape == (20_000, 3)
    deviation = drawn.std(0)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - mu.mean(0)), 5 * deviation / 20_000**0.5)
    np.testing.assert_allclose(drawn.var(0), variance.mean(0) + mu.var(0), rtol=5 * (3 / 20_000) ** 0.5)


def test_a_vamp_prior_needs_a_posterior_with_a_density():
    with pytest.raises(UserError, match=r"prior\.name: .* found vamp"):
        build(model_with("vamp", "planar"), SHAPE)
