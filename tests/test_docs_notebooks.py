"""The notebooks of docs/notebooks: they are read as notebooks, and run in small, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_jax import cli

jupytext = pytest.importorskip("jupytext")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
TINY = {"data.image_size": 8, "model.channels": [4, 8], "model.hidden": 16, "model.latent": 4}

# Saves every figure, and answers with the value of an expression as JSON.
ENDING = """
import json as _json
from pathlib import Path as _Path
import matplotlib.pyplot as _plt
for _number in _plt.get_fignums():
    _plt.figure(_number).savefig(f"figure_{{_number}}.png", dpi=50)
_Path("answer.json").write_text(_json.dumps({answer}))
"""


def cells(name: str) -> list[Any]:
    """The cells of a notebook, as jupytext reads them."""
    return jupytext.read(NOTEBOOKS / f"{name}.py").cells


def tagged(name: str, tag: str) -> str:
    """The code of the one cell with a tag."""
    (cell,) = (cell for cell in cells(name) if tag in cell.metadata.get("tags", ()))
    return cell.source


def run(name: str, folder: Path, answer: str, before: str = "", **parameters: Any) -> tuple[Any, str]:
    """Runs a notebook's code in a folder; as papermill does, the given parameters follow the cell of the usual ones.

    Args:
        name: of the notebook.
        folder: to run in.
        answer: an expression, of the notebook's variables at the end.
        before: code to run first.
        **parameters: by name.

    Returns:
        The answer, and what was printed.
    """
    code = [before]
    for cell in (cell for cell in cells(name) if cell.cell_type == "code"):
        code.append(cell.source)
        if "parameters" in cell.metadata.get("tags", ()):
            code += [f"{given}  # is one\n{given} = {value!r}" for given, value in parameters.items()]
    program = folder / f"{name}_run.py"
    program.write_text("\n\n".join([*code, ENDING.format(answer=answer)]), encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answer.json").read_text()), done.stdout


def check_figures(folder: Path, count: int) -> None:
    """As many figures were drawn, none of them empty."""
    paths = sorted(folder.glob("figure_*.png"))
    assert len(paths) == count
    for path in paths:
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, path.name


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_is_one(path, tmp_path):
    """Text and code, one cell of parameters before all other code, and the same again as an .ipynb."""
    notebook = jupytext.read(path)
    assert {cell.cell_type for cell in notebook.cells} == {"markdown", "code"}
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert ["parameters" in cell.metadata.get("tags", ()) for cell in code] == [True] + [False] * (len(code) - 1)
    assert "VAE_JAX_MNIST_DIR" in code[0].source
    assert notebook.metadata["kernelspec"]["language"] == "python"
    jupytext.write(notebook, tmp_path / "notebook.ipynb")
    again = jupytext.read(tmp_path / "notebook.ipynb").cells
    assert [(cell.cell_type, cell.source) for cell in again] == [(c.cell_type, c.source) for c in notebook.cells]


def test_all_notebooks_are_listed():
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert {path.name for path in NOTEBOOKS.iterdir()} == {"article.py", "own_objective.py", "compare.py"}
    for path in NOTEBOOKS.glob("*.py"):
        assert f"(notebooks/{path.name})" in page


def test_the_article(tmp_path):
    answer = (
        "{'history': history, 'floor': floor, 'kl': float(kl.sum(1).mean()), 'samples': samples.shape,"
        "'article': last['test_loss'] * size}"
    )
    changes = {**TINY, "train.epochs": 3}
    got, said = run("article", tmp_path, answer, configuration="digits", changes=changes)
    history, last = got["history"], got["history"][-1]
    assert len(history) == 3
    assert last["train_loss"] < history[0]["train_loss"]
    assert 0 < got["floor"] < last["test_reconstruction"]
    assert got["kl"] == pytest.approx(last["test_kl"], rel=1e-4)  # the closed form, written a second time
    assert got["article"] == pytest.approx(last["article_test_loss"], rel=1e-6)
    assert got["samples"] == [48, 8, 8, 1]
    assert f"epoch 3: train {last['train_loss']:.2f}" in said
    check_figures(tmp_path, 6)


def test_an_own_objective(tmp_path, monkeypatch, capsys):
    answer = (
        "{'rows': rows, 'gaps': {name: float(gap) for name, gap in gaps.items()}, 'sampled': float(sampled),"
        "'history': {name: each.history for name, each in trained.items()}}"
    )
    changes = {**TINY, "train.epochs": 2}
    got, said = run(
        "own_objective",
        tmp_path,
        answer,
        configuration="digits",
        changes=changes,
        alpha=0.75,
        weight=200.0,
        images_of_estimate=20,
        samples_of_estimate=5,
    )
    gaps, rows = got["gaps"], got["rows"]
    assert abs(gaps["standard normal"]) < 1e-3
    assert gaps["one point"] == pytest.approx(1 - 2 * (10 / 11) ** 5 + (10 / 12) ** 5, rel=1e-3)
    assert gaps["twice as far"] == pytest.approx(got["sampled"], abs=0.01)
    for name, history in got["history"].items():
        assert history[1]["train_loss"] < history[0]["train_loss"], name
    last = got["history"]["infovae"][-1]
    parts = last["test_reconstruction"] + 0.25 * last["test_kl"] + 200 * last["test_mmd"]
    assert last["test_loss"] == pytest.approx(parts, rel=1e-5)
    for name, row in rows.items():
        assert row["−ELBO"] == pytest.approx(row["reconstruction"] + row["KL"])
        assert row["−log p(x)"] == pytest.approx(row["−ELBO"], rel=0.1), name  # a model that knows next to nothing yet
    assert "objective.alpha: expected" in said
    check_figures(tmp_path, 2)

    # As a file, as the notebook's end says.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "infovae.py").write_text(tagged("own_objective", "objective"), encoding="utf-8")
    small = [f"--{name}={str(value).replace(' ', '')}" for name, value in changes.items()]
    arguments = [
        "--objective.name",
        "infovae.py:infovae",
        "--objective.alpha",
        "0.75",
        "--objective.weight",
        "200",
        *small,
    ]
    assert cli.main(["train", "--config", "digits", "--out", "run", *arguments]) == 0
    capsys.readouterr()
    summary = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["test_loss"] == pytest.approx(last["test_loss"], rel=1e-5)  # the same objective, the same run


@pytest.mark.timeout(600)
def test_the_comparison(tmp_path):
    pytest.importorskip("torch")
    answer = "{name: level.verdict for name, level in answers.items()}"
    parameters = {"configuration": "digits", "changes": TINY, "steps": 12, "seeds": 2, "epochs": 1}
    verdicts, said = run("compare", tmp_path, answer, **parameters)
    assert list(verdicts) == ["function", "gradient", "trajectory", "result"]
    assert {verdicts[name] for name in ("function", "gradient", "trajectory")} <= {"agrees", "agrees in float64"}
    assert verdicts["result"] in ("no difference found", "differs")  # of two runs each, by chance
    for level, verdict in verdicts.items():
        assert f"{level}: {verdict}\n" in said
    assert "comparison/comparison.json" in said
    check_figures(tmp_path, 3)


def test_the_comparison_without_pytorch(tmp_path):
    """It says so, and ends as a notebook that has run."""
    before = (
        "import importlib.util as _util\n"
        "_find = _util.find_spec\n"
        "_util.find_spec = lambda name, *rest: None if name == 'torch' else _find(name, *rest)"
    )
    got, said = run("compare", tmp_path, "answers", before, configuration="digits", changes=TINY)
    assert got == {}
    assert "PyTorch is not installed" in said
    assert not (tmp_path / "comparison").exists()
    check_figures(tmp_path, 0)
