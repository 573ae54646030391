"""The one type every data source gives."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8


@dataclass(frozen=True)
class Split:
    """Images of one split, in order.

    Attributes:
        images: uint8, (images, height, width, channels).
        labels: int64, (images,), or None where the source has none.
    """

    images: UInt8[np.ndarray, "images height width channels"]
    labels: Int64[np.ndarray, " images"] | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, as every source gives it: grey or RGB levels 0 to 255.

    Attributes:
        name: what it is called in reports, for example "mnist".
        train: the training images.
        test: the test images, never trained on.
        validation: held out of the training images (`data.validation`), or None.
        class_names: the label's names, or None where the source has none.
        skipped: the images that were left out (`data.skip_bad`), each with the reason.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels
