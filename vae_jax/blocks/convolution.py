"""Convolution and transposed convolution, a pair of adjoint maps, as matrix products or as XLA's own.

Arrays are features, (tiles, channels, height, width, tile), see tiles.py.

XLA's own convolution is several times slower inside a compiled loop on a CPU than outside it, and cuDNN's on a GPU is
made for larger images and more channels. The same sum is therefore written as im2col and one matrix product.
Space-to-depth removes strides first: a convolution of stride s and kernel k is one of stride 1 and kernel ⌈k/s⌉ over
s·s times the channels.

The matrix products are three JAX primitives, since no custom rule serves both of its differentiation modes. All three
are linear in either argument, and the transposes of one are the other two. Reverse mode therefore never meets the
overlapping sums that differentiating im2col would bring; forward mode, and any mixture of the two, works as well.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from vae_jax.blocks.im2col import (
    Features,
    Kernel,
    Pair,
    Tile,
    output_size,
    tile_forward,
    tile_kernel_gradient,
    tile_transpose,
)
from vae_jax.device.platforms import current
from vae_jax.registry import lookup


class Convolution(NamedTuple):
    """A pair of linear maps that share one kernel, (side, side, inner, outer).

    Attributes:
        forward: (x, kernel, stride, padding) -> y, from `inner` to `outer` channels, PyTorch's Conv2d.
        transpose: (y, kernel, stride, padding, (height, width)) -> x, from `outer` to `inner` channels, the adjoint
            of `forward` on images of height x width: PyTorch's ConvTranspose2d.
    """

    forward: Callable[..., Any]
    transpose: Callable[..., Any]


def _for_tiles(function: Callable[..., tuple[Any, Any]], *arrays: Features) -> tuple[Any, Any]:
    """`function` of one tile after the other, so that its arrays stay in a CPU's cache.

    Its first results are stacked over tiles. Its second ones are summed, in float32 at least, and rounded once.
    """
    if len(arrays[0]) == 1:
        result, total = function(*(array[0] for array in arrays))
        return jax.tree.map(lambda array: array[None], result), total
    _, parts = jax.eval_shape(function, *(array[0] for array in arrays))
    zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, jnp.promote_types(part.dtype, jnp.float32)), parts)

    def body(total: Any, tile: tuple[Tile, ...]) -> tuple[Any, Any]:
        result, part = function(*tile)
        return jax.tree.map(lambda sum, part: sum + part.astype(sum.dtype), total, part), result

    total, results = lax.scan(body, zeros, arrays)
    return results, jax.tree.map(lambda sum, part: sum.astype(part.dtype), total, parts)


# What the primitives compute. `precision` is that of products, as the caller has set it around the forward pass: the
# other passes keep it, which jax traces later. `low` is the padding above and to the left of an image.


def _compute_forward(
    x: Features, kernel: Kernel, *, stride: Pair, low: Pair, out: Pair, precision: str | None
) -> Features:
    with jax.default_matmul_precision(precision):
        return _for_tiles(lambda tile: (tile_forward(tile, kernel, stride, low, out), ()), x)[0]


def _compute_transpose(
    y: Features, kernel: Kernel, *, stride: Pair, low: Pair, size: Pair, precision: str | None
) -> Features:
    with jax.default_matmul_precision(precision):
        return _for_tiles(lambda tile: (tile_transpose(tile, kernel, stride, low, size), ()), y)[0]


def _compute_kernel_gradient(
    x: Features, y: Features, *, side: Pair, stride: Pair, low: Pair, precision: str | None
) -> Kernel:
    with jax.default_matmul_precision(precision):
        return _for_tiles(lambda x, y: ((), tile_kernel_gradient(x, y, side, stride, low)), x, y)[1]


def _primitive(
    name: str, compute: Callable[..., Array], shape: Callable[..., tuple[int, ...]], of_images: bool
) -> Primitive:
    """A primitive of two arguments, without its transposes.

    Args:
        name: of the primitive.
        compute: computes it.
        shape: gives the result's shape from the arguments' shapes.
        of_images: whether the first argument is images, the second a kernel, and the result one image for each.
    """
    primitive = Primitive(f"vae_jax_{name}")

    def type_of(first: Any, second: Any, **params: Any) -> Any:
        dtype = jnp.promote_types(first.dtype, second.dtype)
        return ShapedArray(shape(first.shape, second.shape, **params), dtype)

    def batched(arguments: Any, axes: Any, **params: Any) -> Any:
        first, second = arguments
        if axes[1] is None and of_images:
            first = jnp.moveaxis(first, axes[0], 0)
            if first.shape[-1] >= (current().tile or math.inf) / 2:  # further images are further tiles
                result = primitive.bind(first.reshape(-1, *first.shape[2:]), second, **params)
                return result.reshape(*first.shape[:2], *result.shape[1:]), 0
            # Small tiles are joined to one larger tile.
            first = jnp.moveaxis(first, 0, -2)
            result = primitive.bind(first.reshape(*first.shape[:-2], -1), second, **params)
            return result.reshape(*result.shape[:-1], *first.shape[-2:]), result.ndim - 1
        return jax.vmap(partial(compute, **params), axes)(first, second), 0

    params = [
        name
        for name, parameter in inspect.signature(compute).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    primitive.def_impl(jax.jit(compute, static_argnames=params))
    primitive.def_abstract_eval(type_of)
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[primitive] = batched
    return primitive


_forward_p = _primitive(
    "forward", _compute_forward, lambda x, kernel, *, out, **_: (x[0], kernel[3], *out, x[4]), of_images=True
)
_transpose_p = _primitive(
    "transpose", _compute_transpose, lambda y, kernel, *, size, **_: (y[0], kernel[2], *size, y[4]), of_images=True
)
_kernel_gradient_p = _primitive(
    "kernel_gradient", _compute_kernel_gradient, lambda x, y, *, side, **_: (*side, x[1], y[1]), of_images=False
)
# What a primitive stands for, for code that reads traced programs.
COMPUTED_BY = {
    _forward_p: _compute_forward,
    _transpose_p: _compute_transpose,
    _kernel_gradient_p: _compute_kernel_gradient,
}

# The transposes: (cotangent, first, second) -> the cotangent of the first argument, then of the second.
ad.defbilinear(
    _forward_p,
    lambda y, x, kernel, *, out, **same: _transpose_p.bind(y, kernel, size=x.aval.shape[2:4], **same),
    lambda y, x, kernel, *, out, **same: _kernel_gradient_p.bind(x, y, side=kernel.aval.shape[:2], **same),
)
ad.defbilinear(
    _transpose_p,
    lambda x, y, kernel, *, size, **same: _forward_p.bind(x, kernel, out=y.aval.shape[2:4], **same),
    lambda x, y, kernel, *, size, **same: _kernel_gradient_p.bind(x, y, side=kernel.aval.shape[:2], **same),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda kernel, x, y, *, side, **same: _transpose_p.bind(y, kernel, size=x.aval.shape[2:4], **same),
    lambda kernel, x, y, *, side, **same: _forward_p.bind(x, kernel, out=y.aval.shape[2:4], **same),
)


# Reverse mode wants both cotangents of a convolution. One loop over the tiles computes them and reads a tile of the
# cotangent once. For that, the tangent of both arguments is one primitive, linear in the two tangents.


def _pull_forward(
    dy: Features, x: Features, kernel: Kernel, *, stride: Pair, low: Pair, precision: str | None, **_: Any
) -> tuple[Features, Kernel]:
    """The cotangents of `_forward_p`'s arguments."""

    def tile(x: Tile, dy: Tile) -> tuple[Tile, Kernel]:
        dx = tile_transpose(dy, kernel, stride, low, (x.shape[1], x.shape[2]))
        return dx, tile_kernel_gradient(x, dy, (kernel.shape[0], kernel.shape[1]), stride, low)

    with jax.default_matmul_precision(precision):
        return _for_tiles(tile, x, dy)


