"""Multi-layer perceptrons, for examples of any shape.

With `layers: [200, 200]` and `activation: tanh` they are Burda et al.'s (2016, section 5); with `layers: [300, 300]`
and `gated: true` Tomczak & Welling's (2018, section 4.2).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vae_jax.networks.layers import ACTIVATIONS, Linear
from vae_jax.options import one_of, only
from vae_jax.shapes import Shapes


@dataclass(frozen=True)
class MLPOptions:
    """Of mlp.

    Attributes:
        layers: units of the hidden layers, first to last; the decoder mirrors them.
        gated: the layers are gated, each unit multiplied by another's sigmoid, and have no activation.
        activation: after every layer but the last: leaky_relu (slope 0.01), relu, elu, gelu, silu or tanh.
    """

    layers: Annotated[tuple[int, ...], "[1, 65536]"] = (200, 200)
    gated: bool = False
    activation: Annotated[str, one_of(*ACTIVATIONS), only(gated=False)] = "leaky_relu"


class Hidden(nn.Module):
    """Fully connected layers over (features, batch)."""

    options: MLPOptions
    layers: Sequence[int]

    @nn.compact
    def __call__(self, x: Float[Array, "inputs batch"]) -> Float[Array, "outputs batch"]:
        activation = ACTIVATIONS[self.options.activation]
        for i, units in enumerate(self.layers):
            h = Linear(units, name=f"fc{i + 1}")(x)
            # Dauphin et al. 2017, section 3, without an activation beside the gate.
            x = h * jax.nn.sigmoid(Linear(units, name=f"gate{i + 1}")(x)) if self.options.gated else activation(h)
        return x


class Encoder(nn.Module):
    """Images to the heads of the posterior, one linear layer each."""

    options: MLPOptions
    heads: Mapping[str, int]

    @nn.compact
    def __call__(self, x: Float[Array, "inputs batch"]) -> dict[str, Float[Array, "_ batch"]]:
        x = Hidden(self.options, self.options.layers, name="hidden")(x)
        return {head: Linear(size, name=f"fc_{head}")(x) for head, size in self.heads.items()}


class Decoder(nn.Module):
    """Latents to the likelihood's input."""

    options: MLPOptions
    outputs: int

    @nn.compact
    def __call__(self, z: Float[Array, "latent batch"]) -> Float[Array, "outputs batch"]:
        return Linear(self.outputs, name="fc_out")(Hidden(self.options, self.options.layers[::-1], name="hidden")(z))


class MLP(nn.Module):
    """Encoder and decoder behind the interface of `vae_jax.networks`: images and latents with the batch first."""

    options: MLPOptions
    shapes: Shapes

    couples = False  # in training, the images of a batch do not depend on one another

    def setup(self):
        sizes = {name: math.prod(size) if isinstance(size, tuple) else size for name, size in self.shapes.heads.items()}
        self.encoder = Encoder(self.options, sizes)
        self.decoder = Decoder(self.options, self.shapes.outputs * math.prod(self.shapes.image_shape))

    def encode(self, x: Float[Array, "batch *shape"], *, train: bool) -> dict[str, Float[Array, "batch _"]]:
        heads = self.encoder(x.reshape(x.shape[0], -1).T)
        return {name: head.T for name, head in heads.items()}

    def decode(self, z: Float[Array, "batch *latent"], *, train: bool) -> Float[Array, "batch *shape"]:
        *axes, channels = self.shapes.image_shape
        return self.decoder(z.reshape(z.shape[0], -1).T).T.reshape(-1, *axes, self.shapes.outputs * channels)


def mlp(options: MLPOptions, shapes: Shapes) -> MLP:
    """A pair of MLPs."""
    return MLP(options, shapes)
