"""q(z|x) × p(z) × p(x|z) × networks: the parts of a model put together, and refused where they make no sense together.

Here samples get their axis, labels reach the networks, and images are treated; the parts know of none of that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from vae_jax import likelihoods, models, objectives, posteriors, priors
from vae_jax.config import Config, check_used
from vae_jax.errors import UserError, listed
from vae_jax.expectation import expect
from vae_jax.keys import part_key
from vae_jax.likelihoods import Likelihood
from vae_jax.models import Autoencoder, Trace, Variables
from vae_jax.objectives import Model, Objective
from vae_jax.platforms import Platform, current, on
from vae_jax.posteriors import Heads, Latents, Posterior
from vae_jax.priors import Aggregate, Prior
from vae_jax.registry import check_functions, lookup
from vae_jax.treatments import TREATMENTS

PARTS = ("posterior", "prior", "likelihood")  # beside the networks, and only where they have parameters


class Composition(NamedTuple):
    """A model as pure functions of its variables.

    Attributes:
        init: key -> Variables.
        apply: (variables, function, key=None, train=False, masks=None, labels=None, epoch=inf, streams=None) ->
            (function(Model), updated Variables); see `vae_jax.models.Network`. `labels` are those of the images,
            (batch,), where the model is told them.
        trace: (variables, function, key=None, train=False) -> Trace: the same, watched.
        treat: (key, uint8 images) -> images in [0, 1], as `data.treatment` says.
        sample_prior: (variables, key, count) -> z, (count, latent).
        center: (variables, heads) -> the posterior's centre z and log q there, (batch, latent) and (batch,): of a
            Gaussian the mean, of a flow what it makes of its first Gaussian's mean.
        ties: see `vae_jax.models.Network`.
        posterior: q(z|x).
        prior: p(z).
        likelihood: p(x|z).
        classes: how many labels there are; 0 where the model is not told them.
        latent: dimensions of z.
        image_shape: (height, width, channels).
        platform: that the functions are traced for.
    """

    init: Callable[[Key[Array, ""]], Variables]
    apply: Callable[..., tuple[Any, Variables]]
    trace: Callable[..., Trace]
    treat: Callable[[Key[Array, ""] | None, UInt8[Array, "*shape"]], Float[Array, "*shape"]]
    sample_prior: Callable[[Variables, Key[Array, ""], int], Latents]
    center: Callable[[Variables, Heads], tuple[Latents, Float[Array, "*batch"]]]
    ties: Callable[[], models.Ties]
    posterior: Posterior
    prior: Prior
    likelihood: Likelihood
    classes: int
    latent: int
    image_shape: tuple[int, int, int]
    platform: Platform


def build(
    config: Config, image_shape: tuple[int, int, int], platform: Platform | None = None
) -> tuple[Composition, Objective]:
    """The configured model and objective.

    Args:
        config: of the model.
        image_shape: (height, width, channels).
        platform: that they are to run on; by default this process's.

    Raises:
        UserError: if the configuration does not fit together.
    """
    check_used(config)
    objective, latent = objectives.get(config.objective), config.model.latent
    make_posterior = posteriors.get if objective.generative else posteriors.point
    posterior = make_posterior(config.posterior, latent)
    prior = priors.get(config.prior, latent, image_shape)
    likelihood = likelihoods.get(config.likelihood, image_shape)
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
    treat = lookup(TREATMENTS, config.data.treatment, "data.treatment")
    network = models.build(config.model, image_shape, posterior.heads, likelihood.outputs)
    check(config, posterior, prior, likelihood, objective, network.ties)
    composition = _compose(config, image_shape, network, posterior, prior, likelihood, treat, platform or current())
    return composition, objectives.checked(objective, config.objective.name)


def check(
    config: Config,
    posterior: Posterior,
    prior: Prior,
    likelihood: Likelihood,
    objective: Objective,
    ties: Callable[[], models.Ties],
) -> None:
    """Refuses parts that make no sense together.

    Args:
        config: of the model.
        posterior: built from it.
        prior: likewise.
        likelihood: likewise.
        objective: likewise.
        ties: of the network, asked only where it matters.

    Raises:
        UserError: with the reason.
    """
    options, treatment = config.objective, config.data.treatment
    q, p = f"posterior {config.posterior.name}", f"prior {config.prior.name}"
    sampled = options.kl == "sampled" or options.gradient == "stl"

    if options.kl == "analytic" and not (posterior.kl and prior.standard):
        _refuse("objective.kl", f"sampled or auto with {q} and {p}, whose KL has no closed form", options.kl)
    if options.kl == "analytic" and options.gradient == "stl":
        _refuse("objective.gradient", "standard with an analytic KL, which has no score of q to leave out", "stl")
    if options.free_bits and not (posterior.kl_by_dimension and prior.standard and not sampled):
        known = f"0 with {q}, {p}, objective.kl {options.kl} and objective.gradient {options.gradient}"
        _refuse("objective.free_bits", f"{known}: it needs each dimension's KL in closed form", options.free_bits)
    if options.gradient != "standard" and not posterior.log_prob:
        known_where = f"standard with {q}, whose density is known at its own samples only"
        _refuse("objective.gradient", known_where, options.gradient)
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
    if (objective.apart or options.gradient == "dreg") and ties().couples:
        what = f"objective {options.name} with gradient {options.gradient}"
        why = f"{what}, which weighs each sample's own gradient"
        in_it = "in which the images of a batch depend on one another"
        _refuse("model.network", f"{plain} or the like with {why}", f"{config.model.network}, {in_it}")
    if prior.posterior and any(ties()):
        why = f"or other running statistics with {p}, whose pseudo-inputs would enter them"
        _refuse(
            "model.network", f"{plain} {why}", f"{config.model.network}, which keeps some of the images it has seen"
        )
    if objective.generative and treatment not in likelihood.treatments:
        known = " or ".join(likelihood.treatments)
        _refuse("data.treatment", f"{known} with likelihood {config.likelihood.name}: {likelihood.reason}", treatment)


def _refuse(option: str, expected: str, found: object) -> None:
    raise UserError(f"{option}: expected {expected}; found {found}")


def _compose(
    config: Config,
    image_shape: tuple[int, int, int],
    network: models.Network,
    posterior: Posterior,
    prior: Prior,
    likelihood: Likelihood,
    treat: Callable[..., Array],
    platform: Platform,
) -> Composition:
    classes, latent = config.model.classes, config.model.latent
    named = {name: f"{name}.name {getattr(config, name).name}" for name in PARTS}

    def init(key: Key[Array, ""]) -> Variables:
        variables = network.init(key)
        parts = {
            name: part.init(part_key(key, number))
            for number, (name, part) in enumerate(zip(PARTS, (posterior, prior, likelihood), strict=True))
        }
        trained = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
        return variables._replace(params={**variables.params, **trained})

    def split(variables: Variables) -> tuple[Variables, list[PyTree]]:
        networks = {name: part for name, part in variables.params.items() if name not in PARTS}
        return variables._replace(params=networks), [variables.params.get(name, {}) for name in PARTS]

    def join(updated: Variables, variables: Variables) -> Variables:
        return updated._replace(params=variables.params)

    def transform(params: PyTree, noise: Latents, heads: Heads) -> tuple[Latents, Array]:
        result = posterior.transform(params, noise, heads)
        if not isinstance(result, tuple) or len(result) != 2:
            raise UserError(
                f"{named['posterior']}, transform: expected z and log q(z|x); found {type(result).__name__}"
            )
        z, log_q = result
        expect(f"{named['posterior']}, transform, z", z, noise.shape)
        expect(f"{named['posterior']}, transform, log q(z|x)", log_q, noise.shape[:-1])
        return z, log_q

    def model(
        autoencoder: Autoencoder, parts: list[PyTree], labels: Int[Array, " batch"] | None, epoch: Float[Array, ""]
    ) -> Model:
        q, p, px = parts

        def encode(images: Array) -> Heads:
            return autoencoder.encode(_with_planes(images, labels, classes))

        def sample(key: Key[Array, ""], heads: Heads, samples: int | None = None) -> tuple[Latents, Array]:
            if samples is not None:
                heads = {name: jnp.broadcast_to(head, (samples, *head.shape)) for name, head in heads.items()}
            mu = heads["mu"]
            return transform(q, jax.random.normal(key, (*mu.shape[:-1], latent), mu.dtype), heads)

        def decode(z: Latents) -> Array:
            flat = z.reshape(-1, latent)
            outputs = autoencoder.decode(_with_labels(flat, labels, classes))
            return outputs.reshape(*z.shape[:-1], *outputs.shape[1:])

        def log_likelihood(images: Array, outputs: Array) -> Array:
            lead = outputs.shape[:-3]
            images = jnp.broadcast_to(images, (*lead, *images.shape[1:])).reshape(-1, *images.shape[1:])
            log_px = likelihood.log_prob(px, outputs.reshape(-1, *outputs.shape[-3:]), images)
            expect(f"{named['likelihood']}, log_prob", log_px, (len(images),))
            return log_px.reshape(lead)

        def log_posterior(z: Latents, heads: Heads) -> Array:
            assert posterior.log_prob
            still, params = lax.stop_gradient((heads, q))
            log_q = posterior.log_prob(params, z, _broadcast(still, z))
            expect(f"{named['posterior']}, log_prob", log_q, z.shape[:-1])
            return log_q

        def log_prior(z: Latents) -> Array:
            log_pz = prior.log_prob(p, z, aggregate)
            expect(f"{named['prior']}, log_prob", log_pz, z.shape[:-1])
            return log_pz

        def closed_form(kl: Callable[[Heads], Array] | None, name: str, more: tuple[int, ...]) -> Any:
            """A KL from the standard normal, if that is the prior and there is one."""
            if kl is None or not prior.standard:
                return None

            def checked(heads: Heads) -> Array:
                value = kl(heads)
                expect(f"{named['posterior']}, {name}", value, (*heads["mu"].shape[:-1], *more))
                return value

            return checked

        def mean(outputs: Array) -> Array:
            flat = outputs.reshape(-1, *outputs.shape[-3:])
            pictures = likelihood.mean(px, flat)
            expect(f"{named['likelihood']}, mean", pictures, (len(flat), *image_shape))
            return pictures.reshape(*outputs.shape[:-3], *pictures.shape[1:])

        aggregate = _aggregate(autoencoder, posterior, q, latent)
        return Model(
            encode,
            sample,
            decode,
            log_likelihood,
            log_prior,
            log_posterior if posterior.log_prob else None,
            closed_form(posterior.kl, "kl", ()),
            closed_form(posterior.kl_by_dimension, "kl_by_dimension", (latent,)),
            mean,
            epoch,
        )

    def apply(
        variables: Variables,
        function: Callable[[Model], Any],
        key: Key[Array, ""] | None = None,
        train: bool = False,
        masks: PyTree = None,
        labels: Int[Array, " batch"] | None = None,
        epoch: Float[Array, ""] | float = jnp.inf,
        streams: Key[Array, ""] | None = None,
    ) -> tuple[Any, Variables]:
        networks, parts = split(variables)

        def run(autoencoder: Autoencoder) -> Any:
            return function(model(autoencoder, parts, labels, jnp.asarray(epoch)))

        result, updated = network.apply(networks, run, key, train, masks, streams)
        return result, join(updated, variables)

    def trace(
        variables: Variables, function: Callable[[Model], Any], key: Key[Array, ""] | None = None, train: bool = False
    ) -> Trace:
        networks, parts = split(variables)
        return network.trace(
            networks, lambda autoencoder: function(model(autoencoder, parts, None, jnp.asarray(jnp.inf))), key, train
        )

    def sample_prior(variables: Variables, key: Key[Array, ""], count: int) -> Latents:
        networks, (q, p, _) = split(variables)

        def run(autoencoder: Autoencoder) -> Latents:
            z = prior.sample(p, key, count, _aggregate(autoencoder, posterior, q, latent))
            expect(f"{named['prior']}, sample", z, (count, latent))
            return z

        return network.apply(networks, run)[0]

    def center(variables: Variables, heads: Heads) -> tuple[Latents, Array]:
        mu = heads["mu"]
        return transform(split(variables)[1][0], jnp.zeros((*mu.shape[:-1], latent), mu.dtype), heads)

    traced = on(platform, init), on(platform, apply), on(platform, trace), treat
    sampled = on(platform, sample_prior), on(platform, center)
    shared = network.ties, posterior, prior, likelihood, classes, latent, image_shape, platform
    return Composition(*traced, *sampled, *shared)


def _broadcast(heads: Heads, z: Latents) -> Heads:
    """Heads with the axes of samples that z has."""
    return {name: jnp.broadcast_to(head, (*z.shape[:-1], head.shape[-1])) for name, head in heads.items()}


def _aggregate(autoencoder: Autoencoder, posterior: Posterior, params: PyTree, latent: int) -> Aggregate:
    """The posterior at images of a prior's own."""

    def log_prob(z: Latents, images: Array) -> Array:
        assert posterior.log_prob
        heads, log_prob = autoencoder.encode(images), partial(posterior.log_prob, params)
        # What depends on an image alone is computed once for it, not for every z.
        each = jax.vmap(jax.vmap(log_prob, (None, 0)), (0, None))(z.reshape(-1, latent), heads)
        return each.reshape(*z.shape[:-1], len(images))

    def sample(key: Key[Array, ""], images: Array) -> Array:
        noise = jax.random.normal(key, (len(images), latent))
        return posterior.transform(params, noise, autoencoder.encode(images))[0]

    return Aggregate(log_prob, sample)


def _one_hot(labels: Int[Array, " batch"] | None, classes: int, dtype: Any) -> Array:
    if labels is None:
        raise UserError(f"model.classes: the networks are told one of {classes} labels for each image; found none")
    return jax.nn.one_hot(labels, classes, dtype=dtype)


def _with_planes(images: Array, labels: Int[Array, " batch"] | None, classes: int) -> Array:
    """Images with their label as further channels, one of which is all ones (the conditional VAE's encoder)."""
    if not classes:
        return images
    planes = _one_hot(labels, classes, images.dtype)[:, None, None, :]
    return jnp.concatenate([images, jnp.broadcast_to(planes, (*images.shape[:3], classes))], -1)


def _with_labels(z: Array, labels: Int[Array, " batch"] | None, classes: int) -> Array:
    """z with its label beside it (the conditional VAE's decoder, Sohn et al. 2015, section 4.1)."""
    if not classes:
        return z
    hot = _one_hot(labels, classes, z.dtype)
    samples = len(z) // len(hot)
    return jnp.concatenate([z, jnp.broadcast_to(hot, (samples, *hot.shape)).reshape(-1, classes)], -1)
