"""Parses a command's arguments with argparse, and a configuration's options by their dotted names."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any

from vae_jax.config import Config, find, read_file, shipped, with_options
from vae_jax.config.change import options_of, or_none
from vae_jax.config.parts import PARTS
from vae_jax.config.section import SECTIONS, options_class
from vae_jax.errors import UserError, brief, cut
from vae_jax.options import FIRST, KINDS, SIZE_LIMIT, TEXT_LIMIT, Option, as_text, nearest, options_in
from vae_jax.registry import lookup

SHORT = {"--from": "train.start"}  # flags of options by another name
NUMBER = re.compile(r"[-+]?[0-9]{1,18}")
HELP = ("-h", "--help", "--help-all")


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors of one line."""

    configured = False  # whether it takes a configuration's options too
    no_file = ""  # why --config is refused, if it is
    first: tuple[str, ...] = ()  # sections all of whose options help shows
    reads = ""  # the name of the argument with the run, or the runs, that the command reads, if there is one
    usual: Config | None = None  # the configuration that help shows where the arguments name none

    def __init__(self, *args: Any, **settings: Any):
        self.offered: dict[argparse.Action, Callable[[], Iterable[str]]] = {}  # values that a shell completes
        super().__init__(*args, **settings)

    def add_argument(
        self, *flags: str, offered: Callable[[], Iterable[str]] | None = None, **settings: Any
    ) -> argparse.Action:
        """As argparse's; `offered` gives the values that a shell completes, which whoever uses the option checks."""
        action = super().add_argument(*flags, **settings)
        if offered:
            self.offered[action] = offered
        return action

    @staticmethod
    def changeable(option: str) -> bool:
        """Whether help shows an option."""
        return True

    def error(self, message: str) -> Any:
        raise UserError(brief(message))

    def show_defaults(self) -> None:
        """Adds the default of every option so far to its help, where there is one and the help does not say it."""
        for action in self._actions:
            default = action.default if isinstance(action.default, str | int | float) else None
            shown = default is not None and default is not False and default != argparse.SUPPRESS
            if shown and action.help and "default" not in action.help:
                action.help += f" (default {default})".replace("%", "%%")


def whole(text: str) -> int:
    """The whole number in an argument."""
    if not NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected a whole number; found {cut(text)}")
    return int(text)


def number(text: str) -> float:
    """The number in an argument."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number; found {cut(text)}") from None


def add_options(parser: Parser, no_file: str = "") -> None:
    """Adds a configuration's options to a command; `no_file` says why it takes no file of them."""
    parser.configured, parser.no_file = True, no_file
    if not no_file:
        parser.add_argument(
            "--config",
            metavar="FILE",
            offered=shipped,
            help="a YAML file, or the name of a shipped one; files of code that it names are run",
        )
        for flag, option in SHORT.items():
            parser.add_argument(flag, metavar="RUN", help=f"the same as --{option}")
    sections = ", ".join(SECTIONS)
    parser.add_argument(
        "--help-all", action="help", help=f"show all options; `--help SECTION` those of one, of {sections}"
    )


def read(
    parser: Parser,
    arguments: Sequence[str],
    base: Callable[[argparse.Namespace], Config | None] = lambda options: None,
) -> argparse.Namespace:
    """Parses a command's arguments; if it takes a configuration's options, `configuration` is the result.

    Args:
        parser: of the command.
        arguments: of the command.
        base: the command's own arguments -> the configuration that flags change if there is no --config; None for the
            default one.

    Raises:
        UserError: in one line, for any fault.
    """
    file, changes, rest = None, {}, []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        option = SHORT.get(flag, flag.removeprefix("--"))
        _check_length(argument, flag, SIZE_LIMIT)
        is_option = parser.configured and flag.startswith("--") and _is_option(option)
        if not is_option and not (parser.configured and flag == "--config"):
            # An argument that is no option's value and no list of values is a name or a path.
            _check_length(argument, flag, SIZE_LIMIT if "--set" in (flag, *rest[-1:]) else TEXT_LIMIT)
            rest.append(argument)
            continue
        if not equals and ((value := next(remaining, "--")) == "-h" or value.startswith("--")):
            raise UserError(f"{flag}: expected a value; found none")
        if flag == "--config" and parser.no_file:
            raise UserError(f"--config: {parser.no_file}; found {cut(value)}")
        if flag == "--config":
            file = find(value)
        else:
            changes.pop(option, None)  # the later one of a section and its option wins
            changes[option] = or_none(option, value)
    asked = next((place for place, argument in enumerate(rest) if argument in HELP), None)
    if parser.configured and asked is not None:
        named = SECTIONS if rest[asked] == "--help-all" else {argument.partition(".")[0] for argument in changes}
        config = _shown(parser, rest[:asked], base) if file is None else read_file(file)
        only = list(dict.fromkeys(takewhile(lambda argument: not argument.startswith("-"), rest[asked + 1 :])))
        if any(not action.option_strings for action in parser._actions):  # other words are the command's own
            only = [argument for argument in only if argument in SECTIONS]
        for argument in only:
            lookup(SECTIONS, argument, "--help")
        _add_help(parser, with_options(config, **changes), {*named, *parser.first}, only)
    try:
        parsed, unknown = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise UserError(brief(f"{error.argument_name}: {error.message}")) from error
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        if parser.configured:
            options += [f"--{option}" for option in options_of(Config())]
        hint = nearest(unknown[0], options) if unknown[0].startswith("-") else ""
        raise UserError(brief(f"unrecognized arguments: {' '.join(unknown)}") + hint)
    if parser.configured:
        parsed.config = file
        config = read_file(file) if file is not None else base(parsed) or Config()
        parsed.configuration = with_options(config, **changes)
    return parsed


