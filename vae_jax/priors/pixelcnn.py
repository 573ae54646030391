"""A gated PixelCNN as the prior over a map of codes."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.posteriors import Codes
from vae_jax.priors.autoregressive import Drawn, Labels, Maps, Network, Pick, affine, prior_of
from vae_jax.priors.base import Prior, codes_in
from vae_jax.shapes import Shapes

LOGITS_DEVIATION = 0.02  # of the last weights at the start, so that all codes are about as likely
VERTICAL, HORIZONTAL = range(2)  # the stacks

Features = Float[Array, "_rows _columns batch _channels"]


@dataclass(frozen=True)
class PixelCNNOptions:
    """Of pixelcnn.

    Attributes:
        layers: gated layers; null for as many as let every place see all places before it: on a map of s places a
            side (s − 1)/((kernel − 1)/2), rounded up.
        channels: of each of the two stacks.
        kernel: places along a side of a convolution's kernel, an odd number.
    """

    layers: Annotated[int | None, "[1, 256]"] = None
    channels: Annotated[int, "[1, 65536]"] = 64
    kernel: Annotated[int, "[3, 63]"] = 3

    def __post_init__(self):
        if self.kernel % 2 == 0:
            raise UserError(f"prior.kernel: expected an odd number; found {self.kernel}")


def pixelcnn(options: PixelCNNOptions, shapes: Shapes) -> Prior:
    """p(k) = Π p(k_i | k_<i) in raster order, by a gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328).

    A code enters as a learned vector. The vertical stack sees the rows above a place, and the horizontal one its row so
    far and the vertical stack: between them there is no blind spot. Both have gates, tanh(a)·σ(b), and a label adds a
    learned vector to a and b.

    Raises:
        UserError: if the codes are no map of rows and columns.
    """
    codes = codes_in(shapes, "pixelcnn")
    if len(codes.shape) != 2 or codes.apart:
        description = f"codes of shape {codes.shape}{', of stages' if codes.apart else ''}"
        raise UserError(f"prior.name: expected transformer with {description}, no map (height, width); found pixelcnn")
    return prior_of(pixelcnn_of(options, codes, shapes.classes), codes, shapes.classes)


def pixelcnn_of(options: PixelCNNOptions, codes: Codes, classes: int = 0) -> Network:
    """The network of maps (height, width)."""
    channels, kernel, half = options.channels, options.kernel, options.kernel // 2
    height, width = codes.shape
    depth = options.layers or max(1, -(-(max(codes.shape) - 1) // half))

    def init(key: Key[Array, ""]) -> PyTree:
        table, first, further, hidden, last = jax.random.split(key, 5)
        return {
            "embedding": jax.random.normal(table, (codes.values, channels)),
            "first": init_layer(first, half),
            "layers": jax.vmap(lambda key: init_layer(key, half + 1))(jax.random.split(further, depth - 1)),
            "hidden": {"kernel": _normal(hidden, (channels, 2 * channels)), "bias": jnp.zeros(2 * channels)},
            "logits": {
                "kernel": LOGITS_DEVIATION * jax.random.normal(last, (2 * channels, codes.values)),
                "bias": jnp.zeros(codes.values),
            },
        }

    def init_layer(key: Key[Array, ""], reach: int) -> PyTree:
        """A layer whose kernels see `reach` rows and columns, which in the first layer exclude the place's own."""
        rows, columns, between, out = jax.random.split(key, 4)
        made = {
            "vertical": _normal(rows, (reach, kernel * channels, 2 * channels), reach * kernel * channels),
            "horizontal": _normal(columns, (reach * channels, 2 * channels)),
            "between": _normal(between, (2 * channels, 2 * channels)),
            "out": _normal(out, (channels, channels)),
            "bias": jnp.zeros((2, 2 * channels)),
        }
        return {**made, "label": jnp.zeros((classes, 2, 2 * channels))} if classes else made

    def embed(params: PyTree, maps: Maps) -> Float[Array, "*places batch channels"]:
        return params["embedding"][maps]

    # XLA's own convolution is several times slower inside a compiled loop on a CPU, and a mask would make half of its
    # products zeros. So the maps are shifted, and only visible places are multiplied.

    def vertical(layer: PyTree, rows: Features, labels: Labels) -> Features:
        """The vertical stack before its gate: one row for every window of the kernel's rows."""
        reach = len(layer["vertical"])
        wide = jnp.pad(rows, ((0, 0), (half, half), (0, 0), (0, 0)))
        wide = jnp.concatenate([wide[:, i : i + width] for i in range(kernel)], -1)
        made = len(rows) - reach + 1
        parts = [wide[i : i + made] @ layer["vertical"][i] for i in range(reach)]
        return _with_label(sum(parts[1:], parts[0]), layer, VERTICAL, labels)

    def horizontal(layer: PyTree, columns: Features, above: Features, labels: Labels) -> Features:
        """The horizontal stack before its gate: one column a window of columns; `above` is `vertical`'s result."""
        made = above.shape[1]
        seen = [columns[:, i : i + made] for i in range(columns.shape[1] - made + 1)]
        x = jnp.concatenate(seen, -1) @ layer["horizontal"] + above @ layer["between"]
        return _with_label(x, layer, HORIZONTAL, labels)

    def head(params: PyTree, x: Features) -> Features:
        return affine(params["logits"], jax.nn.relu(affine(params["hidden"], jax.nn.relu(x))))

    def logits(params: PyTree, embedded: Features, labels: Labels) -> Features:
        first = params["first"]
        above = vertical(first, _after_zeros(embedded, half, 0)[:-1], labels)
        here = horizontal(first, _after_zeros(embedded, half, 1)[:, :-1], above, labels)

        def further(stacks: tuple[Features, Features], layer: PyTree) -> tuple[tuple[Features, Features], None]:
            v, h = stacks
            above = vertical(layer, _after_zeros(v, half, 0), labels)
            here = horizontal(layer, _after_zeros(h, half, 1), above, labels)
            return (_gated(above), h + _gated(here) @ layer["out"]), None

        # No residual around the first layer: it would carry the very code that is to be predicted.
        start = _gated(above), _gated(here) @ first["out"]
        return head(params, lax.scan(further, start, params["layers"])[0][1])

    def draw(params: PyTree, count: int, labels: Labels, pick: Pick) -> Drawn:
        """Draws row by row, since a row's vertical stack depends on rows above only; keeps what later places see."""
        first, layers = params["first"], params["layers"]
        dtype = params["embedding"].dtype

        def row(carry: PyTree, numbers: Int[Array, " width"]) -> tuple[PyTree, Int[Array, "width batch"]]:
            codes_above, kept, total = carry

            def further(v: Features, of_layer: tuple[PyTree, Features]) -> tuple[Features, tuple[Features, Features]]:
                layer, rows = of_layer
                rows = jnp.concatenate([rows, v])
                above = vertical(layer, rows, labels)
                return _gated(above), (above, rows[1:])

            above = vertical(first, codes_above, labels)
            _, (further_above, kept) = lax.scan(further, _gated(above), (layers, kept))
            none = jnp.zeros((1, half, count, channels), dtype)
            start = none, jnp.zeros((len(further_above), *none.shape), dtype), total
            by_column = jnp.moveaxis(above, 1, 0)[:, :, None], jnp.moveaxis(further_above, 2, 0)[:, :, :, None]
            (_, _, total), drawn = lax.scan(column, start, (numbers, *by_column))
            return (jnp.concatenate([codes_above[1:], embed(params, drawn)[None]]), kept, total), drawn

        def column(carry: PyTree, at: PyTree) -> tuple[PyTree, Int[Array, " batch"]]:
            codes_left, kept, total = carry
            number, above, further_above = at

            def further(h: Features, of_layer: tuple[PyTree, Features, Features]) -> tuple[Features, Features]:
                layer, columns, above = of_layer
                columns = jnp.concatenate([columns, h], 1)
                here = horizontal(layer, columns, above, labels)
                return h + _gated(here) @ layer["out"], columns[:, 1:]

            h = _gated(horizontal(first, codes_left, above, labels)) @ first["out"]
            h, kept = lax.scan(further, h, (layers, kept, further_above))
            drawn, log_p = pick(number, head(params, h)[0, 0])
            left = jnp.concatenate([codes_left[:, 1:], embed(params, drawn)[None, None]], 1)
            return (left, kept, total + log_p), drawn

        none = jnp.zeros((half, width, count, channels), dtype)
        start = none, jnp.zeros((depth - 1, *none.shape), dtype), jnp.zeros(count, dtype)
        (_, _, total), maps = lax.scan(row, start, jnp.arange(height * width).reshape(height, width))
        return maps, total

    return Network(init, embed, logits, draw)


def _normal(key: Key[Array, ""], shape: tuple[int, ...], inputs: int | None = None) -> Array:
    """Normal with variance 1/fan-in (LeCun et al. 1998)."""
    return jax.random.normal(key, shape) / math.sqrt(inputs or shape[0])


def _after_zeros(x: Features, count: int, axis: int) -> Features:
    """The maps with `count` zeros before an axis."""
    return jnp.pad(x, [(count if i == axis else 0, 0) for i in range(x.ndim)])


def _gated(x: Features) -> Features:
    a, b = jnp.split(x, 2, -1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def _with_label(x: Features, layer: PyTree, stack: int, labels: Labels) -> Features:
    """x plus the bias of a stack's gate and the label's vector."""
    x = x + jnp.broadcast_to(layer["bias"][stack], x.shape)
    return x if labels is None else x + jnp.broadcast_to(layer["label"][labels, stack], x.shape)
