"""One model in both frameworks: with the same weights, images, noise and dropout masks."""

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
PERTURBATION = 0.3  # added to fresh running statistics: their 0 and 1 would make evaluation mode trivial


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
    """A context in which jax computes in float32 or float64, and PyTorch with its own kernels.

    PyTorch's default on a CPU, oneDNN, rounds coarsely: on MNIST's mostly black images the article's float32 gradients
    were up to 1e-2 (of a tensor's largest entry) from the float64 ones, against 1e-6 without it.
    """
    unchanged: dict[str, Any] = {"deterministic": None, "allow_tf32": None, "fp32_precision": None}
    with jax.enable_x64(precision == "float64"), torch.backends.mkldnn.flags(enabled=False, **unchanged):
        yield


def torch_device() -> str:
    """PyTorch's name of the device that jax uses, or cpu if PyTorch does not have it."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


class Pair:
    """A network and its PyTorch twin, in the precision that jax is set to."""

    def __init__(self, config: Config, image_shape: tuple[int, ...]):
        """Builds both; the twin has its own weights until `share`.

        Raises:
            UserError: if the configuration does not fit together, or PyTorch has no layer or objective for it.
        """
        if config.model.precision != "float32":
            raise UserError(f"model.precision: expected float32 to compare with; found {config.model.precision}")
        compute_exactly()
        self.config = config
        self.composition, self.objective = build(config, image_shape)
        self.dtype = jnp.zeros(()).dtype
        self.device = torch_device()
        self.twin = TorchTwin(config.model, image_shape, tuple(self.composition.posterior.heads))
        self.twin.to(self.device, torch.float64 if self.dtype == jnp.float64 else torch.float32)
        self._draws = jax.jit(self._draw)

    def variables(self, perturbed: bool = True) -> Variables:
        """The network's initial variables; if `perturbed`, with running statistics as after some training."""
        variables = self.composition.init(make_keys(self.config.seed).init)
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
        """Converts one of our arrays to PyTorch; floating-point ones to the twin's type."""
        tensor = torch.from_numpy(np.array(array)).to(self.device)
        return tensor.to(next(self.twin.parameters()).dtype) if tensor.is_floating_point() else tensor

    def images(self, images: UInt8[np.ndarray, "batch h w c"]) -> torch.Tensor:
        """Converts images for the twin."""
        return to_torch(images, next(self.twin.parameters()))

    def draws(
        self, variables: Variables, images: UInt8[np.ndarray, "batch h w c"], key: Key[Array, ""], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The noise and masks that our training draws in this step of the run, for the twin.

        Args:
            variables: of the network; only their shapes matter.
            images: the step's batch.
            key: the run's key for steps.
            step: the step's number.
        """
        ours = self._draws(variables, jnp.asarray(images), key, jnp.int32(step))
        return self.to_torch(ours.noise), {name: self.to_torch(mask) for name, mask in ours.masks.items()}

    def _draw(self, variables: Variables, images: Any, key: Key[Array, ""], step: Any) -> Draws:
        keys = step_keys(step_key(key, step))
        targets = self.composition.treat(None, images)

        def terms(model: BoundModel) -> Any:
            return self.objective.terms(keys.objective, model, targets, self.config.objective.options)

        def noise(model: BoundModel) -> Any:
            # With mean 0 and variance 1, z is the noise itself.
            heads = {name: jnp.zeros((len(images), size)) for name, size in self.composition.posterior.heads.items()}
            return model.sample(jax.random.clone(keys.objective), heads)[0]

        trace = self.composition.trace(variables, terms, keys.dropout, train=True)
        return Draws(self.composition.apply(variables, noise)[0], trace.masks)


def difference(ours: Any, expected: Any) -> tuple[float, float]:
    """The largest difference of two arrays, and the largest entry of the second, by size."""
    ours, expected = (np.asarray(array, np.float64) for array in (ours, expected))
    return float(np.abs(ours - expected).max(initial=0)), float(np.abs(expected).max(initial=0))


def dead_biases(config: Config) -> set[str]:
    """PyTorch's names of the biases before a BatchNorm, which subtracts them again: their true gradient is 0."""
    if not config.model.options.batch_norm:
        return set()
    layers = len(config.model.options.channels)
    return {f"conv{i + 1}.bias" for i in range(layers)} | {f"dec{i + 1}.bias" for i in range(layers - 1)}
