"""Autoregressive priors over codes: the probabilities of a code depend on the codes before it.

Arrays have the axes of places first, then the batch, then channels: places are shifted and looped over.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp, softmax
from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.posteriors import Codes, Latents
from vae_jax.priors.base import Aggregate, Prior

MOST_VALUES = 1 << 16  # of a code

Number = float | Float[Array, ""]
Maps = Int[Array, "*places batch"]  # of codes
Labels = Int[Array, " batch"] | None
Drawn = tuple[Int[Array, "..."], Float[Array, " batch"]]  # codes and their log-probability
Pick = Callable[[int | Int[Array, ""], Float[Array, "batch values"]], Drawn]  # of a place, by its number


class Network(NamedTuple):
    """An autoregressive network over codes in raster order, the last axis of their shape fastest.

    Attributes:
        init: key -> params.
        embed: (params, codes (*places, batch)) -> (*places, batch, channels).
        logits: (params, embedded codes, labels) -> (*places, batch, values); a place's logits depend on the codes
            before it only.
        draw: (params, count, labels, pick) -> codes, (*places, count), and the sum over places of the log-probabilities
            that `pick` gives, (count,).
    """

    init: Callable[[Key[Array, ""]], PyTree]
    embed: Callable[[PyTree, Maps], Float[Array, "*places batch channels"]]
    logits: Callable[[PyTree, Float[Array, "*places batch channels"], Labels], Float[Array, "*places batch values"]]
    draw: Callable[[PyTree, int, Labels, Pick], Drawn]


def prior_of(network: Network, codes: Codes, classes: int) -> Prior:
    """p(k) = Π p(k_i | k_<i) over the codes that z are made of; with classes, p(k | label).

    Raises:
        UserError: if there are more codes than MOST_VALUES.
    """
    axes = len(codes.shape)
    if codes.values > MOST_VALUES:
        raise UserError(
            f"prior.name: expected uniform over more than {MOST_VALUES:,} codes at a place, each of which would take a "
            f"logit; found one that is learned, and {codes.values:,} codes"
        )

    def log_prob(params: PyTree, z: Float[Array, "..."], aggregate: Aggregate) -> Float[Array, "*batch"]:
        assert aggregate.codes
        codes_of_z = lax.stop_gradient(aggregate.codes(lax.stop_gradient(z)))
        lead = codes_of_z.shape[: codes_of_z.ndim - axes]
        maps = jnp.moveaxis(codes_of_z.reshape(-1, *codes.shape), 0, -1)
        return log_prob_of(network, params, maps, _labels(aggregate, classes, lead)).reshape(lead)

    def sample(
        params: PyTree,
        key: Key[Array, ""],
        count: int,
        aggregate: Aggregate,
        *,
        temperature: Number = 1.0,
        top_p: Number = 1.0,
    ) -> Latents:
        assert aggregate.vectors
        labels = _labels(aggregate, classes, (count,))
        maps, _ = draw(network, params, key, count, labels, temperature, top_p)
        return aggregate.vectors(jnp.moveaxis(maps, -1, 0))

    return Prior(log_prob, sample, network.init, support="codes", of_codes=True, how=("temperature", "top_p"))


def log_prob_of(network: Network, params: PyTree, maps: Maps, labels: Labels = None) -> Float[Array, " batch"]:
    """log p of maps of codes, in nats."""
    logits = network.logits(params, network.embed(params, maps), labels)
    log_prob = log_prob_at(logits, maps)
    return log_prob.sum(range(log_prob.ndim - 1))


def log_prob_at(logits: Float[Array, "*any values"], codes: Int[Array, "*any"]) -> Float[Array, "*any"]:
    """The log-probability of a code at every place."""
    # A sum over all values, and its gradient, share the loop of logsumexp; a gather would need another loop.
    numbers = lax.broadcasted_iota(codes.dtype, logits.shape, codes.ndim)
    is_code = numbers == jnp.broadcast_to(codes[..., None], logits.shape)
    return jnp.where(is_code, logits, 0).sum(-1) - logsumexp(logits, -1)


def draw(
    network: Network,
    params: PyTree,
    key: Key[Array, ""],
    count: int,
    labels: Labels = None,
    temperature: Number = 1.0,
    top_p: Number = 1.0,
) -> Drawn:
    """Maps of codes (*places, count), drawn place by place, and their log p without temperature and top_p, in nats.

    Args:
        network: that gives the logits.
        params: of the network.
        key: of all places.
        count: how many maps.
        labels: of the maps, if the network gets them.
        temperature: divides the logits; 0 takes the most probable code.
        top_p: codes are drawn from the most probable ones, as many as reach this probability together (nucleus
            sampling; Holtzman et al. 2020, section 3.1).
    """

    def pick(place: int | Int[Array, ""], logits: Float[Array, "batch values"]) -> Drawn:
        codes = choose(jax.random.fold_in(key, place), logits, temperature, top_p)
        return codes, log_prob_at(logits, codes)

    return network.draw(params, count, labels, pick)


def choose(
    key: Key[Array, ""], logits: Float[Array, "batch values"], temperature: Number, top_p: Number
) -> Int[Array, " batch"]:
    """One code a row, see `draw`."""
    logits = logits - logits.max(-1, keepdims=True)  # so that the largest stays 0 at the temperature 0
    logits = logits / jnp.maximum(temperature, jnp.finfo(logits.dtype).tiny)
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)

    def among_all() -> Int[Array, " batch"]:
        return jnp.argmax(logits + noise, -1).astype(jnp.int32)

    def among_the_most_probable() -> Int[Array, " batch"]:
        numbers = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        falling, numbers = lax.sort_key_val(-logits, numbers)
        probabilities = softmax(-falling, -1)
        before = jnp.cumsum(probabilities, -1) - probabilities
        kept = (before < top_p) | (lax.broadcasted_iota(jnp.int32, logits.shape, 1) == 0)
        best = jnp.argmax(jnp.where(kept, noise - falling, -jnp.inf), -1)
        return jnp.take_along_axis(numbers, best[:, None], -1)[:, 0]

    # At 1 no code is left out, whatever the rounding of the sums.
    return lax.cond(jnp.asarray(top_p) < 1, among_the_most_probable, among_all)


def affine(params: PyTree, x: Float[Array, "*any _inputs"]) -> Float[Array, "*any _outputs"]:
    """A linear layer, {"kernel": (inputs, outputs), "bias": (outputs,)}."""
    y = x @ params["kernel"]
    return y + jnp.broadcast_to(params["bias"], y.shape)


def _labels(aggregate: Aggregate, classes: int, lead: tuple[int, ...]) -> Labels:
    """The label of every z.

    Raises:
        UserError: if the prior needs labels and there are none.
    """
    if not classes:
        return None
    if aggregate.labels is None:
        raise UserError(
            f"model.classes: expected one of {classes} labels for each image, which the prior needs; found none"
        )
    return jnp.broadcast_to(aggregate.labels, lead).reshape(-1)
