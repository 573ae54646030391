"""Convolution and transposed convolution, each the other's adjoint, as matrix products or as XLA's own.

Arrays are features, (tiles, channels, height, width, tile), as layout.py has them.

XLA's own convolution is several times slower inside a compiled loop on a CPU than outside it, so there the same sum
is written as im2col and one matrix product. Strides are removed first by space-to-depth: a convolution of stride s
and kernel k is one of stride 1 and kernel ⌈k/s⌉ over s·s times the channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vae_jax.registry import lookup

Tile = Float[Array, "_channels _height _width tile"]
Features = Float[Array, "tiles _channels _height _width tile"]
Kernel = Float[Array, "side side inner outer"]


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Positions of a kernel along an axis of `size` pixels; 0 or less where it does not fit."""
    return (size + 2 * padding - kernel) // stride + 1


class Convolution(NamedTuple):
    """A pair of linear maps that share one kernel, (side, side, inner, outer).

    Attributes:
        forward: (x, kernel, stride, padding) -> y, from `inner` to `outer` channels, PyTorch's Conv2d.
        transpose: (y, kernel, stride, padding, (height, width)) -> x, from `outer` to `inner` channels, the adjoint
            of `forward` on images of height x width: PyTorch's ConvTranspose2d.
    """

    forward: Callable[..., Any]
    transpose: Callable[..., Any]


# --- As matrix products ----------------------------------------------------------------------------------------------


