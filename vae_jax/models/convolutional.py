"""The article's convolutional encoder and decoder, for any square image.

Layers carry the names of the PyTorch original's state_dict: conv1, BN1, …, fc1, fc_mu, fc_log_var; fc2, dec1, deb1, ….
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from vae_jax.config import ModelConfig
from vae_jax.errors import UserError
from vae_jax.layout import Features, tiles, to_features, to_images
from vae_jax.models.convolution import choose, output_size
from vae_jax.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dropout,
    Linear,
)
from vae_jax.registry import lookup


class Plan(NamedTuple):
    """The sizes that follow from a configuration and an image.

    Attributes:
        sizes: side of the image before the first convolution, then after each.
        strides: of the encoder's convolutions, first to last; the decoder runs through them backwards.
        paddings: likewise.
        widths: channels of the decoder: of its input, then after each transposed convolution.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    widths: tuple[int, ...]


def plan(config: ModelConfig, image_shape: tuple[int, int, int], outputs: int = 1) -> Plan:
    """Derives the network's sizes.

    Where `model.paddings` is null, each convolution is padded by half of what its kernel exceeds its stride, rounded
    up: for strides from 2 on this divides the size by the stride. The last one is not padded if the kernel fits
    without, as in the article (32 → 16 → 8 → 4 → 1).

    Raises:
        UserError: if the image is not square, or a convolution does not fit; the message gives the reason.
    """
    height, width, image_channels = image_shape
    if height != width:
        raise UserError(f"model.network convolutional: expected a square image; found {height}x{width}")
    layers = len(config.channels)
    strides = config.strides if isinstance(config.strides, tuple) else (config.strides,) * layers
    for option, given in (("strides", strides), ("paddings", config.paddings)):
        if given is not None and len(given) != layers:
            raise UserError(
                f"model.{option}: expected one value for each of the {layers} entries of model.channels; "
                f"found {len(given)}"
            )
    sizes, paddings = [height], []
    for i, stride in enumerate(strides):
        size = sizes[-1]
        if config.paddings is not None:
            padding = config.paddings[i]
        elif i == layers - 1 and size >= config.kernel:
            padding = 0
        else:
            padding = max(0, (config.kernel - stride + 1) // 2)
        result = output_size(size, config.kernel, stride, padding)
        if result < 1:
            raise UserError(
                f"model.channels: convolution {i + 1} of {layers} (kernel {config.kernel}, stride {stride}, padding "
                f"{padding}) does not fit into {size}x{size} pixels, from images of {height}x{width}; use fewer "
                f"channels, smaller strides or a larger data.image_size"
            )
        if padding >= config.kernel:
            raise UserError(
                f"model.paddings: expected less than model.kernel ({config.kernel}); found {padding}, with which "
                f"the kernel would see nothing but padding"
            )
        sizes.append(result)
        paddings.append(padding)
    widths = (config.channels[-1], *config.channels[:0:-1], outputs * image_channels)
    return Plan(tuple(sizes), tuple(strides), tuple(paddings), widths)


class Encoder(nn.Module):
    """Images to the heads of the posterior.

    Attributes:
        config: the model's configuration.
        plan: the sizes derived from it.
        heads: what the posterior needs, such as "mu" and "log_var", with its size; each is one linear layer, fc_mu, ….
    """

    config: ModelConfig
    plan: Plan
    heads: Mapping[str, int]

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> dict[str, Float[Array, "_ batch"]]:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        convolution = choose(config.convolution)
        for i, features in enumerate(config.channels):
            stride, padding = self.plan.strides[i], self.plan.paddings[i]
            conv = Conv(features, config.kernel, stride, padding, convolution, name=f"conv{i + 1}")
            x = conv(x, dead_bias=train and config.batch_norm)
            if config.batch_norm:
                norm = BatchNorm(config.batch_norm_momentum, config.unbiased_running_variance, name=f"BN{i + 1}")
                x = norm(x, train=train)
            x = activation(x)
        # (channels, height, width) flattened in this order is PyTorch's order too.
        x = Linear(config.hidden, name="fc1")(x.transpose(1, 2, 3, 0, 4).reshape(-1, x.shape[0] * x.shape[-1]))
        if config.hidden_activation:
            x = activation(x)
        heads = {}
        for head, size in self.heads.items():
            h = Linear(size, name=f"fc_{head}")(x)
            if config.head_activation:
                h = activation(h)
            heads[head] = Dropout(config.head_dropout, name=f"dropout_{head}")(h, train=train)
        return heads


class Decoder(nn.Module):
    """Latents to what the likelihood needs of the image's pixels.

    Attributes:
        config: the model's configuration.
        plan: the sizes derived from it.
    """

    config: ModelConfig
    plan: Plan

    @nn.compact
    def __call__(self, z: Float[Array, "latent batch"], *, train: bool) -> Features:
        config, plan = self.config, self.plan
        activation = ACTIVATIONS[config.activation]
        convolution = choose(config.convolution)
        side = plan.sizes[-1]
        x = activation(Linear(plan.widths[0] * side * side, name="fc2")(z))
        x = Dropout(config.decoder_dropout, name="dropout_fc2")(x, train=train)
        x = x.reshape(plan.widths[0], side, side, tiles(z.shape[-1]), -1).transpose(3, 0, 1, 2, 4)
        layers = len(plan.strides)
        for i, features in enumerate(plan.widths[1:]):
            mirrored = layers - 1 - i
            x = ConvTranspose(
                features,
                plan.sizes[mirrored],
                config.kernel,
                plan.strides[mirrored],
                plan.paddings[mirrored],
                convolution,
                name=f"dec{i + 1}",
            )(x, dead_bias=train and config.batch_norm and i < layers - 1)
            if i < layers - 1:
                if config.batch_norm:
                    norm = BatchNorm(config.batch_norm_momentum, config.unbiased_running_variance, name=f"deb{i + 1}")
                    x = norm(x, train=train)
                x = activation(x)
        return x


class ConvolutionalAutoencoder(nn.Module):
    """Encoder and decoder behind the interface of `vae_jax.models`: images and latents with the batch first."""

    config: ModelConfig
    image_shape: tuple[int, int, int]
    heads: Mapping[str, int]
    outputs: int

    @property
    def couples(self) -> bool:
        """Whether in training the images of a batch depend on one another, which running statistics then remember."""
        return self.config.batch_norm

    def setup(self):
        sizes = plan(self.config, self.image_shape, self.outputs)
        self.encoder = Encoder(self.config, sizes, self.heads)
        self.decoder = Decoder(self.config, sizes)

    def encode(self, x: Float[Array, "batch h w c"], *, train: bool) -> dict[str, Float[Array, "batch _"]]:
        heads = self.encoder(to_features(x), train=train)
        return {name: head.T for name, head in heads.items()}

    def decode(self, z: Float[Array, "batch latent"], *, train: bool) -> Float[Array, "batch h w c"]:
        return to_images(self.decoder(z.T, train=train))


def convolutional(
    config: ModelConfig, image_shape: tuple[int, int, int], heads: Mapping[str, int], outputs: int
) -> ConvolutionalAutoencoder:
    """The article's network; 165,409 parameters for 32x32 grey images and 20 latent dimensions.

    Raises:
        UserError: if the configuration names no known activation, or the sizes do not fit.
    """
    lookup(ACTIVATIONS, config.activation, "model.activation")
    choose(config.convolution)
    plan(config, image_shape)
    return ConvolutionalAutoencoder(config, image_shape, heads, outputs)
