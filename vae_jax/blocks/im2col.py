"""A convolution of one tile of images as one matrix product of columns, and its two gradients as products."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Tile = Float[Array, "_channels _height _width tile"]
Features = Float[Array, "tiles _channels _height _width tile"]
Kernel = Float[Array, "_side _side2 inner outer"]
Pair = tuple[int, int]  # of the vertical and the horizontal axis


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Positions of a kernel along an axis of `size` pixels; 0 or less if it does not fit."""
    return (size + 2 * padding - kernel) // stride + 1


# --- As matrix products ----------------------------------------------------------------------------------------------


def _taps(side: Pair, stride: Pair) -> Pair:
    """The side of the kernel of stride 1."""
    return -(-side[0] // stride[0]), -(-side[1] // stride[1])


def _split_kernel(kernel: Kernel, stride: Pair) -> Float[Array, "_taps _taps2 _stride _stride2 inner outer"]:
    """The kernel by tap of the stride-1 convolution and by phase within a stride, padded with zeros to whole taps."""
    *side, inner, outer = kernel.shape
    taps = _taps((side[0], side[1]), stride)
    missing = [(0, taps[i] * stride[i] - side[i]) for i in range(2)]
    kernel = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    return kernel.reshape(taps[0], stride[0], taps[1], stride[1], inner, outer).transpose(0, 2, 1, 3, 4, 5)


def _join_kernel(blocks: Float[Array, "_taps _taps2 _stride _stride2 inner outer"], side: Pair) -> Kernel:
    """The adjoint of `_split_kernel`."""
    rows, columns, *stride, inner, outer = blocks.shape
    kernel = blocks.transpose(0, 2, 1, 3, 4, 5).reshape(rows * stride[0], columns * stride[1], inner, outer)
    return kernel[: side[0], : side[1]]


def _shifts(x: Tile, taps: Pair) -> Float[Array, "columns positions"]:
    """Every window of taps positions, as columns ordered (tap, tap, channel)."""
    channels, height, width, batch = x.shape
    rows, columns = height - taps[0] + 1, width - taps[1] + 1
    windows = [x[:, i : i + rows, j : j + columns] for i in range(taps[0]) for j in range(taps[1])]
    return jnp.concatenate(windows).reshape(taps[0] * taps[1] * channels, rows * columns * batch)


def _im2col(x: Tile, taps: Pair, stride: Pair, low: Pair, out: Pair) -> Float[Array, "columns positions"]:
    """The pixels under the kernel's positions, as columns ordered (tap, tap, phase, phase, channel)."""
    channels, height, width, batch = x.shape
    rows, columns = out[0] + taps[0] - 1, out[1] + taps[1] - 1
    # A negative pad cuts off the pixels that no position of the kernel reaches.
    around = [(low[0], rows * stride[0] - height - low[0], 0), (low[1], columns * stride[1] - width - low[1], 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    x = x.reshape(channels, rows, stride[0], columns, stride[1], batch).transpose(2, 4, 0, 1, 3, 5)
    return _shifts(x.reshape(stride[0] * stride[1] * channels, rows, columns, batch), taps)


def tile_forward(x: Tile, kernel: Kernel, stride: Pair, low: Pair, out: Pair) -> Tile:
    *side, _, outer = kernel.shape
    columns = _im2col(x, _taps((side[0], side[1]), stride), stride, low, out)
    blocks = _split_kernel(kernel, stride).reshape(-1, outer)
    return (blocks.T @ columns).reshape(outer, *out, x.shape[-1])


def tile_kernel_gradient(x: Tile, y: Tile, side: Pair, stride: Pair, low: Pair) -> Kernel:
    """The gradient of <y, forward(x, kernel)> with respect to the kernel."""
    inner, (outer, *out, _) = x.shape[0], y.shape
    taps = _taps(side, stride)
    blocks = _im2col(x, taps, stride, low, (out[0], out[1])) @ y.reshape(outer, -1).T
    return _join_kernel(blocks.reshape(*taps, *stride, inner, outer), side)


def tile_transpose(y: Tile, kernel: Kernel, stride: Pair, low: Pair, size: Pair) -> Tile:
    *side, inner, outer = kernel.shape
    _, height, width, batch = y.shape
    if height == width == 1:
        # One position: its window is the whole result, and nothing overlaps.
        x = (kernel.reshape(-1, outer) @ y.reshape(outer, batch)).reshape(*side, inner, batch)
        x = x.transpose(2, 0, 1, 3)
    else:
        # col2im without its overlapping sums: a phase of the result gathers the taps that reach it.
        taps = _taps((side[0], side[1]), stride)
        border = taps[0] - 1, taps[1] - 1
        y = jnp.pad(y, ((0, 0), (border[0], border[0]), (border[1], border[1]), (0, 0)))
        rows, columns = height + border[0], width + border[1]
        blocks = _split_kernel(kernel, stride)[::-1, ::-1]  # as a true convolution flips its kernel
        blocks = blocks.transpose(2, 3, 4, 0, 1, 5).reshape(stride[0] * stride[1] * inner, taps[0] * taps[1] * outer)
        x = (blocks @ _shifts(y, taps)).reshape(*stride, inner, rows, columns, batch)
        x = x.transpose(2, 3, 0, 4, 1, 5).reshape(inner, rows * stride[0], columns * stride[1], batch)
    # Cut the padding off. Last rows that no position of the kernel reaches are 0.
    around = [(-low[i], size[i] + low[i] - x.shape[1 + i], 0) for i in range(2)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
