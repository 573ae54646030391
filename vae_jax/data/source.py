"""The type of a data source: a function from the configuration to an `Opened` data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vae_jax.config import DataConfig
from vae_jax.data.split import Split
from vae_jax.errors import UserError

Report = Callable[[str], None]
SPLITS = ("train", "test", "validation")
SPLIT_OF = {  # words in any case that name a split
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    **dict.fromkeys(("validation", "val", "valid", "validate", "valset", "dev", "devset"), "validation"),
    **dict.fromkeys(("eval", "evaluation", "evalset"), "validation"),
}


@dataclass(frozen=True)
class Splits:
    """All images of a source, resized, before anything is held out.

    Attributes:
        train: the training images.
        test: the test images; None if the source has no test split.
        validation: the validation images; None if the source has no validation split.
        class_names: the labels' names, or None.
        skipped: the images that were left out, with the reasons.
        notes: lines that are reported whenever the data set is loaded.
    """

    train: Split
    test: Split | None = None
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A source that is opened, but not read.

    Attributes:
        name: the data set's name in reports.
        read: reads all of it, and passes images through the `Resizer`, which is None for other examples.
        fingerprint: determines the content (file names, sizes, times): the key of the resized images in the cache. None
            if reading again is as fast as reading a cache.
        image_size: the size if data.image_size is not set.
        channels: the channels if data.channels is not set.
        in_arrays: whether the user has the images as arrays.
        kind: of the examples, see `data.kind`.
        shape: of an example that is no image, as it is stored.
    """

    name: str
    read: Callable[[Any], Splits]
    fingerprint: tuple[str, ...] | None = None
    image_size: int = 32
    channels: int = 1
    in_arrays: bool = False
    kind: str = "image"
    shape: tuple[int, ...] = ()


class Source(Protocol):
    """A data source. Opening is cheap (no decoding, no slow import); all work is in `Opened.read`."""

    def __call__(self, config: DataConfig, report: Report, /) -> Opened:
        """Opens the source; raises UserError if something is missing or cannot be read."""
        ...


def required(value: str | None, option: str, source: str) -> str:
    """The value of an option that a source needs.

    Raises:
        UserError: if it is not set.
    """
    if not value:
        raise UserError(f"{option}: expected one, which data.source {source} needs; found none")
    return value


def file_state(path: Path) -> tuple[str, ...]:
    """A file's path, size and time of change: while they stay the same, so does its content."""
    stat = path.stat()
    return str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns)
