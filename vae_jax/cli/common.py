"""Shared by several commands: common options, output, the device, and opening the run and its data."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vae_jax.cli.arguments import whole
from vae_jax.config import expand
from vae_jax.device import coordinator
from vae_jax.errors import UserError, brief, memory_is_full, printable, quoted
from vae_jax.files.folders import check_writable
from vae_jax.files.held import check_no_link
from vae_jax.runs import own_parts
from vae_jax.runs.folder import PRIOR, absolute_start, read_config
from vae_jax.runs.hub import downloaded, is_address

if TYPE_CHECKING:
    from vae_jax.config import Config
    from vae_jax.model.model import Model
    from vae_jax.training.state import Trained

DATA_PATHS = ("manual_dir", "cache_dir", "path")
CHECKPOINTS = ("latest", "best")
PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # jax's names of devices


# The flags whose names differ from those of the functions' arguments.
FLAGS = {
    "added": "--add",
    "chains": "--ais-chains",
    "folder": "--out",
    "samples": "--nll-samples",
    "settings": "--set",
    "source": "--from",
}


def flag(name: str, value: object) -> str:
    """The spelling of an argument as a flag, see `vae_jax.errors.argument`; options keep their names."""
    spelled = FLAGS.get(name, f"--{name if '.' in name else name.replace('_', '-')}")
    return spelled if value is None or value is True else f"{spelled} {value}"


class Verb(NamedTuple):
    """A command.

    Attributes:
        summary: its line in the list of commands.
        options: adds its options to a parser.
        run: runs it; may return an exit code other than 0.
        epilog: more help, with examples.
        usage: the required arguments, as its help shows them.
        interrupted: hint to add if it is interrupted.
        base: the command's own arguments -> the configuration that its options change if there is no --config.
        check: refuses arguments before anything else does.
    """

    summary: str
    options: Callable[[Any], None]
    run: Callable[[Any], int | None]
    epilog: str
    usage: str = "RUN"
    interrupted: str = ""
    base: "Callable[[Any], Config | None]" = lambda options: None
    check: Callable[[Any], None] = lambda options: None


def say(line: str) -> None:
    """Prints a line on the progress of a command to standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def answer(line: str) -> None:
    """Prints a line of a command's result to standard output."""
    print(printable(line), flush=True)


@contextmanager
def warnings_in_lines() -> Iterator[None]:
    """A context in which warnings of Python and packages are lines like ours, without a place in their code."""

    def show(message: Warning | str, *_: Any) -> None:
        say(f"vae-jax: warning: {brief(message)}")

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


def run_argument(parser: Any) -> None:
    """Adds the run that a command reads."""
    parser.add_argument("run", metavar="RUN", help="a run folder, made by `vae-jax train`, or hub:OWNER/NAME")
    parser.reads = "run"


def runs_argument(parser: Any) -> None:
    """Adds the runs that a command reads, at least one."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, hub:OWNER/NAME, or sweeps, whose members are shown"
    )
    parser.reads = "runs"


def download_runs(options: Any, name: str) -> None:
    """Puts the folders of copies in the place of addresses on the hub; `name` is that of the argument.

    Raises:
        UserError: see `vae_jax.runs.hub.downloaded`.
    """
    given = getattr(options, name)
    local = [str(downloaded(run, say)) for run in ([given] if isinstance(given, str) else given)]
    setattr(options, name, local[0] if isinstance(given, str) else local)


def run_options(parser: Any, data: bool = True) -> None:
    """Adds the options of a command that uses a run; `data` says whether it may load the run's data."""
    run_argument(parser)
    checkpoint_option(parser)
    for name in DATA_PATHS if data else ():
        metavar = "FILE" if name == "path" else "DIR"
        parser.add_argument(
            f"--data.{name}", metavar=metavar, default=None, help=f"instead of the run's own data.{name}"
        )
    parser.add_argument(
        "--no-prior", action="store_true", help="leave out the prior that `vae-jax train-prior` has trained, if any"
    )
    trust_option(parser)
    device_option(parser)


def checkpoint_option(parser: Any) -> None:
    parser.add_argument(
        "--checkpoint", default="latest", offered=lambda: CHECKPOINTS, help="whose weights: latest or best"
    )


