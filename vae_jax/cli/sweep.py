"""`vae-jax sweep`: trains many seeds and settings."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from vae_jax.cli.arguments import add_options, whole
from vae_jax.cli.common import (
    Verb,
    absolute_paths,
    answer,
    device_option,
    folder_of,
    folder_options,
    say,
    set_device,
)
from vae_jax.cli.train import check_log, log_option, say_too_late, stop_requested, stop_signals
from vae_jax.config import Config
from vae_jax.errors import PATH, Stopped, UserError, counted, cut, on_terminal, printable
from vae_jax.runs import own_parts


def _sweep_options(parser: Any) -> None:
    folder_options(parser, "SWEEP", "sweep")
    parser.add_argument("--seeds", type=whole, default=1, help="number of seeds, from the configuration's seed on")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE,…", help="values to try; may be given several times"
    )
    log_option(parser)
    device_option(parser)
    add_options(parser)


def _sweep(options: Any) -> int:
    folder = folder_of(options, "the folder to make", "sweeps/beta")
    from vae_jax.sweeps.plan import SPECIFICATION, check_sweep_folder, make_sweep, members_of, names_in, read_sweep

    config = options.configuration
    begun = options.resume and (folder / SPECIFICATION).is_file()
    no_options = not options.config and config == Config()
    if options.resume and not begun and no_options and not options.set:
        raise UserError(
            f"--resume: expected a sweep that has begun in {folder}, found none; start it with --config, --set"
        )
    if begun and no_options:  # it goes on as it was
        sweep = read_sweep(folder)
        own_parts.kept(names_in(members_of(sweep)), folder, options.trust_code)  # the user has named none of them
        if options.set or options.seeds != 1:
            sweep = make_sweep(sweep.config, options.seeds, options.set)
    else:
        sweep = make_sweep(absolute_paths(config), options.seeds, options.set)
    check_sweep_folder(folder, sweep, options.resume, options.overwrite)
    count = len(members_of(sweep))

    device = set_device(options.device)
    from vae_jax import data
    from vae_jax.sweeps.sweep import run

    answer(f"device: {device}")
    images = data.load(sweep.config.data, report=say)
    answer(
        f"data: {cut(images.name, PATH)}, {len(images.train):,} training and {len(images.test):,} test "
        f"{images.spec.noun}s of {images.spec}; members: {count:,} = {counted(sweep.seeds, 'seed')}"
        + "".join(f" × {counted(len(values), 'value')} of {option}" for option, values in sweep.settings.items())
    )
    stop_message, ended = "", None
    with _progress(images.spec.noun) as on_progress, stop_signals() as stop:
        try:
            ended = run(
                sweep,
                images,
                folder,
                resume=options.resume,
                overwrite=options.overwrite,
                report=answer,
                on_progress=on_progress,
                should_stop=lambda: stop_requested(stop),
                trust_code=options.trust_code,
                log=options.log or (),
            )
        except Stopped as stopped:
            stop_message = str(stopped)
    if ended is None:
        again = f"vae-jax sweep --out {shlex.quote(str(folder))} --resume"
        again += f" --log {shlex.quote(options.log)}" if options.log else ""
        again += f" --device {options.device}" if options.device else ""
        with suppress(OSError):
            say(f"vae-jax: {stop_message}; `{again}` goes on from there")
        return 128 + stop[0]
    say_too_late(stop)
    for line in (folder / "table.md").read_text(encoding="utf-8").splitlines():
        answer(line)
    if diverged := [member for member in ended if member.failure]:
        answer(f"{len(diverged)} of {counted(count, 'member')} diverged; members.csv says where")
    answer(f"sweep folder: {folder}, with members.csv, table.csv and table.md")
    for path in sorted((folder / "figures").glob("*.png")):
        answer(f"  picture: {path}")
    return 0


@contextmanager
def _progress(noun: str) -> Iterator[Callable[..., None]]:
    """A context with a live table on a terminal, a line per epoch elsewhere; `noun` is the word for an example."""
    if not on_terminal(sys.stderr):
        shown: dict[int, float] = {}

        def report(groups: list[Any]) -> None:
            for number, group in enumerate(groups):
                steps = group.done * group.epochs
                ended = abs(steps - round(steps)) < 1e-9
                if group.best and ended and shown.get(number) != group.done:
                    shown[number] = group.done
                    answer(
                        f"group {number + 1}/{len(groups)}, {counted(group.members, 'member')}: "
                        f"epoch {group.epoch}/{group.epochs}, "
                        f"best {group.ranked_by} so far {group.figure:.2f} {group.unit} ({group.best})"
                        + (f"; {group.images_per_second:,.0f} {noun}s/s" if group.images_per_second else "")
                        + (f"; {group.diverged} diverged" if group.diverged else "")
                    )

        yield report
        return
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    live = Live(console=Console(stderr=True), transient=True, redirect_stdout=on_terminal(sys.stdout))

    def text(line: str) -> Text:  # brackets are no markup in it
        return Text(printable(line))

    def show(groups: list[Any]) -> None:
        # Groups may be ranked by different figures.
        several = len({(group.ranked_by, group.unit) for group in groups}) > 1
        best = "best so far" if several else f"best {groups[0].ranked_by} so far"
        table = Table("group", "members", "", "epoch", best, "member", "diverged", f"{noun}s/s")
        for number, group in enumerate(groups):
            table.add_row(
                str(number + 1),
                str(group.members),
                ProgressBar(1.0, group.done, width=20),
                f"{group.epoch}/{group.epochs}",
                text(f"{group.figure:.2f}{f' {group.unit}, {group.ranked_by}' * several}" if group.best else ""),
                text(group.best),
                str(group.diverged or ""),
                f"{group.images_per_second:,.0f}" if group.images_per_second else "",
            )
        live.update(table)

    with live:
        yield show


VERBS = {
    "sweep": Verb(
        "train many seeds and settings, each into a run folder; those that differ only in numbers share a program",
        _sweep_options,
        _sweep,
        "examples:\n"
        "  vae-jax sweep --config digits --out sweeps/beta --seeds 8 --set objective.beta=0.5,1,2,4\n"
        "  vae-jax sweep --config digits --out sweeps/two --set train.learning_rate=1e-3,3e-4 --set model.latent=2,20\n"
        "  vae-jax sweep --config digits --out sweeps/shapes --set model.channels=[8,16],[16,32]\n"
        "  vae-jax sweep --config digits --out sweeps/logged --seeds 4 --log wandb    a run of W&B's for every member\n"
        "  vae-jax sweep --out sweeps/beta --resume   a sweep that was killed",
        usage="--out SWEEP [--config FILE] [--seeds N] [--set OPTION=VALUE,VALUE …]",
        interrupted="; `vae-jax sweep … --resume` goes on from the last checkpoints, if there are any",
        check=check_log,
    ),
}
