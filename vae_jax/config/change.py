"""Configurations made of others: options changed by their dotted names, looked at one by one, and checked together."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

from vae_jax.config.parts import PARTS, registry_of
from vae_jax.config.schema import Config
from vae_jax.config.section import (
    SECTIONS,
    Chosen,
    OfOthers,
    options_class,
    resolved,
    settled,
    unchecked,
    unknown,
    with_changed,
)
from vae_jax.errors import UserError, argument
from vae_jax.files import plain_yaml
from vae_jax.options import TRACED, Option, as_text, options_in, read_text, shown, unmet, value
from vae_jax.spec import OTHERS

Json = int | float | str | bool | None | list[int]  # an option's value as JSON gives it back
# Names that options had in earlier versions.
RENAMED = {f"train.adam_{name}": f"optimizer.{name}" for name in ("b1", "b2", "eps")}


def with_options(config: Config, **changes: Any) -> Config:
    """The configuration with some options changed: `with_options(config, **{"train.epochs": 2})`.

    A value may be text, as of a flag: "2". A section may be changed at once: `train={"epochs": 2}`.

    Raises:
        UserError: for an unknown option, one of another part than the one that is named, a wrong type or a value out
            of range.
    """
    return _with(config, changes, "refused")


def as_listed(config: Config, **changes: Any) -> Config:
    """As `with_options`, of what a file lists: options of other parts may be there, as they are by default."""
    return _with(config, changes, "listed")


def adapted(config: Config, **changes: Any) -> Config:
    """As `with_options`, but options that nothing looks at any more are left out, whatever they are."""
    return without_unused(_with(config, changes, "dropped"))


def _with(config: Config, changes: dict[str, Any], of_others: OfOthers) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    remaining = list(changes.items())
    while remaining:
        option, given = remaining.pop(0)
        option = RENAMED.get(option, option)
        section, _, name = option.rpartition(".")
        if option in SECTIONS:
            given = read_text(option, given) if isinstance(given, str) else given
            if not isinstance(given, dict):
                named = argument(f"{option}.OPTION", "VALUE")
                raise UserError(f"{argument(option)}: expected one of its options, as {named}; found {shown(given)!r}")
            remaining = [(f"{option}.{name}", own) for name, own in given.items()] + remaining
        elif section in PARTS or option == "seed" or name in options_in(SECTIONS.get(section)):
            sections.setdefault(section, {})[name] = given
        else:
            raise unknown(option, *_every())
    own = _values("", Config, sections.pop("", {}))
    return replace(
        config, **own, **{name: _section(config, name, given, of_others) for name, given in sections.items()}
    )


def _values(section: str, kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    options = options_in(kind)
    return {name: value(f"{section}.{name}".removeprefix("."), options[name], raw) for name, raw in given.items()}


def _section(config: Config, name: str, given: dict[str, Any], of_others: OfOthers) -> Any:
    section, own = getattr(config, name), options_in(SECTIONS[name])
    values = _values(name, SECTIONS[name], {option: raw for option, raw in given.items() if option in own})
    if not isinstance(section, Chosen):
        return replace(section, **values)
    chosen = unchecked(section, **values)
    of_part = {option: raw for option, raw in given.items() if option not in own}
    listed = section.listed - of_part.keys() if of_others == "refused" else section.listed | of_part.keys()
    changed = settled(name, chosen.part, dict(section.changed) | of_part, of_others)
    return unchecked(chosen, changed=changed, listed=listed)


def _every() -> list[str]:
    """The dotted names of all options but those of parts."""
    return ["seed", *(f"{name}.{option}" for name, section in SECTIONS.items() for option in options_in(section))]


def options_of_section(name: str) -> dict[str, Option]:
    """The options of a section, and of all our parts of it."""
    found = dict(options_in(SECTIONS[name]))
    if name in PARTS:
        for part in registry_of(name):
            found = options_in(options_class(name, part)) | found
    return found


def values_in(option: str, text: str) -> list[str]:
    """The values in "1,2,3", or "[8,16],[16,32]" where each is a list, as text that `option` takes.

    Raises:
        UserError: if it is no such list.
    """
    section, _, name = RENAMED.get(option, option).rpartition(".")
    known = options_of_section(section).get(name) if section in SECTIONS else None
    kinds = known.kinds if known else (str, type(None))
    try:
        values = plain_yaml.load(f"[{text}]", str in kinds)  # where 1e3 may be a name, it is no number
        if known is None:  # of a user's part, which will read each by itself
            plain = plain_yaml.load(f"[{text}]")
            values = [as_text(part) if isinstance(part, list) else own for own, part in zip(values, plain, strict=True)]
    except ValueError as error:
        raise UserError(f"{option}: expected values with commas between them; found {text:.60}") from error
    if not values or "" in values or (None in values and type(None) not in kinds):
        raise UserError(f"{option}: expected values with commas between them; found {text!r:.60}")
    return [as_text(found) for found in values]


def options_of(config: Config) -> dict[str, Any]:
    """Every option's value by its dotted name: the sections' and the chosen parts'; of users' parts what is not as it
    is by default.
    """
    options = {"seed": config.seed}
    for name, section in SECTIONS.items():
        own = getattr(config, name)
        options |= {f"{name}.{option}": getattr(own, option) for option in options_in(section)}
        if name in PARTS:
            known = options_in(options_class(name, own.part)) if own.part in registry_of(name) else {}
            values = {option: known[option].default for option in known} | dict(own.changed)
            options |= {f"{name}.{option}": found for option, found in values.items()}
    return options


def changed_options(config: Config) -> dict[str, Any]:
    """The options that are not as they are by default."""
    options = {} if config.seed == 0 else {"seed": config.seed}
    for name, section in SECTIONS.items():
        own = getattr(config, name)
        for option, known in options_in(section).items():
            if getattr(own, option) != known.default:
                options[f"{name}.{option}"] = getattr(own, option)
        options |= {f"{name}.{option}": found for option, found in getattr(own, "changed", ())}
    return options


def resolve_parts(config: Config, names: Container[str] | None = None) -> Config:
    """The configuration with the options of users' parts checked, as ours always are. Users' files are loaded for it.

    Args:
        config: whole.
        names: of the parts that may be loaded; by default all.

    Raises:
        UserError: naming an option that is none of its part's, or what is wrong with its value.
    """
    chosen = {name: getattr(config, name) for name in PARTS}
    users = {name: own for name, own in chosen.items() if own.changed and own.part not in registry_of(name)}
    may = {name: own for name, own in users.items() if names is None or own.part in names}
    return replace(config, **{name: resolved(own) for name, own in may.items()})


def check_used(config: Config, generative: bool | None = None) -> None:
    """Refuses an option that the rest of the configuration would silently ignore.

    Args:
        config: whole.
        generative: whether the objective is, once users' files are loaded; until then nothing is known of what they
            look at.

    Raises:
        UserError: naming it, what it needs and what was found.
    """
    for option, by, choices, found in _unused(config, generative):
        raise UserError(f"{option}: expected {by} {' or '.join(map(as_text, choices))}; found {as_text(found)}")


def check_section(section: Any) -> None:
    """The same for the options of one section, as the data's, and of its part."""
    for option, by, choices, found in _unmet(section):
        raise UserError(f"{option}: expected {by} {' or '.join(map(as_text, choices))}; found {as_text(found)}")


