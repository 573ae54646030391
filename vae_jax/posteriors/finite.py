"""Quantisation without a codebook: a dimension is rounded to one of its levels (FSQ), or to its sign (LFQ)."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from vae_jax.errors import UserError
from vae_jax.options import FILLED
from vae_jax.posteriors.base import Codes, Heads, Latents, Posterior, Sample
from vae_jax.posteriors.places import over_codes, places_of, precise
from vae_jax.shapes import Shapes

EPSILON = 1e-3  # by which the bound goes beyond the outermost levels, so that they are reached; of up to 1000 levels
MOST_CODES = 2**31 - 1  # numbered in 32 bits
MOST_SIGNS = 30  # with which the number of codes fits 32 bits


@dataclass(frozen=True)
class FSQOptions:
    """Of fsq.

    Attributes:
        levels: values of each dimension of a code, first to last; their product is the number of codes.
        places: the shape of the codes of an image, as [7, 7]; null takes the network's own map.
    """

    levels: Annotated[tuple[int, ...], "[1, 512]", FILLED] = (8, 5, 5, 5)
    places: Annotated[tuple[int, ...] | None, "[1, 65536]"] = None

    def __post_init__(self):
        if (least := min(self.levels)) < 3:
            raise UserError(
                f"posterior.levels: expected at least 3 levels a dimension, since the bound of 2 is all but flat at 0 "
                f"(lfq has 2); found {least}"
            )
        if (codes := math.prod(self.levels)) > MOST_CODES:
            raise UserError(f"posterior.levels: expected a product of at most {MOST_CODES:,}; found {codes:,}")


@dataclass(frozen=True)
class LFQOptions:
    """Of lfq.

    Attributes:
        places: the shape of the codes of an image, as [7, 7]; null takes the network's own map.
        commitment: weight of the encoder's squared distance from its code.
        entropy: weight of the entropy term in nats: the entropy of a place's signs less that of their batch mean.
        diversity: factor of the batch mean's entropy in this term.
        temperature: of the signs' probabilities in the entropy terms.
    """

    places: Annotated[tuple[int, ...] | None, "[1, 65536]"] = None
    commitment: Annotated[float, "[0, inf)"] = 0.25
    entropy: Annotated[float, "[0, inf)"] = 0.1
    diversity: Annotated[float, "[0, inf)"] = 1.0
    temperature: Annotated[float, "(0, inf)"] = 1.0


def fsq(options: FSQOptions, shapes: Shapes) -> Posterior:
    """All of q(z|x) on the encoder's vector with its dimensions bounded and rounded to levels (FSQ).

    (Mentzer et al. 2024, arXiv 2309.15505, section 3.) A dimension with L levels is rounded from
    (L − 1)(1 + ε)/2 · tanh(u + a) − o, where o is ½ for even L and 0 for odd and a = artanh(2o/((L − 1)(1 + ε))), so
    that u = 0 is bounded to 0, and divided by ⌊L/2⌋: its levels lie between −1 and 1. The authors' code has tan instead
    of artanh, by mistake. Nothing is learned and the loss gets no term; the gradient is the bound's.
    """
    places, latent, levels = places_of(options.places, shapes), shapes.latent, np.asarray(options.levels)
    if latent != len(levels):
        raise UserError(
            f"model.latent: expected {len(levels)}, as many dimensions as posterior.levels has; found {latent}"
        )
    shape, values = (*places, latent), math.prod(options.levels)
    half, offset = levels // 2, np.where(levels % 2 == 0, 0.5, 0.0)
    reach = (levels - 1) * (1 + EPSILON) / 2
    shift = np.arctanh(offset / reach)
    # The first dimension varies fastest.
    basis = np.cumprod([1, *options.levels[:-1]])

    def along(numbers: Any, like: Array) -> Array:
        """One number a dimension, in the shape and type of an array whose last axis is the dimensions."""
        return jnp.broadcast_to(jnp.asarray(numbers, like.dtype), like.shape)

    def bounded(u: Float[Array, "*any latent"]) -> Float[Array, "*any latent"]:
        return along(reach, u) * jnp.tanh(u + along(shift, u)) - along(offset, u)

    def center(variables: PyTree, heads: Heads) -> Sample:
        inside = bounded(precise(heads["mu"]))
        rounded = lax.stop_gradient(jnp.round(inside)) + (inside - lax.stop_gradient(inside))
        lead = inside.shape[: -len(shape)]
        z = rounded / along(half, inside)
        return Sample(z, jnp.zeros(lead), codes=codes_of(variables, lax.stop_gradient(z)))

    def transform(variables: PyTree, noise: PyTree, heads: Heads) -> Sample:
        return center(variables, heads)

    def codes_of(variables: PyTree, z: Latents) -> Int[Array, "..."]:
        wide = precise(z)
        levels_from_0 = jnp.round(wide * along(half, wide)).astype(jnp.int32) + along(half, wide.astype(jnp.int32))
        return (levels_from_0 * along(basis, levels_from_0)).sum(-1, dtype=jnp.int32)

    def vectors_of(variables: PyTree, codes: Int[Array, "..."]) -> Latents:
        numbers_by_dimension = jnp.broadcast_to(codes[..., None], (*codes.shape, latent)).astype(jnp.int32)
        levels_from_0 = numbers_by_dimension // along(basis, numbers_by_dimension) % along(levels, numbers_by_dimension)
        middle = along(half, numbers_by_dimension)
        return (levels_from_0 - middle) / middle

    return over_codes(Codes(values, places, codes_of, vectors_of), shape, transform, center, noise=lambda key, lead: ())


def lfq(options: LFQOptions, shapes: Shapes) -> Posterior:
    """All of q(z|x) on the signs of the encoder's vectors, z ∈ {−1, 1}^D, which are 2^D codes (LFQ).

    (Lookup-free quantisation; Yu et al. 2024, arXiv 2310.05737, section 3.1.) The cost is a commitment Σ‖E − sg(z)‖²,
    plus the entropy of the places' codes, less that of the batch's mean code times the number of places. A code's
    probability is a softmax of −‖E − z‖²/τ: a product over dimensions, with P(z_j = 1) = σ(4E_j/τ), so that a place's
    entropy is exactly a sum over dimensions. The mean's entropy is summed over dimensions too, which ignores their
    dependence: it is an upper bound of the entropy of the mean over 2^D codes. It is a number of the batch and is added
    to the cost of every image.
    """
    places, latent = places_of(options.places, shapes), shapes.latent
    if latent > MOST_SIGNS:
        raise UserError(
            f"model.latent: expected at most {MOST_SIGNS} with posterior lfq, whose codes are numbered in 32 bits; "
            f"found {latent}"
        )
    shape = (*places, latent)
    basis = 2 ** np.arange(latent)

    def center(variables: PyTree, heads: Heads) -> Sample:
        vectors = precise(heads["mu"])
        lead = vectors.shape[: -len(shape)]
        signs = lax.stop_gradient(jnp.where(vectors >= 0, 1.0, -1.0).astype(vectors.dtype))
        z = signs + (vectors - lax.stop_gradient(vectors))
        inside = tuple(range(len(lead), vectors.ndim))
        commitment = options.commitment * jnp.square(vectors - signs).sum(inside)
        logits = 4 * vectors / options.temperature
        entropy = binary_entropy(logits).sum(inside)
        # As logits, so that the entropy is exact also if the signs are nearly certain.
        axes = tuple(range(vectors.ndim - 1))
        up, down = (jax.nn.logsumexp(jax.nn.log_sigmoid(signed_logits), axes) for signed_logits in (logits, -logits))
        diversity = float(math.prod(places)) * binary_entropy(up - down).sum()
        cost = commitment + options.entropy * (entropy - options.diversity * diversity)
        figures = {"commitment": commitment, "entropy": entropy, "entropy_of_mean": diversity}
        return Sample(z, jnp.zeros(lead), cost, figures=figures, codes=codes_of(variables, signs))

    def transform(variables: PyTree, noise: PyTree, heads: Heads) -> Sample:
        return center(variables, heads)

    def codes_of(variables: PyTree, z: Latents) -> Int[Array, "..."]:
        bits = (z > 0).astype(jnp.int32)
        return (bits * jnp.broadcast_to(jnp.asarray(basis, jnp.int32), bits.shape)).sum(-1, dtype=jnp.int32)

    def vectors_of(variables: PyTree, codes: Int[Array, "..."]) -> Latents:
        numbers_by_dimension = jnp.broadcast_to(codes[..., None], (*codes.shape, latent)).astype(jnp.int32)
        bits = numbers_by_dimension // jnp.broadcast_to(jnp.asarray(basis, jnp.int32), numbers_by_dimension.shape) % 2
        return (2 * bits - 1).astype(jnp.result_type(float))

    nats = "nats per image"
    return over_codes(
        Codes(2**latent, places, codes_of, vectors_of),
        shape,
        transform,
        center,
        noise=lambda key, lead: (),
        units={"commitment": "squared distance per image", "entropy": nats, "entropy_of_mean": nats},
    )


def binary_entropy(logits: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The entropy of a bit with these logits, in nats: −p log p − (1 − p) log(1 − p), with p = σ(logit)."""
    p = jax.nn.sigmoid(logits)
    return -p * jax.nn.log_sigmoid(logits) - (1 - p) * jax.nn.log_sigmoid(-logits)
