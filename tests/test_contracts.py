"""What a model may be made of: a codebook with a state, a critic with a phase of its own, layers of z, and more.

Toys, as a user would write them; each is trained by the same driver as every other model.
"""

from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.scipy.stats import norm
from scipy.stats import multivariate_normal

from vae_jax import keys, networks, optimizer
from vae_jax.config import Config, ModelConfig, TrainConfig, adapted, with_options
from vae_jax.data import Dataset, Split
from vae_jax.device import platforms
from vae_jax.errors import UserError
from vae_jax.evaluation import diagnostics
from vae_jax.evaluation.estimators import annealed_nll, importance_nll
from vae_jax.evaluation.evaluator import make_evaluator, means
from vae_jax.hierarchy import Hierarchy
from vae_jax.likelihoods import LIKELIHOODS, Likelihood
from vae_jax.model import notebook
from vae_jax.model.build import build
from vae_jax.model.fits import check_vectors
from vae_jax.model.model import make_model
from vae_jax.networks import NETWORKS
from vae_jax.objectives import OBJECTIVES, Objective, Phase
from vae_jax.posteriors import KL, POSTERIORS, Posterior, Sample
from vae_jax.priors import PRIORS, Prior
from vae_jax.runs.fit import fit
from vae_jax.runs.reading import load, use
from vae_jax.runs.train import train as train_run
from vae_jax.shapes import Shapes
from vae_jax.training.start import start
from vae_jax.training.state import init_optimizer
from vae_jax.training.step import make_step
from vae_jax.variables import Variables

CODES, DECAY = 4, 0.99
LATENT = 3


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


# --- A codebook, whose averages are a state --------------------------------------------------------------------------


def codebook(options, shapes):
    """Vector quantisation of one place, its codes moving averages (van den Oord et al. 2017, section 3.2)."""
    latent = shapes.latent

    def init(key):
        codes = jax.random.normal(key, (CODES, latent))
        return Variables({}, {"codes": codes, "counts": jnp.ones(CODES), "sums": codes})

    def transform(own, noise, heads):
        mu, codes = heads["mu"], own.state["codes"]
        distances = jax.vmap(lambda code: jnp.square(mu - jnp.broadcast_to(code, mu.shape)).sum(-1))(codes)
        nearest = distances.argmin(0)
        z, hot = codes[nearest], jax.nn.one_hot(nearest.reshape(-1), CODES)
        still = jax.lax.stop_gradient(mu).reshape(-1, latent)
        counts = DECAY * own.state["counts"] + (1 - DECAY) * hot.sum(0)
        sums = DECAY * own.state["sums"] + (1 - DECAY) * hot.T @ still
        state = {"codes": sums / counts[:, None], "counts": counts, "sums": sums}
        straight_through = mu + jax.lax.stop_gradient(z - mu)
        return Sample(straight_through, jnp.zeros(mu.shape[:-1]), jnp.square(mu - z).sum(-1), state)

    return Posterior(
        {"mu": latent},
        transform,
        init,
        kl={"codes": KL(lambda heads, _: jnp.full(heads["mu"].shape[:-1], np.log(CODES)))},
        noise=lambda key, lead: (),
        support="codes",
    )


def codes(options, shapes):
    """All codes are as likely."""

    def sample(params, key, count, aggregate):
        return aggregate.own.state["codes"][jax.random.randint(key, (count,), 0, CODES)]

    def log_prob(params, z, aggregate):
        return jnp.full(z.shape[:-1], -np.log(CODES))

    return Prior(log_prob, sample, kind="codes", support="codes")


# --- A critic, which a phase of its own trains -----------------------------------------------------------------------


def critic(params, z):
    return jnp.tanh(z @ params["hidden"]) @ params["out"]


def adversarial(key, model, images, options):
    """An adversarial autoencoder (Makhzani et al. 2016): the encoder fools the critic instead of minimising a KL."""
    draw = model.draw(key, images)
    fooled = jax.nn.softplus(-critic(model.own["critic"], draw.z))
    return {"loss": -draw.log_px + fooled, "reconstruction": -draw.log_px, "fooled": fooled}


