"""Bits: estimators of gradients against enumeration, bounds against the exact evidence, training and refusals."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn import logsumexp, sigmoid
from run_fixtures import check_members, trained_and_resumed

from vae_jax.blocks.perceptron import init_perceptron, perceptron
from vae_jax.config import Config, TrainConfig, adapted
from vae_jax.errors import UserError
from vae_jax.evaluation.estimators import annealed_nll, importance_nll
from vae_jax.evaluation.evaluator import make_evaluator
from vae_jax.model.build import build
from vae_jax.objectives import OBJECTIVES, score
from vae_jax.posteriors import POSTERIORS
from vae_jax.posteriors.bernoulli import log_prob_of_bits
from vae_jax.runs.fit import fit
from vae_jax.runs.reading import load, use
from vae_jax.runs.train import train
from vae_jax.shapes import Shapes
from vae_jax.training.start import start

SHAPE = (3, 3, 1)
BITS = {"posterior.name": "bernoulli", "prior.name": "uniform", "model.network": "mlp"}
OBJECTIVES_OF_BITS = {
    "reinforce": {"objective.name": "score_vae", "objective.gradient": "reinforce"},
    "loo": {"objective.name": "score_vae"},
    "disarm": {"objective.name": "score_vae", "objective.gradient": "disarm"},
    "relax": {"objective.name": "relax_vae"},
    "vimco": {"objective.name": "vimco", "objective.samples": 3},
}


def config_of(objective="loo", latent=3, layers=(4,), **changes):
    options = BITS | {"model.latent": latent, "model.layers": layers} | OBJECTIVES_OF_BITS[objective] | changes
    return adapted(Config(train=TrainConfig(batch_size=32, epochs=2, chunk_steps=2)), **options)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


# --- Estimators, on three bits with f = (Σb − 1.3)² + b₁b₃ ------------------------------------------------------------

LOGITS = np.array([0.3, -0.7, 1.2])
P = 1 / (1 + np.exp(-LOGITS))
CODES = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
EXACT = [0.334712, 0.240766, 0.139994]
REINFORCE = [0.69, 1.02, 0.50]


def toy(bits):
    return (bits.sum(-1) - 1.3) ** 2 + bits[..., 0] * bits[..., 2]


def probability(bits):
    return np.prod(np.where(bits == 1, P, 1 - P), -1)


def moments(gradients, weights):
    mean = (weights[:, None] * gradients).sum(0)
    return mean, np.sqrt((weights[:, None] * (gradients - mean) ** 2).sum(0))


def of_scores(weights, bits):
    """The gradients with respect to the logits that an objective makes of weights, (samples, n): (n, 3)."""

    def surrogate(logits):
        log_q = log_prob_of_bits(bits, jnp.broadcast_to(logits, bits.shape))
        return score.of_scores(weights, log_q).sum(0)

    bits, weights, logits = (jnp.asarray(array, jnp.float32) for array in (bits, weights, LOGITS))
    np.testing.assert_array_equal(surrogate(logits), np.zeros(bits.shape[1]))
    return np.asarray(jax.jacobian(surrogate)(logits), np.float64)


def several(samples):
    """All rows of so many codes, (samples, n, 3), and how likely each is."""
    rows = np.stack([CODES[list(row)] for row in itertools.product(range(8), repeat=samples)], 1)
    return rows, probability(rows).prod(0)


def test_the_toys_expectation():
    assert probability(CODES) @ toy(CODES) == pytest.approx(1.225999, abs=1e-6)


def test_reinforce_and_its_leave_one_out_baseline():
    rows, weights = several(1)
    mean, deviation = moments(of_scores(toy(rows), rows), weights)
    np.testing.assert_allclose(mean, EXACT, atol=2e-6)
    np.testing.assert_allclose(deviation, REINFORCE, rtol=0.03)
    rows, weights = several(2)
    mean, with_baseline = moments(of_scores(score.leave_one_out(jnp.asarray(toy(rows))), rows) / 2, weights)
    np.testing.assert_allclose(mean, EXACT, atol=2e-6)
    np.testing.assert_allclose(with_baseline, [0.61, 0.68, 0.48], rtol=0.03)
    assert (with_baseline < deviation).all()


def antithetic_noise(p):
    """u in the middle of intervals, in which the pair of a bit is (0, 1), alike, or (1, 0), and how long these are."""
    low, high = np.minimum(p, 1 - p), np.maximum(p, 1 - p)
    middles, lengths = np.stack([low / 2, (low + high) / 2, (1 + high) / 2]), np.stack([low, high - low, 1 - high])
    choice, bits = np.array(list(itertools.product(range(3), repeat=len(p)))), range(len(p))
    return middles[choice, bits], lengths[choice, bits].prod(1)


def test_disarm():
    u, weights = antithetic_noise(P)
    posterior = POSTERIORS["bernoulli"](None, Shapes(SHAPE, 3))
    heads = {"mu": jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), u.shape)}
    bits, antithetic = (posterior.transform({}, jnp.asarray(noise, jnp.float32), heads)[0] for noise in (u, 1 - u))
    np.testing.assert_array_equal(bits, u > 1 - P)
    np.testing.assert_array_equal(antithetic, u < P)
    gradients = score.disarm(toy(bits), toy(antithetic), bits, antithetic, heads["mu"])
    mean, deviation = moments(np.asarray(gradients, np.float64), weights)
    np.testing.assert_allclose(mean, EXACT, atol=2e-6)
    np.testing.assert_allclose(deviation, [0.38, 0.57, 0.33], rtol=0.03)
    assert (deviation < [0.61, 0.68, 0.48]).all()  # two evaluations of f as well


@pytest.mark.parametrize(("logit", "exact"), [(0.0, 0.025), (1.0, 0.0196612), (-2.0, 0.0104994)])
def test_disarm_on_one_bit(logit, exact):
    """f = (b − 0.45)². At a logit of 0 the two bits always differ, and the variance is 0."""
    u, weights = antithetic_noise(1 / (1 + np.exp(-np.array([logit]))))
    u, logits = jnp.asarray(u, jnp.float32), jnp.full(u.shape, logit)
    bits, antithetic = (jnp.asarray(x > sigmoid(-logits), jnp.float32) for x in (u, 1 - u))
    costs = [jnp.square(of[:, 0] - 0.45) for of in (bits, antithetic)]
    mean, deviation = moments(np.asarray(score.disarm(*costs, bits, antithetic, logits), np.float64), weights)
    assert mean == pytest.approx(exact, rel=5e-6)
    assert (deviation < 1e-7) == (logit == 0)


def test_vimco():
    rows, weights = several(2)
    log_w = jnp.asarray(-toy(rows))
    bound = np.asarray(logsumexp(log_w, 0) - np.log(2), np.float64)
    assert weights @ bound == pytest.approx(-0.920776, abs=1e-6)
    mean, deviation = moments(of_scores(score.vimco_weights(log_w), rows), weights)
    exact = [-0.281351, -0.132809, -0.108786]
    np.testing.assert_allclose(mean, exact, atol=2e-6)
    np.testing.assert_allclose(deviation, [0.74, 0.67, 0.66], rtol=0.03)
    mean, deviation = moments(of_scores(jnp.broadcast_to(jnp.asarray(bound), log_w.shape), rows), weights)
    np.testing.assert_allclose(mean, exact, atol=2e-6)
    np.testing.assert_allclose(deviation, [0.83, 0.96, 0.60], rtol=0.03)


@pytest.mark.parametrize("shift", [0.0, -1e4])
def test_vimcos_weights_by_hand(shift):
    log_w = np.array([0.5, -1.0, 2.0, 0.3])
    bound = np.log(np.exp(log_w).mean())
    expected = [
        bound - np.log(np.exp([*np.delete(log_w, k), np.delete(log_w, k).mean()]).mean()) for k in range(len(log_w))
    ]
    found = score.vimco_weights(jnp.asarray(log_w + shift, jnp.float32)[:, None])[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6 + abs(shift) * 1e-7)


GRID = 1200


def on_a_grid(logit, control):
    """RELAX's mean and deviation on one bit with f = (b − 0.45)², by the midpoint rule over both noises."""
    middles = (np.arange(GRID) + 0.5) / GRID
    u, v = (jnp.asarray(x.reshape(1, -1, 1), jnp.float32) for x in np.meshgrid(middles, middles))
    logits = jnp.full(u.shape, logit)
    costs = jnp.square((u > sigmoid(-logits))[..., 0] - 0.45)
    gradients = np.asarray(jax.jit(lambda *noise: score.relax(costs, *noise, logits, control))(u, v), np.float64)
    return gradients.mean(), gradients.std()


