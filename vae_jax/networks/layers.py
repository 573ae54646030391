"""The layers the networks are made of, with PyTorch's arithmetic.

Convolutional layers work on features, see tiles.py; Linear on (features, batch). Kernels are in Flax's layouts: Linear
(in, out), Conv (side, side, in, out) and ConvTranspose (side, side, out, in).

Parameters are float32; a layer computes in the type of its input, BatchNorm's sums in float32 at least.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vae_jax.blocks.convolution import CONVOLUTIONS, Convolution
from vae_jax.device.platforms import current
from vae_jax.errors import UserError
from vae_jax.options import FILLED, as_text, one_of, only, options_in
from vae_jax.shapes import Shapes

Make = TypeVar("Make", bound=Callable[..., Any])


@jax.custom_jvp
def leaky_relu(x: ArrayLike) -> Array:
    """PyTorch's LeakyReLU."""
    return jax.nn.leaky_relu(x, 0.01)


@leaky_relu.defjvp
def _leaky_relu_jvp(primals, tangents):
    """Products, which XLA can fuse better than jax's two branches; the numbers are the same."""
    (x,), (tangent,) = primals, tangents
    slope = jnp.where(x >= 0, 1.0, 0.01)
    return slope * x, slope * tangent


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "leaky_relu": leaky_relu,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def check_pictures(shapes: Shapes, network: str) -> None:
    """Refuses examples that are no images, for a network of convolutions.

    Raises:
        UserError: naming a network that takes such examples.
    """
    if shapes.support != "levels":
        raise UserError(
            f"model.network: expected mlp, or one of your own, for examples of shape {shapes.image_shape}; found "
            f"{network}, which takes images"
        )


def with_places(places: Callable[[Any, tuple[int, ...]], tuple[int, ...]]) -> Callable[[Make], Make]:
    """Decorates a network's factory with the shape of the network's map of features, of which maps of z are made.

    Args:
        places: (the network's options, an example's shape) -> (height, width) of the map, or (length,).
    """

    def mark(function: Make) -> Make:
        setattr(function, "places", places)  # noqa: B010 (a function's own attributes are not declared)
        return function

    return mark


def has_maps(shapes: Shapes, network: str, places: tuple[int, ...]) -> bool:
    """Whether z is a map, with the places of the network's own.

    Raises:
        UserError: if it is a map of other places.
    """
    if not (shape := shapes.latent_shape) or len(shape) == 1:
        return False
    maps = [size for size in shapes.heads.values() if not isinstance(size, int) and tuple(size[:-1]) == shape[:-1]]
    if strange := [size for size in shapes.heads.values() if size not in maps]:
        raise UserError(
            f"model.network: expected mlp, or one of your own, since the posterior has a head of shape {strange[0]} "
            f"beside z of shape {shape}; found {network}, which gives maps"
        )
    if shape[:-1] != places:
        raise UserError(
            f"model.network: expected one with a map of {list(shape[:-1])}, as z is (of a codebook posterior.places), "
            f"or mlp, which needs none; found {network}, whose map is {list(places)} for images of "
            f"{list(shapes.image_shape)}"
        )
    return True


def check_unused(options: Any, *names: str) -> None:
    """Refuses options that a network has only for z that are vectors, if z are maps.

    Raises:
        UserError: naming the option.
    """
    for name in names:
        if (value := getattr(options, name)) != (default := options_in(type(options))[name].default):
            raise UserError(
                f"model.{name}: expected {as_text(default)} with a posterior of maps, which come straight from the "
                f"convolutions; found {as_text(value)}"
            )


@dataclass(frozen=True)
class ConvolutionsOptions:
    """Of a network of convolutions.

    Attributes:
        channels: feature maps of the encoder's convolutions, or a residual network's stages, first to last; the
            decoder mirrors them.
        activation: after every layer but the last: leaky_relu (slope 0.01), relu, elu, gelu, silu or tanh.
        batch_norm: BatchNorm after every convolution but the decoder's last, or before all but a residual encoder's
            first.
        batch_norm_momentum: weight of the newest batch in the running statistics (PyTorch's convention).
        unbiased_running_variance: as PyTorch keeps it; false keeps the biased variance, as Flax does.
        convolution: auto (native on a TPU, matmul elsewhere), native (XLA's) or matmul (im2col + matrix product).
    """

    channels: Annotated[tuple[int, ...], "[1, 65536]", FILLED] = (8, 16, 32, 64)
    activation: Annotated[str, one_of(*ACTIVATIONS)] = "leaky_relu"
    batch_norm: bool = True
    batch_norm_momentum: Annotated[float, "(0, 1]", only(batch_norm=True)] = 0.1
    unbiased_running_variance: bool = True
    convolution: Annotated[str, one_of("auto", *CONVOLUTIONS)] = "auto"


