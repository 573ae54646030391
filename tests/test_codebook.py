"""A codebook by hand: its moving averages, gradients, revival, k-means, stages of residuals, and what z are made of."""

import math
import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.cluster import KMeans

from vae_jax import posteriors, priors
from vae_jax.config import Config, adapted
from vae_jax.model.build import build
from vae_jax.posteriors.codebook import CodebookOptions, k_means, nearest, straight_through
from vae_jax.shapes import Shapes
from vae_jax.variables import Variables

UPDATES = ("ema", "gradient")
VARIANTS = {
    "ema": {},
    "gradient": {"update": "gradient"},
    "rotation": {"estimator": "rotation"},
    "cosine": {"distance": "cosine"},
    "cosine gradient": {"distance": "cosine", "update": "gradient"},
    "stages": {"stages": 3},
    "stages gradient": {"stages": 3, "update": "gradient"},
}


def codebook(latent, places=(1,), **options):
    """The posterior codebook with some options changed."""
    changed = {"places": list(places), **options}
    config = adapted(Config(), **{"posterior.name": "codebook"}, **{f"posterior.{n}": v for n, v in changed.items()})
    made = posteriors.get(config.posterior, Shapes((8, 8, 1), latent))
    names = ("transform", "center", "begin")
    return made._replace(**{name: jax.jit(getattr(made, name)) for name in names})  # compiled at once, it takes less


def own_of(codes, learned=False, counts=None):
    """What a codebook's `init` gives, with these codes, (codes, latent) or (stages, codes, latent)."""
    codes = jnp.asarray(codes, jnp.float32)
    codes = codes[None] if codes.ndim == 2 else codes
    counts = jnp.ones(codes.shape[:2]) if counts is None else jnp.full(codes.shape[:2], counts, jnp.float32)
    if learned:
        return Variables({"codes": codes}, {"moved": jnp.zeros_like(codes), "counts": counts})
    return Variables({}, {"codes": codes, "counts": counts})


def codes_in(own):
    """The codebooks, (stages, codes, latent), of codes that need no length of 1."""
    return own.params["codes"] + own.state["moved"] if own.params else own.state["codes"]


def heads_of(vectors):
    """Heads of images with one place."""
    return {"mu": jnp.asarray(vectors, jnp.float32)[:, None, :]}


def normal(seed, *shape):
    return np.random.RandomState(seed).randn(*shape)


# --- The moving averages ---------------------------------------------------------------------------------------------


