"""Encoders and decoders in PyTorch, layer by layer those of vae_jax, and the pictures that a decoder's numbers give.

This file needs PyTorch and safetensors, and nothing else: `vae-jax export --to torch` writes a copy of it beside a
model's weights, with a function `load` at the end. Images are in PyTorch's layout, (batch, channels, height, width),
in [0, 1]. Examples of other kinds have their channels, features or values second as well.
"""

# pyright: reportMissingImports=false

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": functional.leaky_relu,  # its default slope is 0.01
    "relu": functional.relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


# --- From a decoder's numbers to the picture, E[x|z]: (batch, outputs, channels, …) -> (batch, channels, …) -----------


def continuous_bernoulli(numbers: Tensor) -> Tensor:
    """The mean of a continuous Bernoulli: 1/2 + (coth u − 1/u) / 2 with u half the logit, by its series near u = 0."""
    u = numbers[:, 0] / 2
    near = u.abs() < 0.5
    small, large = torch.where(near, u, 0), torch.where(near, 1, u)
    series = torch.zeros_like(u)
    for coefficient in (4 / 18243225, -1382 / 638512875, 2 / 93555, -1 / 4725, 2 / 945, -1 / 45, 1 / 3):
        series = series * small.square() + coefficient
    return 0.5 + 0.5 * torch.where(near, series * small, 1 / torch.tanh(large) - 1 / large)


def logistic(location: Tensor, raw: Tensor) -> Tensor:
    """The mean of a logistic clipped to [0, 1]: s·(softplus(μ/s) − softplus((μ − 1)/s)).

    Its mean μ is the sigmoid of `location`. Its scale s is the exponential of `raw`, times 0.1, plus 1/32 of a grey
    level; a scale beyond 100 changes less than half a level.
    """
    log_scale = torch.logaddexp(raw + math.log(0.1), torch.full_like(raw, -math.log(32 * 255)))
    mu, scale = torch.sigmoid(location), log_scale.clamp(max=math.log(100)).exp()
    return scale * (functional.softplus(mu / scale) - functional.softplus((mu - 1) / scale))


def logistic_mixture(numbers: Tensor) -> Tensor:
    """The mean of a mixture: the logits of its components' weights come first, then their locations and scales."""
    weights, location, raw = numbers.unflatten(1, (3, -1)).unbind(1)
    return (weights.softmax(1) * logistic(location, raw)).sum(1)


MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda numbers: numbers[:, 0],
    "sigmoid": lambda numbers: torch.sigmoid(numbers[:, 0]),
    "softmax": lambda numbers: numbers[:, 0].softmax(1),
    "continuous_bernoulli": continuous_bernoulli,
    "logistic": lambda numbers: logistic(numbers[:, 0], numbers[:, 1]),
    "logistic_mixture": logistic_mixture,
}


# --- What all networks have in common ---------------------------------------------------------------------------------


class Description(NamedTuple):
    """What a network is made for."""

    image_shape: tuple[int, ...]  # (channels, height, width) of an image; of other examples the channels first too
    latent: int  # how many numbers z has
    heads: Mapping[str, int]  # the encoder's results by name, with how many numbers they have
    outputs: int  # how many numbers the decoder gives for a channel of a pixel
    mean: str  # the function that makes the pixel of them, one of MEANS
    classes: int  # how many labels there are; 0 if the model gets none


