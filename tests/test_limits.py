"""Little memory, a full disk, a limit on files: one line, exit code 2, and nothing lost or half-written."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from run_fixtures import TINY, flags

from vae_jax.cli import main
from vae_jax.device import memory
from vae_jax.files.folders import contents

LIMITS = {"file size": resource.RLIMIT_FSIZE, "open files": resource.RLIMIT_NOFILE}
TRAIN = ["train", "--config", "digits", *flags(**TINY), "--train.epochs=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run to be used."""
    folder = tmp_path_factory.mktemp("made") / "run"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    assert main(["export", str(folder), str(folder.parent / "weights.safetensors")]) == 0
    return folder


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk with these options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs to mount a small disk, which root may")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def limited(what, most):
    before = resource.getrlimit(LIMITS[what])
    resource.setrlimit(LIMITS[what], (most, before[1]))
    # The suite's own cache of compiled programs would be cut off at the limit, for all tests after this one.
    slow = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        yield
    finally:
        resource.setrlimit(LIMITS[what], before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", slow)


def refusal(capfd, *arguments):
    """The one line that a command prints, whoever prints; it must be refused."""
    capfd.readouterr()
    code = main([str(each) for each in arguments])
    said = capfd.readouterr().err.splitlines()
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith("vae-jax: error: ")
    return said[0]


def unfinished(folder):
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def commands(made, place):
    """What writes, each with where to."""
    return {
        "train": [*TRAIN, "--out", place / "run"],
        "sweep": ["sweep", *TRAIN[1:], "--out", place / "sweep"],
        "sample": ["sample", made, "-n", 16, "--out", place / "samples.png"],
        "arrays": ["sample", made, "-n", 64, "--out", place / "samples.npz"],
        "encode": ["encode", made, "--out", place / "latents.npz"],
        "reconstruct": ["reconstruct", made, "--out", place / "pairs.png"],
        "export": ["export", made, place / "weights.safetensors"],
        "import": ["import", made.parent / "weights.safetensors", place / "run", "--config", made / "config.yaml"],
    }


@pytest.mark.parametrize("name", commands(Path(), Path()))
@pytest.mark.parametrize(("options", "words"), [("size=4k", "No space left"), ("nr_inodes=1", "No space left")])
def test_on_a_full_disk(made, disk, capfd, name, options, words):
    place = disk(options)
    if "size" in options:
        (place / "filling").write_bytes(bytes(4096))
    before = {path.name for path in place.iterdir()}
    said = refusal(capfd, *commands(made, place)[name])
    assert words in said
    assert str(place) in said
    assert {path.name for path in contents(place)} - {"run", "sweep"} == before
    assert not unfinished(place)


@pytest.mark.parametrize("inodes", [4, 7, 10, 14, 20])
def test_wherever_a_training_runs_out_of_inodes(disk, capfd, inodes):
    place = disk(f"nr_inodes={inodes}")
    said = refusal(capfd, *TRAIN, "--out", place / "run")
    assert "No space left on device" in said or "(inodes)" in said
    assert not unfinished(place)


@pytest.mark.parametrize("name", ["sample", "arrays", "encode", "export", "import", "train"])
def test_over_a_limit_on_the_size_of_files(made, tmp_path, capfd, name):
    with limited("file size", 300):
        said = refusal(capfd, *commands(made, tmp_path)[name])
    assert "File too large (ulimit -f: 300 bytes)" in said
    assert not unfinished(tmp_path)


def test_a_training_that_met_a_limit_goes_on_without_it(tmp_path, capfd):
    """Its first checkpoint was saved under no limit, its second is refused, and the run goes on from the first."""
    run = [*TRAIN, "--out", tmp_path / "run", "--resume"]
    assert main([str(each) for each in run]) == 0
    further = [*run, "--train.epochs=2"]
    with limited("file size", 3000):
        said = refusal(capfd, *further)
    assert "File too large (ulimit -f: 3,000 bytes)" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]
    assert main([str(each) for each in further]) == 0


def test_too_many_open_files(tmp_path, capfd):
    free = os.dup(0)
    os.close(free)
    with limited("open files", free + 2):
        said = refusal(capfd, *TRAIN, "--out", tmp_path / "run")
    assert "Too many open files" in said
    assert not unfinished(tmp_path)


# --- Memory ----------------------------------------------------------------------------------------------------------


MANY = (
    ("traverse", "--steps"),
    ("interpolate", "-n"),
    ("interpolate", "--steps"),
    ("sample", "-n"),
)


@pytest.mark.parametrize(("command", "option"), MANY)
def test_what_memory_does_not_hold_is_refused_before_it_is_computed(
    made, tmp_path, monkeypatch, capfd, command, option
):
    monkeypatch.setattr(memory, "available", lambda: 100_000_000)
    for name in ("sample", "walks"):
        monkeypatch.setattr(f"vae_jax.cli.{name}.decoded", None)  # nothing is decoded
    said = refusal(capfd, command, made, option, 1_000_000, "--out", tmp_path / "picture.png")
    assert f"{option} 1000000" in said
    assert "expected to fit into the 100 MB of memory that are free" in said or "pixels" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "-n", "130"),
        ("traverse", "--steps", "40"),
        ("reconstruct", "-n", "70"),
        ("interpolate", "-n", "9", "--steps", "9"),
    ],
    ids=lambda given: given[0],
)
def test_blocks_change_no_bit(made, tmp_path, monkeypatch, capsys, arguments):
    command, *options = arguments
    written = []
    for block in (1, 1 << 40):  # a batch at a time, and all at once
        monkeypatch.setattr("vae_jax.cli.pictures.BLOCK", block)
        place = tmp_path / f"{block}.png"
        assert main([command, str(made), *options, "--out", str(place)]) == 0
        written.append(place.read_bytes())
    assert written[0] == written[1]


def test_arrays_written_in_blocks_are_those_of_numpy(made, tmp_path, monkeypatch):
    found = []
    for block in (1, 1 << 40):
        monkeypatch.setattr("vae_jax.cli.pictures.BLOCK", block)
        assert main(["sample", str(made), "-n", "1300", "--out", str(tmp_path / f"{block}.npz")]) == 0
        with np.load(tmp_path / f"{block}.npz") as file:
            assert file.files == ["images"]
            found.append(file["images"])
    assert found[0].shape == (1300, 8, 8, 1)
    assert found[0].dtype == np.float32
    np.testing.assert_array_equal(*found)


def test_more_samples_than_numbers_of_32_bits_count(tmp_path, capfd):
    many = ["--objective.name=iwae", "--objective.samples=10000", "--train.batch_size=1437", "--data.test=0.2"]
    said = refusal(capfd, "train", "--config", "digits", *many, "--data.validation=0", "--out", tmp_path / "run")
    assert "objective.samples 10000" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("megabytes", [150, 400])
def test_under_a_limit_on_memory_one_line_stands_last(made, megabytes):
    """In earnest: where libraries end the process, as where jax says that there is no memory."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, 2 * ({megabytes * 1_000_000},)); "
    code = limit + "from vae_jax.__main__ import main; import sys; sys.exit(main())"
    command = [sys.executable, "-c", code, "evaluate", str(made)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if found.returncode == 0:
        pytest.skip("the machine's libraries take less than this")
    said = found.stderr.splitlines()
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert said[-1].startswith("vae-jax: error: ")
    assert "memory" in said[-1]
