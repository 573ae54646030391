"""Runs side by side: `vae-jax show`."""

import json

import pytest
from run_fixtures import TINY, flags

from vae_jax.cli import main
from vae_jax.runs.overview import differing, overview, runs_in

BASE = ["--config", "digits", *flags(**TINY), "--train.epochs=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, another with another β and its own options, and a sweep of two."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *BASE, "--out", str(folder / "one")]) == 0
    assert main(["train", *BASE, "--objective.beta=4", "--train.epochs=2", "--out", str(folder / "two")]) == 0
    assert main(["sweep", *BASE, "--seeds", "2", "--out", str(folder / "sweep")]) == 0
    return folder


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")


def shown(capsys, *arguments):
    capsys.readouterr()
    code = main(["show", *map(str, arguments)])
    printed = capsys.readouterr()
    assert code == (2 if printed.err else 0)
    return printed.err or printed.out


def test_one_run_is_a_line_for_each_value(runs, capsys):
    lines = dict(line.split(None, 1) for line in shown(capsys, runs / "one").splitlines())
    summary = json.loads((runs / "one" / "summary.json").read_text())
    assert lines["state"] == "finished"
    assert lines["data"] == "digits"
    assert lines["test_loss"] == f"{summary['test_loss']:.6g}"
    assert lines["best_loss"] == f"{summary['best_loss']:.6g}"
    assert lines["parameters"] == f"{summary['parameters']:,}"
    assert lines["unit"] == summary["unit"]
    assert "objective.beta" not in lines
    assert "objective.beta" in shown(capsys, runs / "one", "--all")


def test_runs_differ_in_what_is_shown(runs, capsys):
    head, one, two = shown(capsys, runs / "one", runs / "two").splitlines()
    assert "objective.beta" in head
    assert "train.epochs" in head
    assert "seed" not in head.split()
    assert (one.split()[-1], two.split()[-1]) == ("1", "2")  # epochs, the last option that differs
    assert differing([overview(runs / name) for name in ("one", "two")]) == {
        "objective.beta": [1.0, 4.0],
        "train.epochs": [1, 2],
    }


def test_a_table_that_is_too_wide_is_turned_round(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = shown(capsys, runs / "one", runs / "two").splitlines()
    assert lines[0].split() == ["run", str(runs / "one"), str(runs / "two")]
    assert "objective.beta" in [line.split()[0] for line in lines]
    assert [line.split()[1:] for line in lines if line.startswith("objective.beta")] == [["1", "4"]]


def test_a_sweep_is_its_members_and_json_is_for_programs(runs, capsys):
    rows = [json.loads(line) for line in shown(capsys, runs / "sweep", runs / "one", "--sort", "--json").splitlines()]
    assert len(rows) == 3
    assert sorted(row["test_loss"] for row in rows) == [row["test_loss"] for row in rows]
    assert {row["run"] for row in rows} == {str(path) for path in runs_in([runs / "sweep", runs / "one"])}
    by_seed = {row["seed"]: row["test_loss"] for row in rows if "sweep" in row["run"]}
    for member in (runs / "sweep").glob("*/summary.json"):
        summary = json.loads(member.read_text())
        assert by_seed[summary["seed"]] == summary["test_loss"]


def test_what_a_run_has_not_come_to(runs, tmp_path, capsys):
    """A run that has not begun, one that diverged, one that was stopped: said, not guessed."""
    for name in ("fresh", "diverged", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text((runs / "one" / "config.yaml").read_text())
    (tmp_path / "diverged" / "diverged.txt").write_text("training diverged in epoch 1: the loss is nan\n")
    (tmp_path / "stopped" / "metrics.jsonl").write_text((runs / "one" / "metrics.jsonl").read_text())
    printed = shown(capsys, *(tmp_path / name for name in ("fresh", "diverged", "stopped"))).splitlines()
    assert [line.split()[1] for line in printed[1:3]] == ["not", "diverged"]
    assert "unfinished" in printed[3]
    assert printed[-1] == f"{tmp_path}/diverged: training diverged in epoch 1: the loss is nan"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", "nonsense", "metrics.jsonl: "),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1: expected an object with epoch, a whole number"),
        ("summary.json", "[]", "summary.json: expected an object; found something else"),
    ],
)
def test_a_damaged_file_is_named(runs, tmp_path, capsys, name, text, message):
    (tmp_path / "config.yaml").write_text((runs / "one" / "config.yaml").read_text())
    (tmp_path / name).write_text(text)
    said = shown(capsys, tmp_path)
    assert message in said
    assert len(said.splitlines()) == 1


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert "expected a run folder" in shown(capsys, tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    assert "expected a sweep with runs in it" in shown(capsys, tmp_path)
