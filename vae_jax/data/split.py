"""One split of a data set: examples and their labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from vae_jax.data.stored import as_array, check_finite, described, kind_of, to_labels
from vae_jax.errors import UserError

# The kind of numbers and the number of axes of a stored array, by the kind of its examples.
STORED = {"image": ("u", 4), "vector": ("f", 2), "sequence": ("f", 3), "categories": ("u", 2)}


@dataclass(frozen=True)
class Split:
    """The images of one split, in order, or examples of another kind; checked when made.

    Attributes:
        images: uint8, (images, height, width, channels), at least one, grey (1 channel) or RGB (3). Or float32 vectors
            (n, features) or sequences (n, length, channels); or categories, unsigned, (n, length).
        labels: int64, (images,), from 0 on; None if the source has none. Other whole numbers are converted.
        kind: one of `vae_jax.spec.KINDS`; None means vector if the array holds floats (n, features), else image.

    Raises:
        UserError: if they are anything else.

    Examples:
        >>> import numpy as np
        >>> import vae_jax
        >>> split = vae_jax.Split(np.zeros((4, 8, 8, 1), np.uint8), np.array([3, 1, 4, 1]))
        >>> len(split), split.labels.tolist()
        (4, [3, 1, 4, 1])
    """

    __no_type_check__ = True  # the checks below give one line, with or without a type checker

    images: Shaped[np.ndarray, "images *stored"]
    labels: Int64[np.ndarray, " images"] | None = None
    kind: Any = None

    def __post_init__(self):
        images = as_array(self.images, "images")
        kind = self.kind or kind_of(images.shape, images.dtype)
        known = STORED.get(kind) == (images.dtype.kind, images.ndim) and images.size
        sized = kind == "categories" or images.dtype == (np.uint8 if kind == "image" else np.float32)
        if not (known and sized) or (kind == "image" and images.shape[3] not in (1, 3)):
            raise UserError(
                f"images: expected uint8 levels 0 to 255 of at least one image, (n, height, width, 1 or 3); found "
                f"{described(images)}; Dataset.from_arrays takes floats in [0, 1] and images (n, height, width) too, "
                f"and with kind float32 vectors and sequences, and unsigned categories (n, length)"
            )
        if images.dtype.kind == "f":
            check_finite(images, images, "images")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "kind", kind)
        if self.labels is not None:
            object.__setattr__(self, "labels", to_labels(self.labels, len(images)))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def form(self) -> str:
        """The stored shape of an example, and its kind if it is no image, in words."""
        shape = "x".join(map(str, self.images.shape[1:]))
        return shape if self.kind == "image" else f"{shape} ({self.kind})"

    def take(self, indices: np.ndarray) -> "Split":
        """The images with these indices, and their labels."""
        return Split(self.images[indices], None if self.labels is None else self.labels[indices], self.kind)

    def spread(self, count: int) -> "Split":
        """`count` of the images, in order, or all if there are fewer; always the same ones.

        One image is drawn from each of `count` equal parts: the first images would be of one class if the source is
        sorted, and so would every k-th image if its classes take turns.
        """
        if count >= len(self):
            return self
        ends = np.arange(count + 1) * len(self) // count
        place = np.random.RandomState(0).random_sample(count)  # the legacy generator's stream never changes
        return self.take(ends[:-1] + (place * np.diff(ends)).astype(np.int64))