def _split_kernel(kernel: Kernel, stride: int) -> Float[Array, "taps taps stride stride inner outer"]:
    """The kernel by tap of the stride-1 convolution and by phase within a stride, padded with zeros to whole taps."""
    side, _, inner, outer = kernel.shape
    taps = -(-side // stride)
    missing = taps * stride - side
    kernel = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    return kernel.reshape(taps, stride, taps, stride, inner, outer).transpose(0, 2, 1, 3, 4, 5)


def _join_kernel(blocks: Float[Array, "taps taps stride stride inner outer"], side: int) -> Kernel:
    """The adjoint of `_split_kernel`."""
    taps, _, stride, _, inner, outer = blocks.shape
    kernel = blocks.transpose(0, 2, 1, 3, 4, 5).reshape(taps * stride, taps * stride, inner, outer)
    return kernel[:side, :side]


def _shifts(x: Tile, taps: int) -> Float[Array, "columns positions"]:
    """Every window of taps x taps positions, as columns ordered (tap, tap, channel)."""
    channels, height, width, batch = x.shape
    rows, columns = height - taps + 1, width - taps + 1
    windows = [x[:, i : i + rows, j : j + columns] for i in range(taps) for j in range(taps)]
    return jnp.concatenate(windows).reshape(taps * taps * channels, rows * columns * batch)


def _im2col(x: Tile, side: int, stride: int, padding: int) -> Float[Array, "columns positions"]:
    """The pixels under each position of the kernel, as columns ordered (tap, tap, phase, phase, channel)."""
    channels, height, width, batch = x.shape
    taps = -(-side // stride)
    rows = output_size(height, side, stride, padding) + taps - 1
    columns = output_size(width, side, stride, padding) + taps - 1
    # A negative pad cuts off the pixels that no position of the kernel reaches.
    around = [(padding, rows * stride - height - padding, 0), (padding, columns * stride - width - padding, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    x = x.reshape(channels, rows, stride, columns, stride, batch).transpose(2, 4, 0, 1, 3, 5)
    return _shifts(x.reshape(stride * stride * channels, rows, columns, batch), taps)


def _forward(x: Tile, kernel: Kernel, stride: int, padding: int) -> Tile:
    side, _, _, outer = kernel.shape
    _, height, width, batch = x.shape
    columns = _im2col(x, side, stride, padding)
    blocks = _split_kernel(kernel, stride).reshape(-1, outer)
    size = output_size(height, side, stride, padding), output_size(width, side, stride, padding)
    return (blocks.T @ columns).reshape(outer, *size, batch)


def _kernel_gradient(x: Tile, y: Tile, side: int, stride: int, padding: int) -> Kernel:
    """The gradient of <y, forward(x, kernel)> with respect to the kernel."""
    inner, outer = x.shape[0], y.shape[0]
    taps = -(-side // stride)
    blocks = _im2col(x, side, stride, padding) @ y.reshape(outer, -1).T
    return _join_kernel(blocks.reshape(taps, taps, stride, stride, inner, outer), side)


def _transpose(y: Tile, kernel: Kernel, stride: int, padding: int, size: tuple[int, int]) -> Tile:
    side, _, inner, outer = kernel.shape
    _, height, width, batch = y.shape
    if height == width == 1:
        # One position: its window is the whole result, and nothing overlaps.
        x = (kernel.reshape(-1, outer) @ y.reshape(outer, batch)).reshape(side, side, inner, batch)
        x = x.transpose(2, 0, 1, 3)
    else:
        # col2im without its overlapping sums: each phase of the result gathers the taps that reach it.
        taps = -(-side // stride)
        border = taps - 1
        y = jnp.pad(y, ((0, 0), (border, border), (border, border), (0, 0)))
        rows, columns = height + border, width + border
        blocks = _split_kernel(kernel, stride)[::-1, ::-1]  # as a true convolution flips its kernel
        blocks = blocks.transpose(2, 3, 4, 0, 1, 5).reshape(stride * stride * inner, taps * taps * outer)
        x = (blocks @ _shifts(y, taps)).reshape(stride, stride, inner, rows, columns, batch)
        x = x.transpose(2, 3, 0, 4, 1, 5).reshape(inner, rows * stride, columns * stride, batch)
    # Cut the padding off; where the last rows were reached by no position of the kernel, they are 0.
    around = [(-padding, size[i] + padding - x.shape[1 + i], 0) for i in range(2)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def _for_tiles(function: Callable[..., tuple[Tile, Any]], *arrays: Features) -> tuple[Features, Any]:
    """`function` of each tile in turn; its first result for all tiles, its second summed over them."""
    if len(arrays[0]) == 1:
        result, total = function(*(array[0] for array in arrays))
        return result[None], total
    _, parts = jax.eval_shape(function, *(array[0] for array in arrays))
    # Summed in float32 at least, and rounded once.
    zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, jnp.promote_types(part.dtype, jnp.float32)), parts)

    def body(total: Any, tile: tuple[Tile, ...]) -> tuple[Any, Tile]:
        result, part = function(*tile)
        return jax.tree.map(lambda sum, part: sum + part.astype(sum.dtype), total, part), result

    total, results = lax.scan(body, zeros, arrays)
    return results, jax.tree.map(lambda sum, part: sum.astype(part.dtype), total, parts)


# One rule serves both: the gradient with respect to the input of each is the other. The precision of products, which
# the caller has set around the forward pass, is kept for the backward pass, which jax traces later.


def _products() -> str | None:
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def _matmul_forward(x: Features, kernel: Kernel, stride: int, padding: int) -> Features:
    return _forward_rule(x, kernel, stride, padding, _products())


def _matmul_transpose(y: Features, kernel: Kernel, stride: int, padding: int, size: tuple[int, int]) -> Features:
    return _transpose_rule(y, kernel, stride, padding, size, _products())


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _forward_rule(x: Features, kernel: Kernel, stride: int, padding: int, precision: str | None) -> Features:
    with jax.default_matmul_precision(precision):
        return _for_tiles(lambda x: (_forward(x, kernel, stride, padding), ()), x)[0]


def _forward_fwd(x, kernel, stride, padding, precision):
    return _forward_rule(x, kernel, stride, padding, precision), (x, kernel)


def _forward_bwd(stride, padding, precision, residuals, dy):
    x, kernel = residuals

    def gradients(x, dy):
        dx = _transpose(dy, kernel, stride, padding, x.shape[1:3])
        return dx, _kernel_gradient(x, dy, kernel.shape[0], stride, padding)

    with jax.default_matmul_precision(precision):
        return _for_tiles(gradients, x, dy)


_forward_rule.defvjp(_forward_fwd, _forward_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _transpose_rule(
    y: Features, kernel: Kernel, stride: int, padding: int, size: tuple[int, int], precision: str | None
) -> Features:
    with jax.default_matmul_precision(precision):
        return _for_tiles(lambda y: (_transpose(y, kernel, stride, padding, size), ()), y)[0]


def _transpose_fwd(y, kernel, stride, padding, size, precision):
    return _transpose_rule(y, kernel, stride, padding, size, precision), (y, kernel)


def _transpose_bwd(stride, padding, size, precision, residuals, dx):
    y, kernel = residuals

    def gradients(y, dx):
        return _forward(dx, kernel, stride, padding), _kernel_gradient(dx, y, kernel.shape[0], stride, padding)

    with jax.default_matmul_precision(precision):
        return _for_tiles(gradients, y, dx)


_transpose_rule.defvjp(_transpose_fwd, _transpose_bwd)

# --- As XLA's own convolution ----------------------------------------------------------------------------------------

_DIMENSIONS = ("CHWN", "HWIO", "CHWN")


def _native_forward(x: Features, kernel: Kernel, stride: int, padding: int) -> Features:
    around = [(padding, padding)] * 2

    def forward(x: Tile) -> Tile:
        return lax.conv_general_dilated(x, kernel, (stride, stride), around, dimension_numbers=_DIMENSIONS)

    return jax.vmap(forward)(x)


def _native_transpose(y: Features, kernel: Kernel, stride: int, padding: int, size: tuple[int, int]) -> Features:
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


CONVOLUTIONS = {
    "matmul": Convolution(_matmul_forward, _matmul_transpose),
    "native": Convolution(_native_forward, _native_transpose),
}


def choose(name: str) -> Convolution:
    """The pair called `name`; "auto" is matmul on a CPU and native elsewhere.

    The choice falls when a network is built, not inside the compiled program: so the native pair keeps all of JAX's
    differentiation modes, of which the matmul pair's custom rule has only the reverse.

    Raises:
        UserError: if `name` is neither "auto" nor a registered pair.
    """
    if name == "auto":
        name = "matmul" if jax.default_backend() == "cpu" else "native"
    return lookup(CONVOLUTIONS, name, "model.convolution")
