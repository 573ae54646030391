"""A split's figures: an objective's terms of every image, without training."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

from vae_jax.blocks.convolution import is_slow_in_loops
from vae_jax.config import Config, as_used, numbers_of
from vae_jax.device.devices import Devices
from vae_jax.device.feed import Feed, Shard
from vae_jax.errors import UserError, argument
from vae_jax.keys import batch_keys, further_key, probing_key
from vae_jax.model.batches import block, in_batches
from vae_jax.model.composition import Composition
from vae_jax.objectives import BoundModel, Objective, Terms
from vae_jax.objectives.base import in_order
from vae_jax.options import NO_NUMBERS
from vae_jax.programs.dependence import depends
from vae_jax.programs.sizes import check_memory, largest_product
from vae_jax.variables import Variables

# The name of every image's codes, (images, places), among the terms, if z are made of codes; no figure has it.
CODES = "codes of images"


class Evaluator:
    """Evaluates an objective: (variables, key) -> its figures by name, (images,) each."""

    def __init__(self, config: Config, feed: Feed, evaluate: Any, block: int, devices: Devices):
        """Prepares the evaluation of a feed's images; nothing is compiled yet.

        Args:
            config: of the run.
            feed: of the images.
            evaluate: compiled, see `make_terms`.
            block: images that are evaluated together.
            devices: to evaluate on.
        """
        self._config, self._feed, self._evaluate, self._block = config, feed, evaluate, block
        self._numbers = devices.whole(numbers_of(config))
        self._size = self._product = 0  # images of a call and bytes of its largest product, known once it is lowered
        self._ready: Future | None = None  # a program that a call needs, see `prepare`

    def __call__(self, variables: Variables, key: Key[Array, ""]) -> Terms:
        """The terms of all images.

        Raises:
            NotEnough: if they do not fit into memory.
        """
        if self._ready:
            self._ready.result()
        elif not self._size:
            self._lower(variables, key)
            self.check()
        parts = []
        for shard in self._feed.shards():
            count = shard.last - shard.first
            for first in range(0, count, self._size):
                chosen = slice(first, min(first + self._size, len(shard.images)))
                valid = np.int32(min(self._size, count - first))  # of spread images, or of a last shard, some are not
                terms = self._evaluate(*self._arguments(variables, key, shard, chosen), valid, self._numbers)
                parts.append(jax.tree.map(lambda part, left=count - first: part[:left], terms))
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *part: jnp.concatenate(part), *parts)

    def prepare(self, variables: Variables, key: Key[Array, ""], pool: Executor) -> None:
        """Begins to compile the program of a call with such variables; the call waits for it."""
        lowered, (images, _) = self._lower(variables, key), self._feed.shapes
        if self._size == images.shape[0] or images.sharding is None:  # jax chooses where parts of spread images lie
            self._ready = pool.submit(lowered.compile)

    def check(self) -> None:
        """Refuses a call that will not fit into memory, once it is prepared.

        Raises:
            NotEnough: as a call does.
        """
        samples = as_used(self._config, "objective.samples", "objective.groups")
        what = samples or f"model.network {self._config.model.network}"
        check_memory(self._product, f"{what}: evaluating {self._block} images at a time")

    def _lower(self, variables: Variables, key: Key[Array, ""]) -> jax.stages.Lowered:
        """The lowered program of a call; also sets how many images a call takes."""
        images, labels = self._feed.shapes
        zero = np.int32(0)
        arguments = variables, images, labels if self._config.model.classes else None, zero, key, zero, self._numbers
        traced = self._evaluate.trace(*arguments)
        self._product = largest_product(traced.jaxpr)
        lowered = traced.lower()
        count = images.shape[0]
        self._size = min(self._block, count) if is_slow_in_loops(lowered) else count
        if self._size == count:
            return lowered
        first = [shape if shape is None else _shortened(shape, self._size) for shape in arguments[1:3]]
        return self._evaluate.lower(variables, *first, *arguments[3:])

    def _arguments(self, variables: Variables, key: Key[Array, ""], shard: Shard, chosen: slice) -> tuple[Any, ...]:
        number = np.int32((shard.first + chosen.start) // self._block)
        images, labels = shard.images, shard.labels
        if chosen != slice(0, len(images)):
            images, labels = images[chosen], None if labels is None else labels[chosen]
        return variables, images, labels, number, key


def _shortened(shape: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *shape.shape[1:]), shape.dtype)


def make_evaluator(
    config: Config,
    composition: Composition,
    objective: Objective,
    images: Shaped[np.ndarray, "images *stored"],
    latent: str = "sample",
    labels: Int[np.ndarray, " images"] | None = None,
    devices: Devices | None = None,
) -> Evaluator:
    """The evaluator of an objective on these images: (variables, key) -> its terms, (images,) each.

    Args:
        config: of the run.
        composition: built from it.
        objective: built from it.
        images: to evaluate on.
        latent: "sample" draws z from the posterior; "mean" takes its mean (of a flow, its centre). Of a posterior
            that has but one z both are that.
        labels: of the images, if the model gets them.
        devices: to evaluate on, together; by default one.
    """
    if latent not in ("sample", "mean"):
        raise UserError(f"{argument('latent')}: expected sample or mean; found {latent!r}")
    if composition.posterior.single:  # its centre is its only sample
        latent = "sample"
    if latent == "mean" and looks_at_densities(config, composition, objective):
        parts = f"posterior {config.posterior.name} and prior {config.prior.name}"
        raise UserError(
            f"{argument('latent')}: expected sample, since with objective {config.objective.name}, "
            f"{f'network {config.model.network}' if composition.posterior.decodes else parts} the loss is made of "
            f"densities at samples of z; found mean"
        )
    devices = devices or Devices()
    size = block(config, objective, len(images))
    feed = Feed(images, config.train.shard_images, size, labels, devices)
    terms = make_terms(config, composition, objective, size, latent, devices)
    return Evaluator(config, feed, jax.jit(terms, **devices.outputs), size, devices)


def make_terms(
    config: Config,
    composition: Composition,
    objective: Objective,
    size: int | None = None,
    latent: str = "sample",
    devices: Devices | None = None,
) -> Callable[..., Terms]:
    """(variables, images of a split, labels, first, key, valid, numbers) -> the images' terms, to be compiled.

    The images' batches, of `size` images, are numbered from `first` on; a batch's key is made of its number. The terms
    of images from number `valid` on are meaningless. For `numbers` see `vae_jax.training.state.Fixed`.
    """

    def evaluate(
        variables: Variables,
        images: Shaped[Array, "images *stored"],
        labels: Int[Array, " images"] | None,
        first: Int[Array, ""],
        key: Key[Array, ""],
        valid: Int[Array, ""] | None = None,
        numbers: Mapping[str, Any] = NO_NUMBERS,
    ) -> Terms:
        options = config.objective.options_with(numbers)

        def batch(number, images, labels):
            _, treatment_key = batch_keys(key, number)
            images = devices.split(images) if devices else images
            treated = composition.treat(treatment_key, images)

            def terms(model: BoundModel) -> Terms:
                result = {}
                for place, phase in enumerate(objective.phases):
                    phase_key, _ = batch_keys(further_key(key, place) if place else key, number)
                    result |= phase.terms(phase_key, model, treated, options)
                if (codes := composition.posterior.codes) and model.codes:
                    draw = model.draw(batch_keys(key, number)[0], treated)
                    codes_of_z = model.codes(draw.z) if draw.codes is None else draw.codes
                    result[CODES] = codes.numbered(codes_of_z).reshape(len(treated), -1)
                return result

            density = jnp.asarray(jnp.nan) if latent == "mean" else None
            return composition.apply(variables, terms, labels=labels, density=density)[0]

        return in_batches(batch, len(images), images, labels, first=first, size=size, valid=valid)

    return evaluate


def looks_at_densities(config: Config, composition: Composition, objective: Objective) -> bool:
    """Whether the objective's terms depend on densities at samples of z, which no single z can replace.

    A KL that is estimated from them does, and so does an importance-weighted bound.
    """

    def terms(density: Array, variables: Variables, images: Array, labels: Array | None) -> Terms:
        def of(model: BoundModel) -> Terms:
            return objective.terms(probing_key(), model, images, config.objective.options)

        return composition.apply(variables, of, labels=labels, density=density)[0]

    variables = jax.eval_shape(composition.init, probing_key())
    images = jnp.zeros((2, *composition.image_shape))
    labels = jax.ShapeDtypeStruct((2,), jnp.int32) if composition.classes else None
    return depends(terms, jnp.zeros(()), variables, images, labels)


def means(terms: Terms) -> dict[str, float]:
    """The figures' means over images, in double precision; for codes, their usage."""
    figures = {name: float(np.asarray(terms[name], np.float64).mean()) for name in in_order(terms) if name != CODES}
    return figures | (usage(np.asarray(terms[CODES])) if CODES in terms else {})


def usage(codes: Int[np.ndarray, "images places"]) -> dict[str, float]:
    """How many codes are used, and the perplexity of their use: exp of its entropy.

    It is taken over all places of all images at once: a mean over batches would depend on their size.
    """
    _, counts = np.unique(codes, return_counts=True)  # there may be far more codes than places
    shares = counts / codes.size
    return {"codes_used": float(len(shares)), "perplexity": float(np.exp(-(shares * np.log(shares)).sum()))}
