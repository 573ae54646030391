"""The command line: the only place that parses arguments, prints and exits.

jax is imported only after a command's arguments are parsed, so that help and refusals come at once.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from vae_jax import interruption
from vae_jax.cli import (
    codes,
    compare,
    completion,
    configs,
    exchange,
    explore,
    prior,
    push,
    reconstruct,
    report,
    show,
    sweep,
    train,
)
from vae_jax.cli.arguments import Parser, read
from vae_jax.cli.common import Verb, download_runs, flag, say, warnings_in_lines
from vae_jax.cli.compiled import keep_compiled
from vae_jax.config import check_used, to_yaml
from vae_jax.errors import (
    UserError,
    arguments_spelled,
    cut,
    in_words,
    memory_is_full,
    message_of,
    printable,
    say_if_aborted,
)
from vae_jax.files.replace import remove_unfinished
from vae_jax.interruption import Listener
from vae_jax.registry import lookup, users_line

PRINT_CONFIG = "--print_config"
VERBS = {
    **train.VERBS,
    **configs.VERBS,
    **prior.VERBS,
    **sweep.VERBS,
    **reconstruct.VERBS,
    **explore.VERBS,
    **codes.VERBS,
    **exchange.VERBS,
    **push.VERBS,
    **show.VERBS,
    **report.VERBS,
    **compare.VERBS,
}
VERBS |= completion.verbs(VERBS)


@arguments_spelled(flag)
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for bad input, 130 if interrupted, or the command's own.

    An interrupted process of the command line ends here: it does not wait for threads that still compute.
    """
    own_process = arguments is None
    given = list(sys.argv[1:] if arguments is None else arguments)
    line = interruption.LINE + (VERBS[given[0]].interrupted if given and given[0] in VERBS else "")

    def end() -> None:
        remove_unfinished()
        interruption.end(line)

    with Listener(end if own_process else None) as ctrl_c:
        code = interruption.CODE
        try:
            with warnings_in_lines():
                code = ctrl_c.hear(lambda: _run(given, own_process))
        except KeyboardInterrupt:
            ctrl_c.pressed = True  # also if other code handles Ctrl-C
        except Exception as error:
            if not ctrl_c.pressed:  # else Ctrl-C has caused it
                code = _refused(error)
        if ctrl_c.pressed and own_process and _is_used_up():
            remove_unfinished()
            say("vae-jax: error: not enough memory for another thread, most likely")
            os._exit(2)
        if ctrl_c.pressed:
            code = interruption.CODE
            if own_process:
                end()
            remove_unfinished()
            say(line)
    if processes := sys.modules.get("vae_jax.device.processes"):  # this may be one of several
        processes.leave(code)
    return code


def _run(arguments: list[str], own_process: bool) -> int:
    if own_process:
        _open_streams()
    if not arguments or arguments[0] not in VERBS:
        _overview(arguments)
        return 0
    verb = VERBS[arguments[0]]
    if own_process:  # before the options of a part import jax
        keep_compiled()
        _drop_jax_settings()
    options = _parse(arguments[0], verb, [argument for argument in arguments[1:] if argument != PRINT_CONFIG])
    if PRINT_CONFIG in arguments:
        if not hasattr(options, "configuration"):
            raise UserError(f"unrecognized arguments: {PRINT_CONFIG}")
        print(to_yaml(options.configuration), end="")
        return 0
    if own_process:
        _check_memory()
    return _run_with_users_line(verb, options)


def _refused(error: Exception) -> int:
    """Prints an error as one line and returns its exit code; raises an unexpected error again."""
    processes = sys.modules.get("vae_jax.device.processes")
    code = 2
    match error:
        case UserError():
            say(f"vae-jax: error: {error}")  # one line already, with spaces that may belong to a file's name
            return 2
        case BrokenPipeError():  # as in `vae-jax … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        case RuntimeError() | ValueError() if processes and processes.is_lost(error):
            text, code = processes.complaint(error), processes.LOST
        case _ if memory_is_full(error):
            text = _about_memory(error)
        case OSError():  # a full disk, a folder without permission, …
            text = ": ".join(str(part) for part in (error.filename, in_words(error)) if part)
        case _ if processes:  # this process must still leave the others
            traceback.print_exception(error)
            return 1
        case _:
            raise error
    say(f"vae-jax: error: {_line(text)}")
    return code


