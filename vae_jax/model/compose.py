"""Puts the parts of a model together: adds the axis of samples, passes labels to the networks, and treats images.

The parts themselves do none of that.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from vae_jax.config import Config
from vae_jax.data.treatments import treatment_of
from vae_jax.device.platforms import Platform, on
from vae_jax.errors import UserError
from vae_jax.keys import objective_key, part_key, probing_key, step_keys
from vae_jax.likelihoods import Likelihood
from vae_jax.model.composition import PARTS, Composition
from vae_jax.model.fits import objective_network_names, refuse
from vae_jax.model.labels import with_labels, with_planes
from vae_jax.networks import Autoencoder, Network, Trace
from vae_jax.objectives import BoundModel, Objective
from vae_jax.objectives.base import make_draw
from vae_jax.part_outputs import Shape, expect
from vae_jax.posteriors import Heads, Latents, Posterior, Sample
from vae_jax.priors import Aggregate, Prior
from vae_jax.shapes import Size
from vae_jax.spec import Spec
from vae_jax.variables import Variables


def compose(
    config: Config,
    spec: Spec,
    network: Network,
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
    networks_of_objective = objective_network_names(config, objective, shape, image_shape)
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
            refuse("model.network", what, config.model.network)
        params, state = dict(variables.params), dict(variables.state)
        for name, made in parts.items():
            if isinstance(made, Variables):
                state[name], made = made.state, made.params
            if jax.tree.leaves(made):
                params[name] = made
        return Variables(params, state)

    def split(variables: Variables) -> tuple[Variables, dict[str, PyTree]]:
        """The networks' variables, and the parts' by name, as their functions take them."""
        networks, parts = (
            [{name: part for name, part in field.items() if (name in owned) == of_parts} for field in variables]
            for of_parts in (False, True)
        )
        params, state = parts
        given = {name: params.get(name, {}) for name in owned}
        if network.posterior:
            given |= dict.fromkeys(("posterior", "prior"), networks[0])
        return Variables(*networks), given | {name: Variables(given[name], part) for name, part in state.items()}

    def as_sample(result: Any, lead: Shape, what: str = "transform") -> Sample:
        if not isinstance(result, Sample) and not (isinstance(result, tuple) and len(result) == 2):
            raise UserError(f"{named['posterior']}, {what}: expected z and log q(z|x); found {type(result).__name__}")
        sample = result if isinstance(result, Sample) else Sample(*result)
        expect(f"{named['posterior']}, {what}, z", sample.z, (*lead, *shape))
        expect(f"{named['posterior']}, {what}, log q(z|x)", sample.log_q, lead)
        if sample.cost is not None:
            expect(f"{named['posterior']}, {what}, cost", sample.cost, lead)
        return sample

    def noise(key: Key[Array, ""], lead: tuple[Size, ...], dtype: Any) -> PyTree:
        return posterior.noise(key, lead) if posterior.noise else jax.random.normal(key, (*lead, *shape), dtype)

    def aggregate_of(
        autoencoder: Autoencoder, variables: PyTree, labels: Int[Array, " batch"] | None = None
    ) -> Aggregate:
        """The posterior, for priors."""
        return _aggregate(autoencoder, posterior, variables, noise, shape)._replace(labels=labels if classes else None)

    def draw_from(variables: PyTree, key: Key[Array, ""], heads: Heads, train: bool) -> Sample:
        lead, dtype = _lead(posterior, heads)
        return made_of(variables, noise(key, lead, dtype), heads, train)

    def made_of(variables: PyTree, noise: PyTree, heads: Heads, train: bool) -> Sample:
        transform = posterior.transform if train else posterior.exact or posterior.transform
        return as_sample(transform(variables, noise, heads), _lead(posterior, heads)[0])

    def center_of(variables: PyTree, heads: Heads) -> Sample:
        lead, dtype = _lead(posterior, heads)
        if posterior.center:
            return as_sample(posterior.center(variables, heads), lead, "center")
        shapes = jax.eval_shape(lambda key: noise(key, lead, dtype), probing_key())
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return as_sample((posterior.exact or posterior.transform)(variables, zeros, heads), lead)

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
            return autoencoder.encode(with_planes(images, labels, classes))

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
            if sample.state is not None and moved is not None:  # this whole pass sees the state before it
                moved["posterior"] = _moved_on(named["posterior"], parts["posterior"], sample.state)
            return sample

        def at(z: Latents) -> Array:
            assert density is not None
            return jnp.broadcast_to(density.astype(z.dtype), z.shape[: z.ndim - len(shape)])

        def sample(key: Key[Array, ""], heads: Heads, samples: int | None = None) -> tuple[Latents, Array]:
            return drawn(key, heads, samples)[:2]

        def decode(z: Latents) -> Array:
            outputs = autoencoder.decode(with_labels(z.reshape(-1, *shape), labels, classes))
            return outputs.reshape(*z.shape[: z.ndim - len(shape)], *outputs.shape[1:])

        def log_likelihood(images: Array, outputs: Array) -> Array:
            lead = outputs.shape[:-axes]
            images = jnp.broadcast_to(images, (*lead, *images.shape[1:])).reshape(-1, *images.shape[1:])
            log_px = likelihood.log_prob(px, outputs.reshape(-1, *outputs.shape[-axes:]), images)
            expect(f"{named['likelihood']}, log_prob", log_px, (images.shape[0],))
            return log_px.reshape(lead)

        def log_posterior(z: Latents, heads: Heads) -> Array:
            if density is not None:
                return at(z)
            assert posterior.log_prob
            still_heads, still_variables = lax.stop_gradient((heads, parts["posterior"]))
            lead = z.shape[: z.ndim - len(shape)]
            log_q = posterior.log_prob(still_variables, z, _broadcast(posterior, still_heads, lead))
            expect(f"{named['posterior']}, log_prob", log_q, lead)
            return log_q

        def log_prior(z: Latents, codes: Int[Array, "..."] | None = None) -> Array:
            """log p(z); `codes` are those of z, if they are known already."""
            if density is not None:
                return at(z)
            around = aggregate if codes is None else aggregate._replace(codes=lambda _: codes)
            log_pz = prior.log_prob(p, z, around)
            expect(f"{named['prior']}, log_prob", log_pz, z.shape[: z.ndim - len(shape)])
            return log_pz

        def closed_form(kl: Callable[..., Array] | None, name: str, more: tuple[int, ...]) -> Any:
            """The KL from the prior, if there is a closed form."""
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
            expect(f"{named['likelihood']}, mean", pictures, (flat.shape[0], *image_shape))
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
        part_states = {
            name: cast(Variables, moved.get(name, parts[name])).state for name in owned if name in variables.state
        }
        return result, Variables(variables.params, {**updated.state, **part_states})

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
        keys = step_keys(key)
        treated = images if jnp.issubdtype(images.dtype, jnp.floating) else treat(keys.treatment, images)

        def encode(autoencoder: Autoencoder) -> Heads:
            return autoencoder.encode(with_planes(treated, labels, classes))

        # As in training, since running statistics have not seen the images yet.
        heads = network.apply(networks, encode, keys.dropout, True, None, keys.streams)[0]
        made = make(parts["posterior"], keys.objective, lax.stop_gradient(heads))
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
        of_posterior = split(variables)[1]["posterior"]
        sample = center_of(of_posterior, heads)
        return (
            sample.codes
            if sample.codes is not None or not posterior.codes
            else posterior.codes.of(of_posterior, sample.z)
        )

    treat = treatment_of(spec, config.data.treatment)
    traced = on(platform, init), on(platform, apply), on(platform, trace), treat
    sampled = on(platform, begin), on(platform, sample_prior), on(platform, center), on(platform, center_codes)
    shared = network.ties, posterior, prior, likelihood, classes, latent, shape, spec, platform
    return Composition(*traced, *sampled, *shared)


def _broadcast(posterior: Posterior, heads: Heads, lead: Shape) -> Heads:
    """The heads, broadcast to z's axes of samples."""
    axes = len(_lead(posterior, heads)[0])
    return {name: jnp.broadcast_to(head, (*lead, *head.shape[axes:])) for name, head in heads.items()}