def test_relax_is_unbiased_and_only_a_trained_control_helps():
    logit, exact = 0.7, 0.0221713
    mean, plain = on_a_grid(logit, lambda z: jnp.zeros(z.shape[:-1]))
    assert (mean, plain) == (pytest.approx(exact, rel=2e-3), pytest.approx(0.111, rel=0.03))
    mean, untrained = on_a_grid(logit, lambda z: jnp.square(sigmoid(z[..., 0] / 0.5) - 0.45))
    assert (mean, untrained) == (pytest.approx(exact, rel=2e-3), pytest.approx(0.139, rel=0.03))
    logits = jnp.full((1, 256, 1), logit)

    def square(params, key):
        u, v = jax.random.uniform(key, (2, *logits.shape), minval=1e-7)
        costs = jnp.square((u > sigmoid(-logits))[..., 0] - 0.45)
        control = lambda z: perceptron(params, sigmoid(z))[..., 0]  # noqa: E731
        return jnp.square(score.relax(costs, u, v, logits, control)).mean()

    def step(carry, key):
        params, state = carry
        change, state = adam.update(jax.grad(square)(params, key), state)
        return (optax.apply_updates(params, change), state), None

    adam, params = optax.adam(1e-2), init_perceptron(jax.random.key(0), [1, 8, 1])
    keys = jax.random.split(jax.random.key(1), 400)
    params = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])((params, adam.init(params)))
    mean, trained = on_a_grid(logit, lambda z: perceptron(params, sigmoid(z))[..., 0])
    assert mean == pytest.approx(exact, rel=2e-3)
    assert trained < 0.6 * plain < plain < untrained


