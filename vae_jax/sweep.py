"""Sweeps: the same model trained with many seeds and settings, each a run folder of its own.

SWEEP/sweep.json      what is swept
SWEEP/<settings>/     a run folder for each member, see `vae_jax.runs.folder`
SWEEP/members.csv     a row for each member
SWEEP/table.csv       a row for each setting, over its seeds; table.md is the same to read
SWEEP/figures/        pictures
SWEEP/code/           copies of users' files that are swept, see `vae_jax.runs.own_parts`
SWEEP/.lock           held by the process that trains
"""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vae_jax import figures, likelihoods, objectives
from vae_jax.config import (
    EXTENSIBLE,
    Config,
    Json,
    as_listed,
    changed_options,
    check_used,
    expand,
    options_of,
    resolve_parts,
    values_in,
    with_options,
    with_values,
)
from vae_jax.data import Dataset, settled
from vae_jax.errors import PATH, Diverged, Stopped, UserError, argument, cut, listed
from vae_jax.files.checked import read_json
from vae_jax.files.folders import check_writable, contents
from vae_jax.files.held import LOCK, check_no_link, make_inside
from vae_jax.files.lock import writing
from vae_jax.files.replace import remove, write_text
from vae_jax.files.tables import csv_text, escaped
from vae_jax.objectives import FIGURES
from vae_jax.runs import own_parts
from vae_jax.runs.finetune import begun_from
from vae_jax.runs.folder import DIVERGED, absolute_start, check_start, delete, read_config, read_reason
from vae_jax.runs.identity import check_shape, digest_of
from vae_jax.runs.reading import standing
from vae_jax.runs.recorder import Recorder
from vae_jax.runs.train import stopped_line
from vae_jax.shapes import Shapes
from vae_jax.training import several
from vae_jax.training.figures import History, has_stopped
from vae_jax.training.state import Progress, Trained, TrainState

SPECIFICATION = "sweep.json"
MOST = 10_000  # members
MOST_CURVES = 100  # in a picture
SWEPT = ("data.treatment", "model.", "posterior.", "prior.", "likelihood.", "objective.", "optimizer.", "train.")
OF_BOUNDS = ("kl", "negative_elbo")  # figures that there are with a likelihood only


class Sweep(NamedTuple):
    """What is swept.

    Attributes:
        config: what the members have in common.
        seeds: how many seeds, counted from the configuration's.
        settings: values by option; every combination is trained with every seed.
    """

    config: Config
    seeds: int
    settings: dict[str, list[str]]


class _Specification(NamedTuple):
    """What SWEEP/sweep.json holds; its fields are those of `Sweep`."""

    config: dict[str, Json]
    seeds: int
    set: dict[str, list[str]]


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: of its folder.
        setting: its value of each option that is swept.
        config: its configuration.
    """

    name: str
    setting: dict[str, str]
    config: Config


class Outcome(NamedTuple):
    """What became of a member.

    Attributes:
        member: which one.
        history: figures of its epochs, see `vae_jax.runs.fit.fit`.
        failure: why it has diverged; empty where it has not.
    """

    member: Member
    history: list[dict[str, Any]]
    failure: str = ""


class Ranking(NamedTuple):
    """What members are ranked by, lower is better; only those of the same ranking are ranked against each other.

    Attributes:
        split: whose figures.
        parts: the figures whose sum it is.
        unit: of the loss.
        measure: what the likelihood's values are, see `vae_jax.likelihoods.measured`; without a likelihood the data.
        generative: whether there is a likelihood, and −ELBO (reconstruction + KL) with it.
    """

    split: str
    parts: tuple[str, ...]
    unit: str
    measure: str
    generative: bool

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.split} {'−ELBO' if 'kl' in self.parts else self.parts[0]}"

    @property
    def kind(self) -> str:
        """What it is a number of."""
        return f"{self.unit}, {self.measure}"

    def of(self, epoch: dict[str, Any]) -> float:
        """An epoch's value."""
        return sum(epoch.get(f"{self.split}_{part}", math.nan) for part in self.parts)