def test_the_moving_average_by_hand():
    """Codes 0 and 10 in one dimension, of which a batch has 1, 2 and 9."""
    posterior = codebook(1, codes=2, revival=0, decay=0.99)
    sample = posterior.transform(own_of([[0.0], [10.0]]), jax.random.key(0), heads_of([[1.0], [2.0], [9.0]]))
    counts, codes = sample.state["counts"][0], sample.state["codes"][0, :, 0]
    np.testing.assert_allclose(counts, [1.01, 1.0], rtol=1e-6)
    np.testing.assert_allclose(codes, [0.0297030, 9.99], rtol=1e-6)
    np.testing.assert_allclose(counts * codes, [0.03, 9.99], rtol=1e-6)
    np.testing.assert_array_equal(sample.z[:, 0, 0], [0, 0, 10])
    np.testing.assert_allclose(sample.cost, [0.25, 1.0, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(sample.log_q, np.zeros(3))


def test_the_moving_average_is_of_sums_over_counts():
    """Against the paper's own recursion of sums and counts, in double precision, over many batches."""
    posterior = codebook(3, codes=4, revival=0, decay=0.9)
    codes = normal(0, 4, 3)
    own, counts, sums = own_of(codes), np.ones(4), codes.copy()
    for number in range(30):
        batch = normal(number + 1, 16, 3).astype(np.float32)
        now = np.square(batch[:, None, :] - codes[None]).sum(-1).argmin(1)
        hot = np.eye(4)[now]
        counts, sums = 0.9 * counts + 0.1 * hot.sum(0), 0.9 * sums + 0.1 * hot.T @ batch
        codes = sums / counts[:, None]
        own = own._replace(state=posterior.transform(own, jax.random.key(number), heads_of(batch)).state)
    np.testing.assert_allclose(own.state["counts"][0], counts, rtol=1e-5)
    np.testing.assert_allclose(own.state["codes"][0], codes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", UPDATES)
def test_one_code_becomes_the_datas_mean(update):
    """With an identity for encoder and decoder: the squared error is then the trace of the covariance."""
    data = (normal(0, 200, 3) @ normal(1, 3, 3) + 5).astype(np.float32)
    posterior = codebook(3, codes=1, update=update, decay=0.9, commitment=0)
    own, heads = own_of(np.zeros((1, 3)), update == "gradient"), heads_of(data)

    def step(own, key):
        def loss(params):
            sample = posterior.transform(own._replace(params=params), key, heads)
            return sample.cost.mean(), sample.state

        slope, state = jax.grad(loss, has_aux=True)(own.params)
        return Variables(jax.tree.map(lambda p, g: p - 0.05 * g, own.params, slope), state), None

    own, _ = jax.jit(lambda own: jax.lax.scan(step, own, jax.random.split(jax.random.key(0), 300)))(own)
    np.testing.assert_allclose(codes_in(own)[0, 0], data.astype(float).mean(0), rtol=1e-5)
    error = np.square(data - np.asarray(posterior.center(own, heads).z[:, 0])).sum(1).mean()
    assert error == pytest.approx(np.trace(np.cov(data.T, bias=True)), rel=1e-5)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("update", UPDATES)
def test_unused_codes_stay_where_they_are_until_they_are_used(distance, update):
    """Bit for bit, and also where their counts have become 0; what is then assigned to one is its mean."""
    posterior = codebook(2, codes=3, revival=0, decay=0.9, update=update, distance=distance)
    far = np.array([[-3.0, -0.3], [-1.0, -1.1]]) / (1 if distance == "euclidean" else [[np.hypot(3, 0.3)], [1.4866]])
    own = own_of(np.concatenate([[[1.0, 0.0]], far]), update == "gradient")
    rows = np.abs(normal(0, 8, 2))

    def after(own, rows, steps):
        def step(own, key):
            return own._replace(state=posterior.transform(own, key, heads_of(rows)).state), None

        return jax.jit(lambda own: jax.lax.scan(step, own, jax.random.split(jax.random.key(0), steps))[0])(own)

    later = after(own, rows, 1200)
    np.testing.assert_array_equal(codes_in(later)[0, 1:], codes_in(own)[0, 1:])
    np.testing.assert_array_equal(later.state["counts"][0, 1:], [0, 0])
    used = after(later, np.repeat(far[:1] + 0.01, 8, 0), 1)
    assert np.isfinite(codes_in(used)).all()
    np.testing.assert_array_equal(codes_in(used)[0, 2], codes_in(own)[0, 2])
    if update == "ema":
        expected = far[0] + 0.01
        expected = expected / np.linalg.norm(expected) if distance == "cosine" else expected
        np.testing.assert_allclose(codes_in(used)[0, 1], expected, rtol=1e-6)


# --- Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", UPDATES)
def test_the_gradient_passes_straight_through_and_none_reaches_the_codes(update):
    posterior, codes, weights = codebook(3, codes=4, update=update), normal(0, 4, 3), jnp.asarray(normal(1, 6, 1, 3))

    def function(vectors, own):
        sample = posterior.transform(own, jax.random.key(0), heads_of(vectors))
        return (weights * jnp.sin(3 * sample.z)).sum(), sample.z

    own = own_of(codes, update == "gradient")
    (slope, to_own), z = jax.grad(function, (0, 1), has_aux=True)(jnp.asarray(normal(2, 6, 3), jnp.float32), own)
    expected = jax.grad(lambda z: (weights * jnp.sin(3 * z)).sum())(z)
    np.testing.assert_array_equal(slope, expected[:, 0])
    assert np.asarray(slope).any()
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(to_own))


def test_z_is_the_code_to_the_last_bit():
    """Where vector and code are of different sizes, vector + (code − vector) is not the code."""
    vectors, codes = jnp.array([[1000.0, 3e6]]), jnp.array([[0.1, 0.7]])
    assert not np.array_equal(vectors + (codes - vectors), codes)
    np.testing.assert_array_equal(straight_through(vectors, codes), codes)
    for estimator in ("straight_through", "rotation"):
        posterior = codebook(2, codes=1, estimator=estimator)
        np.testing.assert_array_equal(posterior.center(own_of(codes), heads_of(vectors)).z[0], codes)


def test_the_gradients_of_both_code_terms():
    """Of the codebook's 2·n_k·(e_k − the mean of what it gets), of the encoder's 2β(E − e); a weight before both."""
    posterior = codebook(3, codes=3, update="gradient", commitment=0.4, weight=1.7)
    own = own_of([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0], [90.0, 0.0, 0.0]], learned=True)
    vectors = jnp.asarray(normal(0, 7, 3) + np.array([[1, 0, 0.5]]), jnp.float32)

    def term(name):
        def function(params, vectors):
            return posterior.center(own._replace(params=params), heads_of(vectors)).figures[name].sum()

        return jax.grad(function, (0, 1))(own.params, vectors)

    to_codes, to_vectors = term("codebook")
    codes = np.asarray(own.params["codes"][0])
    chosen = np.square(np.asarray(vectors)[:, None] - codes[None]).sum(-1).argmin(1)
    assert set(chosen) == {0, 1}
    expected = [2 * 1.7 * (chosen == k).sum() * (codes[k] - np.asarray(vectors)[chosen == k].mean(0)) for k in (0, 1)]
    np.testing.assert_allclose(to_codes["codes"][0], [*expected, np.zeros(3)], rtol=1e-5, atol=1e-5)
    assert not np.asarray(to_vectors).any()
    to_codes, to_vectors = term("commitment")
    np.testing.assert_allclose(to_vectors, 2 * 0.4 * 1.7 * (np.asarray(vectors) - codes[chosen]), rtol=1e-5)
    assert not np.asarray(to_codes["codes"]).any()


def test_the_rotation_tricks_gradient_is_turned_as_the_code_is():
    """λRᵀg, where R turns a vector into the direction of its code in the plane of both, and λ stretches it."""
    posterior, codes = codebook(5, codes=6, estimator="rotation"), normal(0, 6, 5)
    vectors, weights = normal(1, 20, 5).astype(np.float32), normal(2, 20, 5)

    def function(vectors):
        z = posterior.center(own_of(codes), heads_of(vectors)).z[:, 0]
        return (jnp.asarray(weights) * z).sum(), z

    slope, z = jax.grad(function, has_aux=True)(jnp.asarray(vectors))
    codes = codes.astype(np.float32)
    chosen = np.square(vectors[:, None] - codes[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(z, codes[chosen])
    for vector, code, g, got in zip(vectors.astype(float), codes[chosen].astype(float), weights, slope, strict=True):
        first = vector / np.linalg.norm(vector)
        target = code / np.linalg.norm(code)
        cosine = first @ target
        across = (target - cosine * first) / math.sqrt(1 - cosine**2)
        plane = np.outer(first, first) + np.outer(across, across)
        sine = math.sqrt(1 - cosine**2)
        turn = np.eye(5) + sine * (np.outer(across, first) - np.outer(first, across)) + (cosine - 1) * plane
        np.testing.assert_allclose(turn @ first, target, atol=1e-12)
        length = np.linalg.norm(code) / np.linalg.norm(vector)
        np.testing.assert_allclose(got, length * turn.T @ g, rtol=1e-4, atol=1e-5)


# --- Revival, and codes made of data ---------------------------------------------------------------------------------

K, DATA = 64, 8  # codes, and dimensions of N(0, I)
TEST = jnp.asarray(normal(99, 40_000, DATA), jnp.float32)


def judged(codes):
    """How many codes are used, and the mean squared distance of a test vector from its code."""
    chosen = jax.jit(nearest)(TEST, codes)
    return len(np.unique(chosen)), float(jnp.square(TEST - codes[chosen]).sum(-1).mean())


def trained(posterior, own, steps=1500, batch=1024, rate=0.02):
    """The codes after so many updates with new vectors each time."""
    optimizer = optax.adam(rate)

    def step(carry, key):
        own, moments = carry
        data_key, key = jax.random.split(key)
        heads = {"mu": jax.random.normal(data_key, (batch, 1, DATA))}

        def loss(params):
            sample = posterior.transform(own._replace(params=params), key, heads)
            return sample.cost.mean(), sample.state

        slope, state = jax.grad(loss, has_aux=True)(own.params)
        change, moments = optimizer.update(slope, moments, own.params)
        return (Variables(optax.apply_updates(own.params, change), state), moments), None

    keys = jax.random.split(jax.random.key(5), steps)
    (own, _), _ = jax.jit(lambda own: jax.lax.scan(step, (own, optimizer.init(own.params)), keys))(own)
    return codes_in(own)[0]


@pytest.mark.optimized
@pytest.mark.parametrize("update", UPDATES)
def test_codes_that_start_far_away_are_revived(update):
    """K-means with 40 of Lloyd's steps has a distortion of 3.574, and the data alone one of 8."""
    far = 10 + 0.01 * normal(3, K, DATA)
    own = own_of(far, update == "gradient", 1024 / K)
    used, distortion = judged(trained(codebook(DATA, codes=K, decay=0.99, update=update), own))
    assert used == K
    assert distortion < 3.6


@pytest.mark.optimized
def test_without_revival_they_die():
    own = own_of(10 + 0.01 * normal(3, K, DATA), counts=1024 / K)
    used, distortion = judged(trained(codebook(DATA, codes=K, decay=0.99, revival=0), own))
    assert used == 1
    assert distortion == pytest.approx(DATA, abs=4 * math.sqrt(2 * DATA / len(TEST)))


@pytest.mark.optimized
def test_k_means_by_its_distortion():
    """That of k-means elsewhere on the same vectors; each is the mean of 40,000 numbers of deviation 1.97."""
    data = normal(7, 40_000, DATA).astype(np.float32)
    codes, counts = jax.jit(lambda key, data: k_means(key, data, K, steps=40))(jax.random.key(0), jnp.asarray(data))
    used, distortion = judged(codes)
    assert (used, float(counts.sum())) == (K, 40_000)
    assert distortion == pytest.approx(3.574, abs=4 * 1.97 / math.sqrt(len(TEST)))
    other = KMeans(K, n_init=1, max_iter=40, tol=0, random_state=0)
    with warnings.catch_warnings(action="ignore"):  # that it has not converged
        other.fit(data)
    # The test vectors are the same, so that what is left is in which optimum they end: within 0.006 over 4 seeds.
    assert distortion == pytest.approx(judged(jnp.asarray(other.cluster_centers_))[1], abs=0.02)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_dead_code_becomes_a_vector_of_the_batch_and_the_others_stay(update, distance):
    """Also where what is trained has another length than 1, of which a cosine knows nothing."""
    posterior = codebook(3, codes=3, update=update, distance=distance, decay=0.5, commitment=0)
    own = own_of([[3.0, 0.0, 0.1], [0.0, -50.0, 0.2], [0.0, 0.3, 40.0]], update == "gradient")
    if distance == "cosine" and update == "ema":
        codes = own.state["codes"]
        own = own._replace(state=own.state | {"codes": codes / jnp.linalg.norm(codes, axis=-1, keepdims=True)})
    own = own._replace(state=own.state | {"counts": jnp.array([[1.0, 0.01, 1.0]])})
    vectors = normal(0, 9, 3) * 0.1 + [[2, 0, 0]]
    vectors[0] = [0, 0, 30]
    sample = posterior.transform(own, jax.random.key(1), heads_of(vectors))
    moved = own._replace(state=sample.state)
    every = jnp.arange(3)[:, None]
    before, after = (np.asarray(posterior.codes.vectors(each, every))[:, 0] for each in (own, moved))
    seen = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if distance == "cosine" else vectors
    assert np.abs(seen - after[1][None]).max(1).min() < 1e-5
    if update == "gradient":
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert float(sample.state["counts"][0, 1]) == pytest.approx(0.05 * (0.5 * 2.01 + 0.5 * 9) / 3, rel=1e-5)


def test_codes_made_of_few_images_outlive_the_first_large_batch():
    """Their counts are those few images', yet none of them counts as dead for it."""
    posterior = codebook(2, codes=8)
    centres = 10 * normal(0, 8, 2)
    few, many = (np.repeat(centres, count, 0) + 0.1 * normal(count, 8 * count, 2) for count in (2, 500))
    own = posterior.begin(posterior.init(jax.random.key(0)), jax.random.key(1), heads_of(few))
    moved = posterior.transform(own, jax.random.key(2), heads_of(many)).state["codes"][0]
    assert np.abs(np.asarray(moved) - np.asarray(own.state["codes"][0])).max() < 0.3


@pytest.mark.parametrize("variant", ["ema", "gradient", "cosine", "stages"])
def test_a_codebook_begins_with_the_data(variant):
    posterior = codebook(4, (2,), codes=16, **VARIANTS[variant])
    first = posterior.init(jax.random.key(0))
    heads = {"mu": jnp.asarray(normal(0, 128, 2, 4) + 3, jnp.float32)}
    own = jax.jit(posterior.begin)(first, jax.random.key(1), heads)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (first, own)]
    assert shapes[0] == shapes[1]
    found, blind = (np.asarray(posterior.center(each, heads).codes) for each in (own, first))
    stage = found.reshape(256, -1)[:, 0]
    shares = np.bincount(stage, minlength=16) / 256
    assert (shares > 0).all()
    assert np.exp(-(shares * np.log(shares)).sum()) > 11
    assert len(np.unique(blind.reshape(256, -1)[:, 0])) < 16
    assert float(own.state["counts"][0].sum()) == pytest.approx(256, rel=0.01)


@pytest.mark.parametrize("variant", ["ema", "cosine", "stages gradient"])
def test_fewer_vectors_than_codes_make_a_codebook_too(variant):
    posterior = codebook(4, codes=16, **VARIANTS[variant])
    own, heads = posterior.init(jax.random.key(0)), heads_of(np.repeat(normal(0, 3, 4), [1, 1, 3], 0))
    own = posterior.begin(own, jax.random.key(1), heads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own))
    sample = posterior.transform(own, jax.random.key(2), heads)
    expected = (
        heads["mu"] / jnp.linalg.norm(heads["mu"], axis=-1, keepdims=True) if "cosine" in variant else heads["mu"]
    )
    np.testing.assert_allclose(sample.z, expected, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sample.state))


