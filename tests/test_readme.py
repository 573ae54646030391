"""The README's Python code runs as it stands, and the files and options it names exist."""

import re
from pathlib import Path

import pytest

from vae_jax.cli import VERBS
from vae_jax.compare import results
from vae_jax.config import Config, shipped
from vae_jax.objectives import OBJECTIVES
from vae_jax.run import _options

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.timeout(600)
def test_the_code_runs(capsys):
    names = {}
    try:
        for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(compile(code, "README.md", "exec"), names)
    finally:
        OBJECTIVES.pop("laplace", None)
    assert names["pictures"].shape == (16, 32, 32, 1)
    assert names["latents"].shape == (360, 20)
    assert len(capsys.readouterr().out.split()) == 3  # the test loss of two epochs and of the new objective


def test_the_example_of_a_results_file_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "comparing.md", "exec"), {})
    assert results.losses(results.read(tmp_path / "keras.json")).shape == (3, 3)


def test_what_it_names_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"`(vae_jax/[\w/]*(?:\.py)?|tests/\w+\.py)`", README
    ):
        assert (ROOT / path).exists(), path
    for option in re.findall(r"`((?:data|model|objective|train|output)\.(?!py`)\w+)`", README):
        assert option in _options(Config()), option
    assert set(re.findall(r"\| `vae-jax (\w+)", README)) == set(VERBS)
    assert set(re.findall(r"^\| `(\w+)` \| the", README, re.MULTILINE)) == set(shipped())