def _pull_transpose(
    dx: Features, y: Features, kernel: Kernel, *, stride: Pair, low: Pair, precision: str | None, **_: Any
) -> tuple[Features, Kernel]:
    """The cotangents of `_transpose_p`'s arguments."""

    def tile(y: Tile, dx: Tile) -> tuple[Tile, Kernel]:
        dy = tile_forward(dx, kernel, stride, low, (y.shape[1], y.shape[2]))
        return dy, tile_kernel_gradient(dx, y, (kernel.shape[0], kernel.shape[1]), stride, low)

    with jax.default_matmul_precision(precision):
        return _for_tiles(tile, y, dx)


def _both_at_once(primitive: Primitive, pull: Callable[..., Any]) -> None:
    """Makes reverse mode compute both cotangents of a primitive by `pull`, if there is more than one tile."""
    tangent_p, pull_p = Primitive(f"{primitive.name}_tangent"), Primitive(f"{primitive.name}_cotangents")
    pull_p.multiple_results = True

    def tangent(da: Array, db: Array, a: Array, b: Array, **params: Any) -> Array:
        return primitive.bind(da, b, **params) + primitive.bind(a, db, **params)

    def cotangents(dout: Array, a: Array, b: Array, **params: Any) -> list[Array]:
        return list(jax.linear_transpose(lambda a: primitive.bind(a, b, **params), a)(dout)) + list(
            jax.linear_transpose(lambda b: primitive.bind(a, b, **params), b)(dout)
        )

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        (a, b), (da, db) = primals, tangents
        out = primitive.bind(a, b, **params)
        if isinstance(da, ad.Zero) or isinstance(db, ad.Zero) or len(a) == 1:
            parts = [] if isinstance(da, ad.Zero) else [primitive.bind(da, b, **params)]
            parts += [] if isinstance(db, ad.Zero) else [primitive.bind(a, db, **params)]
            return out, sum(parts[1:], parts[0])
        return out, tangent_p.bind(da, db, a, b, **params)

    def transpose(dout: Any, da: Any, db: Any, a: Any, b: Any, **params: Any) -> Any:
        wanted = [ad.is_undefined_primal(argument) for argument in (da, db)]
        if isinstance(dout, ad.Zero):
            both = [ad.Zero(x.aval) if is_wanted else None for x, is_wanted in zip((da, db), wanted, strict=True)]
        elif all(wanted):
            both = pull_p.bind(dout, a, b, **params)
        else:  # a tangent that is 0 may be a known array here, in a loop for example
            both = cotangents(dout, a, b, **params)
        return (
            *(cotangent if is_wanted else None for cotangent, is_wanted in zip(both, wanted, strict=True)),
            None,
            None,
        )

    def differentiated(function: Callable[..., Any]) -> Callable[..., Any]:
        """The forward-mode rule of a function that calls the primitive."""
        return lambda primals, tangents, **params: jax.jvp(
            partial(function, **params), primals, tuple(map(ad.instantiate_zeros, tangents))
        )

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[tangent_p] = transpose
    for part_p, function, computed in ((tangent_p, tangent, tangent), (pull_p, cotangents, pull)):
        has_many_results = part_p.multiple_results
        part_p.def_impl(partial(_compiled, computed))
        mlir.register_lowering(part_p, mlir.lower_fun(computed, multiple_results=has_many_results))
        ad.primitive_jvps[part_p] = differentiated(function)
        batching.primitive_batchers[part_p] = partial(_batched, function, has_many_results)
    tangent_p.def_abstract_eval(lambda da, db, a, b, **params: primitive.abstract_eval(a, b, **params)[0])
    pull_p.def_abstract_eval(lambda dout, a, b, **params: (a, b))
    COMPUTED_BY.update({tangent_p: tangent, pull_p: pull})