# --- Stages of residuals ---------------------------------------------------------------------------------------------


def test_two_codes_a_stage_are_a_binary_expansion():
    """Codes ±½, ±¼, …: a number of [−1, 1] is never further from its sum than half of the last step."""
    stages = 8
    posterior = codebook(1, codes=2, stages=stages)
    own = own_of([[[-(0.5 ** (m + 1))], [0.5 ** (m + 1)]] for m in range(stages)])
    numbers = np.random.RandomState(0).uniform(-1, 1, (400, 1)).astype(np.float32)
    sample = posterior.center(own, heads_of(numbers))
    errors = np.abs(np.asarray(sample.z)[:, 0] - numbers)
    assert errors.max() <= 0.5**stages
    assert errors.max() > 0.9 * 0.5**stages
    bits = np.floor((numbers + 1) * 2 ** (stages - 1)).astype(int)
    expected = bits >> np.arange(stages)[None, ::-1] & 1
    np.testing.assert_array_equal(sample.codes[:, 0], expected)


def test_the_distortion_falls_with_every_stage():
    posterior = codebook(DATA, codes=16, stages=4, commitment=0.5, weight=3.0, update="gradient")
    data = normal(0, 2000, DATA)
    own = posterior.begin(posterior.init(jax.random.key(0)), jax.random.key(1), heads_of(data))
    sample, books = posterior.center(own, heads_of(data)), np.asarray(own.params["codes"], float)
    chosen = np.asarray(sample.codes)[:, 0]
    prefixes = np.cumsum([books[m][chosen[:, m]] for m in range(4)], 0)
    errors = np.square(data[None] - prefixes).sum(-1)
    distortions = [np.square(data).sum(1).mean(), *errors.mean(1)]
    assert all(later < 0.85 * before for before, later in pairwise(distortions)), distortions
    # Every prefix is to be near, and of what a stage is given its code.
    np.testing.assert_allclose(sample.figures["commitment"], 0.5 * 3 * errors.sum(0), rtol=1e-4)
    np.testing.assert_allclose(sample.figures["codebook"], 3 * errors.sum(0), rtol=1e-4)
    np.testing.assert_allclose(sample.cost, 1.5 * 3 * errors.sum(0), rtol=1e-4)
    np.testing.assert_allclose(sample.z[:, 0], prefixes[-1], rtol=1e-4, atol=1e-5)


