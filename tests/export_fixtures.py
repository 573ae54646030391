"""Models to export, untrained, with inputs and what they compute from them: shared by the tests of exports."""

import jax
import numpy as np

from vae_jax import load_config
from vae_jax.model.build import build
from vae_jax.model.model import make_model
from vae_jax.training.start import start_from
from vae_jax.training.state import Trained

SMALL = {"data.image_size": 8, "data.channels": 1, "model.latent": 3}
CONVOLUTIONS = {**SMALL, "model.channels": [4, 8]}
CODES = {**CONVOLUTIONS, "prior.name": "uniform"}
MODELS = {
    "convolutional": {**CONVOLUTIONS, "model.hidden": 16},
    "mlp": {**SMALL, "model.network": "mlp", "model.gated": True},
    "residual": {**CONVOLUTIONS, "model.network": "residual", "data.channels": 3},
    "conditional": {**CONVOLUTIONS, "model.classes": 5},
    "odd": {
        **CONVOLUTIONS,
        "data.image_size": 13,
        "model.kernel": 5,
        "model.strides": [2, 3],
        "model.paddings": [2, 1],
    },
    "gaussian": {**CONVOLUTIONS, "likelihood.name": "gaussian", "model.activation": "gelu"},
    "continuous_bernoulli": {**SMALL, "model.network": "mlp", "likelihood.name": "continuous_bernoulli"},
    "logistic": {**CONVOLUTIONS, "likelihood.name": "discretized_logistic_mixture", "data.channels": 3},
    "flow": {**SMALL, "model.network": "mlp", "posterior.name": "iaf"},
    "codebook": {**CODES, "posterior.name": "codebook", "posterior.codes": 16},
    "fsq": {**CODES, "posterior.name": "fsq", "posterior.levels": [5, 4, 3]},
    "autoencoder": {**CONVOLUTIONS, "objective.name": "autoencoder"},
}


def trained_of(name, **changes):
    """An untrained model whose numbers are none of those that it begins with."""
    return moved_of(load_config(**{**MODELS.get(name, SMALL), **changes}))


def moved_of(config, shape=None):
    """An untrained model of examples of a shape, by default the configured images, with other numbers than at first."""
    shape = shape or (config.data.image_size, config.data.image_size, config.data.channels)
    composition, objective = build(config, shape)
    random = np.random.RandomState(0)

    def moved(leaf):
        return (
            leaf + (0.2 * random.random_sample(leaf.shape) - 0.1).astype(leaf.dtype) if leaf.dtype.kind == "f" else leaf
        )

    variables = jax.tree.map(moved, composition.init(jax.random.key(1)))
    return Trained(config, shape, start_from(config, objective, variables, 0), [], None)


def inputs_of(trained, batch):
    """Random images, z and labels, by name."""
    random, composition = np.random.default_rng(batch), build(trained.config, trained.image_shape).composition
    inputs = {
        "images": random.random((batch, *trained.image_shape)).astype(np.float32),
        "z": random.normal(size=(batch, *composition.latent_shape)).astype(np.float32),
    }
    if codes := composition.posterior.codes:
        inputs["codes"] = random.integers(0, codes.values, (batch, *codes.shape)).astype(np.int32)
    labels = random.integers(0, composition.classes, batch).astype(np.int32) if composition.classes else None
    return inputs, labels


def expected_of(trained, inputs, labels):
    """What the model itself computes, by function."""
    model = make_model(*build(trained.config, trained.image_shape), trained.variables)
    results = {
        "encode": model.encode(inputs["images"], labels),
        "decode": {"pictures": model.decode(inputs["z"], labels)},
    }
    if "codes" in inputs:
        results["decode_codes"] = {"pictures": model.decode(inputs["codes"], labels)}
    return results
