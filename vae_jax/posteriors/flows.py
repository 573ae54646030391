"""Posteriors made by normalising flows: invertible maps of a diagonal Gaussian's sample."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.blocks.masked import MADE
from vae_jax.posteriors.base import Heads, Latents, Posterior
from vae_jax.posteriors.gaussian import diagonal_log_prob, diagonal_transform
from vae_jax.shapes import Shapes

# The least factor by which a flow shrinks: float32 could not undo a smaller one.
SMALLEST_SLOPE = 1e-3
# Factor of the encoder's u, so that planar flows start near the identity.
PLANAR_START = 0.1
# Added to s, so that an inverse autoregressive flow starts by keeping most of z (Kingma et al. 2016, section 4).
GATE_START = 2.0
# Up to this largest entry of w a planar flow bends nothing, since w's direction means nothing.
SMALLEST = 1e-6

# The weight of e^x in `_constrained`, whose limit is then −1 + SMALLEST_SLOPE.
_WEIGHT = -math.expm1(SMALLEST_SLOPE - 1)


@dataclass(frozen=True)
class FlowsOptions:
    """Of a flow.

    Attributes:
        flows: steps of it.
    """

    flows: Annotated[int, "[1, 1024]"] = 4


@dataclass(frozen=True)
class IAFOptions(FlowsOptions):
    """Of iaf.

    Attributes:
        hidden: units of each hidden layer of its networks.
        context: numbers that the encoder gives it beside its first Gaussian.
    """

    hidden: Annotated[int, "[1, 65536]"] = 64
    context: Annotated[int, "[1, 65536]"] = 32


def planar(options: FlowsOptions, shapes: Shapes) -> Posterior:
    """N(μ, diag σ²) through K planar flows, whose parameters are the encoder's (Rezende & Mohamed 2015, section 4.1).

    There is no closed form of a planar flow's inverse, so log q(z|x) is known at its own samples only.
    """
    flows, latent = options.flows, shapes.latent
    heads = {"mu": latent, "log_var": latent, "u": flows * latent, "w": flows * latent, "b": flows}

    def transform(params: PyTree, noise: Latents, heads: Heads) -> tuple[Latents, Float[Array, "*batch"]]:
        batch = noise.shape[:-1]
        u, w = (jnp.moveaxis(heads[name].reshape(*batch, flows, latent), -2, 0) for name in ("u", "w"))
        b = jnp.moveaxis(heads["b"], -1, 0)

        def step(carry, flow):
            z, log_q = carry
            z, log_det = planar_flow(z, *flow)
            return (z, log_q - log_det), None

        # Rezende & Mohamed 2015, equation 13.
        return lax.scan(step, diagonal_transform({}, noise, heads), (PLANAR_START * u, w, b))[0]

    return Posterior(heads, transform)


def planar_flow(
    z: Latents, u: Latents, w: Latents, b: Float[Array, "*batch"]
) -> tuple[Latents, Float[Array, "*batch"]]:
    """f(z) = z + û·tanh(wᵀz + b) and log |det ∂f/∂z| (Rezende & Mohamed 2015, equations 10 to 12).

    û is u with its part along w replaced so that wᵀû > −1, which makes f invertible (appendix A.1). The paper has
    wᵀû = −1 + log(1 + e^wᵀu). Here it is log(1 − c + c·e^wᵀu): the same function, shifted so that u = 0 gives the
    identity, and bounded a little above −1. A w of nearly no length counts as 0, which leaves z + u·tanh(b); it keeps
    its gradient, so that a w that starts at 0 can leave it.
    """
    largest = lax.stop_gradient(jnp.abs(w).max(-1, keepdims=True))
    bends = largest > SMALLEST
    w = jnp.where(bends, w, w - lax.stop_gradient(w))
    along = (w * u).sum(-1)
    constrained, change = _constrained(along)
    # û = u + change·w / |w|², w in units of its largest entry, whose square neither underflows nor overflows.
    scale = jnp.where(bends, largest, 1)
    direction = jnp.where(bends, w / scale, 1)
    toward = direction / (jnp.square(direction).sum(-1, keepdims=True) * scale)
    u = u + jnp.where(bends, change[..., None] * toward, 0)
    constrained = jnp.where(bends[..., 0], constrained, along)
    bend = jnp.tanh((w * z).sum(-1) + b)
    return z + u * bend[..., None], jnp.log1p((1 - jnp.square(bend)) * constrained)


def _constrained(x: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """m(x) = log(1 − c + c·eˣ) and m(x) − x, both to full precision at any x."""
    negative, positive = jnp.minimum(x, 0), jnp.maximum(x, 0)
    below = jnp.log1p(_WEIGHT * jnp.expm1(negative))  # 0 for positive x
    above = jnp.log1p((1 - _WEIGHT) * jnp.expm1(-positive))  # 0 for negative x
    return below + positive + above, below - negative + above


def iaf(options: IAFOptions, shapes: Shapes) -> Posterior:
    """N(μ, diag σ²) through K inverse autoregressive flows (Kingma et al. 2016, algorithm 1).

    The flows' networks are apart from the encoder, which gives them a context h beside μ and log σ². A sample takes one
    pass through a flow; log q(z|x) at another z takes as many passes as z has dimensions, one after the other.
    """
    latent = shapes.latent
    made = MADE(latent, options.context, options.hidden)
    heads = {"mu": latent, "log_var": latent, "context": options.context}

    def init(key: Key[Array, ""]) -> PyTree:
        return jax.vmap(made.init)(jax.random.split(key, options.flows))

    def gate(params: PyTree, z: Latents, context: Float[Array, "*batch context"]) -> tuple[Latents, Latents]:
        """m and σ (Kingma et al. 2016, equation 13)."""
        m, s = made.apply(params, z, context)
        return m, SMALLEST_SLOPE + (1 - SMALLEST_SLOPE) * jax.nn.sigmoid(s + GATE_START)

    def transform(params: PyTree, noise: Latents, heads: Heads) -> tuple[Latents, Float[Array, "*batch"]]:
        def step(carry, flow):
            z, log_q = carry
            m, sigma = gate(flow, z, heads["context"])
            # Equation 14. The next flow takes the dimensions in the reverse order.
            return ((sigma * z + (1 - sigma) * m)[..., ::-1], log_q - jnp.log(sigma).sum(-1)), None

        z, log_q = lax.scan(step, diagonal_transform({}, noise, heads), params)[0]
        return _restored(z), log_q

    def log_prob(params: PyTree, z: Latents, heads: Heads) -> Float[Array, "*batch"]:
        def undo(carry, flow):
            z, log_q = carry
            z = z[..., ::-1]

            def solve(before, place):
                m, sigma = gate(flow, before, heads["context"])
                here = lax.broadcasted_iota(int, z.shape, z.ndim - 1) == place
                return jnp.where(here, (z - (1 - sigma) * m) / sigma, before), None

            # m and σ of a dimension are right once those before it are.
            before = lax.scan(solve, jnp.zeros_like(z), jnp.arange(latent))[0]
            _, sigma = gate(flow, before, heads["context"])
            return (before, log_q - jnp.log(sigma).sum(-1)), None

        start = (_restored(z), jnp.zeros(z.shape[:-1], z.dtype))
        first, log_q = lax.scan(undo, start, params, reverse=True)[0]
        return log_q + diagonal_log_prob({}, first, heads)

    def _restored(z: Latents) -> Latents:
        """z in the order of μ, from the order after the last flow, or the reverse."""
        return z[..., ::-1] if options.flows % 2 else z

    return Posterior(heads, transform, init, log_prob)
