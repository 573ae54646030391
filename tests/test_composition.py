"""Everything with everything: a covering set of combinations trains, and what makes no sense together is refused."""

import functools
from dataclasses import replace
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import likelihoods, networks, objectives, optimizer, posteriors, priors
from vae_jax.config import Config, ObjectiveConfig, PosteriorConfig, PriorConfig, adapted, with_options
from vae_jax.data.treatments import TREATMENTS
from vae_jax.errors import UserError
from vae_jax.likelihoods import LIKELIHOODS
from vae_jax.model.build import build
from vae_jax.model.fits import check
from vae_jax.objectives import OBJECTIVES
from vae_jax.posteriors import POSTERIORS
from vae_jax.priors import PRIORS
from vae_jax.shapes import Shapes
from vae_jax.training.start import start
from vae_jax.training.step import make_step

SHAPE = (3, 3, 1)
IMAGES = np.random.RandomState(0).randint(0, 256, (6, *SHAPE), np.uint8)
LABELS = jnp.arange(6, dtype=jnp.int32) % 3
TINY = {
    "data.image_size": 3,
    "model.network": "mlp",
    "model.layers": [5],
    "model.activation": "tanh",
    "model.latent": 2,
    "train.batch_size": 6,
    "posterior.flows": 1,
    "posterior.hidden": 4,
    "posterior.context": 3,
    "prior.components": 3,
    "prior.flows": 1,
    "prior.hidden": 4,
    "likelihood.components": 2,
    "objective.samples": 3,
    "objective.groups": 2,
    "train.learning_rate": 0.01,
}


SHAPES = Shapes(SHAPE, TINY["model.latent"])


def tiny(**options):
    """The configuration with these options, and of TINY what they look at."""
    return adapted(Config(), **TINY, **options)


# Of every part its registered choices, and of some the options that change what they do.
MORE = {
    "vae": (
        {"kl": "sampled"},
        {"gradient": "stl"},
        {"free_bits": 0.1},
        {"schedule": "warmup"},
        {"schedule": "cyclical"},
    ),
    "iwae": ({"gradient": "stl"}, {"gradient": "dreg"}),
    "miwae": ({"gradient": "dreg"},),
    "gaussian": ({"variance": "shared"}, {"variance": "pixel"}),
}


def choices(section, names):
    """The choices of a section of the configuration: {option: value} each."""
    return [
        {f"{section}.name": name, **{f"{section}.{option}": value for option, value in more.items()}}
        for name in names
        for more in ({}, *MORE.get(name, ()))
    ]


# Parts of codes fit one another alone, and are combined in tests of their own.
OF_CODES = {"codebook", "fsq", "lfq", "categorical", "bernoulli", "uniform", "pixelcnn", "transformer"}
OF_CODES |= {"score_vae", "relax_vae", "vimco", "prior"}  # and one that leaves the model as it is


def of_vectors(names):
    return [name for name in names if name not in OF_CODES]


AXES = (
    choices("objective", of_vectors(name for name, objective in OBJECTIVES.items() if objective.generative)),
    choices("likelihood", LIKELIHOODS),
    choices("posterior", of_vectors(POSTERIORS)),
    choices("prior", of_vectors(PRIORS)),
    [{"data.treatment": treatment} for treatment in TREATMENTS],
    [{"model.classes": classes} for classes in (0, 3)],
)


def config_of(numbers):
    """The configuration of these choices, one number for each axis; of sections that are made once."""
    chosen = [tuple(axis[number].items()) for number, axis in zip(numbers, AXES, strict=True)]
    sections = {axis[0][0].partition(".")[0]: section_of(axis) for axis in chosen}
    classes = sections.pop("model").classes
    return replace(PLAIN, **sections, model=model_of(classes))


PLAIN = tiny()


@functools.cache
def model_of(classes):
    return replace(PLAIN.model, classes=classes)