# A collection that exists while a network is initialised, with an entry at the path of every layer of this file.
# initialization.py then fills their kernels and biases; all other parameters start by their own initialisers.
UNFILLED, MARK = "unfilled", "layer"


def _kernel_and_bias(layer: nn.Module, shape: tuple[int, ...], features: int) -> tuple[Array, Array]:
    """A layer's parameters, as zeros; initialization.py fills those of all layers at once."""
    if layer.is_initializing():
        layer.put_variable(UNFILLED, MARK, jnp.zeros(()))
    kernel = layer.param("kernel", lambda key, shape: jnp.zeros(shape), shape)
    return kernel, layer.param("bias", lambda key, shape: jnp.zeros(shape), (features,))


class Linear(nn.Module):
    """y = Wᵀx + b over (features, batch)."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "inputs batch"]) -> Float[Array, "outputs batch"]:
        kernel, bias = _kernel_and_bias(self, (x.shape[0], self.features), self.features)
        return kernel.astype(x.dtype).T @ x + bias.astype(x.dtype)[:, None]


class Conv(nn.Module):
    """PyTorch's Conv2d over features."""

    features: int
    kernel: int
    stride: int
    padding: int
    convolution: Convolution

    @nn.compact
    def __call__(
        self, x: Float[Array, "tiles c h w tile"], dead_bias: bool = False
    ) -> Float[Array, "tiles d p q tile"]:
        shape = (self.kernel, self.kernel, x.shape[1], self.features)
        kernel, bias = _kernel_and_bias(self, shape, self.features)
        y = self.convolution.forward(x, kernel.astype(x.dtype), self.stride, self.padding)
        return y + _columns(_alive(bias, dead_bias).astype(x.dtype))


class ConvTranspose(nn.Module):
    """PyTorch's ConvTranspose2d over features, to images of size x size."""

    features: int
    size: int
    kernel: int
    stride: int
    padding: int
    convolution: Convolution

    @nn.compact
    def __call__(
        self, x: Float[Array, "tiles c h w tile"], dead_bias: bool = False
    ) -> Float[Array, "tiles d p q tile"]:
        shape = (self.kernel, self.kernel, self.features, x.shape[1])
        kernel, bias = _kernel_and_bias(self, shape, self.features)
        size = (self.size, self.size)
        y = self.convolution.transpose(x, kernel.astype(x.dtype), self.stride, self.padding, size)
        return y + _columns(_alive(bias, dead_bias).astype(x.dtype))


def _alive(bias: Float[Array, " channels"], dead: bool) -> Float[Array, " channels"]:
    """A bias, with gradient 0 if it is dead because BatchNorm then subtracts the batch's mean.

    The computed gradient would be rounding errors, which Adam turns into steps whose size depends on the order of sums,
    and so on the device.
    """
    return lax.stop_gradient(bias) if dead else bias


def _columns(vector: Float[Array, " channels"]) -> Float[Array, "1 channels 1 1 1"]:
    return vector[None, :, None, None, None]


BATCH_AXES = (0, 2, 3, 4)  # all but the channels


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    x: Float[Array, "tiles c h w tile"],
    scale: Float[Array, " c"],
    offset: Float[Array, " c"],
    epsilon: float,
    shift: Float[Array, " c"] | None = None,
) -> tuple[Float[Array, "tiles c h w tile"], Float[Array, " c"], Float[Array, " c"]]:
    """BatchNorm over a batch (Ioffe & Szegedy 2015, algorithm 1): the result, the batch's mean and biased variance.

    The gradient is the paper's closed form, which is faster on a CPU than differentiating the sums. The mean and
    the variance are for the running statistics: no gradient flows through them.

    With a `shift`, a guess of the mean, one pass over the batch takes both sums, of distances from it. The variance is
    then rounded as if it were larger by the square of the guess's error.
    """
    return _normalize(x, scale, offset, epsilon, shift)[0]


