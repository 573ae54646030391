"""Everything with everything: a covering set of combinations trains, and what makes no sense together is refused."""

import dataclasses
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import composition, likelihoods, objectives, optimizer, posteriors, priors, train
from vae_jax.config import Config
from vae_jax.data.treatments import TREATMENTS
from vae_jax.errors import UserError
from vae_jax.likelihoods import LIKELIHOODS
from vae_jax.objectives import OBJECTIVES
from vae_jax.posteriors import POSTERIORS
from vae_jax.priors import PRIORS

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
    "posterior.flows": 2,
    "posterior.hidden": 4,
    "posterior.context": 3,
    "prior.components": 3,
    "prior.flows": 2,
    "prior.hidden": 4,
    "likelihood.components": 2,
    "objective.samples": 3,
    "objective.groups": 2,
    "train.learning_rate": 0.01,
}
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


AXES = (
    choices("objective", [name for name, objective in OBJECTIVES.items() if objective.generative]),
    choices("likelihood", LIKELIHOODS),
    choices("posterior", POSTERIORS),
    choices("prior", PRIORS),
    [{"data.treatment": treatment} for treatment in TREATMENTS],
    [{"model.classes": classes} for classes in (0, 3)],
)


def config_of(numbers):
    """The configuration of these choices, one number for each axis; built directly, since there are thousands."""
    sections = {}
    for option, value in [
        *TINY.items(),
        *(item for n, axis in zip(numbers, AXES, strict=True) for item in axis[n].items()),
    ]:
        section, name = option.split(".")
        sections.setdefault(section, {})[name] = tuple(value) if isinstance(value, list) else value
    parts = {field.name: field.default_factory for field in dataclasses.fields(Config) if field.name in sections}
    return Config(**{section: parts[section](**sections[section]) for section in sections})


def refusal(config):
    """Why these parts make no sense together; None if they do."""
    try:
        objectives.get(config.objective)
        composition.check(
            config,
            posteriors.get(config.posterior, config.model.latent),
            priors.get(config.prior, config.model.latent, SHAPE),
            likelihoods.get(config.likelihood, SHAPE),
        )
    except UserError as error:
        return str(error)
    return None


def covering():
    """Combinations that hold every pair of choices which some combination allows: the most new pairs first."""
    sizes = [len(axis) for axis in AXES]
    every = np.array([numbers for numbers in product(*map(range, sizes)) if refusal(config_of(numbers)) is None])
    starts = np.cumsum([0, *sizes])
    number = every + starts[:-1]  # of a choice among all
    pairs = np.stack([number[:, a] * starts[-1] + number[:, b] for a, b in combinations(range(len(AXES)), 2)], 1)
    missing = np.zeros(starts[-1] ** 2, bool)
    missing[pairs] = True
    rows = []
    while missing.any():
        rows.append(every[missing[pairs].sum(1).argmax()])
        missing[pairs[(every == rows[-1]).all(1)]] = False
    return [tuple(map(int, row)) for row in rows]


def name_of(numbers):
    return " ".join(
        "-".join(str(value) for value in axis[number].values()) for number, axis in zip(numbers, AXES, strict=True)
    )


@pytest.mark.parametrize("numbers", covering(), ids=name_of)
def test_a_combination_trains(numbers):
    config = config_of(numbers)
    network, objective = composition.build(config, SHAPE)
    transformation = optimizer.build(config.train, 1)
    state = train.start(config, SHAPE, len(IMAGES))
    step = jax.jit(train.make_step(config, network, objective, transformation))
    labels = LABELS if config.model.classes else None
    variables, opt_state = state.variables, state.opt_state
    for number in range(3):
        key = jax.random.key(number)
        variables, opt_state, sums = step(variables, opt_state, jnp.asarray(IMAGES), key, labels, jnp.float32(number))
        assert np.isfinite(sums).all()
    moved = jax.tree.map(lambda now, then: bool((now != then).any()), variables.params, state.variables.params)
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if not leaf]
    assert not still
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
