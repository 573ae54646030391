"""Categorical variables: their relaxation's distribution and density, exact bounds, training and refusals."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import log_softmax, logsumexp, one_hot, softmax
from run_fixtures import check_members, trained_and_resumed

from vae_jax.config import Config, TrainConfig, adapted
from vae_jax.errors import UserError
from vae_jax.evaluation.estimators import annealed_nll, importance_nll
from vae_jax.evaluation.evaluator import make_evaluator
from vae_jax.model.build import build
from vae_jax.posteriors import POSTERIORS
from vae_jax.posteriors.categorical import CategoricalOptions, log_concrete
from vae_jax.priors import PRIORS, Prior
from vae_jax.runs.fit import fit
from vae_jax.runs.reading import load, use
from vae_jax.runs.train import train
from vae_jax.shapes import Shapes
from vae_jax.training.start import start

SHAPE = (3, 3, 1)
LOGITS = jnp.array([[0.3, -0.7, 1.2, 0.0], [2.0, 0.0, -1.0, 0.5]])
P = np.asarray(softmax(LOGITS))
MANY = 100_000


def posterior_of(variables=2, **options):
    return POSTERIORS["categorical"](CategoricalOptions(**options), Shapes(SHAPE, variables))


def drawn(posterior, logits, count=MANY, exact=False, own=None, seed=0):
    """Samples of one image's posterior."""
    heads = {"mu": jnp.broadcast_to(jnp.asarray(logits), (count, *logits.shape))}
    noise = posterior.noise(jax.random.key(seed), (count,))
    return (posterior.exact if exact else posterior.transform)({} if own is None else own, noise, heads)


def config_of(variables=3, classes=4, layers=(4,), **changes):
    options = {"posterior.name": "categorical", "prior.name": "uniform", "model.network": "mlp"}
    options |= {"model.latent": variables, "posterior.classes": classes} | changes
    options |= {"model.layers": layers} if options["model.network"] == "mlp" else {}
    return adapted(Config(train=TrainConfig(batch_size=32, epochs=2, chunk_steps=2)), **options)


# --- The relaxation ---------------------------------------------------------------------------------------------------


def test_moments_of_two_classes():
    """At τ = 1 the first is uniform on (0, 1); at τ = ½ its mean square is π/8."""
    logits = np.zeros((1, 2))
    first = np.asarray(drawn(posterior_of(1, classes=2), logits).z[:, 0, 0], np.float64)
    for found, expected in ((first, 1 / 2), ((first - 0.5) ** 2, 1 / 12)):
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(MANY)
    square = np.asarray(drawn(posterior_of(1, classes=2, temperature=0.5), logits).z[:, 0, 0], np.float64) ** 2
    assert abs(square.mean() - np.pi / 8) < 4 * square.std() / np.sqrt(MANY)


