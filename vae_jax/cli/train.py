"""`vae-jax train`: trains a model into a run folder."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vae_jax.cli.arguments import add_options
from vae_jax.cli.common import (
    Verb,
    absolute_paths,
    answer,
    devices_options,
    folder_of,
    folder_options,
    join_processes,
    say,
    set_device,
)
from vae_jax.cli.progress import Lines, bar_of
from vae_jax.config import Config, expand
from vae_jax.errors import PATH, Stopped, UserError, counted, cut, on_terminal
from vae_jax.interruption import SAME
from vae_jax.runs import own_parts
from vae_jax.runs.folder import check_folder, pictures, read_config

if TYPE_CHECKING:
    from vae_jax.data import Dataset


def _loggers() -> Iterable[str]:
    from vae_jax.loggers import LOGGERS

    return LOGGERS


def log_option(parser: Any) -> None:
    parser.add_argument(
        "--log",
        default=None,
        metavar="NAME,…",
        offered=_loggers,
        help="log to tensorboard, wandb or trackio, or to a logger of your own, FILE.py:ENTRY",
    )


def _train_options(parser: Any) -> None:
    folder_options(parser, "RUN", "run")
    log_option(parser)
    devices_options(parser)
    add_options(parser)


def check_log(options: Any) -> None:
    """Refuses loggers that are unknown or not installed."""
    if options.log is not None:
        from vae_jax.loggers.several import chosen

        chosen(options.log)


def _base(options: Any) -> Config | None:
    """The configuration of a run that is resumed, which goes on as it was; None for a new run.

    Raises:
        UserError: if there is no such run.
    """
    if not (options.resume and options.out) or options.overwrite:
        return None
    folder = expand(options.out)
    if not (folder / "config.yaml").is_file():
        check_folder(folder, True, False)
        raise UserError(f"--resume: expected a run that has begun in {options.out}, found none; start it with --config")
    return read_config(folder)


def train(
    options: Any,
    check: "Callable[[Config, Dataset], Dataset]" = lambda config, images: images,
    again: str = "",
) -> int:
    """Trains what the options configure into the folder that they name.

    Args:
        options: of the command.
        check: is given the run's configuration and data before anything is built, and gives the data to train on.
        again: the command that goes on with the run once it is stopped; by default this one.
    """
    log = getattr(options, "log", None) or ()  # a prior is trained without
    folder = folder_of(options, "the run folder to make", "runs/first")
    check_folder(folder, options.resume, options.overwrite)
    config = options.configuration
    # Files named only by a resumed run's own configuration are not named by the user.
    named_by_run = own_parts.names_in(read_config(folder)) if options.resume and not options.config else []
    users = [own_parts.absolute_name(name) for name in own_parts.names_in(config) if name not in named_by_run]
    config = absolute_paths(config)
    if options.resume:
        config = own_parts.as_kept(config, folder, options.trust_code, users)

    device = set_device(options.device, lambda: join_processes(options))
    import jax

    from vae_jax import data, networks
    from vae_jax.device.devices import Devices
    from vae_jax.keys import make_keys
    from vae_jax.model.build import build
    from vae_jax.runs.train import train as train_run

    devices = Devices(jax.device_count() if options.devices is None else options.devices)
    devices.wait()  # connect now: later a process that reads its data slowly would count as lost
    if not devices.writes:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    answer(f"device: {device}{f', {devices}' if devices.count > 1 else ''}")
    images = check(config, data.load(config.data, report=say))
    composition, objective = build(data.settled(config, images), images.image_shape)
    shapes = jax.eval_shape(composition.init, make_keys(config.seed).init)
    held_out = f", {len(images.validation):,} validation" if images.validation is not None else ""
    name = cut(images.name, PATH)
    answer(
        f"data: {name}, {len(images.train):,} training{held_out} and {len(images.test):,} test {images.spec.noun}s "
        f"of {images.spec}; model: {config.model.network}, "
        f"{networks.count_parameters(shapes.params):,} parameters, {composition.latent} latent dimensions"
    )
    if (count := len(images.train)) < config.train.batch_size:
        few = counted(count, f"training {images.spec.noun}")
        answer(f"train.batch_size {config.train.batch_size}: a batch has {few}, since there are no more")
    stop_message = ""
    with _progress(config, images.spec.noun, devices.writes) as on_progress, stop_signals() as stop:
        try:
            trained = train_run(
                config,
                images,
                folder,
                resume=options.resume,
                overwrite=options.overwrite,
                devices=devices,
                report=answer,
                on_progress=on_progress,
                on_epoch=lambda figures, state: answer(_epoch_line(figures, config, objective.unit, images.spec.noun)),
                should_stop=lambda: stop_requested(stop),
                trust_code=options.trust_code,
                log=log,
            )
        except Stopped as stopped:
            trained, stop_message = None, str(stopped)
    if trained is None:
        again = f"`{again or f'vae-jax train --out {shlex.quote(str(folder))}'} --resume"
        again += f" --log {shlex.quote(options.log)}" if log else ""
        again += f" --device {options.device}`" if options.device else "`"
        if devices.processes > 1:
            again = "the same command in every process with --resume"
        with suppress(OSError):  # its reader may have stopped as well
            say(f"vae-jax: {stop_message}; {again} goes on from there")
        return 128 + (stop[0] if stop else signal.SIGTERM)  # another process may have got the signal
    say_too_late(stop)
    epochs = counted(len(trained.history), "epoch")
    answer(f"test loss {trained.history[-1]['test_loss']:.2f} {objective.unit} after {epochs}")
    answer(f"run folder: {folder}")
    for path in pictures(folder):
        answer(f"  picture: {path}")
    return 0


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A context with the list of Ctrl-C and SIGTERM received; a second Ctrl-C still ends the program at once."""
    received: list[int] = []
    before: dict[int, Any] = {}
    pressed: list[float] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            pressed.append(time.monotonic())
            again = received and pressed[-1] - pressed[0] >= (SAME if len(pressed) > 1 else 0)
            if again and callable(previous := before.get(number)):
                previous(number, frame)
        if not received:
            received.append(number)  # without printing, which might fail or block here

    # An ignored signal, as Ctrl-C in a shell's background job, stays ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        if (handler := signal.getsignal(number)) != signal.SIG_IGN:
            before[number] = handler
    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested(received: list[int]) -> bool:
    """Whether a stop was requested; says so the first time."""
    if len(received) == 1:
        received.append(received[0])
        with suppress(OSError):
            say(f"vae-jax: {signal.Signals(received[0]).name}: saving and stopping")
    return bool(received)


