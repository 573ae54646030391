"""`vae-jax configs`: lists the configurations that come with the package, with their commands and results."""

import textwrap
from pathlib import Path
from typing import Any

from vae_jax.cli.common import Verb, answer
from vae_jax.config import shipped
from vae_jax.errors import UserError, cut, listed


def head(path: Path) -> tuple[str, list[str], str]:
    """The parts of a configuration's first comment: a description, the commands, and the result to expect."""
    about: list[str] = []
    commands: list[str] = []
    result: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        line = line.removeprefix("#").removeprefix(" ")
        if line.startswith("  "):
            commands.append(line.strip())
        elif line:
            (result if commands else about).append(line)
    return " ".join(about), commands, " ".join(result)


def _options(parser: Any) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", offered=shipped, help="show this configuration in full, as --config takes it"
    )


def _run(options: Any) -> None:
    if options.name is None:
        for name, path in shipped().items():
            description, commands, result = head(path)
            answer(name)
            for line in (*_wrapped(description), *(f"    {command}" for command in commands), *_wrapped(result), ""):
                answer(line)
        answer("`--config` takes one of these names, or a file of the same form; `vae-jax configs NAME` shows one")
        return
    if options.name not in shipped():
        raise UserError(f"NAME: expected one of {listed(shipped())}; found {cut(options.name)}")
    for line in shipped()[options.name].read_text(encoding="utf-8").splitlines():
        answer(line)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ")


VERBS = {
    "configs": Verb(
        "list the configurations that come with the package, with the result that each promises",
        _options,
        _run,
        "examples:\n  vae-jax configs\n  vae-jax configs article      in full, to start your own from it",
        usage="[NAME]",
    ),
}