def judge(key, model, images, options):
    draw = model.draw(key, images)
    real = jax.random.normal(jax.random.fold_in(key, 1), draw.z.shape)
    seen, drawn = (critic(model.own["critic"], z) for z in (real, draw.z))
    return {
        "loss": jax.nn.softplus(-seen) + jax.nn.softplus(drawn),
        "accuracy": ((seen > 0).mean() + (drawn < 0).mean()) / 2,
    }


def init_critic(key, options, shape, image_shape):
    return {"critic": {"hidden": 0.1 * jax.random.normal(key, (*shape, 8)), "out": jnp.full(8, 0.1)}}


ADVERSARIAL = Objective(
    adversarial, init=init_critic, then=(Phase("critic", judge, ("critic",)),), units={"critic_accuracy": "of 1"}
)


# --- All of them, trained --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(POSTERIORS, "codebook", codebook)
    monkeypatch.setitem(PRIORS, "codes", codes)
    monkeypatch.setitem(OBJECTIVES, "adversarial", ADVERSARIAL)


LADDER = f"{Path(__file__).parent}/own/ladder.py:ladder"
TOYS = {
    "codebook": {"posterior.name": "codebook", "prior.name": "codes"},
    "adversarial": {"objective.name": "adversarial"},
    "ladder": {"model.network": LADDER},
    "ladder_iwae": {"model.network": LADDER, "objective.name": "iwae", "objective.samples": 3},
}


def config_of(toy, **changes):
    options = {"model.network": "mlp", "model.latent": LATENT} | TOYS[toy]
    layers = {"model.layers": [8]} if options["model.network"] == "mlp" else {}
    config = Config(train=TrainConfig(batch_size=32, epochs=2, chunk_steps=2, **changes))
    return adapted(config, **options | layers)


@pytest.mark.parametrize("toy", TOYS)
def test_toys_train_evaluate_and_resume_exactly(toy, small_data, tmp_path):
    config = config_of(toy)
    whole = fit(config, small_data)
    states = []

    def stop(state, history):
        states.append((jax.tree.map(np.asarray, state), list(history)))

    fit(config, small_data, on_chunk=stop)
    state, history = states[1]
    resumed = fit(config, small_data, resume=(jax.tree.map(jnp.asarray, state), history))
    same(resumed.state, whole.state)
    folder = tmp_path / "run"
    train_run(config, small_data, folder)
    kept = load(folder)
    same(kept.state, whole.state)
    if "ladder" in toy:
        assert "6 latent dimensions" in notebook.table(kept)
        assert notebook.table(kept).count("network&#x27;s own") == 2
    model = use(kept)
    assert np.isfinite(model.reconstruct(small_data.test.images)).all()
    assert np.isfinite(model.sample(jax.random.key(0), 5)).all()
    network, objective = build(config, small_data.image_shape)
    terms = make_evaluator(config, network, objective, small_data.test.images)(
        whole.state.variables, keys.make_keys(0).evaluate
    )
    assert means(terms) == {name: whole.history[-1][f"test_{name}"] for name in objective.figures.names}


def test_a_codebook_moves_in_training_only_and_without_a_gradient(small_data):
    config = config_of("codebook")
    started = start(config, small_data.image_shape, 70).variables
    trained = fit(config, small_data)
    variables = trained.state.variables
    assert "posterior" not in variables.params
    before, after = started.state["posterior"], variables.state["posterior"]
    assert not np.allclose(before["codes"], after["codes"])
    assert np.asarray(after["counts"]).sum() == pytest.approx(
        CODES * DECAY**6 + 0.01 * sum(count * DECAY ** (5 - step) for step, count in enumerate((32, 32, 6) * 2)),
        rel=1e-5,
    )
    network, _ = build(config, small_data.image_shape)
    _, updated = network.apply(variables, lambda model: model.draw(jax.random.key(0), jnp.zeros((2, 8, 8, 1))))
    same(updated, variables)
    assert trained.history[-1]["test_kl"] == pytest.approx(np.log(CODES))
    drawn = np.asarray(use(trained).draw(jax.random.key(0), 50))
    assert all((code == np.asarray(after["codes"])).all(1).any() for code in drawn)


