"""q(z|x) × p(z) × p(x|z) × networks: the parts of a model put together, and refused where they make no sense together.

Here samples get their axis, labels reach the networks, and images are treated; the parts know of none of that.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped, UInt

from vae_jax import likelihoods, objectives, posteriors, priors
from vae_jax import networks as networks_module
from vae_jax.config import PARTS as ALL_PARTS
from vae_jax.config import Config, check_used, entry_of
from vae_jax.config.parts import registry_of
from vae_jax.device.platforms import Platform, current, on
from vae_jax.errors import UserError, listed
from vae_jax.expectation import Shape, expect
from vae_jax.keys import begin_key, objective_key, part_key, probing_key, step_keys
from vae_jax.likelihoods import Likelihood
from vae_jax.networks import Autoencoder, Trace
from vae_jax.objectives import Around, BoundModel, Objective
from vae_jax.objectives.base import make_draw
from vae_jax.posteriors import Heads, Latents, Posterior, Sample
from vae_jax.priors import Aggregate, Prior
from vae_jax.registry import check_functions
from vae_jax.shapes import Shapes
from vae_jax.spec import Spec, spec_of
from vae_jax.treatments import treatment_of
from vae_jax.variables import Variables

ArrayLike = Array | np.ndarray
PARTS = ("posterior", "prior", "likelihood")  # beside the networks, and only where they have parameters


class Composition(NamedTuple):
    """A model as pure functions of its variables.

    Attributes:
        init: key -> Variables.
        apply: (variables, function, key=None, train=False, masks=None, labels=None, epoch=inf, streams=None,
            density=None) -> (function(BoundModel), updated Variables); see `vae_jax.networks.Network`. `labels` are of
            the images, (batch,), where the model is told them. With a density, every z that is drawn is the posterior's
            centre, and every density at z this one.
        trace: (variables, function, key=None, train=False) -> Trace: the same, watched.
        treat: (key, images as they are stored) -> floats; images in [0, 1], as `data.treatment` says.
        begin: (variables, key, images as they are stored, labels=None) -> the variables with which training begins
            anew, with what is made of data, as a codebook.
        sample_prior: (variables, key, count, labels=None, **how) -> z, (count, *latent_shape); `how` is what the prior
            knows of `Prior.how`.
        center: (variables, heads) -> the posterior's centre z and log q there, (batch, *latent_shape) and (batch,): of
            a Gaussian the mean, of a flow what it makes of its first Gaussian's mean.
        center_codes: (variables, heads) -> the codes that it is made of; None where it is made of none.
        ties: see `vae_jax.networks.Network`.
        posterior: q(z|x).
        prior: p(z).
        likelihood: p(x|z).
        classes: how many labels there are; 0 where the model is not told them.
        latent: dimensions of z.
        latent_shape: of one z.
        spec: what an example is.
        platform: that the functions are traced for.
    """

    init: Callable[[Key[Array, ""]], Variables]
    apply: Callable[..., tuple[Any, Variables]]
    trace: Callable[..., Trace]
    treat: Callable[[Key[Array, ""] | None, Shaped[Array, "*stored"]], Float[Array, "*shape"]]
    begin: Callable[..., Variables]
    sample_prior: Callable[..., Latents]
    center: Callable[[Variables, Heads], tuple[Latents, Float[Array, "*batch"]]]
    center_codes: Callable[[Variables, Heads], Int[Array, "..."] | None]
    ties: Callable[[], networks_module.Ties]
    posterior: Posterior
    prior: Prior
    likelihood: Likelihood
    classes: int
    latent: int
    latent_shape: tuple[int, ...]
    spec: Spec
    platform: Platform

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of an example as the networks take it: an image's (height, width, channels)."""
        return self.spec.shape


