"""Priors over codes: what a place sees, entropies that are known, enumeration, and a model trained with one."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax.config import Config, PriorConfig, TrainConfig, adapted, with_values
from vae_jax.errors import UserError
from vae_jax.model.build import build
from vae_jax.posteriors import Codes
from vae_jax.priors import Aggregate, get
from vae_jax.priors.autoregressive import draw, log_prob_of
from vae_jax.priors.pixelcnn import PixelCNNOptions, pixelcnn_of
from vae_jax.priors.transformer import TransformerOptions, transformer_of
from vae_jax.runs.fit import fit
from vae_jax.shapes import Shapes
from vae_jax.training import several

NAMES = ("pixelcnn", "transformer")
SMALL = {"pixelcnn": PixelCNNOptions(3, 4, 3), "transformer": TransformerOptions(2, 8, 2, 2)}


def codes_of(values, shape, apart=False):
    """Codes that are themselves z's only numbers."""
    return Codes(
        values, shape, lambda own, z: z[..., 0].astype(int), lambda own, codes: codes[..., None].astype(float), apart
    )


def shapes_of(codes, classes=0):
    return Shapes((4, 4, 1), 1, classes, latent_shape=(*codes.shape, 1), codes=codes)


def aggregate_of(codes, labels=None):
    unused = lambda *_: jnp.zeros(())  # noqa: E731
    return Aggregate(unused, unused, None, lambda z: codes.of(None, z), lambda k: codes.vectors(None, k), labels)


def network_of(name, codes, classes=0, options=None):
    of = {"pixelcnn": pixelcnn_of, "transformer": transformer_of}[name]
    return of(options or SMALL[name], codes, classes)


def shaken(params, scale=0.5):
    """Parameters as if trained: none of them 0."""
    random = np.random.RandomState(0)
    return jax.tree.map(lambda leaf: leaf + scale * random.randn(*leaf.shape).astype(leaf.dtype), params)


@cache
def example(name, values, shape, classes=0, scale=0.5):
    """A network and parameters as if trained."""
    network = network_of(name, codes_of(values, shape), classes)
    return network, shaken(jax.jit(network.init)(jax.random.key(0)), scale)


# --- What a place sees -----------------------------------------------------------------------------------------------


def dependence(name, options, side):
    """How much the logits of a place, by row, move with the vector of the code at another, by column.

    With few channels a place may have none that its ReLUs let through, and then sees nothing at all.
    """
    network = network_of(name, codes_of(3, (side, side)), 0, options)
    params = shaken(jax.jit(network.init)(jax.random.key(1)), 0.05)
    maps = jax.random.randint(jax.random.key(2), (side, side, 1), 0, 3)
    jacobian = jax.jit(jax.jacrev(lambda embedded: network.logits(params, embedded, None)))(network.embed(params, maps))
    return np.abs(jacobian).sum((2, 3, 6, 7)).reshape(side**2, side**2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("pixelcnn", dict.fromkeys((5, 7), PixelCNNOptions(None, 16, kernel))) for kernel in (3, 5, 13)),
        ("transformer", {5: TransformerOptions(1, 6, 2, 2), 7: TransformerOptions(2, 6, 2, 2)}),
    ],
)
@pytest.mark.parametrize("side", [5, 7])
def test_a_place_sees_every_place_before_it_and_no_other(name, options, side):
    moved = dependence(name, options[side], side)
    before = np.tri(side**2, k=-1, dtype=bool)
    assert (moved[~before] == 0).all()
    assert (moved[before] > 0).all()


def test_too_few_layers_of_a_pixelcnn_do_not_see_all():
    """So that the test above is one: the last place of a row sees its beginning through 6 layers, not through 5."""
    moved = dependence("pixelcnn", PixelCNNOptions(5, 16, 3), 7).reshape(7, 7, 7, 7)
    assert moved[0, 6, 0, 0] == 0
    assert moved[0, 6, 0, 1] > 0
    assert moved[1, 0, 0, 6] == 0
    assert moved[1, 0, 0, 5] > 0


# --- Entropies -------------------------------------------------------------------------------------------------------

STAY, PLACES = 0.9, 49
ENTROPY = 16.2971  # nats of a binary chain of 49 places that stays with 0.9: log 2 + 48·0.325083
LEARNS = {"pixelcnn": PixelCNNOptions(6, 12, 3), "transformer": TransformerOptions(2, 16, 2, 2)}
STEPS = {"pixelcnn": 300, "transformer": 150}  # the last place of a row is far from the next one's first