@functools.cache  # there are thousands of combinations, of few sections and parts
def section_of(options):
    section = options[0][0].partition(".")[0]
    return getattr(tiny(**dict(options)), section)


@functools.cache
def part_of(section):
    if isinstance(section, ObjectiveConfig):
        return objectives.get(section)
    if isinstance(section, PosteriorConfig):
        return posteriors.get(section, SHAPES)
    return priors.get(section, SHAPES) if isinstance(section, PriorConfig) else likelihoods.get(section, SHAPES)


def refusal(config):
    """Why these parts make no sense together; None if they do."""
    try:
        parts = (part_of(getattr(config, name)) for name in ("posterior", "prior", "likelihood", "objective"))
        check(config, *parts, lambda: networks.Ties(False, False), SHAPES)
    except UserError as error:
        return str(error)
    return None


def features(numbers):
    """What a combination has: the name in every section, and every option that changes what it does."""
    chosen = [item for number, axis in zip(numbers, AXES, strict=True) for item in axis[number].items()]
    return frozenset(chosen)


def covering():
    """Combinations that hold every pair of features which some combination allows: the most new pairs first."""
    every = [numbers for numbers in product(*map(range, map(len, AXES))) if refusal(config_of(numbers)) is None]
    has = [features(numbers) for numbers in every]
    number = {
        pair: i for i, pair in enumerate({pair for each in has for pair in combinations(sorted(each, key=str), 2)})
    }
    pairs = [[number[pair] for pair in combinations(sorted(each, key=str), 2)] for each in has]
    width = max(map(len, pairs))
    pairs = np.array([(each * width)[:width] for each in pairs])  # filled up by repeating; a pair counts once
    missing, rows = np.ones(len(number), bool), []
    while missing.any():
        rows.append(int(missing[pairs].sum(1).argmax()))
        missing[pairs[rows[-1]]] = False
    return [every[row] for row in rows]


def name_of(numbers):
    return " ".join(
        "-".join(str(value) for value in axis[number].values()) for number, axis in zip(numbers, AXES, strict=True)
    )


@pytest.mark.parametrize("numbers", covering(), ids=name_of)
def test_a_combination_trains(numbers):
    """Three steps, all in one compiled call: every parameter moves, and all stay finite."""
    config = config_of(numbers)
    network, objective = build(config, SHAPE)
    step = make_step(config, network, objective, optimizer.build(config, 1))
    labels = LABELS if config.model.classes else None

    @jax.jit
    def run(images):
        state = start(config, SHAPE, len(images))

        def body(carry, number):
            key = jax.random.fold_in(jax.random.key(0), number)
            *carry, sums = step(*carry, images, key, labels, number.astype(float))
            return tuple(carry), sums

        (variables, _), sums = jax.lax.scan(body, (state.variables, state.opt_state), jnp.arange(3))
        moved = jax.tree.map(lambda now, then: (now != then).any(), variables.params, state.variables.params)
        return variables, sums, moved

    variables, sums, moved = run(jnp.asarray(IMAGES))
    assert np.isfinite(sums).all()
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if not leaf]
    assert not still
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


