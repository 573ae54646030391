"""The state before the first step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vae_jax import optimizer
from vae_jax.config import Config
from vae_jax.data.split import Split
from vae_jax.keys import begin_key, make_keys
from vae_jax.model.build import build
from vae_jax.objectives import Objective
from vae_jax.options import NO_NUMBERS
from vae_jax.training.checks import labels_for
from vae_jax.training.state import TrainState, init_optimizer, names_of
from vae_jax.variables import Variables

BEGIN_IMAGES = 256  # of which a codebook is made


def start(
    config: Config, image_shape: tuple[int, ...], images: int, data: tuple[Array, Array | None] | None = None
) -> TrainState:
    """The state before the first step of a run on `images` training images; 0 if they are not known yet.

    Args:
        config: of the run.
        image_shape: of an example.
        images: to train on.
        data: some images and their labels, see `first_images`, for parts that are made of data.

    Raises:
        UserError: if the configuration does not fit together.
    """
    composition, objective = build(config, image_shape)
    key = make_keys(config.seed).init
    variables = composition.init(key)
    if data and composition.posterior.begin:
        variables = jax.jit(composition.begin)(variables, begin_key(key), *data)
    return start_from(config, objective, variables, images)


def first_images(config: Config, split: Split) -> tuple[Array, Array | None]:
    """Images spread over the split, for parts that are made of data, and their labels if the model gets them."""
    chosen = split.spread(min(len(split), BEGIN_IMAGES))
    labels = labels_for(config, chosen)
    return jnp.asarray(chosen.images), None if labels is None else jnp.asarray(labels)


def start_from(
    config: Config,
    objective: Objective,
    variables: Variables,
    images: int,
    numbers: Mapping[str, Any] = NO_NUMBERS,
) -> TrainState:
    """The state before the first step with these variables and a fresh optimiser's state."""
    steps = max(1, -(-images // config.train.batch_size))

    # As one program: otherwise jax would compile a program for every shape of array.
    def fresh(params: PyTree) -> tuple[Array, PyTree, Array]:
        opt_state = init_optimizer(optimizer.build(config, steps, numbers), objective, params)
        return jnp.zeros((), jnp.int32), opt_state, jnp.zeros((steps, len(names_of(objective))))

    step, opt_state, sums = jax.jit(fresh)(variables.params)
    return TrainState(step, variables, opt_state, sums)