def chains(key, count, stay):
    """Maps (7, 7, count) in raster order, and their log p; `stay` of every chain, (count,)."""
    first, changes = jax.random.split(key)
    flips = jax.random.uniform(changes, (PLACES - 1, count)) >= stay[None, :]
    start = jax.random.randint(first, (1, count), 0, 2)
    maps = jnp.cumsum(jnp.concatenate([start, flips.astype(start.dtype)]), 0) % 2
    log_p = jnp.where(flips, jnp.log(1 - stay)[None, :], jnp.log(stay)[None, :]).sum(0) - jnp.log(2)
    return maps.reshape(7, 7, count), log_p


def learned(network, stays, steps, batch=64, rate=1e-2):
    """Parameters after steps of Adam on chains, the label of which says how they stay."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, key):
        params, state = carry
        own, chosen = jax.random.split(key)
        labels = jax.random.randint(chosen, (batch,), 0, len(stays))
        maps, _ = chains(own, batch, jnp.asarray(stays)[labels])
        given = labels if len(stays) > 1 else None
        gradient = jax.grad(lambda params: -log_prob_of(network, params, maps, given).mean())(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    params = network.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0])(params)


@pytest.mark.optimized
@pytest.mark.parametrize("name", NAMES)
def test_a_chains_entropy_is_approached_from_above(name):
    network = network_of(name, codes_of(2, (7, 7)), 0, LEARNS[name])
    params = learned(network, [STAY], STEPS[name])
    maps, log_p = chains(jax.random.key(2), 4096, jnp.full(4096, STAY))
    found = np.asarray(jax.jit(lambda params: log_prob_of(network, params, maps))(params), float)
    log_p = np.asarray(log_p, float)
    assert -log_p.mean() == pytest.approx(ENTROPY, abs=4 * log_p.std() / 64)
    excess = log_p - found  # its mean is the KL of the model from the chain
    error = excess.std() / len(excess) ** 0.5
    assert -3 * error < excess.mean() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_without_an_output_layer_all_codes_are_as_likely(name):
    codes = codes_of(512, (7, 7))
    prior = get(PriorConfig(name=name), shapes_of(codes))
    params = jax.jit(prior.init)(jax.random.key(0))
    z = jax.random.randint(jax.random.key(1), (2, 7, 7, 1), 0, 512).astype(float)
    log_prob = jax.jit(lambda params: prior.log_prob(params, z, aggregate_of(codes)))
    np.testing.assert_allclose(log_prob(params), -305.678, rtol=0.01)  # nearly so at the start
    params["logits"] = jax.tree.map(jnp.zeros_like, params["logits"])
    np.testing.assert_allclose(log_prob(params), -305.678, atol=1e-3)


# --- Drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [("pixelcnn", (4, 5)), ("pixelcnn", (1, 3)), *(("transformer", shape) for shape in ((4, 5), (6,), (2, 3, 2)))],
)
def test_the_density_of_drawn_maps_is_that_of_the_choices(name, shape):
    network, params = example(name, 5, shape, 3)
    labels = jnp.arange(6) % 3
    drawn = jax.jit(lambda temperature, top_p: draw(network, params, jax.random.key(1), 6, labels, temperature, top_p))
    log_prob = jax.jit(lambda maps, labels: log_prob_of(network, params, maps, labels))
    for how in ((1.0, 1.0), (0.3, 1.0), (1.0, 0.9)):
        maps, log_p = drawn(*how)
        assert maps.shape == (*shape, 6)
        assert maps.min() >= 0
        assert maps.max() < 5
        np.testing.assert_allclose(log_prob(maps, labels), log_p, atol=1e-4)
        assert np.ptp(log_p) > 1
        assert np.abs(log_prob(maps, (labels + 1) % 3) - log_p).max() > 1


def kept(probabilities, top_p):
    """Probabilities of the smallest set of codes that reaches top_p."""
    order = np.argsort(-probabilities)
    count = np.searchsorted(np.cumsum(probabilities[order]), top_p) + 1
    cut = np.zeros_like(probabilities)
    cut[order[:count]] = probabilities[order[:count]]
    return cut / cut.sum()


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_as_frequent_as_they_are_probable(name):
    """Two places of three codes against all nine pairs."""
    count, shape = 20_000, (1, 2) if name == "pixelcnn" else (2,)
    network, params = example(name, 3, shape, scale=0.2)
    pairs = jnp.stack([jnp.arange(3).repeat(3), jnp.tile(jnp.arange(3), 3)]).reshape(*shape, 9)
    logits = np.asarray(network.logits(params, network.embed(params, pairs), None), float).reshape(2, 9, 3)
    drawn = jax.jit(lambda *how: draw(network, params, jax.random.key(3), count, None, *how)[0])
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.6), (2.0, 0.6)):
        scaled = np.exp(logits / temperature)
        scaled = scaled / scaled.sum(-1, keepdims=True)
        first = kept(scaled[0, 0], top_p)
        expected = np.array([first[a] * kept(scaled[1, 3 * a], top_p)[b] for a in range(3) for b in range(3)])
        assert (expected > 0).all() == (top_p == 1)
        assert (expected > 0).sum() > 2
        of_pair = np.array([3, 1]) @ np.asarray(drawn(temperature, top_p)).reshape(2, count)
        found = np.bincount(of_pair, minlength=9) / count
        assert (np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)).all(), (temperature, top_p)


@pytest.mark.parametrize("name", NAMES)
def test_at_the_limits_the_most_probable_code_is_drawn(name):
    network, params = example(name, 5, (3, 4))
    drawn = jax.jit(lambda *how: draw(network, params, jax.random.key(0), 3, None, *how)[0])
    logits = jax.jit(lambda maps: network.logits(params, network.embed(params, maps), None))
    for how in ((0.0, 1.0), (1e-6, 1.0), (1.0, 0.0), (1.0, 1e-6), (0.0, 0.5)):
        maps = drawn(*how)
        np.testing.assert_array_equal(maps, logits(maps).argmax(-1), str(how))
    assert (drawn(1.0, 1.0) != maps).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_draws_what_its_codes_stand_for(name):
    codes = codes_of(5, (3, 4))
    prior = get(PriorConfig(name=name), shapes_of(codes))
    assert (prior.support, prior.how, prior.kind) == ("codes", ("temperature", "top_p"), "")
    params = jax.jit(prior.init)(jax.random.key(0))
    sample = jax.jit(lambda **how: prior.sample(params, jax.random.key(1), 2, aggregate_of(codes), **how))
    z = sample()
    assert z.shape == (2, 3, 4, 1)
    assert set(np.unique(z)) <= set(range(5))
    assert len({*map(bytes, np.asarray([z, sample(temperature=0.0), sample(top_p=0.3)]))}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_z_may_have_any_leading_axes_and_pass_no_gradient(name):
    codes = codes_of(4, (3, 4))
    prior = get(PriorConfig(name=name), shapes_of(codes, 3))
    params = shaken(jax.jit(prior.init)(jax.random.key(0)), 0.1)
    z = jax.random.randint(jax.random.key(1), (2, 6, 3, 4, 1), 0, 4).astype(float)
    labels = jnp.arange(6) % 3

    def total(params, z):
        log_p = prior.log_prob(params, z, aggregate_of(codes, labels))
        return log_p.sum(), log_p

    gradients, found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, z)
    assert found.shape == (2, 6)
    for i in range(6):  # the labels' axis is the last
        alone = prior.log_prob(params, z[:, i], aggregate_of(codes, labels[i : i + 1].repeat(2)))
        np.testing.assert_allclose(found[:, i], alone, rtol=1e-5)
    assert (np.asarray(gradients[1]) == 0).all()
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients[0]):
        assert np.isfinite(gradient).all(), path
        assert np.asarray(gradient).any(), path


# --- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.optimized
@pytest.mark.parametrize("name", NAMES)
def test_chains_of_two_labels_are_learned_apart(name):
    network = network_of(name, codes_of(2, (7, 7)), 2, LEARNS[name])
    stays = [STAY, 1 - STAY]
    params = learned(network, stays, STEPS[name])
    labels = jnp.arange(2048) % 2
    maps, log_p = chains(jax.random.key(2), 2048, jnp.asarray(stays)[labels])
    log_prob = jax.jit(lambda labels: log_prob_of(network, params, maps, labels))
    for label in (0, 1):
        excess = np.asarray(log_p - log_prob(labels), float)[label::2]
        assert -3 * excess.std() / 32 < excess.mean() < 0.5
    # With the other one's label 43.2 of 48 steps are improbable: 48·(0.9 − 0.1)·log 9 nats more.
    assert -np.mean(log_prob(1 - labels)) > ENTROPY + 0.5 * 48 * 0.8 * np.log(9)
    drawn, _ = jax.jit(lambda key: draw(network, params, key, 500, jnp.arange(500) % 2))(jax.random.key(3))
    drawn = np.asarray(drawn).reshape(PLACES, 500)
    stayed = (drawn[1:] == drawn[:-1]).mean(0)
    np.testing.assert_allclose([stayed[::2].mean(), stayed[1::2].mean()], stays, atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_are_missing_are_asked_for(name):
    codes = codes_of(4, (3, 4))
    prior = get(PriorConfig(name=name), shapes_of(codes, 3))
    params = prior.init(jax.random.key(0))
    with pytest.raises(
        UserError, match=r"model\.classes: expected one of 3 labels for each image, which the prior needs; found none"
    ):
        prior.sample(params, jax.random.key(1), 2, aggregate_of(codes))


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [codes_of(4, (9,)), codes_of(4, (3, 3, 2)), codes_of(4, (3, 2), apart=True)])
def test_a_pixelcnn_needs_a_map(codes):
    with pytest.raises(UserError, match=r"^prior\.name: expected transformer with codes of shape .*; found pixelcnn$"):
        get(PriorConfig(name="pixelcnn"), shapes_of(codes))
    get(PriorConfig(name="transformer"), shapes_of(codes))


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_over_codes_needs_codes(name):
    with pytest.raises(UserError, match=rf"^prior\.name: expected a prior over real vectors, .*; found {name}$"):
        get(PriorConfig(name=name), Shapes((4, 4, 1), 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "pixelcnn", "kernel": 4}, r"^prior\.kernel: expected an odd number; found 4$"),
        ({"name": "transformer", "heads": 5}, r"^prior\.width: expected a multiple of the 5 heads; found 96$"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        get(PriorConfig(**options), shapes_of(codes_of(4, (3, 3))))


# --- In a model ------------------------------------------------------------------------------------------------------

OF_PRIOR = {
    "pixelcnn": {"prior.layers": 2, "prior.channels": 8},
    "transformer": {"prior.layers": 1, "prior.width": 16, "prior.heads": 2},
}
UNIFORM = 6 * np.log(8)


def config_of(name, **changes):
    options = {
        "model.network": "mlp",
        "model.layers": [8],
        "model.latent": 3,
        "posterior.name": "codebook",
        "posterior.codes": 8,
        "posterior.places": [2, 3],
        "prior.name": name,
        "train.learning_rate": 0.01,
    }
    config = Config(train=TrainConfig(batch_size=16, epochs=2, chunk_steps=2))
    return adapted(config, **options, **OF_PRIOR[name], **changes)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_its_prior_and_resumes_exactly(name, small_data):
    config = config_of(name)
    states = []

    def stop(state, history):
        states.append((jax.tree.map(np.asarray, state), list(history)))

    whole = fit(config, small_data, on_chunk=stop)
    kl = [epoch["test_kl"] for epoch in whole.history]
    assert np.isfinite([*map(float, whole.history[-1].values())]).all()
    assert kl[1] < kl[0] < UNIFORM
    state, history = states[len(states) // 2]
    resumed = fit(config, small_data, resume=(jax.tree.map(jnp.asarray, state), history))
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)


@pytest.mark.usefixtures("float64")
def test_a_member_of_a_sweep_is_its_single_run(small_data):
    configs = [with_values(config_of("transformer"), {"seed": seed, "train.epochs": 1}) for seed in (0, 5)]
    program = several.program_that_fits(configs, several.Images(small_data))
    (_, other), (state, history) = several.fit(program, [several.Run(config) for config in configs])
    alone = fit(configs[1], small_data)
    # The codebook is in single precision, whatever jax's; the prior sees nothing of it but whole numbers.
    assert history[0]["test_loss"] == pytest.approx(alone.history[0]["test_loss"], rel=1e-5)
    assert history[0]["test_kl"] == pytest.approx(alone.history[0]["test_kl"], rel=1e-9)
    priors = (each.variables.params["prior"] for each in (state, alone.state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), *priors)
    assert other[0]["test_kl"] != history[0]["test_kl"]


@pytest.mark.parametrize("name", NAMES)
def test_members_draw_side_by_side_what_they_draw_alone(name):
    network, params = example(name, 5, (3, 4))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    keys = jax.random.split(jax.random.key(0), 2)
    maps, _ = jax.jit(jax.vmap(lambda params, key, top_p: draw(network, params, key, 3, top_p=top_p)))(
        many, keys, jnp.array([1.0, 0.8])
    )
    for i, top_p in enumerate((1.0, 0.8)):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], many)
        alone, _ = jax.jit(lambda params, key, p: draw(network, params, key, 3, top_p=p))(own, keys[i], top_p)
        np.testing.assert_array_equal(maps[i], alone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [0, 10])
def test_the_kl_trains_the_prior_and_nothing_else(name, classes, small_data):
    config = config_of(name, **{"model.classes": classes})
    network, objective = build(config, small_data.image_shape)
    variables = jax.jit(network.init)(jax.random.key(0))
    images = jnp.asarray(small_data.train.images[:8]) / 255
    labels = jnp.asarray(small_data.train.labels[:8], jnp.int32) if classes else None

    def kl(params):
        terms, _ = network.apply(
            variables._replace(params=params),
            lambda model: objective.terms(jax.random.key(1), model, images, config.objective.options),
            labels=labels,
        )
        return terms["kl"].sum()

    value, gradient = jax.jit(jax.value_and_grad(kl))(variables.params)
    assert value == pytest.approx(8 * UNIFORM, rel=0.05)
    assert {"encoder", "decoder", "prior"} <= gradient.keys()
    for part, of_part in gradient.items():
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(of_part)) == (part == "prior"), part
    z = network.sample_prior(variables, jax.random.key(2), 4, labels[:4] if classes else None, temperature=0.5)
    assert z.shape == (4, 2, 3, 3)