def check_checkpoint(options: Any) -> None:
    """Refuses an unknown checkpoint.

    Raises:
        UserError: with what was expected.
    """
    if options.checkpoint not in CHECKPOINTS:
        raise UserError(f"--checkpoint: expected latest or best; found {quoted(options.checkpoint)}")


def trust_option(parser: Any, what: str = "run") -> None:
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help=f"run the code that the {what}'s folder or configuration names, even if no training of yours has put it "
        "there: read it first",
    )


def check_code(options: Any, folder: Path) -> None:
    """Refuses a folder that is no run, and a run's code that is not trusted, before jax starts up.

    Raises:
        UserError: see `vae_jax.runs.folder.read_config` and `vae_jax.runs.own_parts.kept`.
    """
    own_parts.as_kept(read_config(folder), folder, options.trust_code)


def folder_options(parser: Any, metavar: str, what: str) -> None:
    parser.add_argument("--out", default=None, metavar=metavar, help=f"the {what} folder to make")
    parser.add_argument("--resume", action="store_true", help=f"continue the {what} in it, if there is one")
    parser.add_argument("--overwrite", action="store_true", help=f"delete the {what} in it first, if there is one")
    trust_option(parser, what)


def folder_of(options: Any, expected: str, example: str) -> Path:
    """The folder named by the options of `folder_options`.

    Raises:
        UserError: if they name none, or contradict one another.
    """
    if options.out is None:
        raise UserError(f"--out: expected {expected}, found none; for example --out {example}")
    if options.resume and options.overwrite:
        raise UserError("--resume, --overwrite: expected one of them, found both")
    return expand(options.out)


def device_option(parser: Any) -> None:
    parser.add_argument(
        "--device", default=None, offered=lambda: PLATFORMS, help="cpu, gpu or tpu; by default the best that jax has"
    )


def out_option(parser: Any, default: str) -> None:
    parser.add_argument("--out", default=None, metavar="FILE", help=f"the file to write; default {default}")


def devices_options(parser: Any) -> None:
    device_option(parser)
    parser.add_argument(
        "--devices",
        type=whole,
        default=None,
        metavar="N",
        help="number of devices that share the batches; by default all",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="be one of several processes, each started with the same command"
    )
    parser.add_argument("--coordinator", default=None, metavar="HOST:PORT", help="address of the first process")
    parser.add_argument("--processes", type=whole, default=None, metavar="N", help="number of processes")
    parser.add_argument(
        "--process",
        type=whole,
        default=None,
        metavar="I",
        help="number of this process, from 0 on; Slurm, Kubernetes and Open MPI set the last three",
    )
    parser.add_argument("--wait", type=whole, default=50, metavar="SECONDS", help="longest wait for the others")


def join_processes(options: Any) -> None:
    """Makes this process one of several, if the options say so.

    Raises:
        UserError: if they do not fit together.
    """
    values = {f"--{name}": getattr(options, name) for name in ("coordinator", "processes", "process")}
    given = [name for name, value in values.items() if value is not None]
    if not options.distributed:
        if given:
            raise UserError(f"{given[0]}: expected --distributed with it")
        return
    if given and len(given) < len(values):
        missing = [name for name in values if name not in given]
        raise UserError(
            f"--distributed: expected {', '.join(values)} together, or none of them; missing: {', '.join(missing)}"
        )
    if given:
        coordinator.parts(options.coordinator, "--coordinator")
        if not 0 <= options.process < options.processes:
            raise UserError(f"--process: expected 0 to {options.processes - 1}; found {options.process}")
    from vae_jax.device import processes

    wait = positive(options.wait, "--wait")
    processes.join(options.coordinator, options.processes, options.process, wait, say)


