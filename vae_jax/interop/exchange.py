"""Runs' weights as PyTorch names them, and runs made of PyTorch's weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.config import Config
from vae_jax.data import resolve
from vae_jax.errors import UserError, listed
from vae_jax.interop import weights_file
from vae_jax.interop.torch_source import network_of
from vae_jax.interop.torch_weights import COUNTER, from_state_dict, to_state_dict
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.model.composition import PARTS
from vae_jax.networks import BATCH_STATS
from vae_jax.runs.adopt import adopt
from vae_jax.runs.folder import ORIGIN, Origin, check_folder
from vae_jax.runs.folder import origin as origin_of
from vae_jax.spec import NOT_IMAGE
from vae_jax.training.state import Trained
from vae_jax.variables import Variables

KEPT = ("encoder", "decoder", BATCH_STATS)  # what a file of weights holds of a model's parameters and state


def state_dict_of(trained: Trained, folder: str | Path) -> dict[str, np.ndarray]:
    """The weights of a run's encoder and decoder, with PyTorch's names and layouts.

    Args:
        trained: the model.
        folder: of the run, which says how many batches imported weights had seen.

    Raises:
        UserError: if the network has no names in PyTorch, or a count is missing.
    """
    network, origin, step = network_of(trained.config.model), origin_of(folder), int(trained.state.step)
    counters = {name: count + step for name, count in origin.counters.items()} if origin else step
    try:
        return to_state_dict(_networks_alone(trained.variables), counters, network.flat)
    except KeyError as error:
        raise UserError(f"{Path(folder) / ORIGIN}: expected a count for each BatchNorm; {error} missing") from error


def _networks_alone(variables: Variables) -> Variables:
    return Variables(*({name: part[name] for name in KEPT if name in part} for part in variables))


def other_parts(config: Config, variables: Variables) -> list[str]:
    """The model's parts, but for encoder and decoder, that have parameters or a state of their own."""
    others = {name for part in variables for name in part} - set(KEPT)
    options = {name: name if name in PARTS else "objective" for name in sorted(others)}
    return [f"{option}.name {getattr(config, option).name}" for option in dict.fromkeys(options.values())]


def import_run(
    path: str | Path,
    config: Config,
    folder: str | Path,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Makes a run from weights that PyTorch or an export saved; training goes on with a fresh optimiser state.

    Args:
        path: a safetensors file; or a state_dict in a .pt or .pth file, for which PyTorch must be installed.
        config: of the model.
        folder: of the run; created.
        overwrite: delete the run in it first.
        report: gets lines on what was left out or converted, and on the image size and channels chosen if the
            configuration sets none.

    Raises:
        UserError: if it is no such file, or does not hold the model's weights; names every tensor that differs.
    """
    path = Path(path)
    check_folder(Path(folder), False, overwrite)
    config = replace(config, data=resolve(config.data, report=report))
    if config.data.kind in NOT_IMAGE:
        raise UserError(f"data.kind: expected image to import weights of PyTorch's; found {config.data.kind}")
    shape = config.data.image_shape
    composition, _ = build(config, shape)
    like = composition.init(make_keys(config.seed).init)
    flat = network_of(config.model).flat
    if others := other_parts(config, like):
        raise UserError(
            f"{listed(others)}: expected parts without parameters of their own, which have no names in PyTorch"
        )
    model = f"model.network {config.model.network} as configured"
    weights = weights_file.read(path, to_state_dict(like, flat=flat), model, report)
    variables = jax.tree.map(jnp.asarray, from_state_dict(weights.arrays, like, flat))
    counters = {name: int(array) for name, array in weights.arrays.items() if name.endswith(COUNTER)}
    origin = Origin(counters, str(path.absolute()), weights.sha256)
    return adopt(config, variables, folder, origin._asdict(), overwrite, report)