def _compiled(function: Callable[..., Any], *arrays: Array, **params: Any) -> Any:
    return jax.jit(partial(function, **params))(*arrays)


def _batched(function: Callable[..., Any], many: bool, arrays: Any, axes: Any, **params: Any) -> Any:
    results = jax.vmap(partial(function, **params), tuple(axes))(*arrays)
    return results, [0] * len(results) if many else 0


_both_at_once(_forward_p, _pull_forward)
_both_at_once(_transpose_p, _pull_transpose)


def _products() -> str | None:
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def matmul_forward(x: Features, kernel: Kernel, stride: Pair, low: Pair, out: Pair) -> Features:
    """A convolution to images of size `out`, with `low` zeros above and left of x and as many beyond it as needed."""
    return _forward_p.bind(x, kernel, stride=stride, low=low, out=out, precision=_products())


def matmul_transpose(y: Features, kernel: Kernel, stride: Pair, low: Pair, size: Pair) -> Features:
    """The adjoint of `matmul_forward`, to images of `size`."""
    return _transpose_p.bind(y, kernel, stride=stride, low=low, size=size, precision=_products())


def _matmul_forward(x: Features, kernel: Kernel, stride: int, padding: int) -> Features:
    side = kernel.shape[0]
    out = output_size(x.shape[2], side, stride, padding), output_size(x.shape[3], side, stride, padding)
    return matmul_forward(x, kernel, (stride, stride), (padding, padding), out)


def _matmul_transpose(y: Features, kernel: Kernel, stride: int, padding: int, size: Pair) -> Features:
    return matmul_transpose(y, kernel, (stride, stride), (padding, padding), size)


# --- As XLA's own convolution ----------------------------------------------------------------------------------------

_DIMENSIONS = ("CHWN", "HWIO", "CHWN")


def _native_forward(x: Features, kernel: Kernel, stride: int, padding: int) -> Features:
    around = [(padding, padding)] * 2

    def forward(x: Tile) -> Tile:
        return lax.conv_general_dilated(x, kernel, (stride, stride), around, dimension_numbers=_DIMENSIONS)

    return jax.vmap(forward)(x)


def _native_transpose(y: Features, kernel: Kernel, stride: int, padding: int, size: Pair) -> Features:
    side = kernel.shape[0]
    around = []
    for i in range(2):
        reached = (y.shape[2 + i] - 1) * stride + side - 2 * padding
        around.append((side - 1 - padding, side - 1 - padding + size[i] - reached))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)

    def transpose(y: Tile) -> Tile:
        return lax.conv_general_dilated(
            y, flipped, (1, 1), around, lhs_dilation=(stride, stride), dimension_numbers=_DIMENSIONS
        )

    return jax.vmap(transpose)(y)


def is_slow_in_loops(lowered: jax.stages.Lowered) -> bool:
    """Whether a program has XLA's own convolution on a CPU, which is several times slower inside a compiled loop.

    Convolutions of `vae_jax.layers` are not (github.com/jax-ml/jax/issues/12868).
    """
    return current().slow_native_loops and "stablehlo.convolution" in lowered.as_text()


CONVOLUTIONS = {
    "matmul": Convolution(_matmul_forward, _matmul_transpose),
    "native": Convolution(_native_forward, _native_transpose),
}


def choose(name: str) -> Convolution:
    """The pair called `name`; "auto" is the platform's.

    Raises:
        UserError: if `name` is neither "auto" nor a registered pair.
    """
    if name == "auto":
        name = current().convolution
    return lookup(CONVOLUTIONS, name, "model.convolution")
