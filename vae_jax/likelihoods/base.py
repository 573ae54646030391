"""Likelihoods: they turn the decoder's output into a distribution of images."""

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key, PyTree

from vae_jax.blocks.tiles import Features, Images
from vae_jax.posteriors.base import no_parameters

Outputs = Float[Array, "batch *places outputs"]


def sum_pixels(features: Features) -> Float[Array, " batch"]:
    """The sum over an image's pixels."""
    return features.sum(tuple(range(1, features.ndim - 1))).reshape(-1)


class Likelihood(NamedTuple):
    """A likelihood p(x|z) of images (batch, height, width, channels) in [0, 1], or of examples of other shapes.

    Attributes:
        outputs: numbers that it needs from the decoder for each channel of a pixel. The decoder's output is
            (batch, height, width, outputs·channels), the first number of all channels before the second of any.
        log_prob: (params, decoder's output, images) -> log p(x|z), (batch,), in nats, summed over pixels.
        mean: (params, decoder's output) -> E[x|z], (batch, height, width, channels): the picture to show.
        init: key -> params, beside the decoder's.
        treatments: for which it is a likelihood, see `data.treatment`.
        reason: why it is none for the rest.
        measure: the kind of its values: one of MEASURES, or a user's word; if it is empty, values compare only with
            those of the same likelihood.
        over: kinds of numbers that an example may have, see `vae_jax.spec.Kind`.
        interval: least and most that real numbers may be, both included; None for any.
    """

    outputs: int
    log_prob: Callable[[PyTree, Outputs, Images], Float[Array, " batch"]]
    mean: Callable[[PyTree, Outputs], Images]
    init: Callable[[Key[Array, ""]], PyTree] = no_parameters
    treatments: tuple[str, ...] = ("grey", "static", "dynamic", "dequantized")
    reason: str = ""
    measure: str = ""
    over: tuple[str, ...] = ("levels",)
    interval: tuple[float, float] | None = None


# Kinds of values of a likelihood; different ones are no more comparable than metres and seconds.
MEASURES = {
    "binary": "probabilities",  # of pixels that are 0 or 1
    "levels": "probabilities",  # of the 256 grey levels
    "density": "densities",  # of a pixel's value in [0, 1] or of real numbers, by Lebesgue's measure
    "categories": "probabilities",
}
TREATED = {
    "grey": "grey levels",
    "static": "statically binarised pixels",
    "dynamic": "dynamically binarised pixels",
    "dequantized": "dequantised grey levels",
}


def described(treatment: str, support: str = "levels") -> str:
    """A model's data in words; `support` is the kind of their numbers, see `vae_jax.spec.Kind`."""
    return TREATED[treatment] if support == "levels" else {"reals": "real numbers"}.get(support, support)


def measured(likelihood: Likelihood, name: str, treatment: str, support: str = "levels") -> str:
    """The kind of a likelihood's values for data of a treatment, in words; values of different kinds do not compare.

    Args:
        likelihood: which one.
        name: its name in the configuration, for a likelihood without a measure.
        treatment: see `data.treatment`.
        support: the kind of the data's numbers, see `vae_jax.spec.Kind`.
    """
    if likelihood.measure == "binary" and treatment == "grey":  # grey levels stand for probabilities of pixels
        return f"cross-entropies of {described(treatment, support)}"
    kind = MEASURES.get(likelihood.measure, likelihood.measure or f"values of likelihood {name}")
    return f"{kind} of {described(treatment, support)}"


def bits_per_dimension(likelihood: Likelihood, treatment: str, nats: float, dimensions: int) -> float | None:
    """−log p(x) of an image of 256 grey levels in bits per number of the image; None for other data.

    For a density on dequantised levels, (level + noise) / 256 in [0, 1), log₂ 256 is added. By Jensen this is an upper
    bound of the bits of the distribution of levels that the density implies (Theis et al. 2016, section 3.1). The
    density of a grey level itself has no unit in common with a probability.

    Args:
        likelihood: that gave the value.
        treatment: see `data.treatment`.
        nats: the value, −log p(x) or a bound of it, per image.
        dimensions: numbers of an image, height · width · channels.
    """
    if (likelihood.measure, treatment) == ("levels", "grey"):
        return nats / (dimensions * math.log(2))
    if (likelihood.measure, treatment) == ("density", "dequantized"):
        return nats / (dimensions * math.log(2)) + 8
    return None
