"""Refuses parts that do not go together, by their properties, never by their names."""

from collections.abc import Callable

import jax

from vae_jax import likelihoods, objectives
from vae_jax.config import Config
from vae_jax.errors import UserError, listed
from vae_jax.keys import probing_key
from vae_jax.likelihoods import Likelihood
from vae_jax.model.composition import PARTS, Composition
from vae_jax.networks import Ties
from vae_jax.objectives import Around, Objective
from vae_jax.part_outputs import Shape
from vae_jax.posteriors import Posterior
from vae_jax.priors import Prior
from vae_jax.shapes import Shapes


def check_hierarchy(config: Config, objective: Objective) -> None:
    """Refuses options that do not go with a hierarchy, which has a posterior and a prior of its own.

    Raises:
        UserError: with the reason.
    """
    defaults, brings = Config(), f"with network {config.model.network}, which brings its own posterior and prior"
    for name in ("posterior", "prior"):
        if (chosen := getattr(config, name).name) != (default := getattr(defaults, name).name):
            refuse(f"{name}.name", f"{default} {brings}", chosen)
    if config.model.classes:
        refuse("model.classes", f"0 {brings} and knows no labels", config.model.classes)
    if not objective.generative:
        refuse("objective.name", f"one with a p(x) {brings}", config.objective.name)


def check(
    config: Config,
    posterior: Posterior,
    prior: Prior,
    likelihood: Likelihood,
    objective: Objective,
    ties: Callable[[], Ties],
    shapes: Shapes,
) -> None:
    """Refuses parts that do not go together.

    Args:
        config: of the model.
        posterior: built from it.
        prior: built from it.
        likelihood: built from it.
        objective: built from it.
        ties: of the network, called only if they matter.
        shapes: that the parts share.

    Raises:
        UserError: with the reason.
    """
    treatment = config.data.treatment
    q, p = f"posterior {config.posterior.name}", f"prior {config.prior.name}"
    if posterior.decodes:
        q, p = f"network {config.model.network}'s own posterior", "its prior"
    closed = posterior.kl.get(prior.kind)
    if posterior.support != prior.support:
        expected = f"one over the posterior's {posterior.support}, as of {q}"
        refuse("prior.name", expected, f"{config.prior.name}, over {prior.support}")
    # If the model does not train, its samples are those of evaluation.
    if prior.of_codes and posterior.reparameterized and not posterior.single and not objective.still:
        why = "which gets no gradient from a prior over codes; objective prior trains one afterwards"
        refuse("prior.name", f"uniform with {q}, {why}", config.prior.name)
    if posterior.priors and prior.kind not in posterior.priors and not objective.still:
        known = " or ".join(f"{kind} with {q} and {why}" for kind, why in posterior.priors.items())
        refuse("prior.name", known, config.prior.name)
    options = config.objective.options
    if not (posterior.reparameterized or objective.scores or objective.still):
        estimating = listed(name for name, entry in objectives.OBJECTIVES.items() if entry.scores)
        what = f"one that estimates the gradient through samples with {q}, whose samples have none ({estimating})"
        refuse("objective.name", what, config.objective.name)
    if objective.scores and posterior.reparameterized:
        what = f"vae or the like with {q}, whose samples have a gradient of their own"
        refuse("objective.name", what, config.objective.name)

    def learned() -> bool:
        return bool(jax.tree.leaves(jax.eval_shape(prior.init, probing_key())))

    objective.check(options, Around(posterior, closed, q, p, shapes.support, learned))
    if prior.posterior and not posterior.log_prob:
        refuse(
            "prior.name",
            f"another prior than one made of posteriors with {q}, whose density is known at its own samples only",
            config.prior.name,
        )
    if prior.posterior and config.model.classes:
        refuse("model.classes", f"0 with {p}, whose pseudo-inputs have no labels", config.model.classes)
    # If the images of a batch depend on one another in training, as with BatchNorm, so do the samples of an image.
    plain = "one without BatchNorm (of ours, model.batch_norm false)"
    if objective.apart(options) and ties().couples:
        gradient = f" with gradient {options.gradient}" if hasattr(options, "gradient") else ""
        why = f"objective {config.objective.name}{gradient}, which weighs each sample's own gradient"
        in_it = "in which the images of a batch depend on one another"
        refuse("model.network", f"{plain} or the like with {why}", f"{config.model.network}, {in_it}")
    if prior.posterior and any(ties()):
        why = f"or other running statistics with {p}, whose pseudo-inputs would enter them"
        refuse("model.network", f"{plain} {why}", f"{config.model.network}, which keeps some of the images it has seen")
    if objective.generative and shapes.support not in likelihood.over:
        fitting = " or ".join(likelihoods.over(shapes))
        refuse("likelihood.name", f"{fitting} for data that are {shapes.support}", config.likelihood.name)
    if objective.generative and shapes.support == "levels" and treatment not in likelihood.treatments:
        known = " or ".join(likelihood.treatments)
        refuse("data.treatment", f"{known} with likelihood {config.likelihood.name}: {likelihood.reason}", treatment)


def refuse(option: str, expected: str, found: object) -> None:
    raise UserError(f"{option}: expected {expected}; found {found}")


def check_vectors(composition: Composition, task: str) -> None:
    """Refuses z that are no vectors of real numbers, for a task that reads their dimensions one by one or moves them.

    Raises:
        UserError: naming the task.
    """
    if codes := composition.posterior.codes:
        description = f"codes, {codes.values} at {list(codes.shape)} places, between which there is nothing"
    elif len(composition.latent_shape) != 1:
        description = f"z of shape {composition.latent_shape}"
    else:
        return
    raise UserError(f"{task}: expected a model whose z are vectors; found {description}")


def objective_network_names(config: Config, objective: Objective, shape: Shape, image_shape: Shape) -> tuple[str, ...]:
    """The names of an objective's networks.

    Raises:
        UserError: if they are names of the model's parts.
    """
    if not (init := objective.init):
        return ()
    made = jax.eval_shape(lambda key: init(key, config.objective.options, shape, image_shape), probing_key())
    if not isinstance(made, dict) or not made.keys().isdisjoint(PARTS):
        named = listed(made) if isinstance(made, dict) else type(made).__name__
        what = f"objective {config.objective.name} to init a dict of parameters by other names than {listed(PARTS)}"
        refuse("objective.name", what, named)
    return tuple(sorted(made))