class Built(NamedTuple):
    """A model and what it is trained for, as pure functions of its variables: what a loop of one's own needs.

        model = vae_jax.build(config, data.image_shape)
        variables = model.init(jax.random.key(0))
        gradient, (terms, updated) = jax.grad(model.loss, has_aux=True)(variables.params, variables.state, images, key)

    Attributes:
        network: the model.
        objective: what is minimised.
    """

    network: Composition
    objective: Objective

    def init(
        self,
        key: Key[Array, ""],
        images: UInt[ArrayLike, "batch *stored"] | Float[ArrayLike, "batch *shape"] | None = None,
        labels: Int[Array, " batch"] | None = None,
    ) -> Variables:
        """The model's first variables; of some images a part that is made of data, as a codebook, is made."""
        variables = self.network.init(key)
        if images is None:
            return variables
        return self.network.begin(variables, begin_key(key), jnp.asarray(images), labels)

    def terms(
        self,
        variables: Variables,
        images: UInt[ArrayLike, "batch *stored"] | Float[ArrayLike, "batch *shape"],
        key: Key[Array, ""],
        labels: Int[Array, " batch"] | None = None,
        epoch: Float[Array, ""] | float = jnp.inf,
        train: bool = False,
    ) -> tuple[objectives.Terms, Variables]:
        """The objective's figures of a batch, (batch,) each, of its first phase, and the variables that it leaves.

        Args:
            variables: of the model.
            images: uint8, which are treated as `data.treatment` says; or floats in [0, 1] that have been, with respect
                to which the terms may be differentiated. Examples of other kinds: floats, or categories.
            key: of a step: the treatment, the noise and dropout.
            labels: of the images, where the model is told them.
            epoch: epochs trained, for schedules; infinite where they have ended.
            train: with dropout and BatchNorm's own statistics of the batch, whose running ones are updated.
        """
        own, images = step_keys(key), jnp.asarray(images)
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        targets = images if floats else self.network.treat(own.treatment, images)
        more = {"train": train, "streams": own.streams if train else None}
        return self.network.apply(
            variables,
            lambda model: self.objective.terms(own.objective, model, targets, self.objective.options),
            own.dropout if train else None,
            labels=labels,
            epoch=epoch,
            **more,
        )

    def loss(
        self,
        params: PyTree,
        state: dict[str, PyTree],
        images: UInt[ArrayLike, "batch *stored"] | Float[ArrayLike, "batch *shape"],
        key: Key[Array, ""],
        labels: Int[Array, " batch"] | None = None,
        epoch: Float[Array, ""] | float = jnp.inf,
    ) -> tuple[Float[Array, ""], tuple[objectives.Terms, Variables]]:
        """The mean loss of a batch in training, to be differentiated with respect to the parameters; see `terms`."""
        terms, updated = self.terms(Variables(params, state), images, key, labels, epoch, train=True)
        return terms["loss"].mean(), (terms, updated)


MOST_BUILT = 8
# What has been built lately, with the parts that it is made of: a run asks for its model in several places.
_built: dict[Any, tuple[Built, tuple[Any, ...]]] = {}


def build(config: Config, image_shape: tuple[int, ...], platform: Platform | None = None) -> Built:
    """The configured model and objective, made once for a configuration.

    Args:
        config: of the model.
        image_shape: (height, width, channels), or the shape of an example of another kind, as the networks take it.
        platform: that they are to run on; by default this process's.

    Raises:
        UserError: if the configuration does not fit together.
    """
    platform = platform or current()
    try:
        # A name may come to stand for something else, as where a user's file has changed.
        entries = tuple(entry_of(section, getattr(config, section).part) for section in ALL_PARTS)
    except UserError:  # which is raised in its turn
        return _build(config, image_shape, platform)
    key = config, tuple(image_shape), platform, tuple(map(id, entries))
    if key not in _built:
        _built[key] = _build(config, image_shape, platform), entries
        if len(_built) > MOST_BUILT:
            del _built[next(iter(_built))]
    return _built[key][0]