def say_too_late(received: list[int]) -> None:
    """Says that a signal came when nothing was left to stop."""
    if received:
        with suppress(OSError):
            say(f"vae-jax: {signal.Signals(received[0]).name} came when all was trained and saved")


def _epoch_line(figures: dict[str, Any], config: Config, unit: str, noun: str) -> str:
    losses = [
        f"{name} {figures[f'{name}_loss']:.2f}" for name in ("train", "validation", "test") if f"{name}_loss" in figures
    ]
    shown = {"test_reconstruction": "reconstruction", "test_kl": "KL"} if figures.get("test_kl") else {}
    known = {f"test_{name}" for name in ("loss", "reconstruction", "kl", "seconds")}
    shown |= {name: name.removeprefix("test_") for name in figures if name.startswith("test_") and name not in known}
    parts = ", ".join(f"{title} {figures[name]:.2f}" for name, title in shown.items() if name in figures)
    parts = f" ({parts})" if parts else ""
    skipped = f"; {count} updates skipped, not finite" if (count := figures.get("skipped_steps")) else ""
    return (
        f"epoch {figures['epoch']:{len(str(config.train.epochs))}}/{config.train.epochs}: "
        f"{', '.join(losses)}{parts} {unit}; {figures['images_per_second']:,.0f} {noun}s/s{skipped}"
    )


@contextmanager
def _progress(config: Config, noun: str, shown: bool) -> Iterator[Callable[..., None] | None]:
    """A context with a live bar on a terminal, elsewhere with lines between those of long epochs."""
    if not shown:
        yield None
        return
    if not on_terminal(sys.stderr):
        answer("compiling …")
        lines, epoch = Lines("training"), 1

        def line(progress: Any) -> None:
            nonlocal epoch
            if progress.epoch != epoch:  # which has printed its line
                epoch = progress.epoch
                lines.heard()
            done, total = (progress.epoch - 1) * progress.steps + progress.step, config.train.epochs * progress.steps
            lines.show(done, total, f", epoch {progress.epoch}, loss {progress.loss:.2f}")

        yield line
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    bar = bar_of(
        TextColumn("epoch {task.fields[epoch]}/" + str(config.train.epochs)),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    task = bar.add_task("", total=None, epoch=1, figures="compiling …")

    def show(progress: Any) -> None:
        bar.update(
            task,
            total=config.train.epochs * progress.steps,
            completed=(progress.epoch - 1) * progress.steps + progress.step,
            epoch=progress.epoch,
            figures=f"loss {progress.loss:.2f}  {progress.images_per_second:,.0f} {noun}s/s",
        )

    with bar:
        yield show


VERBS = {
    "train": Verb(
        "train a model into a run folder",
        _train_options,
        train,
        "examples:\n"
        "  vae-jax train --config digits --out runs/digits                      no download\n"
        "  vae-jax train --config article --out runs/article --seed 1           MNIST, downloaded\n"
        "  vae-jax train --config article --out runs/z2 --model.latent 2        another latent size\n"
        "  vae-jax train --config colour64 --data.path photos --out runs/mine   a folder of your own photographs\n"
        "  vae-jax train --config digits --out runs/on --from hub:me/digits     with the weights of a run on the hub\n"
        "  vae-jax train --config digits --out runs/logged --log tensorboard    figures and pictures for TensorBoard",
        usage="--out RUN [--config FILE]",
        interrupted="; `vae-jax train … --resume` goes on from the last checkpoint, if there is one",
        base=_base,
        check=check_log,
    ),
}
