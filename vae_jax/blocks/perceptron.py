"""The small fully connected networks inside flows, as pure functions on plain dicts."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key, PyTree


def init_perceptron(key: Key[Array, ""], sizes: Sequence[int]) -> PyTree:
    """Weights of a perceptron whose output starts as 0.

    Args:
        key: of the hidden layers' weights, normal with variance 1/fan-in (LeCun et al. 1998, equation 16).
        sizes: numbers of inputs, of the hidden layers' units, and of outputs.

    Returns:
        {"fc1": {"kernel": (inputs, units), "bias": (units,)}, …}
    """
    keys = jax.random.split(key, len(sizes) - 1)
    layers = {
        f"fc{i + 1}": {"kernel": jax.random.normal(keys[i], (n, m)) * n**-0.5, "bias": jnp.zeros(m)}
        for i, (n, m) in enumerate(pairwise(sizes))
    }
    last = f"fc{len(sizes) - 1}"
    return {**layers, last: jax.tree.map(jnp.zeros_like, layers[last])}


def perceptron(
    params: PyTree, x: Float[Array, "*batch inputs"], masks: Sequence[Bool[Array, "_ _"]] | None = None
) -> Float[Array, "*batch outputs"]:
    """The perceptron of x, with tanh after every layer but the last.

    tanh is bounded, so that a flow is affine far out and its density keeps its tails.

    Args:
        params: of `init_perceptron`.
        x: inputs.
        masks: which weights of a kernel count, one mask a kernel; all by default.
    """
    for i in range(len(params)):
        kernel, bias = params[f"fc{i + 1}"]["kernel"], params[f"fc{i + 1}"]["bias"]
        kernel = kernel if masks is None else kernel * masks[i]
        # A density needs full precision, also on hardware that rounds products.
        x = jnp.dot(jnp.tanh(x) if i else x, kernel, precision=lax.Precision.HIGHEST)
        x = x + jnp.broadcast_to(bias, x.shape)
    return x