class Autoencoder(nn.Module):
    """An encoder and a decoder. A network has its own `heads_of` and `outputs_of`."""

    def __init__(self, description: Description):
        super().__init__()
        self.description = description

    def heads_of(self, x: Tensor) -> dict[str, Tensor]:
        """The heads, (batch, numbers), of images with their labels as further channels."""
        raise NotImplementedError

    def outputs_of(self, z: Tensor) -> Tensor:
        """The decoder's numbers, (batch, outputs·channels, height, width), of z with labels beside it."""
        raise NotImplementedError

    def encode(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The parameters of q(z|x), (batch, numbers), by name. "mu" is its mean, a z to decode.

        Args:
            images: (batch, channels, height, width), floats in [0, 1].
            labels: (batch,), whole numbers, if the model gets them.

        Raises:
            ValueError: if the images have another shape, or labels are missing or not expected.
        """
        return self.heads_of(self._labelled("images", images, self.description.image_shape, labels))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The pictures E[x|z], (batch, channels, height, width).

        Args:
            z: (batch, latent).
            labels: (batch,), whole numbers, if the model gets them.

        Raises:
            ValueError: if z has another shape, or labels are missing or not expected.
        """
        outputs = self.outputs_of(self._labelled("z", z, (self.description.latent,), labels))
        return MEANS[self.description.mean](outputs.unflatten(1, (self.description.outputs, -1)))

    def _labelled(self, name: str, x: Tensor, shape: tuple[int, ...], labels: Tensor | None) -> Tensor:
        """An input of this shape, with labels, one-hot, as further channels."""
        classes = self.description.classes
        if x.ndim == 0 or x.shape[1:] != shape:
            raise ValueError(f"{name}: expected shape (batch, {', '.join(map(str, shape))}); found {tuple(x.shape)}")
        if (labels is None) == (classes > 0):
            wanted = f"one of {classes} for each of {name}" if classes else "none"
            raise ValueError(f"labels: expected {wanted}; found {'none' if labels is None else 'some'}")
        if labels is None:
            return x
        if labels.is_floating_point():
            raise ValueError(f"labels: expected whole numbers; found {labels.dtype}")
        hot = functional.one_hot(labels.long(), classes).to(x)
        return torch.cat([x, hot[(..., *[None] * (x.ndim - 2))].expand(-1, -1, *shape[1:])], 1)


Network = TypeVar("Network", bound=Autoencoder)


def with_weights(network: Network, path: str | Path) -> Network:
    """The network with a file's weights, all of them and no others, to encode and decode: without dropout."""
    network.load_state_dict(load_file(path), strict=True)
    return network.eval()


def upsampling(inputs: int, outputs: int, kernel: int, stride: int, padding: int, sizes: tuple[int, int]) -> nn.Module:
    """A transposed convolution of images with the first of two sizes, to the second one."""
    size, larger = sizes
    reached = (size - 1) * stride - 2 * padding + kernel
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, output_padding=larger - reached)


# --- The article's convolutional network ------------------------------------------------------------------------------


class ConvolutionalOptions(NamedTuple):
    """Of a convolutional network."""

    channels: tuple[int, ...]  # feature maps of the encoder's convolutions; the decoder mirrors them
    kernel: int  # side of every kernel
    strides: tuple[int, ...]  # of the encoder's convolutions
    paddings: tuple[int, ...]  # of the encoder's convolutions
    sizes: tuple[int, ...]  # side of the image before the first convolution, then after every one
    hidden: int  # units of the linear layer between the convolutions and the heads
    activation: str  # one of ACTIVATIONS
    batch_norm: bool  # BatchNorm after every convolution but the decoder's last
    batch_norm_momentum: float  # weight of the newest batch in the running statistics
    hidden_activation: bool  # an activation after the hidden layer
    head_activation: bool  # an activation after the heads
    head_dropout: float  # rate of the dropout after the heads
    decoder_dropout: float  # rate of the dropout after the decoder's linear layer


