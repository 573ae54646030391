"""What a data source is: one function from the configuration to an `Opened` data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vae_jax.config import DataConfig
from vae_jax.data.split import Split
from vae_jax.errors import UserError

Report = Callable[[str], None]
SPLITS = ("train", "test", "validation")
SPLIT_OF = {  # a word in any case that names a split
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
        test: the test images, or None where the source has no test split of its own.
        validation: likewise.
        class_names: the labels' names, or None.
        skipped: the images that were left out, each with the reason.
        notes: what is reported whenever the data set is loaded, a line each.
    """

    train: Split
    test: Split | None = None
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A source that has been looked at, but not read.

    Attributes:
        name: the data set's name in reports.
        read: reads all of it, with every image passed through the `Resizer`; there is none for other examples.
        fingerprint: what determines the content (file names, sizes, times): the key of the resized images in
            the cache. None where reading again is as fast as reading a cache.
        image_size: for which data.image_size stands where it is not set.
        channels: likewise.
        in_arrays: the user has the images as arrays.
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
        """Raises UserError for what is missing or not readable."""
        ...


def required(value: str | None, option: str, source: str) -> str:
    """The value of an option that a source cannot do without.

    Raises:
        UserError: it is not set.
    """
    if not value:
        raise UserError(f"{option} is not set: data.source {source} needs it")
    return value


def file_state(path: Path) -> tuple[str, ...]:
    """A file's place, size and time of change: as long as they stay, its content is taken to be the same."""
    stat = path.stat()
    return str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns)
