"""A normalising flow as the prior."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.blocks.perceptron import init_perceptron, perceptron
from vae_jax.posteriors import Latents
from vae_jax.priors.base import Aggregate, Prior
from vae_jax.priors.standard_normal import standard_normal_log_prob
from vae_jax.shapes import Shapes

HIDDEN_LAYERS = 2


@dataclass(frozen=True)
class FlowOptions:
    """Of flow.

    Attributes:
        flows: coupling layers, one after another.
        hidden: units of each hidden layer of their networks.
    """

    flows: Annotated[int, "[1, 1024]"] = 4
    hidden: Annotated[int, "[1, 65536]"] = 64


def flow(options: FlowOptions, shapes: Shapes) -> Prior:
    """N(0, I) through affine coupling layers (RealNVP; Dinh et al. 2017, section 3); it starts as the identity.

    Every second dimension passes a layer unchanged and determines how the rest are scaled and moved; the next layer has
    it the other way round. A single dimension is scaled and moved by constants.
    """
    latent = shapes.latent
    passes = np.add.outer(np.arange(options.flows), np.arange(latent)) % 2 == 0

    def init(key: Key[Array, ""]) -> PyTree:
        sizes = (latent, *(HIDDEN_LAYERS * (options.hidden,)), 2 * latent)
        networks = jax.vmap(lambda key: init_perceptron(key, sizes))(jax.random.split(key, options.flows))
        return {"networks": networks, "scale": jnp.ones((options.flows, latent))}

    def log_prob(params: PyTree, z: Latents, aggregate: Aggregate) -> Float[Array, "*batch"]:
        def undo(carry, layer):
            z, log_det = carry
            s, t = _coupling(layer, z)
            return ((z - t) * jnp.exp(-s), log_det + s.sum(-1)), None

        start = (z, jnp.zeros(z.shape[:-1], z.dtype))
        first, log_det = lax.scan(undo, start, (params, jnp.asarray(passes)), reverse=True)[0]
        return standard_normal_log_prob(first) - log_det

    def sample(params: PyTree, key: Key[Array, ""], count: int, aggregate: Aggregate) -> Float[Array, "count latent"]:
        def step(z, layer):
            s, t = _coupling(layer, z)
            return z * jnp.exp(s) + t, None

        return lax.scan(step, jax.random.normal(key, (count, latent)), (params, jnp.asarray(passes)))[0]

    return Prior(log_prob, sample, init)


def _coupling(layer: tuple[PyTree, Array], z: Latents) -> tuple[Latents, Latents]:
    """s and t of z·eˢ + t (Dinh et al. 2017, equation 9); they depend on dimensions that pass only, and are 0 there.

    s is a tanh with a learned scale (section 4.1).
    """
    params, passes = layer
    passes = jnp.broadcast_to(passes, z.shape)
    s, t = jnp.split(perceptron(params["networks"], jnp.where(passes, z, 0)), 2, -1)
    s = jnp.broadcast_to(params["scale"], z.shape) * jnp.tanh(s)
    return jnp.where(passes, 0, s), jnp.where(passes, 0, t)
