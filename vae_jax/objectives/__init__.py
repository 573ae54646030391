"""Objectives: one short pure function each, and one line here."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vae_jax.config import ObjectiveConfig, entry_of
from vae_jax.errors import UserError, listed, quoted
from vae_jax.keys import probing_key
from vae_jax.objectives.autoencoder import autoencoder, check_corruption, denoising_autoencoder
from vae_jax.objectives.base import FIGURES, Around, BoundModel, Draw, Figures, Objective, Phase, Terms, in_order
from vae_jax.objectives.importance import check_iwae, check_samples, ciwae, is_dreg, iwae, miwae, piwae
from vae_jax.objectives.prior import check_prior, prior
from vae_jax.objectives.score import (
    check_relax,
    check_score,
    fit_control,
    init_control,
    relax_vae,
    score_vae,
    vimco,
)
from vae_jax.objectives.vae import capacity_vae, check_kl, check_vae, vae
from vae_jax.options import of_unknown_value, traced_of
from vae_jax.part_outputs import expect, kind
from vae_jax.registry import check_functions

__all__ = [
    "FIGURES",
    "OBJECTIVES",
    "Around",
    "BoundModel",
    "Draw",
    "Figures",
    "Objective",
    "Phase",
    "Terms",
    "get",
    "in_units_of",
    "loss_of",
]

SQUARED_ERROR = "squared error per image"
OBJECTIVES = {
    "vae": Objective(vae, check=check_vae),
    "capacity_vae": Objective(capacity_vae, check=check_kl),
    "iwae": Objective(iwae, apart=is_dreg, check=check_iwae),
    "miwae": Objective(miwae, apart=is_dreg, check=check_iwae),
    "piwae": Objective(piwae, apart=lambda options: True, check=check_samples),
    "ciwae": Objective(ciwae, check=check_samples),
    "prior": Objective(prior, check=check_prior, trains=("prior",), still=True),
    "score_vae": Objective(score_vae, apart=lambda options: True, check=check_score, scores=True),
    "relax_vae": Objective(
        relax_vae,
        apart=lambda options: True,
        check=check_relax,
        init=init_control,
        then=(Phase("control", fit_control, ("control",)),),
        units={"control_loss": "squared gradient per image"},
        figures=Figures((*FIGURES, "control_loss")),
        scores=True,
    ),
    "vimco": Objective(vimco, apart=lambda options: True, check=check_samples, scores=True),
    "autoencoder": Objective(autoencoder, SQUARED_ERROR, generative=False),
    "denoising_autoencoder": Objective(denoising_autoencoder, SQUARED_ERROR, generative=False, check=check_corruption),
}
# The package's objectives have the common figures; tracing them to ask would delay a run's start.
OBJECTIVES = {
    name: objective._replace(figures=objective.figures or Figures()) for name, objective in OBJECTIVES.items()
}
TAKEN = ("seconds", "codes_used", "perplexity")  # names of figures that no objective gives
FIGURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


def get(config: ObjectiveConfig) -> Objective:
    """The configured objective; a function from a user's file counts as one in nats.

    Raises:
        UserError: if its name is unknown.
    """
    entry = entry_of("objective", config.name)
    objective = entry if isinstance(entry, Objective) else Objective(entry)
    check_functions(objective, "objective.name")
    return objective


def in_units_of(objective: Objective, noun: str) -> Objective:
    """The objective with units per example of this noun in place of per image."""
    units = {name: unit.replace("per image", f"per {noun}") for name, unit in objective.units.items()}
    return objective._replace(unit=objective.unit.replace("per image", f"per {noun}"), units=units)


def checked(objective: Objective, name: str) -> Objective:
    """The objective with terms that are checked while they are traced.

    They raise a UserError if the result is not a dict with a "loss" and, under every name, one number an image, or one
    of the batch. Numbers of the batch are repeated for its images. Figures of later phases begin with the phase's name.
    """

    def check(phase: Phase) -> Callable[..., Terms]:
        where = f"objective.name {name}" + f", phase {phase.name}" * bool(phase.name)

        def terms(key: Any, model: BoundModel, images: Any, options: Any) -> Terms:
            with of_unknown_value(where, traced_of(options)):
                result = phase.terms(key, model, images, options)
            if not isinstance(result, dict) or "loss" not in result:
                raise UserError(f'{where}: expected it to give a dict with a "loss"; found {_described(result)}')
            for figure, value in result.items():
                if not FIGURE_NAME.fullmatch(figure):
                    raise UserError(f"{where}: expected figures named by letters, digits and _; found {quoted(figure)}")
                full = _full_name(phase, figure)
                if full in TAKEN or full.endswith("_std"):
                    raise UserError(
                        f"{where}: expected figures not named {', '.join(TAKEN)} or ending in _std, as the tables' own "
                        f"columns are; found {quoted(full)}"
                    )
                of_batch = figure != "loss" and getattr(value, "shape", None) == ()
                expect(f"{where}, {figure}", value, () if of_batch else (len(images),))
            named = {_full_name(phase, figure): result[figure] for figure in in_order(result)}
            if objective.figures and (unknown := named.keys() - {*objective.figures.names}):
                known = listed(objective.figures.names)
                raise UserError(f"{where}: expected the figures {known}; found {listed(in_order(unknown))}")
            return {figure: jnp.broadcast_to(value, (len(images),)) for figure, value in named.items()}

        return terms

    then = tuple(phase._replace(terms=check(phase)) for phase in objective.then)
    return objective._replace(terms=check(objective.phases[0]), then=then)


def _full_name(phase: Phase, figure: str) -> str:
    return f"{phase.name}_{figure}" if phase.name else figure


def loss_of(phase: Phase, terms: Terms) -> Any:
    """The loss of a phase, among its terms as `checked` gives them."""
    return terms[_full_name(phase, "loss")]


def figures_of(
    objective: Objective, trace: Callable[[Callable[[BoundModel, Any], Terms]], Terms], config: Any
) -> Figures:
    """The figures that an objective has: its `figures`, or by tracing it.

    Args:
        objective: as `get` gives it.
        trace: evaluates a function of a model and of images abstractly.
        config: the objective's options.

    Raises:
        UserError: if two of its phases have a figure of the same name.
    """
    if objective.figures:
        return objective.figures
    shapes: dict[str, Any] = {}

    def look(model: BoundModel, images: Any) -> Terms:
        for phase in objective.phases:
            result = phase.terms(probing_key(), model, images, config)
            for figure, value in result.items() if isinstance(result, dict) else ():
                if (full := _full_name(phase, figure)) in shapes:
                    raise UserError(f"objective.name: expected figures of different names; found {full} twice")
                shapes[full] = getattr(value, "shape", None)
        return {}

    trace(look)
    return Figures(in_order(shapes), tuple(sorted(figure for figure, shape in shapes.items() if shape == ())))


def _described(result: Any) -> str:
    return f"a dict with {listed(map(str, result)) or 'nothing'}" if isinstance(result, dict) else kind(result)
