"""Loggers: what they get, also of a run that is killed and goes on, and that a failure of theirs changes nothing."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from faults import TINY, content, differences
from run_fixtures import compiled_once, snapshot
from wandb_server import serving

from vae_jax import cli
from vae_jax.config import Config, DataConfig, ModelConfig, OutputConfig, TrainConfig
from vae_jax.data import Dataset, Split, load
from vae_jax.errors import Stopped, UserError
from vae_jax.loggers import LOGGERS, several, trackio, wandb
from vae_jax.loggers.base import LoggedRun, Logger, table
from vae_jax.runs.recorder import Follower
from vae_jax.runs.train import train
from vae_jax.sweeps.plan import make_sweep
from vae_jax.sweeps.sweep import run as sweep

PAGE = Path(__file__).parent.parent / "docs" / "loggers.md"
CONFIG = Config(
    data=DataConfig(image_size=8, channels=1),
    model=ModelConfig(channels=(4, 8), latent=2, hidden=16),
    train=TrainConfig(epochs=4, batch_size=20, chunk_steps=2),
    output=OutputConfig(figure_images=4, figure_every=2),
)
TIMING = {"images_per_second", "train_seconds", "compile_seconds", "chunk_steps"}
OWN = r'''
"""Writes what it is given, one line each; FAIL names the function that fails."""
import json
import os

from vae_jax.loggers import Logger


def lines(run):
    file = run.folder / "mine.jsonl"

    def write(*what):
        if os.environ.get("FAIL") == what[0]:
            raise RuntimeError("no room")
        with file.open("a") as stream:
            stream.write(json.dumps(what) + "\n")

    write("start", run.name, run.id, run.config["train.batch_size"], run.unit_of("test_loss"), run.epochs)
    return Logger(
        lambda figures: write("epoch", figures),
        lambda name, path, epoch: write("picture", name, path.name, epoch),
        lambda summary: write("end", summary),
    )


def kill(run):
    """Ends its process in an epoch."""

    def epoch(figures):
        if figures["epoch"] == int(os.environ.get("KILL", 0)):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))

    return Logger(epoch, lambda *_: None, lambda _: None)


def nothing(run):
    return None


def short(run):
    return Logger(lambda: None, lambda *_: None, lambda _: None)


def without():
    return None
'''
needs_tensorboard, needs_wandb, needs_trackio = (
    pytest.mark.skipif(
        not several._is_installed(name),
        reason=f"needs {name}: pip install 'vae_jax[{name}]'; not in the extra of tests, since it holds pillow below 13"
        if name == "trackio"
        else f"needs {name}: pip install 'vae_jax[{name}]'",
    )
    for name in LOGGERS
)


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def data():
    digits = load(CONFIG.data)

    def take(first, last):
        return Split(digits.train.images[first:last], digits.train.labels[first:last])

    return Dataset("digits", take(0, 120), take(200, 240), class_names=digits.class_names)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The folder of a run without loggers."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(CONFIG, data, folder)
    return folder


@pytest.fixture
def own(tmp_path):
    """A user's file of loggers."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lasting(history):
    return [{name: value for name, value in epoch.items() if name not in TIMING} for epoch in history]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "logs" / "mine.jsonl").read_text().splitlines()]


