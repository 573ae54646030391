"""Compares training with PyTorch on four levels, one file each: the same model, the same training, at what cost?

Only the levels import torch, so that this package can be used without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vae_jax.compare import report
from vae_jax.compare.level import Level, OnProgress, Request
from vae_jax.config import Config, as_sections
from vae_jax.data.dataset import Dataset
from vae_jax.data.image_size import settled
from vae_jax.errors import UserError, argument
from vae_jax.files.lock import writing
from vae_jax.files.replace import remove
from vae_jax.spec import NOT_IMAGE

LEVELS = ("function", "gradient", "trajectory", "result")
QUICK_TRAIN, QUICK_TEST = 12_800, 2_000  # images of a quick comparison
QUICK_SEEN = 25_600  # images that one of its runs trains on, in whole epochs


def quick(config: Config, data: Dataset) -> tuple[Config, Dataset]:
    """The configuration and data set of a quick comparison of results: few images and epochs, a minute or two."""
    train, test = data.train.spread(QUICK_TRAIN), data.test.spread(QUICK_TEST)
    name = data.name
    if len(train) < len(data.train) or len(test) < len(data.test):
        name = f"{name}, {len(train):,} training and {len(test):,} test images spread over all"
    epochs = max(1, QUICK_SEEN // len(train))
    some = replace(data, name=name, train=train, test=test, validation=None)
    return replace(config, train=replace(config.train, epochs=epochs)), some


def check(config: Config, image_shape: tuple[int, ...], levels: Sequence[str], added: int) -> None:
    """Refuses a model or data that cannot be compared, before any long work.

    Raises:
        UserError: if PyTorch is needed and missing, or has no layer or objective for the configuration; or the data are
            no images.
    """
    if config.data.kind in NOT_IMAGE:
        raise UserError(f"data.kind: expected image to compare with PyTorch; found {config.data.kind}")
    if not find_spec("torch"):
        if tuple(levels) == ("result",) and added:
            return
        raise UserError(
            f"compare needs PyTorch, which is not installed: pip install 'vae_jax[torch]'; without it, "
            f"{argument('levels', 'result')} with {argument('added')} shows our results beside others'"
        )
    from vae_jax.compare.pair import Pair
    from vae_jax.interop.torch_twin import check_known

    check_known(config)
    Pair(config, image_shape)


def compare(
    config: Config,
    data: Dataset,
    folder: str | Path,
    *,
    levels: Sequence[str] = LEVELS,
    steps: int = 200,
    seeds: int = 3,
    epochs: int | None = None,
    added: Sequence[dict[str, Any]] = (),
    on_progress: OnProgress = lambda what, done, total: None,
    on_level: Callable[[str, Level], None] = lambda name, level: None,
) -> dict[str, Level]:
    """Compares our training of a model with PyTorch's; see `report` for the files it writes.

    Args:
        config: of the model and its training.
        data: the images.
        folder: to write into; created. An earlier comparison in it is replaced.
        levels: of LEVELS, in any order.
        steps: of the trajectory.
        seeds: runs per framework in the result, from `config.seed` on.
        epochs: of a run; by default few epochs of few images, see `quick`.
        added: results of other frameworks, from `results.read`.
        on_progress: called now and then with the work's name, the amount done and the total.
        on_level: called with a level's name and answer.

    Raises:
        UserError: if PyTorch is needed and missing, or has no layer or objective for the configuration; or if the
            folder cannot be written, or another process writes there.
    """
    config = settled(config, data)
    check(config, data.image_shape, levels, len(added))
    folder = Path(folder)
    answers: dict[str, Level] = {}
    with writing(folder):
        for path in report.files_in(folder):
            remove(path)

        def keep(results: dict[str, Any]) -> None:
            report.write_json(folder / f"results_{results['framework'].lower()}.json", results)

        all_seeds = tuple(range(config.seed, config.seed + seeds))
        whole = Request(config, data, steps, all_seeds, list(added), keep, on_progress)
        for_result = quick(config, data)
        if epochs is not None:
            for_result = replace(config, train=replace(config.train, epochs=epochs)), data
        for name in LEVELS:
            if name not in levels:
                continue
            request = whole._replace(config=for_result[0], data=for_result[1]) if name == "result" else whole
            answers[name] = getattr(import_module(f"vae_jax.compare.{name}"), name)(request)
            report.write(folder, as_sections(config), data.name, for_result[0].train.epochs, answers)
            on_level(name, answers[name])
    return answers
