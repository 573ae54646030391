"""A trained model in one file: safetensors with JAX's names and layouts, and the configuration in its metadata.

An array's name is its path, as `params.encoder.Dense_0.kernel`. The file has no history, no optimiser's state and no
paths of the data.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vae_jax.config import Config, load_config, options_of
from vae_jax.errors import UserError, argument, cut, listed
from vae_jax.files import checked
from vae_jax.interop import weights_file
from vae_jax.keys import probing_key
from vae_jax.model.build import build
from vae_jax.runs import identity, own_parts
from vae_jax.spec import KINDS
from vae_jax.training.start import start_from
from vae_jax.training.state import Trained

FORMAT, VERSION = "vae_jax", "1"  # in the metadata


class _About(NamedTuple):
    """The metadata on the model."""

    options: dict[str, Any]
    image_shape: list[int]
    class_names: list[str] | None


def save_weights(trained: Trained, path: str | Path) -> Path:
    """Writes a trained model, its weights and its configuration, as a safetensors file that `load_weights` reads.

    Left out are the paths of its data (`data.manual_dir`, `data.cache_dir`, `data.path`), the run it started from
    (`train.start`) and what a run keeps (`output`).

    Args:
        trained: by `fit`, or read from a run folder.
        path: of the file, with the ending .safetensors; an existing file is replaced.

    Returns:
        The path.

    Raises:
        UserError: if the file's name has another ending, an array has a type that the format lacks, or two arrays have
            the same name.
        OSError: if the file cannot be written.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> path = vae_jax.save_weights(vae_jax.fit(config, data), "digits.safetensors")
        >>> path.name
        'digits.safetensors'
    """
    path = Path(path)
    weights_file.check_target(path)
    leaves, known = _by_name(trained.variables), set(weights_file.DTYPES.values())
    if strange := [f"{name} ({leaf.dtype})" for name, leaf in leaves.items() if str(leaf.dtype) not in known]:
        raise UserError(f"{path}: expected arrays of types that safetensors has; found {listed(strange)}")
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    local = (*identity.LOCAL, "train.start")
    options = {name: value for name, value in options_of(trained.config).items() if not name.startswith(local)}
    names = trained.class_names
    about = _About(options, list(trained.image_shape), None if names is None else list(names))
    metadata = {"format": FORMAT, "version": VERSION, "model": json.dumps(about._asdict())}
    weights_file.write(path, arrays, metadata)
    return path


def load_weights(path: str | Path, trust_code: bool = False) -> Trained:
    """Reads the trained model from a file of `save_weights`, bit for bit; its history is empty, its optimiser fresh.

    Args:
        path: of the file.
        trust_code: run the code that its configuration names: users' files and modules, `FILE.py:ENTRY`.

    Raises:
        UserError: if it is no such file, its arrays are not those of its configuration's model (names all that differ),
            or it names code that is not trusted.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> trained = vae_jax.fit(config, data)
        >>> again = vae_jax.load_weights(vae_jax.save_weights(trained, "digits.safetensors"))
        >>> again.config.model == trained.config.model
        True
    """
    path = Path(path)
    if weights_file.check_source(path) != "safetensors":
        raise UserError(f"{path}: expected a file of save_weights, which ends in .safetensors; found a pickle")
    with weights_file.opened(path, path) as stored:
        metadata = stored.metadata() or {}
        slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (it is no dict)
        layouts = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    about = _read_about(path, metadata)
    shape = tuple(about.image_shape)
    config = _read_config(path, about.options, trust_code)
    composition, objective = build(config, shape)
    like = jax.eval_shape(composition.init, probing_key())
    expected = _by_name(like)
    weights_file.check_layout(path, layouts, expected, "the model in its metadata")
    with weights_file.opened(path, path) as stored:
        leaves = [jnp.asarray(np.array(stored.get_tensor(name))) for name in expected]
    variables = jax.tree.unflatten(jax.tree.structure(like), leaves)
    class_names = None if about.class_names is None else tuple(about.class_names)
    return Trained(config, shape, start_from(config, objective, variables, 0), [], class_names)


def _by_name(variables: PyTree) -> dict[str, Any]:
    """The arrays by their dotted paths, in the tree's order.

    Raises:
        UserError: if two have the same path.
    """
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ]
    arrays = dict(named)
    if len(arrays) < len(named):
        raise UserError("model.network: expected arrays of different names to make a file of; found two of the same")
    return arrays


def _read_config(path: Path, options: dict[str, Any], trust_code: bool) -> Config:
    if unknown := [option for option in options if option != "seed" and "." not in option]:
        raise UserError(f"{path}: expected options of a configuration; found {listed(sorted(unknown))}")
    try:
        config = load_config(None, **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if (names := own_parts.names_in(config)) and not trust_code:
        raise UserError(
            f"{path}: expected a model of the package's own parts; found {listed(names)}, which runs code; read it, "
            f"and if you trust it use {argument('trust_code', True)}"
        )
    return config


def _read_about(path: Path, metadata: dict[str, str]) -> _About:
    kind, version = metadata.get("format", "none"), metadata.get("version", "none")
    if (kind, version) != (FORMAT, VERSION):
        actual = f"format {cut(kind)}, version {cut(version)}"
        hint = "; vae-jax import takes PyTorch's" if kind == "pt" else ""
        raise UserError(
            f"{path}: expected a file of save_weights, format {FORMAT}, version {VERSION}; found {actual}{hint}"
        )
    with checked.named(path, "metadata, model: "):
        about = checked.parse(metadata.get("model", "").encode(), _About)
        kind = about.options.get("data.kind") or "image"
        axes = KINDS[kind].axes if kind in tuple(KINDS) else ()
        if len(about.image_shape) != len(axes) or min(about.image_shape) < 1:
            raise checked.UnfitError(
                f"image_shape: expected {', '.join(axes) or 'a known data.kind'}; found {cut(str(about.image_shape))}"
            )
    return about
