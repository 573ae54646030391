"""From any real numbers to numbers of an example: means of a decoder's output, or a prior's pseudo-inputs."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

# By what an example's numbers are, see `vae_jax.spec.Kind`.
LINKS: dict[str, Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]] = {
    "levels": jax.nn.sigmoid,
    "reals": lambda numbers: numbers,
    "categories": jax.nn.softmax,  # over the last axis
}
