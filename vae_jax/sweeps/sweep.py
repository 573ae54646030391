"""Trains a sweep: its members in groups, every member into a run folder."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from vae_jax.config import (
    Config,
    resolve_parts,
    with_values,
)
from vae_jax.data import Dataset, settled
from vae_jax.errors import Diverged, Stopped, UserError, counted
from vae_jax.files.held import check_no_link
from vae_jax.files.lock import writing
from vae_jax.files.replace import write_text
from vae_jax.runs import own_parts
from vae_jax.runs.finetune import start_from_run
from vae_jax.runs.folder import DIVERGED, read_config, read_reason
from vae_jax.runs.identity import check_shape, digest_of
from vae_jax.runs.reading import checkpoint_to_resume
from vae_jax.runs.recorder import Recorder
from vae_jax.runs.train import loggers_named, stopped_line
from vae_jax.sweeps.plan import (
    SPECIFICATION,
    Member,
    Sweep,
    absolute,
    check_sweep_folder,
    delete_sweep,
    members_of,
    names_in,
    specification,
)
from vae_jax.sweeps.ranking import Outcome, ranking
from vae_jax.sweeps.results import write_results
from vae_jax.training import several
from vae_jax.training.figures import History, has_stopped
from vae_jax.training.state import Progress, Trained, TrainState

if TYPE_CHECKING:
    from vae_jax.loggers.base import Start


class Training(NamedTuple):
    """What all members of a sweep are trained with; for the arguments see `run`.

    Attributes:
        folder: of the sweep.
        data: the images.
        report: called with a line of text; a line that comes again is left out.
        should_stop: whether to save and stop.
        trust_code: whether copies of users' files in the folders are run.
        log: loggers by name.
        outcomes: by the member's name; filled in as members train.
    """

    folder: Path
    data: Dataset
    report: Callable[[str], None]
    should_stop: Callable[[], bool]
    trust_code: bool
    log: "Mapping[str, Start]"
    outcomes: dict[str, Outcome]


class Group(NamedTuple):
    """The progress of members that are compiled as one program.

    Attributes:
        members: how many.
        epoch: the current one; 0 before the first.
        epochs: in all.
        done: the part of the steps that is done, 0 to 1.
        diverged: how many members have diverged.
        best: the name of the best member by its last epoch so far; empty before the first epoch.
        figure: of that member; NaN before the first epoch.
        ranked_by: the figure's name.
        unit: of the figure.
        images_per_second: of all members together.
    """

    members: int
    epoch: int
    epochs: int
    done: float
    diverged: int
    best: str
    figure: float
    ranked_by: str
    unit: str
    images_per_second: float


def run(
    sweep: Sweep,
    data: Dataset,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[list[Group]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    trust_code: bool = False,
    log: str | Sequence[str] = (),
) -> list[Outcome]:
    """Trains every member of a sweep into a run folder; members that differ in numbers only are one program.

    Args:
        sweep: the plan.
        data: the images, which all members share.
        folder: of the sweep; created.
        resume: continue the sweep in it, or start one if there is none.
        overwrite: delete the sweep in it first.
        report: called with a line of text now and then.
        on_progress: called about once a second with the groups' progress.
        should_stop: called about once a second; whether to save and stop.
        trust_code: with `resume`, run copies of users' files in the folders even if this user's training has not put
            them there. Files that `sweep` names run anyway.
        log: loggers, which every member has, see `vae_jax.train_run`.

    Returns:
        The members' outcomes, setting by setting.

    Raises:
        UserError: if a folder is in the way, in use or cannot be written, or a configuration does not fit the data,
            or a logger is unknown or not installed.
        Stopped: after it has stopped by `should_stop`.
    """
    folder, sweep = Path(folder), absolute(sweep)
    loggers = loggers_named(log)
    config = settled(sweep.config, data)
    members = members_of(sweep._replace(config=config))
    check_sweep_folder(folder, sweep, resume, overwrite)
    check_shape(config, data)
    reported: set[str] = set()

    def report_once(line: str) -> None:
        if line not in reported:
            report(line)
        reported.add(line)

    def check_files() -> None:
        """Reports users' files that have changed since the sweep began; refuses changed copies of them."""
        if edited := own_parts.edited(folder):
            raise UserError(f"{edited[0]}; a sweep goes on as it began")
        for line in own_parts.changes(folder):
            report_once(f"warning: {line}")

    if resume:
        check_files()
        members = _as_kept(members, folder, trust_code)
    members = [member._replace(config=resolve_parts(member.config)) for member in members]
    groups: dict[Config, list[Member]] = {}
    for member in members:
        groups.setdefault(several.shared_config(member.config), []).append(member)
    for group in groups.values():
        several.check(group[0].config, data)
    sources = own_parts.sources(names_in(members))
    data.warn_of_darkness()
    with writing(folder):
        if overwrite and (folder / SPECIFICATION).exists():
            delete_sweep(folder)
        write_text(folder / SPECIFICATION, specification(sweep))
        if unsigned := own_parts.keep(sources, names_in(members), folder):
            report_once(unsigned)
        ranks = [ranking(sweep, group[0].config, data) for group in groups.values()]
        status = [
            Group(len(group), 0, group[0].config.train.epochs, 0.0, 0, "", math.nan, rank.name, rank.unit, 0.0)
            for group, rank in zip(groups.values(), ranks, strict=True)
        ]
        training = Training(folder, data, report_once, should_stop, trust_code, loggers, {})
        outcomes, images = training.outcomes, several.Images(data)

        for number, group in enumerate(groups.values()):

            def show(epoch: int, done: float, speed: float, number: int = number, group: list[Member] = group) -> None:
                rank = ranks[number]
                outcomes_of_group = [outcomes[member.name] for member in group if member.name in outcomes]
                ranked = [
                    (rank.of(outcome.history[-1]), outcome.member.name)
                    for outcome in outcomes_of_group
                    if outcome.history and not outcome.failure
                ]
                figure, name = min(ranked, default=(math.nan, ""))
                diverged = sum(bool(outcome.failure) for outcome in outcomes_of_group)
                epochs = group[0].config.train.epochs
                status[number] = Group(
                    len(group), epoch, epochs, done, diverged, name, figure, rank.name, rank.unit, speed
                )
                if on_progress:
                    on_progress(list(status))

            def report_group(line: str, number: int = number) -> None:
                report(f"group {number + 1}/{len(groups)}: {line}")

            most, goes_on = several.most(), resume
            while most:
                check_files()  # a user may have changed a file while other groups trained
                kept = _as_kept(group, folder, trust_code)
                most = _train_group(training, kept, most, images, goes_on, report_group, show)
                goes_on = True
        ended = [outcomes[member.name]._replace(member=member) for member in _as_kept(members, folder, trust_code)]
        write_results(folder, sweep, ended, data)
    return ended


