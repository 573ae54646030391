"""The README's and the pages' Python code runs as it stands; the commands, files and options they name exist."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import COLLECTED
from PIL import Image
from safetensors import safe_open

from vae_jax import cli
from vae_jax.cli import VERBS
from vae_jax.compare import results
from vae_jax.config import shipped
from vae_jax.config.change import options_of_section
from vae_jax.config.section import SECTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]


def code_in(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


CODE = code_in(README)


@pytest.mark.timeout(600)
def test_the_code_runs(capsys):
    names = {}
    for code in CODE:
        exec(compile(code, "README.md", "exec"), names)
    assert len(README.splitlines()) <= 150
    assert names["pictures"].shape == (16, 32, 32, 1)
    assert names["latents"].shape == (360, 20)
    assert len(capsys.readouterr().out.split()) == 2  # the test loss of two epochs


@pytest.mark.timeout(600)
def test_the_code_for_using_a_model_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = DOCS["using"]
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "using.md", "exec"), names)
    shapes = {name: names[name].shape for name in ("jacobian", "jacobians", "sensitivity")}
    expected = {"jacobian": (32, 32, 1, 20), "jacobians": (5, 32, 32, 1, 20), "sensitivity": (4, 32, 32, 1)}
    assert shapes == expected
    assert names["same"].all()
    with safe_open(tmp_path / "digits.safetensors", framework="numpy") as stored:
        assert "params.encoder.conv1.kernel" in stored.keys()  # noqa: SIM118 (it is no dict)
        assert set(stored.metadata()) == {"format", "version", "model"}


@pytest.mark.timeout(600)
def test_the_code_for_loops_of_ones_own_runs():
    text = DOCS["loops"]
    codes, names = re.findall(r"```python\n(.*?)```", text, re.DOTALL), {}
    for code in codes:
        exec(compile(code, "loops.md", "exec"), names)
    loop = codes[0].split("optimizer =")[1]
    assert sum(bool(line.strip()) for line in loop.splitlines()) <= 20
    assert np.mean(names["losses"][-5:]) < 0.95 * np.mean(names["losses"][:5])
    shapes = {name: names[name].shape for name in ("gradient", "pictures", "jacobians")}
    assert shapes == {"gradient": (4, 32, 32, 1), "pictures": (3, 32, 32, 1), "jacobians": (3, 32, 32, 1, 20)}
    step = 1e-3 * np.sign(names["gradient"])
    change = [float(names["negative_elbo"](names["images"] + sign * step)) for sign in (1, -1)]
    assert (change[0] - change[1]) / 2 == pytest.approx(float((names["gradient"] * step).sum()), rel=0.02)


def test_the_posterior_of_the_page_on_extending_trains_and_is_one_file_and_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = DOCS["extending"]
    (code,) = (code for code in code_in(text) if "return Posterior(" in code)
    (diff,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    (tmp_path / "heavy.py").write_text(code, encoding="utf-8")
    (command,) = re.findall(r"^\$ vae-jax (train .*)$", text, re.MULTILINE)
    assert cli.main([*command.split(), "--data.image_size", "8", "--train.epochs", "1", "--model.network", "mlp"]) == 0
    assert json.loads((tmp_path / "runs/laplace/summary.json").read_text())["test_kl"] > 0
    changed = [line for line in diff.splitlines() if re.match("[+-][^+-]", line)]
    assert changed == ["+from vae_jax.posteriors.laplace import laplace", '+    "laplace": laplace,']
    registry = (ROOT / "vae_jax/posteriors/__init__.py").read_text()
    assert all(line[1:] in registry for line in diff.splitlines() if line.startswith(" "))


def test_the_examples_of_extending_it_train_and_evaluate_from_files_of_their_own(tmp_path, monkeypatch, capsys):
    """Each in its own file, named by its import path; the commands are the pages', on smaller images."""
    monkeypatch.chdir(tmp_path)
    for name, entry in (("renyi", "def renyi("), ("laplace", "def laplace("), ("linear", "class Linear(")):
        (code,) = (code for code in [*CODE, *code_in(DOCS["extending"])] if entry in code and "Posterior" not in code)
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        if name == "renyi":
            assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    small = "--data.image_size 8 --train.epochs 2 --model.channels [4,8] --model.hidden 16 --model.latent 3"
    commands = re.findall(r"^    vae-jax (train --config .*)$", README + DOCS["extending"], re.MULTILINE)
    renyi, laplace = (next(command for command in commands if name in command) for name in ("renyi.py", "laplace.py"))
    for command in (f"{renyi} {small}", f"{laplace} --data.image_size 8 --train.epochs 2"):
        assert cli.main(command.split()) == 0, command
    monkeypatch.chdir("/")  # a run finds its files from anywhere
    capsys.readouterr()
    for name in ("renyi", "laplace"):
        run = tmp_path / "runs" / name
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
        if name == "renyi":
            assert all(1 <= epoch["test_ess"] <= 10 for epoch in epochs)
        assert cli.main(["evaluate", str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(epochs[1]["test_loss"], rel=1e-5)


def test_the_example_of_a_results_file_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = DOCS["comparing"]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "comparing.md", "exec"), {})
    assert results.losses(results.read(tmp_path / "keras.json")).shape == (3, 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / path).exists(), path
    for path in re.findall(r"`(vae_jax/[\w/]*(?:\.py)?|tests/\w+\.py|benchmarks/\w+\.(?:py|sh))`", text):
        assert (ROOT / path).exists(), path
    if page.name == "CONTRIBUTING.md":  # whose paths are the package's
        for path in re.findall(r"`((?:\w+/)*\w+\.py|\w+/)`", text):
            assert any((root / path).exists() for root in (ROOT, ROOT / "vae_jax")), path
    sections = "data|model|posterior|prior|likelihood|objective|train|output|optimizer"
    known = {f"{name}.{option}" for name in SECTIONS for option in options_of_section(name)}
    for option in re.findall(
        rf"`((?:{sections})\.(?!py`|json`|sample`|reconstruct`|encode`|decode`|draw|own|loss|init|terms`)\w+)`", text
    ):
        assert option in known, option
    for name in re.findall(r"vae-jax ([a-z][\w-]*)", text):
        assert name in VERBS, name
    for name in re.findall(r"--config (\w+)(?![\w./])", text):
        assert name in shipped(), name


