"""Images in batches: how many at a time, also where an objective looks at whole batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from vae_jax.config import Config
from vae_jax.objectives import Objective

BATCH = 250  # images at a time; no result depends on it but through the noise, which is drawn for each batch


def in_batches(
    function: Callable[..., Any],
    count: int,
    *arrays: Array | None,
    first: Int[Array, ""] | int = 0,
    size: int | None = None,
    valid: Int[Array, ""] | int | None = None,
) -> Any:
    """`function(number, *batch)` over batches of the arrays' first axis, numbered from `first` on, joined again.

    Of the arrays the first `valid` are looked at, by default all.
    """
    size = size or BATCH
    batches = -(-count // size)
    # The last batch is filled up with the first images; the surplus is cut off again.
    index = (jnp.arange(batches * size) % (count if valid is None else valid)).reshape(batches, size)

    def body(_, number_and_index):
        number, index = number_and_index
        return None, function(number, *(None if array is None else array[index] for array in arrays))

    _, results = lax.scan(body, None, (first + jnp.arange(batches), index))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)


def block(config: Config, objective: Objective, images: int) -> int:
    """How many of so many images are evaluated together.

    Figures of a whole batch depend on its size: where there are some, blocks are as large as the training's batches,
    the last one filled up with the first images.
    """
    return min(config.train.batch_size, images) if objective.figures and objective.figures.of_batch else BATCH
