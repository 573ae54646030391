"""Weights & Biases, online or offline as the user has set it up; its files in RUN/logs/wandb unless WANDB_DIR is set.

An epoch's row is the step 2·epoch, and the row of a run's end, with its pictures, the step after that of its last
epoch: a run may end, and later be trained on.
"""

import os
import struct
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from vae_jax.errors import UserError
from vae_jax.files.checked import open_file
from vae_jax.files.replace import remove
from vae_jax.loggers.base import LoggedRun, Logger, make_own_folder

PROJECT = "vae_jax"
# Of W&B's files: blocks of this size, which begin after the header in the first one, hold records or parts of one.
HEADER, BLOCK, PART = b":W&B\xe1\xbe\x00", 1 << 15, 7
WHOLE, FIRST, LAST = 1, 2, 4
RECORD_LIMIT = 1 << 26  # bytes of a record


def start(run: LoggedRun) -> Logger:
    """Begins a run of W&B's, or goes on with it.

    Raises:
        UserError: if W&B's folder in the run is not one to write into, or WANDB_MODE says that nothing is logged.
        Exception: of wandb's, as if its server cannot be reached.
    """
    wandb: Any = import_module("wandb")
    own = None if os.environ.get("WANDB_DIR") else run.folder
    name = os.environ.get("WANDB_RUN_ID") or run.id
    if own:
        _check(make_own_folder(run.folder, "wandb"))
        _remove_empty(own / "wandb", name)
    given = wandb.setup(wandb.Settings(silent=True)).settings.mode
    mode = "offline" if given in ("offline", "dryrun") else given
    if mode == "disabled":
        raise UserError("WANDB_MODE is disabled")
    if mode == "online" and not wandb.login(prompt=False):
        mode = "offline"
        run.report("wandb: neither WANDB_API_KEY is set nor `wandb login` done: it logs offline, for `wandb sync`")
    if mode == "offline":
        _wait_for_a_name(Path(os.environ.get("WANDB_DIR") or run.folder) / "wandb", name)
    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=os.environ.get("WANDB_NAME") or run.name,
        id=name,
        group=os.environ.get("WANDB_RUN_GROUP") or run.group or None,
        resume="allow" if mode != "offline" else None,
        dir=own,
        mode=mode,
        config=dict(run.config),
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",  # what is printed stays where it is
            symlink=False,
            use_dot_wandb=False if own else None,
        ),
    )
    # The server has all up to the step that it goes on with.
    steps = _steps(Path(tracked.settings.wandb_dir), name) if mode == "offline" else set(range(tracked.step))
    tracked.define_metric("epoch", hidden=True)
    tracked.define_metric("*", step_metric="epoch")
    pictures: dict[str, Any] = {}
    with_units: list[bool] = []

    def log(step: int, row: dict[str, Any]) -> None:
        tracked.log({**row, **pictures}, step=step, commit=True)
        pictures.clear()

    def epoch(figures: dict[str, Any]) -> None:
        if not with_units:
            units = {name: unit for name in figures if (unit := run.unit_of(name))}
            tracked.config.update({"units": units}, allow_val_change=True)
            with_units.append(True)
        log(2 * figures["epoch"], figures)

    def picture(name: str, path: Path, epoch: int) -> None:
        pictures[name] = wandb.Image(str(path))

    def end(summary: dict[str, Any] | None) -> None:
        if summary is not None:
            log(2 * summary["epochs"] + 1, {"epoch": summary["epochs"]})
            tracked.summary.update({f"summary.{name}": value for name, value in summary.items()})
        tracked.finish()

    held = frozenset(step // 2 for step in steps if step % 2 == 0)
    ended = max((step // 2 for step in steps if step % 2), default=0)
    place = tracked.url if mode == "online" else tracked.settings.sync_dir
    return Logger(epoch, picture, end, held, ended, place or "")


def _check(folder: Path) -> None:
    """Refuses what a stranger may have put where W&B looks for settings, or writes.

    Raises:
        UserError: naming it.
    """
    if (folder / "settings").exists():
        raise UserError(f"{folder / 'settings'}: expected no settings of W&B's in a run; they may name any server")
    for path in folder.iterdir():
        if path.is_symlink():
            raise UserError(f"{path}: expected a file or a folder of W&B's own, found a link")


def _remove_empty(folder: Path, name: str) -> None:
    """Removes what killed processes left of offline trainings without a record: `wandb sync` stops there."""
    for path in folder.glob(f"offline-run-*-{name}/run-{name}.wandb"):
        if path.stat().st_size <= len(HEADER):
            remove(path.parent)


def _wait_for_a_name(folder: Path, name: str) -> None:
    """Waits until W&B's next folder, called by the second, is another than the last."""
    for _ in range(20):
        if not list(folder.glob(f"*-{time.strftime('%Y%m%d_%H%M%S')}-{name}")):
            return
        time.sleep(0.1)


def _steps(folder: Path, name: str) -> set[int]:
    """The steps in W&B's files of earlier offline trainings: a process that was killed may not have written all.

    Raises:
        UserError: if a file is of another format than the one that is known here.
    """
    damage = import_module("google.protobuf.message").DecodeError
    kind = import_module("wandb.proto.wandb_internal_pb2").Record
    steps = set()
    for path in sorted(folder.glob(f"offline-run-*-{name}/run-{name}.wandb")):
        try:
            for content in _records(path):
                record = kind.FromString(content)
                if record.HasField("history"):
                    steps.add(record.history.step.num)
        except damage as error:
            raise UserError(f"{path}: expected a file as this version of wandb writes it; {error}") from error
    return steps


def _records(path: Path) -> Iterator[bytes]:
    """The records in a file of W&B's, up to one that is cut off.

    Raises:
        UserError: if it is of another format.
    """
    with open(path, "rb", opener=open_file) as file:
        header = file.read(len(HEADER))
        if not HEADER.startswith(header):
            raise UserError(f"{path}: expected W&B's header; found another")
        record, place = b"", len(HEADER)
        while True:
            if (left := BLOCK - place % BLOCK) < PART:  # a block's rest is empty
                file.seek(left, os.SEEK_CUR)
                place += left
            part = file.read(PART)
            if len(part) < PART:
                return
            _, length, kind = struct.unpack("<IHB", part)
            content = file.read(length)
            place += PART + length
            if not WHOLE <= kind <= LAST or len(content) < length or len(record) > RECORD_LIMIT:
                return
            record = content if kind in (WHOLE, FIRST) else record + content
            if kind in (WHOLE, LAST):
                yield record