def test_relaxed_bits_given_the_bits_are_those_of_the_joint_distribution():
    """Of u given the bit, made of v, the logistic z is on the bit's side of 0 and distributed as z cut off there."""
    v = jnp.asarray((np.arange(1000) + 0.5) / 1000, jnp.float32)
    for logit in (-3.0, 0.4, 60.0, -60.0):
        p = sigmoid(jnp.asarray(logit))
        for bit, u in ((1.0, 1 - p + v * p), (0.0, v * (1 - p))):
            z = score.relaxed_given(jnp.full(v.shape, bit), v, jnp.full(v.shape, logit))
            assert np.isfinite(z).all()
            assert ((z > 0) == (bit == 1)).all()
            if abs(logit) < 10:
                np.testing.assert_allclose(z, logit + np.log(u) - np.log1p(-u), atol=2e-3)


def test_the_concrete_relaxation_of_bits_is_biased():
    """sigmoid((α + logit u)/τ) in place of the bits: at τ = 1 far off, near at τ = 0.1 with a deviation of about 1."""
    u = jax.random.uniform(jax.random.key(0), (400_000, 3), minval=1e-7)

    def gradients(temperature):
        def relaxed(logits, u):
            return toy(sigmoid((logits + score.logit(u)) / temperature))

        return np.asarray(jax.vmap(jax.grad(relaxed), (None, 0))(jnp.asarray(LOGITS, jnp.float32), u), np.float64)

    for temperature, expected in ((1.0, [0.215, 0.118, 0.153]), (0.1, [0.337, 0.231, 0.151])):
        found = gradients(temperature)
        error = found.std(0) / np.sqrt(len(u))
        np.testing.assert_array_less(np.abs(found.mean(0) - expected), 4 * np.sqrt(2) * error + 5e-4)
        assert (np.abs(found.mean(0) - EXACT) > 4 * error).any()
        deviations = found.std(0)
    assert (deviations > [1.2, 0.95, 0.95]).all()


