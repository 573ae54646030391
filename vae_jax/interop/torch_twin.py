"""The PyTorch twin of a configured model: the reference for tests, benchmarks and comparisons.

It needs the extra `torch`. Its state_dict has the article's names; `torch_weights.to_state_dict` fills it.
"""

# pyright: reportMissingImports=false

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_jax.config import Config, ModelConfig, ObjectiveConfig
from vae_jax.errors import UserError
from vae_jax.networks.convolutional import plan
from vae_jax.options import as_text

ACTIVATIONS = {
    "leaky_relu": functional.leaky_relu,  # its default slope is 0.01
    "relu": functional.relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


# The objectives that the twin knows, and the only values of further options that it knows.
OBJECTIVES = ("vae", "autoencoder")
KNOWN = {
    "data.treatment": "grey",
    "model.network": "convolutional",
    "model.classes": 0,
    "posterior.name": "diagonal_gaussian",
    "prior.name": "standard_normal",
    "likelihood.name": "bernoulli",
    "optimizer.name": "adam",
    "train.accumulate": 1,
    "train.ema_decay": None,
    "train.patience": None,
    "train.start": None,
}
OPTIONS = {"gradient": "standard", "schedule": "constant", "free_bits": 0}  # of the objective vae


def check_objective(config: ObjectiveConfig) -> None:
    """Refuses an objective that the twin does not know.

    Raises:
        UserError: naming those it knows.
    """
    if config.name not in OBJECTIVES:
        raise UserError(f"objective.name: the PyTorch twin knows {' and '.join(OBJECTIVES)}; found {config.name}")
    if config.name == "vae":
        if config.options.kl == "sampled":
            raise UserError("objective.kl: the PyTorch twin knows analytic; found sampled")
        for option, known in OPTIONS.items():
            if (given := getattr(config.options, option)) != known:
                raise UserError(f"objective.{option}: the PyTorch twin knows {known}; found {given}")


def check_known(config: Config) -> None:
    """Refuses a configuration that is not the article's model with one of its objectives.

    Raises:
        UserError: naming the option and what the twin knows.
    """
    check_objective(config.objective)
    for option, known in KNOWN.items():
        section, name = option.split(".")
        value = getattr(getattr(config, section), name)
        if value != known:
            raise UserError(f"{option}: the PyTorch twin knows {as_text(known)}; found {as_text(value)}")


def heads_of(config: Config) -> tuple[str, ...]:
    """The posterior's heads that the configured objective needs."""
    return ("mu",) if config.objective.name == "autoencoder" else ("mu", "log_var")


class TorchTwin(nn.Module):
    """The convolutional encoder and decoder in PyTorch, with PyTorch's initialisation."""

    def __init__(self, config: ModelConfig, image_shape: tuple[int, ...], heads: tuple[str, ...]):
        """Builds the network for images of (height, width, channels) and these heads of the posterior.

        Raises:
            UserError: if PyTorch has no layer for the configuration, or its sizes do not fit.
        """
        super().__init__()
        options = config.options
        if options.batch_norm and not options.unbiased_running_variance:
            raise UserError("model.unbiased_running_variance: PyTorch's BatchNorm knows only true; found false")
        sizes = plan(options, image_shape)
        self.options, self.plan, self.heads = options, sizes, heads
        self.activation = ACTIVATIONS[options.activation]
        channels = (image_shape[2], *options.channels)
        layers = len(options.channels)
        for i in range(layers):
            conv = nn.Conv2d(channels[i], channels[i + 1], options.kernel, sizes.strides[i], sizes.paddings[i])
            self.add_module(f"conv{i + 1}", conv)
            self._add_norm(f"BN{i + 1}", channels[i + 1])
        side = sizes.sizes[-1]
        self.fc1 = nn.Linear(channels[-1] * side * side, options.hidden)
        for head in heads:
            self.add_module(f"fc_{head}", nn.Linear(options.hidden, config.latent))
        self.fc2 = nn.Linear(config.latent, sizes.widths[0] * side * side)
        for i in range(layers):
            mirrored = layers - 1 - i
            stride, padding = sizes.strides[mirrored], sizes.paddings[mirrored]
            reached = (sizes.sizes[mirrored + 1] - 1) * stride - 2 * padding + options.kernel
            dec = nn.ConvTranspose2d(
                sizes.widths[i],
                sizes.widths[i + 1],
                options.kernel,
                stride,
                padding,
                output_padding=sizes.sizes[mirrored] - reached,
            )
            self.add_module(f"dec{i + 1}", dec)
            if i < layers - 1:
                self._add_norm(f"deb{i + 1}", sizes.widths[i + 1])

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

    def encode(self, x: Tensor, masks: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The heads, (batch, latent), of images (batch, channels, height, width).

        Args:
            x: images in [0, 1].
            masks: dropout's, (batch, latent), by "dropout_<head>"; by default PyTorch draws them.
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
        for head in self.heads:
            h = self._layer(f"fc_{head}", x)
            if options.head_activation:
                h = self.activation(h)
            heads[head] = self._drop(f"dropout_{head}", h, options.head_dropout, masks)
        return heads

    def decode(self, z: Tensor, masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """The logits (batch, channels, height, width) of z (batch, latent); `masks` may hold "dropout_fc2"."""
        x = self.activation(self.fc2(z))
        x = self._drop("dropout_fc2", x, self.options.decoder_dropout, masks)
        side = self.plan.sizes[-1]
        x = x.view(-1, self.plan.widths[0], side, side)
        layers = len(self.options.channels)
        for i in range(layers):
            x = self._layer(f"dec{i + 1}", x)
            if i < layers - 1:
                if self.options.batch_norm:
                    x = self._layer(f"deb{i + 1}", x)
                x = self.activation(x)
        return x

    def forward(
        self,
        images: Tensor,
        config: ObjectiveConfig,
        noise: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, reconstruction and KL per image, (batch,), as `vae_jax.objectives` defines them.

        Args:
            images: (batch, channels, height, width) in [0, 1].
            config: of the objective: vae or autoencoder.
            noise: the reparameterization's ε, (batch, latent); by default PyTorch draws it.
            masks: dropout's; by default PyTorch draws them.
        """
        check_objective(config)
        heads = self.encode(images, masks)
        mu = heads["mu"]
        if config.name == "autoencoder":
            error = (images - torch.sigmoid(self.decode(mu, masks))).square().sum((1, 2, 3))
            return error, error, torch.zeros_like(error)
        log_var = heads["log_var"]
        noise = torch.randn_like(mu) if noise is None else noise
        logits = self.decode(mu + noise * torch.exp(log_var / 2), masks)
        reconstruction = functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((1, 2, 3))
        kl = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1)
        return reconstruction + config.options.beta * kl, reconstruction, kl
