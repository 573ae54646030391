"""How far from log p(x) are the estimates of it? Measured by images that the model draws itself.

    python benchmarks/bounds.py RUN [--images 100] [--temperatures 500 2000] [--samples 5000]

Of an image drawn together with its z that z is an exact sample of p(z|x), so annealed importance sampling can also go
backwards from it, which bounds −log p(x) from below (bidirectional Monte Carlo, Grosse et al. 2015). Beside the two
bounds stands the importance-weighted estimate of the same images. Nats per image, with the standard error of the mean
over images of each estimate's distance from the lower bound. For models of binary images.
"""

import argparse
import json
import math

import jax
import numpy as np

import vae_jax
from vae_jax.evaluation.estimators import annealed_nll, importance_nll
from vae_jax.model.build import build


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run folder of a model of binary images")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--temperatures", type=int, nargs="+", default=[500])
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--samples", type=int, nargs="+", default=[5000])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    trained = vae_jax.load_run(options.run)
    config, variables = trained.config, trained.state.variables
    if config.data.treatment not in ("static", "dynamic"):
        raise SystemExit(f"RUN: expected a model of binary images; found data.treatment {config.data.treatment}")
    network, objective = build(config, trained.image_shape)
    if network.classes or not objective.generative:
        raise SystemExit("RUN: expected a model with a likelihood that gets no labels")
    draw, binarize, estimate = jax.random.split(jax.random.key(options.seed), 3)
    z = network.sample_prior(variables, draw, options.images)
    means = vae_jax.use(trained).decode(z)
    images = np.asarray(255 * jax.random.bernoulli(binarize, means), np.uint8)
    run = (config, network, variables, images, estimate)

    annealing = {"chains": options.chains}
    found, lower = {}, np.zeros(options.images)
    for temperatures in sorted(options.temperatures):  # the last ones give the tightest bound
        annealing["temperatures"] = temperatures
        lower = annealed_nll(*run, **annealing, exact=np.asarray(z))
        found[f"annealed backwards, {temperatures}"] = lower
        found[f"annealed forwards, {temperatures}"] = annealed_nll(*run, **annealing)
    for samples in options.samples:
        found[f"importance-weighted, {samples}"] = importance_nll(*run, samples)
    for name, nll in found.items():
        apart = nll - lower
        row = {"estimate": name, "nll": nll.mean(), "above_lower": apart.mean()}
        print(json.dumps(row | {"standard_error": apart.std() / math.sqrt(options.images)}), flush=True)


if __name__ == "__main__":
    main()