REFUSED = {
    r"model\.network: expected one without BatchNorm .* with objective piwae, .*; found residual": {
        "objective.name": "piwae",
        "model.network": "residual",
        "model.channels": [4],
    },
    r"model\.network: expected one without BatchNorm .* with objective iwae with gradient dreg": {
        "objective.name": "iwae",
        "objective.gradient": "dreg",
        "model.network": "residual",
        "model.channels": [4],
    },
    r"model\.network: expected one without BatchNorm .* with prior vamp, whose pseudo-inputs": {
        "prior.name": "vamp",
        "model.network": "residual",
        "model.channels": [4],
    },
    r"objective\.kl: expected sampled or auto with posterior planar and prior standard_normal.*found analytic": {
        "objective.kl": "analytic",
        "posterior.name": "planar",
    },
    r"objective\.kl: expected sampled or auto .*prior mixture, whose KL has no closed form": {
        "objective.kl": "analytic",
        "prior.name": "mixture",
    },
    r"objective\.gradient: expected standard with an analytic KL": {
        "objective.kl": "analytic",
        "objective.gradient": "stl",
    },
    r"objective\.gradient: expected standard with posterior planar, whose density is known at its own samples": {
        "objective.name": "iwae",
        "objective.gradient": "dreg",
        "posterior.name": "planar",
    },
    r"objective\.free_bits: expected 0 with posterior full_gaussian": {
        "objective.free_bits": 0.1,
        "posterior.name": "full_gaussian",
    },
    r"objective\.free_bits: expected 0 with .*objective\.kl sampled": {
        "objective.free_bits": 0.1,
        "objective.kl": "sampled",
    },
    r"prior\.name: expected another prior than one made of posteriors with posterior planar.*found vamp": {
        "prior.name": "vamp",
        "posterior.name": "planar",
    },
    r"model\.classes: expected 0 with prior vamp, whose pseudo-inputs have no labels; found 3": {
        "prior.name": "vamp",
        "model.classes": 3,
    },
    r"data\.treatment: expected grey or dequantized with likelihood continuous_bernoulli: .*; found dynamic": {
        "likelihood.name": "continuous_bernoulli",
        "data.treatment": "dynamic",
    },
    r"data\.treatment: expected grey or static or dynamic with likelihood bernoulli: .*; found dequantized": {
        "data.treatment": "dequantized",
    },
    r"data\.treatment: expected grey with likelihood discretized_logistic: .*; found dequantized": {
        "likelihood.name": "discretized_logistic",
        "data.treatment": "dequantized",
    },
    r"^objective\.name: expected vae or .* with posterior\.name iaf; found autoencoder$": {
        "objective.name": "autoencoder",
        "posterior.name": "iaf",
    },
    r"objective\.schedule: expected objective\.name vae; found iwae": {
        "objective.name": "iwae",
        "objective.schedule": "warmup",
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_together_is_refused_with_the_reason(message):
    options = {"data.image_size": 3, "model.network": "mlp", **REFUSED[message]}
    with pytest.raises(UserError, match=message):
        build(with_options(Config(), **options), SHAPE)


def test_labels_reach_encoder_and_decoder():
    config = tiny(**{"model.classes": 3})
    network, _ = build(config, SHAPE)
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(IMAGES[:1] / 255, float)

    def use(label):
        return network.apply(
            variables, lambda model: (model.encode(images)["mu"], model.decode(jnp.zeros((2, 1, 2)))), labels=label
        )[0]

    (mu, outputs), (other_mu, other_outputs) = use(jnp.array([0])), use(jnp.array([2]))
    assert (mu != other_mu).all()
    assert outputs.shape == (2, 1, *SHAPE)  # an axis of samples before the batch
    assert (outputs != other_outputs).all()
    np.testing.assert_array_equal(outputs[0], outputs[1])
    with pytest.raises(UserError, match=r"model\.classes: expected one of 3 labels for each image, .*; found none"):
        use(None)


def test_one_sample_with_an_axis_is_one_without():
    network, _ = build(tiny(), SHAPE)
    variables = network.init(jax.random.key(0))
    images = network.treat(None, jnp.asarray(IMAGES))

    def sample(samples):
        def run(model):
            z, log_q = model.sample(jax.random.key(1), model.encode(images), samples)
            return z, log_q, model.log_likelihood(images, model.decode(z)), model.log_prior(z)

        return network.apply(variables, run)[0]

    for plain, with_axis in zip(sample(None), sample(1), strict=True):
        np.testing.assert_allclose(with_axis[0], plain, rtol=1e-5)
    assert len({float(log_q) for log_q in sample(4)[1][:, 0]}) == 4  # every sample is another one
