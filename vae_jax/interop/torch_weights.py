"""Names and layouts of parameters between Flax and PyTorch. Works without torch: arrays in, arrays out."""

from typing import Any

import numpy as np

from vae_jax.models import Variables

# Flax's name of a layer's array -> PyTorch's.
_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _to_torch(array: Any) -> np.ndarray:
    """A kernel in PyTorch's layout: (in, out) -> (out, in), (side, side, in, out) -> (out, in, side, side).

    A transposed convolution's (side, side, out, in) becomes PyTorch's (in, out, side, side) by the same exchange.
    """
    array = np.asarray(array)
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(array.ndim)
    return np.ascontiguousarray(array if axes is None else array.transpose(axes))


def to_state_dict(variables: Variables, steps: int = 0) -> dict[str, np.ndarray]:
    """A network's variables under the names and in the layouts of PyTorch's state_dict.

    Args:
        variables: of a network whose layers have kernels, biases and running statistics.
        steps: training steps taken, which PyTorch keeps as each BatchNorm's num_batches_tracked.
    """
    found = {}
    for collection in (variables.params, variables.batch_stats):
        for part in collection.values():  # encoder and decoder, which PyTorch's flat names do not tell apart
            for layer, arrays in part.items():
                for name, array in arrays.items():
                    found[f"{layer}.{_NAMES[name]}"] = _to_torch(array)
                if "mean" in arrays:
                    found[f"{layer}.num_batches_tracked"] = np.int64(steps)
    return found
