"""Builds a configuration's model and objective, once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, UInt

from vae_jax import likelihoods, networks, objectives, posteriors, priors
from vae_jax.config import PARTS as ALL_PARTS
from vae_jax.config import Config, check_used, entry_of
from vae_jax.config.parts import registry_of
from vae_jax.device.platforms import Platform, current
from vae_jax.errors import UserError, listed
from vae_jax.keys import begin_key, probing_key, step_keys
from vae_jax.likelihoods import Likelihood
from vae_jax.model.compose import compose
from vae_jax.model.composition import Composition
from vae_jax.model.fits import check, check_hierarchy, refuse
from vae_jax.objectives import BoundModel, Objective
from vae_jax.posteriors import Posterior
from vae_jax.priors import Prior
from vae_jax.registry import check_functions
from vae_jax.shapes import Shapes
from vae_jax.spec import spec_of
from vae_jax.variables import Variables

ArrayLike = Array | np.ndarray


class Built(NamedTuple):
    """A model and its objective, as pure functions of its variables, for training loops of your own.

        model = vae_jax.build(config, data.image_shape)
        variables = model.init(jax.random.key(0))
        gradient, (terms, updated) = jax.grad(model.loss, has_aux=True)(variables.params, variables.state, images, key)

    Attributes:
        composition: the model.
        objective: that is minimised.
    """

    composition: Composition
    objective: Objective

    def init(
        self,
        key: Key[Array, ""],
        images: UInt[ArrayLike, "batch *stored"] | Float[ArrayLike, "batch *shape"] | None = None,
        labels: Int[Array, " batch"] | None = None,
    ) -> Variables:
        """The model's first variables; with images, parts that are made of data, as a codebook, are made of them."""
        variables = self.composition.init(key)
        if images is None:
            return variables
        return self.composition.begin(variables, begin_key(key), jnp.asarray(images), labels)

    def terms(
        self,
        variables: Variables,
        images: UInt[ArrayLike, "batch *stored"] | Float[ArrayLike, "batch *shape"],
        key: Key[Array, ""],
        labels: Int[Array, " batch"] | None = None,
        epoch: Float[Array, ""] | float = jnp.inf,
        train: bool = False,
    ) -> tuple[objectives.Terms, Variables]:
        """The figures of a batch, (batch,) each, of the objective's first phase, and the updated variables.

        Args:
            variables: of the model.
            images: uint8, which are treated as `data.treatment` says; or treated floats in [0, 1], with respect to
                which the terms may be differentiated. Examples of other kinds: floats, or categories.
            key: of a step: the treatment, the noise and dropout.
            labels: of the images, if the model gets them.
            epoch: epochs trained, for schedules; infinite once they have ended.
            train: with dropout, and with BatchNorm's statistics of the batch, which update the running ones.
        """
        keys, images = step_keys(key), jnp.asarray(images)
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        targets = images if floats else self.composition.treat(keys.treatment, images)
        more = {"train": train, "streams": keys.streams if train else None}
        return self.composition.apply(
            variables,
            lambda model: self.objective.terms(keys.objective, model, targets, self.objective.options),
            keys.dropout if train else None,
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
# The last models built, with the parts that they are made of: a run builds its model in several places.
_built: dict[Any, tuple[Built, tuple[Any, ...]]] = {}


def build(config: Config, image_shape: tuple[int, ...], platform: Platform | None = None) -> Built:
    """The configured model and objective, made once for a configuration.

    Args:
        config: of the model.
        image_shape: (height, width, channels), or the shape of an example of another kind, as the networks take it.
        platform: to run on; by default this process's.

    Raises:
        UserError: if the configuration does not fit together.

    Examples:
        >>> import jax
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> model = vae_jax.build(config, data.image_shape)
        >>> variables = model.init(jax.random.key(0))
        >>> terms, _ = model.terms(variables, data.train.images[:4], jax.random.key(1))
        >>> {name: figure.shape for name, figure in terms.items()}
        {'loss': (4,), 'reconstruction': (4,), 'kl': (4,)}
    """
    platform = platform or current()
    try:
        # A name may come to stand for another part, as when a user's file has changed.
        entries = tuple(entry_of(section, getattr(config, section).part) for section in ALL_PARTS)
    except UserError:  # `_build` raises it again
        return _build(config, image_shape, platform)
    key = config, tuple(image_shape), platform, tuple(map(id, entries))
    if key not in _built:
        _built[key] = _build(config, image_shape, platform), entries
        if len(_built) > MOST_BUILT:
            del _built[next(iter(_built))]
    return _built[key][0]


def _build(config: Config, image_shape: tuple[int, ...], platform: Platform) -> Built:
    spec = spec_of(config.data.kind, image_shape)
    if not spec.is_picture:  # so that options for images only are refused
        config = replace(config, data=replace(config.data, kind=spec.kind))
    objective = objectives.in_units_of(objectives.get(config.objective), spec.noun)
    check_used(config, objective.generative)
    shapes = Shapes(spec.shape, config.model.latent, config.model.classes, support=spec.support)
    shapes = shapes._replace(places=lambda: networks.places(config.model, spec))
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
        refuse("posterior.name", f"{config.posterior.name} to have a head mu", listed(posterior.heads) or "none")
    shapes = shapes._replace(heads=posterior.heads, outputs=likelihood.outputs)
    network = networks.build(config.model, shapes)
    if network.posterior and network.prior:
        check_hierarchy(config, objective)
        posterior, prior = network.posterior, network.prior
    check(config, posterior, prior, likelihood, objective, network.ties, shapes)
    composition = compose(config, spec, network, posterior, prior, likelihood, objective, platform)

    def trace(look: Callable[[BoundModel, Any], objectives.Terms]) -> objectives.Terms:
        def terms(variables: Variables, images: Array, labels: Array) -> objectives.Terms:
            return composition.apply(variables, lambda model: look(model, images), labels=labels)[0]

        variables = jax.eval_shape(composition.init, probing_key())
        images = jax.ShapeDtypeStruct((2, *spec.shape), jnp.result_type(float))
        return jax.eval_shape(terms, variables, images, jax.ShapeDtypeStruct((2,), jnp.int32))

    options = config.objective.options
    if posterior.units or config.posterior.name not in registry_of("posterior"):  # the posterior may have figures
        objective = objective._replace(figures=None, units={**posterior.units, **objective.units})
        objective = objectives.in_units_of(objective, spec.noun)
    if posterior.codes:
        objective = objective._replace(units={**objective.units, "codes_used": "codes", "perplexity": "codes"})
    objective = objective._replace(figures=objectives.figures_of(objective, trace, options), options=options)
    return Built(composition, objectives.checked(objective, config.objective.name))