def set_device(name: str | None, join: Callable[[], None] = lambda: None) -> str:
    """Makes jax use a device; returns its description.

    Args:
        name: cpu, gpu, tpu, or None for the best one.
        join: called before jax looks for devices.

    Raises:
        UserError: if there is no such device.
    """
    if name is not None and name not in PLATFORMS:
        raise UserError(f"--device: expected cpu, gpu or tpu; found {quoted(name)}")
    import jax

    try:
        if name is not None:
            jax.config.update("jax_platforms", PLATFORMS[name])
        join()
        device = jax.local_devices()[0]
    except UserError:
        raise
    except (RuntimeError, AssertionError) as error:  # jax asserts that it has a plugin for cuda
        absent = "Unable to initialize backend" in str(error) and "coordination service" not in str(error)
        if memory_is_full(error):
            raise
        if not absent and (processes := sys.modules.get("vae_jax.device.processes")) and processes.is_lost(error):
            raise
        reason = (str(error) or "no support for it is installed").splitlines()[0]
        asked = f"--device {name}" if name else f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise UserError(
            f"{asked}: jax finds no such device here ({reason}); the extras cuda and tpu install jax's support for them"
        ) from error
    from vae_jax.device.devices import described

    return described(device)


def open_run(options: Any) -> "tuple[Trained, Model]":
    """The model of the run named by a command's options."""
    from vae_jax.runs.reading import load, use

    check_checkpoint(options)
    check_code(options, expand(options.run))
    set_device(options.device)
    trained = _with_prior(options, load(expand(options.run), options.checkpoint, say, options.trust_code))
    return trained, use(trained)


def trains_prior(run: str, how: str = "--overwrite") -> str:
    """The command that trains another prior, for messages."""
    return f"`{' '.join(filter(None, ('vae-jax train-prior', shlex.quote(run), how)))}`"


def _with_prior(options: Any, trained: "Trained") -> "Trained":
    """The run with the prior that has been trained for it, if it fits; `options.prior_left_out` says why one does not.

    `options.own_objective` is the run's own, if a prior is taken, whose objective is another.
    """
    from vae_jax.runs.prior import read_prior, with_prior

    options.prior_left_out, options.own_objective = "", ""
    folder = expand(options.run) / PRIOR
    if not folder.is_symlink() and not any((folder / name).exists() for name in ("config.yaml", "checkpoints")):
        return trained
    if options.no_prior:
        options.prior_left_out = "--no-prior"
        return trained
    hint = f"; {trains_prior(options.run)} trains another"
    found, why = read_prior(folder, trained, options.checkpoint, say, options.trust_code, hint)
    if found is None or why:
        options.prior_left_out = why
        say(f"vae-jax: the prior in {folder} is left out{', since' if found else ':'} {why}")
        return trained
    options.own_objective = trained.config.objective.name
    say(f"prior: {found.config.prior.name}, as trained in {folder}")
    return with_prior(trained, found)


def absolute_paths(config: "Config") -> "Config":
    """The configuration with absolute paths, so that a run finds its data and users' files from anywhere."""
    paths = {name: str(expand(path).absolute()) for name in DATA_PATHS if (path := getattr(config.data, name))}
    return own_parts.absolute(absolute_start(replace(config, data=replace(config.data, **paths))))


def target(options: Any, default: str, *endings: str) -> Path:
    """The file that a command writes.

    Args:
        options: of the command.
        default: the file in the run's folder.
        endings: of a name that is given; by default that of the default's. A new file needs none.

    Raises:
        UserError: if there is no such run, the name has another ending, or the file's folder cannot be written.
    """
    read_config(expand(options.run))  # refuses a folder that is no run's, and leaves it alone
    path = expand(options.out) if options.out else expand(options.run) / default
    if path.is_dir():
        raise UserError(f"--out {path}: expected a file, found a folder")
    if options.out and is_address(options.out):
        raise UserError(f"--out: expected a file; found an address, {options.out}")
    endings = endings or (Path(default).suffix,)
    if path.suffix not in endings and (path.suffix or path.exists()):  # it may be any file, as one of the run's own
        raise UserError(f"--out: expected a name that ends in {' or '.join(endings)}; found {path}")
    check_no_link(expand(options.run), path.parent)
    check_writable(path.parent)
    return path


def positive(value: int, option: str) -> int:
    if not 1 <= value <= 1_000_000:
        raise UserError(f"{option}: expected a number from 1 to 1,000,000; found {value}")
    return value


def seed_of(options: Any) -> int:
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed: expected a number from 0 to {2**32 - 1}; found {options.seed}")
    return options.seed