def test_the_codes_of_a_sum_are_those_it_is_made_of():
    """0 + 0.7 is nearest to 1 among 0 and 1, but it is not made of it."""
    posterior, own = codebook(1, codes=2, stages=2), own_of([[[0.0], [1.0]], [[0.0], [0.7]]])
    sample = posterior.center(own, heads_of([[0.45]]))
    np.testing.assert_array_equal(sample.codes, [[[0, 1]]])
    np.testing.assert_array_equal(posterior.codes.of(own, sample.z), [[[0, 1]]])


# --- What z are made of ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_and_vectors_are_each_others_inverse(variant):
    posterior = codebook(6, (2, 2), codes=32, **VARIANTS[variant])
    heads = {"mu": jnp.asarray(normal(0, 64, 2, 2, 6), jnp.float32)}
    own = posterior.begin(posterior.init(jax.random.key(0)), jax.random.key(1), heads)
    codes = np.random.RandomState(1).randint(0, 32, (2, 3, *posterior.codes.shape))
    z = posterior.codes.vectors(own, jnp.asarray(codes))
    assert z.shape == (2, 3, 2, 2, 6)
    found = jax.jit(posterior.codes.of)(own, z)
    assert (found.shape, found.dtype) == (codes.shape, jnp.int32)
    np.testing.assert_array_equal(found, codes)
    sample = posterior.transform(own, jax.random.key(2), heads)
    np.testing.assert_array_equal(posterior.codes.vectors(own, sample.codes), sample.z)
    one = jax.tree.map(lambda head: head[0], heads)  # no leading axis at all
    np.testing.assert_array_equal(posterior.center(own, one).z, sample.z[0])
    np.testing.assert_array_equal(posterior.codes.of(own, sample.z[0]), sample.codes[0])


