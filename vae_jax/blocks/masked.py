"""Autoregressive networks: masked perceptrons whose i-th outputs depend on inputs before the i-th alone."""

from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.blocks.perceptron import init_perceptron, perceptron

HIDDEN_LAYERS = 2


class MADE(NamedTuple):
    """A masked autoencoder for distribution estimation (Germain et al. 2015, section 4), with a context.

    The degree of an input is its place; hidden units have degrees from 0 to below the last place. Weights lead only to
    units of at least the degree they come from, and to outputs of a higher one (equations 12 and 13). The context has
    degree 0: everything depends on it, the first outputs too, through hidden units of degree 0.

    Attributes:
        latent: inputs, D; there are 2·D outputs, of two kinds.
        context: further inputs that all outputs may depend on.
        hidden: units of both hidden layers. With fewer than D, some outputs miss inputs that they might see.
    """

    latent: int
    context: int
    hidden: int

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Weights with which every output is 0."""
        return init_perceptron(key, (self.latent + self.context, *(HIDDEN_LAYERS * (self.hidden,)), 2 * self.latent))

    def apply(
        self, params: PyTree, z: Float[Array, "*batch latent"], context: Float[Array, "*batch context"]
    ) -> tuple[Float[Array, "*batch latent"], Float[Array, "*batch latent"]]:
        """Two numbers for every dimension, given those before it and the context; both (*batch, latent)."""
        outputs = perceptron(params, jnp.concatenate([z, context], -1), self._masks())
        return outputs[..., : self.latent], outputs[..., self.latent :]

    def _masks(self) -> list[Array]:
        places = np.arange(1, self.latent + 1)
        inputs = np.concatenate([places, np.zeros(self.context, int)])
        units = np.arange(self.hidden) * self.latent // self.hidden  # 0 to D − 1, as evenly as they go
        degrees = [inputs, *HIDDEN_LAYERS * [units]]
        masks = [after[None, :] >= before[:, None] for before, after in pairwise(degrees)]
        masks.append(np.tile(places, 2)[None, :] > units[:, None])
        return [jnp.asarray(mask) for mask in masks]
