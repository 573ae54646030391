"""Posteriors: changes of variables from noise to z, which depend on the encoder's heads."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

Heads = dict[str, Float[Array, "..."]]
Latents = Float[Array, "*batch latent"]


def no_parameters(key: Key[Array, ""]) -> PyTree:
    """The parameters of a distribution that has none."""
    return {}


class Decoded(NamedTuple):
    """A decoder's results beside z if it draws z itself, see `vae_jax.hierarchy`.

    Attributes:
        outputs: the decoder's output for the likelihood, (*batch, height, width, outputs).
        log_pz: log p(z), (*batch,), in nats.
        kl: the sum over layers of KL(q(z_l|z_<l, x) ‖ p(z_l|z_<l)), (*batch,), in nats. A layer's KL is in closed form
            given the layers above, so that the mean over samples is KL(q(z|x) ‖ p(z)).
    """

    outputs: Float[Array, "*batch height width outputs"]
    log_pz: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]


class Codes(NamedTuple):
    """The codes that a posterior's z are made of: whole numbers from 0 to values − 1, one at every place.

    Attributes:
        values: how many codes there are.
        shape: of the codes of one z.
        of: (variables, z) -> the codes, (*batch, *shape), int32.
        vectors: (variables, codes) -> z, (*batch, *shape of z).
        distances: (variables, heads) -> distances of the encoder's vectors from their codes, (*batch, *shape); None if
            there are none.
        apart: whether places along the last axis of the shape have different codes, as a quantiser's stages have.
    """

    values: int
    shape: tuple[int, ...]
    of: Callable[[PyTree, "Latents"], Int[Array, "..."]]
    vectors: Callable[[PyTree, Int[Array, "..."]], "Latents"]
    apart: bool = False
    distances: Callable[[PyTree, Heads], Float[Array, "..."]] | None = None

    def numbered(self, codes: Int[Array, "..."]) -> Int[Array, "..."]:
        """Codes as numbers, of which none stands for two different vectors."""
        if not self.apart:
            return codes
        first_numbers = self.values * jnp.arange(self.shape[-1])
        return codes + jnp.broadcast_to(first_numbers, codes.shape)


class Sample(NamedTuple):
    """A posterior's sample; (*batch,) are the heads' leading axes.

    Attributes:
        z: (*batch, *shape).
        log_q: log q(z|x), (*batch,), in nats.
        cost: a term of the loss, (*batch,), as a codebook's commitment; None for nothing.
        state: the posterior's state from the next step on, if it has one; None leaves it as it is. It is kept in
            training only; the last of several draws in a step counts. An objective must not draw from such a posterior
            inside a vmap, scan or checkpoint of its own.
        decoded: what z has been decoded to, if it is drawn inside the decoder.
        figures: by name, as parts of the cost: (*batch,), or () for a figure of the batch.
        codes: that z is made of, (*batch, *shape) as `Codes` says; None computes them from z when they are needed.
    """

    z: Latents
    log_q: Float[Array, "*batch"]
    cost: Float[Array, "*batch"] | None = None
    state: PyTree | None = None
    decoded: Decoded | None = None
    figures: Mapping[str, Float[Array, "..."]] = {}
    codes: Int[Array, "..."] | None = None


class KL(NamedTuple):
    """KL(q(z|x) ‖ p(z)) in closed form, in nats.

    Attributes:
        total: (heads, the prior's parameters) -> (*batch,).
        by_dimension: the same by dimension, (*batch, latent), or by code; None if they are not independent.
    """

    total: Callable[[Heads, PyTree], Float[Array, "*batch"]]
    by_dimension: Callable[[Heads, PyTree], Float[Array, "*batch latent"]] | None = None


class Posterior(NamedTuple):
    """A family of approximate posteriors q(z|x) over `latent` dimensions.

    Its functions take heads with any leading axes, (*batch, size), and do not know how many samples an image gets.
    `variables` is what `init` gives, after training.

    Attributes:
        heads: name -> size, or shape, of the encoder's outputs that it needs; "mu" is always one of them.
        transform: (variables, noise, heads) -> Sample, or (z, log q(z|x)) alone: the reparameterization.
        init: key -> parameters beside the encoder's; or Variables of parameters and a state, which training updates
            without a gradient.
        log_prob: (variables, z, heads) -> log q(z|x), (*batch,), at any z; None if that cannot be computed.
        kl: the KL from priors in closed form, by the prior's `kind`.
        shape: of one z; None for a vector of all latent dimensions.
        noise: (key, leading axes) -> noise; None for standard normal numbers, shaped as z.
        center: (variables, heads) -> Sample without noise; None for the sample of zeros as noise.
        support: the set of z, in words; the prior's must be the same.
        decodes: whether its samples come decoded, with their KL from the prior.
        exact: `transform` out of training, of a posterior that is relaxed in training; None if it is the same.
        codes: of a posterior whose z are made of codes.
        single: whether all of q(z|x) is on one z, so that its samples are all the same.
        begin: (variables, key, heads of some images) -> the variables that training starts with, as a codebook made of
            data; None leaves what `init` gives.
        units: of the figures of its samples, by name.
        reparameterized: whether a gradient goes through its samples. If not, log q(z|x) of a sample is differentiable
            with respect to the heads, with z a constant. A posterior of bits (codes of two values, z of their shape)
            then has the bits' logits as mu, uniform noise u in (0, 1), and bits u > 1 − sigmoid(mu).
        priors: kind -> the option that asks for it, of the priors that it goes with; empty for any.
    """

    heads: Mapping[str, int | tuple[int, ...]]
    transform: Callable[[PyTree, Any, Heads], Sample | tuple[Latents, Float[Array, "*batch"]]]
    init: Callable[[Key[Array, ""]], PyTree] = no_parameters
    log_prob: Callable[[PyTree, Latents, Heads], Float[Array, "*batch"]] | None = None
    kl: Mapping[str, KL] = MappingProxyType({})
    shape: tuple[int, ...] | None = None
    noise: Callable[[Key[Array, ""], tuple[int, ...]], PyTree] | None = None
    center: Callable[[PyTree, Heads], Sample | tuple[Latents, Float[Array, "*batch"]]] | None = None
    support: str = "real vectors"
    decodes: bool = False
    exact: Callable[[PyTree, Any, Heads], Sample | tuple[Latents, Float[Array, "*batch"]]] | None = None
    codes: Codes | None = None
    single: bool = False
    begin: Callable[[PyTree, Key[Array, ""], Heads], PyTree] | None = None
    units: Mapping[str, str] = MappingProxyType({})
    reparameterized: bool = True
    priors: Mapping[str, str] = MappingProxyType({})
