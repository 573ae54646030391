"""`vae-jax compare`: what it writes, results files, the test of their difference, and what it refuses."""

import copy
import io
import json
import math
import os
import pickle
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from run_fixtures import TINY, compiled_once, flags, snapshot

from vae_jax import compare
from vae_jax.cli import main
from vae_jax.compare import results
from vae_jax.compare.result import sentence
from vae_jax.config import load_config
from vae_jax.data import Dataset, Split
from vae_jax.errors import UserError
from vae_jax.files.folders import contents
from vae_jax.files.lock import writing


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


def made_up(framework="Keras", losses=((300.0, 250.0), (301.0, 252.0)), **changes):
    """A results file's content, with these test losses by run and epoch."""
    runs = [
        {"seed": seed, "epochs": [{"epoch": i + 1, "test_loss": loss} for i, loss in enumerate(run)]}
        for seed, run in enumerate(losses)
    ]
    content = {
        "format": "vae_jax results",
        "version": 1,
        "framework": framework,
        "data": "digits",
        "unit": "nats per image",
        "train_images": 1000,
        "test_images": 597,
        "runs": runs,
    }
    return content | changes


# --- Results files ---------------------------------------------------------------------------------------------------


def test_a_results_file_is_read(tmp_path):
    path = tmp_path / "keras.json"
    path.write_text(json.dumps(made_up()))
    found = results.read(path)
    assert found == made_up()
    np.testing.assert_array_equal(results.losses(found), [[300, 250], [301, 252]])
    assert results.cost(found) == {"images_per_second": None, "train_seconds": None} | dict.fromkeys(
        ("peak_memory_mb", "peak_device_memory_mb")
    )


def without(name):
    content = made_up()
    del content[name]
    return content


def altered(place, value):
    content = copy.deepcopy(made_up())
    *before, last = place
    inner = content
    for key in before:
        inner = inner[key]
    inner[last] = value
    return content


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[1, 2]", "object"),
        (json.dumps(without("framework")), "framework"),
        (json.dumps(without("runs")), "runs"),
        (json.dumps(made_up(version=2)), "$.version"),
        (json.dumps(made_up(format="something")), "$.format"),
        (json.dumps(made_up(unit="bits")), "$.unit"),
        (json.dumps(made_up(frame_work="x")), "frame_work"),
        (json.dumps(made_up(losses=())), "$.runs"),
        (json.dumps(made_up(losses=((),))), "epochs"),
        (json.dumps(made_up(losses=(("low",),))), "test_loss"),
        (json.dumps(made_up(losses=((math.nan,),))), "finite"),
        (json.dumps(made_up(losses=((7.5,),))).replace("7.5", "1e999"), "finite"),
        (json.dumps(altered(("runs", 1, "seed"), 0)), "seed"),
        (json.dumps(altered(("runs", 1, "epochs", 1, "epoch"), 5)), "$.runs[1].epochs"),
        (json.dumps(altered(("runs", 0, "epochs", 0, "train_seconds"), -1)), "train_seconds"),
        (json.dumps(made_up(train_images=0)), "train_images"),
        (json.dumps(made_up(train_images=10**400)), "train_images"),
        (json.dumps(made_up(peak_memory_bytes=10**400)), "peak_memory_bytes"),
        (json.dumps(made_up(losses=((10**400,),))), "test_loss"),
        (json.dumps(made_up(losses=((-1.7e308,),))), "test_loss"),
        (json.dumps(made_up(framework="\ud800")), "$.framework"),
        (json.dumps(made_up(framework="\x1b[31mred")), "$.framework"),
        (json.dumps(made_up(notes="a\nb")), "$.notes"),
        (b"\xff\xfe\x00", "JSON"),
    ],
)
def test_what_is_no_results_file(tmp_path, text, named):
    path = tmp_path / "other.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        results.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert named in str(caught.value)
    assert len(str(caught.value)) < 500


def test_no_such_results_file(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=r"expected a (results )?file"):
            results.read(path)


def test_names_are_kept_apart():
    given = [made_up("vae_jax"), made_up("PyTorch"), made_up("PyTorch"), made_up("Keras")]
    found = results.with_distinct_names(given, ["vae_jax", "PyTorch"])
    assert [each["framework"] for each in found] == ["vae_jax (2)", "PyTorch (2)", "PyTorch (3)", "Keras"]
    assert given[0]["framework"] == "vae_jax"


# --- The test of a difference ----------------------------------------------------------------------------------------


