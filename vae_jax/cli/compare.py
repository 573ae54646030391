"""`vae-jax compare`: compares our training with PyTorch's."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_jax.cli.arguments import add_options, whole
from vae_jax.cli.common import Verb, absolute_paths, answer, device_option, positive, say, set_device
from vae_jax.cli.progress import bar_of
from vae_jax.config import expand
from vae_jax.errors import UserError, on_terminal
from vae_jax.files.folders import check_writable, contents
from vae_jax.registry import lookup

DIFFERENT = 1  # the exit code if a level finds a difference
SAID_EVERY = 10.0  # seconds between lines of progress without a terminal


def _levels() -> Iterable[str]:
    from vae_jax.compare import LEVELS

    return LEVELS


def _options(parser: Any) -> None:
    parser.add_argument("--out", default="comparison", metavar="DIR", help="the folder to write into")
    parser.add_argument("--overwrite", action="store_true", help="write over the comparison in it, if there is one")
    parser.add_argument(
        "--levels",
        default="function,gradient,trajectory,result",
        offered=_levels,
        help="which levels, with commas: function (every layer's output), gradient (of every parameter), trajectory "
        "(losses step by step, from the same weights with the same noise), result (independent runs and their cost)",
    )
    parser.add_argument("--steps", type=whole, default=200, help="steps of the trajectory")
    parser.add_argument("--seeds", type=whole, default=3, help="independent runs per framework, from --seed on")
    parser.add_argument(
        "--epochs",
        type=whole,
        default=0,
        help="of an independent run, on all images; 0 for a quick comparison: few epochs of 12,800 images, spread over "
        "all",
    )
    parser.add_argument(
        "--add", nargs="+", default=[], metavar="FILE", help="results of other frameworks to compare with ours"
    )
    device_option(parser)
    add_options(parser)


def _compare(options: Any) -> int:
    folder = expand(options.out)
    levels = list(dict.fromkeys(level.strip() for level in options.levels.split(",")))
    from vae_jax import compare

    for level in levels:
        lookup(dict.fromkeys(compare.LEVELS), level, "--levels")
    steps, seeds = positive(options.steps, "--steps"), positive(options.seeds, "--seeds")
    if seeds > 1000:
        raise UserError(f"--seeds: expected at most 1,000; found {seeds}")
    if options.epochs:
        positive(options.epochs, "--epochs")
    if options.add and "result" not in levels:
        raise UserError("--add: expected the level result, which compares results; found --levels without it")
    _check_folder(folder, options.overwrite)
    from vae_jax.compare import results
    from vae_jax.compare.level import DIFFERS

    added = [results.read(expand(path)) for path in options.add]
    config = absolute_paths(options.configuration)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes may share a GPU
    device = set_device(options.device)
    from vae_jax import data

    answer(f"device: {device}")
    images = data.load(config.data, report=say)
    with _progress() as on_progress:
        answers = compare.compare(
            config,
            images,
            folder,
            levels=levels,
            steps=steps,
            seeds=seeds,
            epochs=options.epochs or None,
            added=added,
            on_progress=on_progress,
            on_level=lambda name, level: answer(f"{name}: {level.verdict}; {level.summary}"),
        )
    for path in compare.report.files_in(folder):
        answer(f"  {'picture: ' if path.suffix == '.png' else ''}{path}")
    return DIFFERENT if any(level.verdict == DIFFERS for level in answers.values()) else 0


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds something else than a comparison."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: expected a folder, found a file")
    check_writable(folder)
    if not contents(folder):
        return
    from vae_jax.compare import report

    strange = sorted(set(contents(folder)) - set(report.files_in(folder)))
    if strange:
        raise UserError(
            f"--out {folder}: expected a new or empty folder or a comparison's; found {strange[0].name}, which is left "
            f"alone"
        )
    if not overwrite:
        raise UserError(f"--out {folder}: there is a comparison already; --overwrite writes over it")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A context with a live bar on a terminal, elsewhere a line now and then."""
    if not on_terminal(sys.stderr):
        last = {"what": "", "at": 0.0}

        def show(what: str, done: int, total: int) -> None:
            if what != last["what"] and time.monotonic() - last["at"] > SAID_EVERY:
                last.update(what=what, at=time.monotonic())
                say(f"{what} ({done / max(1, total):.0%})")

        yield show
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    bar = bar_of(TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    task = bar.add_task("starting", total=None)
    with bar:
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


VERBS = {
    "compare": Verb(
        "compare our training of a model with PyTorch's",
        _options,
        _compare,
        "examples:\n"
        "  vae-jax compare --config article                              quick, two minutes\n"
        "  vae-jax compare --config article --epochs 5 --out full        the article's five epochs\n"
        "  vae-jax compare --config digits --levels function,gradient --model.latent 2\n"
        "  vae-jax compare --config article --levels result --epochs 5 --add keras.json",
        usage="[--config FILE] [--out DIR]",
    ),
}
