"""Changes a configuration's options by their dotted names, reads them, and checks that they fit together."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

from vae_jax.config.parts import PARTS, registry_of
from vae_jax.config.schema import Config
from vae_jax.config.section import (
    SECTIONS,
    Chosen,
    Foreign,
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
from vae_jax.spec import NOT_IMAGE

Json = int | float | str | bool | None | list[int]  # an option's value as JSON has it
# Options by the names they had in earlier versions.
RENAMED = {f"train.adam_{name}": f"optimizer.{name}" for name in ("b1", "b2", "eps")}


def with_options(config: Config, **changes: Any) -> Config:
    """The configuration with some options changed: `with_options(config, **{"train.epochs": 2})`.

    A value may be text, as a flag's is: "2". A whole section may be changed: `train={"epochs": 2}`.

    Raises:
        UserError: for an unknown option, an option of another part than the chosen one, a wrong type or a value out of
            range.
    """
    return _with(config, changes, "refused")


def as_listed(config: Config, **changes: Any) -> Config:
    """As `with_options`, for a file's options: it may list options of other parts at their defaults."""
    return _with(config, changes, "listed")


def adapted(config: Config, **changes: Any) -> Config:
    """As `with_options`, but leaves out the options that are no longer used."""
    return without_unused(_with(config, changes, "dropped"))


def _with(config: Config, changes: dict[str, Any], foreign: Foreign) -> Config:
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
            remaining = [(f"{option}.{name}", inner) for name, inner in given.items()] + remaining
        elif section in PARTS or option == "seed" or name in options_in(SECTIONS.get(section)):
            sections.setdefault(section, {})[name] = given
        else:
            raise unknown(option, *_section_options())
    top = _values("", Config, sections.pop("", {}))
    return replace(config, **top, **{name: _section(config, name, given, foreign) for name, given in sections.items()})


