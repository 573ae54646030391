"""The package reads in the order of the data: no import runs back, no file is long, and the guide names every part."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vae_jax"
MOST_LINES = 400
# A file or package imports only from those before it, also inside functions.
ORDER = [
    "version",
    "errors",
    "interruption",
    "keys",
    "variables",
    "shapes",
    "files",
    "registry",
    "part_outputs",
    "links",
    "spec",
    "options",
    "config",
    "device",
    "blocks",
    "programs",
    "pictures",
    "data",
    "posteriors",
    "priors",
    "hierarchy",
    "likelihoods",
    "layers",
    "networks",
    "optimizer",
    "objectives",
    "model",
    "evaluation",
    "training",
    "loggers",
    "runs",
    "sweeps",
    "pages",
    "interop",
    "compare",
    "cli",
    "__main__",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def place_of(path):
    """The file's or package's place in the order; the package's own face has none."""
    name = path.relative_to(PACKAGE).with_suffix("").parts[0]
    return None if name == "__init__" else ORDER.index(name)


def imported(path):
    """The modules of this package that a file imports anywhere, as (line, "data" or another name of the order)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "vae_jax":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vae_jax."):
            names = [node.module.split(".")[1]]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vae_jax.")]
        for name in names:
            yield node.lineno, name


def test_the_order_names_all_there_is():
    there = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} - {"__init__"}
    assert there == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_import_runs_back(path):
    place = place_of(path)
    if place is None:
        return
    back = [(line, name) for line, name in imported(path) if name in ORDER and ORDER.index(name) > place]
    assert back == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_files_of_a_package_import_one_another_in_a_circle():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    reached = {}

    def targets(name):
        for node in ast.walk(ast.parse(names[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in names else node.module

    for name in names:
        reached[name] = {target for target in targets(name) if target in names and target not in (name, "vae_jax")}
    left = dict(reached)
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    # What is left imports what is left: a circle. A package's own file hands on what lies in it.
    assert {name for name in left if names[name].name != "__init__.py"} == set()


def test_the_guide_names_all_parts():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.search(r"\| where \| what \|\n.*?\n\n", guide, re.DOTALL)[0]
    named = [name.removesuffix(".py").removesuffix("/") for name in re.findall(r"`([\w/.]+)`", rows)]
    assert set(ORDER) - set(named) <= {"__main__"}
