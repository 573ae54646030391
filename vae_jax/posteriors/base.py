"""What a posterior is: a change of variables from noise to z, given by the encoder's heads."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

Heads = dict[str, Float[Array, "..."]]
Latents = Float[Array, "*batch latent"]


def no_parameters(key: Key[Array, ""]) -> PyTree:
    """Of a distribution that has none."""
    return {}


class Decoded(NamedTuple):
    """What comes with z where it is drawn inside a decoder, see `vae_jax.hierarchy`.

    Attributes:
        outputs: what the likelihood makes images of, (*batch, height, width, outputs).
        log_pz: log p(z), (*batch,), in nats.
        kl: the sum over layers of KL(q(z_l|z_<l, x) ‖ p(z_l|z_<l)), (*batch,), in nats: given the layers above each is
            in closed form, so that over samples the mean is KL(q(z|x) ‖ p(z)).
    """

    outputs: Float[Array, "*batch height width outputs"]
    log_pz: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]


class Codes(NamedTuple):
    """Of a posterior whose z are made of codes, whole numbers from 0 to values − 1, one at each place.

    Attributes:
        values: how many codes there are.
        shape: of the codes of one z.
        of: (own, z) -> the codes, (*batch, *shape), int32.
        vectors: (own, codes) -> z, (*batch, *shape of z).
        distances: (own, heads) -> of what the encoder gives at every place from its code, (*batch, *shape); None of
            codes that have none.
        apart: whether every place along the last axis of the shape has codes of its own, as stages of a quantiser have.
    """

    values: int
    shape: tuple[int, ...]
    of: Callable[[PyTree, "Latents"], Int[Array, "..."]]
    vectors: Callable[[PyTree, Int[Array, "..."]], "Latents"]
    apart: bool = False
    distances: Callable[[PyTree, Heads], Float[Array, "..."]] | None = None

    def numbered(self, codes: Int[Array, "..."]) -> Int[Array, "..."]:
        """Codes by numbers of which no two stand for different vectors."""
        if not self.apart:
            return codes
        own = self.values * jnp.arange(self.shape[-1])
        return codes + jnp.broadcast_to(own, codes.shape)


class Sample(NamedTuple):
    """What a posterior makes of noise; (*batch,) are the heads' leading axes.

    Attributes:
        z: (*batch, *shape).
        log_q: log q(z|x), (*batch,), in nats.
        cost: what it adds to a loss, (*batch,), as a codebook's commitment; None for nothing.
        state: its state from the next step on, of a posterior with one; None leaves it as it is. Out of training it is
            not kept; of several draws in a step, that of the last is. Such a posterior is drawn from outside of any
            vmap, scan or checkpoint of an objective's own.
        decoded: what z has been decoded to, where it is drawn inside the decoder.
        figures: what there is to know of it, by name, (*batch,) each, as parts of the cost; or () for one of the batch.
        codes: that z is made of, (*batch, *shape) as `Codes` says; None has them found from z where they are asked for.
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
        total: (heads, what the prior's init gives) -> (*batch,).
        by_dimension: the same for each dimension, (*batch, latent), or for each code; None where they are not
            independent.
    """

    total: Callable[[Heads, PyTree], Float[Array, "*batch"]]
    by_dimension: Callable[[Heads, PyTree], Float[Array, "*batch latent"]] | None = None


class Posterior(NamedTuple):
    """A family of approximate posteriors q(z|x) over `latent` dimensions.

    Its functions take heads with any leading axes, (*batch, size), and know nothing of how many samples an image gets.
    `own` is what `init` gives, as training has made it.

    Attributes:
        heads: the encoder's outputs that it is made of and the size of each, or its shape; "mu" is always one of them.
        transform: (own, noise, heads) -> Sample, or (z, log q(z|x)) alone: the reparameterization.
        init: key -> what is trained beside the encoder; with a state, which training moves on without a gradient,
            Variables of both.
        log_prob: (own, z, heads) -> log q(z|x), (*batch,), at any z; None where that cannot be computed.
        kl: the KL from priors in closed form, by the prior's `kind`.
        shape: of one z; None for a vector of all latent dimensions.
        noise: (key, leading axes) -> noise; None for standard normal numbers, shaped as z.
        center: (own, heads) -> Sample without noise; None for that of noise that is all zeros.
        support: what z are in; the prior's is the same.
        decodes: whether its samples come decoded, with their KL from the prior.
        exact: `transform` out of training, of a posterior that is relaxed in it; None where it is the same.
        codes: of a posterior whose z are made of codes.
        single: whether all of q(z|x) is on one z, so that samples of it are all the same.
        begin: (own, key, heads of some images) -> own, with which training begins anew, as a codebook that is made of
            data; None leaves what `init` gives.
        units: of the figures of its samples, by name.
        reparameterized: whether a gradient goes through its samples. Where none does, log q(z|x) of a sample is
            differentiable with respect to the heads, z being a constant; one of bits (codes of two values, z of their
            shape) has the bits' logits for mu, uniform noise u in (0, 1), and bits u > 1 − sigmoid(mu).
        priors: kinds of the priors that it goes with, each with the option that asks for it; empty for any.
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
