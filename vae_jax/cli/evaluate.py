"""`vae-jax evaluate`: prints a model's loss and other figures."""

import json
import math
from typing import TYPE_CHECKING, Any

from vae_jax.cli.arguments import whole
from vae_jax.cli.common import Verb, answer, open_run, positive, run_options, say
from vae_jax.cli.progress import progress
from vae_jax.cli.run_data import load_data, split_of, split_option
from vae_jax.errors import UserError, quoted

if TYPE_CHECKING:
    from vae_jax.data import Dataset, Split
    from vae_jax.model.composition import Composition
    from vae_jax.training.state import Trained

CHAINS = 16  # of annealed importance sampling, per image
LATENTS = ("sample", "mean")


def _evaluate_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument(
        "--latent", default="sample", offered=lambda: LATENTS, help="z from the posterior: sample, or its mean"
    )
    split_option(parser)
    parser.add_argument("--images", type=whole, default=None, metavar="N", help="only N images, spread over the split")
    parser.add_argument(
        "--nll-samples",
        type=whole,
        default=None,
        metavar="K",
        help="also estimate the negative log-likelihood, importance-weighted with K samples an image; 5000 is usual",
    )
    parser.add_argument(
        "--ais",
        type=whole,
        default=None,
        metavar="TEMPERATURES",
        help="also estimate it by annealed importance sampling, over so many temperatures",
    )
    parser.add_argument(
        "--ais-chains",
        type=whole,
        default=None,
        metavar="N",
        help=f"chains per image with --ais; default {CHAINS}",
    )
    parser.add_argument(
        "--diagnostics",
        action="store_true",
        help="also examine the latents: active units, aggregate posterior, mutual information, reconstruction error, "
        "and how well they predict labels",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _evaluate(options: Any) -> None:
    if options.latent not in LATENTS:
        raise UserError(f"--latent: expected sample or mean; found {quoted(options.latent)}")
    for option in ("--images", "--nll-samples", "--ais", "--ais-chains"):
        if (value := getattr(options, option[2:].replace("-", "_"))) is not None:
            positive(value, option)
    if options.ais_chains is not None and options.ais is None:
        raise UserError("--ais-chains: expected --ais beside it; found none")
    trained, _ = open_run(options)
    from vae_jax.evaluation.evaluator import looks_at_densities, make_evaluator, means
    from vae_jax.keys import make_keys
    from vae_jax.model.batches import block
    from vae_jax.model.build import build
    from vae_jax.model.fits import check_vectors
    from vae_jax.objectives import FIGURES
    from vae_jax.training.checks import labels_for

    composition, objective = build(trained.config, trained.image_shape)
    for option, value in (("--nll-samples", options.nll_samples), ("--ais", options.ais)):
        if value is not None and not objective.generative:
            name = trained.config.objective.name
            raise UserError(f"{option}: expected a model with a likelihood to estimate; found objective {name}")
        if value is not None and composition.posterior.single:
            raise UserError(
                f"{option}: expected a posterior with samples to weigh; found posterior "
                f"{trained.config.posterior.name}, whose samples are all the same: the bound is reconstruction + KL"
            )
    if options.diagnostics:
        check_vectors(composition, "--diagnostics")
    by_mean = options.latent == "mean" and not composition.posterior.single
    if by_mean and options.own_objective and looks_at_densities(trained.config, composition, objective):
        raise UserError(
            f"--latent: expected sample with the trained prior, {trained.config.prior.name}, since the KL is made of "
            f"densities at samples of z; found mean; --no-prior evaluates the run's own objective, "
            f"{options.own_objective}"
        )
    data = load_data(options, trained)
    whole = split_of(data, options.split)
    count = len(whole) if options.images is None else options.images
    if count > len(whole):
        raise UserError(f"--images: expected at most the {len(whole):,} of --split {options.split}; found {count:,}")
    split = whole.spread(count)
    images, labels = split.images, labels_for(trained.config, split)
    evaluate = make_evaluator(trained.config, composition, objective, images, options.latent, labels)
    terms = evaluate(trained.variables, make_keys(trained.config.seed).evaluate)
    values = means(terms)
    loss = values["loss"]
    figures: dict[str, Any] = {
        **values,
        "images": len(images),
        "unit": objective.unit,
        "split": options.split,
        "latent": options.latent,
        "checkpoint": options.checkpoint,
        "prior": trained.config.prior.name if objective.generative and not composition.posterior.decodes else None,
        **({"prior_left_out": options.prior_left_out} if options.prior_left_out else {}),
    }
    parts, adds_up = "", False
    if objective.generative and {"reconstruction", "kl"} <= values.keys():
        reconstruction, kl = values["reconstruction"], values["kl"]
        adds_up = abs(loss - reconstruction - kl) <= 1e-5 * abs(loss)
        parts = f"reconstruction {reconstruction:.3f}{' +' if adds_up else ','} KL {kl:.3f}"
        parts = f" = {parts}" if adds_up else f" ({parts})"
    bound = loss if adds_up and options.latent == "sample" else None  # −ELBO, which z at the mean does not give
    gives_bound = composition.posterior.single or options.latent == "sample"  # else z at the mean gives none
    if composition.posterior.codes and gives_bound and "reconstruction" in values:
        figures["bound"] = bound = values["reconstruction"] + values["kl"]
    drawn = f", z: {options.latent}" if objective.generative else ""
    of = f"{len(images):,} of {len(whole):,}" if len(images) < len(whole) else f"{len(images):,}"
    line = f"{options.split} loss {loss:.3f}{parts} {objective.unit} ({of} {composition.spec.noun}s{drawn})"
    bits = None if bound is None else _bits(trained, composition, bound)
    figures |= {} if bits is None else {"bits_per_dim": bits}
    if not options.json:
        answer(line)  # now, since the rest may take long
        if "bound" in figures and not adds_up:
            answer(f"bound {bound:.3f} {objective.unit}: reconstruction + KL from prior {trained.config.prior.name}")
        for name in sorted(values.keys() - {*FIGURES}):
            together = f", of {block(trained.config, objective, len(images))} {composition.spec.noun}s at a time"
            of_batch = together * bool(objective.figures and name in objective.figures.of_batch)
            answer(f"{name} {values[name]:.4g} {objective.unit_of(name)}{of_batch}")
        if objective.generative and (
            about_bits := _about_bits(trained, composition, bits, "loss" if adds_up else "bound")
        ):
            answer(about_bits)
    if options.nll_samples or options.ais or options.diagnostics:
        _say_if_slow(trained, composition)
    more, lines = _estimates(options, trained, composition, split)
    figures |= more
    if options.diagnostics:
        more, further = _diagnostics(options, trained, composition, data, split)
        figures |= more
        lines += further
    if options.json:
        answer(json.dumps(figures))
    for line in [] if options.json else lines:
        answer(line)


def _bits(trained: "Trained", composition: "Composition", nats: float) -> float | None:
    """The bits per dimension of a −log p(x) or a bound, or None if it has none."""
    from vae_jax.likelihoods import bits_per_dimension

    return bits_per_dimension(
        composition.likelihood, trained.config.data.treatment, nats, math.prod(trained.image_shape)
    )


def _about_bits(trained: "Trained", composition: "Composition", bits: float | None, bound: str = "loss") -> str:
    """The line below the loss: its bits per dimension and their formula, or the reason why there are none."""
    dimensions = math.prod(trained.image_shape)
    if bits is not None:
        of = f"({bound} + {dimensions:,}·ln 256)" if composition.likelihood.measure == "density" else bound
        return f"at most {bits:.4f} bits per dimension of the 256 levels: {of} / ({dimensions:,}·ln 2)"
    undequantized = composition.spec.is_picture and trained.config.data.treatment != "dequantized"
    if composition.likelihood.measure == "density" and undequantized:
        return "no bits per dimension: the loss is of densities, comparable with data.treatment dequantized only"
    return ""


def _say_if_slow(trained: "Trained", composition: "Composition") -> None:
    """Says if the convolutions of a user's network are slow in the compiled loops of the next figures."""
    import jax
    import jax.numpy as jnp

    from vae_jax.blocks.convolution import is_slow_in_loops

    variables = trained.variables

    def decode(z: Any, labels: Any) -> Any:
        return composition.apply(variables, lambda model: model.decode(z), labels=labels)[0]

    labels = jnp.zeros(1, jnp.int32) if composition.classes else None
    if is_slow_in_loops(jax.jit(decode).lower(jnp.zeros((1, *composition.latent_shape)), labels)):
        say(
            f"the convolutions of {trained.config.model.network} are XLA's own, which are several times slower than "
            f"those of vae_jax.layers in the next figures, compiled loops on a CPU"
        )


def _estimates(
    options: Any, trained: "Trained", composition: "Composition", split: "Split"
) -> tuple[dict[str, Any], list[str]]:
    """The requested estimates of −log p(x), as figures and as lines."""
    if options.nll_samples is None and options.ais is None:
        return {}, []
    import numpy as np

    from vae_jax.evaluation import estimators
    from vae_jax.keys import estimates_key, make_keys
    from vae_jax.training.checks import labels_for

    key = estimates_key(make_keys(trained.config.seed).evaluate)
    run = (trained.config, composition, trained.variables, split.images)
    labels, noun = labels_for(trained.config, split), composition.spec.noun
    figures, lines = {}, []

    def add_bits(name: str, nll: float) -> str:
        if (bits := _bits(trained, composition, nll)) is None:
            return ""
        figures[f"{name}_bits_per_dim"] = bits
        return f", {bits:.4f} bits per dimension"

    if (samples := options.nll_samples) is not None:
        with progress("importance sampling") as on_progress:
            values = estimators.importance_nll(*run, key, samples, labels=labels, on_progress=on_progress)
        nll = float(np.asarray(values, np.float64).mean())
        figures |= {"nll": nll, "nll_samples": samples}
        bits = add_bits("nll", nll)
        lines.append(f"{options.split} NLL {nll:.3f} nats per {noun}{bits} (importance-weighted, {samples:,} samples)")
    if (temperatures := options.ais) is not None:
        chains = options.ais_chains or CHAINS
        with progress("annealed importance sampling") as on_progress:
            values = estimators.annealed_nll(
                *run, key, temperatures=temperatures, chains=chains, labels=labels, on_progress=on_progress
            )
        nll = float(np.asarray(values, np.float64).mean())
        figures |= {"ais_nll": nll, "ais_temperatures": temperatures, "ais_chains": chains}
        lines.append(
            f"{options.split} NLL {nll:.3f} nats per {noun}{add_bits('ais_nll', nll)} (annealed importance sampling, "
            f"{temperatures:,} temperatures, {chains:,} chains)"
        )
    return figures, lines


def _diagnostics(
    options: Any, trained: "Trained", composition: "Composition", data: "Dataset", split: "Split"
) -> tuple[dict[str, Any], list[str]]:
    """The figures of the latents, and their lines."""
    from vae_jax.evaluation import diagnostics
    from vae_jax.keys import diagnostics_key, make_keys

    key, noun = diagnostics_key(make_keys(trained.config.seed).evaluate), composition.spec.noun
    train = None if options.split == "train" else data.train
    with progress("aggregate posterior") as on_progress:
        figures = diagnostics.diagnose(
            trained.config,
            composition,
            trained.variables,
            split,
            key,
            train=train,
            report=say,
            on_progress=on_progress,
        )
    lines = [
        f"active units {figures['active_units']} of {composition.latent} "
        f"(variance of their means over {diagnostics.ACTIVE})"
    ]
    if figures["aggregate_kl"] is not None:
        lines += [
            f"KL of the aggregate posterior from the prior {figures['aggregate_kl']:.3f} nats",
            f"mutual information of {noun} and z {figures['mutual_information']:.3f} nats (at most "
            f"{figures['mutual_information_limit']:.3f}, the log of the number of {noun}s)",
        ]
    lines.append(
        f"squared error of reconstructions {figures['squared_error']:.4f} per {noun}, "
        f"{figures['squared_error_per_pixel']:.6f} per {'pixel' if composition.spec.is_picture else 'number'}"
    )
    if figures["probe_accuracy"] is not None:
        lines += [
            f"linear probe of the labels {figures['probe_accuracy']:.2%} right, "
            f"learned from {len(data.train):,} {noun}s",
            f"{diagnostics.NEIGHBOURS} nearest training {noun}s {figures['knn_accuracy']:.2%} right",
        ]
    return figures, lines


VERBS = {
    "evaluate": Verb(
        "print the loss of a run's model on its test images",
        _evaluate_options,
        _evaluate,
        "examples:\n"
        "  vae-jax evaluate runs/digits --latent mean --json\n"
        "  vae-jax evaluate runs/digits --nll-samples 5000 --diagnostics",
    ),
}
