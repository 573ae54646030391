"""How a model uses its codes: counts over a whole split, and the images that are nearest to a code."""

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from vae_jax.errors import UserError
from vae_jax.evaluation.evaluator import usage
from vae_jax.keys import batch_keys
from vae_jax.model.batches import in_batches
from vae_jax.model.composition import Composition
from vae_jax.objectives import BoundModel
from vae_jax.pictures.plots import new_figure, save_figure
from vae_jax.pictures.sheet import Picture
from vae_jax.variables import Variables

SHOWN, EXAMPLES = 8, 8  # codes in the picture, and images of a code


class Use(NamedTuple):
    """How codes are used over a split.

    Attributes:
        codes: of every image, as numbers of which none stands for two different vectors, (images, places).
        distances: from the encoder's vectors to their codes' vectors, (images, places); 0 if the posterior has none.
        total: how many codes there are.
        places: the shape of an image's codes.
        in_place: whether a place stands for a part of the picture, as in the networks' maps.
    """

    codes: Int[np.ndarray, "images places"]
    distances: Float[np.ndarray, "images places"]
    total: int
    places: tuple[int, ...]
    in_place: bool = False

    @property
    def counts(self) -> Int[np.ndarray, " codes"]:
        """How many places have a code, for all codes in use, the most used one first."""
        return np.sort(np.unique(self.codes, return_counts=True)[1])[::-1]

    @property
    def figures(self) -> dict[str, float]:
        """`codes_used` and `perplexity`, see `vae_jax.evaluation.evaluator.usage`."""
        return usage(self.codes)

    def nearest(self, code: int, count: int) -> list[tuple[int, int]]:
        """(image, place) of at most `count` images with a code, those with the nearest encoder's vectors first."""
        images, places = np.nonzero(self.codes == code)
        order = np.argsort(self.distances[images, places], kind="stable")
        place_of: dict[int, int] = {}
        for index in order:
            place_of.setdefault(int(images[index]), int(places[index]))
        return list(place_of.items())[:count]


def use_of_codes(
    composition: Composition,
    variables: Variables,
    key: Key[Array, ""],
    images: Shaped[np.ndarray, "images *stored"],
    labels: Int[np.ndarray, " images"] | None = None,
    in_place: bool = False,
) -> Use:
    """The codes that a model makes of images.

    Args:
        composition: of the run.
        variables: trained.
        key: of all draws.
        images: of a split.
        labels: of the images, if the model gets them.
        in_place: see `Use`.

    Raises:
        UserError: if the model's z are made of no codes.
    """
    if not (codes := composition.posterior.codes):
        raise UserError(f"RUN: expected a model whose z are made of codes; found z of shape {composition.latent_shape}")
    rows = math.prod(codes.shape)

    def look(variables: Variables, number: Any, images: Array, labels: Array | None) -> tuple[Array, Array]:
        draw_key, treatment_key = batch_keys(key, number)
        treated = composition.treat(treatment_key, images)

        def of(model: BoundModel) -> tuple[Array, Array]:
            draw = model.draw(draw_key, treated)
            assert model.codes
            codes_of_z = model.codes(draw.z) if draw.codes is None else draw.codes
            distances = jnp.zeros(codes_of_z.shape) if model.distances is None else model.distances(draw.heads)
            return codes.numbered(codes_of_z).reshape(len(codes_of_z), rows), distances.reshape(len(codes_of_z), rows)

        return composition.apply(variables, of, labels=labels)[0]

    @jax.jit
    def looked(variables: Variables, images: Array, labels: Array | None) -> tuple[Array, Array]:
        return in_batches(partial(look, variables), len(images), images, labels)

    arrays = looked(variables, jnp.asarray(images), None if labels is None else jnp.asarray(labels))
    numbers, distances = map(np.asarray, arrays)
    return Use(numbers, distances, codes.values * (codes.shape[-1] if codes.apart else 1), codes.shape, in_place)


def draw_use(path: Path, use: Use, pictures: Float[np.ndarray, "images height width channels"] | None) -> Picture:
    """Saves a picture of how often codes are used, and of images of some codes, with a frame around their places.

    Args:
        path: of the PNG.
        use: of the codes.
        pictures: the images, in [0, 1]; None for examples that are no images.
    """
    counts, figures = use.counts, use.figures
    names, times = np.unique(use.codes, return_counts=True)
    order = names[np.argsort(-times, kind="stable")]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, SHOWN).round().astype(int))]
    chosen = chosen if pictures is not None else chosen[:0]
    figure = new_figure(11.0, 3.2 + 0.9 * len(chosen))
    grid = figure.add_gridspec(len(chosen) + 3, EXAMPLES + 1)
    axes = figure.add_subplot(grid[:3, :])
    axes.bar(np.arange(1, len(counts) + 1), counts / use.codes.size, width=1.0)
    axes.axhline(1 / use.total, color="black", linewidth=0.8, linestyle="--", label=f"uniform, 1/{use.total:,}")
    axes.set(
        title=f"{figures['codes_used']:.0f} of {use.total:,} codes used, perplexity {figures['perplexity']:.1f}",
        xlabel="codes, the most used first",
        ylabel="part of all places",
        xlim=(0.5, len(counts) + 0.5),
    )
    axes.legend()
    if pictures is None:
        return save_figure(path, figure)
    height, width = pictures.shape[1:3]
    down, right = (*use.places, 1, 1)[:2]
    spatial = use.in_place and not height % down and not width % right
    for row, code in enumerate(chosen.tolist()):
        title = figure.add_subplot(grid[3 + row, 0])
        rank = int(np.flatnonzero(order == code)[0]) + 1
        title.text(1, 0.5, f"code {code}\nrank {rank:,}", ha="right", va="center", fontsize=8)
        title.axis("off")
        for column, (image, place) in enumerate(use.nearest(code, EXAMPLES)):
            axes = figure.add_subplot(grid[3 + row, 1 + column])
            axes.imshow(pictures[image].squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.axis("off")
            if spatial:
                across = math.prod(use.places[2:])
                top, left = divmod(place // across, right)
                tall, wide = height // down, width // right
                frame = {"fill": False, "edgecolor": "tab:orange", "linewidth": 1.5}
                axes.add_patch(rectangle((left * wide - 0.5, top * tall - 0.5), wide, tall, **frame))
    return save_figure(path, figure)


def rectangle(*place: Any, **look: Any) -> Any:
    """A rectangle of matplotlib's, which is imported only for figures."""
    from matplotlib.patches import Rectangle

    return Rectangle(*place, **look)
