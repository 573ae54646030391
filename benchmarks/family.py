"""Priors, posteriors and likelihoods beside the plain VAE, in a setting small enough for two cores.

    python benchmarks/family.py --data.manual_dir DIR              # all rows
    python benchmarks/family.py --data.manual_dir DIR --only vamp  # one row (and nothing else is trained)

MNIST at 28x28 with Burda et al.'s MLP, 30 epochs. Dynamically binarised: minus the ELBO on the test images and the
importance-weighted NLL of 5,000 samples on the first 1,000 of them. Grey levels: minus the ELBO under the continuous
Bernoulli likelihood, for the model trained with it and for the one trained with the plain Bernoulli, which is no
density of grey levels.
"""

import argparse
import dataclasses
import json
import time
from typing import Any

import jax
import numpy as np

import vae_jax
from vae_jax.config import adapted
from vae_jax.evaluation.estimators import importance_nll
from vae_jax.evaluation.evaluator import make_evaluator, means
from vae_jax.keys import make_keys
from vae_jax.model.build import build

COMMON = {
    "data.source": "mnist",
    "data.image_size": 28,
    "data.treatment": "dynamic",
    "model.network": "mlp",
    "model.latent": 40,
    "model.activation": "tanh",
    "model.initialization": "glorot",
    "objective.schedule": "warmup",  # without it the VampPrior collapses: its components all start alike
    "objective.warmup_epochs": 10.0,
    "train.epochs": 30,
    "train.batch_size": 100,
    "train.schedule": "cosine",
    "train.reduction": "mean",
}
GREY = {"data.treatment": "grey"}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixture": {"prior.name": "mixture", "prior.components": 100},
    "vamp": {"prior.name": "vamp", "prior.components": 100},
    "flow_prior": {"prior.name": "flow"},
    "full_gaussian": {"posterior.name": "full_gaussian"},
    "planar": {"posterior.name": "planar"},
    "iaf": {"posterior.name": "iaf"},
    "bernoulli": GREY,
    "continuous_bernoulli": GREY | {"likelihood.name": "continuous_bernoulli"},
}
IMAGES, SAMPLES = 1000, 5000


def row(name: str, manual_dir: str | None, seed: int) -> dict[str, Any]:
    """Trains and evaluates one row; figures in nats per test image."""
    options = COMMON | ROWS[name] | ({"data.manual_dir": manual_dir} if manual_dir else {})
    config = vae_jax.load_config(**options, seed=seed)
    data = vae_jax.load_data(config.data)
    began = time.perf_counter()
    trained = vae_jax.fit(config, data)
    seconds = time.perf_counter() - began
    found = {"row": name, "seed": seed, "seconds": round(seconds)}
    network, objective = build(config, data.image_shape)
    images, variables = data.test.images[:IMAGES], trained.state.variables
    if ROWS[name].items() >= GREY.items():
        likelihood = dataclasses.replace(config.likelihood, name="continuous_bernoulli")
        config = dataclasses.replace(config, likelihood=likelihood)
        network, objective = build(config, data.image_shape)
        terms = make_evaluator(config, network, objective, data.test.images)(variables, make_keys(seed).evaluate)
        return found | {"minus_elbo": means(terms)["loss"]}
    plain = adapted(config, **{"objective.name": "vae"})
    network, objective = build(plain, data.image_shape)
    terms = make_evaluator(plain, network, objective, data.test.images)(variables, make_keys(seed).evaluate)
    values = means(terms)
    loss, kl = values["loss"], values["kl"]
    nll = importance_nll(plain, network, variables, images, jax.random.key(0), SAMPLES)
    return found | {"minus_elbo": loss, "kl": kl, "nll": float(np.asarray(nll, np.float64).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.manual_dir", dest="manual_dir", help="a folder with MNIST's four files")
    parser.add_argument("--only", choices=ROWS, nargs="+", default=list(ROWS), help="rows to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    for seed in options.seeds:
        for name in options.only:
            print(json.dumps(row(name, options.manual_dir, seed)), flush=True)


if __name__ == "__main__":
    main()
