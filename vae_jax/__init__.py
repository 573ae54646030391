"""vae_jax: variational autoencoders in JAX and Flax.

The public names are imported when first used, so that importing vae_jax costs almost nothing.
"""

from vae_jax.version import __version__ as __version__

TYPE_CHECKING = False  # importing typing would take longer than all of this file
if TYPE_CHECKING:
    from vae_jax import layers
    from vae_jax.config import Config, load_config
    from vae_jax.data import Dataset, Split
    from vae_jax.data import load as load_data
    from vae_jax.errors import UserError
    from vae_jax.interop.weights import load_weights, save_weights
    from vae_jax.model.build import build
    from vae_jax.model.model import Model
    from vae_jax.runs.fit import fit
    from vae_jax.runs.reading import load as load_run
    from vae_jax.runs.reading import use
    from vae_jax.runs.train import train as train_run
    from vae_jax.training.state import Trained, TrainState

__all__ = [
    "Config",
    "Dataset",
    "Model",
    "Split",
    "TrainState",
    "Trained",
    "UserError",
    "build",
    "fit",
    "layers",
    "load_config",
    "load_data",
    "load_run",
    "load_weights",
    "save_weights",
    "train_run",
    "use",
]

_PLACES = {
    "Config": "config:Config",
    "Dataset": "data:Dataset",
    "Model": "model.model:Model",
    "Split": "data:Split",
    "TrainState": "training.state:TrainState",
    "Trained": "training.state:Trained",
    "UserError": "errors:UserError",
    "build": "model.build:build",
    "fit": "runs.fit:fit",
    "layers": "layers",
    "load_config": "config:load_config",
    "load_data": "data:load",
    "load_run": "runs.reading:load",
    "load_weights": "interop.weights:load_weights",
    "save_weights": "interop.weights:save_weights",
    "train_run": "runs.train:train",
    "use": "runs.reading:use",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'vae_jax' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _PLACES[name].partition(":")
    imported = import_module(f"vae_jax.{module}")
    return getattr(imported, attribute) if attribute else imported


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
