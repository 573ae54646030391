"""Vectors, sequences and categories: read, trained, evaluated and used; right values, and what is refused."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import hub_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_normal, norm

import vae_jax
from vae_jax import cli, likelihoods
from vae_jax.config import Config, DataConfig, LikelihoodConfig, adapted, check_used, load_config, with_options
from vae_jax.data import Dataset, Split, load, resolve
from vae_jax.data.image_size import settled
from vae_jax.errors import UserError
from vae_jax.evaluation import estimators
from vae_jax.evaluation.evaluator import make_evaluator
from vae_jax.keys import make_keys
from vae_jax.likelihoods import LIKELIHOODS, measured
from vae_jax.likelihoods.gaussian import GaussianOptions, gaussian
from vae_jax.model.build import build
from vae_jax.priors.vamp import pseudo_inputs
from vae_jax.runs import reading
from vae_jax.runs.fit import fit
from vae_jax.runs.train import train
from vae_jax.shapes import Shapes
from vae_jax.spec import Spec, spec_of
from vae_jax.sweeps.plan import make_sweep
from vae_jax.sweeps.sweep import run
from vae_jax.training.checks import check_numbers

RANDOM = np.random.RandomState(0)
ROWS = 94  # 64 to train on, which batches of 16 share evenly, 20 to test on and 10 for validation
VECTORS = (RANDOM.randn(ROWS, 3) @ RANDOM.randn(3, 3) + 5).astype(np.float32)
SEQUENCES = RANDOM.randn(ROWS, 4, 2).astype(np.float32)
CATEGORIES = RANDOM.randint(0, 3, (ROWS, 4))
LABELS = np.arange(ROWS) % 2
ARRAYS = {"vector": VECTORS, "sequence": SEQUENCES, "categories": CATEGORIES}
FITTING = {"vector": "gaussian", "sequence": "gaussian", "categories": "categorical"}
TINY = {"model.network": "mlp", "model.layers": (4,), "model.latent": 1, "train.epochs": 2, "train.batch_size": 16}


def data_of(kind):
    return Dataset.from_arrays(ARRAYS[kind], LABELS, kind=kind, test=20, validation=10)


def config_of(kind, **changes):
    return adapted(Config(), **{**TINY, "likelihood.name": FITTING[kind], **changes})


def built_of(kind, **changes):
    data = data_of(kind)
    return build(settled(config_of(kind, **changes), data), data.image_shape)


# Data


def test_a_data_set_says_what_its_examples_are():
    said = {kind: (str(data.spec), data.image_shape, data.spec.dtype) for kind in ARRAYS if (data := data_of(kind))}
    assert said == {
        "vector": ("3 numbers", (3,), np.float32),
        "sequence": ("4x2 numbers", (4, 2), np.float32),
        "categories": ("4 categories of 3 values", (4, 3), np.uint8),
    }
    assert Dataset.from_arrays(VECTORS.astype(float)).spec == Spec((3,), "vector")
    np.testing.assert_array_equal(
        data_of("vector").train.images, VECTORS[np.isin(VECTORS, data_of("vector").train.images).all(1)]
    )
    assert Dataset.from_arrays(np.full((9, 4), 0.5, np.float16)).train.images.dtype == np.float32
    assert Dataset.from_arrays(np.arange(12).reshape(6, 2), kind="vector").train.images.max() <= 11
    assert Dataset.from_arrays(np.eye(6) > 0, kind="categories").spec == Spec((6, 2), "categories")
    assert Dataset.from_arrays(np.ones((9, 5, 5))).spec == Spec((5, 5, 1))  # as ever


def test_categories_take_the_smallest_type_that_holds_all_values_of_all_splits():
    few, many = np.zeros((9, 2), int), np.full((3, 2), 300)
    data = Dataset.from_arrays(few, kind="categories", test=many)
    assert (data.values, data.train.images.dtype, data.test.images.dtype) == (301, np.uint16, np.uint16)
    assert data.train.take(np.arange(2)).images.dtype == np.uint16
    given = Dataset.from_arrays(few, kind="categories", values=1000)
    assert (given.image_shape, given.train.images.dtype) == ((2, 1000), np.uint16)


NAN, LARGE, INFINITE = VECTORS.copy(), VECTORS.astype(float), SEQUENCES.copy()
NAN[7, 1], LARGE[5, 0], INFINITE[9, 3, 1] = np.nan, 1e300, -np.inf


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"train": NAN}, r"train: expected finite numbers that float32 holds; found nan, in row 7"),
        ({"train": LARGE}, r"found 1e\+300, in row 5"),
        ({"train": INFINITE, "kind": "sequence"}, r"found -inf, in row 9"),
        ({"train": CATEGORIES}, r"train: expected images .*found int64 of shape \(94, 4\); kind may be vector or "),
        ({"train": SEQUENCES}, r"train: expected floats in \[0, 1\], .*; kind may be sequence"),
        ({"train": VECTORS, "kind": "categories"}, r"train: expected categories, whole numbers .*\(n, length\)"),
        ({"train": CATEGORIES - 1, "kind": "categories"}, "expected categories from 0 to 65,535; found -1 to 1"),
        ({"train": CATEGORIES + 70_000, "kind": "categories"}, "found 70000 to 70002"),
        ({"train": CATEGORIES * 2**24, "kind": "vector"}, "whole numbers up to 16,777,216, .*; found 33,554,432"),
        ({"train": VECTORS, "kind": "sequence"}, r"expected sequence, real numbers \(n, length, channels\); found"),
        ({"train": VECTORS, "kind": "table"}, "kind: expected image or vector or .*; found 'table'"),
        ({"train": CATEGORIES, "kind": "categories", "values": 2}, "values: expected at least 3 in arrays; found 2"),
        ({"train": CATEGORIES, "kind": "categories", "values": 0}, "values: expected a whole number from 1"),
        ({"train": VECTORS, "values": 2}, "values: expected none in arrays; found 2"),
        ({"train": VECTORS, "test": VECTORS[:, :2]}, r"test: expected examples of 3 \(vector\).*; found 2 \(vector\)"),
        ({"train": VECTORS[:0]}, "expected vector, real numbers"),
    ],
)  # fmt: skip
def test_arrays_that_are_none_of_their_kind(arguments, found):
    with np.errstate(all="ignore"), pytest.raises(UserError, match=found):
        Dataset.from_arrays(**arguments)


def test_splits_of_ones_own_are_checked_too():
    with pytest.raises(UserError, match=r"images: expected finite numbers .* row 7"):
        Split(NAN)
    with pytest.raises(UserError, match="found float64"):
        Split(LARGE)
    for shape in ((9, 64), (9, 8, 8)):  # flattened, and without their channel: grey images, not categories
        with pytest.raises(UserError, match="expected uint8 levels"):
            Split(np.zeros(shape, np.uint8))
    mixed = Split(CATEGORIES.astype(np.uint8), kind="categories"), Split(VECTORS)
    with pytest.raises(UserError, match=r"test: expected examples of 4 \(categories\), .*; found 3 \(vector\)"):
        Dataset("mixed", *mixed)


def test_numbers_that_float32_cannot_tell_apart_are_said():
    times = np.stack([1.7e9 + np.arange(50.0), np.arange(50.0)], 1)
    with pytest.warns(UserWarning, match="too coarse for how little the numbers of column 0 differ"):
        Dataset.from_arrays(times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dataset.from_arrays(times - times.mean(0))


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_file_is_read_as_its_array_is(tmp_path, kind):
    np.savez(tmp_path / "mine.npz", x_train=ARRAYS[kind], y_train=LABELS, x_test=ARRAYS[kind][:9], y_test=LABELS[:9])
    config = DataConfig("array", path=str(tmp_path / "mine.npz"), kind=None if kind == "vector" else kind)
    data = load(config)
    np.testing.assert_array_equal(data.train.images, ARRAYS[kind])
    np.testing.assert_array_equal(data.test.labels, LABELS[:9])
    assert resolve(config).kind == kind
    whole = settled(load_config(None), data).data
    assert whole.spec == data.spec
    assert resolve(replace(whole, path="nowhere")) == replace(whole, path="nowhere")


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        ("categories", {}, r"mine.npy: expected images .*found shape \(94, 4\) of int64; data.kind may be vector or"),
        ("sequence", {}, r"expected floats in \[0, 1\], .*; kind may be sequence"),
        ("vector", {"kind": "categories"}, "mine.npy: expected categories, whole numbers"),
        ("vector", {"shape": (4,)}, r"data.shape: expected data.kind vector or sequence or categories; found null"),
        ("vector", {"kind": "vector", "shape": (4,)}, r"data.shape: expected \[4\], as configured; found \[3\] in"),
        ("vector", {"image_size": 8}, "data.image_size: expected data.kind null or image; found vector"),
        ("vector", {"treatment": "dynamic"}, "data.treatment: expected data.kind null or image; found vector"),
        ("vector", {"values": 3}, "data.values: expected data.kind categories; found null"),
        ("categories", {"kind": "categories", "values": 2}, "data.values: expected at least 3, since .* found 2"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path, kind, options, found):
    np.save(tmp_path / "mine.npy", ARRAYS[kind])
    with pytest.raises(UserError, match=found):
        load(DataConfig("array", path=str(tmp_path / "mine.npy"), **options))


@pytest.mark.parametrize("option", ["output.figure_images", "output.figure_every", "data.cache_dir"])
def test_options_of_pictures_are_refused_where_there_are_none(option):
    config = with_options(Config(), **{"data.kind": "vector", "data.source": "array", option: "5"})
    with pytest.raises(UserError, match=rf"{option}: expected data.kind .*image; found vector"):
        check_used(config)


def test_other_sources_have_images():
    with pytest.raises(UserError, match=r"data.kind: expected image, as data of source digits are; found vector"):
        load(DataConfig(kind="vector"))


# Parts


def test_a_spec_is_of_a_kind():
    assert [spec_of(None, shape).kind for shape in ((8,), (8, 8, 1))] == ["vector", "image"]
    with pytest.raises(UserError, match=r"data.kind: expected sequence .* or categories .* \(4, 2\); found null"):
        spec_of(None, (4, 2))
    with pytest.raises(UserError, match=r"data.kind: expected vector \(features\) for .* \(8,\); found categories"):
        spec_of("categories", (8,))


@pytest.mark.parametrize(
    ("kind", "changes", "found"),
    [
        ("vector", {"model.network": "convolutional"}, r"expected mlp, .* of shape \(3,\); found convolutional"),
        ("categories", {"model.network": "residual"}, r"expected mlp, .* of shape \(4, 3\); found residual"),
        ("vector", {"likelihood.name": "discretized_logistic"}, "expected bernoulli or .* data that are reals"),
        ("vector", {"likelihood.name": "categorical"}, "or gaussian for data that are reals; found categorical"),
        ("categories", {"likelihood.name": "gaussian"}, "expected categorical for data that are categories"),
        ("categories", {"likelihood.name": "bernoulli"}, "expected categorical for data that are categories"),
        ("vector", {"data.image_size": 8}, "data.image_size: expected data.kind null or image; found vector"),
        ("vector", {"data.kind": "categories"}, "data.kind: expected vector, as arrays has; found categories"),
    ],
)
def test_what_does_not_fit_together(kind, changes, found):
    with pytest.raises(UserError, match=found):
        built_of(kind, **changes)


def test_options_of_images_are_refused_where_the_shape_tells_the_kind():
    with pytest.raises(UserError, match=r"data\.treatment: expected data\.kind null or image; found vector"):
        build(config_of("vector", **{"data.treatment": "dynamic"}), (8,))


def test_images_have_no_categories(small_data):
    with pytest.raises(UserError, match="for data that are levels; found categorical"):
        build(load_config(None, **{"likelihood.name": "categorical", "model.network": "mlp"}), small_data.image_shape)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli"])
def test_a_likelihood_on_an_interval_looks_at_the_data_before_training(name):
    with pytest.raises(UserError, match=rf"data in \[0, 1\]; found {name} and numbers from -?\d.* in arrays"):
        fit(config_of("vector", **{"likelihood.name": name}), data_of("vector"))
    within = Dataset.from_arrays(VECTORS / 100 + 0.5)
    check_numbers(settled(config_of("vector", **{"likelihood.name": name}), within), within)


def test_noise_on_categories_is_refused():
    with pytest.raises(UserError, match=r"objective\.corruption: expected masking for data of categories"):
        built_of("categories", **{"likelihood.name": "bernoulli", "objective.name": "denoising_autoencoder"})


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variance", ["fixed", "shared", "pixel"])
def test_the_gaussian_of_real_numbers_is_scipys(variance):
    likelihood = gaussian(GaussianOptions(variance, 2.0), Shapes((3,), 1, support="reals"))
    outputs = jnp.asarray(RANDOM.randn(5, 3 * likelihood.outputs), float)
    x, params = jnp.asarray(9 * RANDOM.randn(5, 3), float), likelihood.init(jax.random.key(0))
    scale = 2.0 if variance != "pixel" else 0.002 + 1.998 * np.exp(outputs[:, 3:])
    expected = norm.logpdf(x, outputs[:, :3], scale).sum(1)
    np.testing.assert_allclose(likelihood.log_prob(params, outputs, x), expected, rtol=1e-12)
    np.testing.assert_array_equal(likelihood.mean(params, outputs), outputs[:, :3])


@pytest.mark.usefixtures("float64")
def test_the_categorical_is_the_softmax_at_the_category():
    likelihood = LIKELIHOODS["categorical"](None, Shapes((4, 3), 1, support="categories"))
    logits, hot = jnp.asarray(3 * RANDOM.randn(ROWS, 4, 3), float), jnp.asarray(np.eye(3)[CATEGORIES], float)
    expected = np.take_along_axis(log_softmax(logits, -1), CATEGORIES[..., None], -1).sum((1, 2))
    np.testing.assert_allclose(likelihood.log_prob({}, logits, hot), expected, rtol=1e-12)
    np.testing.assert_allclose(likelihood.mean({}, logits), np.exp(log_softmax(logits, -1)), rtol=1e-12)


def test_what_the_values_are_is_said():
    def of(kind, name):
        spec = data_of(kind).spec
        likelihood = likelihoods.get(LikelihoodConfig(name), Shapes(spec.shape, 1, support=spec.support))
        return measured(likelihood, name, "grey", spec.support)

    assert of("vector", "gaussian") == "densities of real numbers"
    assert of("categories", "categorical") == "probabilities of categories"
    assert of("vector", "bernoulli") == "cross-entropies of real numbers"


@pytest.mark.usefixtures("float64")
def test_pseudo_inputs_are_examples():
    built = built_of("categories", **{"prior.name": "vamp", "prior.components": 5})
    variables = built.init(jax.random.key(0))
    inputs = pseudo_inputs(variables.params["prior"], jax.nn.softmax)
    np.testing.assert_allclose(inputs.sum(-1), np.ones((5, 4)), rtol=1e-12)
    network = built.composition
    z = network.sample_prior(variables, jax.random.key(1), 7)
    log_prior = network.apply(variables, lambda model: model.log_prior(z))[0]
    heads = network.apply(variables, lambda model: model.encode(inputs))[0]
    each = norm.logpdf(z, heads["mu"].T, np.exp(heads["log_var"].T / 2))
    np.testing.assert_allclose(log_prior, logsumexp(each, axis=1) - np.log(5), rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ARRAYS)
def test_an_autoencoders_loss_is_the_squared_error_of_what_it_decodes(kind):
    changes = {"likelihood.name": "bernoulli", "objective.name": "denoising_autoencoder"}
    built = built_of(kind, **changes, **{"objective.corruption": "masking", "objective.corruption_level": 0.0})
    assert built.objective.unit == "squared error per example"
    variables, images = built.init(jax.random.key(0)), data_of(kind).test.images
    x = np.eye(3)[images] if kind == "categories" else images.astype(float)
    terms, _ = built.terms(variables, x, jax.random.key(1))
    pictures = vae_jax.model.model.make_model(*built, variables).reconstruct(x)
    np.testing.assert_allclose(terms["loss"], np.square(x - pictures).reshape(20, -1).sum(1), rtol=1e-12)
    if kind == "categories":
        np.testing.assert_allclose(pictures.sum(-1), 1, rtol=1e-12)


def test_masked_categories_are_missing_whole():
    seen = []

    def look(key, model, images, options):
        return vae_jax.objectives.OBJECTIVES["denoising_autoencoder"].terms(key, watched(model), images, options)

    def watched(model):
        def draw(key, images, **more):
            seen.append(images)
            return model.draw(key, images, **more)

        return model._replace(draw=draw)

    changes = {"likelihood.name": "bernoulli", "objective.name": "denoising_autoencoder"}
    built = built_of("categories", **changes, **{"objective.corruption": "masking", "objective.corruption_level": 0.5})
    built = built._replace(objective=built.objective._replace(terms=look))
    built.terms(built.init(jax.random.key(0)), data_of("categories").train.images, jax.random.key(1))
    places = np.asarray(seen[0]).sum(-1)
    assert set(places.ravel()) == {0, 1}
    assert 0.3 < places.mean() < 0.7


# Training


@pytest.fixture(scope="module")
def linear():
    """A trained linear model of vectors: p(x|z) is Gaussian around a linear function of z."""
    changes = {"model.layers": (), "likelihood.variance": "shared", "likelihood.scale": 2.0}
    long_enough = {"train.epochs": 40, "train.learning_rate": 0.02}  # for q(z|x) to be near p(z|x)
    return fit(config_of("vector", **changes, **long_enough), data_of("vector"))


def test_the_likelihood_of_a_linear_model_is_the_exact_one(linear):
    """p(x) = N(b, W Wᵀ + s² I), and so is the estimate by importance sampling."""
    network, _ = build(linear.config, linear.image_shape)
    out = linear.variables.params["decoder"]["fc_out"]
    weights, bias = np.asarray(out["kernel"], float), np.asarray(out["bias"], float)
    scale = 0.002 + np.exp(float(linear.variables.params["likelihood"]["log_scale"]))
    images = data_of("vector").test.images
    exact = -multivariate_normal(bias, weights.T @ weights + scale**2 * np.eye(3)).logpdf(images)
    found = estimators.importance_nll(linear.config, network, linear.variables, images, jax.random.key(0), 20_000)
    # Over keys the estimates' standard deviations are at most 0.0065 nats, and 0.034.
    np.testing.assert_allclose(found, exact, atol=3 * 0.0065, rtol=0)
    annealed = estimators.annealed_nll(
        linear.config, network, linear.variables, images[:4], jax.random.key(0), temperatures=200
    )
    np.testing.assert_allclose(annealed, exact[:4], atol=3 * 0.034, rtol=0)
    loss = make_evaluator(*[linear.config, network, build(linear.config, linear.image_shape).objective], images)
    assert float(loss(linear.variables, make_keys(0).evaluate)["loss"].mean()) > exact.mean()


def test_a_trained_model_of_vectors_in_use(linear, tmp_path):
    model = vae_jax.use(linear)
    test = data_of("vector").test.images
    assert model.sample(jax.random.key(0), 5).shape == (5, 3)
    np.testing.assert_array_equal(model.encode(test)["mu"], model.encode(test.astype(float))["mu"])
    whole = np.rint(test)
    np.testing.assert_array_equal(model.encode(whole.astype(int))["mu"], model.encode(whole)["mu"])
    assert np.abs(model.reconstruct(test)).max() > 2  # not clipped
    assert model._repr_png_() is None
    assert "3 numbers" in repr(linear)
    assert linear._repr_html_().count("nats per example") >= 3
    assert linear.history[-1]["test_loss"] < linear.history[0]["test_loss"]
    for images, found in (
        (test[:, :2], r"images: expected shape \(n, 3\) with n at least 1; found \(20, 2\)"),
        (test[0], "one example alone is images"),
        (test * np.nan, "images: expected finite floats; found nan to nan"),
        (test.astype(str), "images: expected finite floats; found <U"),
    ):
        with pytest.raises(UserError, match=found):
            model.encode(images)
    loaded = vae_jax.load_weights(vae_jax.save_weights(linear, tmp_path / "linear.safetensors"))
    assert loaded.config.data.spec == Spec((3,), "vector")
    np.testing.assert_array_equal(vae_jax.use(loaded).reconstruct(test), model.reconstruct(test))


def test_the_likelihood_of_categories_is_the_exact_one():
    """z has one dimension, over which p(x) is summed on a fine grid; the run stops, goes on and streams bit for bit."""
    data, config = data_of("categories"), config_of("categories", **{"model.classes": 2})
    trained = fit(config, data)
    network, _ = build(trained.config, trained.image_shape)
    variables, test = trained.variables, data.test
    grid = np.linspace(-8, 8, 801, dtype=np.float32)[:, None]
    model = vae_jax.use(trained)
    by_label = [np.log(np.asarray(model.decode(grid, np.full(801, label)), float)) for label in (0, 1)]
    prior = norm.logpdf(grid[:, 0]) + np.log(16 / 800)
    hot = np.eye(3)[test.images]
    exact = [-logsumexp((by_label[label] * x).sum((1, 2)) + prior) for x, label in zip(hot, test.labels, strict=True)]
    found = estimators.importance_nll(
        trained.config, network, variables, test.images, jax.random.key(0), 100_000, labels=test.labels
    )
    np.testing.assert_allclose(found, exact, atol=3 * 0.0012, rtol=0)  # its standard deviation over keys, at most
    assert model.encode(test.images.astype(np.int64), test.labels)["mu"].shape == (20, 1)
    same = [model.encode(images, test.labels)["mu"] for images in (test.images, hot)]
    np.testing.assert_array_equal(*same)
    with pytest.raises(
        UserError, match=r"images: expected whole numbers from 0 to 2 or floats in \[0, 1\]; found 0 to 3"
    ):
        model.encode(test.images.astype(int) * 3 // 2, test.labels)
    streamed = fit(replace(config, train=replace(config.train, shard_images=32)), data)
    for one, other in zip(*map(jax.tree.leaves, (streamed.variables, variables)), strict=True):
        np.testing.assert_array_equal(one, other)


def leaves(trained):
    return jax.tree.leaves(jax.device_get((trained.state.variables, trained.state.opt_state)))


def test_a_run_goes_on_exactly_and_a_sweeps_member_is_its_single_run(tmp_path):
    data = data_of("vector")
    straight = train(config_of("vector"), data, tmp_path / "straight")
    one = load_config(None, **{**TINY, "likelihood.name": "gaussian", "train.epochs": 1})
    train(one, data, tmp_path / "run")
    train(config_of("vector"), data, tmp_path / "run", resume=True)
    read = reading.load(tmp_path / "run")
    assert read.config.data.spec == data.spec
    for found, expected in zip(leaves(read), leaves(straight), strict=True):
        np.testing.assert_array_equal(found, expected)
    other = Dataset.from_arrays(VECTORS + 1, test=20, validation=10)
    with pytest.raises(UserError, match="trained on other images"):
        train(config_of("vector", **{"train.epochs": 3}), other, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"data\.kind: expected sequence, .*; found vector"):
        train(read.config, data_of("sequence"), tmp_path / "run", resume=True)
    swept = run(make_sweep(config_of("vector"), 2, []), data, tmp_path / "sweep")
    assert [each.failure for each in swept] == ["", ""]
    member = reading.load(tmp_path / "sweep" / swept[0].member.name)
    for found, expected in zip(leaves(member), leaves(straight), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert "nats per example, densities of real numbers" in (tmp_path / "sweep" / "table.md").read_text()


# Commands

OPTIONS = ["--model.network=mlp", "--model.layers=[4]", "--model.latent=2", "--train.epochs=1", "--data.source=array"]


def command(arguments, capsys):
    """The exit code, and the lines of both streams."""
    code = cli.main([str(each) for each in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("kind", ["vector", "categories"])
def test_every_command_works_or_says_why_not(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    names = {"x_train": ARRAYS[kind], "y_train": LABELS, "x_test": ARRAYS[kind][:9], "y_test": LABELS[:9]}
    np.savez("mine.npz", **names)
    options = [*OPTIONS, "--data.path=mine.npz", f"--data.kind={kind}", f"--likelihood.name={FITTING[kind]}"]
    arrays = {  # what each writes, in RUN/figures, with its shape but for the example's
        "sample": ("samples_seed0.npz", "examples", ["-n", "5"], (5,)),
        "reconstruct": ("reconstructions.npz", "reconstructions", ["-n", "5"], (5,)),
        "interpolate": ("interpolation.npz", "examples", ["-n", "2", "--steps", "3"], (6,)),
        "traverse": ("traversal.npz", "examples", ["--steps", "3"], (6,)),
        "decode": ("decoded.npz", "examples", ["run/latents_test.npz"], (9,)),
    }
    refused = {
        "train-prior": (
            ["run", "--model.latent=5"],
            "model.latent: expected the run's own, 2, of which the prior is trained; found 5",
        ),
        "codes": (["run"], "RUN: expected a model whose z are made of codes; found z of shape (2,)"),
        "explore": (["run"], f"RUN: expected a model of images; found data of kind {kind}"),
        "import": (["x.safetensors", "other", *options], "data.kind: expected image to import"),
        "compare": (options, "data.kind: expected image to compare with PyTorch"),
    }
    Path("x.safetensors").write_bytes(b"")
    done = []
    for verb in cli.VERBS:
        if verb == "train":
            code, out, err = command(["train", "--out=run", *options], capsys)
            assert f"examples of {data_of(kind).spec} are no pictures: only the loss is drawn" in out
            assert "nats per example" in out
            assert not [line for line in out.splitlines() if " image" in line], out
            assert {path.name for path in Path("run/figures").iterdir()} == {"loss.png"}
        elif verb == "sweep":
            code, out, err = command(["sweep", "--out=swept", "--seeds=2", *options], capsys)
            assert "nats per example" in out
        elif verb == "evaluate":
            asked = ["--nll-samples=5", "--ais=3", "--ais-chains=2", "--diagnostics"]
            code, out, err = command(["evaluate", "run", *asked], capsys)
            assert out.count("nats per example") == 3
            assert "image" not in out
            _, out, _ = command(["evaluate", "run", "--json"], capsys)
            trained = json.loads(Path("run/metrics.jsonl").read_text())
            assert json.loads(out)["loss"] == trained["test_loss"]
        elif verb == "encode":
            code, out, err = command(["encode", "run"], capsys)
            assert np.load("run/latents_test.npz")["mu"].shape == (9, 2)
        elif verb == "export":
            code, out, err = command(["export", "run", "new.safetensors"], capsys)
            assert Path("new.py").exists()
        elif verb == "configs":
            code, out, err = command(["configs"], capsys)
        elif verb == "completion":
            code, out, err = command(["completion", "bash"], capsys)
        elif verb == "show":
            code, out, err = command(["show", "run"], capsys)
            assert "nats per example" in out
        elif verb == "report":
            code, out, err = command(["report", "run"], capsys)
            assert "nats per example" in Path("run/report.html").read_text()
        elif verb == "push":
            with hub_server.serving(tmp_path / "hub") as server:
                code, out, err = command(["push", "run", "me/run"], capsys)
                card = (server.folder("me/run") / "README.md").read_text()
                assert "nats per example" in card
                assert "sample hub:me/run --out samples.npz" in card
        elif verb in arrays:
            name, array, more, count = arrays[verb]
            code, out, err = command([verb, "run", *more], capsys)
            assert np.load(Path("run/figures") / name)[array].shape == (*count, *data_of(kind).image_shape)
            line = "--out: expected a name ending in .npz"
            assert line in command([verb, "run", *more, "--out=x.png"], capsys)[2]
        else:
            given, line = refused.pop(verb)
            code, out, err = command([verb, *given], capsys)
            assert (code, line in err, len(err.splitlines())) == (2, True, 1), err
            code = 0
        assert code == 0, err
        done.append(verb)
    assert done == list(cli.VERBS)
    assert not refused
    np.savez("fewer.npz", x_train=ARRAYS[kind][:, :2], x_test=ARRAYS[kind][:9, :2])
    assert "as configured; found [2] in fewer" in command(["evaluate", "run", "--data.path=fewer.npz"], capsys)[2]
    assert "expected image for image files" in command(["reconstruct", "run", "a.png"], capsys)[2]


def test_the_own_network_of_the_page_on_data_trains_on_sequences(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    network, made = (part.split("```")[0] for part in text.split("```python\n")[1:])
    Path("recurrent.py").write_text(network, encoding="utf-8")
    exec(compile(made, "data.md", "exec"), {})
    (line,) = (line for line in text.splitlines() if line.startswith("$ vae-jax train"))
    assert cli.main([*line.removeprefix("$ vae-jax ").split(), "--train.epochs=2"]) == 0
    losses = [json.loads(epoch)["train_loss"] for epoch in Path("runs/waves/metrics.jsonl").read_text().splitlines()]
    assert losses[1] < losses[0]


def test_what_the_data_contradict_is_refused_by_the_library_too():
    data = data_of("categories")
    for options, message in (
        ({"data.values": 7}, r"data\.values: expected 7, as configured; found 3 in arrays"),
        ({"data.shape": [9]}, r"data\.shape: expected \[9\], as configured; found \[4\] in arrays"),
    ):
        with pytest.raises(UserError, match=message):
            vae_jax.fit(config_of("categories", **{"data.kind": "categories", **options}), data)
