"""A trained model in a notebook: a table of its data, parts and figures, and pictures that it draws.

`model` is a `vae_jax.Model` and `trained` a `vae_jax.Trained`; both call this module, so it does not import them.
"""

from html import escape
from typing import Any

import numpy as np

from vae_jax.errors import counted
from vae_jax.keys import showing_key
from vae_jax.model.build import build
from vae_jax.networks import count_parameters
from vae_jax.pictures.sheet import png

SHOWN, COLUMNS = 32, 8  # samples in a picture, and in a row of it


def samples(model: Any) -> bytes | None:
    """The PNG of samples from the prior, always the same; with labels each class in turn.

    None if there is no prior, or the samples are no grey or RGB pictures.
    """
    if model.sample is None:
        return None
    labels = np.arange(SHOWN) % model.classes if model.classes else None
    pictures = np.asarray(model.sample(showing_key(), SHOWN, labels))
    return png(pictures, COLUMNS) if pictures.ndim == 4 and pictures.shape[-1] in (1, 3) else None


def line(trained: Any) -> str:
    """A trained model in a line."""
    rows = _rows(trained)
    names = ("data", "objective", "network", "parameters", "trained")
    return f"Trained({'; '.join(f'{name}: {rows[name]}' for name in names)})"


def table(trained: Any) -> str:
    """A trained model, with its last epoch's figures, as an HTML table."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in _rows(trained).items())
    return f"<table>{rows}</table>"


def _rows(trained: Any) -> dict[str, str]:
    config = trained.config
    composition, objective = build(config, trained.image_shape)
    spec = composition.spec
    size = str(spec).replace("x", "×") + f", {config.data.treatment}" * spec.is_picture
    labels = f", {config.model.classes} labels" if config.model.classes else ""
    rows = {
        "data": f"{config.data.name or config.data.source}, {size}{labels}",
        "network": f"{config.model.network}, {composition.latent} latent dimensions",
        "parameters": f"{count_parameters(trained.state.variables.params):,}",
        "objective": config.objective.name,
    }
    if objective.generative:
        for part in ("posterior", "prior", "likelihood"):
            brought = composition.posterior.decodes and part != "likelihood"
            rows[part] = "the network's own" if brought else getattr(config, part).name
    epochs = len(trained.history)
    rows["trained"] = f"{counted(epochs, 'epoch')}, {int(trained.state.step):,} steps, seed {config.seed}"
    for name, figure in (trained.history[-1] if trained.history else {}).items():
        split, _, what = name.partition("_")
        if split in ("train", "validation", "test") and what != "seconds":
            rows[f"{split} {what}"] = f"{figure:,.2f} {objective.unit_of(what)}"
    return rows
