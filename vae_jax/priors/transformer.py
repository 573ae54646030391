"""A causal transformer as the prior over codes of any shape."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.posteriors import Codes
from vae_jax.priors.autoregressive import Drawn, Labels, Maps, Network, Pick, affine, prior_of
from vae_jax.priors.base import Prior, codes_in
from vae_jax.shapes import Shapes

DEVIATION = 0.02  # of all weights at the start (GPT-2; Radford et al. 2019): codes are then about equally likely
LEAST_VARIANCE = 1e-5  # added to the variance that a layer norm divides by

Rows = Float[Array, "places batch width"]
Heads = Float[Array, "places batch heads _size"]


@dataclass(frozen=True)
class TransformerOptions:
    """Of transformer.

    Attributes:
        layers: of attention and a perceptron.
        width: of the vectors at a place, a multiple of the heads.
        heads: of the attention.
        feedforward: units of a perceptron's hidden layer, as a multiple of the width.
    """

    layers: Annotated[int, "[1, 256]"] = 2
    width: Annotated[int, "[1, 65536]"] = 96
    heads: Annotated[int, "[1, 1024]"] = 4
    feedforward: Annotated[int, "[1, 64]"] = 4

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"prior.width: expected a multiple of the {self.heads} heads; found {self.width}")


def transformer(options: TransformerOptions, shapes: Shapes) -> Prior:
    """p(k) = Π p(k_i | k_<i) in raster order, by a transformer with causal attention (Vaswani et al. 2017).

    Layer norms stand before attention and perceptron (pre-norm) and before the logits. A place's vector is that of the
    code before it, or a learned beginning, plus a learned vector of its position along every axis of the codes' shape
    (of a map, its row and its column). A label adds a learned vector to all of them. Codes that are apart, as those of
    stages, share vectors: only their positions differ.
    """
    codes = codes_in(shapes, "transformer")
    return prior_of(transformer_of(options, codes, shapes.classes), codes, shapes.classes)


def transformer_of(options: TransformerOptions, codes: Codes, classes: int = 0) -> Network:
    """The network, over codes of any shape."""
    layers, width, heads, hidden = options.layers, options.width, options.heads, options.feedforward * options.width
    shape, places = codes.shape, math.prod(codes.shape)

    def init(key: Key[Array, ""]) -> PyTree:
        tables, weights, positions = jax.random.split(key, 3)
        sizes = {"embedding": (codes.values,), "beginning": ()} | ({"label": (classes,)} if classes else {})
        of_layers = {
            "qkv": (width, 3 * width),
            "attended": (width, width),
            "in": (width, hidden),
            "out": (hidden, width),
        }
        made = {}
        for (name, size), layer_key in zip(of_layers.items(), jax.random.split(weights, 4), strict=True):
            # The sum that layers add to the vectors grows with their number.
            scale = DEVIATION / math.sqrt(2 * layers) if name in ("attended", "out") else DEVIATION
            made[name] = {
                "kernel": scale * jax.random.normal(layer_key, (layers, *size)),
                "bias": jnp.zeros((layers, size[1])),
            }
        made |= {name: _norm((layers, width)) for name in ("before_attention", "before_perceptron")}
        *table_keys, last = jax.random.split(tables, len(sizes) + 1)
        return {
            **{name: _normal(key, (*size, width)) for key, (name, size) in zip(table_keys, sizes.items(), strict=True)},
            "positions": [
                _normal(key, (size, width))
                for key, size in zip(jax.random.split(positions, len(shape)), shape, strict=True)
            ],
            "layers": made,
            "norm": _norm((width,)),
            "logits": {"kernel": _normal(last, (width, codes.values)), "bias": jnp.zeros(codes.values)},
        }

    def embed(params: PyTree, maps: Maps) -> Float[Array, "*places batch width"]:
        return params["embedding"][maps]

    def context(params: PyTree, labels: Labels, count: int) -> Rows:
        """The vectors of positions and labels, which are added to those of codes."""
        added = jnp.zeros((*shape, width))
        for axis, table in enumerate(params["positions"]):
            added = added + table.reshape(*(1,) * axis, len(table), *(1,) * (len(shape) - axis - 1), width)
        added = jnp.broadcast_to(added.reshape(places, 1, width), (places, count, width))
        return added if labels is None else added + params["label"][labels][None]

    def first(params: PyTree, count: int) -> Float[Array, "batch width"]:
        return jnp.broadcast_to(params["beginning"], (count, width))

    def split(rows: Float[Array, "places batch _width"]) -> tuple[Heads, Heads, Heads]:
        q, k, v = jnp.split(rows.reshape(*rows.shape[:2], 3 * heads, width // heads), 3, 2)
        return q, k, v

    def after(layer: PyTree, x: Rows, attended: Heads) -> Rows:
        """The rest of a layer, once attention is known."""
        x = x + affine(layer["attended"], attended.reshape(x.shape))
        hidden = jax.nn.gelu(affine(layer["in"], _normed(layer["before_perceptron"], x)))
        return x + affine(layer["out"], hidden)

    def head(params: PyTree, x: Rows) -> Float[Array, "places batch values"]:
        return affine(params["logits"], _normed(params["norm"], x))

    def logits(params: PyTree, embedded: Float[Array, "*places batch width"], labels: Labels) -> Float[Array, "..."]:
        count = embedded.shape[-2]
        before = embedded.reshape(places, count, width)[:-1]
        x = jnp.concatenate([first(params, count)[None], before]) + context(params, labels, count)
        causal = jnp.tri(places, dtype=bool)

        def further(x: Rows, layer: PyTree) -> tuple[Rows, None]:
            q, k, v = split(affine(layer["qkv"], _normed(layer["before_attention"], x)))
            return after(layer, x, _attention(q, k, v, causal)), None

        return head(params, lax.scan(further, x, params["layers"])[0]).reshape(*shape, count, codes.values)

    def draw(params: PyTree, count: int, labels: Labels, pick: Pick) -> Drawn:
        """Draws place by place and keeps the keys and values of those so far."""

        def place(carry: PyTree, at: PyTree) -> tuple[PyTree, Int[Array, " batch"]]:
            kept, before, total = carry
            number, added = at
            seen = (jnp.arange(places) <= number)[None]

            def further(x: Rows, of_layer: PyTree) -> tuple[Rows, PyTree]:
                layer, (ks, vs) = of_layer
                q, k, v = split(affine(layer["qkv"], _normed(layer["before_attention"], x)))
                ks, vs = (lax.dynamic_update_slice_in_dim(old, new, number, 0) for old, new in ((ks, k), (vs, v)))
                return after(layer, x, _attention(q, ks, vs, seen)), (ks, vs)

            x, kept = lax.scan(further, (before + added)[None], (params["layers"], kept))
            drawn, log_p = pick(number, head(params, x)[0])
            return (kept, embed(params, drawn), total + log_p), drawn

        none = jnp.zeros((layers, places, count, heads, width // heads), params["embedding"].dtype)
        start = (none, none), first(params, count), jnp.zeros(count, none.dtype)
        along = jnp.arange(places), context(params, labels, count)
        (_, _, total), maps = lax.scan(place, start, along)
        return maps.reshape(*shape, count), total

    return Network(init, embed, logits, draw)


def _attention(
    q: Heads,
    k: Float[Array, "kept batch heads _size"],
    v: Float[Array, "kept batch heads _size"],
    seen: Bool[Array, "places kept"],
) -> Heads:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1) to visible places."""
    scores = jnp.einsum("qnhd,knhd->nhqk", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(jnp.broadcast_to(seen, scores.shape), scores, -jnp.inf), -1)
    return jnp.einsum("nhqk,knhd->qnhd", weights, v)


def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return DEVIATION * jax.random.normal(key, shape)


def _norm(shape: tuple[int, ...]) -> PyTree:
    return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}


def _normed(params: PyTree, x: Rows) -> Rows:
    """A layer norm (Ba et al. 2016)."""
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + LEAST_VARIANCE)
    return x * jnp.broadcast_to(params["scale"], x.shape) + jnp.broadcast_to(params["bias"], x.shape)