def _single(x):
    """x in single precision, or in double if it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _count(x):
    return float(x.size // x.shape[1])  # a whole number would have to fit 32 bits


def _sums(*arrays):
    """The arrays' sums over the batch in one pass, which XLA would not make of separate sums."""
    zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
    return lax.reduce(arrays, zeros, lambda a, b: tuple(map(jnp.add, a, b)), BATCH_AXES)


def _normalize(x, scale, offset, epsilon, shift):
    dtype, x = x.dtype, _single(x)
    if shift is None:
        mean = x.mean(BATCH_AXES)
        variance = jnp.square(x - _columns(mean)).mean(BATCH_AXES)
    else:
        distance = x - _columns(shift)
        missed, squared = (sums / _count(x) for sums in _sums(distance, jnp.square(distance)))
        mean = shift + missed
        variance = jnp.maximum(squared - jnp.square(missed), 0)
    inverse = lax.rsqrt(variance + epsilon)
    y = (x - _columns(mean)) * _columns(inverse * scale) + _columns(offset)
    return (y.astype(dtype), mean, variance), (x.astype(dtype), mean, inverse, scale, shift)


def _normalize_bwd(epsilon, residuals, cotangents):
    x, mean, inverse, scale, shift = residuals
    dtype, x, dy = x.dtype, _single(x), _single(cotangents[0])
    count = _count(x)
    normal = (x - _columns(mean)) * _columns(inverse)
    if shift is None:
        doffset, dscale = dy.sum(BATCH_AXES), (dy * normal).sum(BATCH_AXES)
    else:
        doffset, dscale = _sums(dy, dy * normal)
        x = lax.optimization_barrier(x)  # so that XLA computes this again in the kernel below and keeps no array of it
        normal = (x - _columns(mean)) * _columns(inverse)
    dx = _columns(scale * inverse) * (dy - _columns(doffset / count) - normal * _columns(dscale / count))
    return dx.astype(dtype), dscale, doffset, jax.tree.map(jnp.zeros_like, shift)


normalize.defvjp(_normalize, _normalize_bwd)


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm2d over features.

    In training it normalises by the batch and moves the running statistics by `momentum` (PyTorch's convention: the
    weight of the newest batch); otherwise it normalises by the running statistics.
    """

    momentum: float
    unbiased: bool
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "tiles c h w tile"], *, train: bool) -> Float[Array, "tiles c h w tile"]:
        channels = x.shape[1]
        scale = self.param("scale", lambda key, shape: jnp.ones(shape), (channels,))
        offset = self.param("bias", lambda key, shape: jnp.zeros(shape), (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            factor = lax.rsqrt(running_variance.value + self.epsilon) * scale
            return ((x - _columns(running_mean.value)) * _columns(factor) + _columns(offset)).astype(x.dtype)
        shift = running_mean.value if current().one_pass else None  # the running mean is near the mean
        y, mean, variance = cast(tuple[Array, Array, Array], normalize(x, scale, offset, self.epsilon, shift))
        if not self.is_initializing():
            count = x.size // channels
            if self.unbiased:
                variance = variance * (count / (count - 1))
            running_mean.value += self.momentum * (lax.stop_gradient(mean) - running_mean.value)
            running_variance.value += self.momentum * (lax.stop_gradient(variance) - running_variance.value)
        return y


class Dropout(nn.Module):
    """PyTorch's Dropout: in training a value is kept with probability 1 − rate and divided by it.

    A mask in the collection "masks" is used in place of a drawn one. If the collection is mutable, the drawn mask is
    left there: comparisons need the same mask elsewhere.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        if not train or self.rate == 0:
            return x
        if self.has_variable("masks", "mask"):
            mask = self.get_variable("masks", "mask")
        else:
            mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
            if self.is_mutable_collection("masks"):
                self.put_variable("masks", "mask", mask)
        return jnp.where(mask, x / (1 - self.rate), 0)