@pytest.mark.parametrize("variant", ["ema", "cosine gradient", "stages"])
def test_bfloat16_heads_have_the_codes_of_their_values(variant):
    posterior = codebook(6, codes=200, **VARIANTS[variant])
    heads = {"mu": jnp.asarray(normal(0, 500, 1, 6), jnp.bfloat16)}
    own = posterior.begin(posterior.init(jax.random.key(0)), jax.random.key(1), heads)
    wide = {"mu": heads["mu"].astype(jnp.float32)}
    rounded, exact = (posterior.transform(own, jax.random.key(2), each) for each in (heads, wide))
    np.testing.assert_array_equal(rounded.codes, exact.codes)
    np.testing.assert_array_equal(rounded.z, exact.z)
    np.testing.assert_array_equal(posterior.codes.vectors(own, posterior.codes.of(own, rounded.z)), rounded.z)
    np.testing.assert_array_equal(rounded.cost, exact.cost)
    assert posterior.kl["uniform"].total(heads, {}).dtype == jnp.float32


def test_what_is_nearest_far_from_0():
    """What all codes have in common, squared, would leave no digits for what they differ in."""
    vectors, codes = (1000 + normal(seed, count, DATA).astype(np.float32) for seed, count in ((0, 500), (1, K)))
    vectors, codes = vectors.astype(np.float32), codes.astype(np.float32)
    expected = np.square(vectors.astype(float)[:, None] - codes.astype(float)[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest(jnp.asarray(vectors), jnp.asarray(codes)), expected)


@pytest.mark.parametrize("update", UPDATES)
def test_codes_of_a_cosine_keep_the_length_1(update):
    posterior = codebook(DATA, codes=K, distance="cosine", update=update)
    heads = heads_of(normal(0, 300, DATA) * [[3, *[1] * (DATA - 1)]])
    own = posterior.begin(posterior.init(jax.random.key(0)), jax.random.key(1), heads)
    for number in range(20):
        own = own._replace(state=posterior.transform(own, jax.random.key(number), heads).state)
        own = own._replace(params=jax.tree.map(lambda codes: 1.1 * codes, own.params))
    vectors = posterior.codes.vectors(own, jnp.arange(K)[:, None])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(posterior.center(own, heads).z, axis=-1), 1, rtol=1e-6)


