"""Functions from real numbers to an example's numbers: means of a decoder's output, or a prior's pseudo-inputs."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

# By the kind of an example's numbers, see `vae_jax.spec.Kind`.
LINKS: dict[str, Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]] = {
    "levels": jax.nn.sigmoid,
    "reals": lambda numbers: numbers,
    "categories": jax.nn.softmax,  # over the last axis
}