class Convolutional(Autoencoder):
    """Convolutions and linear layers: conv1, BN1, …, fc1, fc_mu, …; and back: fc2, dec1, deb1, …."""

    def __init__(self, description: Description, options: ConvolutionalOptions):
        super().__init__(description)
        self.options = options
        self.activation = ACTIVATIONS[options.activation]
        image_channels, layers, side = description.image_shape[0], len(options.channels), options.sizes[-1]
        widths = (image_channels + description.classes, *options.channels)
        for i in range(layers):
            stride, padding = options.strides[i], options.paddings[i]
            self.add_module(f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], options.kernel, stride, padding))
            self._add_norm(f"BN{i + 1}", widths[i + 1])
        self.fc1 = nn.Linear(widths[-1] * side * side, options.hidden)
        for head, numbers in description.heads.items():
            self.add_module(f"fc_{head}", nn.Linear(options.hidden, numbers))
        self.widths = (options.channels[-1], *options.channels[:0:-1], description.outputs * image_channels)
        self.fc2 = nn.Linear(description.latent + description.classes, self.widths[0] * side * side)
        for i in range(layers):
            mirrored = layers - 1 - i
            stride, padding = options.strides[mirrored], options.paddings[mirrored]
            sizes = options.sizes[mirrored + 1], options.sizes[mirrored]
            dec = upsampling(self.widths[i], self.widths[i + 1], options.kernel, stride, padding, sizes)
            self.add_module(f"dec{i + 1}", dec)
            if i < layers - 1:
                self._add_norm(f"deb{i + 1}", self.widths[i + 1])

    def _add_norm(self, name: str, channels: int) -> None:
        if self.options.batch_norm:
            self.add_module(name, nn.BatchNorm2d(channels, momentum=self.options.batch_norm_momentum))

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x)

    def _drop(self, name: str, x: Tensor, rate: float, masks: Mapping[str, Tensor] | None) -> Tensor:
        if not self.training or rate == 0:
            return x
        if masks is None:
            return functional.dropout(x, rate)
        return x * masks[name] / (1 - rate)

    def heads_of(self, x: Tensor, masks: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The heads, (batch, numbers), of images with their labels as further channels.

        Args:
            x: images.
            masks: dropout's, (batch, numbers), by "dropout_<head>"; by default PyTorch draws them.
        """
        options = self.options
        for i in range(len(options.channels)):
            x = self._layer(f"conv{i + 1}", x)
            if options.batch_norm:
                x = self._layer(f"BN{i + 1}", x)
            x = self.activation(x)
        x = self.fc1(x.flatten(1))
        if options.hidden_activation:
            x = self.activation(x)
        heads = {}
        for head in self.description.heads:
            h = self._layer(f"fc_{head}", x)
            if options.head_activation:
                h = self.activation(h)
            heads[head] = self._drop(f"dropout_{head}", h, options.head_dropout, masks)
        return heads

    def outputs_of(self, z: Tensor, masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """The decoder's numbers of z with labels beside it; `masks` may hold dropout's, "dropout_fc2"."""
        options = self.options
        x = self._drop("dropout_fc2", self.activation(self.fc2(z)), options.decoder_dropout, masks)
        x = x.view(-1, self.widths[0], options.sizes[-1], options.sizes[-1])
        layers = len(options.channels)
        for i in range(layers):
            x = self._layer(f"dec{i + 1}", x)
            if i < layers - 1:
                if options.batch_norm:
                    x = self._layer(f"deb{i + 1}", x)
                x = self.activation(x)
        return x


# --- Multi-layer perceptrons ------------------------------------------------------------------------------------------


class MLPOptions(NamedTuple):
    """Of multi-layer perceptrons."""

    layers: tuple[int, ...]  # units of the hidden layers, first to last; the decoder mirrors them
    gated: bool  # each unit is multiplied by the sigmoid of another, and there is no activation
    activation: str  # one of ACTIVATIONS


class Hidden(nn.Module):
    """Fully connected layers, fc1, …; if they are gated, with their gates, gate1, …."""

    def __init__(self, inputs: int, layers: tuple[int, ...], options: MLPOptions):
        super().__init__()
        self.count, self.gated, self.activation = len(layers), options.gated, ACTIVATIONS[options.activation]
        for i, units in enumerate(layers):
            self.add_module(f"fc{i + 1}", nn.Linear(inputs, units))
            if options.gated:
                self.add_module(f"gate{i + 1}", nn.Linear(inputs, units))
            inputs = units

    def forward(self, x: Tensor) -> Tensor:
        """Numbers (batch, inputs) to (batch, units)."""
        for i in range(self.count):
            h = self.get_submodule(f"fc{i + 1}")(x)
            x = h * torch.sigmoid(self.get_submodule(f"gate{i + 1}")(x)) if self.gated else self.activation(h)
        return x


class MLP(Autoencoder):
    """Multi-layer perceptrons, for examples of any shape, whose channels are flattened last."""

    def __init__(self, description: Description, options: MLPOptions):
        super().__init__(description)
        channels, *self.places = description.image_shape
        pixels, layers = math.prod(self.places), options.layers
        inputs, numbers = pixels * (channels + description.classes), pixels * channels * description.outputs
        latent = description.latent + description.classes
        self.encoder = nn.ModuleDict({"hidden": Hidden(inputs, layers, options)})
        for head, size in description.heads.items():
            self.encoder[f"fc_{head}"] = nn.Linear(layers[-1] if layers else inputs, size)
        self.decoder = nn.ModuleDict({"hidden": Hidden(latent, layers[::-1], options)})
        self.decoder["fc_out"] = nn.Linear(layers[0] if layers else latent, numbers)

    def heads_of(self, x: Tensor) -> dict[str, Tensor]:
        """The heads, (batch, numbers), of examples with their labels as further channels."""
        x = self.encoder["hidden"](x.movedim(1, -1).flatten(1))
        return {head: self.encoder[f"fc_{head}"](x) for head in self.description.heads}

    def outputs_of(self, z: Tensor) -> Tensor:
        """The decoder's numbers, (batch, outputs·channels, …), of z with labels beside it."""
        return self.decoder["fc_out"](self.decoder["hidden"](z)).unflatten(1, (*self.places, -1)).movedim(-1, 1)


# --- The residual network ---------------------------------------------------------------------------------------------


class ResidualOptions(NamedTuple):
    """Of a residual network."""

    channels: tuple[int, ...]  # feature maps of the encoder's stages; the decoder mirrors them
    blocks: int  # residual blocks of a stage
    sizes: tuple[int, ...]  # side of the image before the first stage, then after every one
    activation: str  # one of ACTIVATIONS
    batch_norm: bool  # BatchNorm before every convolution but the encoder's first
    batch_norm_momentum: float  # weight of the newest batch in the running statistics


class Activated(nn.Module):
    """BatchNorm, if there is one, and activation."""

    def __init__(self, channels: int, options: ResidualOptions):
        super().__init__()
        norm = nn.BatchNorm2d(channels, momentum=options.batch_norm_momentum) if options.batch_norm else nn.Identity()
        self.BN, self.activation = norm, ACTIVATIONS[options.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Features of any size, (batch, channels, height, width)."""
        return self.activation(self.BN(x))


class Block(nn.Module):
    """x + conv2(act2(conv1(act1(x)))), with convolutions of 3x3."""

    def __init__(self, channels: int, options: ResidualOptions):
        super().__init__()
        self.act1 = Activated(channels, options)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act2 = Activated(channels, options)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of any size, (batch, channels, height, width)."""
        return x + self.conv2(self.act2(self.conv1(self.act1(x))))


class Residual(Autoencoder):
    """Stages that halve the image, rounding up, and refine it: conv1, block1_1, …, act1, …; and back."""

    def __init__(self, description: Description, options: ResidualOptions):
        super().__init__(description)
        self.options = options
        image_channels, side = description.image_shape[0], options.sizes[-1]
        features = options.channels[-1] * side * side
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        inputs, outputs = image_channels + description.classes, description.outputs * image_channels
        for i, channels in enumerate(options.channels):
            padding = 1 + options.sizes[i] % 2  # with which a kernel of 4 halves the image, rounding up
            self.encoder[f"conv{i + 1}"] = nn.Conv2d(inputs, channels, 4, 2, padding)
            sizes = options.sizes[i + 1], options.sizes[i]
            self.decoder[f"dec{i + 1}"] = upsampling(channels, outputs, 4, 2, padding, sizes)
            for part in (self.encoder, self.decoder):
                for j in range(options.blocks):
                    part[f"block{i + 1}_{j + 1}"] = Block(channels, options)
                part[f"act{i + 1}"] = Activated(channels, options)
            inputs = outputs = channels
        for head, numbers in description.heads.items():
            self.encoder[f"fc_{head}"] = nn.Linear(features, numbers)
        self.decoder["fc"] = nn.Linear(description.latent + description.classes, features)

    def heads_of(self, x: Tensor) -> dict[str, Tensor]:
        """The heads, (batch, numbers), of images with their labels as further channels."""
        for i in range(len(self.options.channels)):
            x = self._refined(self.encoder, i, self.encoder[f"conv{i + 1}"](x))
        return {head: self.encoder[f"fc_{head}"](x.flatten(1)) for head in self.description.heads}

    def outputs_of(self, z: Tensor) -> Tensor:
        """The decoder's numbers, (batch, outputs·channels, height, width), of z with labels beside it."""
        side = self.options.sizes[-1]
        x = self.decoder["fc"](z).unflatten(1, (-1, side, side))
        for i in reversed(range(len(self.options.channels))):
            x = self.decoder[f"dec{i + 1}"](self._refined(self.decoder, i, x))
        return x

    def _refined(self, part: nn.ModuleDict, stage: int, x: Tensor) -> Tensor:
        for j in range(self.options.blocks):
            x = part[f"block{stage + 1}_{j + 1}"](x)
        return part[f"act{stage + 1}"](x)