def _build(config: Config, image_shape: tuple[int, ...], platform: Platform) -> Built:
    spec = spec_of(config.data.kind, image_shape)
    if not spec.is_picture:  # so that options of images' alone are refused
        config = replace(config, data=replace(config.data, kind=spec.kind))
    objective = objectives.in_units_of(objectives.get(config.objective), spec.noun)
    check_used(config, objective.generative)
    shapes = Shapes(spec.shape, config.model.latent, config.model.classes, support=spec.support)
    shapes = shapes._replace(places=lambda: networks_module.places(config.model, spec))
    posterior = posteriors.get(config.posterior, shapes) if objective.generative else posteriors.point(None, shapes)
    shapes = shapes._replace(latent_shape=getattr(posterior, "shape", None), codes=getattr(posterior, "codes", None))
    prior = priors.get(config.prior, shapes)
    likelihood = likelihoods.get(config.likelihood, shapes) if objective.generative else likelihoods.squared(shapes)
    for option, part, kind in (
        ("posterior", posterior, Posterior),
        ("prior", prior, Prior),
        ("likelihood", likelihood, Likelihood),
    ):
        if not isinstance(part, kind):
            name = getattr(config, option).name
            raise UserError(f"{option}.name: expected {name} to give a {kind.__name__}; found {type(part).__name__}")
        check_functions(part, f"{option}.name")
    if "mu" not in posterior.heads:
        _refuse("posterior.name", f"{config.posterior.name} to have a head mu", listed(posterior.heads) or "none")
    shapes = shapes._replace(heads=posterior.heads, outputs=likelihood.outputs)
    network = networks_module.build(config.model, shapes)
    if network.posterior and network.prior:
        _check_own(config, objective)
        posterior, prior = network.posterior, network.prior
    check(config, posterior, prior, likelihood, objective, network.ties, shapes)
    composition = _compose(config, spec, network, posterior, prior, likelihood, objective, platform)

    def trace(look: Callable[[BoundModel, Any], objectives.Terms]) -> objectives.Terms:
        def terms(variables: Variables, images: Array, labels: Array) -> objectives.Terms:
            return composition.apply(variables, lambda model: look(model, images), labels=labels)[0]

        variables = jax.eval_shape(composition.init, probing_key())
        images = jax.ShapeDtypeStruct((2, *spec.shape), jnp.result_type(float))
        return jax.eval_shape(terms, variables, images, jax.ShapeDtypeStruct((2,), jnp.int32))

    options = config.objective.options
    if posterior.units or config.posterior.name not in registry_of("posterior"):  # it may have figures of its own
        objective = objective._replace(figures=None, units={**posterior.units, **objective.units})
        objective = objectives.in_units_of(objective, spec.noun)
    if posterior.codes:
        objective = objective._replace(units={**objective.units, "codes_used": "codes", "perplexity": "codes"})
    objective = objective._replace(figures=objectives.figures_of(objective, trace, options), options=options)
    return Built(composition, objectives.checked(objective, config.objective.name))


def _check_own(config: Config, objective: Objective) -> None:
    """Refuses what makes no sense with a hierarchy, which has a posterior and a prior of its own.

    Raises:
        UserError: with the reason.
    """
    usual, brings = Config(), f"with network {config.model.network}, which brings its own posterior and prior"
    for name in ("posterior", "prior"):
        if (other := getattr(config, name).name) != (own := getattr(usual, name).name):
            _refuse(f"{name}.name", f"{own} {brings}", other)
    if config.model.classes:
        _refuse("model.classes", f"0 {brings} and knows no labels", config.model.classes)
    if not objective.generative:
        _refuse("objective.name", f"one with a p(x) {brings}", config.objective.name)