def test_uniform_codes_cost_their_logarithm_at_every_place():
    """7 × 7 places of 512 codes."""
    config = adapted(Config(), **{"posterior.name": "codebook", "posterior.places": [7, 7], "prior.name": "uniform"})
    shapes = Shapes((28, 28, 1), 64)
    posterior = posteriors.get(config.posterior, shapes)
    assert CodebookOptions().codes == 512
    np.testing.assert_allclose(posterior.kl["uniform"].total({"mu": jnp.zeros((3, 7, 7, 64))}, {}), 305.6779, rtol=1e-6)
    none = priors.Aggregate(lambda z, u: z, lambda key, u: u)
    prior = priors.get(config.prior, shapes._replace(latent_shape=posterior.shape, codes=posterior.codes))
    np.testing.assert_allclose(prior.log_prob({}, jnp.zeros((2, 3, 7, 7, 64)), none), -305.6779, rtol=1e-6)


# --- In a model ------------------------------------------------------------------------------------------------------


def model_of(**changes):
    """A configuration of 4 places of a codebook, between small networks."""
    options = {
        "model.network": "mlp",
        "model.layers": [8],
        "model.latent": 3,
        "posterior.name": "codebook",
        "posterior.places": [4],
        "posterior.codes": 8,
        "prior.name": "uniform",
    }
    return adapted(Config(), **options | changes)


