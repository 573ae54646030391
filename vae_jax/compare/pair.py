"""One model in both frameworks: the same weights, the same images, the same noise and dropout masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float, Key, UInt8

from vae_jax.config import Config
from vae_jax.errors import UserError
from vae_jax.interop.torch_training import compute_exactly, to_torch
from vae_jax.interop.torch_twin import TorchTwin
from vae_jax.interop.torch_weights import to_state_dict
from vae_jax.keys import make_keys, step_key, step_keys
from vae_jax.model.build import build
from vae_jax.objectives import BoundModel
from vae_jax.variables import Variables

PRECISIONS = ("float32", "float64")
PERTURBATION = 0.3  # of fresh running statistics, whose 0 and 1 would make evaluation mode trivial


class Draws(NamedTuple):
    """The random numbers of one training step.

    Attributes:
        noise: the reparameterization's ε, (batch, latent).
        masks: dropout's, (batch, features) by layer.
    """

    noise: Float[Array, "batch latent"]
    masks: dict[str, Array]


@contextmanager
def precisely(precision: str) -> Iterator[None]:
    """Has jax compute in float32 or float64 as long as it lasts, and PyTorch with its own kernels.

    oneDNN, its default on a CPU, rounds coarsely: on MNIST's mostly black images the article's float32 gradients came
    out up to 1e-2 (of a tensor's largest entry) from the float64 ones, against 1e-6 without it.
    """
    unchanged: dict[str, Any] = {"deterministic": None, "allow_tf32": None, "fp32_precision": None}
    with jax.enable_x64(precision == "float64"), torch.backends.mkldnn.flags(enabled=False, **unchanged):
        yield


def torch_device() -> str:
    """PyTorch's name of the device jax computes on, as far as PyTorch has it."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


class Pair:
    """A network and its PyTorch twin, in the precision that jax is set to."""

    def __init__(self, config: Config, image_shape: tuple[int, ...]):
        """Builds both; the twin's weights are its own until `share`.

        Raises:
            UserError: if the configuration does not fit together, or PyTorch has no layer or objective for it.
        """
        if config.model.precision != "float32":
            raise UserError(f"model.precision: expected float32 to compare with; found {config.model.precision}")
        compute_exactly()
        self.config = config
        self.network, self.objective = build(config, image_shape)
        self.dtype = jnp.zeros(()).dtype
        self.device = torch_device()
        self.twin = TorchTwin(config.model, image_shape, tuple(self.network.posterior.heads))
        self.twin.to(self.device, torch.float64 if self.dtype == jnp.float64 else torch.float32)
        self._draws = jax.jit(self._draw)

    def variables(self, perturbed: bool = True) -> Variables:
        """The network's initial variables, with running statistics as after some training if `perturbed`."""
        variables = self.network.init(make_keys(self.config.seed).init)
        if not perturbed:
            return variables
        random = np.random.RandomState(self.config.seed)
        return variables._replace(
            state=jax.tree.map(
                lambda x: x + jnp.asarray(PERTURBATION * random.rand(*x.shape), x.dtype), variables.state
            )
        )

    def share(self, variables: Variables) -> None:
        """Gives the twin these weights."""
        state = {name: torch.tensor(array) for name, array in to_state_dict(variables).items()}
        self.twin.load_state_dict(state, strict=True)

    def to_torch(self, array: Any) -> torch.Tensor:
        """An array of ours; floating-point ones in the twin's type."""
        tensor = torch.from_numpy(np.array(array)).to(self.device)
        return tensor.to(next(self.twin.parameters()).dtype) if tensor.is_floating_point() else tensor

    def images(self, images: UInt8[np.ndarray, "batch h w c"]) -> torch.Tensor:
        """Images for the twin."""
        return to_torch(images, next(self.twin.parameters()))

    def draws(
        self, variables: Variables, images: UInt8[np.ndarray, "batch h w c"], key: Key[Array, ""], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The noise and the masks that our training draws in this step of the run, for the twin.

        Args:
            variables: of the network; only their shapes matter.
            images: the step's batch.
            key: the run's for steps.
            step: its number.
        """
        found = self._draws(variables, jnp.asarray(images), key, jnp.int32(step))
        return self.to_torch(found.noise), {name: self.to_torch(mask) for name, mask in found.masks.items()}

    def _draw(self, variables: Variables, images: Any, key: Key[Array, ""], step: Any) -> Draws:
        own = step_keys(step_key(key, step))
        targets = self.network.treat(None, images)

        def terms(model: BoundModel) -> Any:
            return self.objective.terms(own.objective, model, targets, self.config.objective.options)

        def noise(model: BoundModel) -> Any:
            # z of mean 0 and variance 1 is the noise itself.
            heads = {name: jnp.zeros((len(images), size)) for name, size in self.network.posterior.heads.items()}
            return model.sample(jax.random.clone(own.objective), heads)[0]

        trace = self.network.trace(variables, terms, own.dropout, train=True)
        return Draws(self.network.apply(variables, noise)[0], trace.masks)


def difference(found: Any, expected: Any) -> tuple[float, float]:
    """The largest difference of two arrays, and the largest entry of the second."""
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    return float(np.abs(found - expected).max(initial=0)), float(np.abs(expected).max(initial=0))


def dead_biases(config: Config) -> set[str]:
    """PyTorch's names of the biases that feed a BatchNorm, whose true gradient is 0: it subtracts them again."""
    if not config.model.options.batch_norm:
        return set()
    layers = len(config.model.options.channels)
    return {f"conv{i + 1}.bias" for i in range(layers)} | {f"dec{i + 1}.bias" for i in range(layers - 1)}
