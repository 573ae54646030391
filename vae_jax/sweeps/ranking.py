"""The members' outcomes, and which of them may be ranked together."""

import math
from typing import Any, NamedTuple

from vae_jax import likelihoods, objectives
from vae_jax.config import (
    Config,
)
from vae_jax.data import Dataset
from vae_jax.shapes import Shapes
from vae_jax.sweeps.plan import Member, Sweep


class Outcome(NamedTuple):
    """The outcome of a member.

    Attributes:
        member: which one.
        history: figures of its epochs, see `vae_jax.runs.fit.fit`.
        failure: why it has diverged; empty if it has not.
    """

    member: Member
    history: list[dict[str, Any]]
    failure: str = ""


class Ranking(NamedTuple):
    """The figure by which members are ranked, lower is better; only members of the same ranking compare.

    Attributes:
        split: that the figure is of.
        parts: the figures that it is the sum of.
        unit: of the loss.
        measure: the kind of the likelihood's values, see `vae_jax.likelihoods.measured`; without a likelihood the data.
        generative: whether there is a likelihood, and with it −ELBO (reconstruction + KL).
    """

    split: str
    parts: tuple[str, ...]
    unit: str
    measure: str
    generative: bool

    @property
    def name(self) -> str:
        """The figure in words."""
        return f"{self.split} {'−ELBO' if 'kl' in self.parts else self.parts[0]}"

    @property
    def kind(self) -> str:
        """The figure's unit and measure, in words."""
        return f"{self.unit}, {self.measure}"

    def of(self, epoch: dict[str, Any]) -> float:
        """An epoch's value."""
        return sum(epoch.get(f"{self.split}_{part}", math.nan) for part in self.parts)


def ranking(sweep: Sweep, config: Config, data: Dataset) -> Ranking:
    """A member's ranking.

    It is the loss. If the objective is swept, losses are of different kinds: then it is −ELBO (reconstruction + KL), or
    the reconstruction alone if there is no ELBO.
    """
    split = "test" if data.validation is None else "validation"
    objective, treatment = objectives.get(config.objective), config.data.treatment
    parts = ("loss",)
    if any(option.startswith("objective.") for option in sweep.settings):
        parts = ("reconstruction", "kl") if objective.generative else ("reconstruction",)
    spec = data.spec
    objective = objectives.in_units_of(objective, spec.noun)
    measure = likelihoods.described(treatment, spec.support)
    if objective.generative:
        shapes = Shapes(spec.shape, config.model.latent, config.model.classes, support=spec.support)
        likelihood = likelihoods.get(config.likelihood, shapes)
        measure = likelihoods.measured(likelihood, config.likelihood.name, treatment, spec.support)
    return Ranking(split, parts, objective.unit, measure, objective.generative)
