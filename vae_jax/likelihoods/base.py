"""What a likelihood is: how the decoder's output is a distribution of images."""

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key, PyTree

from vae_jax.blocks.tiles import Features, Images
from vae_jax.posteriors.base import no_parameters

Outputs = Float[Array, "batch *places outputs"]


def sum_pixels(features: Features) -> Float[Array, " batch"]:
    """The sum over each image's pixels."""
    return features.sum(tuple(range(1, features.ndim - 1))).reshape(-1)


class Likelihood(NamedTuple):
    """A likelihood p(x|z) of images (batch, height, width, channels) in [0, 1], or of examples of other shapes.

    Attributes:
        outputs: how many numbers of the decoder's it needs for each channel of a pixel. The decoder's output is
            (batch, height, width, outputs·channels), the first number of every channel before the second of any.
        log_prob: (params, decoder's output, images) -> log p(x|z), (batch,), in nats, summed over pixels.
        mean: (params, decoder's output) -> E[x|z], (batch, height, width, channels): the picture to show.
        init: key -> what is trained beside the decoder.
        treatments: of the data for which it is a likelihood, see `data.treatment`.
        reason: why it is none for the others.
        measure: of what its values are: one of MEASURES or a word of one's own; where it is empty, its values are
            compared with its own only.
        over: what the numbers of an example may be, see `vae_jax.spec.Kind`.
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


# What a likelihood's values can be; those of different measures are no more comparable than metres and seconds.
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
    """What a model sees, in words; `support` is what the numbers are, see `vae_jax.spec.Kind`."""
    return TREATED[treatment] if support == "levels" else {"reals": "real numbers"}.get(support, support)


def measured(likelihood: Likelihood, name: str, treatment: str, support: str = "levels") -> str:
    """What a likelihood's values are for data of a treatment, in words; where these differ, values do not compare.

    Args:
        likelihood: which one.
        name: its name in the configuration, which tells one of no known measure.
        treatment: see `data.treatment`.
        support: what the numbers of the data are, see `vae_jax.spec.Kind`.
    """
    if likelihood.measure == "binary" and treatment == "grey":  # they stand for probabilities: no distribution of them
        return f"cross-entropies of {described(treatment, support)}"
    kind = MEASURES.get(likelihood.measure, likelihood.measure or f"values of likelihood {name}")
    return f"{kind} of {described(treatment, support)}"


def bits_per_dimension(likelihood: Likelihood, treatment: str, nats: float, dimensions: int) -> float | None:
    """−log p(x) of an image of 256 grey levels in bits for each of its numbers; None where it is of something else.

    For a density on dequantised levels, (level + noise) / 256 in [0, 1), it is log₂ 256 more than the density's own: by
    Jensen an upper bound of the bits of the distribution of levels that the density implies (Theis et al. 2016, section
    3.1). The density of a grey level itself has no unit in common with a probability.

    Args:
        likelihood: of which the value is.
        treatment: see `data.treatment`.
        nats: the value, −log p(x) or a bound of it, per image.
        dimensions: numbers of an image, height · width · channels.
    """
    if (likelihood.measure, treatment) == ("levels", "grey"):
        return nats / (dimensions * math.log(2))
    if (likelihood.measure, treatment) == ("density", "dequantized"):
        return nats / (dimensions * math.log(2)) + 8
    return None
