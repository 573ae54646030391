"""Runs that are killed, or whose writes fail, end where an undisturbed run ends; two processes do not mix one run.

A few moments of each kind, chosen by a fixed seed; `make torture` tries them all.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import TINY
from run_fixtures import snapshot

from vae_jax.errors import UserError
from vae_jax.folder import LOCK, writing

FAULTS = Path(__file__).parent / "faults.py"


@pytest.mark.parametrize(("what", "count", "runs"), [("writes", 5, 10), ("kills", 2, 2)])
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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    yield folder, process
    process.kill()
    process.wait()


def test_two_on_one_run(training):
    """The second is refused, reading goes on, and a process that is dead holds no lock."""
    folder, process = training
    for option in (["--resume"], ["--overwrite"]):
        command = [sys.executable, "-m", "vae_jax", "train", "--out", str(folder), *TINY, *option]
        second = subprocess.run([*command, "--train.epochs=100000"], capture_output=True, text=True, timeout=120)
        assert second.returncode == 2
        expected = f"vae-jax: error: {folder}: process {process.pid} is writing into this run; wait until it ends"
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
