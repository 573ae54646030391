"""Convolutions for networks of your own: Flax's layers, fast inside the compiled training loop.

`Conv` and `ConvTranspose` replace those of `flax.linen`: they have the same arguments, parameters, names and
initialisers, and compute the same. XLA's own convolution, which Flax's layers call, is several times slower inside a
compiled loop on a CPU, and slow for small networks on a GPU; there these layers call the matrix products of
`vae_jax.blocks.convolution`. Other devices, and cases outside that pair (other than two dimensions, dilated kernels,
feature groups), are left to XLA's.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import canonicalize_padding
from jax import lax
from jaxtyping import Array

from vae_jax.blocks.convolution import CONVOLUTIONS, choose, matmul_forward, matmul_transpose
from vae_jax.blocks.tiles import to_features, to_images
from vae_jax.errors import UserError

__all__ = ["Conv", "ConvTranspose"]


def convolve(
    images: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **more: Any,
) -> Array:
    """`lax.conv_general_dilated` of images (batch, height, width, channels), as matrix products if they are faster.

    Args:
        images: with the batch first and the channels last.
        kernel: (height, width, inputs, outputs).
        window_strides: of the kernel's positions.
        padding: "SAME", "VALID" or (low, high) for each axis.
        lhs_dilation: strides of the transposed convolution that this is, in which the kernel moves by single pixels.
        rhs_dilation: of the kernel.
        dimension_numbers: of the layout above, as flax.linen gives them.
        feature_group_count: how many groups of channels are separate.
        precision: see `jax.lax.Precision`.
        more: further arguments of `lax.conv_general_dilated`.
    """
    strides, dilation = tuple(window_strides), tuple(lhs_dilation or (1,) * (images.ndim - 2))
    plain = set(rhs_dilation or (1,)) == {1} and feature_group_count == 1 and not any(more.values())
    plain = plain and (precision is None or isinstance(precision, str | lax.Precision))

    def native() -> Array:
        arguments = images, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count
        return lax.conv_general_dilated(*arguments, precision=precision, **more)

    if images.ndim != 4 or not plain or (dilation != (1, 1) and strides != (1, 1)) or not _by_products():
        return native()
    side = kernel.shape[0], kernel.shape[1]
    size = tuple((images.shape[1 + i] - 1) * dilation[i] + 1 for i in range(2))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, side, strides, padding)
    low = padding[0][0], padding[1][0]
    out = tuple((size[i] + sum(padding[i]) - side[i]) // strides[i] + 1 for i in range(2))
    if min(*out, *images.shape) < 1:  # nothing to compute
        return native()
    features = to_features(images)
    with jax.default_matmul_precision(_name(precision)):
        if dilation == (1, 1):
            return to_images(matmul_forward(features, kernel, (strides[0], strides[1]), low, (out[0], out[1])))
        # The adjoint of a convolution with the flipped kernel.
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        low = side[0] - 1 - low[0], side[1] - 1 - low[1]
        return to_images(matmul_transpose(features, turned, (dilation[0], dilation[1]), low, (out[0], out[1])))


def _by_products() -> bool:
    return choose("auto") is CONVOLUTIONS["matmul"]


def _name(precision: Any) -> str | None:
    """A layer's precision by its name in jax's setting; that of the network (`model.precision`) if it has none."""
    if precision is None:
        return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return precision if isinstance(precision, str) else lax.Precision(precision).name.lower()


class Conv(nn.Conv):
    """`flax.linen.Conv`, of images (batch, height, width, channels).

    Its signature, parameters and results are Flax's; see `vae_jax.layers` for what differs.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import vae_jax
        >>> conv = vae_jax.layers.Conv(4, (3, 3), strides=2)
        >>> images, variables = conv.init_with_output(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
        >>> images.shape, variables["params"]["kernel"].shape
        ((2, 4, 4, 4), (3, 3, 1, 4))
    """

    conv_general_dilated: Any = convolve
    promote_dtype: Any = promote_dtype  # Flax's; no type checker can check it


class ConvTranspose(nn.ConvTranspose):
    """`flax.linen.ConvTranspose`, of images (batch, height, width, channels).

    Its signature, parameters and results are Flax's; see `vae_jax.layers` for what differs. Unlike `Conv`, Flax's call
    takes no other convolution, so it is written out here.

    Raises:
        UserError: for circular padding, which only Flax's layer has, or an unknown one.
    """

    promote_dtype: Any = promote_dtype

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """The images, larger by the strides: (batch, height, width, features)."""
        side = (self.kernel_size,) if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
        strides, dilation = (
            (value,) * len(side) if isinstance(value, int) else tuple(value or (1,) * len(side))
            for value in (self.strides, self.kernel_dilation)
        )
        inner = inputs.shape[-1]
        ends = (self.features, inner) if self.transpose_kernel else (inner, self.features)
        kernel = self.param("kernel", self.kernel_init, (*side, *ends), self.param_dtype)
        kernel = kernel if self.mask is None else kernel * self.mask
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        images, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        assert images is not None
        assert kernel is not None
        if self.transpose_kernel:  # the adjoint of a convolution with this kernel, as lax.conv_transpose says
            kernel = jnp.flip(kernel, range(len(side))).swapaxes(-1, -2)
        padding = canonicalize_padding(self.padding, len(side))
        if isinstance(padding, str):
            if padding not in ("SAME", "VALID"):
                raise UserError(
                    f"vae_jax.layers.ConvTranspose: expected padding SAME, VALID or numbers of zeros; found {padding!r}"
                )
            padding = [
                _transposed_padding((size - 1) * dilated + 1, stride, padding)
                for size, dilated, stride in zip(side, dilation, strides, strict=True)
            ]
        lead = images.shape[: images.ndim - len(side) - 1]
        images = images.reshape(-1, *images.shape[len(lead) :])
        ones = (1,) * len(side)
        result = convolve(
            images,
            kernel,
            ones,
            padding,
            lhs_dilation=strides,
            rhs_dilation=dilation,
            dimension_numbers=lax.conv_dimension_numbers(images.shape, kernel.shape, _channels_last(len(side))),
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
        result = result if bias is None else result + jnp.broadcast_to(bias, result.shape)
        return result.reshape(*lead, *result.shape[1:])


def _channels_last(axes: int) -> tuple[str, str, str]:
    """lax's name of the layout of images and kernels with so many axes of pixels."""
    pixels = "DHW"[-axes:]
    return f"N{pixels}C", f"{pixels}IO", f"N{pixels}C"


def _transposed_padding(side: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after an axis that is dilated by `stride`, as `lax.conv_transpose` counts them."""
    if padding == "SAME":
        total = side + stride - 2
        low = side - 1 if stride > side - 1 else -(-total // 2)
    else:
        total = side + stride - 2 + max(side - stride, 0)
        low = side - 1
    return low, total - low
