"""Checkpoints: whole or not at all, verified, ranked, and damaged ones are reported, passed over, never deleted."""

import errno
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import tarfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_fixtures import compiled_once, snapshot

from vae_jax.config import load_config
from vae_jax.data import load
from vae_jax.errors import UserError
from vae_jax.evaluation.evaluator import make_evaluator, means
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.runs import checkpoint, orbax, reading
from vae_jax.runs.checkpoint import DAMAGED, Keeper, Saved, _arrays, _as_dicts, _read, restore
from vae_jax.runs.description import (
    DESCRIPTION,
    DamageError,
    _file_sha256,
    canonical,
    files_of,
    read_description,
    sha256_of,
)
from vae_jax.runs.orbax import checkpointer
from vae_jax.runs.train import train
from vae_jax.training.figures import Epoch
from vae_jax.training.state import TrainState
from vae_jax.variables import Variables

STORED = Path(__file__).parent / "stored"


def state_of(images, step=0):
    """A state as small as can be."""
    variables = Variables({"w": jnp.arange(2.0) + step}, {"batch_stats": {"mean": jnp.zeros(3)}})
    return TrainState(jnp.int32(step), variables, {"m": jnp.ones(2)}, jnp.zeros((images, 3)))


def figures(epoch):
    """Those of an epoch."""
    return {
        **{name: float(epoch) for name in Epoch._fields if name not in Epoch._field_defaults},
        "epoch": epoch,
        "chunk_steps": 4,
    }


def saved(step, history=()):
    return Saved(state_of(1, step), list(history), 1, "of the images", {"cores": "2"}, {"seed": 3}, "of the run")


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def silent(line):
    raise AssertionError(line)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def keeper(folder, keep=1, report=silent):
    return Keeper(folder, keep, report)


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def kept(folder, losses, keep=1):
    """The steps kept after checkpoints 1, 2, … with these losses, and the best one's."""
    keeping = keeper(folder, keep)
    for step, loss in enumerate(losses, 1):
        keeping.save(saved(step), loss)
    best = restore(folder, "best", state_of, silent)
    latest = restore(folder, "latest", state_of, silent)
    assert int(latest.state.step) == len(losses)
    return steps(folder), int(best.state.step)


# --- What is kept ----------------------------------------------------------------------------------------------------


def test_restores_what_was_saved(folder):
    history = [{**figures(1), "test_loss": 0.1 + 0.2, "large": 1e300}]
    keeper(folder).save(saved(7, history), 1.5)
    found = restore(folder, "latest", state_of, silent)
    same(found.state, saved(7).state)
    assert found[1:] == (history, 1, "of the images", {"cores": "2"}, {"seed": 3}, "of the run")
    assert not [path for path in folder.iterdir() if path.name != "7"]


def test_the_best_is_kept_besides_the_newest(tmp_path):
    assert kept(tmp_path / "a", [3.0, 1.0, 2.0, 4.0]) == ([2, 4], 2)
    assert kept(tmp_path / "b", [3.0, 1.0, 2.0, 4.0, 5.0], keep=2) == ([2, 4, 5], 2)


def test_the_best_may_be_the_newest(folder):
    assert kept(folder, [3.0, 2.0, 1.0]) == ([3], 3)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_the_best(tmp_path, broken):
    assert kept(tmp_path / "a", [broken, 2.0, 3.0]) == ([2, 3], 2)
    assert kept(tmp_path / "b", [2.0, broken, 3.0]) == ([1, 3], 1)


def test_checkpoints_inside_an_epoch_are_not_ranked(folder):
    assert kept(folder, [None, 2.0, None, 3.0, None]) == ([2, 5], 2)


def test_without_a_rank_the_best_is_the_newest(folder):
    assert kept(folder, [None, None])[1] == 2


def test_the_next_process_knows_the_best(folder):
    kept(folder, [3.0, 1.0, 2.0])
    keeper(folder).save(saved(4), 5.0)
    assert steps(folder) == [2, 4]


def test_no_checkpoint_yet(folder):
    folder.mkdir()
    assert restore(folder, "latest", state_of, silent) is None
    assert restore(folder, "best", state_of, silent) is None