def refused(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def of_tensorboard(folder):
    """TensorBoard's own reader of a run's events."""
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def of_wandb(folder):
    """The rows (step -> figures) and the last configuration and summary in a folder's offline runs.

    wandb has no reader in Python, but its classes of what is in the files.
    """
    kind = import_module("wandb.proto.wandb_internal_pb2").Record
    rows, configuration, summary, names = [], {}, {}, set()
    for path in sorted(folder.glob("offline-run-*/run-*.wandb")):
        names.add(path.stem.removeprefix("run-"))
        content, place, parts = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if (left := 32768 - place % 32768) < 7:
                place += left
                continue
            _, length, which = struct.unpack_from("<IHB", content, place)
            parts += content[place + 7 : place + 7 + length]
            place += 7 + length
            if which not in (1, 4):
                continue
            record, parts = kind.FromString(parts), b""

            def values(items):
                return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

            if record.HasField("run"):
                configuration |= values(record.run.config.update)
            if record.HasField("config"):
                configuration |= values(record.config.update)
            if record.HasField("summary"):
                summary |= values(record.summary.update)
            if record.HasField("history"):
                rows.append((record.history.step.num, values(record.history.item)))
    return rows, configuration, summary, names


READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
name, *others = sys.argv[1:] or SQLiteStorage.get_runs("vae_jax")
assert not others
print(json.dumps([SQLiteStorage.get_logs("vae_jax", run=name), SQLiteStorage.get_run_config("vae_jax", name), name]))
"""


def of_trackio(folder, *name):
    """The rows, the configuration and the name that trackio itself reads, of the only run or one of this name."""
    found = run_python("-c", READ_TRACKIO, *name, TRACKIO_DIR=str(folder))
    return json.loads(found.stdout)


def run_python(*arguments, **environment):
    settings = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    found = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=250, env=settings
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found


OFFLINE = os.environ | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


def kill(*arguments):
    """Runs a command whose logger `kill` ends it by SIGKILL in its second epoch."""
    environment = OFFLINE | {"KILL": "2", "SIGNAL": "9"}
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=250, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr


def check_tensorboard(folder):
    """TensorBoard shows a run as its metrics.jsonl has it."""
    events, history = of_tensorboard(folder / "logs" / "tensorboard"), metrics(folder)
    for name in history[0]:
        if name != "epoch":
            shown = [(scalar.step, scalar.value) for scalar in events.Scalars(name)]
            assert shown == [(epoch["epoch"], float(np.float32(epoch[name]))) for epoch in history]
    assert events.SummaryMetadata("test_loss").summary_description == "nats per image"
    figures = folder / "figures"
    drawn = {int(path.stem.split("_")[-1]): path.read_bytes() for path in figures.glob("reconstructions*")}
    assert {image.step: image.encoded_image_string for image in events.Images("reconstructions")} == drawn
    assert len(events.Images("reconstructions")) == len(drawn)
    for name in ("loss", "samples", "latent_plane"):
        image = events.Images(name)[-1]
        assert (image.step, image.encoded_image_string) == (len(history), (figures / f"{name}.png").read_bytes())
    texts = {name: events.Tensors(f"{name}/text_summary") for name in ("config", "units", "summary")}
    # A text of what was cut back stays beside the new one in this reader; TensorBoard's server shows the new one alone.
    assert [len(texts["config"]), len(texts["units"]), texts["summary"][-1].step] == [1, 1, len(history)]
    text = {name: tensors[-1].tensor_proto.string_val[0].decode() for name, tensors in texts.items()}
    assert "| model.latent | 2 |" in text["config"]
    assert "| article_test_loss | nats per batch |" in text["units"]
    assert f"| test_loss | {history[-1]['test_loss']} |" in text["summary"]


# --- What they get ---------------------------------------------------------------------------------------------------


def test_a_logger_of_ones_own_gets_all_that_there_is(data, plain, own, tmp_path):
    """And the run is what it is without, to the last bit."""
    said = []
    train(CONFIG, data, tmp_path / "run", log=[f"{own}:lines"], report=said.append)
    assert differences(tmp_path / "run", content(plain)) == []
    start, *given, end = lines_of(tmp_path / "run")
    note = json.loads((tmp_path / "run" / "logs" / "run.json").read_text())
    assert start == ["start", "run", note["id"], 20, "nats per image", 0]
    assert note["loggers"] == [f"{own}:lines"]
    history = metrics(tmp_path / "run")
    pictures = {2: [["picture", "reconstructions", "reconstructions_epoch_0002.png", 2]]}
    pictures[4] = [["picture", "reconstructions", "reconstructions_epoch_0004.png", 4]]
    expected = [line for epoch in history for line in [*pictures.get(epoch["epoch"], []), ["epoch", epoch]]]
    expected += [["picture", name, f"{name}.png", 4] for name in ("latent_plane", "loss", "samples")]
    assert given == expected
    assert end == ["end", json.loads((tmp_path / "run" / "summary.json").read_text())]
    assert said == []


def test_one_that_does_not_know_what_it_holds_gets_all_again(data, own, tmp_path):
    folder = tmp_path / "run"
    train(replace(CONFIG, train=replace(CONFIG.train, epochs=2)), data, folder)
    train(CONFIG, data, folder, resume=True, log=f"{own}:lines")
    lines = lines_of(folder)
    assert lines[0][-1] == 2
    assert [line[1]["epoch"] for line in lines if line[0] == "epoch"] == [1, 2, 3, 4]
    first = next(line[1:] for line in lines if line[0] == "picture")
    assert first == ["reconstructions", "reconstructions_epoch_0002.png", 2]


def test_of_several_processes_one_logs(data, tmp_path):
    begun = []
    follower = Follower(CONFIG, data, tmp_path / "run", log={"a": begun.append})
    follower.open(None, print)
    follower.end_logs()
    assert begun == []
    assert not (tmp_path / "run").exists()


def test_one_that_holds_epochs_gets_the_others(tmp_path):
    given = []

    def start(run):
        return Logger(lambda figures: given.append(figures["epoch"]), lambda *_: None, given.append, {1, 4}, 5)

    run = LoggedRun(tmp_path, "run", "", {}, lambda name: "", 3, print, "", tmp_path)
    logs = several.Loggers({"a": start}, run, [{"epoch": number} for number in (1, 2, 3)], lambda epoch: [])
    for number in (4, 5):
        logs.epoch({"epoch": number})
    assert given == [2, 3, 5]
    logs.end({"epochs": 5}, [("loss", tmp_path)])
    assert given == [2, 3, 5, None]  # it has the end already


def test_the_logger_of_the_page_holds_every_epoch_once(data, tmp_path, monkeypatch):
    """Also of a run that was cut back."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "losses.py").write_text(code, encoding="utf-8")
    config, folder = replace(CONFIG, output=replace(CONFIG.output, keep_checkpoints=9)), tmp_path / "run"
    train(config, data, folder)
    for _ in range(2):
        for step in (18, 24):
            shutil.rmtree(folder / "checkpoints" / str(step))
        train(config, data, folder, resume=True, log="losses.py:losses")
        lines = (folder / "logs" / "losses.csv").read_text().splitlines()
        assert lines == [f"{epoch['epoch']},{epoch['test_loss']}" for epoch in metrics(folder)]


@needs_tensorboard
def test_tensorboard_shows_what_metrics_have(data, plain, own, tmp_path):
    """Two loggers at once; the configuration, units, pictures and summary beside the scalars."""
    said = []
    train(CONFIG, data, tmp_path / "run", log=("tensorboard", f"{own}:lines"), report=said.append)
    check_tensorboard(tmp_path / "run")
    assert len(lines_of(tmp_path / "run")) == 11
    assert said == [f"log: tensorboard in {tmp_path}/run/logs/tensorboard"]
    assert differences(tmp_path / "run", content(plain)) == []


@needs_tensorboard
def test_tensorboard_goes_on_however_often_and_wherever_a_run_stops(data, plain, tmp_path):
    """Stopped inside an epoch; trained without; trained further; cut back to an earlier checkpoint; ended twice."""
    folder, config = tmp_path / "run", replace(CONFIG, output=replace(CONFIG.output, keep_checkpoints=9))
    calls = []

    def should_stop():
        calls.append(1)
        return len(calls) == 5

    with pytest.raises(Stopped):
        train(config, data, folder, log="tensorboard", should_stop=should_stop)
    assert 0 < len(metrics(folder)) < 4
    train(replace(config, train=replace(config.train, epochs=3)), data, folder, resume=True)
    train(config, data, folder, resume=True, log="tensorboard")
    check_tensorboard(folder)
    train(config, data, folder, resume=True, log="tensorboard")
    check_tensorboard(folder)
    for step in (18, 24):
        shutil.rmtree(folder / "checkpoints" / str(step))
    said = []
    train(config, data, folder, resume=True, log="tensorboard", report=said.append)
    assert "after epoch 2" in said[0]
    check_tensorboard(folder)
    assert lasting(metrics(folder)) == lasting(metrics(plain))
    names = sorted(path.name for path in (folder / "logs" / "tensorboard").iterdir())
    assert [name[:13] for name in names] == [f"events.{number:06d}" for number in range(1, 5)]


@needs_tensorboard
def test_what_is_cut_off_in_tensorboards_file_is_written_again_and_nothing_twice(plain, tmp_path):
    """Wherever the process died that wrote it."""
    history, picture = metrics(plain), plain / "figures" / "reconstructions_epoch_0004.png"
    run = LoggedRun(tmp_path / "logs", "run", "", {"seed": 1}, lambda name: "nats", len(history), print, "", tmp_path)
    run.folder.mkdir()
    start = {"tensorboard": LOGGERS["tensorboard"]}

    def log():
        several.Loggers(start, run, history, lambda epoch: [("picture", picture)]).end()

    log()
    (file,) = (run.folder / "tensorboard").iterdir()
    whole = file.read_bytes()
    for length in range(0, len(whole), len(whole) // 60):
        for old in (run.folder / "tensorboard").iterdir():
            old.unlink()
        file.write_bytes(whole[:length])
        log()
        events = of_tensorboard(run.folder / "tensorboard")
        for name in (name for name in history[0] if name != "epoch"):
            assert [scalar.step for scalar in events.Scalars(name)] == [1, 2, 3, 4]
        assert [image.step for image in events.Images("picture")] == [1, 2, 3, 4]
        assert len(events.Tensors("config/text_summary")) == 1


@needs_tensorboard
@needs_wandb
@needs_trackio
def test_all_three_after_a_run_was_killed_cut_back_and_stopped(own, tmp_path):
    """Each holds every epoch once, as it is in metrics.jsonl, which is that of an undisturbed run."""
    folder, names = tmp_path / "run", f"tensorboard,wandb,trackio,{own}:kill"
    begin = [sys.executable, "-m", "vae_jax", "train", "--out", str(folder), "--log", names]
    options = ["--output.figure_every=2", "--output.keep_checkpoints=5", "--train.epochs=5", "--train.chunk_steps=10"]
    kill(*begin, *TINY, *options)
    shutil.rmtree(folder / "checkpoints" / "20")  # the logs are ahead of what is left
    begin.append("--resume")
    environment = OFFLINE | {"KILL": "3", "SIGNAL": "15"}
    stopped = subprocess.run(begin, capture_output=True, text=True, timeout=250, env=environment)
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert f"--resume --log {names}` goes on from there" in stopped.stderr
    assert "continuing" in stopped.stdout
    assert "after epoch 1, step 10" in stopped.stdout
    for _ in range(2):  # the end comes twice
        ended = run_python(*begin[1:], WANDB_MODE="offline")
        assert "warning" not in ended.stdout + ended.stderr
        assert "Trackio" not in ended.stdout  # which prints a good deal
    whole = tmp_path / "whole"
    run_python("-m", "vae_jax", "train", "--out", whole, *TINY, *options)
    history = metrics(folder)
    assert lasting(history) == lasting(metrics(whole))
    check_tensorboard(folder)

    assert all(path.stat().st_size > 7 for path in folder.glob("logs/wandb/*/*.wandb"))  # `wandb sync` takes none empty
    rows, configuration, summary, ids = of_wandb(folder / "logs" / "wandb")
    last = dict(rows)[10]  # an epoch's figures may be in several sessions' files, but are of one step
    assert [step for step, _ in rows] == [2, 4, 6, 8, 10, 11]
    assert last["test_loss"] == history[-1]["test_loss"]
    assert [row["train_loss"] for _, row in rows[:-1]] == [epoch["train_loss"] for epoch in history]
    assert all(row.items() >= epoch.items() for (_, row), epoch in list(zip(rows, history, strict=False))[2:])
    assert [step for step, row in rows if "reconstructions/path" in row] == [4, 8, 10]
    assert {"loss/path", "samples/path", "latent_plane/path"} <= rows[-1][1].keys()
    assert configuration["model.latent"] == 2
    assert configuration["units"]["test_loss"] == "nats per image"
    assert summary["summary.test_loss"] == history[-1]["test_loss"]
    assert ids == {json.loads((folder / "logs" / "run.json").read_text())["id"]}

    rows, configuration, name = of_trackio(folder / "logs" / "trackio")
    epochs = [row for row in rows if "epoch" in row]
    assert [row["step"] for row in epochs] == [row["epoch"] for row in epochs] == [1, 2, 3, 4, 5]
    assert [row["test_loss"] for row in epochs] == [epoch["test_loss"] for epoch in history]
    assert {row["step"] for row in rows if "reconstructions" in row} == {2, 4, 5}
    assert [row["step"] for row in rows for name in row if name in ("loss", "samples", "summary")] == [5, 5, 5]
    assert configuration["model.latent"] == 2
    assert configuration["unit of test_loss"] == "nats per image"
    assert ids == {name}


@needs_tensorboard
@needs_wandb
@needs_trackio
def test_every_member_of_a_sweep_that_was_killed_is_logged(own, tmp_path):
    """As a run of its own: W&B's have the sweep as their group, and trackio's share its one folder."""
    folder, names = tmp_path / "sweep", f"tensorboard,wandb,trackio,{own}:kill"
    begin = [sys.executable, "-m", "vae_jax", "sweep", "--out", str(folder), "--log", names]
    kill(*begin, *TINY, "--seeds=2", "--output.figure_every=2", "--train.epochs=3", "--train.chunk_steps=10")
    ended = run_python(*begin[1:], "--resume", WANDB_MODE="offline")
    assert "warning" not in ended.stdout + ended.stderr
    assert "since this process has begun" not in ended.stdout
    for seed in (0, 1):
        member = folder / f"seed={seed}"
        history = metrics(member)
        assert len(history) == 3
        check_tensorboard(member)
        rows, configuration, _, names_of_wandb = of_wandb(member / "logs" / "wandb")
        assert [step for step, _ in rows] == [2, 4, 6, 7]
        assert [row["train_loss"] for _, row in rows[:-1]] == [epoch["train_loss"] for epoch in history]
        assert configuration["seed"] == seed
        assert {group for path in member.glob("logs/wandb/*/*.wandb") for group in groups_of_wandb(path)} == {"sweep"}
        (name,) = names_of_wandb
        assert not (member / "logs" / "trackio").exists()
        rows, _, _ = of_trackio(folder / "logs" / "trackio", name)
        assert [row["test_loss"] for row in rows if "epoch" in row] == [epoch["test_loss"] for epoch in history]
    (folder / "logs" / "mine.txt").write_text("of the user's")
    run_python("-m", "vae_jax", "sweep", "--out", folder, *TINY, "--train.epochs=1", "--overwrite")
    assert [path.name for path in (folder / "logs").iterdir()] == ["mine.txt"]


def groups_of_wandb(path):
    """The groups that W&B's own classes read in a file."""
    kind = import_module("wandb.proto.wandb_internal_pb2").Record
    records = (kind.FromString(record) for record in wandb._records(path))
    return {record.run.run_group for record in records if record.HasField("run")}


def test_a_sweep_with_a_failing_or_unknown_logger(data, own, tmp_path, monkeypatch, capsys):
    """One that fails is left out of its member alone; one that there is not is refused before anything begins."""
    monkeypatch.setenv("FAIL", "end")
    reported = []
    sweep(make_sweep(CONFIG, 2, []), data, tmp_path / "sweep", log=[f"{own}:lines"], report=reported.append)
    (line,) = [line for line in reported if line.startswith("warning")]
    assert "no room" in line
    assert line.endswith("; the run goes on without it")
    for seed in (0, 1):
        given = lines_of(tmp_path / "sweep" / f"seed={seed}")
        assert [what[1]["epoch"] for what in given if what[0] == "epoch"] == [1, 2, 3, 4]
    capsys.readouterr()
    assert cli.main(["sweep", "--out", str(tmp_path / "new"), *TINY, "--log", "wandbb"]) == 2
    assert "--log" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@needs_wandb
def test_wandb_goes_on_at_its_server(own, tmp_path):
    """Behind the run after a kill; cut back behind the server; trained further; the server out of reach."""
    folder = tmp_path / "run"
    tiny = [*TINY, "--output.keep_checkpoints=9", "--train.chunk_steps=10"]
    command = ["-m", "vae_jax", "train", "--out", str(folder), "--log", f"wandb,{own}:kill"]
    with serving() as server:
        settings = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
        environment = os.environ | settings | {"KILL": "2", "SIGNAL": "9"}
        killed = subprocess.run([sys.executable, *command, *tiny], capture_output=True, timeout=250, env=environment)
        assert killed.returncode == -signal.SIGKILL
        command.append("--resume")
        ended = run_python(*command, **settings)
        (name,) = server.rows
        assert f"log: wandb in {server.url}/me/vae_jax/runs/{name}\n" in ended.stdout
        assert [row["_step"] for row in server.rows[name]] == [2, 4, 6, 7]
        shutil.rmtree(folder / "checkpoints" / "30")
        run_python(*command, "--train.epochs=4", **settings)
        rows = server.rows[name]
        assert [row["_step"] for row in rows] == [2, 4, 6, 7, 8, 9]
        assert [row["test_loss"] for row in rows if "test_loss" in row] == [row["test_loss"] for row in metrics(folder)]
        assert {file.split("/")[-1].split("_")[0] for file in server.files if "media" in file} == {
            "reconstructions",
            "latent",
            "loss",
            "samples",
        }
    command = ["-m", "vae_jax", "train", "--out", str(tmp_path / "other"), "--log", "wandb", *tiny, "--train.epochs=1"]
    alone = run_python(*command, **settings, WANDB_INIT_TIMEOUT="5")
    (line,) = (line for line in alone.stdout.splitlines() if "warning" in line)
    assert line.startswith("warning: --log wandb: ")
    assert line.endswith("; the run goes on without it")
    assert (tmp_path / "other" / "summary.json").is_file()


# --- What fails ------------------------------------------------------------------------------------------------------


@needs_tensorboard
@pytest.mark.parametrize("fails", ["start", "epoch", "picture", "end"])
def test_one_that_raises_is_left_out_and_nothing_else_changes(data, plain, own, tmp_path, monkeypatch, fails):
    monkeypatch.setenv("FAIL", fails)
    said, folder = [], tmp_path / "run"
    train(CONFIG, data, folder, log=(f"{own}:lines", "tensorboard"), report=said.append)
    (warned,) = (line for line in said if "tensorboard in" not in line)
    assert warned.startswith(f"warning: log={own}:lines: {own}:")
    assert warned.endswith('in write: raise RuntimeError("no room"): RuntimeError: no room; the run goes on without it')
    assert differences(folder, content(plain)) == []
    check_tensorboard(folder)
    monkeypatch.delenv("FAIL")
    train(CONFIG, data, folder, resume=True, log=f"{own}:lines")  # and nothing is lost
    given = [line[1] for line in lines_of(folder) if line[0] == "epoch"]
    assert given[-4:] == metrics(folder)


@pytest.mark.parametrize(
    ("entry", "said"),
    [("nothing", "expected a vae_jax.loggers.Logger from it; found NoneType"), ("short", "epoch of its Logger to be")],
)
def test_one_that_gives_no_logger_is_left_out(data, own, tmp_path, entry, said):
    lines = []
    train(replace(CONFIG, train=replace(CONFIG.train, epochs=1)), data, tmp_path / "run", log=f"{own}:{entry}",
          report=lines.append)  # fmt: skip
    (line,) = lines
    assert said in line
    assert (tmp_path / "run" / "summary.json").is_file()


def test_what_cannot_log_is_refused_before_anything_begins(own, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    for names, said in (
        ("wandbb", "--log: expected one of tensorboard, wandb, trackio, or FILE.py:ENTRY for your own; found 'wandbb' "
         "(did you mean wandb?)"),
        ("", "--log: expected one of tensorboard, wandb, trackio, or FILE.py:ENTRY for your own; found ''"),
        (f"{own}:lines,{own}:lines", f"--log: expected every logger once; found {own}:lines twice"),
        (f"{own}:none", f"--log: expected 'none' in {own}; found none of that name"),
        (f"{own}:without", f"--log: expected without in {own} to be a function or a class of (run); found without()"),
        (f"{tmp_path}/no.py:lines", "No such file"),
    ):  # fmt: skip
        assert cli.main(["train", "--out", str(out), *TINY, "--log", names]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    monkeypatch.setattr(several, "find_spec", lambda name: None)
    for name in LOGGERS:
        assert cli.main(["train", "--out", str(out), *TINY, "--log", name]) == 2
        assert f"pip install 'vae_jax[{name}]'" in capsys.readouterr().err
    assert refused(several.chosen, ["wandb"]).startswith("log: expected wandb to be installed; found no such package")
    assert not out.exists()


def test_a_folder_in_the_working_folder_is_no_package(tmp_path, monkeypatch):
    """As wandb leaves one there."""
    (tmp_path / "wandb_of_nobody").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not several._is_installed("wandb_of_nobody")
    assert several._is_installed("json")


def test_nothing_of_it_is_imported_where_it_is_not_used(tmp_path):
    code = (
        "import sys; from vae_jax import cli; "
        f"assert cli.main(['train', '--out', {str(tmp_path / 'run')!r}, *{TINY!r}, '--train.epochs=1']) == 0; "
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorboard', 'wandb', 'trackio') "
        "or name.startswith('vae_jax.loggers')])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"
    assert not (tmp_path / "run" / "logs").exists()


# --- The folder ------------------------------------------------------------------------------------------------------


def test_overwriting_a_run_deletes_its_logs_and_nothing_of_the_users(data, own, tmp_path):
    folder, config = tmp_path / "run", replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    train(config, data, folder, log=f"{own}:lines")
    first = json.loads((folder / "logs" / "run.json").read_text())["id"]
    for name in ("tensorboard", "wandb", "trackio", "slurm"):
        (folder / "logs" / name).mkdir(exist_ok=True)
        (folder / "logs" / name / "old").write_text("")
    train(config, data, folder, overwrite=True)
    assert {path.name for path in (folder / "logs").iterdir()} == {"slurm", "mine.jsonl"}
    train(config, data, folder, overwrite=True, log=f"{own}:lines")
    assert json.loads((folder / "logs" / "run.json").read_text())["id"] not in ("", first)


def test_a_run_that_goes_on_without_a_log_says_so(data, own, tmp_path):
    folder, said = tmp_path / "run", []
    train(replace(CONFIG, train=replace(CONFIG.train, epochs=1)), data, folder, log=f"{own}:lines")
    train(CONFIG, data, folder, resume=True, report=said.append)
    assert said[-1] == f"{folder}/logs: not continued, since log does not name {own}:lines"


@pytest.mark.parametrize("note", ['{"id": "../../x", "loggers": []}', "[]", '{"id": "", "loggers": []}'])
def test_a_note_that_is_damaged_or_a_strangers_is_not_taken(data, own, tmp_path, note):
    folder, said = tmp_path / "run", []
    (folder / "logs").mkdir(parents=True)
    run = LoggedRun(folder / "logs", "a b/c", "", {}, lambda name: "", 0, said.append, "", folder / "logs")
    (folder / "logs" / "run.json").write_text(note)
    several.Loggers({}, run, [], lambda epoch: [])
    assert "the logs begin again as another run" in said[0]
    fresh = json.loads((folder / "logs" / "run.json").read_text())["id"]
    assert fresh.startswith("a-b-c-")
    assert several.ID.fullmatch(fresh)


@needs_tensorboard
def test_nothing_is_written_through_a_link(data, tmp_path):
    theirs, folder, said = tmp_path / "theirs", tmp_path / "run", []
    theirs.mkdir()
    (theirs / "file").write_text("theirs")
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    train(config, data, folder)
    before = snapshot(theirs)
    for place, target in (("logs", theirs), ("logs/tensorboard", theirs), ("logs/tensorboard/a.tfevents.1", theirs)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).symlink_to(target)
        said.clear()
        train(config, data, folder, resume=True, log="tensorboard", report=said.append)
        assert f"{folder / place}: expected a" in said[-1]
        assert "found a link" in said[-1]
        assert "the run goes on without it" in said[-1]
        if place == "logs":
            train(config, data, folder, overwrite=True)  # of a link the link
        else:
            (folder / place).unlink()
    assert snapshot(theirs) == before
    assert not (folder / "logs").is_symlink()


@needs_wandb
def test_settings_of_wandbs_in_a_run_are_not_taken(tmp_path, monkeypatch):
    """They could name a server, to which the user's key would go."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "logs" / "wandb").mkdir(parents=True)
    (tmp_path / "logs" / "wandb" / "settings").write_text("[default]\nbase_url = http://localhost:1\n")
    run = LoggedRun(tmp_path / "logs", "run", "run", {}, lambda name: "", 0, print, "", tmp_path / "logs")
    assert "expected no settings of W&B's in a run" in refused(wandb.start, run)


HEADER = b":W&B\xe1\xbe\x00"


@pytest.mark.parametrize("content", [b"", HEADER, HEADER + b"\x00" * 40000, HEADER + b"abc"])
def test_a_file_of_wandbs_that_is_cut_off_has_no_records(tmp_path, content):
    (tmp_path / "a.wandb").write_bytes(content)
    assert list(wandb._records(tmp_path / "a.wandb")) == []
    (tmp_path / "a.wandb").write_bytes(b"another")
    assert "expected W&B's header" in refused(list, wandb._records(tmp_path / "a.wandb"))


def test_records_of_wandbs_over_several_blocks(tmp_path):
    """Long records are cut at the blocks' ends, where less than a head's seven bytes are left empty."""
    expected = [bytes([number]) * length for number, length in enumerate([100, 70000, 32768 * 2 - 5, 3, 40000], 1)]
    content = HEADER
    for record in expected:
        begun = False
        while True:
            if (left := 32768 - len(content) % 32768) < 7:
                content += b"\x00" * left
                left = 32768
            part, record = record[: left - 7], record[left - 7 :]
            kind = {(False, False): 1, (False, True): 2, (True, True): 3, (True, False): 4}[begun, bool(record)]
            content += struct.pack("<IHB", 0, len(part), kind) + part
            begun = True
            if not record:
                break
    (tmp_path / "a.wandb").write_bytes(content)
    assert list(wandb._records(tmp_path / "a.wandb")) == expected


TWO_RUNS = """
import sys
from vae_jax import cli
for name in "ab":
    assert cli.main(["train", "--out", f"{sys.argv[1]}/{name}", "--log", "trackio", *sys.argv[2:]]) == 0
"""


@needs_trackio
def test_a_process_has_one_folder_of_trackios(tmp_path):
    """A second run is logged where the first is, which is said; resumed by itself it is logged in its own folder."""
    found = run_python("-c", TWO_RUNS, tmp_path, *TINY, "--train.epochs=1")
    first = tmp_path / "a" / "logs" / "trackio"
    assert f"trackio: b is logged into {first}, since this process has begun to log there" in found.stdout
    assert "warning" not in found.stdout + found.stderr
    runs = [json.loads((tmp_path / name / "logs" / "run.json").read_text())["id"] for name in "ab"]
    for name in runs:
        rows, _, _ = of_trackio(first, name)
        assert [row["step"] for row in rows if "epoch" in row] == [1]
    run_python("-m", "vae_jax", "train", "--out", tmp_path / "b", "--resume", "--log", "trackio")
    rows, _, _ = of_trackio(tmp_path / "b" / "logs" / "trackio")
    assert [row["step"] for row in rows if "epoch" in row] == [1]


@needs_trackio
def test_what_trackio_warns_of_is_a_failure(capsys):
    def warned():
        with trackio._as_error():
            print("* Trackio …")
            warnings.warn("no room", stacklevel=1)

    assert refused(warned) == "no room"
    assert capsys.readouterr().out == ""


def test_texts_are_text_in_a_table():
    assert table({"a": "x|y\nz", "b": 1}) == "| | |\n|---|---|\n| a | x\\|y z |\n| b | 1 |"