def test_all_of_a_step_sees_the_codes_before_it(small_data):
    network, _ = build(model_of(), small_data.image_shape)
    variables, images = network.init(jax.random.key(0)), jnp.asarray(small_data.train.images[:8]) / 255
    draw, updated = network.apply(
        variables, lambda model: model.draw(jax.random.key(1), images), jax.random.key(2), train=True
    )
    before, after = (of.state["posterior"]["codes"][0] for of in (variables, updated))
    np.testing.assert_array_equal(draw.z, before[draw.codes])
    assert not np.array_equal(before, after)
    again, still = network.apply(variables, lambda model: model.draw(jax.random.key(1), images))
    np.testing.assert_array_equal(still.state["posterior"]["codes"], before[None])
    np.testing.assert_array_equal(again.codes, draw.codes)


def test_an_images_loss_does_not_depend_on_the_others(small_data):
    config = model_of(**{"posterior.stages": 2, "posterior.update": "gradient"})
    built = build(config, small_data.image_shape)
    images = small_data.train.images[:20]
    variables = jax.jit(built.init)(jax.random.key(0), images)
    terms = jax.jit(lambda images: built.terms(variables, images, jax.random.key(1), train=True)[0])
    whole, part = (terms(images[:count]) for count in (20, 5))
    assert {"commitment", "codebook", "kl", "loss", "reconstruction"} == whole.keys()
    for name, values in part.items():
        np.testing.assert_allclose(whole[name][:5], values, rtol=1e-5)
    kl = 4 * 2 * math.log(8)
    np.testing.assert_allclose(whole["kl"], kl, rtol=1e-6)
    parts = whole["reconstruction"] + kl + whole["commitment"] + whole["codebook"]
    np.testing.assert_allclose(whole["loss"], parts, rtol=1e-6)


def test_a_prior_is_asked_about_the_codes_that_were_chosen(small_data, monkeypatch):
    """Not about those that are nearest to z, stage by stage."""

    def recording(options, shapes):
        def log_prob(params, z, aggregate):
            return aggregate.codes(z).astype(float).reshape(*z.shape[:-2], -1) @ (8.0 ** jnp.arange(12))

        return priors.uniform(options, shapes)._replace(log_prob=log_prob, kind="")

    monkeypatch.setitem(priors.PRIORS, "uniform", recording)
    network, _ = build(model_of(**{"posterior.stages": 3}), small_data.image_shape)
    variables, images = network.init(jax.random.key(0)), jnp.asarray(small_data.train.images[:8]) / 255
    draw = network.apply(variables, lambda model: model.draw(jax.random.key(1), images))[0]
    np.testing.assert_allclose(draw.log_pz, np.asarray(draw.codes).reshape(8, 12) @ 8.0 ** np.arange(12), rtol=1e-6)