class Group(NamedTuple):
    """Members that are compiled as one program, as a table shows them while they train.

    Attributes:
        members: how many.
        epoch: the current one; 0 before the first.
        epochs: how many there will be.
        done: the part of the steps that is done, 0 to 1.
        diverged: how many members have.
        best: the name of the best member after its last epoch so far; empty before the first.
        figure: that member's; NaN before the first.
        ranked_by: what it is.
        unit: of it.
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


def make_sweep(config: Config, seeds: int, settings: Sequence[str]) -> Sweep:
    """A sweep from settings written as "objective.beta=0.5,1,2".

    Raises:
        UserError: if they are not written so, or `_checked` refuses them.
    """
    found: dict[str, list[str]] = {}
    for text in settings:
        option, equals, values = text.partition("=")
        option = option.strip()
        if not equals:
            raise UserError(
                f"{argument('settings')}: expected OPTION=VALUE,VALUE,… as in objective.beta=0.5,1,2; found {cut(text)}"
            )
        _check_swept(option)
        if option in found:
            raise UserError(f"{argument('settings')}: expected each option once; found {cut(option)} again")
        try:
            found[option] = values_in(option, values)
        except UserError as error:
            raise UserError(f"{argument('settings')} {error}") from error
        if option in EXTENSIBLE:
            found[option] = [own_parts.absolute_name(value) for value in found[option]]
    return _checked(_absolute(Sweep(own_parts.absolute(config), seeds, found)))


def _absolute(sweep: Sweep) -> Sweep:
    """The sweep with the runs that its members begin with by absolute paths."""
    settings = dict(sweep.settings)
    if "train.start" in settings:
        settings["train.start"] = [str(expand(value).absolute()) for value in settings["train.start"]]
    return sweep._replace(config=absolute_start(sweep.config), settings=settings)


def _checked(sweep: Sweep) -> Sweep:
    """The sweep, if it may be one, wherever it comes from: the command line or a folder's description.

    Raises:
        UserError: naming what it has that none may have.
    """
    for option, values in sweep.settings.items():
        _check_swept(option)
        if not values:
            raise UserError(f"{argument('settings')} {option}: expected values; found none")
        if len(set(values)) < len(values):
            raise UserError(f"{argument('settings')} {option}: expected each value once; found {cut(','.join(values))}")
    seeds, counts = sweep.seeds, [len(values) for values in sweep.settings.values()]
    if not 1 <= seeds <= MOST or seeds * math.prod(counts) > MOST:
        found = listed([f"{seeds:,} seeds", *(f"{count:,} values" for count in counts)], between=" × ")
        raise UserError(f"{argument('seeds')}, {argument('settings')}: expected 1 to {MOST:,} members; found {found}")
    if sweep.config.seed + seeds > 1 << 32:
        raise UserError(
            f"{argument('seeds')}: expected seeds below {1 << 32:,}; found {seeds} from {sweep.config.seed} on"
        )
    return sweep


def _check_swept(option: str) -> None:
    if not option.startswith(SWEPT):
        why = f"{argument('seeds')} sweeps seeds" if option == "seed" else f"expected an option of {', '.join(SWEPT)}"
        raise UserError(f"{argument('settings')}: {why}; found {cut(option)}")


def members_of(sweep: Sweep) -> list[Member]:
    """The members, those of a setting one after another.

    Raises:
        UserError: if a setting is refused.
    """
    short = [option.rpartition(".")[2] for option in sweep.settings]
    names = [name if short.count(name) == 1 else option for name, option in zip(short, sweep.settings, strict=True)]
    labels = {option: dict(zip(values, _labels(values), strict=True)) for option, values in sweep.settings.items()}
    found = []
    for values in product(*sweep.settings.values()):
        setting = dict(zip(sweep.settings, values, strict=True))
        try:
            config = with_options(sweep.config, **setting)
            check_used(config)
        except UserError as error:
            raise UserError(f"{argument('settings')}: {error}") from error
        label = [f"{name}={labels[option][setting[option]]}" for name, option in zip(names, setting, strict=True)]
        for seed in range(config.seed, config.seed + sweep.seeds):
            own = with_options(config, seed=str(seed)) if seed == config.seed else with_values(config, {"seed": seed})
            found.append(Member(",".join([*label, f"seed={seed}"]), setting, own))
    if len({member.name.casefold() for member in found}) < len(found):  # as some file systems compare them
        raise UserError(
            f"{argument('settings')}: expected values that name different folders; found some that differ only in "
            "characters that a folder's name does not keep, or in capitals"
        )
    return found


def _labels(values: list[str]) -> list[str]:
    """An option's values as parts of folders' names; of files' paths so much that they differ, if they can."""
    labels: list[str] = []
    for parts in range(1, 2 + max(value.count("/") for value in values)):
        labels = [_label(value, parts) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def _label(value: str, parts: int) -> str:
    value = value.strip('"')
    if ".py:" in value or value.startswith("/"):
        value = "/".join(value.split("/")[-parts:])
    return re.sub(r"[^\w.+\-\[\]]+", "_", value)


def check_sweep_folder(folder: Path, sweep: Sweep, resume: bool, overwrite: bool) -> None:
    """Refuses to write where something else is, before any long work.

    Raises:
        UserError: if the folder is in use and neither option says what to do, or it is no sweep's or another's.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder for the sweep, found a file")
    check_writable(folder)
    if not contents(folder):
        return
    if not (folder / SPECIFICATION).is_file():
        raise UserError(
            f"{folder}: expected a new or empty folder or a sweep's; found other files, which are left alone"
        )
    if resume == overwrite:
        going_on, anew = argument("resume", True), argument("overwrite", True)
        raise UserError(f"{folder}: there is a sweep already; {going_on} continues it, {anew} deletes it first")
    for start in {member.config.train.start for member in members_of(sweep)} if overwrite else ():
        check_start(start, folder)
    earlier = read_sweep(folder)
    now, then = (
        {**options_of(plan.config), argument("seeds"): plan.seeds, argument("settings"): _as_options(plan.settings)}
        for plan in (sweep, earlier)
    )
    changed = [
        f"{name} (the sweep has {cut(str(then[name]), PATH)}, found {cut(str(value), PATH)})"
        for name, value in now.items()
        if value != then[name]
    ]
    if resume and changed:
        raise UserError(
            f"{folder}: {argument('resume', True)} continues a sweep as it began; changed: {listed(changed)}"
        )


def _as_options(settings: dict[str, list[str]]) -> str:
    """Settings as the command line takes them, in the order that the members' names have."""
    return " ".join(f"{option}={','.join(values)}" for option, values in settings.items()) or "none"


def read_sweep(folder: Path) -> Sweep:
    """What a folder's sweep is of.

    Raises:
        UserError: if it is no sweep's folder or its description is damaged.
    """
    path = folder / SPECIFICATION
    try:
        found = read_json(path, _Specification)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: expected a sweep's folder with a {SPECIFICATION} in it; found none") from error
    try:
        if strange := [option for option in found.config if option != "seed" and "." not in option]:
            raise UserError(f"config: expected options of a configuration; found {listed(strange)}")
        options: dict[str, Any] = found.config
        config = as_listed(Config(), **options)
        check_used(config)
        sweep = _checked(Sweep(config, found.seeds, found.set))
        for option, values in sweep.settings.items():
            for value in values:
                with_options(sweep.config, **{option: value})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return sweep


def _specification(sweep: Sweep) -> str:
    return (
        json.dumps({"config": changed_options(sweep.config), "seeds": sweep.seeds, "set": sweep.settings}, indent=2)
        + "\n"
    )


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
) -> list[Outcome]:
    """Trains every member of a sweep into a run folder of its own; what ends alike is compiled as one program.

    Args:
        sweep: what is swept.
        data: the images, which all members share.
        folder: of the sweep; created.
        resume: continue the sweep in it, or start one where there is none.
        overwrite: delete the sweep in it first.
        report: called with a line of text now and then.
        on_progress: called about once a second with where each group stands.
        should_stop: asked about once a second whether to save and stop.
        trust_code: with `resume`, run copies of users' files in the folders though no training of this user's has put
            them there. What `sweep` names is run anyway.

    Returns:
        What became of each member, those of a setting one after another.

    Raises:
        UserError: if a folder is in the way, in use or cannot be written, or a configuration does not fit the data.
        Stopped: once it has stopped because it should.
    """
    folder, sweep = Path(folder), _absolute(sweep)
    config = settled(sweep.config, data)
    found = members_of(sweep._replace(config=config))
    check_sweep_folder(folder, sweep, resume, overwrite)
    check_shape(config, data)
    said: set[str] = set()

    def tell_once(line: str) -> None:
        if line not in said:
            report(line)
        said.add(line)

    def check_files() -> None:
        """Tells of users' files that have changed since the sweep began; refuses copies of them that have."""
        if edited := own_parts.edited(folder):
            raise UserError(f"{edited[0]}; a sweep goes on as it began")
        for line in own_parts.changes(folder):
            tell_once(f"warning: {line}")

    if resume:
        check_files()
        found = _as_kept(found, folder, trust_code)
    found = [member._replace(config=resolve_parts(member.config)) for member in found]
    groups: dict[Config, list[Member]] = {}
    for member in found:
        groups.setdefault(several.alike(member.config), []).append(member)
    for group in groups.values():
        several.check(group[0].config, data)
    sources = own_parts.sources(names_in(found))
    data.warn_of_darkness()
    with writing(folder):
        if overwrite and (folder / SPECIFICATION).exists():
            _delete_sweep(folder)
        write_text(folder / SPECIFICATION, _specification(sweep))
        if unsigned := own_parts.keep(sources, names_in(found), folder):
            tell_once(unsigned)
        ranks = [ranking(sweep, group[0].config, data) for group in groups.values()]
        status = [
            Group(len(group), 0, group[0].config.train.epochs, 0.0, 0, "", math.nan, rank.name, rank.unit, 0.0)
            for group, rank in zip(groups.values(), ranks, strict=True)
        ]
        outcomes: dict[str, Outcome] = {}
        images = several.Images(data)

        for number, group in enumerate(groups.values()):

            def show(epoch: int, done: float, speed: float, number: int = number, group: list[Member] = group) -> None:
                rank = ranks[number]
                found = [outcomes[member.name] for member in group if member.name in outcomes]
                ranked = [
                    (rank.of(each.history[-1]), each.member.name) for each in found if each.history and not each.failure
                ]
                figure, name = min(ranked, default=(math.nan, ""))
                diverged = sum(bool(each.failure) for each in found)
                epochs = group[0].config.train.epochs
                status[number] = Group(
                    len(group), epoch, epochs, done, diverged, name, figure, rank.name, rank.unit, speed
                )
                if on_progress:
                    on_progress(list(status))

            def tell(line: str, number: int = number) -> None:
                report(f"group {number + 1}/{len(groups)}: {line}")

            most, goes_on = several.most(), resume
            while most:
                check_files()  # a user may have gone on working on one while others trained
                kept = _as_kept(group, folder, trust_code)
                most = _train_group(
                    kept, most, images, folder, goes_on, trust_code, tell_once, tell, show, should_stop, outcomes
                )
                goes_on = True
        ended = [outcomes[member.name]._replace(member=member) for member in _as_kept(found, folder, trust_code)]
        write_results(folder, sweep, ended, data)
    return ended


