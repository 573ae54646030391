"""Starts a run with another run's weights, see `TrainConfig.start`."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vae_jax.config import Config
from vae_jax.errors import UserError, listed
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.runs.reading import load
from vae_jax.training.start import start_from
from vae_jax.training.state import TrainState
from vae_jax.variables import Variables

Leaves = dict[tuple[str, ...], Any]  # by their path, which begins with the field, params or state


def start_from_run(
    config: Config,
    image_shape: tuple[int, ...],
    images: int,
    report: Callable[[str], None] | None = None,
    trust_code: bool = False,
) -> TrainState:
    """The state before the first step, with the weights and the statistics of the run in `train.start`.

    Args:
        config: of the run to begin.
        image_shape: (height, width, channels), or of examples of another kind.
        images: to train on.
        report: called with a line of the parameters that are taken from that run, are new, and are left out; by default
            there is no such line, and reports of `vae_jax.runs.reading.load` are warnings.
        trust_code: see `vae_jax.runs.reading.load`, for the run in `train.start`.

    Raises:
        UserError: if there is no such run, it shares no parameters with this model, or an array has another shape.
    """
    assert config.train.start is not None
    folder = Path(config.train.start)
    composition, objective = build(config, image_shape)
    fresh = composition.init(make_keys(config.seed).init)
    initial = _leaves(fresh)
    given = _leaves(load(folder, report=report or warnings.warn, trust_code=trust_code).variables)
    for path, leaf in initial.items():
        if path in given and jnp.shape(given[path]) != jnp.shape(leaf):
            raise UserError(
                f"train.start {folder}: expected {'.'.join(path[1:])} of shape {list(jnp.shape(leaf))}; found "
                f"{list(jnp.shape(given[path]))}"
            )
    taken = [path for path in initial if path in given]
    if not taken:
        raise UserError(f"train.start {folder}: expected a run with parameters of this model; found none of them")
    every = [*initial, *given]
    parts = [f"{_named(taken, every)} from {folder}"]
    missing = [path for path in initial if path not in given]
    if objective.still and (strange := [path for path in missing if path[1] not in (objective.trains or ())]):
        trained = " and ".join(objective.trains or ())
        raise UserError(
            f"train.start {folder}: expected a run with all of this model but its {trained}, since objective "
            f"{config.objective.name} trains nothing else; found none of {_named(strange, every)} in it"
        )
    if missing:
        parts.append(f"new: {_named(missing, every)}")
    if left := [path for path in given if path not in initial]:
        parts.append(f"left out: {_named(left, every)}")
    if report:
        report(f"beginning with {'; '.join(parts)}")
    leaves = [
        jnp.asarray(given[path], jnp.result_type(leaf)) if path in given else leaf for path, leaf in initial.items()
    ]
    return start_from(config, objective, jax.tree.unflatten(jax.tree.structure(fresh), leaves), images)


def _leaves(variables: Variables) -> Leaves:
    """Parameters and state by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _named(chosen: Iterable[tuple[str, ...]], every: Iterable[tuple[str, ...]]) -> str:
    """The chosen paths in words: a part's name if all of it is chosen, else the names inside it."""
    chosen = set(chosen)
    names: dict[str, None] = {}
    for _, part, *inside in sorted(chosen, key=lambda path: path[1:]):  # by the names that are shown
        whole = all(path in chosen for path in every if path[1] == part)
        names[part if whole else ".".join([part, *inside[:1]])] = None
    return listed(names)
