"""`vae-jax completion`: the script with which a shell completes commands, options and values.

The script holds all of them, so that a press of TAB starts no Python.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from vae_jax.cli.arguments import Parser
from vae_jax.cli.common import Verb
from vae_jax.config.parts import PARTS, registry_of
from vae_jax.config.section import SECTIONS, options_class
from vae_jax.errors import cut
from vae_jax.options import Option, options_in
from vae_jax.registry import lookup

SHELLS = ("bash", "zsh", "fish")
FOLDERS, FILES = ("RUN", "SWEEP", "DIR"), ("FILE", "IMAGES")  # what help calls arguments that are paths
COMPLETED = "complete"  # the attribute of an action that shtab reads


def _options(parser: Any) -> None:
    parser.add_argument("shell", metavar="SHELL", offered=lambda: SHELLS, help="bash, zsh or fish")


def all_commands(verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """A parser of all commands with all of their options, whose actions say what shtab completes for them."""
    parser = argparse.ArgumentParser("vae-jax")
    parser.add_argument("--version", action="version", version="")
    commands = parser.add_subparsers(parser_class=Parser)
    for name, verb in verbs.items():
        command = commands.add_parser(name, help=verb.summary, description=verb.summary)
        verb.options(command)
        for action in command._actions:
            action.help = _brief(action.help)
            _complete(action, command.offered.get(action, tuple)(), _path_of(action.metavar))
        if command.configured:
            _add_configuration(command)
    return parser


def _brief(text: str | None) -> str:
    """The first words of an option's help, which shells show beside every value."""
    return cut((text or "").partition(";")[0].partition(". ")[0], 60).replace("%", "%%")


def _path_of(metavar: Any) -> str | None:
    """The kind of path that an argument of this name is, if it is one."""
    return "directory" if metavar in FOLDERS else "file" if metavar in FILES else None


def _add_configuration(command: Parser) -> None:
    """Adds a configuration's options, of all parts that it may name."""
    command.add_argument("--seed", metavar="N", help="of everything random in a run")
    for section, kind in SECTIONS.items():
        parts = registry_of(section) if section in PARTS else {}
        kinds = [kind, *(options_class(section, part) for part in parts)]
        options: dict[str, list[Option]] = {}
        for kind_of_options in kinds:
            for name, option in options_in(kind_of_options).items():
                options.setdefault(name, []).append(option)
        for name, same in options.items():
            if not command.changeable(f"{section}.{name}"):
                continue
            choices = [choice for option in same for choice in _choices(option)]
            if parts and name == PARTS[section].option:
                choices += parts
            text = any(str in option.kinds and (option.choices is None or option.choices.own) for option in same)
            action = command.add_argument(f"--{section}.{name}", metavar="VALUE", help=_brief(same[0].help))
            _complete(action, dict.fromkeys(choices), "file" if text else None)


def _choices(option: Option) -> tuple[str, ...]:
    """The values of an option, if they can be listed."""
    if option.choices:
        return option.choices.names
    return ("true", "false") if bool in option.kinds else ()


def _complete(action: argparse.Action, names: Iterable[str], path: str | None) -> None:
    """Notes what shtab completes for an action: names, paths of a kind, or both."""
    from shtab import CHOICE_FUNCTIONS

    names = tuple(names)
    if path is None:
        action.choices = names or action.choices
        return
    completes: dict[str, Any] = CHOICE_FUNCTIONS[path]
    if names:
        listed = " ".join(names)
        function = f"_vae_jax_names_or_{path}_{re.sub(r'[^a-zA-Z0-9]', '_', action.dest)}"
        bodies = {
            "bash": f'compgen -W "{listed}" -- "$1"; {completes["bash"]} "$1"',
            "zsh": f"compadd -- {listed}; {completes['zsh']}",
        }
        completes = {
            "bash": function,
            "zsh": function,
            "fish": f"({function})",
            "preamble": {shell: f"{function}() {{ {body}; }}" for shell, body in bodies.items()}
            | {"fish": f"function {function}; string split ' ' '{listed}'; printf '%s\\n' {completes['fish']}; end"},
        }
    setattr(action, COMPLETED, completes)


def verbs(known: Mapping[str, Verb]) -> dict[str, Verb]:
    """The command, which completes these commands; it is to be one of them."""

    def run(options: Any) -> None:
        lookup(dict.fromkeys(SHELLS), options.shell, "SHELL")
        import shtab

        sys.stdout.write(shtab.complete(all_commands(known), options.shell))  # of our own text, in long lines

    return {
        "completion": Verb(
            "print the script with which bash, zsh or fish complete commands, options and values",
            _options,
            run,
            "examples:\n"
            "  vae-jax completion bash    > ~/.local/share/bash-completion/completions/vae-jax\n"
            "  vae-jax completion zsh     > ~/.zfunc/_vae-jax, where ~/.zfunc is in fpath\n"
            "  vae-jax completion fish    > ~/.config/fish/completions/vae-jax.fish",
            usage="SHELL",
        ),
    }
