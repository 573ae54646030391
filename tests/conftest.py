"""What every test shares: strict settings of jax, small data, and MNIST where it is at hand."""

import gc
import os
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest
import run_fixtures

from vae_jax import cli
from vae_jax.data import Dataset, Split

# With pytest-xdist's --no-loadscope-reorder the files that take longest begin first, and no worker waits for another.
LONGEST = (
    "test_composition",
    "test_faults",
    "test_loggers",
    "test_sweep",
    "test_torch",
    "test_train",
    "test_devices",
    "test_compare",
    "test_exchange",
    "test_cli",
    "test_run",
    "test_models",
    "test_explore",
    "test_docs_notebooks",
)


COLLECTED = pytest.StashKey[list[str]]()  # the names of all tests, also of those that -m or -k leaves out


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    config.stash[COLLECTED] = [item.nodeid for item in items]
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))


gc.set_threshold(100_000, 50, 100)  # as commands have it, see vae_jax/__main__.py
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Most of the suite's time goes into compiling small programs; without optimisations it takes two thirds of it.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for commands that tests start


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Many tests train the same small model: it is compiled once for all of them, in all of pytest-xdist's workers.

    Commands that tests start get it through the environment, and leave the user's own cache alone.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    settings = {"compilation_cache_dir": str(shared / "compiled"), "persistent_cache_min_compile_time_secs": 0.2}
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "-1"


@pytest.fixture(scope="session", autouse=True)
def secret(tmp_path_factory):
    """Tests sign what they train with a secret of their own, and leave the user's alone."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.getbasetemp() / "state")


@pytest.fixture(autouse=True)
def compiling(request):
    """Compiles as users do where a test is marked "optimized", since its outcome or length may depend on it."""
    with run_fixtures.optimized() if request.node.get_closest_marker("optimized") else nullcontext():
        yield


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with MNIST's four files."""
    folder = os.environ.get("VAE_JAX_MNIST_DIR")
    if not folder:
        pytest.skip("needs MNIST's four files: set VAE_JAX_MNIST_DIR to the folder that holds them")
    return Path(folder)


@pytest.fixture
def command(capsys):
    """Runs a command; gives its exit code, its output and its errors."""

    def run(*arguments):
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def float64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def small_data() -> Dataset:
    """Random 8x8 images: 70 to train on, 20 to test on, 10 for validation."""
    levels = np.random.RandomState(0).randint(0, 256, (100, 8, 8, 1), np.uint8)
    labels = np.arange(100) % 10
    return Dataset(
        "noise", Split(levels[:70], labels[:70]), Split(levels[70:90], labels[70:90]), Split(levels[90:], labels[90:])
    )