def test_welchs_test_by_hand():
    a, b = [250.0, 252.0, 251.5], [255.0, 254.0, 257.0]
    found = results.compare(made_up("a", [(0, x) for x in a]), made_up("b", [(0, x, 9) for x in b]))
    variances = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 3
    t = (np.mean(a) - np.mean(b)) / math.sqrt(sum(variances))
    degrees = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 2)
    assert found["epoch"] == 2  # the last one that both have
    assert found["t"] == pytest.approx(t)
    assert found["degrees_of_freedom"] == pytest.approx(degrees)
    assert found["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    low, high = found["interval"]
    assert low < found["difference"] < high < 0
    assert found["p"] < 0.05
    assert found["verdict"] == "differs"


def test_the_level_of_the_test():
    """Of runs that do not differ, about one comparison in twenty is called different."""
    random = np.random.RandomState(0)
    verdicts = [
        results.compare(*(made_up(name, random.randn(5, 1).tolist()) for name in "ab"))["verdict"] for _ in range(400)
    ]
    assert set(verdicts) == {"differs", "no difference found"}
    assert 5 <= verdicts.count("differs") <= 40


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"losses": ((300.0,),)}, "fewer than two runs"),
        ({"unit": "squared error per image"}, "unit"),
        ({"data": "mnist"}, "data mnist, not digits"),
        ({"test_images": 10}, "test_images 10, not 597"),
        ({}, "no spread"),
    ],
)
def test_what_cannot_be_tested_is_said(changes, why):
    constant = made_up("vae_jax", ((300.0,), (300.0,)))
    found = results.compare(constant, made_up("other", **({"losses": ((300.0,), (300.0,))} | changes)))
    assert found["verdict"] == "not tested"
    assert why in found["why"][0]


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = main(["compare", *(str(argument) for argument in arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


SMALL = [*flags(**TINY), "--epochs", "2", "--seeds", "2", "--steps", "12"]


def test_all_levels(command, tmp_path):
    pytest.importorskip("torch", reason="needs the extra torch")
    keras = made_up("Keras $\\beta_{$ | x", ((390.0, 20.0), (391.0, 21.0)))
    (tmp_path / "keras.json").write_text(json.dumps(keras))
    (tmp_path / "ours.json").write_text(json.dumps(made_up("PyTorch", unit="squared error per image")))
    folder = tmp_path / "out"
    code, out, err = command("--out", folder, *SMALL, "--add", tmp_path / "keras.json", tmp_path / "ours.json")
    assert code == 1, err  # the results made up are another model's
    for level in ("function", "gradient", "trajectory"):
        assert f"{level}: agrees" in out
    assert "result: differs" in out
    config_of_file = json.loads((folder / "comparison.json").read_text())["config"]
    assert (config_of_file["objective"]["beta"], config_of_file["posterior"]["name"]) == (1.0, "diagonal_gaussian")
    assert {path.name for path in contents(folder)} == {
        "comparison.json",
        "comparison.md",
        "comparison.png",
        "results_vae_jax.json",
        "results_pytorch.json",
    }
    content = json.loads((folder / "comparison.json").read_text())
    assert list(content["levels"]) == list(compare.LEVELS)
    assert content["epochs"] == 2
    tests = {test["b"]: test for test in content["levels"]["result"]["details"]["tests"]}
    assert tests["PyTorch"]["runs"] == [2, 2]
    assert tests["PyTorch"]["epoch"] == 2
    for name in ("vae_jax", "pytorch"):
        found = results.read(folder / f"results_{name}.json")  # what it writes, it takes
        assert found["train_images"] == 1000
        assert [run["seed"] for run in found["runs"]] == [0, 1]
        losses = results.losses(found)
        assert (losses[:, 1] < losses[:, 0]).all()
        assert losses[0, 0] != losses[1, 0]
        assert results.cost(found)["images_per_second"] > 0
        assert results.cost(found)["peak_memory_mb"] > 1
    text = (folder / "comparison.md").read_text()
    assert "| conv1.weight | gradient |" in text
    assert r"Keras $\\beta_{$ \| x (2 runs)" in text
    assert "PyTorch (2) (2 runs)" not in text  # of another unit
    assert "against PyTorch (2) after epoch 2: not tested (unit squared error per image, not nats" in text
    assert "PyTorch (2 runs)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.count("|") >= 4 for row in rows)

    # It is not written over, and what it has written can be laid beside another run.
    before = snapshot(folder)
    code, _, err = command("--out", folder, *SMALL)
    assert code == 2
    assert "--overwrite" in err
    assert snapshot(folder) == before
    # And where it is, nothing old is left.
    code, out, _ = command("--out", folder, *SMALL, "--levels", "function", "--overwrite")
    assert code == 0
    assert {path.name for path in contents(folder)} == {"comparison.json", "comparison.md"}
    assert "results" not in out


def test_after_an_interruption_it_can_begin_again(command, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs the extra torch")
    from vae_jax.compare import result

    workers = []

    def interrupted(self, seed):
        workers.append(self)
        if seed == 1:
            raise KeyboardInterrupt
        yield "epoch", {"epoch": 1, "test_loss": 1.0}
        yield "done", {}

    monkeypatch.setattr(result.Worker, "run", interrupted)
    code, _, err = command("--out", tmp_path / "out", *SMALL, "--levels", "result")
    assert code == 130
    assert "Traceback" not in err
    assert len(workers) == 3  # both frameworks' first runs, and the one interrupted
    assert all(worker.process.poll() is not None for worker in workers)
    assert len(contents(tmp_path / "out")) == 2  # what was finished is kept
    code, _, err = command("--out", tmp_path / "out", *SMALL, "--levels", "function", "--overwrite")
    assert code == 0, err


def test_the_levels_have_an_order_and_their_own_data(tmp_path, monkeypatch):
    """The result's quick look at few images is the result's alone."""
    pytest.importorskip("torch", reason="needs the extra torch")
    from vae_jax.compare import function, result
    from vae_jax.compare.level import Level

    asked = {}

    def fake(name):
        def level(request):
            asked[name] = request
            return Level("agrees", "", {"results": [made_up()], "tests": [], "test": ""})

        return level

    config = load_config(**TINY)
    images = np.zeros((compare.QUICK_TRAIN + 5, 8, 8, 1), np.uint8)
    monkeypatch.setattr(function, "function", fake("function"))
    monkeypatch.setattr(result, "result", fake("result"))
    monkeypatch.setattr(compare.report, "write", lambda *arguments: None)
    of = Dataset("d", Split(images), Split(images))
    with writing(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} is writing into it"):
        compare.compare(config, of, tmp_path, levels=("result", "function"))
    assert not asked
    compare.compare(config, of, tmp_path, levels=("result", "function"))
    assert list(asked) == ["function", "result"]
    assert len(asked["function"].data.train) == len(images)
    assert len(asked["result"].data.train) == compare.QUICK_TRAIN
    assert asked["function"].config.data == replace(config.data, channels=1)
    assert asked["function"].config.train == config.train
    assert asked["result"].config.train.epochs == 2


def test_a_diverging_framework_is_said(tmp_path, command):
    pytest.importorskip("torch", reason="needs the extra torch")
    from vae_jax.compare.result import Worker
    from vae_jax.compare.worker import Job

    config = load_config(**{**TINY, "train.learning_rate": 1e30})
    images = np.random.RandomState(0).randint(0, 256, (200, 8, 8, 1), np.uint8)
    data = Dataset("noise", Split(images), Split(images))
    worker = Worker(Job("pytorch", config, data, jax.config.jax_platforms))
    try:
        assert worker.about()["device"].startswith("cpu")
        with pytest.raises(UserError, match=r"^PyTorch's training diverged in epoch 1.*learning_rate"):
            list(worker.run(0))
    finally:
        worker.close()


def test_what_is_not_finite_is_null(tmp_path):
    compare.report.write_json(tmp_path / "a.json", {"a": [1.5, math.nan, {"b": -math.inf}], "c": (1,)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, {"b": None}], "c": [1]}


def test_names_of_other_frameworks_are_text_in_the_report():
    """They end no cell, are no HTML and begin no line of their own."""
    harmful = "a|b <script> `x` [y](http://z)"
    other = made_up(harmful, framework_version="1|2", device="<b>", notes="- ![x](http://y)")
    found = [made_up("vae_jax"), other]
    tests = [results.compare(*found)]
    details = {"results": found, "tests": tests, "test": results.TEST}
    level = {"verdict": "no difference", "summary": sentence(tests[0]), "details": details}
    content = {"data": "x\n# y", "device": "cpu", "versions": {}, "levels": {"result": level}}
    text = compare.report.markdown(content)
    assert "Data: x\\\\n# y." in text
    for mark in ("a|b", "1|2", " <", " `", "](", "\n# y"):
        assert mark not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert {count: columns.count(count) for count in columns} == {4: 7, 10: 4}  # of 3 columns and of 9


def test_our_runs_are_those_of_train(command, tmp_path):
    """And without PyTorch, what was measured elsewhere is laid beside them."""
    from vae_jax import fit, load_data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae_jax.compare.find_spec", lambda name: None)
        patch.setattr("vae_jax.compare.result.find_spec", lambda name: None)
        (tmp_path / "keras.json").write_text(json.dumps(made_up()))
        added = ["--add", str(tmp_path / "keras.json")]
        seed = ["--seed", "1", "--seeds", "1"]
        code, out, err = command("--out", tmp_path / "out", "--levels", "result", *SMALL, *seed, *added)
        assert code == 0, err
        assert "result: not tested" in out
        code, _, err = command("--out", tmp_path / "other", "--levels", "result", *SMALL)
        assert code == 2
        assert "PyTorch" in err
        assert "vae_jax[torch]" in err
        assert not (tmp_path / "other").exists()
    found = results.read(tmp_path / "out" / "results_vae_jax.json")
    assert not (tmp_path / "out" / "results_pytorch.json").exists()
    config = load_config(**{**TINY, "seed": 1})
    history = fit(config, load_data(config.data)).history
    assert [epoch["test_loss"] for epoch in found["runs"][0]["epochs"]] == [epoch["test_loss"] for epoch in history]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--levels", "functions"], "function"),
        (["--levels", ""], "--levels"),
        (["--steps", "0"], "--steps"),
        (["--seeds", "-1"], "--seeds"),
        (["--epochs", "-1"], "--epochs"),
        (["--add", "none.json"], "none.json"),
        (["--levels", "gradient", "--add", "none.json"], "--add"),
        (["--model.precision", "bfloat16"], "model.precision"),
        (["--model.unbiased_running_variance", "false"], "unbiased_running_variance"),
        (["--objective.name", "denoising_autoencoder"], "denoising_autoencoder"),
        (["--out", "file"], "file"),
        (["--out", "folder"], "mine.txt"),
    ],
)
def test_refused(command, tmp_path, monkeypatch, arguments, named):
    pytest.importorskip("torch", reason="needs the extra torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("")
    before = snapshot(tmp_path)
    code, _, err = command(*flags(**TINY), *arguments)
    assert code == 2
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert line.startswith("vae-jax: error: ")
    assert named in line
    assert snapshot(tmp_path) == before


def test_a_framework_that_fails_is_said(tmp_path):
    pytest.importorskip("torch", reason="needs the extra torch")
    from vae_jax.compare.result import Worker
    from vae_jax.compare.worker import Job

    config = load_config(**TINY)
    images = np.zeros((100, 8, 8, 1), np.uint8)
    data = Dataset("none", Split(images), Split(images))
    worker = Worker(Job("nothing", config, data, jax.config.jax_platforms))
    try:
        assert worker.about()["framework"] == "PyTorch"
        with pytest.raises(UserError, match="nothing: "):
            list(worker.run(0))
    finally:
        worker.close()
    worker = Worker(Job("vae_jax", config, data, jax.config.jax_platforms))
    try:
        worker.about()
        worker.process.kill()
        with pytest.raises(UserError, match=r"vae_jax: its process ended with -9"):
            list(worker.run(0))
    finally:
        worker.close()


@pytest.mark.parametrize("raised", ["EOFError()", "BrokenPipeError()", "SystemExit(0)", "KeyError('ghost')"])
def test_what_a_users_file_raises_in_a_worker_is_shown(tmp_path, monkeypatch, raised):
    from vae_jax import registry
    from vae_jax.compare import worker

    (tmp_path / "mine.py").write_text(f"def bound(key):\n    raise {raised}\n")
    bound = registry.lookup({}, f"{tmp_path}/mine.py:bound", "objective.name", ("key",))
    monkeypatch.setattr(worker, "_about", lambda job: {})
    monkeypatch.setitem(worker.FRAMEWORKS, "vae_jax", lambda *_: bound(0))
    job = worker.Job("vae_jax", load_config(), None, None)  # type: ignore[arg-type]
    requests = io.BytesIO(pickle.dumps(job) + pickle.dumps(0))
    answers = []
    worker.serve(requests, lambda *answer: answers.append(answer))
    (_, (kind, said)) = answers
    assert kind == "error"
    assert said.startswith(f"vae_jax: {tmp_path}/mine.py:2 in bound: raise {raised}: {raised.partition('(')[0]}")


def test_a_quick_look_is_bounded():
    config = load_config("article")
    images = np.zeros((60_000, 1, 1, 1), np.uint8)
    asked, data = compare.quick(config, Dataset("mnist", Split(images), Split(images[:10_000])))
    assert (len(data.train), len(data.test), asked.train.epochs) == (12_800, 2_000, 2)
    assert "12,800 training and 2,000 test images spread over all" in data.name
    asked, data = compare.quick(config, Dataset("digits", Split(images[:1437]), Split(images[:360])))
    assert (len(data.train), len(data.test), asked.train.epochs, data.name) == (1437, 360, 17, "digits")