def _shown(parser: Parser, arguments: list[str], base: Callable[[argparse.Namespace], Config | None]) -> Config:
    """The configuration that help shows: the one that the other arguments name, if they name one."""
    usual = parser.usual or Config()
    try:
        found, _ = parser.parse_known_args(arguments)
        return base(found) or usual
    except (UserError, argparse.ArgumentError):
        return usual


def _is_option(name: str) -> bool:
    section, dot, _ = name.partition(".")
    return section in SECTIONS or (section == "seed" and not dot)


def _check_length(argument: str, flag: str, most: int) -> None:
    if len(argument) > most:
        raise UserError(f"{cut(flag)}: expected at most {most:,} characters; found {len(argument):,}")


def _add_help(parser: Parser, config: Config, shown: set[str], only: list[str]) -> None:
    """Adds a configuration's options to the help.

    Of the sections in `shown` it adds all options, and those of the part that the section names; of the others only
    those marked FIRST. If there are sections in `only`, help shows all of them and nothing else.
    """
    if only:
        for action in parser._actions:
            action.help = argparse.SUPPRESS
        parser.epilog = parser.description = None
        for name in only:
            _add_section(parser, config, name)
        return
    first = parser.add_argument_group(
        "configuration",
        None
        if shown >= SECTIONS.keys()
        else "The main options. Another part's options: `--objective.name iwae --help`; all options: --help-all.",
    )
    _add_to(first, "", {"seed": options_in(Config)["seed"]}, {"seed": config.seed})
    for name in SECTIONS:
        if name in shown:
            _add_section(parser, config, name)
            continue
        for _, options, values in _options_of(parser, config, name):
            marked = {option: known for option, known in options.items() if FIRST in known.marks}
            _add_to(first, f"{name}.", marked, values)


def _add_section(parser: Parser, config: Config, name: str) -> None:
    """Adds all options of a section to the help, and those of the part that it names."""
    for title, options, values in _options_of(parser, config, name):
        if options:
            _add_to(parser.add_argument_group(title), f"{name}.", options, values)


def _options_of(parser: Parser, config: Config, name: str) -> list[tuple[str, dict[str, Option], dict[str, Any]]]:
    """Of a section and of the part that it names, if it names one: a title, the options, and their values."""
    section, kind = getattr(config, name), SECTIONS[name]
    groups = [(f"{name}: {kind.__doc__.partition('.')[0]}", options_in(kind), vars(section))]
    if name in PARTS and (of_part := options_in(options_class(name, section.part))):
        groups.append((f"{name} {section.part}", of_part, vars(section.options)))
    return [(title, _changeable(parser, name, options), values) for title, options, values in groups]


def _changeable(parser: Parser, section: str, options: dict[str, Option]) -> dict[str, Option]:
    return {name: option for name, option in options.items() if parser.changeable(f"{section}.{name}")}


def _add_to(group: Any, prefix: str, options: dict[str, Option], values: dict[str, Any]) -> None:
    for name, option in options.items():
        kinds = " or ".join(KINDS[kind] for kind in option.kinds)
        bounds = f" in {option.interval}" if option.interval else ""
        chosen = f"one of {', '.join(option.choices.names)}" if option.choices else kinds + bounds
        given = as_text(values.get(name, option.default))
        help = f"{option.help.removesuffix(chr(46))} ({chosen}; {given})".replace("%", "%%")
        group.add_argument(f"--{prefix}{name}", metavar="VALUE", help=help)