def _lead(posterior: Posterior, heads: Heads) -> tuple[Shape, Any]:
    """The heads' leading axes, and their type."""
    name, size = next(iter(posterior.heads.items()))
    return heads[name].shape[: heads[name].ndim - (len(size) if isinstance(size, tuple) else 1)], heads[name].dtype


def _moved_on(what: str, variables: PyTree, state: PyTree) -> Variables:
    """The part's variables with a new state, which must have the old one's structure, shapes and types.

    Raises:
        UserError: if it has not.
    """
    if not isinstance(variables, Variables):
        raise UserError(f"{what}, transform: expected no state, since its init gives none; found one")
    before, after = (
        jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree) for tree in (variables.state, state)
    )
    if before != after:
        raise UserError(f"{what}, transform: expected the state {before!s:.200} of its init; found {after!s:.200}")
    return variables._replace(state=state)


def _aggregate(
    autoencoder: Autoencoder, posterior: Posterior, variables: PyTree, noise: Callable[..., PyTree], shape: Shape
) -> Aggregate:
    """The posterior at images that a prior chooses."""

    def log_prob(z: Latents, images: Array) -> Array:
        assert posterior.log_prob
        heads, log_prob = autoencoder.encode(images), partial(posterior.log_prob, variables)
        # Values of an image alone are computed once for it, not for every z.
        log_probs = jax.vmap(jax.vmap(log_prob, (None, 0)), (0, None))(z.reshape(-1, *shape), heads)
        return log_probs.reshape(*z.shape[: z.ndim - len(shape)], len(images))

    def sample(key: Key[Array, ""], images: Array) -> Array:
        noise = (
            posterior.noise(key, (len(images),)) if posterior.noise else jax.random.normal(key, (len(images), *shape))
        )
        return posterior.transform(variables, noise, autoencoder.encode(images))[0]

    if codes := posterior.codes:
        return Aggregate(log_prob, sample, variables, partial(codes.of, variables), partial(codes.vectors, variables))
    return Aggregate(log_prob, sample, variables)
