"""Runs that are killed, or whose writes fail, end where an undisturbed run ends; two runs are never mixed in a folder,
and nothing is written through a link in one.

A few moments of each kind, chosen by a fixed seed; `make torture` tries them all.
"""

import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from faults import TINY, TINY_OF_ANY, bytes_in, command
from run_fixtures import snapshot

from vae_jax.errors import UserError
from vae_jax.files.held import LOCK, check_no_link
from vae_jax.files.lock import writing
from vae_jax.files.replace import replacing, replacing_folder, write_text, write_together

FAULTS = Path(__file__).parent / "faults.py"


@pytest.mark.parametrize(
    ("what", "count", "runs"),
    [("writes", 3, 6), ("kills", 2, 2), ("removed", 3, 3), ("links", 2, 14), ("raises", 5, 6)],
)
def test_faults(what, count, runs):
    command = [sys.executable, FAULTS, what, "--count", str(count), "--tiny"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(": equal") == runs


@pytest.fixture
def training(tmp_path):
    """A process that is training into a run folder, without end."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vae_jax", "train", "--out", str(folder), *TINY, "--train.epochs=100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    yield folder, process
    process.kill()
    process.communicate()


def test_two_on_one_run(training):
    """The second is refused, reading goes on, and a process that is dead holds no lock."""
    folder, process = training
    for option in (["--resume"], ["--overwrite"]):
        command = [sys.executable, "-m", "vae_jax", "train", "--out", str(folder), *TINY, *option]
        second = subprocess.run([*command, "--train.epochs=100000"], capture_output=True, text=True, timeout=120)
        assert second.returncode == 2
        expected = f"vae-jax: error: {folder}: process {process.pid} is writing into it; wait until it ends"
        assert second.stderr.startswith(expected)
        assert len(second.stderr.splitlines()) == 1
    evaluate = [sys.executable, "-m", "vae_jax", "evaluate", str(folder)]
    found = subprocess.run(evaluate, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert process.poll() is None
    process.kill()
    process.wait()
    with writing(folder):
        pass


def test_a_lock_is_held_once_and_let_go(tmp_path):
    folder = tmp_path / "new" / "run"
    with writing(folder):
        before = snapshot(folder)
        with pytest.raises(UserError, match=f"process {os.getpid()} is writing"), writing(folder):
            raise AssertionError
        assert snapshot(folder) == before
    assert not (tmp_path / "new").exists()  # nothing was written
    with writing(folder):
        (folder / "metrics.jsonl").write_text("")
    assert {path.name for path in folder.iterdir()} == {LOCK, "metrics.jsonl"}


def take_away(folder: Path) -> None:
    """Deletes a folder that a process goes on writing into."""
    gone = folder.with_name("gone")
    folder.rename(gone)
    while gone.exists():
        shutil.rmtree(gone, ignore_errors=True)


def test_a_run_whose_folder_another_run_has_taken_ends(training):
    """The other goes on as if it were alone, and no checkpoint of the first is in its folder."""
    folder, process = training
    take_away(folder)
    other = ["train", "--out", str(folder), *TINY, "--seed=1", "--train.epochs=1"]
    assert command(*other) == (0, "")
    after = bytes_in(folder)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert said.endswith(
        f"vae-jax: error: {folder}: the folder was removed, or another run has begun in it, since this process locked "
        f"it; nothing more is written there\n"
    )
    assert bytes_in(folder) == after
    assert command(*other[:-1], "--train.epochs=2", "--resume") == (0, "")
    seeds = {options["seed"] for options in _options_in(folder)}
    assert seeds == {1}


def test_a_run_whose_folder_is_gone_does_not_make_it_again(training):
    folder, process = training
    take_away(folder)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "the folder was removed, or another run has begun in it" in said.splitlines()[-1]
    assert not folder.exists()


def _options_in(folder: Path) -> list[dict]:
    descriptions = sorted(folder.glob("checkpoints/*/checkpoint.json"))
    return [json.loads(path.read_text())["checkpoint"]["options"] for path in descriptions]


@pytest.mark.parametrize("differ", ["seed", "code"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, differ):
    """Whoever has put it there: of another seed, or of another content of a user's file with the same options."""
    network, folders = tmp_path / "mine.py", [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        if number == 0 or differ == "code":
            network.write_text(f"from vae_jax.networks import NETWORKS\n\nnet = NETWORKS['mlp']  # {number}\n")
        mine = ["--model.network", f"{network}:net", f"--seed={number * (differ == 'seed')}"]
        assert command("train", "--out", str(folder), *TINY_OF_ANY, *mine, f"--train.epochs={2 - number}") == (0, "")
    a, b = folders
    shutil.copytree(a / "checkpoints" / "20", b / "checkpoints" / "20")
    runs = [json.loads((folder / "data.json").read_text())["run"] for folder in folders]
    assert len(set(runs)) == 2
    before = snapshot(b)
    for use in (["evaluate", str(b)], ["sample", str(b)], ["train", "--out", str(b), "--resume"]):
        code, said = command(*use)
        assert (code, len(said.splitlines())) == (2, 1)
        assert f"{b}: expected a checkpoint of this run, {runs[1][:12]}" in said
        assert f"another run, {runs[0][:12]} with seed 0" in said
    assert snapshot(b) == before
    shutil.rmtree(b / "checkpoints" / "20")
    assert command("evaluate", str(b)) == (0, "")


def test_a_file_is_written_under_a_name_of_its_own(tmp_path, monkeypatch):
    """The file beside it is new, or nothing is written; a link is replaced, not followed; the umask holds."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    theirs.write_text("theirs")
    mine.symlink_to(theirs)
    write_text(mine, "mine")
    assert (mine.is_symlink(), mine.read_text(), theirs.read_text()) == (False, "mine", "theirs")
    before = os.umask(0o027)
    try:
        write_text(mine, "again")
    finally:
        os.umask(before)
    assert stat.S_IMODE(mine.stat().st_mode) == 0o640

    with replacing(tmp_path / "other"), replacing(tmp_path / "other"):
        names = {path.name for path in tmp_path.iterdir()} - {"mine", "theirs"}
    (tmp_path / "other").unlink()
    assert len(names) == 2
    assert not any(str(os.getpid()) in name for name in names)

    monkeypatch.setattr(secrets, "token_hex", lambda size: "abc")
    beside = tmp_path / ".mine.abc.tmp"
    for write in (lambda: write_text(mine, "x"), lambda: replacing_folder(mine).__enter__()):
        beside.symlink_to(theirs)
        with pytest.raises(FileExistsError):
            write()
        beside.unlink(missing_ok=True)
    assert (mine.read_text(), theirs.read_text()) == ("again", "theirs")
    monkeypatch.undo()

    long = tmp_path / ("é" * 125 + ".json")  # 255 bytes, which is all that there is
    write_text(long, "long")
    with suppress(ZeroDivisionError), replacing(long) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert long.read_text() == "long"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "theirs", long.name}


def test_files_written_together_take_their_places_together(tmp_path):
    first, last, nowhere = tmp_path / "first", tmp_path / "last", tmp_path / "first" / "under a file"
    write_together({first: b"1", last: b"2"})
    before = snapshot(tmp_path)
    assert {str(path): content for path, (content, _) in before.items()} == {"first": b"1", "last": b"2"}
    for order in ([first, nowhere], [nowhere, last]):
        with pytest.raises(FileExistsError, match="first"):
            write_together(dict.fromkeys(order, b"new"))
        assert snapshot(tmp_path) == before


def test_links_in_a_run(tmp_path):
    """The run's folder may be one, as the user's own may be outside of it; what the run's maker chose may not."""
    (tmp_path / "disk" / "figures").mkdir(parents=True)
    run = tmp_path / "run"
    run.symlink_to(tmp_path / "disk")
    check_no_link(run, run / "figures")
    (run / "more").symlink_to(tmp_path)
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    check_no_link(run, tmp_path / "out")
    for place in (run / "more", run / "more" / "below"):
        with pytest.raises(
            UserError, match=f"{run}/more: expected a folder of the run's own, found a link to {tmp_path}"
        ):
            check_no_link(run, place)
    with writing(run):
        write_text(run / "figures" / "a.txt", "")
        for place in (run / "more" / "a.txt", run / "more" / "new" / "a.txt"):
            with pytest.raises(UserError, match="found a link"):
                write_text(place, "")
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_lock_that_is_no_file_is_refused(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    {"link": lambda at: at.symlink_to(victim), "folder": Path.mkdir, "pipe": os.mkfifo}[kind](folder / LOCK)
    with pytest.raises(UserError, match="expected the file of a lock, found"), writing(folder):
        raise AssertionError
    assert victim.read_text() == "mine"


def test_a_lock_with_another_name_is_not_written_over(tmp_path):
    """A snapshot of a run by hard links, or somebody's file that is given out as a lock."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "victim", tmp_path / "run" / LOCK)
    with writing(tmp_path / "run"), pytest.raises(UserError, match="another process is"), writing(tmp_path / "run"):
        raise AssertionError
    assert (tmp_path / "victim").read_text() == "mine"