def names_in(group: list[Member]) -> dict[str, None]:
    """The import paths of users' own parts in members' configurations."""
    return dict.fromkeys(name for member in group for name in own_parts.names_in(member.config))


def _as_kept(group: list[Member], folder: Path, trust_code: bool) -> list[Member]:
    """Members with the sweep's copies of users' files in place of those that have changed since it began."""
    names = names_in(group)
    own = own_parts.kept(names, folder, trust_code, names)
    return [member._replace(config=own_parts.renamed(member.config, own)) for member in group]


def ranking(sweep: Sweep, config: Config, data: Dataset) -> Ranking:
    """What a member is ranked by, and against whom.

    That is the loss; where the objective is swept, and losses are of different kinds, −ELBO (reconstruction + KL), or
    the reconstruction alone where there is no ELBO.
    """
    split = "test" if data.validation is None else "validation"
    objective, treatment = objectives.get(config.objective), config.data.treatment
    parts = ("loss",)
    if any(option.startswith("objective.") for option in sweep.settings):
        parts = ("reconstruction", "kl") if objective.generative else ("reconstruction",)
    spec = data.spec
    objective = objectives.in_units_of(objective, spec.noun)
    measure = likelihoods.described(treatment, spec.support)
    if objective.generative:
        shapes = Shapes(spec.shape, config.model.latent, config.model.classes, support=spec.support)
        likelihood = likelihoods.get(config.likelihood, shapes)
        measure = likelihoods.measured(likelihood, config.likelihood.name, treatment, spec.support)
    return Ranking(split, parts, objective.unit, measure, objective.generative)


