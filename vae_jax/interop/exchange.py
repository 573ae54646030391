"""Exports runs as files of weights for PyTorch, and imports such files as runs."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from vae_jax.config import Config
from vae_jax.data import resolve
from vae_jax.errors import UserError, argument, listed
from vae_jax.interop import weights_file
from vae_jax.interop.torch_weights import COUNTER, from_state_dict, to_state_dict
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.runs.adopt import adopt
from vae_jax.runs.folder import ORIGIN, Origin, check_folder
from vae_jax.runs.folder import origin as origin_of
from vae_jax.runs.reading import load
from vae_jax.spec import NOT_IMAGE
from vae_jax.training.state import Trained
from vae_jax.variables import Variables


def export_run(
    folder: str | Path,
    path: str | Path,
    checkpoint: str = "latest",
    report: Callable[[str], None] = warnings.warn,
    trust_code: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Writes a run's weights as a safetensors file with PyTorch's names and layouts.

    In PyTorch, `model.load_state_dict(safetensors.torch.load_file(path), strict=True)` reads them.

    Args:
        folder: of the run.
        path: of the file, with the ending .safetensors.
        checkpoint: latest or best.
        report: see `vae_jax.runs.reading.load`.
        trust_code: see there.

    Returns:
        The tensors' shapes by name.

    Raises:
        UserError: if there is no such run, or the file's name has another ending.
    """
    path = Path(path)
    weights_file.check_target(path)
    return write_for_torch(load(folder, checkpoint, report, trust_code), folder, path)


def write_for_torch(trained: Trained, folder: str | Path, path: Path) -> dict[str, tuple[int, ...]]:
    """Writes the weights of a run's model, see `export_run`.

    Args:
        trained: the model.
        folder: of the run, which says how many batches imported weights had seen.
        path: of the file.
    """
    variables, origin = trained.variables, origin_of(folder)
    others = f"{argument('to', 'onnx')} and {argument('to', 'stablehlo')}"
    _check_exchangeable(trained.config, variables, f"; {others} take every model")
    step = int(trained.state.step)
    counters = {name: count + step for name, count in origin.counters.items()} if origin else step
    try:
        arrays = to_state_dict(variables, counters)
    except KeyError as error:
        raise UserError(f"{Path(folder) / ORIGIN}: expected a count for each BatchNorm; {error} missing") from error
    weights_file.write(path, arrays)
    return {name: array.shape for name, array in arrays.items()}


def _check_exchangeable(config: Config, variables: Variables, hint: str = "") -> None:
    """Refuses weights that PyTorch's flat names cannot place.

    Raises:
        UserError: naming the part of the model that has them.
    """
    if config.model.network != "convolutional":
        raise UserError(
            f"model.network: expected convolutional, the only one with PyTorch's names; found {config.model.network}"
            f"{hint}"
        )
    if unnamed := set(variables.params) - {"encoder", "decoder"}:
        names = listed(f"{part}.name {getattr(config, part).name}" for part in sorted(unnamed))
        raise UserError(
            f"{names}: expected parts without parameters of their own, which have no names in PyTorch{hint}"
        )


def import_run(
    path: str | Path,
    config: Config,
    folder: str | Path,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Makes a run from weights that PyTorch or `export_run` saved; training goes on with a fresh optimiser state.

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
    _check_exchangeable(config, like)
    model = f"model.network {config.model.network} as configured"
    weights = weights_file.read(path, to_state_dict(like), model, report)
    variables = jax.tree.map(jnp.asarray, from_state_dict(weights.arrays, like))
    counters = {name: int(array) for name, array in weights.arrays.items() if name.endswith(COUNTER)}
    origin = Origin(counters, str(path.absolute()), weights.sha256)
    return adopt(config, variables, folder, origin._asdict(), overwrite, report)
