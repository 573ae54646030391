"""The data of a run for the commands that use it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vae_jax.cli.common import DATA_PATHS, say
from vae_jax.config import DataConfig, check_section, expand
from vae_jax.errors import UserError, listed, quoted
from vae_jax.files.folders import is_copy, shown_as
from vae_jax.runs.folder import read_data

if TYPE_CHECKING:
    from vae_jax.config import Config
    from vae_jax.data import Dataset, Split
    from vae_jax.training.state import Trained

SPLITS = ("test", "validation", "train")


def split_option(parser: Any) -> None:
    parser.add_argument("--split", default="test", offered=lambda: SPLITS, help="the images: test, validation or train")


def given_paths(options: Any) -> dict[str, Any]:
    """The places of data that a command was given, by the names of DATA_PATHS."""
    return {name: path for name in DATA_PATHS if (path := getattr(options, f"data.{name}")) is not None}


def say_unused(options: Any) -> None:
    """Says that places of data are not looked at, since the command needs no data here."""
    if given := given_paths(options):
        say(f"not used, since no data are loaded here: {listed(f'--data.{name}' for name in given)}")


def load_data(options: Any, trained: "Trained") -> "Dataset":
    """Loads a run's data, from the options' paths if given; their labels are numbered as the run's.

    Raises:
        UserError: if the configuration loads other data than the run was trained on, or data with classes that a model
            that gets labels does not know.
    """
    from vae_jax.data import load
    from vae_jax.data.cache import is_cache
    from vae_jax.runs.identity import digest_of_all
    from vae_jax.training.checks import check_labels, check_numbers

    given = given_paths(options)
    if trained.config.data.path and "path" not in given and is_copy(expand(options.run)):
        name = shown_as(expand(options.run))
        raise UserError(
            f"{name}: expected its data, {trained.config.data.path}, which are not on the hub; "
            f"--data.path names a place of them here"
        )
    config = replace(trained.config.data, **given)
    if "cache_dir" not in given and config.cache_dir and not is_cache(expand(config.cache_dir)):
        say(f"{config.cache_dir}, the run's data.cache_dir, is no cache here: --data.cache_dir names one")
        config = replace(config, cache_dir=None)
    check_section(DataConfig(config.source, **given))
    data = load(config, report=say)
    noted = read_data(expand(options.run))
    if noted and "path" not in given and noted.digest != digest_of_all(trained.config, data):
        hint = f"; --data.path {config.path} takes them as they are now" if config.path else ""
        raise UserError(
            f"{options.run}: expected the data it was trained on, {noted.name}; its configuration loads others "
            f"(data.source {config.source}): they were made in Python, or have changed since{hint}"
        )
    data = renumbered(trained.config, data, trained.class_names)
    check_labels(trained.config, data)
    check_numbers(trained.config, data)
    return data


def renumbered(config: "Config", data: "Dataset", names: "tuple[str, ...] | None") -> "Dataset":
    """Data whose classes have a run's numbers, by their names.

    Raises:
        UserError: if they have classes that a model that gets labels does not know.
    """
    if names is not None and not config.model.classes:
        if more := tuple(name for name in data.class_names or () if name not in names):
            say(f"{data.name}: classes that the run does not know get further numbers: {listed(more)}")
        names += more
    return data.renumbered(names)


def split_of(data: "Dataset", name: str) -> "Split":
    """A run's test, validation or training images.

    Raises:
        UserError: if it has none of this name.
    """
    splits = {split: getattr(data, split) for split in SPLITS}
    if (split := splits.get(name)) is None:
        known = [split for split, images in splits.items() if images is not None]
        raise UserError(f"--split: expected one of {', '.join(known)}, which this run has; found {quoted(name)}")
    return split
