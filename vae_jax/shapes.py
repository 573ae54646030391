"""The sizes that the parts of a model share, which every part's function is given."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Shapes(NamedTuple):
    """What is fixed before a part is made.

    Attributes:
        image_shape: (height, width, channels) of an image; of other examples (features,), (length, channels) or, of
            categories, (length, values).
        latent: dimensions of z.
        classes: how many labels there are; 0 where the model is not told them. An image then comes to the encoder with
            as many further channels, and z to the decoder with as many further numbers.
        heads: of the posterior, each with its size, or its shape: a network may give such a one flat. Known to networks
            only, as is what follows.
        outputs: numbers that the decoder gives for each channel of a pixel.
        latent_shape: of one z; None for a vector of `latent` numbers.
        places: -> the shape of the network's own map of features, whose places are images of parts of the example; None
            where it has none. A posterior that is made of maps takes it for theirs.
        codes: that the posterior's z are made of, see `vae_jax.posteriors.Codes`; None where they are made of none.
        support: what the numbers of an example are: "levels" in [0, 1], "reals", or "categories", of which the last
            axis is one-hot.
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
