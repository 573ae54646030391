"""Posteriors against closed forms, Jacobians, quadrature, Monte Carlo and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from vae_jax.blocks.masked import MADE
from vae_jax.config import Config, ModelConfig, ObjectiveConfig, adapted
from vae_jax.model.build import build
from vae_jax.posteriors import POSTERIORS, get, point
from vae_jax.posteriors.flows import GATE_START, PLANAR_START, SMALLEST_SLOPE, planar_flow
from vae_jax.posteriors.gaussian import cholesky, diagonal_kl, diagonal_transform
from vae_jax.shapes import Shapes

SMALL = {"posterior.flows": 3, "posterior.hidden": 8, "posterior.context": 4}


def small(name, latent):
    """A small posterior, over so many dimensions."""
    return get(adapted(Config(), **SMALL, **{"posterior.name": name}).posterior, Shapes((4, 4, 1), latent))


OF_CODES = {"codebook", "fsq", "lfq", "categorical", "bernoulli"}  # which have tests of their own
NAMES = sorted(POSTERIORS.keys() - OF_CODES)
KNOWN = [name for name in NAMES if small(name, 2).log_prob]  # a density at any z


def closed(posterior):
    """The KL from the standard normal in closed form, if there is one."""
    return posterior.kl.get("standard_normal")


CLOSED = [name for name in NAMES if closed(small(name, 2))]
numbers = st.floats(-5, 5, width=32)


def shaken(params, scale=0.4):
    """Parameters as if trained: none of them 0."""
    random = np.random.RandomState(0)
    return jax.tree.map(lambda leaf: leaf + scale * random.randn(*leaf.shape).astype(leaf.dtype), params)


def example(name, latent, batch=(), scale=0.5):
    """A posterior, its parameters, and heads for (*batch, latent)."""
    posterior = small(name, latent)
    random = np.random.RandomState(1)
    heads = {
        head: jnp.asarray(scale * (3 if head in "uwb" else 1) * random.randn(*batch, size), float)
        for head, size in posterior.heads.items()
    }
    return posterior, shaken(jax.jit(posterior.init)(jax.random.key(0))), heads


def repeated(heads, *shape):
    return {name: jnp.broadcast_to(head, (*shape, head.shape[-1])) for name, head in heads.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("latent", [1, 3])
def test_a_samples_density_is_the_noises_over_the_jacobians_determinant(name, latent, float64):
    posterior, params, heads = example(name, latent, scale=0.8)

    def one(noise):
        return posterior.transform(params, noise, heads)

    noise = jax.random.normal(jax.random.key(1), (5, latent))
    slopes, log_q = jax.jit(jax.vmap(jax.jacfwd(one, has_aux=True)))(noise)
    expected = (
        multivariate_normal(np.zeros(latent)).logpdf(np.asarray(noise)) - np.linalg.slogdet(np.asarray(slopes))[1]
    )
    np.testing.assert_allclose(log_q, expected, rtol=1e-10)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("latent", [1, 4])
def test_the_density_at_a_sample_is_the_samples(name, latent, float64):
    posterior, params, heads = example(name, latent, (2, 3), scale=0.8)
    noise = jax.random.normal(jax.random.key(1), (2, 3, latent))

    def sampled(noise):
        z, log_q = posterior.transform(params, noise, heads)
        return log_q.sum(), (z, log_q)

    def evaluated(noise):
        log_q = posterior.log_prob(params, posterior.transform(params, noise, heads)[0], heads)
        return log_q.sum(), log_q

    gradient, (z, log_q) = jax.jit(jax.grad(sampled, has_aux=True))(noise)
    found_gradient, found = jax.jit(jax.grad(evaluated, has_aux=True))(noise)
    assert z.shape == (2, 3, latent)
    np.testing.assert_allclose(found, log_q, rtol=1e-9)
    # The same gradient, too: what goes through z and what goes straight to log q cancel as they should.
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_densities_of_one_dimension_integrate_to_1(name, float64):
    posterior, params, heads = example(name, 1)
    noise = jnp.linspace(-9, 9, 4001)[:, None]
    z, log_q = jax.jit(posterior.transform)(params, noise, repeated(heads, 4001))
    z = np.asarray(z)[:, 0]
    assert (np.diff(z) > 0).all()
    assert np.trapezoid(np.exp(log_q), z) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", KNOWN)
def test_densities_of_two_dimensions_integrate_to_1_and_have_their_samples_moments(name):
    posterior, params, heads = example(name, 2)
    noise = jax.random.normal(jax.random.key(1), (50_000, 2))
    z = np.asarray(jax.jit(posterior.transform)(params, noise, repeated(heads, 50_000))[0], float)
    center, spread = z.mean(0), z.std(0)
    axes = [np.linspace(c - 8 * s, c + 8 * s, 201) for c, s in zip(center, spread, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    log_q = jax.jit(posterior.log_prob)(params, jnp.asarray(grid, jnp.float32), repeated(heads, 201, 201))
    mass = np.exp(np.asarray(log_q, float)) * np.prod([axis[1] - axis[0] for axis in axes])
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    for moment in (lambda z: z[..., 0], lambda z: z[..., 1], lambda z: z[..., 0] ** 2, lambda z: z.prod(-1)):
        drawn = moment(z)
        assert (mass * moment(grid)).sum() == pytest.approx(drawn.mean(), abs=5 * drawn.std() / len(z) ** 0.5)


EXTREMES = {"mu": (0.0, 1.0, 1e4), "log_var": (0.0, 80.0), "w": (0.0, 1e-20, 1e-7, 1.0, 1e4)}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_wherever_values_are(name):
    """At extreme heads, where what is not chosen by a condition may overflow: its gradient, times 0, would be NaN."""
    count, random = 300, np.random.RandomState(2)

    def extreme(values, size):
        return jnp.asarray(random.choice([*values, *(-value for value in values)], (count, size)), jnp.float32)

    posterior, params, _ = example(name, 3)
    heads = {head: extreme(EXTREMES.get(head, (0.0, 1.0, 1e4)), size) for head, size in posterior.heads.items()}
    noise, z = extreme((0.0, 1e-3, 1.0, 8.0), 3), extreme((0.0, 1.0, 1e4), 3)
    functions = {
        "log q of a sample": lambda params, heads, noise, z: posterior.transform(params, noise, heads)[1],
        "log q": posterior.log_prob and (lambda params, heads, noise, z: posterior.log_prob(params, z, heads)),
        "kl": closed(posterior) and (lambda params, heads, noise, z: closed(posterior).total(heads, {})),
    }

    def run(function):
        return jax.vmap(jax.value_and_grad(function, (0, 1, 2, 3)), (None, 0, 0, 0))(params, heads, noise, z)

    found = jax.jit(lambda: {what: run(function) for what, function in functions.items() if function})()
    for what, (values, gradients) in found.items():
        finite = np.abs(values) < 1e15  # a gradient may be so much larger that it overflows itself
        assert finite.mean() > 0.2, what
        for leaf in jax.tree.leaves(gradients):
            assert np.isfinite(leaf[finite]).all(), what


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("latent", [1, 3])
def test_the_kl_is_the_known_formula_and_its_monte_carlo_estimate(name, latent):
    posterior, params, heads = example(name, latent)
    # The columns of the covariance's root are where unit vectors go.
    mu, *moved = np.asarray(
        posterior.transform(params, jnp.eye(latent + 1, latent, -1), repeated(heads, latent + 1))[0], float
    )
    root = np.stack(moved, 1) - mu[:, None]
    covariance = root @ root.T
    expected = 0.5 * (np.trace(covariance) + mu @ mu - latent - np.linalg.slogdet(covariance)[1])
    assert float(jax.jit(closed(posterior).total)(heads, {})) == pytest.approx(expected, rel=1e-5, abs=1e-6)

    noise = jax.random.normal(jax.random.key(1), (100_000, latent))
    z, log_q = posterior.transform(params, noise, repeated(heads, 100_000))
    ratio = np.asarray(log_q, float) - multivariate_normal(np.zeros(latent)).logpdf(np.asarray(z))
    assert expected == pytest.approx(ratio.mean(), abs=5 * ratio.std() / len(ratio) ** 0.5)
    if closed(posterior).by_dimension:
        assert float(closed(posterior).by_dimension(heads, {}).sum()) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=3))
def test_the_diagonal_kl_is_never_negative_and_zero_at_the_prior(values):
    mu, log_var = jnp.asarray(values, jnp.float32).T
    assert float(diagonal_kl({"mu": mu[None], "log_var": log_var[None]}).min()) >= -1e-5
    zero = jnp.zeros((1, 3))
    assert float(diagonal_kl({"mu": zero, "log_var": zero}).sum()) == 0


def test_samples_have_the_posteriors_moments_and_are_differentiable():
    heads = {"mu": jnp.full((200_000, 1), 2.0), "log_var": jnp.full((200_000, 1), np.log(9.0, dtype=np.float32))}
    z = np.asarray(diagonal_transform({}, jax.random.normal(jax.random.key(0), (200_000, 1)), heads)[0])
    assert z.mean() == pytest.approx(2, abs=5 * 3 / len(z) ** 0.5)
    assert z.std() == pytest.approx(3, abs=5 * 3 / (2 * len(z)) ** 0.5)

    noise = jax.random.normal(jax.random.key(1), (4, 2))

    def total(mu, log_var):
        return diagonal_transform({}, noise, {"mu": mu, "log_var": log_var})[0].sum()

    mu, log_var = jnp.zeros((4, 2)), jnp.ones((4, 2))
    gradients = jax.grad(total, (0, 1))(mu, log_var)
    np.testing.assert_allclose(gradients[0], np.ones((4, 2)))
    np.testing.assert_allclose(gradients[1], np.asarray(noise) * np.exp(0.5) / 2, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_centre_is_finite_and_a_gaussians_its_mean(name):
    posterior, params, heads = example(name, 3, (2,))
    z, log_q = jax.jit(posterior.transform)(params, jnp.zeros((2, 3)), heads)
    assert np.isfinite(z).all()
    assert np.isfinite(log_q).all()
    if name.endswith("gaussian"):
        np.testing.assert_array_equal(z, heads["mu"])


def test_a_point_posterior_is_its_mean():
    heads = {"mu": jnp.arange(4.0).reshape(2, 2)}
    np.testing.assert_array_equal(
        point(None, Shapes((4, 4, 1), 2)).transform({}, jnp.ones((2, 2)), heads)[0], heads["mu"]
    )


def test_the_full_gaussian_is_scipys():
    posterior, params, heads = example("full_gaussian", 4)
    root = np.zeros((4, 4))
    lower = iter(np.asarray(heads["lower"], float))
    for i in range(4):
        for j in range(i):
            root[i, j] = next(lower)
        root[i, i] = np.exp(float(heads["log_var"][i]) / 2)
    np.testing.assert_allclose(cholesky(heads), root, rtol=1e-6)
    z = np.random.RandomState(0).randn(5, 4).astype(np.float32)
    expected = multivariate_normal(np.asarray(heads["mu"]), root @ root.T).logpdf(z)
    np.testing.assert_allclose(posterior.log_prob(params, jnp.asarray(z), repeated(heads, 5)), expected, rtol=1e-5)


def test_a_full_gaussian_of_one_dimension_needs_no_more_heads_than_a_diagonal_one():
    assert small("full_gaussian", 1).heads == {"mu": 1, "log_var": 1}
    assert small("full_gaussian", 20).heads["lower"] == 190


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_finite_for_large_heads(name):
    posterior, params, heads = example(name, 3, (20,))
    heads = {head: 20 * value if head == "log_var" else 1000 * value for head, value in heads.items()}
    noise = jax.random.normal(jax.random.key(9), (20, 3))

    def value(params, heads):
        z, log_q = posterior.transform(params, noise, heads)
        return jnp.tanh(z).sum() + log_q.sum()

    found = jax.jit(jax.value_and_grad(value, (0, 1)))(params, heads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", KNOWN)
def test_densities_and_their_gradients_are_finite_far_out(name):
    posterior, params, heads = example(name, 3, (20,), scale=4)
    z = 1000 * jax.random.normal(jax.random.key(9), (20, 3))

    def value(params, z, heads):
        return posterior.log_prob(params, z, heads).sum()

    found = jax.jit(jax.value_and_grad(value, (0, 1, 2)))(params, z, heads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(("latent", "hidden"), [(1, 3), (4, 8), (4, 9)])
def test_made_is_autoregressive_and_everything_depends_on_the_context(latent, hidden):
    made = MADE(latent, 2, hidden)
    params = shaken(jax.jit(made.init)(jax.random.key(0)))
    z, context = jnp.linspace(-1, 1, latent), jnp.array([0.3, -0.5])
    for by_z, by_context in jax.jit(jax.jacobian(lambda z, c: made.apply(params, z, c), (0, 1)))(z, context):
        np.testing.assert_array_equal(np.asarray(by_z) != 0, np.tri(latent, k=-1, dtype=bool))
        assert (np.asarray(by_context) != 0).all()


def test_a_planar_flow_is_the_identity_without_u_and_follows_u_that_needs_no_constraint(float64):
    key_z, key_w = jax.random.split(jax.random.key(0))
    z, w = jax.random.normal(key_z, (5, 3)), jax.random.normal(key_w, (5, 3))
    b = jnp.arange(5.0)
    moved, log_det = jax.jit(planar_flow)(z, jnp.zeros((5, 3)), w, b)
    np.testing.assert_allclose(moved, z, atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)
    across = jnp.stack([w[:, 1], -w[:, 0], 0 * b], -1)  # wᵀu = 0
    moved, log_det = jax.jit(planar_flow)(z, across, w, b)
    np.testing.assert_allclose(moved, z + across * jnp.tanh((w * z).sum(-1) + b)[:, None], rtol=1e-9)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_planar_flow_stays_invertible_for_extreme_heads(scale, sign, float64):
    """Along w it is strictly increasing and across w it adds what depends on wᵀz alone: so it is invertible."""
    w = jnp.array([0.6, -0.8])
    u = sign * scale * w + jnp.array([3.0, 2.0])
    z = jnp.linspace(-4, 4, 2001)[:, None] * jnp.broadcast_to(w, (2001, 2))
    moved, log_det = jax.jit(planar_flow)(
        z, jnp.broadcast_to(u, z.shape), jnp.broadcast_to(w, z.shape), jnp.full(2001, 0.5)
    )
    steps = np.diff(np.asarray(moved @ w)) / (8 / 2000)
    assert (steps >= 0.99 * SMALLEST_SLOPE).all()
    determinants = np.exp(np.asarray(log_det))
    np.testing.assert_allclose(steps, (determinants[1:] + determinants[:-1]) / 2, rtol=1e-3, atol=1e-5)


def test_a_planar_flows_determinant_is_its_jacobians_however_short_w_is(float64):
    length = np.array([0, 1e-300, 1e-30, 1e-12, 1e-8, 7e-7, 9e-7, 1.1e-6, 1e-5, 1e-3, 1.0, 1e10, 1e200])
    length, along, turn = (axis.ravel() for axis in np.meshgrid(length, [-30.0, -1.5, 0.3, 2.0], [0.3, 2.1]))
    w = jnp.asarray(length[:, None] * np.stack([np.cos(turn), np.sin(turn)], -1))
    u = along / np.where(length > 0, length, 1)  # so long that it would bend much, if w says where to
    across = np.array([0.2, -0.1]) / np.maximum(length, 1)[:, None]
    u = jnp.asarray(u[:, None] * np.stack([np.cos(turn), np.sin(turn)], -1) + across)
    z = jnp.asarray(np.random.RandomState(0).randn(len(w), 2) / np.maximum(length, 1)[:, None])
    b = jnp.full(len(w), 0.3)
    slopes, log_det = jax.jit(jax.vmap(jax.jacfwd(planar_flow, has_aux=True)))(z, u, w, b)
    expected = np.linalg.slogdet(np.asarray(slopes))
    assert (expected[0] > 0).all()
    np.testing.assert_allclose(log_det, expected[1], rtol=1e-9, atol=1e-9)


def test_a_planar_flow_that_starts_without_w_learns_it():
    z, u, b = jnp.array([[0.5, -1.0]]), jnp.array([[0.3, 0.2]]), jnp.array([0.4])

    def log_det(w):
        return planar_flow(z, u, w, b)[1].sum()

    np.testing.assert_allclose(jax.grad(log_det)(jnp.zeros((1, 2))), (1 - np.tanh(0.4) ** 2) * u, rtol=1e-6)


def test_planar_flows_keep_their_distance_from_minus_1_in_float32():
    scale = np.float32(10) ** np.arange(-20, 19, dtype=np.float32)
    w = jnp.asarray(np.stack([scale, scale], -1))

    def moved(w):
        return planar_flow(jnp.full_like(w, 0.1), -w, w, jnp.zeros(len(w)))

    z, log_det = jax.jit(moved)(w)
    assert np.isfinite(z).all()
    assert (np.asarray(log_det) >= np.log(0.99 * SMALLEST_SLOPE)).all()
    assert np.isfinite(jax.jit(jax.grad(lambda w: moved(w)[1].sum()))(w)).all()


def test_where_flows_start():
    posterior, _, heads = example("planar", 8, (50,), scale=0.1)  # u, w and b of 0.3, as an encoder starts
    noise = jax.random.normal(jax.random.key(1), (50, 8))
    plain, log_q = diagonal_transform({}, noise, heads)
    z, moved_log_q = jax.jit(posterior.transform)({}, noise, heads)
    assert 0 < float(jnp.abs(z - plain).max()) < 3 * PLANAR_START
    assert 0 < float(jnp.abs(moved_log_q - log_q).max()) < 3 * PLANAR_START

    posterior, _, heads = example("iaf", 8, (50,))
    params = jax.jit(posterior.init)(jax.random.key(0))
    z, moved_log_q = jax.jit(posterior.transform)(params, noise, heads)
    plain, log_q = diagonal_transform({}, noise, heads)
    kept = 1 / (1 + np.exp(-GATE_START))
    np.testing.assert_allclose(z, plain * kept**3, rtol=1e-3)
    np.testing.assert_allclose(moved_log_q, log_q - 3 * 8 * np.log(kept), rtol=1e-3)


def test_an_iaf_mixes_all_dimensions_as_its_order_is_reversed():
    posterior, params, heads = example("iaf", 4)
    slopes = jax.jit(jax.jacfwd(lambda noise: posterior.transform(params, noise, heads)[0]))(jnp.zeros(4))
    assert (np.asarray(slopes) != 0).all()


OBJECTIVES = {
    "vae": ObjectiveConfig(),
    "stl": ObjectiveConfig(gradient="stl"),
    "dreg": ObjectiveConfig(name="iwae", gradient="dreg", samples=3),
}


@pytest.mark.parametrize(
    ("name", "objective"),
    [*((name, "vae") for name in NAMES), ("iaf", "stl"), *((name, "dreg") for name in KNOWN)],
)
def test_all_of_a_models_parameters_have_a_finite_gradient(name, objective):
    config = Config(model=ModelConfig(network="mlp", latent=3, layers=(8,)), objective=OBJECTIVES[objective])
    config = adapted(config, **SMALL, **{"posterior.name": name})
    network, found = build(config, (4, 4, 1))
    variables = jax.jit(network.init)(jax.random.key(0))
    variables = variables._replace(params=shaken(variables.params))
    images = jax.random.uniform(jax.random.key(2), (5, 4, 4, 1))

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
    assert ("posterior" in gradients) == (name == "iaf")
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.asarray(gradient).any(), path
