"""Plans of sweeps: a grid of settings and seeds, and its folder."""

import json
import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from vae_jax.config import (
    EXTENSIBLE,
    Config,
    Json,
    as_listed,
    changed_options,
    check_used,
    options_of,
    values_in,
    with_options,
    with_values,
)
from vae_jax.config.change import or_none
from vae_jax.errors import PATH, UserError, argument, cut, listed
from vae_jax.files.checked import read_json
from vae_jax.files.folders import check_writable, contents
from vae_jax.files.held import LOCK
from vae_jax.files.lock import check_unlocked, writing
from vae_jax.files.replace import remove
from vae_jax.runs import own_parts
from vae_jax.runs.folder import absolute_start, check_prior_unlocked, check_start, delete, delete_logs, start_of

SPECIFICATION = "sweep.json"
MOST = 10_000  # members
SWEPT = ("data.treatment", "model.", "posterior.", "prior.", "likelihood.", "objective.", "optimizer.", "train.")


class Sweep(NamedTuple):
    """A grid of settings and seeds.

    Attributes:
        config: that the members share.
        seeds: how many seeds, counted from the configuration's.
        settings: values by option; every combination is trained with every seed.
    """

    config: Config
    seeds: int
    settings: dict[str, list[str]]


class _Specification(NamedTuple):
    """The content of SWEEP/sweep.json; its fields are those of `Sweep`."""

    config: dict[str, Json]
    seeds: int
    set: dict[str, list[str]]


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: of its folder.
        setting: values of the swept options.
        config: of the run.
    """

    name: str
    setting: dict[str, str]
    config: Config


def make_sweep(config: Config, seeds: int, settings: Sequence[str]) -> Sweep:
    """A sweep from settings written as "objective.beta=0.5,1,2".

    Raises:
        UserError: if they are written otherwise, or `_checked` refuses them.
    """
    values_of: dict[str, list[str]] = {}
    for text in settings:
        option, equals, values = text.partition("=")
        option = option.strip()
        if not equals:
            raise UserError(
                f"{argument('settings')}: expected OPTION=VALUE,VALUE,… as in objective.beta=0.5,1,2; found {cut(text)}"
            )
        _check_swept(option)
        if option in values_of:
            raise UserError(f"{argument('settings')}: expected each option once; found {cut(option)} again")
        try:
            values_of[option] = values_in(option, values)
        except UserError as error:
            raise UserError(f"{argument('settings')} {error}") from error
        if option in EXTENSIBLE:
            values_of[option] = [own_parts.absolute_name(value) for value in values_of[option]]
    return _checked(absolute(Sweep(own_parts.absolute(config), seeds, values_of)))


def absolute(sweep: Sweep) -> Sweep:
    """The sweep with absolute paths of the runs with which its members begin."""
    settings = dict(sweep.settings)
    if "train.start" in settings:
        settings["train.start"] = [
            value if or_none("train.start", value) is None else start_of(value) for value in settings["train.start"]
        ]
    return sweep._replace(config=absolute_start(sweep.config), settings=settings)


def _checked(sweep: Sweep) -> Sweep:
    """The sweep, from the command line or a folder's description, once it is checked.

    Raises:
        UserError: naming the option that is wrong.
    """
    for option, values in sweep.settings.items():
        _check_swept(option)
        if not values:
            raise UserError(f"{argument('settings')} {option}: expected values; found none")
        if len(set(values)) < len(values):
            raise UserError(f"{argument('settings')} {option}: expected each value once; found {cut(','.join(values))}")
    seeds, counts = sweep.seeds, [len(values) for values in sweep.settings.values()]
    if not 1 <= seeds <= MOST or seeds * math.prod(counts) > MOST:
        grid = listed([f"{seeds:,} seeds", *(f"{count:,} values" for count in counts)], between=" × ")
        raise UserError(f"{argument('seeds')}, {argument('settings')}: expected 1 to {MOST:,} members; found {grid}")
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
    """The members, setting by setting.

    Raises:
        UserError: if a setting is refused.
    """
    short = [option.rpartition(".")[2] for option in sweep.settings]
    names = [name if short.count(name) == 1 else option for name, option in zip(short, sweep.settings, strict=True)]
    labels = {option: dict(zip(values, _labels(values), strict=True)) for option, values in sweep.settings.items()}
    members = []
    for values in product(*sweep.settings.values()):
        setting = dict(zip(sweep.settings, values, strict=True))
        try:
            config = with_options(sweep.config, **{option: or_none(option, text) for option, text in setting.items()})
            check_used(config)
        except UserError as error:
            raise UserError(f"{argument('settings')}: {error}") from error
        label = [f"{name}={labels[option][setting[option]]}" for name, option in zip(names, setting, strict=True)]
        for seed in range(config.seed, config.seed + sweep.seeds):
            config_of_seed = (
                with_options(config, seed=str(seed)) if seed == config.seed else with_values(config, {"seed": seed})
            )
            members.append(Member(",".join([*label, f"seed={seed}"]), setting, config_of_seed))
    if len({member.name.casefold() for member in members}) < len(members):  # as some file systems compare them
        raise UserError(
            f"{argument('settings')}: expected values that name different folders; found some that differ only in "
            "characters that a folder's name does not keep, or in capitals"
        )
    return members


def _labels(values: list[str]) -> list[str]:
    """An option's values as parts of folders' names; of files' paths as little as makes them differ, if possible."""
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
    """Refuses a folder that is in the way, before any long work.

    Raises:
        UserError: if the folder has a sweep and not exactly one option is set, or it is no sweep's or another sweep's.
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
        going_on, overwriting = argument("resume", True), argument("overwrite", True)
        raise UserError(f"{folder}: there is a sweep already; {going_on} continues it, {overwriting} deletes it first")
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
    """Settings as the command line takes them, in the order of the members' names."""
    return " ".join(f"{option}={','.join(values)}" for option, values in settings.items()) or "none"