def without_unused(config: Config) -> Config:
    """The same configuration with options that it ignores at their defaults."""
    while option := next((option for option, *_ in _unused(config)), None):
        name, _, own = option.partition(".")
        section = getattr(config, name)
        if own == "name":
            section = type(section)()
        elif own in options_in(SECTIONS[name]):
            section = replace(section, **{own: options_in(SECTIONS[name])[own].default})
        else:
            section = with_changed(section, tuple(pair for pair in section.changed if pair[0] != own))
        config = replace(config, **{name: section})
    return config


def _unused(config: Config, generative: bool | None = None) -> Iterator[tuple[str, str, tuple[Any, ...], Any]]:
    """Options that are set and that nothing looks at: each with what decides that, what it would have to be, and is."""
    if any(getattr(config, name) != SECTIONS[name]() for name in ("posterior", "prior", "likelihood")):
        known = registry_of("objective")
        fits = generative
        if fits is None:
            fits = config.objective.part not in known or known[config.objective.part].generative
        if not fits:
            choices = tuple(name for name, objective in known.items() if objective.generative)
            for name in ("posterior", "prior", "likelihood"):
                if getattr(config, name) != SECTIONS[name]():
                    yield f"{name}.name", "objective.name", choices, config.objective.part
    for name in SECTIONS:
        yield from _unmet(getattr(config, name), generative is not None)
    if config.data.kind in OTHERS:  # of which no pictures are made
        usual = type(config.output)()
        for name in ("figure_every", "figure_images"):
            if getattr(config.output, name) != getattr(usual, name):
                yield f"output.{name}", "data.kind", ("image",), config.data.kind


