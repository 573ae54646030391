"""Where the parts that a configuration names are registered, and what options each has.

A part's options are a dataclass that its function names in the annotation of its parameter `options`, ours and a
user's alike. What a user's file names is loaded only when its options are looked at, since that runs the file.
"""

import functools
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, NamedTuple

from vae_jax.errors import UserError, brief
from vae_jax.options import Option, options_in
from vae_jax.registry import lookup

FACTORY = ("options", "shapes")


class Kind(NamedTuple):
    """A kind of part.

    Attributes:
        registry: module:table of ours by name, imported when it is needed: jax comes with it.
        takes: the names of the arguments of a part's function.
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
    """What is registered under a name, or what a user's import path names.

    Raises:
        UserError: if there is none of this name, or it does not take the section's arguments.
    """
    kind = PARTS[section]
    return lookup(registry_of(section), name, f"{section}.{kind.option}", kind.takes)


def options_class(section: str, name: str) -> type | None:
    """The dataclass of a part's options; None where it has none. A user's file is loaded for it.

    Raises:
        UserError: see `entry_of`; if the annotation is of no such dataclass, or of one with an option that has a name
            of the section's own.
    """
    entry = entry_of(section, name)
    try:
        return _with_names_of_its_own(_annotated(getattr(entry, "terms", entry)), section)
    except UserError as error:
        raise UserError(f"{section}.{PARTS[section].option} {name}: {error}") from error


@functools.cache
def _annotated(function: Any) -> type | None:
    """The dataclass in the annotation of a function's parameter `options`."""
    try:
        hint = inspect.signature(function).parameters["options"].annotation
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(hint, str):  # of a module with `from __future__ import annotations`
        try:
            hint = eval(hint, vars(sys.modules[function.__module__]))
        except Exception as error:
            raise UserError(f"options: expected a frozen dataclass; found {hint:.60}: {brief(error)}") from error
    if hint in (inspect.Parameter.empty, Any, object, None):
        return None
    options_in(hint)
    return hint


@functools.cache
def _with_names_of_its_own(kind: type | None, section: str) -> type | None:
    """The dataclass, none of whose options has a name that the section has itself: none could be given a value."""
    from vae_jax.config.schema import SECTIONS  # which is made with what is here

    own = [field.name for field in fields(SECTIONS[section])]
    for option in options_in(kind):
        if option in own:
            raise UserError(
                f"{getattr(kind, '__name__', kind)}.{option}: expected a name other than {', '.join(own)}, "
                f"which are {section}'s own; found {option}"
            )
    return kind


def having(section: str, option: str) -> dict[str, Option]:
    """Our parts of a section that have an option, by name, each with what it is there."""
    found = {}
    for name in registry_of(section):
        options = options_in(options_class(section, name))
        if option in options:
            found[name] = options[option]
    return found