def check(
    config: Config,
    posterior: Posterior,
    prior: Prior,
    likelihood: Likelihood,
    objective: Objective,
    ties: Callable[[], networks_module.Ties],
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
        _refuse("prior.name", expected, f"{config.prior.name}, over {prior.support}")
    # Where the model stays as it is, so do its samples, which are those of evaluation then.
    if prior.of_codes and posterior.reparameterized and not posterior.single and not objective.still:
        why = "to which a prior over codes passes no gradient on; objective prior trains one afterwards"
        _refuse("prior.name", f"uniform with {q}, {why}", config.prior.name)
    if posterior.priors and prior.kind not in posterior.priors and not objective.still:
        known = " or ".join(f"{kind} with {q} and {why}" for kind, why in posterior.priors.items())
        _refuse("prior.name", known, config.prior.name)
    options = config.objective.options
    if not (posterior.reparameterized or objective.scores or objective.still):
        estimating = listed(name for name, own in objectives.OBJECTIVES.items() if own.scores)
        what = f"one that estimates the gradient through samples with {q}, whose samples have none ({estimating})"
        _refuse("objective.name", what, config.objective.name)
    if objective.scores and posterior.reparameterized:
        what = f"vae or the like with {q}, whose samples have a gradient of their own"
        _refuse("objective.name", what, config.objective.name)

    def learned() -> bool:
        return bool(jax.tree.leaves(jax.eval_shape(prior.init, probing_key())))

    objective.check(options, Around(posterior, closed, q, p, shapes.support, learned))
    if prior.posterior and not posterior.log_prob:
        _refuse(
            "prior.name",
            f"another prior than one made of posteriors with {q}, whose density is known at its own samples only",
            config.prior.name,
        )
    if prior.posterior and config.model.classes:
        _refuse("model.classes", f"0 with {p}, whose pseudo-inputs have no labels", config.model.classes)
    # Where the images of a batch depend on one another in training, as with BatchNorm, so do the samples of an image.
    plain = "one without BatchNorm (of ours, model.batch_norm false)"
    if objective.apart(options) and ties().couples:
        gradient = f" with gradient {options.gradient}" if hasattr(options, "gradient") else ""
        why = f"objective {config.objective.name}{gradient}, which weighs each sample's own gradient"
        in_it = "in which the images of a batch depend on one another"
        _refuse("model.network", f"{plain} or the like with {why}", f"{config.model.network}, {in_it}")
    if prior.posterior and any(ties()):
        why = f"or other running statistics with {p}, whose pseudo-inputs would enter them"
        _refuse(
            "model.network", f"{plain} {why}", f"{config.model.network}, which keeps some of the images it has seen"
        )
    if objective.generative and shapes.support not in likelihood.over:
        fitting = " or ".join(likelihoods.over(shapes))
        _refuse("likelihood.name", f"{fitting} for data that are {shapes.support}", config.likelihood.name)
    if objective.generative and shapes.support == "levels" and treatment not in likelihood.treatments:
        known = " or ".join(likelihood.treatments)
        _refuse("data.treatment", f"{known} with likelihood {config.likelihood.name}: {likelihood.reason}", treatment)


def _refuse(option: str, expected: str, found: object) -> None:
    raise UserError(f"{option}: expected {expected}; found {found}")


def _compose(
    config: Config,
    spec: Spec,
    network: networks_module.Network,
    posterior: Posterior,
    prior: Prior,
    likelihood: Likelihood,
    objective: Objective,
    platform: Platform,
) -> Composition:
    classes, image_shape, axes = config.model.classes, spec.shape, len(spec.shape)
    shape = posterior.shape or (config.model.latent,)
    latent = math.prod(shape)
    closed = posterior.kl.get(prior.kind)
    networks_of_objective = _names_of_own(config, objective, shape, image_shape)
    owned = (*PARTS, *networks_of_objective)
    named = {name: f"{name}.name {getattr(config, name).name}" for name in PARTS}

    def init(key: Key[Array, ""]) -> Variables:
        variables = network.init(key)
        parts = {
            name: part.init(part_key(key, number))
            for number, (name, part) in enumerate(zip(PARTS, (posterior, prior, likelihood), strict=True))
        }
        if objective.init:
            parts |= objective.init(objective_key(key), config.objective.options, shape, image_shape)
        if clash := [name for name in owned if name in variables.params or name in variables.state]:
            what = f"a network without parts or collections called {clash[0]}, as the model's own are"
            _refuse("model.network", what, config.model.network)
        params, state = dict(variables.params), dict(variables.state)
        for name, made in parts.items():
            if isinstance(made, Variables):
                state[name], made = made.state, made.params
            if jax.tree.leaves(made):
                params[name] = made
        return Variables(params, state)

    def split(variables: Variables) -> tuple[Variables, dict[str, PyTree]]:
        """The networks' variables, and what the functions of each part get: what its `init` gave."""
        networks, parts = (
            [{name: part for name, part in of.items() if (name in owned) == own} for of in variables]
            for own in (False, True)
        )
        params, state = parts
        given = {name: params.get(name, {}) for name in owned}
        if network.posterior:
            given |= dict.fromkeys(("posterior", "prior"), networks[0])
        return Variables(*networks), given | {name: Variables(given[name], of) for name, of in state.items()}

    def as_sample(result: Any, lead: Shape, what: str = "transform") -> Sample:
        if not isinstance(result, Sample) and not (isinstance(result, tuple) and len(result) == 2):
            raise UserError(f"{named['posterior']}, {what}: expected z and log q(z|x); found {type(result).__name__}")
        sample = result if isinstance(result, Sample) else Sample(*result)
        expect(f"{named['posterior']}, {what}, z", sample.z, (*lead, *shape))
        expect(f"{named['posterior']}, {what}, log q(z|x)", sample.log_q, lead)
        if sample.cost is not None:
            expect(f"{named['posterior']}, {what}, cost", sample.cost, lead)
        return sample

    def noise(key: Key[Array, ""], lead: tuple[int, ...], dtype: Any) -> PyTree:
        return posterior.noise(key, lead) if posterior.noise else jax.random.normal(key, (*lead, *shape), dtype)

    def aggregate_of(autoencoder: Autoencoder, own: PyTree, labels: Int[Array, " batch"] | None = None) -> Aggregate:
        """The posterior, as priors see it."""
        return _aggregate(autoencoder, posterior, own, noise, shape)._replace(labels=labels if classes else None)

    def draw_from(own: PyTree, key: Key[Array, ""], heads: Heads, train: bool) -> Sample:
        lead, dtype = _lead(posterior, heads)
        return made_of(own, noise(key, lead, dtype), heads, train)

    def made_of(own: PyTree, noise: PyTree, heads: Heads, train: bool) -> Sample:
        transform = posterior.transform if train else posterior.exact or posterior.transform
        return as_sample(transform(own, noise, heads), _lead(posterior, heads)[0])

    def center_of(own: PyTree, heads: Heads) -> Sample:
        lead, dtype = _lead(posterior, heads)
        if posterior.center:
            return as_sample(posterior.center(own, heads), lead, "center")
        shapes = jax.eval_shape(lambda key: noise(key, lead, dtype), probing_key())
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return as_sample((posterior.exact or posterior.transform)(own, zeros, heads), lead)

    def model(
        autoencoder: Autoencoder,
        parts: dict[str, PyTree],
        labels: Int[Array, " batch"] | None,
        epoch: Float[Array, ""],
        density: Float[Array, ""] | None = None,
        moved: dict[str, Variables] | None = None,
        train: bool = False,
    ) -> BoundModel:
        p, px = parts["prior"], parts["likelihood"]

        def encode(images: Array) -> Heads:
            return autoencoder.encode(_with_planes(images, labels, classes))

        def drawn(key: Key[Array, ""], heads: Heads, samples: int | None = None) -> Sample:
            if density is not None:
                sample = center_of(parts["posterior"], heads)
                z = sample.z if samples is None else jnp.broadcast_to(sample.z, (samples, *sample.z.shape))
                decoded = sample.decoded and sample.decoded._replace(log_pz=at(sample.z))
                if decoded and samples is not None:
                    decoded = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (samples, *leaf.shape)), decoded)
                return Sample(z, at(z), sample.cost, decoded=decoded, figures=sample.figures, codes=sample.codes)
            if samples is not None:
                heads = {name: jnp.broadcast_to(head, (samples, *head.shape)) for name, head in heads.items()}
            return kept(draw_from(parts["posterior"], key, heads, train))

        def transform(noise: PyTree, heads: Heads) -> Sample:
            if density is not None:
                sample = center_of(parts["posterior"], heads)
                return sample._replace(log_q=at(sample.z))
            return kept(made_of(parts["posterior"], noise, heads, train))

        def kept(sample: Sample) -> Sample:
            if sample.state is not None and moved is not None:  # everything in this pass sees the state before it
                moved["posterior"] = _moved_on(named["posterior"], parts["posterior"], sample.state)
            return sample

        def at(z: Latents) -> Array:
            assert density is not None
            return jnp.broadcast_to(density.astype(z.dtype), z.shape[: z.ndim - len(shape)])

        def sample(key: Key[Array, ""], heads: Heads, samples: int | None = None) -> tuple[Latents, Array]:
            return drawn(key, heads, samples)[:2]

        def decode(z: Latents) -> Array:
            outputs = autoencoder.decode(_with_labels(z.reshape(-1, *shape), labels, classes))
            return outputs.reshape(*z.shape[: z.ndim - len(shape)], *outputs.shape[1:])

        def log_likelihood(images: Array, outputs: Array) -> Array:
            lead = outputs.shape[:-axes]
            images = jnp.broadcast_to(images, (*lead, *images.shape[1:])).reshape(-1, *images.shape[1:])
            log_px = likelihood.log_prob(px, outputs.reshape(-1, *outputs.shape[-axes:]), images)
            expect(f"{named['likelihood']}, log_prob", log_px, (len(images),))
            return log_px.reshape(lead)

        def log_posterior(z: Latents, heads: Heads) -> Array:
            if density is not None:
                return at(z)
            assert posterior.log_prob
            still, own = lax.stop_gradient((heads, parts["posterior"]))
            lead = z.shape[: z.ndim - len(shape)]
            log_q = posterior.log_prob(own, z, _broadcast(posterior, still, lead))
            expect(f"{named['posterior']}, log_prob", log_q, lead)
            return log_q

        def log_prior(z: Latents, codes: Int[Array, "..."] | None = None) -> Array:
            """At z, of which the codes may be known already."""
            if density is not None:
                return at(z)
            around = aggregate if codes is None else aggregate._replace(codes=lambda _: codes)
            log_pz = prior.log_prob(p, z, around)
            expect(f"{named['prior']}, log_prob", log_pz, z.shape[: z.ndim - len(shape)])
            return log_pz

        def closed_form(kl: Callable[..., Array] | None, name: str, more: tuple[int, ...]) -> Any:
            """The KL from the prior, if there is one."""
            if kl is None:
                return None

            def checked(heads: Heads) -> Array:
                value = kl(heads, p)
                expect(f"{named['posterior']}, kl, {name}", value, (*_lead(posterior, heads)[0], *more))
                return value

            return checked

        def mean(outputs: Array) -> Array:
            flat = outputs.reshape(-1, *outputs.shape[-axes:])
            pictures = likelihood.mean(px, flat)
            expect(f"{named['likelihood']}, mean", pictures, (len(flat), *image_shape))
            return pictures.reshape(*outputs.shape[:-axes], *pictures.shape[1:])

        aggregate = aggregate_of(autoencoder, parts["posterior"], labels)
        kl = closed_form(closed and closed.total, "total", ())
        dimensions = math.prod(posterior.codes.shape) if posterior.codes else latent
        kl_by_dimension = closed_form(closed and closed.by_dimension, "by_dimension", (dimensions,))

        return BoundModel(
            make_draw(encode, drawn, decode, log_likelihood, log_prior, kl, kl_by_dimension),
            encode,
            sample,
            decode,
            log_likelihood,
            log_prior,
            log_posterior if posterior.log_prob else None,
            kl,
            kl_by_dimension,
            mean,
            epoch,
            {name: parts[name] for name in networks_of_objective},
            spec.support,
            aggregate.codes,
            aggregate.vectors,
            posterior.codes and posterior.codes.distances and partial(posterior.codes.distances, parts["posterior"]),
            lambda key, lead: noise(key, lead, jnp.result_type(float)),
            transform,
            train,
        )

    def apply(
        variables: Variables,
        function: Callable[[BoundModel], Any],
        key: Key[Array, ""] | None = None,
        train: bool = False,
        masks: PyTree = None,
        labels: Int[Array, " batch"] | None = None,
        epoch: Float[Array, ""] | float = jnp.inf,
        streams: Key[Array, ""] | None = None,
        density: Float[Array, ""] | None = None,
    ) -> tuple[Any, Variables]:
        networks, parts = split(variables)
        moved: dict[str, Variables] = {}

        def run(autoencoder: Autoencoder) -> Any:
            return function(model(autoencoder, parts, labels, jnp.asarray(epoch), density, moved, train))

        result, updated = network.apply(networks, run, key, train, masks, streams)
        if not train:
            return result, variables
        own = {name: cast(Variables, moved.get(name, parts[name])).state for name in owned if name in variables.state}
        return result, Variables(variables.params, {**updated.state, **own})

    def trace(
        variables: Variables,
        function: Callable[[BoundModel], Any],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> Trace:
        networks, parts = split(variables)
        return network.trace(
            networks, lambda autoencoder: function(model(autoencoder, parts, None, jnp.asarray(jnp.inf))), key, train
        )

    def begin(
        variables: Variables,
        key: Key[Array, ""],
        images: Shaped[Array, "batch *stored"],
        labels: Int[Array, " batch"] | None = None,
    ) -> Variables:
        if not (make := posterior.begin):
            return variables
        networks, parts = split(variables)
        own = step_keys(key)
        treated = images if jnp.issubdtype(images.dtype, jnp.floating) else treat(own.treatment, images)

        def encode(autoencoder: Autoencoder) -> Heads:
            return autoencoder.encode(_with_planes(treated, labels, classes))

        # As in training: running statistics know nothing of the images yet.
        heads = network.apply(networks, encode, own.dropout, True, None, own.streams)[0]
        made = make(parts["posterior"], own.objective, lax.stop_gradient(heads))
        params, state = dict(variables.params), dict(variables.state)
        if isinstance(made, Variables):
            state["posterior"], made = made.state, made.params
        if jax.tree.leaves(made):
            params["posterior"] = made
        return Variables(params, state)

    def sample_prior(
        variables: Variables, key: Key[Array, ""], count: int, labels: Int[Array, " batch"] | None = None, **how: Any
    ) -> Latents:
        networks, parts = split(variables)

        def run(autoencoder: Autoencoder) -> Latents:
            aggregate = aggregate_of(autoencoder, parts["posterior"], labels)
            z = cast(Any, prior.sample)(parts["prior"], key, count, aggregate, **how)
            expect(f"{named['prior']}, sample", z, (count, *shape))
            return z

        return network.apply(networks, run)[0]

    def center(variables: Variables, heads: Heads) -> tuple[Latents, Array]:
        return center_of(split(variables)[1]["posterior"], heads)[:2]

    def center_codes(variables: Variables, heads: Heads) -> Array | None:
        own = split(variables)[1]["posterior"]
        sample = center_of(own, heads)
        return sample.codes if sample.codes is not None or not posterior.codes else posterior.codes.of(own, sample.z)

    treat = treatment_of(spec, config.data.treatment)
    traced = on(platform, init), on(platform, apply), on(platform, trace), treat
    sampled = on(platform, begin), on(platform, sample_prior), on(platform, center), on(platform, center_codes)
    shared = network.ties, posterior, prior, likelihood, classes, latent, shape, spec, platform
    return Composition(*traced, *sampled, *shared)


def _broadcast(posterior: Posterior, heads: Heads, lead: Shape) -> Heads:
    """Heads with the axes of samples that z has."""
    own = len(_lead(posterior, heads)[0])
    return {name: jnp.broadcast_to(head, (*lead, *head.shape[own:])) for name, head in heads.items()}


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


def _names_of_own(config: Config, objective: Objective, shape: Shape, image_shape: Shape) -> tuple[str, ...]:
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
        _refuse("objective.name", what, named)
    return tuple(sorted(made))


def _lead(posterior: Posterior, heads: Heads) -> tuple[Shape, Any]:
    """The axes before those of one head, and the heads' type."""
    name, size = next(iter(posterior.heads.items()))
    return heads[name].shape[: heads[name].ndim - (len(size) if isinstance(size, tuple) else 1)], heads[name].dtype


def _moved_on(what: str, own: PyTree, state: PyTree) -> Variables:
    """A part with this state, which must be of the structure, the shapes and the types of the one that it has.

    Raises:
        UserError: it is not.
    """
    if not isinstance(own, Variables):
        raise UserError(f"{what}, transform: expected no state, since its init gives none; found one")
    before, after = (
        jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), of) for of in (own.state, state)
    )
    if before != after:
        raise UserError(f"{what}, transform: expected the state {before!s:.200} of its init; found {after!s:.200}")
    return own._replace(state=state)


