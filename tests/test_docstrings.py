"""The public names have an example each, which runs as it stands."""

import doctest
import inspect

import pytest

import vae_jax
from vae_jax.layers import Conv, ConvTranspose

NAMES = {name: getattr(vae_jax, name) for name in vae_jax.__all__ if name != "layers"} | {"layers.Conv": Conv}


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = NAMES[name]
    (test,) = (found for found in doctest.DocTestFinder(recurse=False).find(thing, name, globs={}) if found.examples)
    assert sum(example.want != "" for example in test.examples) >= 1  # something is looked at
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    printed = []
    runner.run(test, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


def test_public_functions_say_what_they_raise_and_take():
    for name in ("build", "fit", "load_data", "load_run", "train_run", "load_weights"):
        text = inspect.getdoc(NAMES[name])
        for part in ("Args:", "Raises:", "Examples:"):
            assert part in text, (name, part)
    assert "see" in inspect.getdoc(ConvTranspose) or "shape" in inspect.getdoc(ConvTranspose)
