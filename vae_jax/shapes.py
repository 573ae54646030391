"""The sizes that a model's parts share; every part's function gets them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Size = Any  # of an axis: a whole number, or the symbol of one while a function is exported for any batch


class Shapes(NamedTuple):
    """The sizes that are fixed before a part is made.

    Attributes:
        image_shape: (height, width, channels) of an image; of other examples (features,), (length, channels) or, of
            categories, (length, values).
        latent: dimensions of z.
        classes: number of labels; 0 if the model does not use them. Otherwise the encoder's images have as many further
            channels, and the decoder's z as many further numbers.
        heads: of the posterior, by name: sizes, or shapes, which a network may give flat. This field and those below
            are set for networks only.
        outputs: numbers that the decoder gives per channel of a pixel.
        latent_shape: of one z; None for a vector of `latent` numbers.
        places: -> the shape of the network's map of features, whose places stand for parts of the example; None if it
            has none. A posterior over maps takes it as the shape of its own.
        codes: that the posterior's z are made of, see `vae_jax.posteriors.Codes`; None if there are none.
        support: the kind of an example's numbers: "levels" in [0, 1], "reals", or "categories", one-hot along the last
            axis.
    """

    image_shape: tuple[int, ...]
    latent: int
    classes: int = 0
    heads: Mapping[str, Any] = {}
    outputs: int = 1
    latent_shape: tuple[int, ...] | None = None
    support: str = "levels"
    places: Callable[[], tuple[int, ...] | None] = lambda: None
    codes: Any = None
