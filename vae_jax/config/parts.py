"""The registries of the parts that a configuration names."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from vae_jax.registry import lookup

FACTORY = ("options", "shapes")


class Kind(NamedTuple):
    """A kind of part.

    Attributes:
        registry: "module:table" of our parts by name; imported when needed, since it imports jax.
        takes: names of the arguments of a part's function.
        option: the section's option that names the part.
    """

    registry: str
    takes: tuple[str, ...]
    option: str = "name"


PARTS = {
    "model": Kind("vae_jax.networks:NETWORKS", FACTORY, "network"),
    "posterior": Kind("vae_jax.posteriors:POSTERIORS", FACTORY),
    "prior": Kind("vae_jax.priors:PRIORS", FACTORY),
    "likelihood": Kind("vae_jax.likelihoods:LIKELIHOODS", FACTORY),
    "objective": Kind("vae_jax.objectives:OBJECTIVES", ("key", "model", "images", "options")),
    "optimizer": Kind("vae_jax.optimizer:OPTIMIZERS", ("options", "learning_rate")),
}
EXTENSIBLE = tuple(f"{section}.{kind.option}" for section, kind in PARTS.items())


def registry_of(section: str) -> Mapping[str, Any]:
    """Our parts of a section, by name."""
    module, _, table = PARTS[section].registry.partition(":")
    return getattr(import_module(module), table)


def entry_of(section: str, name: str) -> Any:
    """The part registered under a name, or the one that a user's import path names.

    Raises:
        UserError: if there is none of this name, or it does not take the section's arguments.
    """
    kind = PARTS[section]
    return lookup(registry_of(section), name, f"{section}.{kind.option}", kind.takes)