def test_the_average_of_a_codebook_by_hand():
    """Codes 0 and 10 in one dimension, of which a batch has 1, 2 and 9."""
    posterior = codebook(None, Shapes((2, 2, 1), 1))
    state = {"codes": jnp.array([[0.0], [10.0]]), "counts": jnp.ones(2), "sums": jnp.array([[0.0], [10.0]])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_contracts.CODES", 2)
        sample = posterior.transform(Variables({}, state), (), {"mu": jnp.array([[1.0], [2.0], [9.0]])})
    np.testing.assert_allclose(sample.state["counts"], [1.01, 1.0], rtol=1e-6)
    np.testing.assert_allclose(sample.state["sums"][:, 0], [0.03, 9.99], rtol=1e-5)
    np.testing.assert_allclose(sample.state["codes"][:, 0], [0.0297030, 9.99], rtol=1e-5)
    np.testing.assert_allclose(sample.cost, [1.0, 4.0, 1.0], rtol=1e-6)


def test_a_skipped_step_leaves_a_codebook_as_it_was(small_data):
    def broken(key, model, images, options):
        draw = model.draw(key, images)
        return {"loss": -draw.log_px + draw.cost + jnp.nan}

    config = config_of("codebook", skip_nonfinite=True)
    network, _ = build(config, small_data.image_shape)
    transformation = optimizer.build(config, 3)
    step = jax.jit(make_step(config, network, Objective(broken), transformation))
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(small_data.train.images[:8])
    updated, _, sums = step(variables, transformation.init(variables.params), images, jax.random.key(1))
    same(updated, variables)
    assert np.isnan(sums).all()


def test_a_phase_changes_what_it_trains_and_nothing_else(small_data):
    config = config_of("adversarial")
    network, objective = build(config, small_data.image_shape)
    transformation = optax.sgd(0.01, momentum=0.9)  # Adam's first step would make of a rounding a step
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(small_data.train.images[:8])

    def after(objective):
        step = jax.jit(make_step(config, network, objective, transformation))
        state = init_optimizer(transformation, objective, variables.params)
        return step(variables, state, images, jax.random.key(1))

    both, states, sums = after(objective)
    first, _, _ = after(objective._replace(then=(), trains=("encoder", "decoder"), figures=None))
    assert objective.figures.names == ("loss", "reconstruction", "critic_accuracy", "critic_loss", "fooled")
    assert objective.figures.of_batch == ("critic_accuracy",)
    assert sums.shape == (5,)
    for part in ("encoder", "decoder"):
        for one, other in zip(*(jax.tree.leaves(of.params[part]) for of in (both, first)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)  # two programs round otherwise
        assert not np.allclose(jax.tree.leaves(both.params[part])[0], jax.tree.leaves(variables.params[part])[0])
    same(first.params["critic"], variables.params["critic"])
    assert not np.allclose(both.params["critic"]["out"], variables.params["critic"]["out"])
    assert len(states) == 2
    assert states[0][0].trace.keys() == {"encoder", "decoder"}
    assert states[1][0].trace.keys() == {"critic"}


def test_a_critics_gradient_is_that_of_the_model_as_its_phase_finds_it(small_data):
    """By hand: one step of plain gradient descent for the model, then one for the critic."""
    config = config_of("adversarial")
    network, objective = build(config, small_data.image_shape)
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(small_data.train.images[:8])
    step = make_step(config, network, objective, optax.sgd(0.01))
    state = init_optimizer(optax.sgd(0.01), objective, variables.params)
    updated, _, _ = jax.jit(step)(variables, state, images, jax.random.key(1))

    def loss(trained, params, terms, name, own):
        def of(model):
            return terms(own.objective, model, images / 255, config.objective.options)[name]

        more = {"streams": own.streams}
        return network.apply(Variables({**params, **trained}), of, own.dropout, train=True, **more)[0].sum()

    params = variables.params
    model = {name: params[name] for name in ("encoder", "decoder")}
    gradient = jax.grad(loss)(model, params, objective.terms, "loss", keys.step_keys(jax.random.key(1)))
    params = params | jax.tree.map(lambda p, g: p - 0.01 * g, model, gradient)
    own = keys.step_keys(keys.phase_key(jax.random.key(1), 1))
    trained = {"critic": params["critic"]}
    gradient = jax.grad(loss)(trained, params, objective.then[0].terms, "critic_loss", own)
    params = params | jax.tree.map(lambda p, g: p - 0.01 * g, trained, gradient)
    for expected, found in zip(*map(jax.tree.leaves, (params, updated.params)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("toy", ["codebook", "adversarial", "ladder"])
def test_toys_train_as_a_gpu_would(toy, small_data):
    """Packed, in a loop of known length."""
    config = config_of(toy)
    states = {}
    for name in ("cpu", "gpu"):
        platform = platforms.PLATFORMS[name]._replace(one_pass=False, tile=None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(platforms.PLATFORMS, "cpu", platform)
            states[name] = fit(config, small_data).state
    for first, second in zip(*map(jax.tree.leaves, states.values()), strict=True):
        np.testing.assert_allclose(first, second, rtol=2e-4, atol=2e-5)


def test_all_of_a_step_sees_the_state_before_it(small_data):
    """Two draws of one step, and of an evaluation: the second is quantised by the codes that the first was."""
    config = config_of("codebook")
    network, _ = build(config, small_data.image_shape)
    variables, images = network.init(jax.random.key(0)), jnp.asarray(small_data.train.images[:8]) / 255

    def twice(model):
        return [model.draw(key, images).z for key in jax.random.split(jax.random.key(1))]

    for train_now in (True, False):
        (first, second), updated = network.apply(variables, twice, jax.random.key(2), train=train_now)
        np.testing.assert_allclose(first, second, rtol=1e-6)
        assert train_now != np.array_equal(updated.state["posterior"]["codes"], variables.state["posterior"]["codes"])


def test_a_phase_keeps_the_average_of_the_weights_or_is_refused(small_data, monkeypatch):
    config = config_of("adversarial", ema_decay=0.9)
    trained = fit(config, small_data)
    for part in ("encoder", "critic"):
        used, raw = (jax.tree.leaves(of.params[part])[0] for of in (trained.variables, trained.state.variables))
        assert not np.allclose(used, raw)
    own = ADVERSARIAL.then[0]._replace(optimizer=lambda rule: optax.chain(rule))
    monkeypatch.setitem(OBJECTIVES, "adversarial", ADVERSARIAL._replace(then=(own,)))
    with pytest.raises(UserError, match="phase critic: expected an optimizer that keeps what is evaluated"):
        fit(config, small_data)


def test_figures_that_a_batch_leaves_out_are_refused(small_data, monkeypatch):
    def some(key, model, images, options):
        draw = model.draw(key, images)
        return {"loss": -draw.log_px} | ({"more": draw.log_pz} if len(images) == 32 else {"other": draw.log_pz})

    monkeypatch.setitem(OBJECTIVES, "adversarial", Objective(some))
    with pytest.raises(UserError, match=r"objective\.name adversarial: expected the figures loss, other; found .*more"):
        fit(config_of("adversarial"), small_data)


def shaped(options, shapes):
    """z of shape (2, 3)."""

    def transform(own, noise, heads):
        log_q = -0.5 * (np.log(2 * np.pi) + jnp.square(noise)).sum((-2, -1))
        return heads["mu"] + noise, log_q

    return Posterior({"mu": (2, 3)}, transform, shape=(2, 3))


def shaped_prior(options, shapes):
    def log_prob(params, z, aggregate):
        return -0.5 * (np.log(2 * np.pi) + jnp.square(z)).sum((-2, -1))

    return Prior(log_prob, lambda params, key, count, aggregate: jax.random.normal(key, (count, 2, 3)))


class Shaped(nn.Module):
    """A network for z of shape (2, 3)."""

    options: None
    shapes: object

    def setup(self):
        self.into, self.out = nn.Dense(6), nn.Dense(64)

    def encode(self, images, train):
        return {"mu": self.into(images.reshape(len(images), -1))}

    def decode(self, z, train):
        assert z.shape[1:] == (2, 3)
        return self.out(z.reshape(len(z), -1)).reshape(-1, 8, 8, 1)


def test_z_of_any_shape_are_trained_drawn_and_decoded(small_data, monkeypatch):
    monkeypatch.setitem(POSTERIORS, "codebook", shaped)
    monkeypatch.setitem(PRIORS, "codes", shaped_prior)
    config = config_of("codebook")
    flattened = use(fit(config, small_data))
    assert flattened.draw(jax.random.key(0), 3).shape == (3, 2, 3)
    message = r"model\.network: expected one with a map of \[2\], as z is .*found residual, whose map is \[1, 1\] for"
    with pytest.raises(UserError, match=message):
        build(replace(config, model=ModelConfig("residual", channels=(8, 8, 8))), small_data.image_shape)
    config = replace(config, model=ModelConfig("shaped", 6))
    monkeypatch.setitem(networks.NETWORKS, "shaped", lambda options, shapes: Shaped(None, shapes))
    model = use(fit(config, small_data))
    images = small_data.test.images[:3]
    assert model.encode(images)["mu"].shape == model.draw(jax.random.key(0), 3).shape == (3, 2, 3)
    assert model.reconstruct(images).shape == model.sample(jax.random.key(0), 3).shape == (3, 8, 8, 1)
    network, _ = build(config, small_data.image_shape)
    with pytest.raises(UserError, match="diagnostics: expected a model whose z are vectors"):
        check_vectors(network, "diagnostics")


# --- Figures of a whole batch ----------------------------------------------------------------------------------------


def brightest(key, model, images, options):
    draw = model.draw(key, images)
    return {"loss": -draw.log_px, "brightest": images.mean((1, 2, 3)).max()}


def test_figures_of_a_batch_are_of_blocks_as_large_as_in_training(small_data, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "brightest", Objective(brightest))
    config = config_of("codebook")
    config = replace(config, objective=replace(config.objective, name="brightest"))
    trained = fit(replace(config, train=replace(config.train, batch_size=8, epochs=1)), small_data)
    means = small_data.test.images.mean((1, 2, 3)) / 255
    filled = np.concatenate([means, means])[:24].reshape(3, 8).max(1)  # 20 images: the last block has the first 4 again
    assert trained.history[0]["test_brightest"] == pytest.approx((filled @ [8, 8, 4]) / 20, rel=1e-5)
    assert trained.history[0].keys() >= {"train_brightest", "validation_brightest"}
    assert "test_kl" not in trained.history[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"then": (Phase("critic", judge, ("crtic",)),)}, "phase critic: expected trains to name some of .*crtic"),
        ({"init": lambda *_: {"posterior": {}}}, "objective.name: expected .* other names than posterior, prior"),
        ({"then": (*ADVERSARIAL.then,) * 2}, "critic_loss twice"),
    ],
)
def test_phases_that_make_no_sense_are_refused(changes, message, monkeypatch, small_data):
    monkeypatch.setitem(OBJECTIVES, "adversarial", ADVERSARIAL._replace(**changes))
    with pytest.raises(UserError, match=message):
        fit(config_of("adversarial"), small_data)


def test_a_posterior_and_a_prior_over_other_things_are_refused(small_data):
    config = config_of("codebook")
    with pytest.raises(UserError, match=r"prior\.name: expected one over the posterior's codes, "):
        build(replace(config, prior=replace(config.prior, name="standard_normal")), small_data.image_shape)


@pytest.mark.parametrize(
    ("state", "message"),
    [(lambda own: {"codes": own["codes"][:2]}, "expected the state"), (lambda own: own | {"sums": 1}, "found")],
)
def test_a_state_of_another_shape_is_refused(state, message, monkeypatch, small_data):
    def spoiled(options, shapes):
        whole = codebook(options, shapes)

        def transform(own, noise, heads):
            sample = whole.transform(own, noise, heads)
            return sample._replace(state=state(sample.state))

        return whole._replace(transform=transform)

    monkeypatch.setitem(POSTERIORS, "codebook", spoiled)
    with pytest.raises(UserError, match=f"posterior.name codebook, transform: .*{message}"):
        fit(config_of("codebook"), Dataset("few", Split(small_data.train.images), small_data.test))


# --- Layers of z, drawn inside the decoder ---------------------------------------------------------------------------

SCALE = 0.7


def linear_gaussian(config, image_shape):
    """N(the decoder's output, SCALE² I), under which the ladder is linear and Gaussian as a whole."""

    def log_prob(params, mean, images):
        return norm.logpdf(images, mean, SCALE).sum((1, 2, 3))

    return Likelihood(1, log_prob, lambda params, mean: mean)


@pytest.fixture
def ladder(monkeypatch):
    """(configuration, network, objective, variables) of the ladder with a linear Gaussian likelihood."""
    monkeypatch.setitem(LIKELIHOODS, "linear_gaussian", linear_gaussian)
    config = config_of("ladder")
    config = adapted(config, **{"likelihood.name": "linear_gaussian"})
    network, objective = build(config, (8, 8, 1))
    return config, network, objective, network.init(jax.random.key(3))


def exact_nll(params, images):
    """−log p(x): x = bias + top·(W·A + B) + e·A + noise, where low = top·W + e."""
    decoder = {name: np.asarray(array, np.float64) for name, array in params["decoder"].items()}
    of_top = decoder["low"] @ decoder["pixels"] + decoder["top_pixels"]
    variances = np.exp(decoder["log_var"].reshape(-1, 1))
    covariance = of_top.T @ of_top + decoder["pixels"].T @ (variances * decoder["pixels"]) + SCALE**2 * np.eye(64)
    return -multivariate_normal.logpdf(images.reshape(-1, 64) / 255, decoder["bias"][0], covariance)


def test_a_draw_of_a_hierarchy_by_hand(ladder, small_data):
    _, network, _, variables = ladder
    images = jnp.asarray(small_data.test.images / 255, jnp.float32)
    draw, several, again = network.apply(
        variables,
        lambda model: (
            model.draw(jax.random.key(0), images),
            model.draw(jax.random.key(0), images, samples=3),
            lambda z: (model.log_prior(z), model.log_posterior(z, model.encode(images)), model.decode(z)),
        ),
    )[0]
    assert (network.latent, several.z.shape, several.kl.shape) == (6, (3, 20, 6), (20,))
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), variables.params)
    top, low = np.split(np.asarray(draw.z, np.float64), [2], 1)
    hidden = np.tanh(np.asarray(images).reshape(20, -1) @ params["encoder"]["hidden"])
    q_top, q_low = ([*np.split(hidden @ params["heads"][layer], 2, 1)] for layer in ("top", "low"))
    p_top, p_low = [0.0, 0.0], [top @ params["decoder"]["low"], params["decoder"]["log_var"].reshape(1, 4)]
    q_low[0] = q_low[0] + p_low[0]

    def log_prob(z, mu, log_var):
        return scipy.stats.norm.logpdf(z, mu, np.exp(log_var / 2)).sum(1)

    def kl(q, p):
        return (p[1] / 2 - q[1] / 2 + (np.exp(q[1]) + (q[0] - p[0]) ** 2) / (2 * np.exp(p[1])) - 0.5).sum(1)

    mean = top @ params["decoder"]["top_pixels"] + low @ params["decoder"]["pixels"] + params["decoder"]["bias"]
    expected = {
        "log_q": log_prob(top, *q_top) + log_prob(low, *q_low),
        "log_pz": log_prob(top, *p_top) + log_prob(low, *p_low),
        "log_px": scipy.stats.norm.logpdf(np.asarray(images).reshape(20, -1), mean, SCALE).sum(1),
        "kl": kl(q_top, p_top) + kl(q_low, p_low),
        "outputs": mean.reshape(20, 8, 8, 1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(draw, name), value, rtol=2e-4, atol=2e-4, err_msg=name)
    for of_several in (False, True):  # at z of one's own: the same, in passes from the top down that draw nothing
        one = several if of_several else draw
        for found, value in zip(again(one.z), (one.log_pz, one.log_q, one.outputs), strict=True):
            np.testing.assert_allclose(found, value, rtol=2e-4, atol=2e-4)


def test_estimates_of_a_hierarchys_evidence_are_the_exact_one(ladder, small_data):
    config, network, objective, variables = ladder
    images, key = small_data.test.images, jax.random.key(5)
    exact = exact_nll(variables.params, images)
    nll = importance_nll(config, network, variables, images, key, 5000)
    np.testing.assert_allclose(nll.mean(), exact.mean(), atol=0.03)
    np.testing.assert_allclose(nll, exact, atol=0.25)
    annealed = annealed_nll(config, network, variables, images[:4], key, temperatures=60, chains=16, leapfrog=5)
    np.testing.assert_allclose(annealed, exact[:4], atol=0.4)
    for sampled in (False, True):  # the ELBO with its KL in closed form, and from samples
        used = with_options(config, **{"objective.kl": "sampled" if sampled else "analytic"})
        evaluator = make_evaluator(used, network, objective, images.repeat(50, 0))
        losses = evaluator(variables, key)["loss"].reshape(20, 50).mean(1)
        assert (losses > exact + 0.1).all()


def test_a_hierarchys_center_and_prior(ladder, small_data):
    config, network, _, variables = ladder
    images = small_data.test.images
    model = make_model(network, build(config, (8, 8, 1))[1], variables)
    encoded = model.encode(images)
    hidden = encoded["hidden"]
    heads = {layer: np.asarray(hidden @ variables.params["heads"][layer]) for layer in ("top", "low")}
    top = heads["top"][:, :2]
    low = heads["low"][:, :4] + top @ np.asarray(variables.params["decoder"]["low"])
    np.testing.assert_allclose(encoded["mu"], np.concatenate([top, low], 1), rtol=1e-4, atol=1e-5)
    z = np.asarray(model.draw(jax.random.key(0), 20_000))
    weights = np.asarray(variables.params["decoder"]["low"])
    covariance = np.block([[np.eye(2), weights], [weights.T, weights.T @ weights + np.exp(-0.5) * np.eye(4)]])
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.05)
    evaluator = make_evaluator(config, network, OBJECTIVES["vae"], images, "mean")
    assert np.isfinite(evaluator(variables, jax.random.key(0))["kl"]).all()
    sampled = with_options(config, **{"objective.kl": "sampled"})
    with pytest.raises(
        UserError, match=r"expected sample, since with objective vae, network .*ladder the loss is made"
    ):
        make_evaluator(sampled, network, OBJECTIVES["vae"], images, "mean")
    assert np.isfinite(
        diagnostics.diagnose(config, network, variables, small_data.test, jax.random.key(1))["aggregate_kl"]
    )