def _aggregate(
    autoencoder: Autoencoder, posterior: Posterior, own: PyTree, noise: Callable[..., PyTree], shape: Shape
) -> Aggregate:
    """The posterior at images of a prior's own."""

    def log_prob(z: Latents, images: Array) -> Array:
        assert posterior.log_prob
        heads, log_prob = autoencoder.encode(images), partial(posterior.log_prob, own)
        # What depends on an image alone is computed once for it, not for every z.
        each = jax.vmap(jax.vmap(log_prob, (None, 0)), (0, None))(z.reshape(-1, *shape), heads)
        return each.reshape(*z.shape[: z.ndim - len(shape)], len(images))

    def sample(key: Key[Array, ""], images: Array) -> Array:
        noise = (
            posterior.noise(key, (len(images),)) if posterior.noise else jax.random.normal(key, (len(images), *shape))
        )
        return posterior.transform(own, noise, autoencoder.encode(images))[0]

    if codes := posterior.codes:
        return Aggregate(log_prob, sample, own, partial(codes.of, own), partial(codes.vectors, own))
    return Aggregate(log_prob, sample, own)


def _one_hot(labels: Int[Array, " batch"] | None, classes: int, dtype: Any) -> Array:
    if labels is None:
        raise UserError(f"model.classes: the networks are told one of {classes} labels for each image; found none")
    return jax.nn.one_hot(labels, classes, dtype=dtype)


def _with_planes(images: Array, labels: Int[Array, " batch"] | None, classes: int) -> Array:
    """Images with their label as further channels, one of which is all ones (the conditional VAE's encoder)."""
    if not classes:
        return images
    hot = _one_hot(labels, classes, images.dtype)
    planes = hot.reshape(len(hot), *(1,) * (images.ndim - 2), classes)
    return jnp.concatenate([images, jnp.broadcast_to(planes, (*images.shape[:-1], classes))], -1)


def _with_labels(z: Array, labels: Int[Array, " batch"] | None, classes: int) -> Array:
    """z with its label beside it (the conditional VAE's decoder, Sohn et al. 2015, section 4.1)."""
    if not classes:
        return z
    hot = _one_hot(labels, classes, z.dtype)
    samples = len(z) // len(hot)
    hot = jnp.broadcast_to(hot, (samples, *hot.shape)).reshape(len(z), *(1,) * (z.ndim - 2), classes)
    return jnp.concatenate([z, jnp.broadcast_to(hot, (*z.shape[:-1], classes))], -1)
