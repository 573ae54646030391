"""The PyTorch twin of a configured model: the reference for tests, benchmarks and comparisons.

It needs the extra `torch`. Its state_dict has the article's names; `torch_weights.to_state_dict` fills it.
"""

# pyright: reportMissingImports=false

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from vae_jax.config import Config, ModelConfig, ObjectiveConfig
from vae_jax.errors import UserError
from vae_jax.interop.torch_networks import Convolutional, ConvolutionalOptions, Description
from vae_jax.interop.torch_source import settings_of
from vae_jax.options import as_text
from vae_jax.spec import Spec

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


class TorchTwin(Convolutional):
    """The convolutional encoder and decoder in PyTorch; `decode` gives logits, and `forward` the loss."""

    def __init__(self, config: ModelConfig, image_shape: tuple[int, ...], heads: tuple[str, ...]):
        """Builds the network for images of (height, width, channels) and these heads of the posterior.

        Raises:
            UserError: if PyTorch has no layer for the configuration, or its sizes do not fit.
        """
        if config.options.batch_norm and not config.options.unbiased_running_variance:
            raise UserError("model.unbiased_running_variance: PyTorch's BatchNorm knows only true; found false")
        settings = settings_of(config, Spec(image_shape), dict.fromkeys(heads, config.latent))
        super().__init__(Description(**settings.description), ConvolutionalOptions(**settings.options))

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
        heads = self.heads_of(images, masks)
        mu = heads["mu"]
        if config.name == "autoencoder":
            error = (images - torch.sigmoid(self.outputs_of(mu, masks))).square().sum((1, 2, 3))
            return error, error, torch.zeros_like(error)
        log_var = heads["log_var"]
        noise = torch.randn_like(mu) if noise is None else noise
        logits = self.outputs_of(mu + noise * torch.exp(log_var / 2), masks)
        reconstruction = functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((1, 2, 3))
        kl = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1)
        return reconstruction + config.options.beta * kl, reconstruction, kl
