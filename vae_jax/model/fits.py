"""Parts that make no sense together are refused, by what they can do, never by their names."""

from collections.abc import Callable

import jax

from vae_jax import likelihoods, objectives
from vae_jax.config import Config
from vae_jax.errors import UserError, listed
from vae_jax.expectation import Shape
from vae_jax.keys import probing_key
from vae_jax.likelihoods import Likelihood
from vae_jax.model.composition import PARTS, Composition
from vae_jax.networks import Ties
from vae_jax.objectives import Around, Objective
from vae_jax.posteriors import Posterior
from vae_jax.priors import Prior
from vae_jax.shapes import Shapes


def check_own(config: Config, objective: Objective) -> None:
    """Refuses what makes no sense with a hierarchy, which has a posterior and a prior of its own.

    Raises:
        UserError: with the reason.
    """
    usual, brings = Config(), f"with network {config.model.network}, which brings its own posterior and prior"
    for name in ("posterior", "prior"):
        if (other := getattr(config, name).name) != (own := getattr(usual, name).name):
            refuse(f"{name}.name", f"{own} {brings}", other)
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
    """Refuses parts that make no sense together.

    Args:
        config: of the model.
        posterior: built from it.
        prior: likewise.
        likelihood: likewise.
        objective: likewise.
        ties: of the network, asked only where it matters.
        shapes: that they share.

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
    # Where the model stays as it is, so do its samples, which are those of evaluation then.
    if prior.of_codes and posterior.reparameterized and not posterior.single and not objective.still:
        why = "to which a prior over codes passes no gradient on; objective prior trains one afterwards"
        refuse("prior.name", f"uniform with {q}, {why}", config.prior.name)
    if posterior.priors and prior.kind not in posterior.priors and not objective.still:
        known = " or ".join(f"{kind} with {q} and {why}" for kind, why in posterior.priors.items())
        refuse("prior.name", known, config.prior.name)
    options = config.objective.options
    if not (posterior.reparameterized or objective.scores or objective.still):
        estimating = listed(name for name, own in objectives.OBJECTIVES.items() if own.scores)
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
    # Where the images of a batch depend on one another in training, as with BatchNorm, so do the samples of an image.
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


def check_vectors(network: Composition, what: str) -> None:
    """Refuses z that are no vectors of real numbers, for what looks at their dimensions one by one, or moves them.

    Raises:
        UserError: naming what was to be done.
    """
    if codes := network.posterior.codes:
        found = f"codes, {codes.values} at {list(codes.shape)} places, between which there is nothing"
    elif len(network.latent_shape) != 1:
        found = f"z of shape {network.latent_shape}"
    else:
        return
    raise UserError(f"{what}: expected a model whose z are vectors; found {found}")


def names_of_own(config: Config, objective: Objective, shape: Shape, image_shape: Shape) -> tuple[str, ...]:
    """The names of an objective's own networks.

    Raises:
        UserError: if they are the model's parts'.
    """
    if not (init := objective.init):
        return ()
    made = jax.eval_shape(lambda key: init(key, config.objective.options, shape, image_shape), probing_key())
    if not isinstance(made, dict) or not made.keys().isdisjoint(PARTS):
        named = listed(made) if isinstance(made, dict) else type(made).__name__
        what = f"objective {config.objective.name} to init a dict of parameters by other names than {listed(PARTS)}"
        refuse("objective.name", what, named)
    return tuple(sorted(made))