def _values(section: str, kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    options = options_in(kind)
    return {name: value(f"{section}.{name}".removeprefix("."), options[name], raw) for name, raw in given.items()}


def _section(config: Config, name: str, given: dict[str, Any], foreign: Foreign) -> Any:
    section, known = getattr(config, name), options_in(SECTIONS[name])
    values = _values(name, SECTIONS[name], {option: raw for option, raw in given.items() if option in known})
    if not isinstance(section, Chosen):
        return replace(section, **values)
    chosen = unchecked(section, **values)
    of_part = {option: raw for option, raw in given.items() if option not in known}
    listed = section.listed - of_part.keys() if foreign == "refused" else section.listed | of_part.keys()
    changed = settled(name, chosen.part, dict(section.changed) | of_part, foreign)
    return unchecked(chosen, changed=changed, listed=listed)


def _section_options() -> list[str]:
    """The dotted names of all options except those of parts."""
    return ["seed", *(f"{name}.{option}" for name, section in SECTIONS.items() for option in options_in(section))]


def options_of_section(name: str) -> dict[str, Option]:
    """The options of a section and of all our parts that it may name."""
    options = dict(options_in(SECTIONS[name]))
    if name in PARTS:
        for part in registry_of(name):
            options = options_in(options_class(name, part)) | options
    return options


def values_in(option: str, text: str) -> list[str]:
    """The values in "1,2,3", or in "[8,16],[16,32]" if they are lists, as text that `option` takes.

    Raises:
        UserError: if the text is no such list.
    """
    section, _, name = RENAMED.get(option, option).rpartition(".")
    known = options_of_section(section).get(name) if section in SECTIONS else None
    kinds = known.kinds if known else (str, type(None))
    try:
        values = plain_yaml.load(f"[{text}]", str in kinds)  # 1e3 is text if the option takes text
        if known is None:  # an option of a user's part, which reads its values itself
            plain = plain_yaml.load(f"[{text}]")
            values = [as_text(item) if isinstance(item, list) else raw for raw, item in zip(values, plain, strict=True)]
    except ValueError as error:
        raise UserError(f"{option}: expected values with commas between them; found {text:.60}") from error
    if not values or "" in values or (None in values and type(None) not in kinds):
        raise UserError(f"{option}: expected values with commas between them; found {text!r:.60}")
    return [as_text(item) for item in values]


def or_none(option: str, text: str) -> str | None:
    """A value of an option as text; None for "null", if the option may be that."""
    section, _, name = option.partition(".")
    known = options_of_section(section).get(name) if section in SECTIONS else None
    return None if text == "null" and known is not None and type(None) in known.kinds else text


def options_of(config: Config) -> dict[str, Any]:
    """Every option's value by its dotted name: the sections' and the chosen parts'.

    A user's part gives only the options that differ from their defaults.
    """
    options = {"seed": config.seed}
    for name, kind in SECTIONS.items():
        section = getattr(config, name)
        options |= {f"{name}.{option}": getattr(section, option) for option in options_in(kind)}
        if name in PARTS:
            known = options_in(options_class(name, section.part)) if section.part in registry_of(name) else {}
            values = {option: known[option].default for option in known} | dict(section.changed)
            options |= {f"{name}.{option}": given for option, given in values.items()}
    return options


def changed_options(config: Config) -> dict[str, Any]:
    """The options that differ from their defaults."""
    options = {} if config.seed == 0 else {"seed": config.seed}
    for name, kind in SECTIONS.items():
        section = getattr(config, name)
        for option, known in options_in(kind).items():
            if getattr(section, option) != known.default:
                options[f"{name}.{option}"] = getattr(section, option)
        options |= {f"{name}.{option}": given for option, given in getattr(section, "changed", ())}
    return options


def resolve_parts(config: Config, names: Container[str] | None = None) -> Config:
    """The configuration with the options of users' parts checked, as ours always are. Loads users' files.

    Args:
        config: the whole configuration.
        names: of the parts that may be loaded; all by default.

    Raises:
        UserError: naming an option that its part does not have, or what is wrong with its value.
    """
    sections = {name: getattr(config, name) for name in PARTS}
    users = {
        name: section for name, section in sections.items() if section.changed and section.part not in registry_of(name)
    }
    loadable = {name: section for name, section in users.items() if names is None or section.part in names}
    return replace(config, **{name: resolved(section) for name, section in loadable.items()})


def check_used(config: Config, generative: bool | None = None) -> None:
    """Refuses an option that the rest of the configuration would silently ignore.

    Args:
        config: the whole configuration.
        generative: whether the objective is; given once users' files are loaded, since only then is it known which
            options they use.

    Raises:
        UserError: naming the option, what it needs and what was found.
    """
    for option, by, choices, current in _unused(config, generative):
        section, _, name = option.partition(".")
        if by == "objective.name" and section in PARTS and name == PARTS[section].option:  # a part without a use
            part = f"{option} {getattr(config, section).part}"
            raise UserError(f"{by}: expected {' or '.join(choices)} with {part}; found {current}")
        raise UserError(f"{option}: expected {by} {' or '.join(map(as_text, choices))}; found {as_text(current)}")


def check_section(section: Any) -> None:
    """Refuses an ignored option of one section and its part, see `check_used`."""
    for option, by, choices, current in _unmet(section):
        raise UserError(f"{option}: expected {by} {' or '.join(map(as_text, choices))}; found {as_text(current)}")


def without_unused(config: Config) -> Config:
    """The configuration with the options that it ignores set to their defaults."""
    while option := next((option for option, *_ in _unused(config)), None):
        name, _, key = option.partition(".")
        section = getattr(config, name)
        if key == "name":
            section = type(section)()
        elif key in options_in(SECTIONS[name]):
            section = replace(section, **{key: options_in(SECTIONS[name])[key].default})
        else:
            section = with_changed(section, tuple(pair for pair in section.changed if pair[0] != key))
        config = replace(config, **{name: section})
    return config


def _unused(config: Config, generative: bool | None = None) -> Iterator[tuple[str, str, tuple[Any, ...], Any]]:
    """Options that are set but not used, with the option that decides it, the values it would need, and its value."""
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
    if config.data.kind in NOT_IMAGE:  # no pictures are made of them
        default = type(config.output)()
        for name in ("figure_every", "figure_images"):
            if getattr(config.output, name) != getattr(default, name):
                yield f"output.{name}", "data.kind", ("image",), config.data.kind


def _unmet(section: Any, load: bool = False) -> Iterator[tuple[str, str, tuple[Any, ...], Any]]:
    name = section.SECTION
    pairs: list[tuple[Any, Any]] = [(type(section), section)]
    if name in PARTS and section.changed and (load or section.part in registry_of(name)):
        pairs.append((options_class(name, section.part), section.options))
    for kind, values in pairs:
        for option, need, current in unmet(kind, values):
            yield f"{name}.{option}", f"{name}.{need.option}", need.values, current


def as_used(config: Config, *options: str) -> str:
    """The values of these options in words; leaves out those that the configuration does not have."""
    values = options_of(config)
    return ", ".join(f"{option} {as_text(values[option])}" for option in options if option in values)


def traced_in(config: Config) -> dict[str, Option]:
    """The options that only change numbers in the compiled program; any other may change the program itself."""
    options = {f"train.{name}": option for name, option in options_in(SECTIONS["train"]).items()}
    for name in ("optimizer", "objective"):  # the other parts are made once for all members of a program
        part_options = options_in(options_class(name, getattr(config, name).part))
        options |= {f"{name}.{option}": known for option, known in part_options.items()}
    return {name: option for name, option in options.items() if TRACED in option.marks}


def value_of(config: Config, option: str) -> Any:
    """An option's value as it was given, by its dotted name, even if a part's dataclass derives another from it."""
    section, _, name = option.rpartition(".")
    owner: Any = getattr(config, section) if section else config
    if name in options_in(type(owner)):
        return getattr(owner, name)
    known = options_in(options_class(section, owner.part))[name]
    return value(option, known, dict(owner.changed).get(name, known.default))


def numbers_of(config: Config) -> dict[str, Any]:
    """The values of the options that only change numbers, as NumPy scalars: arguments of compiled programs.

    They are as they were given, see `value_of`. Their types follow from the options and not from the values, so that
    one program serves all.
    """
    import numpy as np  # here, since reading a configuration does without it
    from jax import dtypes

    def number(name: str, option: Option) -> np.ndarray:
        kind = next(kind for kind in (float, int, bool) if kind in option.kinds)
        return np.asarray(value_of(config, name), dtypes.canonicalize_dtype(kind))

    return {name: number(name, option) for name, option in traced_in(config).items()}


def at_default(config: Config, options: Iterable[str]) -> Config:
    """The configuration with these options at their defaults."""
    plain = {}
    for option in options:
        name, _, key = option.rpartition(".")
        section = SECTIONS.get(name, Config)
        known = options_in(section)
        plain[option] = (known if key in known else options_in(options_class(name, getattr(config, name).part)))[
            key
        ].default
    return with_values(config, plain)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with these options, unchecked."""
    sections = {}
    for option, given in values.items():
        name, _, key = option.rpartition(".")
        section = sections.get(name) or getattr(config, name, None)
        if section is None:
            sections[key] = given
        elif key in options_in(SECTIONS[name]):
            sections[name] = unchecked(section, **{key: given})
        else:
            plain = options_in(options_class(name, section.part))[key].default
            changed = {other: before for other, before in section.changed if other != key}
            if given != plain:
                changed[key] = given
            sections[name] = with_changed(section, tuple(sorted(changed.items())))
    return unchecked(config, **sections)
