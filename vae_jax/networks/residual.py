"""A residual encoder and decoder, for square images of any size.

A stage halves the image, rounding up, with a strided convolution, and refines it in `model.blocks` residual blocks; the
decoder runs through the stages backwards. Every convolution but the first comes after its normalisation and activation
(pre-activation, He et al. 2016b, figure 1b), so the sums of the blocks pass through untouched.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
from jaxtyping import Array, Float

from vae_jax.blocks.convolution import choose
from vae_jax.blocks.tiles import Features, tiles, to_features, to_images
from vae_jax.errors import UserError
from vae_jax.networks.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    ConvolutionsOptions,
    ConvTranspose,
    Linear,
    check_pictures,
    has_maps,
    with_places,
)
from vae_jax.shapes import Shapes

# Twice the stride, so that all pixels of a transposed convolution's result get equally many contributions, and no
# chequered pattern appears (Odena et al. 2016).
KERNEL = 4


@dataclass(frozen=True)
class ResidualOptions(ConvolutionsOptions):
    """Of residual.

    Attributes:
        blocks: residual blocks after each of the network's changes of size.
    """

    blocks: Annotated[int, "[0, 64]"] = 1


def plan(options: ResidualOptions, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The side of the image before the first stage, then after every stage.

    Raises:
        UserError: if the image is not square, or a stage would have nothing left to halve.
    """
    height, width, _ = image_shape
    if height != width:
        raise UserError(f"model.network residual: expected a square image; found {height}x{width}")
    most, stages = (height - 1).bit_length(), len(options.channels)
    if stages > most:
        raise UserError(
            f"model.channels: expected at most {most} stages, each of which halves images of {height}x{width}; "
            f"found {stages}"
        )
    sizes = [height]
    for _ in options.channels:
        sizes.append((sizes[-1] + 1) // 2)
    return tuple(sizes)


def padding(size: int) -> int:
    """The padding with which the kernel halves `size` pixels, rounding up."""
    return KERNEL // 2 - 1 + size % 2


def dead_bias(options: ResidualOptions, train: bool) -> bool:
    """Whether a convolution's bias is dead, since all readers of the sum of blocks normalise it first."""
    return train and options.batch_norm


class Activated(nn.Module):
    """Normalisation, if there is one, and activation."""

    options: ResidualOptions

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        options = self.options
        if options.batch_norm:
            x = BatchNorm(options.batch_norm_momentum, options.unbiased_running_variance, name="BN")(x, train=train)
        return ACTIVATIONS[options.activation](x)


class Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with convolutions of 3x3."""

    options: ResidualOptions

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        h, convolution = x, choose(self.options.convolution)
        for i in (1, 2):
            h = Activated(self.options, name=f"act{i}")(h, train=train)
            h = Conv(x.shape[1], 3, 1, 1, convolution, name=f"conv{i}")(h, dead_bias=dead_bias(self.options, train))
        return x + h


class Encoder(nn.Module):
    """Images to the heads of the posterior, one linear layer each, fc_mu, ….

    Attributes:
        options: the network's.
        sizes: see `plan`.
        heads: sizes of the posterior's heads, such as "mu" and "log_var".
        maps: whether heads are maps, each made by a convolution of 1x1, conv_mu, ….
    """

    options: ResidualOptions
    sizes: tuple[int, ...]
    heads: Mapping[str, Any]
    maps: bool

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> dict[str, Array]:
        options, convolution = self.options, choose(self.options.convolution)
        dead = dead_bias(options, train)
        for i, features in enumerate(options.channels):
            if i:
                x = Activated(options, name=f"act{i}")(x, train=train)
            x = Conv(features, KERNEL, 2, padding(self.sizes[i]), convolution, name=f"conv{i + 1}")(x, dead_bias=dead)
            for j in range(options.blocks):
                x = Block(options, name=f"block{i + 1}_{j + 1}")(x, train=train)
        x = Activated(options, name=f"act{len(options.channels)}")(x, train=train)
        if self.maps:
            return {
                head: Conv(size[-1], 1, 1, 0, convolution, name=f"conv_{head}")(x) for head, size in self.heads.items()
            }
        x = x.transpose(1, 2, 3, 0, 4).reshape(-1, x.shape[0] * x.shape[-1])
        sizes = {head: size if isinstance(size, int) else math.prod(size) for head, size in self.heads.items()}
        return {head: Linear(size, name=f"fc_{head}")(x) for head, size in sizes.items()}


class Decoder(nn.Module):
    """Latents to the likelihood's input.

    Attributes:
        options: the network's.
        sizes: see `plan`.
        outputs: numbers for each pixel, all channels together.
        maps: whether z are maps, as features are.
    """

    options: ResidualOptions
    sizes: tuple[int, ...]
    outputs: int
    maps: bool

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Features:
        options, convolution = self.options, choose(self.options.convolution)
        side, channels = self.sizes[-1], options.channels[-1]
        if self.maps:
            x = Conv(channels, 1, 1, 0, convolution, name="conv_z")(z)
        else:
            x = Linear(channels * side * side, name="fc")(z)
            x = x.reshape(channels, side, side, tiles(z.shape[-1]), -1).transpose(3, 0, 1, 2, 4)
        # Names are those of the encoder's stages that these mirror, the last one first.
        for i in reversed(range(len(options.channels))):
            for j in range(options.blocks):
                x = Block(options, name=f"block{i + 1}_{j + 1}")(x, train=train)
            x = Activated(options, name=f"act{i + 1}")(x, train=train)
            features, size = (options.channels[i - 1] if i else self.outputs), self.sizes[i]
            dec = ConvTranspose(features, size, KERNEL, 2, padding(size), convolution, name=f"dec{i + 1}")
            x = dec(x, dead_bias=i > 0 and dead_bias(options, train))
        return x


class ResidualAutoencoder(nn.Module):
    """Encoder and decoder behind the interface of `vae_jax.networks`: images and latents with the batch first."""

    options: ResidualOptions
    shapes: Shapes

    @property
    def couples(self) -> bool:
        """Whether the images of a batch depend on one another in training, and its running statistics on them."""
        return self.options.batch_norm

    def setup(self):
        sizes = plan(self.options, self.shapes.image_shape)
        self.maps = has_maps(self.shapes, "residual", _places(self.options, self.shapes.image_shape))
        self.encoder = Encoder(self.options, sizes, self.shapes.heads, self.maps)
        outputs = self.shapes.outputs * self.shapes.image_shape[-1]
        self.decoder = Decoder(self.options, sizes, outputs, self.maps)

    def encode(self, x: Float[Array, "batch h w c"], *, train: bool) -> dict[str, Float[Array, "batch *_"]]:
        heads = self.encoder(to_features(x), train=train)
        return {name: to_images(head) if self.maps else head.T for name, head in heads.items()}

    def decode(self, z: Float[Array, "batch *latent"], *, train: bool) -> Float[Array, "batch h w c"]:
        return to_images(self.decoder(to_features(z) if self.maps else z.T, train=train))


def _places(options: ResidualOptions, image_shape: tuple[int, ...]) -> tuple[int, int]:
    side = plan(options, image_shape)[-1]
    return side, side


@with_places(_places)
def residual(options: ResidualOptions, shapes: Shapes) -> ResidualAutoencoder:
    """A pair of residual networks.

    Raises:
        UserError: if the sizes do not fit, or there are no images.
    """
    check_pictures(shapes, "residual")
    has_maps(shapes, "residual", _places(options, shapes.image_shape))
    return ResidualAutoencoder(options, shapes)