def _unmet(section: Any, load: bool = False) -> Iterator[tuple[str, str, tuple[Any, ...], Any]]:
    name = section.SECTION
    pairs: list[tuple[Any, Any]] = [(type(section), section)]
    if name in PARTS and section.changed and (load or section.part in registry_of(name)):
        pairs.append((options_class(name, section.part), section.options))
    for kind, values in pairs:
        for option, need, found in unmet(kind, values):
            yield f"{name}.{option}", f"{name}.{need.option}", need.values, found


def as_used(config: Config, *options: str) -> str:
    """Those of these options that the configuration has, each with its value, in words."""
    values = options_of(config)
    return ", ".join(f"{option} {as_text(values[option])}" for option in options if option in values)


def traced_in(config: Config) -> dict[str, Option]:
    """The options that only change numbers in the compiled program; any other may change the program itself."""
    options = {f"train.{name}": option for name, option in options_in(SECTIONS["train"]).items()}
    for name in ("optimizer", "objective"):  # the other parts are made once for all members of a program
        own = options_in(options_class(name, getattr(config, name).part))
        options |= {f"{name}.{option}": known for option, known in own.items()}
    return {name: option for name, option in options.items() if TRACED in option.marks}


def value_of(config: Config, option: str) -> Any:
    """An option's value by its dotted name, as it is given, whatever a part's dataclass makes of it."""
    section, _, name = option.rpartition(".")
    owner: Any = getattr(config, section) if section else config
    if name in options_in(type(owner)):
        return getattr(owner, name)
    known = options_in(options_class(section, owner.part))[name]
    return value(option, known, dict(owner.changed).get(name, known.default))


def numbers_of(config: Config) -> dict[str, Any]:
    """The values of the options that only change numbers, as numpy holds them: arguments of compiled programs.

    They are as they are given, whatever a part's dataclass makes of them; their types are the options' own, whatever
    the value, so that one program serves all.
    """
    import numpy as np  # which reading a configuration does without
    from jax import dtypes

    def number(name: str, option: Option) -> np.ndarray:
        kind = next(kind for kind in (float, int, bool) if kind in option.kinds)
        return np.asarray(value_of(config, name), dtypes.canonicalize_dtype(kind))

    return {name: number(name, option) for name, option in traced_in(config).items()}


def at_default(config: Config, options: Iterable[str]) -> Config:
    """The configuration with these options as they are by default."""
    plain = {}
    for option in options:
        name, _, own = option.rpartition(".")
        section = SECTIONS.get(name, Config)
        known = options_in(section)
        plain[option] = (known if own in known else options_in(options_class(name, getattr(config, name).part)))[
            own
        ].default
    return with_values(config, plain)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with these options, unchecked."""
    sections = {}
    for option, given in values.items():
        name, _, own = option.rpartition(".")
        section = sections.get(name) or getattr(config, name, None)
        if section is None:
            sections[own] = given
        elif own in options_in(SECTIONS[name]):
            sections[name] = unchecked(section, **{own: given})
        else:
            plain = options_in(options_class(name, section.part))[own].default
            changed = {key: before for key, before in section.changed if key != own}
            if given != plain:
                changed[own] = given
            sections[name] = with_changed(section, tuple(sorted(changed.items())))
    return unchecked(config, **sections)
