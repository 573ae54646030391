"""What the tests of run folders and of the command line share: a tiny configuration, each network compiled once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vae_jax.config import adapted
from vae_jax.files.held import LOCK
from vae_jax.runs.fit import fit
from vae_jax.training import several

# 1,000 digits in 10 batches, 200 to validate and 597 to test on.
TINY = {
    "data.image_size": 8,
    "data.test": 597,
    "data.validation": 200,
    "model.channels": [4, 8],
    "model.latent": 2,
    "model.hidden": 16,
    "train.epochs": 2,
    "train.batch_size": 100,
    "train.chunk_steps": 4,
    "output.figure_images": 9,
}


def flags(**options) -> list[str]:
    """Options as the command line takes them."""
    return [f"--{name}={str(value).replace(' ', '')}" for name, value in options.items()]


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keeps compiled programs in a folder, where the next run with the same network finds them."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@contextmanager
def optimized() -> Iterator[None]:
    """Compiles as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Everything below a folder but its lock: each file's bytes and time of change, each folder's name."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else (b"", 0)
        for path in sorted(folder.rglob("*"))
        if path.name != LOCK
    }


def trained_and_resumed(config, images):
    """The trained model, after it has been resumed from inside its training to the same end, bit for bit."""
    states = []

    def keep(state, history):
        states.append((jax.tree.map(np.asarray, state), list(history)))

    whole = fit(config, images, on_chunk=keep)
    state, history = states[1]
    resumed = fit(config, images, resume=(jax.tree.map(jnp.asarray, state), history))
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    assert all(np.isfinite(value) for epoch in whole.history for value in epoch.values())
    return whole


def check_members(config, images):
    """Members of a sweep, of two seeds, are their single runs; to be called in double precision."""
    configs = [adapted(config, seed=seed) for seed in (1, 2)]
    program = several.program_that_fits(configs, several.Images(images))
    trained = several.fit(program, [several.Run(config) for config in configs])
    for config, (state, history) in zip(configs, trained, strict=True):
        alone = fit(config, images)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), state, alone.state)
        assert history[-1]["train_loss"] == pytest.approx(alone.history[-1]["train_loss"], rel=1e-9)