ZEROS = {"mu": jnp.zeros((1, 3)), "log_var": jnp.zeros((1, 3))}


def own_hierarchy(monkeypatch, config=None, **spoiled):
    """A network of one layer of three numbers, some of its functions replaced."""

    def top_down(params, latent, activations):
        z = latent(ZEROS, activations and ZEROS | {"mu": activations["h"]})
        return (z @ params["decoder"]).reshape(-1, 8, 8, 1)

    functions = {
        "init": lambda key: {"decoder": jnp.ones((3, 64)), "encoder": jnp.ones((64, 3))},
        "encode": lambda params, images: {"h": images.reshape(-1, 64) @ params["encoder"]},
        "top_down": top_down,
    }
    monkeypatch.setitem(NETWORKS, "own", lambda options, shapes: Hierarchy(**functions | spoiled))
    config = config or config_of("ladder")
    return build(adapted(config, **{"model.network": "own"}), (8, 8, 1))


@pytest.mark.parametrize("name", ["vae", "iwae", "ciwae"])
def test_a_draw_is_one_pass_from_the_top_down(name, monkeypatch):
    passes = []

    def top_down(params, latent, activations):
        passes.append(activations is None)
        z = latent(ZEROS, activations and ZEROS | {"mu": activations["h"]})
        return (z @ params["decoder"]).reshape(-1, 8, 8, 1)

    config = config_of("ladder")
    config = adapted(config, **{"objective.name": name})
    network, objective = own_hierarchy(monkeypatch, config, top_down=top_down)
    variables, images = network.init(jax.random.key(0)), jnp.zeros((2, 8, 8, 1))
    passes.clear()
    network.apply(variables, lambda model: objective.terms(jax.random.key(0), model, images, config.objective.options))
    assert passes == [False]