def read_sweep(folder: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
        UserError: if it is no sweep's folder or its description is damaged.
    """
    path = folder / SPECIFICATION
    try:
        description = read_json(path, _Specification)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: expected a sweep's folder with a {SPECIFICATION} in it; found none") from error
    try:
        if strange := [option for option in description.config if option != "seed" and "." not in option]:
            raise UserError(f"config: expected options of a configuration; found {listed(strange)}")
        options: dict[str, Any] = description.config
        config = as_listed(Config(), **options)
        check_used(config)
        sweep = _checked(Sweep(config, description.seeds, description.set))
        for option, values in sweep.settings.items():
            for value in values:
                with_options(sweep.config, **{option: or_none(option, value)})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return sweep


def specification(sweep: Sweep) -> str:
    return (
        json.dumps({"config": changed_options(sweep.config), "seeds": sweep.seeds, "set": sweep.settings}, indent=2)
        + "\n"
    )


def names_in(group: list[Member]) -> dict[str, None]:
    """The import paths of users' own parts in members' configurations."""
    return dict.fromkeys(name for member in group for name in own_parts.names_in(member.config))


def delete_sweep(folder: Path) -> None:
    """Deletes a sweep's runs and tables, and nothing else that lies in its folder.

    Raises:
        UserError: if another process writes into one of the runs; nothing is deleted then.
    """
    for member in members_of(read_sweep(folder)):
        if not (folder / member.name).is_symlink():
            check_unlocked(folder / member.name)
            check_prior_unlocked(folder / member.name)
    for member in members_of(read_sweep(folder)):
        if (folder / member.name).is_symlink():
            remove(folder / member.name)
        elif (folder / member.name / "config.yaml").is_file():
            with writing(folder / member.name):  # it may be running by itself
                delete(folder / member.name)
                remove(folder / member.name / "config.yaml")
            if all(path.name == LOCK for path in (folder / member.name).iterdir()):  # nothing of the user's is there
                remove(folder / member.name)
    for name in ("members.csv", "table.csv", "table.md"):
        remove(folder / name)
    remove(folder / "figures")
    own_parts.delete(folder)
    delete_logs(folder)
