"""Objectives: one short pure function each, and one line here."""

from typing import Any

from vae_jax.config import ObjectiveConfig
from vae_jax.errors import UserError
from vae_jax.expectation import expect
from vae_jax.objectives.autoencoder import CORRUPTIONS, autoencoder, denoising_autoencoder
from vae_jax.objectives.base import Model, Objective, Terms
from vae_jax.objectives.importance import ciwae, iwae, miwae, piwae
from vae_jax.objectives.vae import SCHEDULES, capacity_vae, vae
from vae_jax.registry import check_functions, lookup

__all__ = ["OBJECTIVES", "Model", "Objective", "Terms", "get"]

OBJECTIVES = {
    "vae": Objective(vae),
    "capacity_vae": Objective(capacity_vae),
    "iwae": Objective(iwae),
    "miwae": Objective(miwae),
    "piwae": Objective(piwae, apart=True),
    "ciwae": Objective(ciwae),
    "autoencoder": Objective(autoencoder, "squared error per image", generative=False),
    "denoising_autoencoder": Objective(denoising_autoencoder, "squared error per image", generative=False),
}
CHOICES = {
    "corruption": CORRUPTIONS,
    "schedule": SCHEDULES,
    "kl": ("auto", "analytic", "sampled"),
    "gradient": ("standard", "stl", "dreg"),
}


def get(config: ObjectiveConfig) -> Objective:
    """The configured objective; a function from a user's file is taken as one in nats.

    Raises:
        UserError: if its name, or another one in its options, is unknown.
    """
    for option, choices in CHOICES.items():
        lookup(dict.fromkeys(choices), getattr(config, option), f"objective.{option}")
    if config.gradient == "dreg" and config.name == "vae":
        raise UserError(
            "objective.gradient: expected standard or stl for objective vae, whose one sample has no "
            "weights; found dreg"
        )
    found = lookup(OBJECTIVES, config.name, "objective.name", ("key", "model", "images", "config"))
    objective = found if isinstance(found, Objective) else Objective(found)
    check_functions(objective, "objective.name")
    return objective


def checked(objective: Objective, name: str) -> Objective:
    """The objective, whose terms are checked while they are traced.

    Its `terms` raises a UserError if it gives anything but `Terms` with one number an image.
    """

    def terms(key: Any, model: Model, images: Any, config: ObjectiveConfig) -> Terms:
        result = objective.terms(key, model, images, config)
        if not isinstance(result, Terms):
            found = type(result).__name__
            raise UserError(
                f"objective.name {name}: expected it to give Terms(loss, reconstruction, kl); found {found}"
            )
        for part, value in result._asdict().items():
            expect(f"objective.name {name}, {part}", value, (len(images),))
        return result

    return objective._replace(terms=terms)