def test_all_commands_and_configurations_are_listed():
    assert set(re.findall(r"\| `vae-jax ([\w-]+)", DOCS["commands"])) == set(VERBS)
    assert set(re.findall(r"^\| `(\w+)` \| the", DOCS["configurations"], re.MULTILINE)) == set(shipped())


def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    build.build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    assert (tmp_path / "site" / "extending" / "index.html").is_file()


def test_each_promise_has_its_test(request):
    """What stands beside it selects something of every file that it names, as far as these are collected now."""
    text = DOCS["surviving"]
    rows = re.findall(r"^\| [^|\n]+ \| (.+) \|$", text, re.MULTILINE)
    rows = [row for row in rows if row != "tested by"]
    assert len(rows) > 10
    collected = request.config.stash[COLLECTED]
    for row in rows:
        files = re.findall(r"tests/(\w+\.py)", row)
        assert files, row
        for file in files:
            assert (ROOT / "tests" / file).is_file(), row
            names = [name.lower() for name in collected if f"tests/{file}::" in name]
            for words in re.findall(r'-k "?([\w ]+)', row) if names else ():
                for word in words.strip().split(" or "):
                    others = [name.lower() for other in files for name in collected if f"tests/{other}::" in name]
                    assert any(word.lower() in name.partition("::")[2] for name in others), (word, row)


def test_cluster_files_have_the_syntax_of_their_kind():
    folder = ROOT / "docs" / "cluster"
    subprocess.run(["bash", "-n", folder / "train.slurm"], check=True)
    kinds = {each["kind"] for each in yaml.safe_load_all((folder / "jobset.yaml").read_text())}
    assert kinds == {"ServiceAccount", "Role", "RoleBinding", "JobSet"}
    slurm, jobset = (
        (folder / "train.slurm").read_text(),
        list(yaml.safe_load_all((folder / "jobset.yaml").read_text()))[-1],
    )
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    arguments = re.search(r"vae-jax (train .*?) \|\|", slurm)[1].replace('"$RUN"', "runs/article").split()
    for command in (arguments, container["command"][1:]):  # the command takes these options
        options = cli._parse("train", VERBS["train"], command[1:])
        assert options.distributed
        assert options.resume


def small_options(verb, arguments):
    """What makes a command of the README quick."""
    shrunk = ["--train.epochs", "1", "--output.figure_images", "4"]
    if verb not in ("train", "sweep"):
        return {"evaluate": ["--images", "20", "--nll-samples", "2"], "compare": ["--epochs", "1"]}.get(verb, [])
    if "colour64" in arguments:
        return [*shrunk, "--model.channels", "[4,4,4,4]", "--model.hidden", "8", "--data.image_size", "64"]
    tiny = ["--data.image_size", "8", "--model.channels", "[4,8]", "--model.hidden", "16"]
    return [*shrunk, *tiny, *(["--seeds", "1"] if verb == "sweep" else [])]


@pytest.mark.timeout(900)
def test_every_command_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """In its order, in one folder, in small."""
    monkeypatch.chdir(tmp_path)
    (renyi,) = (code for code in CODE if "def renyi(" in code)
    (tmp_path / "renyi.py").write_text(renyi, encoding="utf-8")
    (tmp_path / "photos").mkdir()
    for number in range(12):
        levels = np.random.RandomState(number).randint(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(levels).save(tmp_path / "photos" / f"{number}.png")
    commands = [shlex.split(line) for line in re.findall(r"^    vae-jax (.*)$", README, re.MULTILINE)]
    assert {verb for verb, *_ in commands} >= {"train", "evaluate", "sample", "sweep", "compare"}
    for verb, *arguments in commands:
        if verb == "compare":
            continue  # tests/test_compare.py runs it, with PyTorch
        assert cli.main([verb, *arguments, *small_options(verb, arguments)]) == 0, (verb, arguments)
        capsys.readouterr()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (start,) = re.findall(r"^CONFIG \?= configs/(\w+)\.yaml$", makefile, re.MULTILINE)
    assert start in shipped()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