def test_a_hierarchy_in_bfloat16(monkeypatch, small_data):
    seen = []

    def encode(params, images):
        seen.append(images.dtype)
        return {"h": images.reshape(-1, 64) @ params["encoder"].astype(images.dtype)}

    config = config_of("ladder")
    config = with_options(config, **{"model.precision": "bfloat16"})
    network, _ = own_hierarchy(monkeypatch, config, encode=encode)
    draw = network.apply(
        network.init(jax.random.key(0)), lambda model: model.draw(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    )[0]
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in jax.tree.leaves(draw)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"init": lambda key: jnp.zeros(3)}, "init: expected a dict of parameters; found floats"),
        ({"init": lambda: {}}, "expected init of its Hierarchy to be a function of 1 argument"),
        ({"encode": lambda params, images: images}, "encode: expected a dict of activations; found floats"),
        ({"encode": lambda params, images: {"h": jnp.zeros(3)}}, r"encode, h: expected floats of shape \(2,\)"),
        ({"top_down": lambda params, latent, h: h}, r"top_down: expected floats of shape \(2, 8, 8, 1\); found a dict"),
        ({"top_down": lambda params, latent, h: latent(ZEROS, None)}, "layer 1, posterior: expected one, since"),
        ({"top_down": lambda params, latent, h: latent(ZEROS, ZEROS | {"mu": jnp.zeros((2, 2))})}, "posterior, mu"),
        ({"top_down": lambda params, latent, h: jnp.zeros((2, 8, 8, 1))}, "the same layers .* at least one"),
    ],
)
def test_a_hierarchy_that_gives_something_else_is_refused(spoiled, message, monkeypatch):
    with pytest.raises(UserError, match=rf"model\.network.*{message}"):
        own_hierarchy(monkeypatch, **spoiled)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("posterior.name", "full_gaussian", "expected diagonal_gaussian with network .*its own posterior and prior"),
        ("prior.name", "vamp", "expected standard_normal with network .*its own posterior and prior"),
        ("model.classes", 3, "expected 0 with network"),
        ("objective.name", "autoencoder", r"expected one with a p\(x\)"),
        ("objective.free_bits", 0.5, "expected 0 with network"),
    ],
)
def test_what_a_hierarchy_brings_itself_is_refused(option, value, message):
    config = adapted(config_of("ladder"), **{option: value})
    with pytest.raises(UserError, match=rf"{option}: {message}.*; found {value}"):
        build(config, (8, 8, 1))