# --- The posterior ----------------------------------------------------------------------------------------------------


def test_bits_their_density_and_their_kl():
    posterior = POSTERIORS["bernoulli"](None, Shapes(SHAPE, 3))
    heads = {"mu": jnp.asarray(LOGITS, jnp.float32)}
    noise = posterior.noise(jax.random.key(0), (100_000,))
    assert (noise > 0).all()
    assert (noise < 1).all()
    sample = posterior.transform({}, noise, {"mu": jnp.broadcast_to(heads["mu"], (100_000, 3))})
    np.testing.assert_allclose(sample.z.mean(0), P, atol=4 * 0.5 / np.sqrt(100_000))
    np.testing.assert_allclose(np.exp(sample.log_q), probability(np.asarray(sample.z)), rtol=1e-5)
    np.testing.assert_array_equal(posterior.center({}, heads).z, [1, 0, 1])
    kl = posterior.kl["uniform"]
    expected = P * np.log(2 * P) + (1 - P) * np.log(2 * (1 - P))
    np.testing.assert_allclose(kl.by_dimension(heads, {}), expected, rtol=1e-5)
    np.testing.assert_allclose(kl.total(heads, {}), expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(kl.by_dimension({"mu": jnp.array([-200.0, 200.0])}, {}), np.log(2), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda mu: kl.total({"mu": mu}, {}))(jnp.array([-200.0, 200.0, 0.0]))).all()
    codes = posterior.codes.of({}, sample.z)
    np.testing.assert_array_equal(posterior.codes.vectors({}, codes), sample.z)


# --- Objectives, against enumeration ----------------------------------------------------------------------------------


def enumerated(model, images):
    """All bits of z, (codes, images, latent), and log p(x|z), log p(z) and log q(z|x) of each, (codes, images)."""
    heads = model.encode(images)
    latent = heads["mu"].shape[1]
    codes = jnp.asarray(list(itertools.product((0.0, 1.0), repeat=latent)))
    z = jnp.broadcast_to(codes[:, None], (len(codes), len(images), latent))
    log_q = log_prob_of_bits(z, jnp.broadcast_to(heads["mu"], z.shape))
    return z, model.log_likelihood(images, model.decode(z)), model.log_prior(z), log_q


def exact_loss(model, images, objective):
    """The expectation of an objective's loss over its samples, (images,)."""
    _, log_px, log_pz, log_q = enumerated(model, images)
    log_w = log_px + log_pz - log_q
    if objective == "vimco":  # of three samples
        rows = np.array(list(itertools.product(range(len(log_w)), repeat=3))).T
        return -(jnp.exp(log_q[rows].sum(0)) * (logsumexp(log_w[rows], 0) - np.log(3))).sum(0)
    return -(jnp.exp(log_q) * log_w).sum(0)


@pytest.mark.parametrize(
    ("objective", "kl"),
    [("reinforce", "sampled"), ("loo", "auto"), ("disarm", "sampled"), ("relax", "auto"), ("vimco", "")],
)
def test_gradients_are_those_of_the_expectation(objective, kl):
    """Of every parameter: what f depends on directly, and what it depends on through the bits."""
    config = config_of(objective, **({"objective.kl": kl} if kl else {}))
    network, built = build(config, SHAPE)
    variables = network.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: 3 * leaf, variables.params)
    if objective == "relax":
        noise = jax.random.normal(jax.random.key(1), (6 * 32 + 32 + 32 + 1,))
        flat, back = jax.flatten_util.ravel_pytree(params["control"])
        params["control"] = back(0.3 * noise[: len(flat)])
    images = jnp.asarray(np.random.RandomState(0).rand(2, *SHAPE), jnp.float32)
    control = params.pop("control", None)
    whole = {} if control is None else {"control": control}

    def loss(params, key):
        def of(model):
            return built.terms(key, model, images, config.objective.options)["loss"].sum()

        return network.apply(variables._replace(params=params | whole), of, jax.random.key(9), train=True)[0]

    def exact(params):
        of = lambda model: exact_loss(model, images, objective).sum()  # noqa: E731
        return network.apply(variables._replace(params=params | whole), of)[0]

    count = 20_000
    keys = jax.random.split(jax.random.key(2), count)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(params, keys)
    value, gradient = jax.value_and_grad(exact)(params)
    values = np.asarray(values, np.float64)
    assert abs(values.mean() - value) < 4 * values.std() / np.sqrt(count)
    worst = []
    for found, expected in zip(*map(jax.tree.leaves, (gradients, gradient)), strict=True):
        found = np.asarray(found, np.float64).reshape(count, -1)
        error = found.std(0) / np.sqrt(count) + 1e-6
        worst.append(np.abs((found.mean(0) - np.asarray(expected).ravel()) / error).max())
    assert max(worst) < 4.5  # of about a hundred numbers