def _run_with_users_line(verb: Verb, options: Any) -> int:
    """Runs a command; turns an exception of a user's code into one line that shows where it arose.

    Raises:
        UserError: with this line.
    """
    try:
        return verb.run(options) or 0
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise
        if line := users_line(error):
            raise UserError(line) from error
        raise


def _nobody_reads() -> bool:
    """Whether nobody reads the standard output any more, as in `vae-jax … | head`."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _about_memory(error: BaseException) -> str:
    """The message of an error that says that memory is full."""
    text = message_of(error)
    where = "not enough memory" + " on the device" * ("RESOURCE_EXHAUSTED" in text)  # jax's word
    return f"{where}: {_line(text)[:300]}" if text else where


def _line(text: str) -> str:
    """The text on one line."""
    return printable(" ".join(text.split()))


def _open_streams() -> None:
    """Opens the standard streams that are missing, and makes them replace characters that they cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_jax_settings() -> None:
    """Drops settings of jax's with which no model trains, before jax is imported, and says so."""
    for name, harmless, why in (
        ("JAX_DISABLE_JIT", ("", "0", "false", "f", "no", "n", "off"), "an epoch is one compiled loop"),
        ("JAX_NUMPY_DTYPE_PROMOTION", ("standard",), "optax's Adam mixes floats with whole numbers"),
    ):
        if os.environ.get(name, harmless[0]).lower() not in harmless:
            say(f"vae-jax: {name}={os.environ.pop(name)} is left out, since {why}")


def _check_memory() -> None:
    """Refuses to start with too little memory; if it is limited, makes an abort explain itself.

    Raises:
        UserError: naming the limit.
    """
    from vae_jax.device import memory

    memory.check_start()
    if limits := memory.limits():
        say_if_aborted(f"not enough memory, most likely: a library has ended this process ({', '.join(limits)})", 2)


def _is_used_up() -> bool:
    """Whether memory is used up: OpenBLAS interrupts its process if it cannot start its threads."""
    from vae_jax.device import memory

    return memory.is_used_up()


def _overview(arguments: Sequence[str]) -> None:
    """Prints the list of commands, or refuses an unknown one."""
    from vae_jax.version import __version__

    width = max(map(len, VERBS))
    commands = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        "vae-jax",
        usage="vae-jax COMMAND … (vae-jax COMMAND --help lists its options)",
        description="Variational autoencoders in JAX: train one, look at it, use it.",
        epilog=f"commands:\n{commands}\n\n"
        "a first run, without any download:\n"
        "  vae-jax train --config handwriting --out runs/first\n"
        "  vae-jax sample runs/first -n 64\n\n"
        "the article's model on MNIST:\n"
        "  vae-jax train --config article --out runs/article [--data.manual_dir DIR]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vae_jax {__version__}")
    if not arguments:
        parser.print_help()
    elif arguments[0].startswith("-"):
        try:
            _, unknown = parser.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            raise UserError(str(error)) from error
        raise UserError(
            f"expected a command ({', '.join(VERBS)}), found {cut(unknown[0] if unknown else arguments[0])}"
        )
    else:
        lookup(VERBS, arguments[0], "command")


def _parse(name: str, verb: Verb, arguments: Sequence[str]) -> Any:
    parser = Parser(
        prog=f"vae-jax {name}",
        usage=f"vae-jax {name} {verb.usage} [options]",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=verb.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    verb.options(parser)
    parser.show_defaults()
    try:
        options = read(parser, arguments, verb.base)
    except UserError as error:
        if "arguments are required" not in str(error):
            raise
        raise UserError(f"expected `vae-jax {name} {verb.usage}`: {error}") from error
    verb.check(options)
    if hasattr(options, "configuration"):
        check_used(options.configuration)
    if parser.reads:
        download_runs(options, parser.reads)
    return options
