"""Converts names and layouts of parameters between Flax and PyTorch. Works without torch: arrays in, arrays out."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vae_jax.variables import Variables

# Flax's name of a layer's array -> PyTorch's.
_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Axes of a kernel by its rank: (in, out) -> (out, in), (side, side, in, out) -> (out, in, side, side). A transposed
# convolution's (side, side, out, in) becomes PyTorch's (in, out, side, side) by the same exchange.
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}

COUNTER = "num_batches_tracked"  # PyTorch's count of training batches, one per BatchNorm


def _transposed(array: Any, axes: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    # Contiguous: safetensors silently scrambles any other array.
    array = np.asarray(array)
    return np.ascontiguousarray(array.transpose(axes[array.ndim]) if array.ndim in axes else array)


def _name(path: tuple[Any, ...], flat: bool) -> str:
    """PyTorch's name of an array with the path (encoder or decoder, …, layer, array)."""
    *parts, layer, name = (entry.key for entry in path)
    return ".".join([*([] if flat else parts), layer, _NAMES[name]])


def to_state_dict(variables: Variables, steps: int | Mapping[str, int] = 0, flat: bool = True) -> dict[str, np.ndarray]:
    """A network's variables under the names and in the layouts of PyTorch's state_dict.

    Args:
        variables: of a network whose layers have kernels, biases and running statistics.
        steps: training steps taken, which PyTorch keeps as every BatchNorm's num_batches_tracked; or their numbers by
            name.
        flat: names are those of the layers alone, as the article has them, and not the whole path.
    """
    arrays = {}
    for path, array in jax.tree_util.tree_leaves_with_path((variables.params, variables.state.get("batch_stats", {}))):
        name = _name(path[1:], flat)
        arrays[name] = _transposed(array, _TO_TORCH)
        if name.endswith(".running_mean"):
            counter = name.replace("running_mean", COUNTER)
            arrays[counter] = np.asarray(steps[counter] if isinstance(steps, Mapping) else steps, np.int64)
    return arrays


def from_state_dict(state: Mapping[str, np.ndarray], like: Variables, flat: bool = True) -> Variables:
    """The inverse of `to_state_dict`: variables with the structure and the types of `like`.

    Args:
        state: arrays by PyTorch's names; has all of `like`, with their shapes.
        like: a network's variables.
        flat: see `to_state_dict`.
    """

    def take(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        return _transposed(state[_name(path, flat)], _FROM_TORCH).astype(leaf.dtype)

    def take_state(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        return take(path[1:], leaf)  # PyTorch keeps running statistics beside the parameters

    params = jax.tree_util.tree_map_with_path(take, like.params)
    return Variables(params, jax.tree_util.tree_map_with_path(take_state, like.state))
