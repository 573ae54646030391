"""A section of a configuration: its own options and those of the part that it names, checked when they are set.

A part's options are a dataclass, named in the annotation of its function's parameter `options`. A user's file is loaded
only when its options are needed, since that runs the file.
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

# How to treat options that only other parts of ours have. "refused": always refuse them. "listed": leave out those at
# their defaults, since files of an earlier version list them all, and refuse the rest. "dropped": leave all out.
Foreign = Literal["refused", "listed", "dropped"]


SECTIONS: dict[str, Any] = {}  # by name, in the order of their declaration


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
        changed: the part's options that differ from their defaults, sorted by name. Those of a user's part stay as they
            were given until `resolved`.
        listed: the part's options that a file lists. Whether a user's part has them is known once it is loaded.
    """

    changed: tuple[tuple[str, Any], ...] = field(default=(), metadata={"of_part": True})
    listed: frozenset[str] = field(default=frozenset(), compare=False, metadata={"of_part": True})

    def __init__(self, *values: Any, **given: Any):
        """Takes the section's options, in their order or by name, and the part's options by name.

        Raises:
            UserError: naming an option that this part does not have, or what is wrong with its value.
        """
        section_options = options_in(type(self))
        named = {**dict(zip(section_options, values, strict=False)), **given}
        for name, option in section_options.items():
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
        """The part's options as its dataclass, or None if it has none. Loads a user's file.

        Raises:
            UserError: if there is no such part, or it does not have an option or accept its value.
        """
        return self.options_with(NO_NUMBERS)

    def options_with(self, numbers: Mapping[str, Any]) -> Any:
        """`options` with some numbers replaced, given by dotted name; ignores those of other sections."""
        kind, prefix = options_class(self.SECTION, self.part), f"{self.SECTION}."
        changed = dict(_checked(self, kind, dict(self.changed)))  # without a dataclass it refuses any option
        numbers = {name.removeprefix(prefix): given for name, given in numbers.items() if name.startswith(prefix)}
        return kind and made(kind, self.SECTION, changed, numbers)


def settled(
    section: str, part: str, given: Mapping[str, Any], foreign: Foreign = "refused"
) -> tuple[tuple[str, Any], ...]:
    """A part's options that differ from their defaults; those of a user's part as they are given.

    Args:
        section: of the part.
        part: its name.
        given: values by option.
        foreign: how to treat options that only other parts of ours have.

    Raises:
        UserError: naming an option that this part does not have, or what is wrong with its value.
    """
    if not given:
        return ()
    if part not in registry_of(section):
        return tuple(sorted((name, _plain(f"{section}.{name}", raw)) for name, raw in given.items()))
    return _of_part(section, part, options_class(section, part), given, foreign)


def resolved(section: Chosen) -> Chosen:
    """The section with the options of a user's part checked, as ours always are. Loads its file.

    Raises:
        UserError: naming an option that this part does not have, or what is wrong with its value.
    """
    kind = options_class(section.SECTION, section.part)
    return with_changed(section, _checked(section, kind, dict(section.changed)))


def _checked(section: Chosen, kind: type | None, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    by_file = {name: raw for name, raw in given.items() if name in section.listed}
    direct = {name: raw for name, raw in given.items() if name not in section.listed}
    listed = _of_part(section.SECTION, section.part, kind, by_file, "listed")
    return tuple(sorted(listed + _of_part(section.SECTION, section.part, kind, direct, "refused")))


def renamed_part(section: Chosen, name: str) -> Any:
    """The section with another name for the same part, unchecked."""
    return unchecked(section, **{PARTS[section.SECTION].option: name})


def with_changed(section: Any, changed: tuple[tuple[str, Any], ...]) -> Any:
    """The section with these options of its part, unchecked."""
    return unchecked(section, changed=changed)


def unchecked(section: Any, **values: Any) -> Any:
    copy = object.__new__(type(section))
    for name, given in (vars(section) | values).items():
        object.__setattr__(copy, name, given)
    return copy


def _of_part(
    section: str, part: str, kind: type | None, given: Mapping[str, Any], foreign: Foreign
) -> tuple[tuple[str, Any], ...]:
    options, changed = options_in(kind), []
    for name, raw in sorted(given.items()):
        if option := options.get(name):
            new = None if raw == "null" and type(None) in option.kinds else value(f"{section}.{name}", option, raw)
            if new != option.default:
                changed.append((name, new))
            continue
        if not (owners := parts_with(section, name)):
            known = [*options_in(SECTIONS[section]), *options]
            raise unknown(f"{section}.{name}", *(f"{section}.{option}" for option in known))
        if foreign == "dropped":
            continue
        plain = next(iter(owners.values()))
        as_default = value(f"{section}.{name}", plain, raw) == plain.default
        # No earlier version lists options of optimisers.
        if not as_default or foreign == "refused" or section == "optimizer":
            by = f"{section}.{PARTS[section].option}"
            raise UserError(f"{section}.{name}: expected {by} {' or '.join(owners)}; found {part}")
    return tuple(changed)


def unknown(option: str, *known: str) -> UserError:
    """The error for an unknown option, with a hint at one of its last name elsewhere, or at the nearest known one."""
    meant = _elsewhere(option.rpartition(".")[2])
    hint = f" (did you mean {argument(meant)}?)" if meant else nearest(argument(option), map(argument, known))
    return UserError(
        f"{argument(f'{option:.60}')}: expected an option of a configuration; found none of that name{hint}"
    )


def _elsewhere(name: str) -> str:
    """The option of this last name, or that of the section of this name which chooses its part; empty if none is."""
    if name == "seed":
        return name
    if name in PARTS:
        return f"{name}.{PARTS[name].option}"
    return next((f"{section}.{name}" for section, kind in SECTIONS.items() if name in options_in(kind)), "")


def _plain(name: str, raw: Any) -> Any:
    """A value for an option that is not known yet, as a plain Python value."""
    if isinstance(raw, list | tuple):
        return tuple(_plain(name, part) for part in raw)
    if isinstance(raw, bool | int | float | str) or raw is None:
        return raw
    if getattr(raw, "shape", None) == ():
        return raw.item()
    raise UserError(f"{name}: expected a value; found {shown(raw)}")


def options_class(section: str, name: str) -> type | None:
    """The dataclass of a part's options; None if it has none. Loads a user's file.

    Raises:
        UserError: see `entry_of`; if the annotation is no such dataclass, or an option of it has the name of one of the
            section's.
    """
    entry = entry_of(section, name)
    try:
        return _without_section_names(_annotated(getattr(entry, "terms", entry)), section)
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
def _without_section_names(kind: type | None, section: str) -> type | None:
    """The dataclass, once none of its options has the name of one of the section's: such an option could not be set."""
    taken = [field.name for field in fields(SECTIONS[section])]
    for option in options_in(kind):
        if option in taken:
            raise UserError(
                f"{getattr(kind, '__name__', kind)}.{option}: expected a name other than {', '.join(taken)}, "
                f"which are {section}'s own; found {option}"
            )
    return kind


def parts_with(section: str, option: str) -> dict[str, Option]:
    """Our parts of a section that have an option: the option by the part's name."""
    owners = {}
    for name in registry_of(section):
        options = options_in(options_class(section, name))
        if option in options:
            owners[name] = options[option]
    return owners