def test_a_phase_makes_the_controls_gradient_small():
    """Of new noise, after Adam's steps on what the phase minimises; the control gives 0 to begin with."""
    config = config_of("relax", **{"objective.samples": 1})
    network, built = build(config, SHAPE)
    variables, options = network.init(jax.random.key(0)), config.objective.options
    images = jnp.asarray(np.random.RandomState(0).rand(16, *SHAPE), jnp.float32)
    adam = optax.adam(3e-2)

    def squared(control, key):
        def of(model):
            return built.then[0].terms(key, model, images, options)["control_loss"].mean()

        params = variables.params | {"control": control}
        return network.apply(variables._replace(params=params), of, jax.random.key(9), train=True)[0]

    def step(carry, key):
        control, state = carry
        change, state = adam.update(jax.grad(squared)(control, key), state)
        return (optax.apply_updates(control, change), state), None

    control = variables.params["control"]
    keys = jax.random.split(jax.random.key(1), 200)
    trained = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])((control, adam.init(control)))
    before, after = (
        np.asarray(jax.jit(jax.vmap(squared, (None, 0)))(params, jax.random.split(jax.random.key(2), 200))).mean()
        for params in (control, trained)
    )
    assert after < 0.3 * before


def test_bounds_lie_above_the_evidence_and_importance_sampling_approaches_it(small_data):
    config = config_of("loo", latent=8, layers=(16,))
    trained = fit(adapted(config, **{"train.epochs": 4, "train.learning_rate": 0.01}), small_data)
    images, variables = small_data.test.images, trained.variables
    network, _ = build(config, small_data.image_shape)

    def both(model):
        _, log_px, log_pz, log_q = enumerated(model, jnp.asarray(images, jnp.float32) / 255)
        return -logsumexp(log_px + log_pz, 0), (jnp.exp(log_q) * (log_q - log_px - log_pz)).sum(0)

    evidence, elbo = map(np.asarray, network.apply(variables, both)[0])
    assert (elbo > evidence + 0.01).all()  # the posterior is not exact

    def losses(objective, repeats=200, **options):
        of = config_of(objective, latent=8, layers=(16,), **options)
        network, built = build(of, small_data.image_shape)
        evaluator = make_evaluator(of, network, built, images.repeat(repeats, 0))
        params = variables.params | (
            {"control": network.init(jax.random.key(0)).params["control"]} if built.then else {}
        )
        terms = evaluator(variables._replace(params=params), jax.random.key(3))
        return np.asarray(terms["loss"], np.float64).reshape(len(images), repeats)

    for objective, kl in (("loo", "auto"), ("reinforce", "sampled"), ("disarm", "auto"), ("relax", "auto")):
        found = losses(objective, **{"objective.kl": kl})
        error = found.std(1) / np.sqrt(found.shape[1])
        assert (np.abs(found.mean(1) - elbo) < 4.5 * error + 1e-4).all()
    found = losses("vimco", **{"objective.samples": 10})
    error = found.std(1) / np.sqrt(found.shape[1])
    assert (found.mean(1) > evidence - 4 * error).all()
    assert evidence.mean() < found.mean() < elbo.mean()
    nll = importance_nll(config, network, variables, images, jax.random.key(5), 4000)
    np.testing.assert_allclose(nll, evidence, atol=0.05)
    with pytest.raises(
        UserError, match="annealed importance sampling, which moves z along gradients: expected a model"
    ):
        annealed_nll(config, network, variables, images, jax.random.key(5))


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES_OF_BITS)
def test_bits_are_trained_and_resumed_exactly(objective, small_data, tmp_path):
    config = config_of(objective)
    whole = trained_and_resumed(config, small_data)
    started = start(config, small_data.image_shape, 70).variables.params
    for part, params in whole.variables.params.items():  # the encoder as well
        assert not np.allclose(*(jax.flatten_util.ravel_pytree(of)[0] for of in (params, started[part]))), part
    assert whole.history[-1]["test_codes_used"] <= 6
    if objective != "relax":
        return
    assert whole.history[-1]["train_control_loss"] > 0
    train(config, small_data, tmp_path / "run")
    kept = load(tmp_path / "run")
    same(kept.state, whole.state)
    model = use(kept)
    assert set(np.unique(model.encode(small_data.test.images)["mu"])) <= {0, 1}
    assert np.isfinite(model.sample(jax.random.key(0), 5)).all()


