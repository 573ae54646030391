"""Several devices, emulated by XLA, and two processes: the losses of one device, and what happens when one is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faults import start_two
from run_fixtures import TINY, flags

from vae_jax.cli import main
from vae_jax.config import load_config
from vae_jax.device.devices import Devices
from vae_jax.errors import UserError
from vae_jax.runs.identity import check_alike
from vae_jax.runs.reading import load

WORKER = Path(__file__).parent / "devices.py"
TWICE = ["--config=digits", *flags(**TINY)]


@pytest.fixture(scope="module")
def trained():
    """Losses of every step, and of the epochs, by precision and devices."""
    # Not with the suite's own flags: streaming changes no bit of what users compile.
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    found = subprocess.run([sys.executable, WORKER], capture_output=True, text=True, env=environment, timeout=280)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("devices", ["2", "4"])
def test_losses_are_those_of_one_device(trained, devices):
    """70 images in batches of 16 and one of 6, and 21 to test on, none of which 4 devices share evenly."""
    for precision, what, tolerance in (("float64", "epochs", 1e-9), ("float32", "steps", 1e-5)):
        found = trained[precision]
        np.testing.assert_allclose(found[devices][what], found["1"][what], rtol=tolerance)
    assert trained["float64"]["1"]["epochs"] != trained["float32"]["1"]["epochs"]


@pytest.mark.parametrize("devices", ["2", "4"])
def test_a_term_of_the_whole_batch_is_of_all_devices_images(trained, devices):
    for what in ("steps", "epochs"):
        np.testing.assert_allclose(trained["of_batch"][devices][what], trained["of_batch"]["1"][what], rtol=1e-9)


def test_streaming_to_several_changes_no_bit(trained):
    assert trained["streamed"] == trained["float64"]["4"]


def test_categories_are_spread_as_images_are(trained):
    one, four = (trained["categories"][devices] for devices in ("1", "4"))
    for what in ("steps", "epochs"):
        np.testing.assert_allclose(four[what], one[what], rtol=1e-12)


def test_codebooks_are_those_of_one_device(trained):
    one, two = (trained["codebook"][devices] for devices in ("1", "2"))
    for what in ("codes", "counts"):
        np.testing.assert_allclose(two[what], one[what], rtol=1e-6, atol=1e-6)
    assert two["used"] == one["used"] > 1


def test_the_work_is_shared(trained):
    assert trained["all_reduces"]["1"] == 0
    assert trained["all_reduces"]["4"] > 0
    assert trained["images_on_each"] == {"1": 70, "2": 35, "4": 18}  # filled up to be even


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_two_processes_and_a_run_that_goes_on_alone(tmp_path, precision, monkeypatch, request):
    """Both epochs are the first 20 steps; in double precision all losses of the epochs are compared."""
    if precision == "float64":
        monkeypatch.setenv("JAX_ENABLE_X64", "1")
        request.getfixturevalue("float64")
    both = start_two(tmp_path / "two", [*TWICE, "--train.chunk_steps", "0"])  # measured
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    two = load(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["devices"] == "2 in 2 processes"
    assert main(["train", "--out", str(tmp_path / "one"), *TWICE]) == 0
    one = load(tmp_path / "one")
    names = [f"{split}_loss" for split in (("train",) if precision == "float32" else ("train", "validation", "test"))]
    losses = [[[epoch[name] for name in names] for epoch in found.history] for found in (two, one)]
    np.testing.assert_allclose(*losses, rtol=1e-5 if precision == "float32" else 1e-9)
    # What two have saved one goes on with.
    assert main(["train", "--out", str(tmp_path / "two"), "--resume", *TWICE, "--train.epochs", "3"]) == 0
    assert len(load(tmp_path / "two").history) == 3


def test_processes_that_would_train_different_runs_are_refused(tmp_path):
    both = start_two(tmp_path / "run", TWICE, more=[[], ["--seed", "1"]])
    said = [process.communicate(timeout=100)[1] for process in both]
    assert sorted(process.returncode for process in both) in ([2, 2], [2, 75]), said
    assert any(
        "expected every process to have the same options" in each and "differ in seed\n" in each for each in said
    )
    assert all("Traceback" not in each for each in said)


def test_what_differs_between_processes_is_named(monkeypatch):
    """Without processes: what another one would have gathered stands beside this one's."""

    class Two(Devices):
        """Gathers this process's value and another's."""

        def agree(self, value, reduce=None):
            gathered.append(value)
            return reduce(np.stack(gathered[-2:]))

    gathered = []
    config = load_config(**{"train.learning_rate": 0.1, "data.cache_dir": "/a"})
    others = load_config(**{"train.learning_rate": 0.2, "model.latent": 3, "data.cache_dir": "/b"})
    check_alike(config, "images", None, Two())
    check_alike(config, "images", None, Two())
    with pytest.raises(UserError, match=r"found some that differ in model\.latent, train\.learning_rate$"):
        check_alike(others, "images", None, Two())
    check_alike(others, "images", None, Two())
    with pytest.raises(UserError, match=r"found some that differ in training images$"):
        check_alike(others, "other images", None, Two())


def test_a_signal_to_one_stops_both_saved(tmp_path):
    both = start_two(tmp_path / "run", [*TWICE, "--train.epochs", "100000"])
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    both[1].terminate()
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, said
    assert "saving and stopping" in said[1]
    assert all("stopped" in each and "Traceback" not in each for each in said)
    assert load(tmp_path / "run").history


def test_a_process_that_is_lost_stops_the_other_with_a_word_and_the_run_goes_on(tmp_path):
    found = subprocess.run(
        [sys.executable, Path(__file__).parent / "faults.py", "processes", "--count", "1", "--tiny", "--late"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert ": equal" in found.stdout


REFUSED = {
    "--devices: expected 1 to 1, as many as there are; found 2": ["--devices", "2"],
    "--coordinator: expected --distributed with it": ["--coordinator", "127.0.0.1:1"],
    "together, or none of them; missing: --processes, --process": ["--distributed", "--coordinator", "127.0.0.1:1"],
    "--coordinator: expected HOST:PORT, with an IPv6 address in brackets; found 'here'": [
        *("--distributed", "--coordinator", "here", "--processes", "2", "--process", "0")
    ],
    "--coordinator: expected HOST:PORT, with an IPv6 address in brackets; found '::1:7000'": [
        *("--distributed", "--coordinator", "::1:7000", "--processes", "2", "--process", "0")
    ],
    "--process: expected 0 to 1; found 2": [
        *("--distributed", "--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2")
    ],
    "--wait: expected a number": [
        *("--distributed", "--coordinator", "h:1", "--processes", "2", "--process", "1", "--wait", "0")
    ],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_leaves_nothing(message, tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), *TWICE, *REFUSED[message]]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [([], "expected --coordinator HOST:PORT, --processes and --process"), (["--wait", "2"], "to meet at")],
)
def test_processes_that_do_not_find_one_another_say_so(tmp_path, more, expected):
    """In a process of their own, since jax joins others once."""
    where = ["--coordinator", "127.0.0.1:9", "--processes", "2", "--process", "1"] if more else []
    command = [sys.executable, "-m", "vae_jax", "train", "--out", str(tmp_path / "run"), "--distributed", *where, *more]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert found.returncode == 2, found.stderr
    assert expected in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