NAMES = [
    "run [1]", "[!x] * ?", "**", "{x,y} 'q' \"d\" $HOME", "new\nline\ttab", "per%20cent a#b", "back\\slash", "~", "gs:",
    " é…漢 ",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_in_the_path(tmp_path, name):
    (tmp_path / name).mkdir()
    folder = tmp_path / name / "checkpoints"
    keeper(folder).save(saved(7), 1.5)
    same(restore(folder, "latest", state_of, silent).state, saved(7).state)
    assert [path.name for path in folder.iterdir()] == ["7"]


def test_any_name_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here [1]").mkdir()
    monkeypatch.chdir(tmp_path / "here [1]")
    keeper(Path("checkpoints")).save(saved(7), 1.5)
    same(restore(Path("checkpoints"), "latest", state_of, silent).state, saved(7).state)


def test_any_name_where_open_folders_have_no_path(tmp_path, monkeypatch):
    """As on macOS, by way of a link, of which nothing stays."""
    monkeypatch.setattr(orbax, "OPEN_FOLDERS", tmp_path / "none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "run [1]" / "checkpoints"
    folder.parent.mkdir()
    keeper(folder).save(saved(7), 1.5)
    same(restore(folder, "latest", state_of, silent).state, saved(7).state)
    assert [path.name for path in tmp_path.iterdir()] == ["run [1]"]


def test_where_no_link_can_be_made_only_what_needs_one_is_refused(tmp_path, monkeypatch):
    """As on Windows without the right to make one."""
    monkeypatch.setattr(orbax, "OPEN_FOLDERS", tmp_path / "none")
    folders = [tmp_path / name / "checkpoints" for name in ("My runs (x86)~1 @ 'a'&b!^;$", "run [1]", "gs:")]
    for folder in folders:
        folder.parent.mkdir()
        keeper(folder).save(saved(7), 1.5)

    def refuse(*_, **__):
        raise OSError(1314, "a privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    keeper(folders[0]).save(saved(8), 1.5)
    same(restore(folders[0], "latest", state_of, silent).state, saved(8).state)
    for folder, strange in zip(folders[1:], (r"\[\]", ":"), strict=True):
        for act in (lambda: keeper(folder).save(saved(8), 1.5), lambda: restore(folder, "latest", state_of, silent)):  # noqa: B023
            with pytest.raises(UserError, match=rf"expected a path of .*\(a privilege is not held\); found {strange}$"):
                act()
        assert [path.name for path in folder.iterdir()] == ["7"]


def test_orbax_is_silenced_wherever_it_is_called(tmp_path, monkeypatch):
    levels, real = [], _as_dicts
    level = lambda: logging.getLogger("absl").level  # noqa: E731
    monkeypatch.setattr(checkpoint, "_as_dicts", lambda state: levels.append(level()) or real(state))
    before = level()
    keeper(tmp_path).save(saved(7), 1.5)
    restore(tmp_path, "latest", state_of, silent)
    assert len(levels) == 3  # saved, read back and restored
    assert min(levels) > logging.CRITICAL
    assert level() == before


def test_a_runs_first_checkpoint_is_read_back(tmp_path, monkeypatch):
    """Orbax itself writes none that can be read where it takes the path for a pattern, and says nothing."""
    folder = tmp_path / "run [1]" / "checkpoints"
    folder.parent.mkdir()
    keeping = keeper(folder)

    def unreadable(*arguments):
        raise ValueError("no such array")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_arrays", unreadable)
        with pytest.raises(UserError, match="7: the checkpoint cannot be saved; it cannot be read back: "):
            keeping.save(saved(7), 1.5)
    assert not list(folder.iterdir())
    read, real = [], _arrays
    monkeypatch.setattr(checkpoint, "_arrays", lambda *arguments: read.append(arguments[0]) or real(*arguments))
    for step in (7, 8):
        keeping.save(saved(step), 1.5)
    assert len(read) == 1  # the next ones cost nothing


# --- Saving fails ----------------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size):
    """Within it no file can grow beyond so many bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 50, 700])
def test_a_full_disk_fails_loudly_and_keeps_what_is_there(folder, size, capfd, caplog):
    keeping = keeper(folder)
    keeping.save(saved(1), 1.0)
    before = snapshot(folder)
    with file_size_limit(size), pytest.raises(UserError, match=r"cannot be saved; .*File too large") as caught:
        keeping.save(saved(2), 0.5)
    assert capfd.readouterr() == ("", "")  # of orbax's threads
    assert not caplog.records
    assert str(folder / "2") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(folder) == before
    keeping.save(saved(2), 0.5)
    assert steps(folder) == [2]


def test_what_other_packages_hold_does_not_hide_why_a_save_fails(folder):
    """PyTorch holds an object that warns when it is asked for its class, and here warnings are errors."""

    class Deprecated:
        @property
        def __class__(self):
            raise FutureWarning("deprecated")

    keeping, _held = keeper(folder), Deprecated()
    with file_size_limit(50), pytest.raises(UserError, match=r"cannot be saved; .*File too large"):
        keeping.save(saved(1), 1.0)


def test_space_is_asked_for_first(folder, monkeypatch):
    keeping = keeper(folder)
    keeping.save(saved(1), 1.0)
    before = snapshot(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="cannot be saved; no space left on the disk"):
        keeping.save(saved(2), 0.5)
    assert snapshot(folder) == before


@pytest.mark.parametrize("call", ["mkdir", "rename", "open"])
def test_a_refusal_of_the_file_system_fails_loudly(folder, monkeypatch, call):
    keeping = keeper(folder)
    keeping.save(saved(1), 1.0)
    before = snapshot(folder)
    real = getattr(Path, call)

    def refuse(path, *arguments, **options):
        if folder in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        with pytest.raises(UserError, match="No space left"):
            keeping.save(saved(2), 0.5)
    assert snapshot(folder) == before


def test_ctrl_c_waits_until_a_checkpoint_is_whole(folder, monkeypatch):
    keeping = keeper(folder)
    real = files_of

    def interrupted(path):
        signal.raise_signal(signal.SIGINT)
        return real(path)

    # Ctrl-C is ignored in what a shell's background job starts, as these tests may be.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "files_of", interrupted)
            with pytest.raises(KeyboardInterrupt):
                keeping.save(saved(1), 2.0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert int(restore(folder, "latest", state_of, silent).state.step) == 1


# --- Damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(folder):
    """Two checkpoints; the older one is the better."""
    kept(folder, [1.0, 2.0])
    return folder


def test_every_flipped_bit_is_detected(two):
    """In the newest of two checkpoints, in any of its files; then the older one is used."""
    files = sorted(path for path in (two / "2").rglob("*") if path.stat().st_size and path.is_file())
    assert any("ocdbt" in str(path) for path in files)
    rng = random.Random(0)
    for trial in range(300):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        reported = []
        with pytest.raises(DamageError):
            read_description(two / "2")
        if trial % 10 == 0:
            assert int(restore(two, "latest", state_of, reported.append).state.step) == 1
            assert len(reported) == 1
            assert str(two / "2") in reported[0]
        path.write_bytes(whole)
    assert int(restore(two, "latest", state_of, silent).state.step) == 2


def largest(step):
    return max(step.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


DAMAGE = {
    "shortened": lambda step: largest(step).write_bytes(largest(step).read_bytes()[:10]),
    "emptied": lambda step: largest(step).write_bytes(b""),
    "a file missing": lambda step: largest(step).unlink(),
    "a file too many": lambda step: (step / "state" / "more").write_text("more"),
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "no description": lambda step: (step / DESCRIPTION).unlink(),
    "nothing in it": lambda step: (shutil.rmtree(step), step.mkdir()),
    "no JSON": lambda step: (step / DESCRIPTION).write_text("{"),
    "deep JSON": lambda step: (step / DESCRIPTION).write_text("[" * 100_000),
    "other JSON": lambda step: (step / DESCRIPTION).write_text('{"some": "thing"}'),
    "a list": lambda step: (step / DESCRIPTION).write_text("[]"),
    "binary": lambda step: (step / DESCRIPTION).write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_said_passed_over_and_moved_out_of_the_way(two, damage):
    damage(two / "2")
    before = snapshot(two)
    reported = []
    assert int(restore(two, "latest", state_of, reported.append).state.step) == 1
    assert len(reported) == 1
    assert str(two / "2") in reported[0]
    assert snapshot(two) == before  # reading moves nothing

    content = snapshot(two / "2")
    reported = []
    keeping = keeper(two, report=reported.append)
    assert len(reported) == 1
    assert str(two / "2") in reported[0]
    assert snapshot(two / DAMAGED / "2") == content
    keeping.save(saved(2), 3.0)
    assert int(restore(two, "latest", state_of, silent).state.step) == 2
    assert snapshot(two / DAMAGED / "2") == content


# What a description may say wrongly whose hash was computed again, and the line on it.
RESEALED = {
    "history: expected a list; found 'x'": {"history": "x"},
    "history[0]: expected an object; found 1": {"history": [1]},
    "history[0].train_loss: expected a number; found nothing": {"history": [{"epoch": 1}]},
    "history[0].test_kl: expected a number; found 'x'": {"history": [{**figures(1), "test_kl": "x"}]},
    "history[0].chunk_steps: expected a whole number in [1, 1000000000]; found -1": {
        "history": [{**figures(1), "chunk_steps": -1}]
    },
    "history[1].epoch: expected 2; found 7": {"history": [figures(1), figures(7)]},
    "checkpoint.history: expected at most 16 brackets in one another; found more": {
        "history": [{**figures(1), "more": json.loads("[" * 900 + "]" * 900)}]
    },
    "images: expected a whole number in [0, 2147483647]; found -1": {"images": -1},
    "images: expected a whole number of at most 9,007,199,254,740,992; found 10": {"images": 10**30},
    "images: expected a whole number; found Infinity": {"images": math.inf},
    "options: expected an object; found a list of 1": {"options": [1]},
    "options.seed: expected a whole number or a number or text or": {"options": {"seed": {}}},
    "arrays..step.type: expected text; found 5": {"arrays": {".step": {"type": 5, "sha256": ""}}},
    "arrays..step: expected an object; found 'x'": {"arrays": {".step": "x"}},
    "files: expected an object; found a list of 1": {"files": [1]},
    "files.../up: expected text; found 3": {"files": {"../up": 3}},
    "format: expected a whole number; found 'two'": {"format": "two"},
    "loss: expected a number or null; found 'x'": {"loss": "x"},
    "made_with.jax: expected text; found an object of 0": {"made_with": {"jax": {}}},
    "digest: expected text; found 5": {"digest": 5},
    "expected figures of 2 epochs; found 0": {"options": {"train.batch_size": 1}},
}


@pytest.mark.parametrize("said", RESEALED)
def test_what_a_description_says_is_looked_at_after_its_hash(two, said):
    path = two / "2" / DESCRIPTION
    description = json.loads(path.read_text())["checkpoint"] | RESEALED[said]
    sha256 = sha256_of(json.dumps(description, sort_keys=True).encode())
    path.write_text(json.dumps({"sha256": sha256, "checkpoint": description}))
    reported = []
    assert int(restore(two, "latest", state_of, reported.append).state.step) == 1
    (line,) = reported
    assert line.startswith(f"{two / '2'}: damaged, {DESCRIPTION}: {said}")
    assert len(line) < 500


def test_files_outside_a_checkpoint_are_none_of_it(two, tmp_path):
    """Whatever its description says of them, with a hash that is right: they are not looked at."""
    (tmp_path / "mine").write_text("mine")
    path = two / "2" / DESCRIPTION
    for name in ("../../mine", str(tmp_path / "mine"), "state/../../../mine"):
        description = json.loads(path.read_text())["checkpoint"]
        description["files"][name] = _file_sha256(tmp_path / "mine")
        sha256 = sha256_of(json.dumps(description, sort_keys=True).encode())
        path.write_text(json.dumps({"sha256": sha256, "checkpoint": description}))
        reported = []
        restore(two, "latest", state_of, reported.append)
        assert reported == [f"{two / '2'}: damaged, {min(name, '../../mine')} is missing; it is passed over"]


def test_the_arrays_of_another_step_are_damage(two):
    shutil.copytree(two / "2", two / "3")
    reported = []
    assert int(restore(two, "latest", state_of, reported.append).state.step) == 2
    assert reported == [f"{two / '3'}: damaged, its arrays are those of step 2; it is passed over"]


def test_a_second_damaged_checkpoint_of_a_step_is_kept_too(two):
    for name in ("2", "2.1"):
        (two / "2" / DESCRIPTION).write_text(name)
        keeper(two, report=lambda line: None).save(saved(2), 3.0)
        assert (two / DAMAGED / name / DESCRIPTION).read_text() == name


def test_the_damaged_best_is_passed_over_too(tmp_path):
    folder = tmp_path / "checkpoints"
    kept(folder, [1.0, 3.0, 2.0], keep=3)
    largest(folder / "1").write_bytes(b"")
    reported = []
    assert int(restore(folder, "best", state_of, reported.append).state.step) == 3
    assert len(reported) == 1
    assert str(folder / "1") in reported[0]


def test_all_damaged_is_refused(two):
    for step in ("1", "2"):
        (two / step / DESCRIPTION).unlink()
    with pytest.raises(UserError, match="expected an undamaged checkpoint, found none"):
        restore(two, "latest", state_of, lambda line: None)


def test_half_written_checkpoints_are_said_and_set_aside(two):
    for name in (".3.99.tmp", "4.orbax-checkpoint-tmp-17"):
        (two / name / "state").mkdir(parents=True)
    (two / ".1.deleted").mkdir()
    (two / "notes").mkdir()
    assert int(restore(two, "latest", state_of, silent).state.step) == 2
    reported = []
    keeper(two, report=reported.append)
    assert ["half-written, the process died while saving; moved to" in line for line in reported] == [True, True]
    assert {path.name for path in (two / DAMAGED).iterdir()} == {"3.99.tmp", "4.orbax-checkpoint-tmp-17"}
    assert {path.name for path in two.iterdir()} == {"1", "2", "notes", DAMAGED}


def test_a_wrong_array_is_damage_even_with_right_files(two, monkeypatch):
    """As where orbax restores something else than it saved."""
    real = checkpointer

    class Wrong:
        def restore(self, *arguments, **options):
            state = real().restore(*arguments, **options)
            return state._replace(opt_state={"m": state.opt_state["m"] + 1})

    monkeypatch.setattr(checkpoint, "checkpointer", Wrong)
    reported = []
    with pytest.raises(UserError, match="none"):
        restore(two, "latest", state_of, reported.append)
    assert "opt_state['m']" in reported[0]
    monkeypatch.undo()
    # What was passed over is moved, so that the run that goes on from step 1 can save its own step 2.
    reported = []
    Keeper(two, 1, reported.append, newest=1).save(saved(2), 3.0)
    assert str(two / DAMAGED / "2") in reported[0]
    assert steps(two) == [1, 2]


def test_a_checkpoint_deleted_while_it_is_read_is_looked_for_again(two, monkeypatch):
    """A training that goes on saves step 3 and deletes step 2 just as it is about to be read."""
    real = _read

    def read(folder, *arguments):
        if folder.name == "2":
            monkeypatch.setattr(checkpoint, "_read", real)
            keeper(two).save(saved(3), 3.0)
        return real(folder, *arguments)

    monkeypatch.setattr(checkpoint, "_read", read)
    assert int(restore(two, "latest", state_of, silent).state.step) == 3


# --- What is wrong with the surroundings -----------------------------------------------------------------------------


def blameless(call):
    """What a refusal says that blames no checkpoint; None where there was none."""
    try:
        call()
    except (UserError, OSError) as error:
        said = str(error)
        assert "\n" not in said
        assert not [word for word in ("damaged", "passed over", "start the run again", "missing") if word in said]
        return said
    return None


def test_an_open_file_too_many_is_not_damage(two):
    before, limits = snapshot(two), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.open(os.devnull, os.O_RDONLY))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        said = [
            blameless(call)
            for call in (lambda: restore(two, "latest", state_of, silent), lambda: Keeper(two, 1, silent, newest=1))
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all("Too many open files" in line for line in said)
    assert snapshot(two) == before


@contextmanager
def without_privileges(path):
    """Within it this process may not read what is of mode 0, even if it is root's."""
    root = os.geteuid() == 0
    if root:
        for each in (path, *path.rglob("*")):
            os.chown(each, 65534, -1)
        for parent in path.parents:  # pytest's own folders are the user's alone
            if any(part.startswith("pytest-of-") for part in parent.parts):
                parent.chmod(parent.stat().st_mode | 0o011)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("part", [".", "state", DESCRIPTION, "a file"])
def test_what_may_not_be_read_is_not_damage(two, part):
    path = largest(two / "2") if part == "a file" else two / "2" / part
    before = snapshot(two)
    with without_privileges(two):
        path.chmod(0)
        try:
            for call in (
                lambda: restore(two, "latest", state_of, silent),
                lambda: restore(two, "best", state_of, silent),
                lambda: keeper(two),
                lambda: Keeper(two, 1, silent, newest=1),
            ):
                assert "ermission denied" in blameless(call)
        finally:
            path.chmod(0o755)
    assert snapshot(two) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "checkpoints/2/state/d/1"),
        OSError(errno.EMFILE, "Too many open files"),
        ValueError("UNAVAILABLE: Error opening \"zarr\" driver: [os_error_code='5']"),
        RuntimeError("can't start new thread"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        MemoryError("so many bytes"),
        KeyError("an orbax that reads no such checkpoint"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_reading_fails_at_is_not_damage_where_all_files_are_as_they_were(two, monkeypatch, error):
    def fail(*_):
        raise error

    before = snapshot(two)
    monkeypatch.setattr(checkpoint, "_arrays", fail)
    with pytest.raises((UserError, MemoryError)) as caught:
        restore(two, "latest", state_of, silent)
    assert not [word for word in ("damaged", "passed over", "again") if word in str(caught.value)]
    if not isinstance(error, MemoryError):
        assert f"{two / '2'}: cannot be read here, though its files are as they were saved; " in str(caught.value)
    assert snapshot(two) == before


def test_a_device_that_is_full_is_not_damage(two, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(checkpoint.jnp, "asarray", full)
    with pytest.raises(jax.errors.JaxRuntimeError):
        restore(two, "latest", lambda images: saved(0).state, silent)


# --- Formats ---------------------------------------------------------------------------------------------------------


def test_a_newer_format_is_refused(two):
    path = two / "2" / DESCRIPTION
    description = {**json.loads(path.read_text())["checkpoint"], "format": 99}
    sha256 = sha256_of(canonical(description))
    path.write_text(json.dumps({"sha256": sha256, "checkpoint": description}))
    with pytest.raises(UserError, match=r"format 3, found 99; update vae_jax"):
        restore(two, "latest", state_of, silent)
    with pytest.raises(UserError, match="99"):
        keeper(two)


def test_another_models_checkpoint_is_refused_by_the_arrays_name(two):
    def other(images):
        return state_of(images)._replace(opt_state={"m": jnp.ones(3)})

    with pytest.raises(UserError, match=r"opt_state\['m'\] float32\[3\]; found float32\[2\]"):
        restore(two, "latest", other, silent)


@pytest.mark.parametrize("trained_with", [False, True], ids=["without", "with"])
def test_a_run_of_the_other_64_bit_mode_is_refused_by_the_mode(folder, trained_with):
    with jax.enable_x64(trained_with):
        keeper(folder).save(saved(1), 1.0)
        restore(folder, "latest", state_of, silent)
    with jax.enable_x64(not trained_with), pytest.raises(UserError, match="64-bit mode") as caught:
        restore(folder, "latest", state_of, silent)
    was, now = ("with", "off") if trained_with else ("without", "on")
    assert f"as the run was trained, {was} it, found it {now}; set JAX_ENABLE_X64={int(trained_with)}" in str(
        caught.value
    )


def unpacked(name, folder):
    """A small run that some version has left: two epochs of digits."""
    with tarfile.open(STORED / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


@pytest.fixture(params=["format_3"])
def stored(request, tmp_path):
    return unpacked(request.param, tmp_path)


@pytest.mark.parametrize("made", [1, 2])
def test_formats_before_the_first_release_are_refused_and_left_alone(made, tmp_path):
    folder = unpacked(f"format_{made}", tmp_path)
    before = snapshot(folder)
    with pytest.raises(UserError, match=f"format 3, found {made}, of a version before the first release; train the"):
        reading.load(folder, report=silent)
    assert snapshot(folder) == before


def test_a_stored_run_opens_and_goes_on(stored, tmp_path_factory):
    """Losses are compared to 1e-4, since another processor or version rounds otherwise."""
    summary = json.loads((stored / "summary.json").read_text())
    for which in ("latest", "best"):
        trained = reading.load(stored, which, silent)
        assert len(trained.history) == 2
        assert trained.history[-1]["test_loss"] == summary["test_loss"]
        assert int(trained.state.step) == 20
    config = load_config(stored / "config.yaml", **{"train.epochs": 3})
    data = load(config.data)
    reported = []
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        evaluate = make_evaluator(config, *build(config, data.image_shape), data.test.images)
        found = means(evaluate(trained.state.variables, make_keys(0).evaluate))["loss"]
        assert found == pytest.approx(summary["test_loss"], rel=1e-4)
        changed = load_config(stored / "config.yaml", **{"objective.beta": 2.0})
        with pytest.raises(UserError, match=r"objective\.beta \(the run has 1\.0, found 2\.0\)"):
            train(changed, data, stored, resume=True)
        trained = train(config, data, stored, resume=True, report=reported.append)
    assert "after epoch 2, step 20" in reported[0]
    assert len(trained.history) == 3
    assert trained.history[2]["test_loss"] < summary["test_loss"]
    assert sorted(path.name for path in (stored / "checkpoints").iterdir()) == ["30"]
