"""Is it the same model in PyTorch, does it learn the same, and what does it cost? Four levels, one file each.

torch is imported by the levels, so that this package can be asked what it knows without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vae_jax.compare import report
from vae_jax.compare.level import Level, Request, Tell
from vae_jax.config import Config, as_sections
from vae_jax.data.dataset import Dataset
from vae_jax.data.shape import settled
from vae_jax.errors import UserError, argument
from vae_jax.files.lock import writing
from vae_jax.files.replace import remove
from vae_jax.spec import NOT_IMAGE

LEVELS = ("function", "gradient", "trajectory", "result")
QUICK_TRAIN, QUICK_TEST = 12_800, 2_000  # images of a quick look
QUICK_SEEN = 25_600  # images each run of it trains on in all, in whole epochs


def quick(config: Config, data: Dataset) -> tuple[Config, Dataset]:
    """Few images and few epochs, for a look at the result in a minute or two."""
    train, test = data.train.spread(QUICK_TRAIN), data.test.spread(QUICK_TEST)
    name = data.name
    if len(train) < len(data.train) or len(test) < len(data.test):
        name = f"{name}, {len(train):,} training and {len(test):,} test images spread over all"
    epochs = max(1, QUICK_SEEN // len(train))
    some = replace(data, name=name, train=train, test=test, validation=None)
    return replace(config, train=replace(config.train, epochs=epochs)), some


def check(config: Config, image_shape: tuple[int, ...], levels: Sequence[str], added: int) -> None:
    """Refuses what cannot be compared, before any long work.

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
            f"{argument('levels', 'result')} with {argument('added')} lays our results beside others'"
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
    tell: Tell = lambda what, done, total: None,
    on_level: Callable[[str, Level], None] = lambda name, level: None,
) -> dict[str, Level]:
    """Compares our training of a model with PyTorch's; see `report` for what it leaves in the folder.

    Args:
        config: of the model and its training.
        data: the images.
        folder: to write into; created. A comparison that is there already is replaced.
        levels: of LEVELS, in whatever order.
        steps: of the trajectory.
        seeds: runs of each framework in the result, from `config.seed` on.
        epochs: of each run; by default few epochs of few images, see `quick`.
        added: results of other frameworks, from `results.read`.
        tell: called now and then with what goes on, how much is done and how much there is.
        on_level: called with each level's answer.

    Raises:
        UserError: if PyTorch is needed and missing, or has no layer or objective for the configuration; or if the
            folder cannot be written, or another process writes there.
    """
    config = settled(config, data)
    check(config, data.image_shape, levels, len(added))
    folder = Path(folder)
    found: dict[str, Level] = {}
    with writing(folder):
        for path in report.own(folder):
            remove(path)

        def keep(results: dict[str, Any]) -> None:
            report.write_json(folder / f"results_{results['framework'].lower()}.json", results)

        whole = Request(config, data, steps, tuple(range(config.seed, config.seed + seeds)), list(added), keep, tell)
        ran = quick(config, data)
        if epochs is not None:
            ran = replace(config, train=replace(config.train, epochs=epochs)), data
        for name in LEVELS:
            if name not in levels:
                continue
            request = whole._replace(config=ran[0], data=ran[1]) if name == "result" else whole
            found[name] = getattr(import_module(f"vae_jax.compare.{name}"), name)(request)
            report.write(folder, as_sections(config), data.name, ran[0].train.epochs, found)
            on_level(name, found[name])
    return found