@pytest.mark.usefixtures("float64")
def test_members_of_a_sweep_are_their_single_runs(small_data):
    check_members(adapted(config_of("relax"), **{"train.epochs": 1}), small_data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective.name": "vae"},
            r"objective\.name: expected one that estimates .* posterior bernoulli.*score_vae.*vae",
        ),
        ({"objective.name": "iwae"}, r"objective\.name: expected one that estimates .* found iwae"),
        (
            {"posterior.name": "categorical"},
            r"objective\.name: expected vae or the like with posterior categorical, .* found score_vae",
        ),
        (
            {"posterior.name": "diagonal_gaussian", "prior.name": "standard_normal"},
            r"objective\.name: expected vae or the like with posterior diagonal_gaussian",
        ),
        ({"prior.name": "standard_normal"}, r"prior\.name: expected one over the posterior's codes"),
        ({"objective.samples": 1}, r"objective\.samples: expected at least 2 with gradient loo; found 1"),
        (
            {"objective.samples": 3, "objective.gradient": "disarm"},
            r"objective\.samples: expected an even number with gradient disarm; found 3",
        ),
        (
            {"model.network": "convolutional", "model.channels": [4, 4]},
            r"model\.network: expected one without BatchNorm .*score_vae with gradient loo",
        ),
    ],
)
def test_what_makes_no_sense_with_bits_is_refused(changes, message):
    options = BITS | {"objective.name": "score_vae", "model.latent": 3} | changes
    with pytest.raises(UserError, match=message):
        build(adapted(Config(), **options), (8, 8, 1))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("disarm", r"objective\.gradient: expected reinforce or loo with posterior digits, whose z are no bits"),
        ("relax", r"objective\.name: expected score_vae with posterior digits, whose z are no bits"),
    ],
)
def test_what_needs_bits_is_refused_with_others(objective, message, monkeypatch):
    def digits(options, shapes):
        whole = POSTERIORS["bernoulli"](options, shapes)
        return whole._replace(codes=whole.codes._replace(values=3))

    monkeypatch.setitem(POSTERIORS, "digits", digits)
    with pytest.raises(UserError, match=message):
        build(config_of(objective, **{"posterior.name": "digits"}), SHAPE)
    assert build(config_of("loo", **{"posterior.name": "digits"}), SHAPE)


def test_convolutions_take_bits_as_vectors():
    network = {"model.network": "convolutional", "model.channels": [4, 4], "model.batch_norm": False}
    options = BITS | OBJECTIVES_OF_BITS["loo"] | network | {"model.latent": 4}
    built = build(adapted(Config(), **options), (8, 8, 1))
    variables = jax.eval_shape(built.composition.init, jax.random.key(0))
    images = jnp.zeros((2, 8, 8, 1))
    terms, _ = jax.eval_shape(
        lambda variables: built.terms(variables, images, jax.random.key(1), train=True), variables
    )
    assert terms["loss"].shape == (2,)


def test_objectives_that_estimate_a_gradient_say_so():
    assert {name for name, objective in OBJECTIVES.items() if objective.scores} == {"score_vae", "relax_vae", "vimco"}
