"""The article's convolutional encoder and decoder, for any square image.

Layers carry the names of the PyTorch original's state_dict: conv1, BN1, …, fc1, fc_mu, fc_log_var; fc2, dec1, deb1, ….
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from vae_jax.blocks.convolution import choose
from vae_jax.blocks.im2col import output_size
from vae_jax.blocks.tiles import Features, tiles, to_features, to_images
from vae_jax.errors import UserError
from vae_jax.networks.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    ConvolutionsOptions,
    ConvTranspose,
    Dropout,
    Linear,
    check_pictures,
    check_unused,
    has_maps,
    with_places,
)
from vae_jax.shapes import Shapes


@dataclass(frozen=True)
class ConvolutionalOptions(ConvolutionsOptions):
    """Of convolutional.

    Attributes:
        kernel: side of every convolution's kernel.
        strides: of the encoder's convolutions, one for all or one each; the decoder mirrors them.
        paddings: of the encoder's convolutions, one each; null derives them from the image size.
        hidden: units of the linear layer between the convolutions and the heads.
        hidden_activation: an activation after the hidden linear layer (the article has none).
        head_activation: an activation after the heads for mean and log-variance (the article has it).
        head_dropout: dropout rate after the heads (the article has 0.2; 0 for none).
        decoder_dropout: dropout rate after the decoder's linear layer.
    """

    kernel: Annotated[int, "[1, 64]"] = 4
    strides: Annotated[int | tuple[int, ...], "[1, 64]"] = 2
    paddings: Annotated[tuple[int, ...] | None, "[0, 64]"] = None
    hidden: Annotated[int, "[1, 65536]"] = 128
    hidden_activation: bool = False
    head_activation: bool = True
    head_dropout: Annotated[float, "[0, 1)"] = 0.2
    decoder_dropout: Annotated[float, "[0, 1)"] = 0.2


class Plan(NamedTuple):
    """The sizes that follow from a configuration and an image.

    Attributes:
        sizes: side of the image before the first convolution, then after every one.
        strides: of the encoder's convolutions, first to last; the decoder runs through them backwards.
        paddings: of the encoder's convolutions, in the same order.
        widths: channels of the decoder: of its input, then after every transposed convolution.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    widths: tuple[int, ...]


