"""The page on runs: what it says is what their folders hold."""

import base64
import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from run_fixtures import TINY, flags, snapshot

from vae_jax.cli import main
from vae_jax.config import load_config
from vae_jax.pages.report import MOST_PICTURES, report
from vae_jax.runs.overview import overview

BASE = ["--config", "digits", *flags(**TINY), "--train.epochs=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, and another with labels, another β and a longer schedule that was not finished."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *BASE, "--out", str(folder / "one")]) == 0
    assert main(["train", *BASE, "--objective.beta=4", "--model.classes=10", "--out", str(folder / "two")]) == 0
    return folder


class Page(HTMLParser):
    """What a page holds: its tables' cells by row, its pictures, its addresses, and whether its elements close."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.addresses, self.open, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "tr" in self.open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def made(capsys, *arguments):
    capsys.readouterr()
    assert main(["report", *map(str, arguments)]) == 0
    path = capsys.readouterr().out.splitlines()[-1]
    return Page(Path(path).read_text(encoding="utf-8"))


def test_a_runs_page_says_what_its_folder_holds(runs, capsys):
    page = made(capsys, runs / "one")
    summary = json.loads((runs / "one" / "summary.json").read_text())
    rows = {row[0]: row[1:] for row in page.rows}
    figures = [f"{summary[f'{split}_loss']:,.2f}" for split in ("train", "validation", "test")]
    assert rows["loss"] == [*figures, summary["unit"]]
    assert rows["jax"] == [summary["versions"]["jax"]]
    assert rows["objective.beta"] == ["1.0"]
    assert "Nothing was skipped, and the run is finished." in page.text
    assert f"after epoch {summary['best_epoch']}." in page.text
    pictures = sorted(path.name for path in (runs / "one" / "figures").glob("*.png"))
    assert len(page.images) == len([name for name in pictures if not name.endswith("epoch_0001.png")])
    assert all(image["alt"] for image in page.images)
    data = [base64.b64decode(image["src"].partition(",")[2]) for image in page.images]
    assert (runs / "one" / "figures" / "samples.png").read_bytes() in data
    assert (runs / "one" / "figures" / "reconstructions_epoch_0002.png").read_bytes() in data


def test_a_page_fetches_nothing(runs, capsys):
    page = made(capsys, runs / "one")
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)


def test_the_command_on_the_page_trains_the_same_run(runs, capsys, monkeypatch, tmp_path):
    page = made(capsys, runs / "two")
    command = re.search(r"vae-jax train --out runs/again.*?(?=\n\s*or, beside)", page.text, re.DOTALL)[0]
    arguments = shlex.split(command.replace("\\\n", " "))
    monkeypatch.chdir(tmp_path)
    assert main(arguments[1:]) == 0
    first, again = ((folder / "metrics.jsonl").read_text() for folder in (runs / "two", tmp_path / "runs" / "again"))
    losses = [[json.loads(line)["test_loss"] for line in text.splitlines()] for text in (first, again)]
    assert losses[0] == losses[1]


def test_runs_side_by_side_with_their_differences_marked(runs, capsys):
    page = made(capsys, runs / "one", runs / "two", "--out", runs / "both.html")
    head, one, two = page.rows[:3]
    assert head == ["run", "state", "data", "epochs", "test loss", "unit", "model.classes", "objective.beta"]
    assert (one[-2:], two[-2:]) == (["0", "1.0"], ["10", "4.0"])
    text = (runs / "both.html").read_text()
    losses = [json.loads((runs / name / "summary.json").read_text())["test_loss"] for name in ("one", "two")]
    assert f"<strong>{min(losses):,.2f}</strong>" in text
    assert "<mark>objective.beta</mark>" in text
    assert "<mark>seed</mark>" not in text


def test_what_did_not_go_as_planned_is_said(runs, tmp_path):
    for name in ("fresh", "diverged", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text((runs / "one" / "config.yaml").read_text())
    (tmp_path / "diverged" / "diverged.txt").write_text("training diverged in epoch 1: the loss is nan\n")
    line = json.loads((runs / "one" / "metrics.jsonl").read_text().splitlines()[0])
    (tmp_path / "stopped" / "metrics.jsonl").write_text(json.dumps({**line, "skipped_steps": 3}) + "\n")
    page = Page(report([overview(tmp_path / name) for name in ("fresh", "diverged", "stopped")]))
    for text in (
        "The run is not begun: 0 epochs of 2.",
        "It has no figures yet.",
        "training diverged in epoch 1: the loss is nan",
        "The run is unfinished: 1 epoch of 2.",
        "3 updates skipped, since the loss or its gradient was not finite.",
    ):
        assert text in page.text
    assert "Nothing was skipped" not in page.text


def test_losses_of_other_units_are_not_compared(runs, tmp_path):
    autoencoder = overview(runs / "one")._replace(summary={"unit": "squared error per image"})
    page = Page(report([overview(runs / "two"), autoencoder]))
    assert "The losses have other units or data, and are not comparable." in page.text
    assert "<strong>" not in report([overview(runs / "two"), autoencoder])


def test_pictures_beyond_the_limit_are_named(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("vae_jax.pages.report.MOST_PICTURES", 1000)
    page = Page(report([overview(runs / "one")]))
    assert MOST_PICTURES > 1000
    assert not page.images
    assert "samples.png" in page.text


def test_names_are_text(runs, tmp_path):
    config = load_config("digits")
    run = overview(runs / "one")._replace(data="<script>alert(1)</script>&", config=config)
    text = report([run])
    assert "<script>alert" not in text
    assert "<script>alert(1)</script>&" in unescape(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "page.txt"], "--out: expected a name that ends in .html; found page.txt"),
        (["--out", "folder.html"], "--out folder.html: expected a file, found a folder"),
        (["--out", "mine.html"], "mine.html: expected no file, or an earlier page of vae_jax; found another file"),
        (["nothing"], "nothing: expected a run folder, found no such folder"),
    ],
)
def test_refused(runs, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "mine.html").write_text("<p>a page of the user's</p>")
    before = snapshot(tmp_path)
    assert main(["report", str(runs / "one"), *arguments]) == 2
    assert capsys.readouterr().err == f"vae-jax: error: {message}\n"
    assert snapshot(tmp_path) == before


def test_a_browser_shows_it_without_an_error(runs, capsys, tmp_path):
    made(capsys, runs / "one", runs / "two", "--out", tmp_path / "both.html")
    with chromium() as browser:
        browser.get((tmp_path / "both.html").as_uri())
        widths = browser.execute_script("return Array.from(document.images, (image) => image.naturalWidth)")
        assert widths
        assert min(widths) > 10
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_overwriting_a_run_deletes_its_page(runs, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *BASE, "--train.epochs=1", "--out", str(folder)]) == 0
    made(capsys, folder)
    assert (folder / "report.html").exists()
    assert main(["train", *BASE, "--train.epochs=1", "--out", str(folder), "--overwrite"]) == 0
    assert not (folder / "report.html").exists()
    assert np.isfinite(json.loads((folder / "summary.json").read_text())["test_loss"])