def _train_group(
    group: list[Member],
    most: int,
    images: several.Images,
    folder: Path,
    resume: bool,
    trust_code: bool,
    report: Callable[[str], None],
    tell: Callable[[str], None],
    show: Callable[[int, float, float], None],
    should_stop: Callable[[], bool],
    outcomes: dict[str, Outcome],
) -> int:
    """Trains what is not finished of members that are alike, at most so many at once; fills in `outcomes`.

    Returns:
        0, or how many at once are worth another try, since while they trained the memory did not hold them.
    """
    data = images.data
    epochs, steps = group[0].config.train.epochs, -(-len(data.train) // group[0].config.train.batch_size)
    digest = digest_of(group[0].config, data) if resume else ""
    waiting: dict[int, list[tuple[Member, Any]]] = {}  # by the step where they stand: a killed sweep leaves several
    for member in group:
        path, earlier, step = folder / member.name, None, 0
        if resume and (path / "config.yaml").exists():
            # A member may have been trained on by itself.
            further = max(epochs, read_config(path).train.epochs)
            earlier = standing(
                with_values(member.config, {"train.epochs": further}), data, path, report, digest, trust_code
            )
        if earlier:
            step = int(earlier.state.step)
            earlier = earlier._replace(state=jax.device_get(earlier.state))  # one copy on the device is enough
        outcomes[member.name] = Outcome(member, earlier.history[:epochs] if earlier else [])
        ended = step == epochs * steps or has_stopped(member.config, outcomes[member.name].history)
        if resume and (path / DIVERGED).is_file():  # it would again
            failure = read_reason(path)
            outcomes[member.name] = outcomes[member.name]._replace(failure=failure)
        elif step <= epochs * steps and not (ended and (path / "summary.json").is_file()):
            waiting.setdefault(step, []).append((member, earlier))
    # Before it is compiled, so that what the members keep of a user's file is what is compiled.
    like = Recorder(group[0].config, data, folder / group[0].name) if waiting else None
    for step, pending in sorted(waiting.items(), key=lambda item: item[0]):
        show(step // steps, step / (epochs * steps), 0.0)
        tell(f"compiling {_counted(len(pending), 'member')} as one program")
        program = several.program_that_fits([member.config for member, _ in pending], images, most)
        turns = -(-len(pending) // program.size)
        some = f", for {program.size} at once, in {turns} turns" if turns > 1 else ""
        tell(f"compiled in {program.compile_seconds:.1f} s{some}")
        if program.slow:
            tell(
                f"the convolutions of {program.config.model.network} are XLA's own, several times slower in a sweep's "
                f"compiled loop on a CPU than those of vae_jax.layers"
            )
        for turn in range(turns):
            part = pending[turn * program.size : (turn + 1) * program.size]

            def progress(found: Progress, turn: int = turn, turns: int = turns) -> None:
                done = ((found.epoch - 1) * found.steps + found.step) / (epochs * steps)
                show(found.epoch, (turn + done) / turns, found.images_per_second)

            try:
                _train_together(program, part, data, folder, report, progress, should_stop, outcomes, like, trust_code)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or program.size == 1:
                    raise
                fewer = program.size // 2
                tell(f"the memory does not hold {program.size} members while they train; going on with {fewer} at once")
                return fewer
    show(epochs, 1.0, 0.0)
    return 0


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _train_together(
    program: several.Several,
    part: list[tuple[Member, Any]],
    data: Dataset,
    folder: Path,
    report: Callable[[str], None],
    progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    outcomes: dict[str, Outcome],
    like: Recorder | None,
    trust_code: bool,
) -> None:
    """Trains members that stand at the same step, each into its folder."""
    with ExitStack() as stack:
        recorders: list[Recorder] = []
        for member, earlier in part:
            path = folder / member.name
            check_no_link(folder, path)
            stack.enter_context(writing(path))
            recorders.append(Recorder(member.config, data, path, like=like))
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

        def on_epoch_end(found: Progress) -> None:
            progress(found)
            if found.epoch < program.config.train.epochs:  # all of them are saved
                stop_where("stopped, and every member saved")

        began = time.perf_counter()
        trained = several.fit(
            program,
            [
                several.Run(member.config, _begun(member.config, earlier, data, report, trust_code))
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


def _begun(
    config: Config, earlier: Any, data: Dataset, report: Callable[[str], None], trust_code: bool
) -> tuple[TrainState, History] | None:
    """What a member goes on from; None to begin anew."""
    if earlier:
        return earlier.state, earlier.history
    if config.train.start is None:
        return None
    return jax.device_get(begun_from(config, data.image_shape, len(data.train), report, trust_code)), []


def _delete_sweep(folder: Path) -> None:
    """Deletes a sweep's runs and tables, and nothing else that lies in its folder."""
    for member in members_of(read_sweep(folder)):
        if (folder / member.name).is_symlink():
            remove(folder / member.name)
        elif (folder / member.name / "config.yaml").is_file():
            with writing(folder / member.name):  # it may be going on by itself
                delete(folder / member.name)
                remove(folder / member.name / "config.yaml")
            if all(path.name == LOCK for path in (folder / member.name).iterdir()):  # nothing of the user's is there
                remove(folder / member.name)
    for name in ("members.csv", "table.csv", "table.md"):
        remove(folder / name)
    remove(folder / "figures")
    own_parts.delete(folder)


def write_results(folder: Path, sweep: Sweep, outcomes: list[Outcome], data: Dataset) -> None:
    """Writes the tables and the pictures of a sweep that has ended."""
    settings = _by_setting(outcomes)
    ranks = {setting: ranking(sweep, group[0].member.config, data) for setting, group in settings.items()}
    rows = []
    for each in outcomes:
        last, rank = each.history[-1] if each.history else {}, ranks[tuple(each.member.setting.items())]
        rows.append(
            {
                **each.member.setting,
                "seed": each.member.config.seed,
                "epochs": len(each.history),
                **{
                    name: value
                    for name, value in last.items()
                    if name.split("_")[0] in ("train", "validation", "test") and name != "train_seconds"
                },
                **({"ranked_by": rank.of(last)} if last else {}),
                "unit": rank.unit,
                "measure": rank.measure,
                "diverged": each.failure,
                "folder": each.member.name,
            }
        )
    ends = ("unit", "measure", "diverged", "folder")
    columns = list({name: None for row in rows for name in row if name not in ends})
    write_text(folder / "members.csv", csv_text([*columns, *ends], rows))

    table = summarize(settings, ranks)
    write_text(folder / "table.csv", csv_text(list(table[0]), table))
    write_text(folder / "table.md", markdown(sweep, table, list(ranks.values()), own_figures(settings)))
    make_inside(folder / "figures")
    kinds: dict[Ranking, dict[Any, list[Outcome]]] = {}
    for setting, group in settings.items():
        kinds.setdefault(ranks[setting], {})[setting] = group
    for number, (rank, some) in enumerate(kinds.items(), 1):  # what does not compare has no axis in common
        _draw(folder / "figures", sweep, rank, some, f"_{number}" if len(kinds) > 1 else "")


def _draw(folder: Path, sweep: Sweep, rank: Ranking, settings: dict[Any, list[Outcome]], suffix: str) -> None:
    """The pictures of settings of one ranking."""
    shown = {rank.name: rank.of}
    for part, title in (("reconstruction", "reconstruction"), ("kl", "KL")) if rank.generative else ():
        shown[f"{rank.split} {title}"] = rank._replace(parts=(part,)).of
    curves, cells, standing_of = {}, {}, {}
    for setting, group in settings.items():
        finished = [outcome for outcome in group if not outcome.failure]
        name = ", ".join(f"{option.rpartition('.')[2]} {value}" for option, value in setting) or "all seeds"
        if len(finished) < len(group):
            name += f" ({len(group) - len(finished)} of {len(group)} diverged)"
        curves[name] = {
            title: np.array([[of(epoch) for epoch in outcome.history] for outcome in finished])
            for title, of in shown.items()
        }
        cells[setting] = {title: [of(outcome.history[-1]) for outcome in finished] for title, of in shown.items()}
        standing_of[name] = float(np.mean(cells[setting][rank.name])) if finished else math.inf  # as in the table
    titles = [rank.kind] if suffix else []
    if len(curves) > MOST_CURVES:
        best = sorted(curves, key=standing_of.__getitem__)[:MOST_CURVES]
        titles.append(f"the {MOST_CURVES} settings with the lowest {rank.name}, of {len(curves):,}")
        curves = {name: curves[name] for name in best}
    figures.sweep_curves(folder / f"curves{suffix}.png", curves, rank.unit, "; ".join(titles))
    if sweep.settings:
        values = {
            option: [value for value in values if any((option, value) in setting for setting in cells)]
            for option, values in sweep.settings.items()
        }
        figures.sweep_grid(folder / f"grid{suffix}.png", values, cells, rank.unit, titles[0] if suffix else "")


def _by_setting(outcomes: list[Outcome]) -> dict[tuple[tuple[str, str], ...], list[Outcome]]:
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault(tuple(each.member.setting.items()), []).append(each)
    return groups


def summarize(settings: dict[Any, list[Outcome]], ranks: dict[Any, Ranking]) -> list[dict[str, Any]]:
    """A row for each setting: of the members that have not diverged the mean and the standard deviation over seeds."""
    rows, own = [], own_figures(settings)
    for setting, group in settings.items():
        rank = ranks[setting]
        last = [outcome.history[-1] for outcome in group if not outcome.failure]
        row: dict[str, Any] = {**dict(setting), "seeds": len(group), "diverged": len(group) - len(last)}
        values = {part: [epoch.get(f"{rank.split}_{part}", math.nan) for epoch in last] for part in FIGURES}
        values["negative_elbo"] = [a + b for a, b in zip(values["reconstruction"], values["kl"], strict=True)]
        for part in own:
            values[part] = [epoch[f"{rank.split}_{part}"] for epoch in last if f"{rank.split}_{part}" in epoch]
        for part, found in values.items():
            if part in OF_BOUNDS and not rank.generative:  # there is none
                found = []
            row[f"{rank.split}_{part}"] = float(np.mean(found)) if found else math.nan
            row[f"{rank.split}_{part}_std"] = float(np.std(found, ddof=1)) if len(found) > 1 else math.nan
        row["ranked_by"] = float(np.mean([rank.of(epoch) for epoch in last])) if last else math.nan
        rows.append(row | {"unit": rank.unit, "measure": rank.measure})
    return rows


def own_figures(settings: dict[Any, list[Outcome]]) -> list[str]:
    """The figures that objectives have beside FIGURES, by name."""
    last = [outcome.history[-1] for group in settings.values() for outcome in group if outcome.history]
    names = {name.removeprefix("test_") for epoch in last for name in epoch if name.startswith("test_")}
    return sorted(names.difference(FIGURES))


def markdown(sweep: Sweep, table: list[dict[str, Any]], ranks: list[Ranking], own: list[str]) -> str:
    """The table to read, with these own figures; the best of several settings with the same ranking is bold."""
    split, several = ranks[0].split, len(set(ranks)) > 1
    titles = {"loss": "loss", "reconstruction": "reconstruction", "kl": "KL", "negative_elbo": "−ELBO"}
    if not any(rank.generative for rank in ranks):
        titles = {part: title for part, title in titles.items() if part not in OF_BOUNDS}
    titles |= {name: name for name in own}
    best = []
    for kind in set(ranks):
        rivals = [row for row, rank in zip(table, ranks, strict=True) if rank == kind]
        finite = [row for row in rivals if math.isfinite(row["ranked_by"])]
        if len(rivals) > 1 and finite:
            best.append(min(finite, key=lambda row: row["ranked_by"]))
    columns = [*sweep.settings, "seeds", *(f"{split} {title}" for title in titles.values())]
    columns += ["unit", "diverged"] if several else ["diverged"]
    words = {*sweep.settings, "unit"}
    lines = [
        f"| {' | '.join(map(escaped, columns))} |",
        "|" + "".join("---|" if name in words else "---:|" for name in columns),
    ]
    for row, rank in zip(table, ranks, strict=True):
        cells = [escaped(str(row[option])) for option in sweep.settings] + [str(row["seeds"])]
        for part in titles:
            mean, spread = row[f"{split}_{part}"], row[f"{split}_{part}_std"]
            cells.append(
                "–" if math.isnan(mean) else f"{mean:.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")
            )
        cells += [escaped(rank.kind)] * several + [str(row["diverged"] or "–")]
        bold = any(row is each for each in best)
        lines.append("| " + " | ".join(f"**{cell}**" if bold else cell for cell in cells) + " |")
    if several:
        kinds = [escaped(kind) for kind in sorted({rank.kind for rank in ranks})]
        lines += ["", f"Figures of {' and of '.join(kinds)} do not compare."]
    else:
        lines += ["", f"Figures are {escaped(ranks[0].kind)}."]
    return "\n".join(lines) + "\n"
