"""Trains the PyTorch twin as configured: eager steps of Adam, with PyTorch's randomness unless noise is given."""

# pyright: reportMissingImports=false

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vae_jax import optimizer
from vae_jax.config import Config
from vae_jax.data.dataset import Dataset
from vae_jax.errors import UserError
from vae_jax.interop.torch_twin import TorchTwin
from vae_jax.training.divergence import remedies

EVALUATED_AT_ONCE = 250
REDUCTIONS = {"sum": torch.sum, "mean": torch.mean}


def to_torch(images: UInt8[np.ndarray, "batch h w c"], like: Tensor) -> Tensor:
    """Images for PyTorch: (batch, channels, height, width) in [0, 1], of `like`'s type, on its device."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(like) / 255


def compute_exactly() -> None:
    """Makes PyTorch compute float32 in float32, as vae_jax does; by default it rounds convolutions to TF32 on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


class TorchTraining:
    """The twin and its optimiser."""

    def __init__(self, config: Config, twin: TorchTwin, epoch: int, steps: int):
        """Prepares to train the twin for `steps` steps, `epoch` of them in an epoch."""
        self.config, self.twin = config, twin
        train, adam = config.train, config.optimizer.options
        rate = optimizer.schedule(train, train.learning_rate, epoch)
        self.rates = np.asarray(jax.vmap(rate)(jnp.arange(steps)), float)
        self.rates = np.broadcast_to(self.rates, steps)
        self.adam = torch.optim.Adam(twin.parameters(), train.learning_rate, (adam.b1, adam.b2), adam.eps)
        self.taken = 0

    def backward(
        self, images: Tensor, noise: Tensor | None = None, masks: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Computes a batch's gradients in training mode; returns its summed loss, reconstruction and KL, (3,)."""
        self.twin.train()
        terms = self.twin(images, self.config.objective, noise, masks)
        self.adam.zero_grad()
        REDUCTIONS[self.config.train.reduction](terms[0]).backward()
        return torch.stack([part.detach().sum() for part in terms])

    def step(self, images: Tensor, noise: Tensor | None = None, masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """Makes one update; returns the sums of `backward`."""
        sums = self.backward(images, noise, masks)
        limit = self.config.train.gradient_clip
        if limit is not None:
            gradients = [parameter.grad for parameter in self.twin.parameters() if parameter.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
            for gradient in gradients:  # optax's arithmetic; torch.nn.utils' adds 1e-6 to the norm
                gradient.mul_(torch.clamp(limit / norm, max=1.0))
        self.adam.param_groups[0]["lr"] = float(self.rates[self.taken])
        self.adam.step()
        self.taken += 1
        return sums


def evaluate(twin: TorchTwin, config: Config, images: UInt8[np.ndarray, "images h w c"]) -> Float[np.ndarray, "3"]:
    """Mean loss, reconstruction and KL per image, z sampled."""
    twin.eval()
    like = next(twin.parameters())
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for first in range(0, len(images), EVALUATED_AT_ONCE):
            terms = twin(to_torch(images[first : first + EVALUATED_AT_ONCE], like), config.objective)
            sums += torch.stack([part.double().sum() for part in terms]).cpu()
    return (sums / len(images)).numpy()


def fit(
    config: Config,
    data: Dataset,
    heads: tuple[str, ...],
    device: str,
    on_progress: Callable[[int], None],
    on_epoch: Callable[[dict[str, Any]], None],
) -> TorchTwin:
    """Trains the twin as PyTorch does: with its initialisation, shuffling, noise and dropout, from `config.seed`.

    Args:
        config: of the run.
        data: the images.
        heads: of the posterior.
        device: PyTorch's name of the device.
        on_progress: called now and then with the images trained in the epoch so far.
        on_epoch: called after every epoch with its figures, named as in `vae_jax.runs.fit.fit`.

    Raises:
        UserError: if a loss becomes infinite or NaN.
    """
    compute_exactly()
    torch.manual_seed(config.seed)
    twin = TorchTwin(config.model, data.image_shape, heads).to(device)
    count, size = len(data.train), config.train.batch_size
    epoch_steps = -(-count // size)
    training = TorchTraining(config, twin, epoch_steps, config.train.epochs * epoch_steps)
    like = next(twin.parameters())
    images = torch.from_numpy(np.ascontiguousarray(data.train.images.transpose(0, 3, 1, 2))).to(device)
    for epoch in range(1, config.train.epochs + 1):
        began = shown = time.perf_counter()
        order = torch.randperm(count).to(device)
        sums = torch.zeros(3, device=like.device)
        for first in range(0, count, size):
            sums += training.step(images[order[first : first + size]].to(like) / 255)
            if time.perf_counter() - shown > 0.5:
                shown = time.perf_counter()
                on_progress(first + size)
        train = (sums.double().cpu() / count).tolist()  # waits for the device
        seconds = time.perf_counter() - began
        test = evaluate(twin, config, data.test.images).tolist()
        if not np.isfinite([*train, *test]).all():
            losses = f"loss {train[0]}, test loss {test[0]}"
            raise UserError(f"PyTorch's training diverged in epoch {epoch}: {losses}; {remedies(config)}")
        names = ("loss", "reconstruction", "kl")
        on_epoch(
            {
                "epoch": epoch,
                **{f"train_{name}": value for name, value in zip(names, train, strict=True)},
                **{f"test_{name}": value for name, value in zip(names, test, strict=True)},
                "train_seconds": seconds,
                "images_per_second": count / seconds,
            }
        )
    return twin
