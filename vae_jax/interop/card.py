"""A model card: a page in Markdown that goes with an exported model, with what it is, its figures and its licence."""

from collections.abc import Mapping
from typing import Any

import jax
import yaml

from vae_jax.config import Config
from vae_jax.errors import counted
from vae_jax.interop.functions import Function
from vae_jax.networks import count_parameters
from vae_jax.objectives import Objective
from vae_jax.runs.overview import PLACES, public_options
from vae_jax.training.state import Trained
from vae_jax.version import __version__

CARD_OF = "A variational autoencoder, trained with vae_jax"  # in every card
NO_LICENCE = "The licence of these weights is not stated: ask who trained them before you use them."


def card_of(
    trained: Trained,
    objective: Objective,
    name: str,
    licence: str | None = None,
    functions: list[Function] | None = None,
    use: str = "",
) -> str:
    """The card's text.

    Args:
        trained: the model.
        objective: that it was trained with, which knows the units.
        name: of the model.
        licence: of the weights, an SPDX identifier as "apache-2.0"; None leaves it open, and the card says so.
        functions: that the file holds.
        use: how the file is used, in Markdown.
    """
    config, options = trained.config, public_options(trained.config)
    name = cell(name)
    front = ["---", "library_name: vae_jax", "tags: [vae, jax, image-generation]"]
    front += [f"license: {licence}"] * (licence is not None) + ["---", ""]
    epochs = counted(len(trained.history), "epoch")
    labels = f", {config.model.classes} labels" if config.model.classes else ""
    lines = [
        f"# {name}",
        "",
        f"{CARD_OF} {__version__} and jax {jax.__version__}.",
        "",
        *_table(
            {
                "data": f"{config.data.name or config.data.source}, {'×'.join(map(str, trained.image_shape))}{labels}",
                "networks": f"{options['model.network']}, {count_parameters(trained.variables.params):,} parameters",
                "latent dimensions": config.model.latent,
                "posterior": options["posterior.name"],
                "prior": options["prior.name"],
                "likelihood": options["likelihood.name"],
                "objective": options["objective.name"],
                "training": f"{epochs}, {int(trained.state.step):,} steps, seed {config.seed}",
            }
        ),
        "",
        "## Figures",
        "",
        *(_figures(trained, objective) or ["The run has no figures: it has been trained for no epoch."]),
        "",
    ]
    if functions:
        lines += ["## Functions", "", *_functions(functions), ""]
    if use:
        lines += ["## Use", "", use, ""]
    lines += ["## Licence", "", f"{licence}" if licence else NO_LICENCE, ""]
    lines += ["## Configuration", "", "```yaml", _options(config).rstrip(), "```", ""]
    return "\n".join([*front, *lines])


def _options(config: Config) -> str:
    """The configuration in YAML, without places of this machine and what a run keeps."""
    sections: dict[str, Any] = {}
    for name, value in public_options(config).items():
        if name in PLACES or name.startswith("output."):
            continue
        section, dot, option = name.rpartition(".")
        place = sections.setdefault(section, {}) if dot else sections
        place[option] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(sections, sort_keys=False, default_flow_style=None)


def cell(text: str) -> str:
    """A name on one line, with signs that end a table's cell escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {cell(str(text))} |" for name, text in rows.items())]


def _figures(trained: Trained, objective: Objective) -> list[str]:
    if not trained.history:
        return []
    last, rows = trained.history[-1], {}
    for key, figure in last.items():
        split, _, what = key.partition("_")
        if split in ("train", "validation", "test") and what != "seconds" and isinstance(figure, float | int):
            rows[f"{split} {what.replace('_', ' ')}"] = f"{figure:,.2f} {objective.unit_of(what)}"
    return [f"After epoch {last.get('epoch', len(trained.history))}:", "", *_table(rows)]


def _functions(functions: list[Function]) -> list[str]:
    def given(function: Function, name: str, shape: jax.ShapeDtypeStruct) -> str:
        most = f" from 0 to {function.values[name] - 1}" if name in function.values else ""
        return f"{name} {shape.dtype} ({', '.join(map(str, shape.shape))}){most}"

    return [
        f"- `{function.name}`: {', '.join(given(function, *item) for item in function.inputs.items())} → "
        f"{', '.join(function.outputs)}"
        for function in functions
    ]