def _as_kept(group: list[Member], folder: Path, trust_code: bool) -> list[Member]:
    """Members with the sweep's copies of users' files in place of those that have changed since it began."""
    names = names_in(group)
    names_to_use = own_parts.kept(names, folder, trust_code, names)
    return [member._replace(config=own_parts.renamed(member.config, names_to_use)) for member in group]


def _train_group(
    training: Training,
    group: list[Member],
    most: int,
    images: several.Images,
    resume: bool,
    report_group: Callable[[str], None],
    show: Callable[[int, float, float], None],
) -> int:
    """Trains the unfinished members of a group, at most `most` at once; fills in their outcomes.

    Returns:
        0, or how many at once to try next, since these did not fit into memory while they trained.
    """
    folder, data, outcomes = training.folder, training.data, training.outcomes
    epochs, steps = group[0].config.train.epochs, -(-len(data.train) // group[0].config.train.batch_size)
    digest = digest_of(group[0].config, data) if resume else ""
    waiting: dict[int, list[tuple[Member, Any]]] = {}  # by their steps, which differ after a killed sweep
    for member in group:
        path, earlier, step = folder / member.name, None, 0
        if resume and (path / "config.yaml").exists():
            # A member may have been trained further by itself.
            further = max(epochs, read_config(path).train.epochs)
            earlier = checkpoint_to_resume(
                with_values(member.config, {"train.epochs": further}),
                data,
                path,
                training.report,
                digest,
                training.trust_code,
            )
        if earlier:
            step = int(earlier.state.step)
            earlier = earlier._replace(state=jax.device_get(earlier.state))  # one copy on the device is enough
        outcomes[member.name] = Outcome(member, earlier.history[:epochs] if earlier else [])
        ended = step == epochs * steps or has_stopped(member.config, outcomes[member.name].history)
        if resume and (path / DIVERGED).is_file():  # it would diverge again
            failure = read_reason(path)
            outcomes[member.name] = outcomes[member.name]._replace(failure=failure)
        elif step <= epochs * steps and not (ended and (path / "summary.json").is_file()):
            waiting.setdefault(step, []).append((member, earlier))
    # Before compiling, so that members keep the very content of users' files that is compiled.
    like = Recorder(group[0].config, data, folder / group[0].name) if waiting else None
    for step, pending in sorted(waiting.items(), key=lambda item: item[0]):
        show(step // steps, step / (epochs * steps), 0.0)
        report_group(f"compiling {counted(len(pending), 'member')} as one program")
        program = several.program_that_fits([member.config for member, _ in pending], images, most)
        turns = -(-len(pending) // program.size)
        some = f", for {program.size} at once, in {turns} turns" if turns > 1 else ""
        report_group(f"compiled in {program.compile_seconds:.1f} s{some}")
        if program.slow:
            report_group(
                f"the convolutions of {program.config.model.network} are XLA's own, several times slower in a sweep's "
                f"compiled loop on a CPU than those of vae_jax.layers"
            )
        for turn in range(turns):
            part = pending[turn * program.size : (turn + 1) * program.size]

            def progress(progress_of_members: Progress, turn: int = turn, turns: int = turns) -> None:
                done = ((progress_of_members.epoch - 1) * progress_of_members.steps + progress_of_members.step) / (
                    epochs * steps
                )
                show(progress_of_members.epoch, (turn + done) / turns, progress_of_members.images_per_second)

            try:
                _train_together(training, program, part, progress, like)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or program.size == 1:
                    raise
                fewer = program.size // 2
                report_group(f"training {program.size} members does not fit into memory; going on with {fewer} at once")
                return fewer
    show(epochs, 1.0, 0.0)
    return 0


def _train_together(
    training: Training,
    program: several.Several,
    part: list[tuple[Member, Any]],
    progress: Callable[[Progress], None],
    like: Recorder | None,
) -> None:
    """Trains members that are at the same step, each into its folder."""
    folder, data, report, should_stop, trust_code, log, outcomes = training
    with ExitStack() as stack:
        recorders: list[Recorder] = []
        for member, earlier in part:
            path = folder / member.name
            check_no_link(folder, path)
            stack.enter_context(writing(path))
            recorders.append(Recorder(member.config, data, path, like=like, log=log, sweep=folder))
            stack.callback(recorders[-1].end_logs)
            recorders[-1].open(earlier, report)
        saved_at = time.monotonic()

        def stop_where(text: str) -> None:
            if should_stop():
                raise Stopped(text)

        def on_chunk(alive: list[int], get: Callable[[int], Any]) -> None:
            nonlocal saved_at
            stop = should_stop()
            if stop or time.monotonic() - saved_at > 60 * program.config.output.checkpoint_minutes:
                for number in alive:
                    recorders[number].save(*get(number))
                saved_at = time.monotonic()
            if stop:
                raise Stopped("stopped, and every member saved")

        def on_epoch(number: int, epoch: dict[str, Any], state: TrainState) -> None:
            nonlocal saved_at
            recorders[number].epoch(epoch, state)
            outcomes[part[number][0].name] = Outcome(part[number][0], list(recorders[number].history))
            saved_at = time.monotonic()

        def on_diverged(number: int, error: Diverged) -> None:
            name = part[number][0].name
            report(f"{name}: {error}")
            recorders[number].diverged(error)
            outcomes[name] = Outcome(part[number][0], list(recorders[number].history), str(error))

        def on_epoch_end(progress_of_members: Progress) -> None:
            progress(progress_of_members)
            if progress_of_members.epoch < program.config.train.epochs:  # all members are saved
                stop_where("stopped, and every member saved")

        began = time.perf_counter()
        trained = several.fit(
            program,
            [
                several.Run(member.config, _resume_of(member.config, earlier, data, report, trust_code))
                for member, earlier in part
            ],
            on_start=lambda: stop_where("stopped before the first step"),
            on_progress=progress,
            on_chunk=on_chunk,
            on_epoch=on_epoch,
            on_epoch_end=on_epoch_end,
            on_diverged=on_diverged,
        )
        seconds = (time.perf_counter() - began) / len(part)
        for (member, _), recorder, ended in zip(part, recorders, trained, strict=True):
            if not isinstance(ended, Diverged):
                state, history = ended
                if has_stopped(member.config, history):
                    report(f"{member.name}: {stopped_line(member.config, history)}")
                recorder.finish(Trained(member.config, data.image_shape, state, history), seconds)
                outcomes[member.name] = Outcome(member, history)


def _resume_of(
    config: Config, earlier: Any, data: Dataset, report: Callable[[str], None], trust_code: bool
) -> tuple[TrainState, History] | None:
    """The state and the history that a member goes on from; None to start fresh."""
    if earlier:
        return earlier.state, earlier.history
    if config.train.start is None:
        return None
    return jax.device_get(start_from_run(config, data.image_shape, len(data.train), report, trust_code)), []