@pytest.mark.parametrize("options", [{"temperature": 0.2}, {"temperature": 5.0}, {"relaxation": "straight_through"}])
def test_the_largest_class_is_a_sample_of_the_categorical(options):
    posterior = posterior_of(classes=4, **options)
    z = np.asarray(drawn(posterior, LOGITS).z)
    np.testing.assert_allclose(z.sum(-1), 1, rtol=1e-6)
    frequencies = np.asarray(one_hot(z.argmax(-1), 4).mean(0))
    np.testing.assert_array_less(np.abs(frequencies - P), 4 * np.sqrt(P * (1 - P) / MANY))
    hard = drawn(posterior, LOGITS, exact=True)
    np.testing.assert_array_equal(np.sort(hard.z, -1), np.broadcast_to([0, 0, 0, 1], z.shape))
    np.testing.assert_array_equal(np.asarray(hard.z).argmax(-1), z.argmax(-1))  # of the same noise
    np.testing.assert_allclose(hard.log_q, np.log((np.asarray(hard.z) * P).sum(-1)).sum(-1), rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_kl_from_uniform_and_the_mode():
    posterior = posterior_of(1, classes=3)
    heads = {"mu": jnp.log(jnp.array([[0.7, 0.2, 0.1]])) + 5}
    assert float(posterior.kl["uniform"].total(heads, {})) == pytest.approx(
        np.log(3) + sum(p * np.log(p) for p in (0.7, 0.2, 0.1)), rel=1e-12
    )  # 0.296794
    center = posterior.center({}, heads)
    np.testing.assert_array_equal(center.z, [[1, 0, 0]])
    assert float(center.log_q) == pytest.approx(np.log(0.7), rel=1e-12)
    far = {"mu": jnp.array([[500.0, -500.0, 0.0]])}
    assert float(posterior.kl["uniform"].total(far, {})) == pytest.approx(np.log(3), rel=1e-12)
    assert np.isfinite(jax.grad(lambda mu: posterior.kl["uniform"].total({"mu": mu}, {}))(far["mu"])).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("logits", [[0.5, -0.5], [0.3, -0.7, 1.2]])
def test_the_density_integrates_to_one(logits, temperature):
    """By quadrature over the K − 1 logits log(y_k/y_K)."""
    grid = np.linspace(-40, 40, 4001 if len(logits) == 2 else 801) * max(1, 1 / temperature)
    ratios = np.stack(np.meshgrid(*[grid] * (len(logits) - 1), indexing="ij"), -1)
    log_y = log_softmax(jnp.asarray(np.concatenate([ratios, np.zeros((*ratios.shape[:-1], 1))], -1)))
    density = log_concrete(log_y, jnp.broadcast_to(jnp.asarray(logits), log_y.shape), temperature)
    mass = np.exp(np.asarray(density, np.float64)).sum() * (grid[1] - grid[0]) ** (len(logits) - 1)
    assert mass == pytest.approx(1, abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_density_of_two_classes_by_hand():
    """log(y₁/y₂) is logistic with location (α₁ − α₂)/τ and scale 1/τ."""
    temperature, logits, ratio = 0.7, np.array([0.4, -0.9]), np.linspace(-6, 6, 13)
    log_y = log_softmax(jnp.asarray(np.stack([ratio, np.zeros(13)], -1)))
    x = temperature * ratio - (logits[0] - logits[1])
    expected = np.log(temperature) - x - 2 * np.log1p(np.exp(-x))
    found = log_concrete(log_y, jnp.broadcast_to(jnp.asarray(logits), (13, 2)), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_relaxed_kl_by_quadrature():
    """Of two classes, the mean of log q − log p over samples is the integral of q·(log q − log p); so is its slope."""
    posterior = posterior_of(1, classes=2, kl="relaxed", temperature=2 / 3, prior_temperature=0.5)
    ratio = np.linspace(-60, 60, 20_001)

    def integral(difference):
        logistic = ((t * ratio - shift, t) for t, shift in ((2 / 3, difference), (0.5, 0.0)))
        log_q, log_p = (np.log(t) - x - 2 * np.logaddexp(0, -x) for x, t in logistic)
        return (np.exp(log_q) * (log_q - log_p)).sum() * (ratio[1] - ratio[0])

    def sampled(first, noise):
        logits = jnp.stack([first, -0.9])[None]
        return posterior.transform({}, noise, {"mu": logits}).log_q + np.log(2)  # less the uniform prior's −log 2

    noise = posterior.noise(jax.random.key(0), (MANY,))
    found = jax.jit(jax.vmap(jax.value_and_grad(sampled), (None, 0)))(jnp.asarray(0.4), noise)
    values, slopes = (np.asarray(each, np.float64) for each in found)
    assert abs(values.mean() - integral(1.3)) < 4 * values.std() / np.sqrt(MANY)
    slope = (integral(1.301) - integral(1.299)) / 0.002
    assert abs(slopes.mean() - slope) < 4 * slopes.std() / np.sqrt(MANY)
    assert integral(1.3) > 0.1
    assert slope > 0.1


def test_straight_through_gives_classes_and_a_relaxed_gradient():
    weights = jnp.arange(8.0).reshape(2, 4)
    posteriors = {
        name: posterior_of(classes=4, temperature=0.7, relaxation=name) for name in ("gumbel", "straight_through")
    }
    posteriors["probabilities"] = posterior_of(classes=4, relaxation="categorical_straight_through")
    noise = posteriors["gumbel"].noise(jax.random.key(0), ())

    def of(name):
        def value(logits):
            z = posteriors[name].transform({}, noise, {"mu": logits}).z
            return (weights * z).sum(), z

        gradient, z = jax.grad(value, has_aux=True)(LOGITS)
        return np.asarray(gradient), np.asarray(z)

    hard = np.asarray(posteriors["gumbel"].exact({}, noise, {"mu": LOGITS}).z)
    for name in ("straight_through", "probabilities"):
        np.testing.assert_array_equal(of(name)[1], hard)
    np.testing.assert_allclose(of("straight_through")[0], of("gumbel")[0], rtol=1e-6)
    # d/dα Σ w·p = p·(w − Σ w·p), whatever the noise.
    expected = P * (np.asarray(weights) - (np.asarray(weights) * P).sum(-1, keepdims=True))
    np.testing.assert_allclose(of("probabilities")[0], expected, rtol=1e-5, atol=1e-6)


def test_mixing_bounds_the_probabilities():
    posterior = posterior_of(1, classes=4, mixing=0.01)
    sample = drawn(posterior, np.array([[100.0, 0.0, 0.0, 0.0]]), exact=True)
    frequency = 1 - np.asarray(sample.z[:, 0, 0], np.float64).mean()
    assert frequency == pytest.approx(0.0075, abs=4 * np.sqrt(0.0075 / MANY))
    assert float(sample.log_q.min()) == pytest.approx(np.log(0.0025), rel=1e-5)
    equal = {"mu": jnp.zeros((1, 4))}
    assert float(posterior.kl["uniform"].total(equal, {})) == pytest.approx(0, abs=1e-6)


def test_balance_scales_the_gradient_of_the_kl_and_nothing_else():
    values, gradients = [], []
    for balance in (None, 0.8):
        kl = posterior_of(classes=4, balance=balance).kl["uniform"]
        assert kl.by_dimension({"mu": LOGITS}, {}).shape == (2,)
        value, gradient = jax.value_and_grad(lambda mu, kl=kl: kl.total({"mu": mu}, {}))(LOGITS)
        values.append(value)
        gradients.append(gradient)
    np.testing.assert_allclose(*values, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], 0.2 * gradients[0], rtol=1e-5, atol=1e-7)


def test_the_temperature_falls_by_steps_and_no_further_than_to_the_least():
    posterior = posterior_of(classes=4, temperature=2.0, annealing=0.1, least_temperature=0.5)
    own, heads = posterior.init(jax.random.key(0)), {"mu": LOGITS}
    noise = posterior.noise(jax.random.key(1), ())
    for step in range(20):
        sample = posterior.transform(own, noise, heads)
        temperature = max(0.5, 2.0 * np.exp(-0.1 * step))
        expected = softmax((log_softmax(LOGITS) + noise) / temperature)
        np.testing.assert_allclose(sample.z, expected, rtol=1e-4, atol=1e-6)
        own = own._replace(state=sample.state)
    assert int(own.state["steps"]) == 20
    assert posterior_of(classes=4, temperature=2.0).init(jax.random.key(0)) == {}


# --- Bounds, against enumeration --------------------------------------------------------------------------------------


def test_hard_samples_bound_the_evidence(small_data):
    """64 codes of three variables: the mean of −ELBO over samples is the exact one, whatever training relaxes."""
    config = config_of(**{"train.epochs": 4, "train.learning_rate": 0.01})
    trained = fit(config, small_data)
    images, variables = small_data.test.images, trained.variables
    network, _ = build(config, small_data.image_shape)
    codes = np.array(list(itertools.product(range(4), repeat=3)))

    def both(model):
        treated = jnp.asarray(images, jnp.float32) / 255
        z = jnp.broadcast_to(model.vectors(jnp.asarray(codes))[:, None], (64, len(images), 3, 4))
        log_q = (z * log_softmax(model.encode(treated)["mu"])[None]).sum((-2, -1))
        log_px, log_pz = model.log_likelihood(treated, model.decode(z)), model.log_prior(z)
        return -logsumexp(log_px + log_pz, 0), (jnp.exp(log_q) * (log_q - log_px - log_pz)).sum(0)

    evidence, elbo = map(np.asarray, network.apply(variables, both)[0])
    assert (elbo > evidence + 0.002).all()

    def losses(repeats=200, **options):
        of = adapted(config, **options)
        network, objective = build(of, small_data.image_shape)
        evaluator = make_evaluator(of, network, objective, images.repeat(repeats, 0))
        terms = evaluator(variables, jax.random.key(3))
        return np.asarray(terms["loss"], np.float64).reshape(len(images), repeats)

    for options in ({}, {"objective.kl": "sampled"}, {"posterior.kl": "relaxed"}):
        found = losses(**options)
        np.testing.assert_array_less(np.abs(found.mean(1) - elbo), 4.5 * found.std(1) / np.sqrt(200) + 1e-4)
    bound = losses(**{"objective.name": "iwae", "objective.samples": 10})
    assert evidence.mean() < bound.mean() < elbo.mean()
    nll = importance_nll(config, network, variables, images, jax.random.key(5), 2000)
    np.testing.assert_allclose(nll, evidence, atol=0.05)
    with pytest.raises(
        UserError, match="annealed importance sampling, which moves z along gradients: expected a model"
    ):
        annealed_nll(config, network, variables, images, jax.random.key(5))


# --- Training ---------------------------------------------------------------------------------------------------------

RELAXATIONS = {
    "gumbel": {"posterior.annealing": 0.1},
    "straight_through": {"posterior.relaxation": "straight_through", "objective.free_bits": 0.1},
    "probabilities": {"posterior.relaxation": "categorical_straight_through", "posterior.mixing": 0.01},
    "gumbel relaxed": {"posterior.kl": "relaxed"},
    "straight_through relaxed": {"posterior.relaxation": "straight_through", "posterior.kl": "relaxed"},
}


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_variables_are_trained_and_resumed_exactly(relaxation, small_data, tmp_path):
    config = config_of(**RELAXATIONS[relaxation])
    whole = trained_and_resumed(config, small_data)
    started = start(config, small_data.image_shape, 70).variables.params
    for part, params in whole.variables.params.items():
        assert not np.allclose(*(jax.flatten_util.ravel_pytree(of)[0] for of in (params, started[part]))), part
    assert whole.history[-1]["test_codes_used"] <= 12
    if relaxation != "gumbel":
        return
    assert int(whole.variables.state["posterior"]["steps"]) == 6  # 70 images in batches of 32, twice
    train(config, small_data, tmp_path / "run")
    kept = load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, kept.state, whole.state)
    model = use(kept)
    encoded = model.encode(small_data.test.images)
    assert encoded["mu"].shape == (20, 3, 4)
    np.testing.assert_array_equal(model.decode(encoded["codes"]), model.decode(encoded["mu"]))
    assert np.isfinite(model.sample(jax.random.key(0), 5)).all()


@pytest.mark.usefixtures("float64")
def test_members_of_a_sweep_are_their_single_runs(small_data):
    check_members(config_of(**{"posterior.annealing": 0.1, "train.epochs": 1}), small_data)


@pytest.mark.parametrize(
    "objective",
    [
        {"objective.name": "vae", "objective.gradient": "stl"},
        {"objective.name": "iwae", "objective.gradient": "dreg"},
        {"objective.name": "piwae"},
    ],
)
def test_objectives_of_densities_take_z_of_any_shape(objective):
    config = config_of(**objective)
    network, built = build(config, SHAPE)
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(np.random.RandomState(0).rand(2, *SHAPE), jnp.float32)

    def loss(params):
        def of(model):
            return built.terms(jax.random.key(1), model, images, config.objective.options)["loss"].sum()

        return network.apply(variables._replace(params=params), of, jax.random.key(2), train=True)[0]

    gradient = jax.flatten_util.ravel_pytree(jax.grad(loss)(variables.params)["encoder"])[0]
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"posterior.kl": "relaxed", "prior.name": "learned"},
            "prior.name: expected uniform with posterior categorical and posterior.kl relaxed; found learned",
        ),
        (
            {"posterior.balance": 0.8, "prior.name": "learned"},
            "prior.name: expected uniform with posterior categorical and posterior.balance; found learned",
        ),
        ({"posterior.kl": "relaxed", "objective.kl": "analytic"}, "objective.kl: expected sampled or auto"),
        (
            {"posterior.kl": "relaxed", "objective.gradient": "stl"},
            "objective.gradient: expected standard with posterior categorical",
        ),
        (
            {"posterior.kl": "relaxed", "posterior.relaxation": "categorical_straight_through"},
            "posterior.kl: expected categorical with relaxation categorical_straight_through, .*; found relaxed",
        ),
        (
            {"posterior.annealing": 0.1, "posterior.least_temperature": 2.0},
            r"posterior.least_temperature: expected at most posterior.temperature, 1.0, with annealing; found 2.0",
        ),
        (
            {"model.network": "convolutional", "model.channels": [4, 4]},
            r"model.network: expected one with a map of \[3\], as z is .*, or mlp, which .*; found convolutional",
        ),
        (
            {"model.network": "residual", "model.channels": [8, 8]},
            r"model.network: expected one with a map of \[3\], as z is .*, or mlp, which needs none; found residual",
        ),
    ],
)
def test_what_makes_no_sense_with_categories_is_refused(changes, message, monkeypatch):
    def learned(options, shapes):
        return Prior(*PRIORS["uniform"](options, shapes)[:2], kind="learned", support="codes")

    monkeypatch.setitem(PRIORS, "learned", learned)
    with pytest.raises(UserError, match=message):
        build(config_of(**changes), (8, 8, 1))
    assert build(config_of(**{"prior.name": "learned"}), (8, 8, 1))
