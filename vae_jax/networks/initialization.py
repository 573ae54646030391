"""How kernels and biases start.

All numbers are drawn at once and cut into parameters: with a draw a parameter, compiling took 15 s instead of 1.
"""

import math
from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.networks.layers import MARK

Draw = Float[Array, " numbers"]

# The standard deviation of a unit normal truncated at ±2.
TRUNCATED_DEVIATION = 0.87962566103423978


def _uniform(key: Key[Array, ""], count: int) -> Draw:
    return jax.random.uniform(key, (count,), minval=-1.0, maxval=1.0)


def _normal(key: Key[Array, ""], count: int) -> Draw:
    return jax.random.truncated_normal(key, -2.0, 2.0, (count,)) / TRUNCATED_DEVIATION


# (how to draw, (fan-in, fan-out) of the kernel -> factors of a kernel's and of a bias's numbers).
INITIALIZATIONS: dict[str, tuple[Callable[..., Draw], Callable[[int, int], tuple[float, float]]]] = {
    # PyTorch's default for Linear, Conv2d and ConvTranspose2d: uniform in ±1/√fan_in, biases too.
    "pytorch": (_uniform, lambda fan_in, fan_out: (fan_in**-0.5, fan_in**-0.5)),
    # Flax's default (LeCun et al. 1998): a truncated normal of variance 1/fan_in, biases 0.
    "lecun": (_normal, lambda fan_in, fan_out: (fan_in**-0.5, 0.0)),
    # Glorot & Bengio 2010, equation 16: uniform in ±√(6 / (fan_in + fan_out)), biases 0.
    "glorot": (_uniform, lambda fan_in, fan_out: ((6 / (fan_in + fan_out)) ** 0.5, 0.0)),
}


def initialize(name: str, key: Key[Array, ""], params: PyTree, unfilled: PyTree) -> PyTree:
    """Fills the layers of layers.py; the rest, as BatchNorm's parameters or a user's layers, stays as it is.

    A kernel's fan-in is its size without the last axis: the inputs of a Linear, inputs x side² of a Conv and, as in
    PyTorch, *outputs* x side² of a ConvTranspose.

    Args:
        name: of the initialisation.
        key: of all numbers drawn.
        params: of a network.
        unfilled: the collection in which the layers of layers.py have left their paths.
    """
    draw, factors = INITIALIZATIONS[name]
    numbers = draw(key, sum(leaf.size for leaf in jax.tree.leaves(params)))
    used = 0

    def take(parameter: Array, factor: float) -> Array:
        nonlocal used
        used += parameter.size
        return factor * numbers[used - parameter.size : used].reshape(parameter.shape)

    def fill(node: PyTree, marks: PyTree) -> PyTree:
        if not marks:
            return node
        if MARK not in marks:
            return {name: fill(child, marks.get(name)) for name, child in node.items()}
        *side, _, last = node["kernel"].shape
        kernel_factor, bias_factor = factors(math.prod(node["kernel"].shape[:-1]), math.prod(side) * last)
        return {"kernel": take(node["kernel"], kernel_factor), "bias": take(node["bias"], bias_factor)}

    return fill(params, unfilled)