def plan(options: ConvolutionalOptions, image_shape: tuple[int, ...], outputs: int = 1) -> Plan:
    """Derives the network's sizes.

    If `model.paddings` is null, a convolution is padded by half of (kernel − stride), rounded up: for strides from 2 on
    this divides the size by the stride. The last one is not padded if the kernel fits without, as in the article
    (32 → 16 → 8 → 4 → 1).

    Raises:
        UserError: if the image is not square, or a convolution does not fit; the message gives the reason.
    """
    height, width, image_channels = image_shape
    if height != width:
        raise UserError(f"model.network convolutional: expected a square image; found {height}x{width}")
    layers = len(options.channels)
    strides = options.strides if isinstance(options.strides, tuple) else (options.strides,) * layers
    for option, values in (("strides", strides), ("paddings", options.paddings)):
        if values is not None and len(values) != layers:
            raise UserError(
                f"model.{option}: expected one value for each of the {layers} entries of model.channels; "
                f"found {len(values)}"
            )
    sizes, paddings = [height], []
    for i, stride in enumerate(strides):
        size = sizes[-1]
        if options.paddings is not None:
            padding = options.paddings[i]
        elif i == layers - 1 and size >= options.kernel:
            padding = 0
        else:
            padding = max(0, (options.kernel - stride + 1) // 2)
        result = output_size(size, options.kernel, stride, padding)
        if result < 1:
            raise UserError(
                f"model.channels: convolution {i + 1} of {layers} (kernel {options.kernel}, stride {stride}, padding "
                f"{padding}) does not fit into {size}x{size} pixels, from images of {height}x{width}; use fewer "
                f"channels, smaller strides or a larger data.image_size"
            )
        if padding >= options.kernel:
            raise UserError(
                f"model.paddings: expected less than model.kernel ({options.kernel}); found {padding}, with which "
                f"the kernel would see nothing but padding"
            )
        sizes.append(result)
        paddings.append(padding)
    widths = (options.channels[-1], *options.channels[:0:-1], outputs * image_channels)
    return Plan(tuple(sizes), tuple(strides), tuple(paddings), widths)


class Encoder(nn.Module):
    """Images to the heads of the posterior.

    Attributes:
        options: the network's.
        plan: the sizes derived from it.
        heads: sizes of the posterior's heads, such as "mu" and "log_var"; each is one linear layer, fc_mu, ….
        maps: whether heads are maps, each made by a convolution of 1x1, conv_mu, ….
    """

    options: ConvolutionalOptions
    plan: Plan
    heads: Mapping[str, Any]
    maps: bool

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> dict[str, Array]:
        options = self.options
        activation = ACTIVATIONS[options.activation]
        convolution = choose(options.convolution)
        for i, features in enumerate(options.channels):
            stride, padding = self.plan.strides[i], self.plan.paddings[i]
            conv = Conv(features, options.kernel, stride, padding, convolution, name=f"conv{i + 1}")
            x = conv(x, dead_bias=train and options.batch_norm)
            if options.batch_norm:
                norm = BatchNorm(options.batch_norm_momentum, options.unbiased_running_variance, name=f"BN{i + 1}")
                x = norm(x, train=train)
            x = activation(x)
        if self.maps:
            return {
                head: Conv(size[-1], 1, 1, 0, convolution, name=f"conv_{head}")(x) for head, size in self.heads.items()
            }
        # (channels, height, width) flattened in this order is PyTorch's order too.
        x = Linear(options.hidden, name="fc1")(x.transpose(1, 2, 3, 0, 4).reshape(-1, x.shape[0] * x.shape[-1]))
        if options.hidden_activation:
            x = activation(x)
        heads = {}
        for head, size in self.heads.items():
            h = Linear(size if isinstance(size, int) else math.prod(size), name=f"fc_{head}")(x)
            if options.head_activation:
                h = activation(h)
            heads[head] = Dropout(options.head_dropout, name=f"dropout_{head}")(h, train=train)
        return heads


class Decoder(nn.Module):
    """Latents to the likelihood's input.

    Attributes:
        options: the network's.
        plan: the sizes derived from it.
        maps: whether z are maps, as features are.
    """

    options: ConvolutionalOptions
    plan: Plan
    maps: bool

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Features:
        options, plan = self.options, self.plan
        activation = ACTIVATIONS[options.activation]
        convolution = choose(options.convolution)
        side = plan.sizes[-1]
        if self.maps:
            x = activation(Conv(plan.widths[0], 1, 1, 0, convolution, name="conv_z")(z))
        else:
            x = activation(Linear(plan.widths[0] * side * side, name="fc2")(z))
            x = Dropout(options.decoder_dropout, name="dropout_fc2")(x, train=train)
            x = x.reshape(plan.widths[0], side, side, tiles(z.shape[-1]), -1).transpose(3, 0, 1, 2, 4)
        layers = len(plan.strides)
        for i, features in enumerate(plan.widths[1:]):
            mirrored = layers - 1 - i
            x = ConvTranspose(
                features,
                plan.sizes[mirrored],
                options.kernel,
                plan.strides[mirrored],
                plan.paddings[mirrored],
                convolution,
                name=f"dec{i + 1}",
            )(x, dead_bias=train and options.batch_norm and i < layers - 1)
            if i < layers - 1:
                if options.batch_norm:
                    norm = BatchNorm(options.batch_norm_momentum, options.unbiased_running_variance, name=f"deb{i + 1}")
                    x = norm(x, train=train)
                x = activation(x)
        return x


class ConvolutionalAutoencoder(nn.Module):
    """Encoder and decoder behind the interface of `vae_jax.networks`: images and latents with the batch first."""

    options: ConvolutionalOptions
    shapes: Shapes

    @property
    def couples(self) -> bool:
        """Whether the images of a batch depend on one another in training, and its running statistics on them."""
        return self.options.batch_norm

    def setup(self):
        sizes = plan(self.options, self.shapes.image_shape, self.shapes.outputs)
        self.maps = has_maps(self.shapes, "convolutional", _places(self.options, self.shapes.image_shape))
        self.encoder = Encoder(self.options, sizes, self.shapes.heads, self.maps)
        self.decoder = Decoder(self.options, sizes, self.maps)

    def encode(self, x: Float[Array, "batch h w c"], *, train: bool) -> dict[str, Float[Array, "batch *_"]]:
        heads = self.encoder(to_features(x), train=train)
        return {name: to_images(head) if self.maps else head.T for name, head in heads.items()}

    def decode(self, z: Float[Array, "batch *latent"], *, train: bool) -> Float[Array, "batch h w c"]:
        return to_images(self.decoder(to_features(z) if self.maps else z.T, train=train))


def _places(options: ConvolutionalOptions, image_shape: tuple[int, ...]) -> tuple[int, int]:
    side = plan(options, image_shape).sizes[-1]
    return side, side


@with_places(_places)
def convolutional(options: ConvolutionalOptions, shapes: Shapes) -> ConvolutionalAutoencoder:
    """The article's network; 165,409 parameters for 32x32 grey images and 20 latent dimensions.

    Raises:
        UserError: if the sizes do not fit, or there are no images.
    """
    check_pictures(shapes, "convolutional")
    if has_maps(shapes, "convolutional", _places(options, shapes.image_shape)):
        check_unused(options, "hidden", "hidden_activation", "head_activation", "head_dropout", "decoder_dropout")
    return ConvolutionalAutoencoder(options, shapes)
