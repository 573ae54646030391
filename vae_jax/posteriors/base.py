"""What a posterior is: a change of variables from noise to z, given by the encoder's heads."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key, PyTree

Heads = dict[str, Float[Array, "..."]]
Latents = Float[Array, "*batch latent"]


def no_parameters(key: Key[Array, ""]) -> PyTree:
    """Of a distribution that has none."""
    return {}


class Posterior(NamedTuple):
    """A family of approximate posteriors q(z|x) over `latent` dimensions.

    Its functions take heads with any leading axes, (*batch, size), and know nothing of how many samples an image gets.

    Attributes:
        heads: the encoder's outputs that it is made of and the size of each; "mu" is always one of them.
        transform: (params, noise, heads) -> (z, log q(z|x)), (*batch, latent) and (*batch,): the reparameterization.
            The noise is standard normal, shaped as z; zeros give the posterior's centre.
        init: key -> what is trained beside the encoder.
        log_prob: (params, z, heads) -> log q(z|x), (*batch,), at any z; None where that cannot be computed.
        kl: heads -> KL(q(z|x) ‖ N(0, I)), (*batch,), in nats; None without a closed form.
        kl_by_dimension: the same for each dimension, (*batch, latent); None where the dimensions are not independent.
    """

    heads: dict[str, int]
    transform: Callable[[PyTree, Latents, Heads], tuple[Latents, Float[Array, "*batch"]]]
    init: Callable[[Key[Array, ""]], PyTree] = no_parameters
    log_prob: Callable[[PyTree, Latents, Heads], Float[Array, "*batch"]] | None = None
    kl: Callable[[Heads], Float[Array, "*batch"]] | None = None
    kl_by_dimension: Callable[[Heads], Float[Array, "*batch latent"]] | None = None
