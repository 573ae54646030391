"""A section of a configuration: its own options and those of the part that it names, checked when they are set.

A part's options are a dataclass that its function names in the annotation of its parameter `options`, ours and a
user's alike. What a user's file names is loaded only when its options are looked at, since that runs the file.
"""

import functools
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from vae_jax.config.parts import PARTS, entry_of, registry_of
from vae_jax.errors import UserError, argument, brief
from vae_jax.options import NO_NUMBERS, Option, made, nearest, options_in, shown, value

# What becomes of options that only others of our parts have: they are refused; or left out where they are as by
# default, since files of an earlier version list them all, and else refused; or left out, whatever they are.
OfOthers = Literal["refused", "listed", "dropped"]


SECTIONS: dict[str, Any] = {}  # by name, in the order in which they are declared


@dataclass(frozen=True)
class Section:
    """Options that are checked when they are set."""

    SECTION: ClassVar[str] = ""

    def __init_subclass__(cls):
        if cls.SECTION:
            SECTIONS[cls.SECTION] = cls

    def __post_init__(self):
        for name, option in options_in(type(self)).items():
            given = getattr(self, name)
            if given is not option.default:
                object.__setattr__(self, name, value(f"{self.SECTION}.{name}".removeprefix("."), option, given))


@dataclass(frozen=True, init=False)
class Chosen(Section):
    """A part, by its name or a user's import path, and its options.

    Attributes:
        changed: the part's options that are not as they are by default, sorted by name. Of a part that is not ours they
            stay as they were given until `resolved`.
        listed: the part's options that a file lists. Of a part that is not ours nobody knows until it is loaded whether
            they are only others'.
    """

    changed: tuple[tuple[str, Any], ...] = field(default=(), metadata={"of_part": True})
    listed: frozenset[str] = field(default=frozenset(), compare=False, metadata={"of_part": True})

    def __init__(self, *values: Any, **given: Any):
        """Takes the section's own options, in their order or by name, and by name the part's.

        Raises:
            UserError: naming an option that is none of this part's, or what is wrong with its value.
        """
        own = options_in(type(self))
        named = {**dict(zip(own, values, strict=False)), **given}
        for name, option in own.items():
            object.__setattr__(self, name, named.pop(name, option.default))
        self.__post_init__()
        object.__setattr__(self, "listed", named.pop("listed", frozenset()))
        changed = {**dict(named.pop("changed", ())), **named}
        object.__setattr__(self, "changed", settled(self.SECTION, self.part, changed))

    @property
    def part(self) -> str:
        """The part's name."""
        return getattr(self, PARTS[self.SECTION].option)

    @property
    def options(self) -> Any:
        """The part's own dataclass, or None if it has none. A user's file is loaded for it.

        Raises:
            UserError: if there is no such part, or an option is none of it or has a wrong value.
        """
        return self.options_with(NO_NUMBERS)

    def options_with(self, numbers: Mapping[str, Any]) -> Any:
        """The same with some numbers, by dotted name, in place of its own; those of other sections are passed over."""
        kind, own = options_class(self.SECTION, self.part), f"{self.SECTION}."
        changed = dict(_checked(self, kind, dict(self.changed)))  # without a dataclass too, which refuses any option
        numbers = {name.removeprefix(own): given for name, given in numbers.items() if name.startswith(own)}
        return kind and made(kind, self.SECTION, changed, numbers)


def settled(
    section: str, part: str, given: Mapping[str, Any], of_others: OfOthers = "refused"
) -> tuple[tuple[str, Any], ...]:
    """A part's options that are not as they are by default; those of a part that is not ours as they are given.

    Args:
        section: of the part.
        part: its name.
        given: values by option.
        of_others: what becomes of options that only others of our parts have.

    Raises:
        UserError: naming an option that no part of ours has, or that only others have; or what is wrong with its value.
    """
    if not given:
        return ()
    if part not in registry_of(section):
        return tuple(sorted((name, _plain(f"{section}.{name}", raw)) for name, raw in given.items()))
    return _of_part(section, part, options_class(section, part), given, of_others)


def resolved(section: Chosen) -> Chosen:
    """The section with the options of a user's part as those of ours always are: checked. Its file is loaded.

    Raises:
        UserError: naming an option that is none of this part's, or what is wrong with its value.
    """
    kind = options_class(section.SECTION, section.part)
    return with_changed(section, _checked(section, kind, dict(section.changed)))


def _checked(section: Chosen, kind: type | None, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    by_file = {name: raw for name, raw in given.items() if name in section.listed}
    others = {name: raw for name, raw in given.items() if name not in section.listed}
    listed = _of_part(section.SECTION, section.part, kind, by_file, "listed")
    return tuple(sorted(listed + _of_part(section.SECTION, section.part, kind, others, "refused")))


def renamed_part(section: Chosen, name: str) -> Any:
    """The section with its part by another name, the same part, of which nothing is looked at."""
    return unchecked(section, **{PARTS[section.SECTION].option: name})


def with_changed(section: Any, changed: tuple[tuple[str, Any], ...]) -> Any:
    """The section with other options of its part, unchecked."""
    return unchecked(section, changed=changed)


def unchecked(section: Any, **values: Any) -> Any:
    copy = object.__new__(type(section))
    for name, own in (vars(section) | values).items():
        object.__setattr__(copy, name, own)
    return copy


def _of_part(
    section: str, part: str, kind: type | None, given: Mapping[str, Any], of_others: OfOthers
) -> tuple[tuple[str, Any], ...]:
    options, changed = options_in(kind), []
    for name, raw in sorted(given.items()):
        if option := options.get(name):
            found = None if raw == "null" and type(None) in option.kinds else value(f"{section}.{name}", option, raw)
            if found != option.default:
                changed.append((name, found))
            continue
        if not (others := having(section, name)):
            known = [*options_in(SECTIONS[section]), *options]
            raise unknown(f"{section}.{name}", *(f"{section}.{own}" for own in known))
        if of_others == "dropped":
            continue
        plain = next(iter(others.values()))
        as_default = value(f"{section}.{name}", plain, raw) == plain.default
        # No earlier version has listed options of optimisers.
        if not as_default or of_others == "refused" or section == "optimizer":
            by = f"{section}.{PARTS[section].option}"
            raise UserError(f"{section}.{name}: expected {by} {' or '.join(others)}; found {part}")
    return tuple(changed)


def unknown(option: str, *known: str) -> UserError:
    """What is said of an option that there is not, with the nearest one of those that there are."""
    hint = nearest(argument(option), map(argument, known))
    return UserError(
        f"{argument(f'{option:.60}')}: expected an option of a configuration; found none of that name{hint}"
    )


def _plain(name: str, raw: Any) -> Any:
    """What was given for an option of which nothing is known yet, if it may be an option at all."""
    if isinstance(raw, list | tuple):
        return tuple(_plain(name, part) for part in raw)
    if isinstance(raw, bool | int | float | str) or raw is None:
        return raw
    if getattr(raw, "shape", None) == ():
        return raw.item()
    raise UserError(f"{name}: expected a value; found {shown(raw)}")


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
