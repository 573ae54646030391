"""Images in batches, also for objectives that need whole batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from vae_jax.config import Config
from vae_jax.objectives import Objective

BATCH = 250  # images at a time; results depend on it only through the noise, which is drawn for each batch


def in_batches(
    function: Callable[..., Any],
    count: int,
    *arrays: Array | None,
    first: Int[Array, ""] | int = 0,
    size: int | None = None,
    valid: Int[Array, ""] | int | None = None,
) -> Any:
    """`function(number, *batch)` over batches of the arrays' first axis, numbered from `first` on, concatenated.

    Only the first `valid` rows of the arrays are used, by default all.
    """
    size = size or BATCH
    batches = -(-count // size)
    # The last batch is filled up with the first images; their results are cut off.
    index = (jnp.arange(batches * size) % (count if valid is None else valid)).reshape(batches, size)

    def body(_, number_and_index):
        number, index = number_and_index
        return None, function(number, *(None if array is None else array[index] for array in arrays))

    _, results = lax.scan(body, None, (first + jnp.arange(batches), index))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)


def block(config: Config, objective: Objective, images: int) -> int:
    """How many images are evaluated together, of `images`.

    Figures of a whole batch depend on its size: with such figures, blocks are as large as the training's batches, and
    the last one is filled up with the first images.
    """
    return min(config.train.batch_size, images) if objective.figures and objective.figures.of_batch else BATCH
