"""Networks. The only package that imports flax: everything else sees `Network`, two pure functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.config import ModelConfig
from vae_jax.errors import UserError
from vae_jax.keys import own_network_key
from vae_jax.models.convolutional import convolutional
from vae_jax.models.initialization import INITIALIZATIONS, initialize
from vae_jax.models.mlp import mlp
from vae_jax.models.residual import residual
from vae_jax.registry import check_takes, lookup, users_line

# Each: (config, image shape, heads with their sizes, outputs for each channel of a pixel) -> module.
NETWORKS = {"convolutional": convolutional, "mlp": mlp, "residual": residual}


class Precision(NamedTuple):
    """The arithmetic of a network.

    Attributes:
        dtype: of its activations; None leaves the input's.
        products: how matrix products and convolutions are computed, see `jax.default_matmul_precision`. JAX's own
            default would round float32 to 10 bits on a GPU and 8 on a TPU.
    """

    dtype: DTypeLike | None
    products: str


PRECISIONS = {
    "float32": Precision(None, "highest"),
    "tensorfloat32": Precision(None, "tensorfloat32"),
    "bfloat16": Precision(jnp.bfloat16, "default"),
}


class Variables(NamedTuple):
    """A network's state.

    Attributes:
        params: what is trained.
        batch_stats: BatchNorm's running statistics.
    """

    params: PyTree
    batch_stats: PyTree


class Autoencoder(NamedTuple):
    """A network with its variables bound, as an objective sees it.

    Attributes:
        encode: images (batch, height, width, channels) in [0, 1] -> the posterior's heads, each (batch, size).
        decode: z (batch, latent) -> what the likelihood needs, (batch, height, width, outputs·channels).
    """

    encode: Callable[[Float[Array, "batch h w c"]], dict[str, Float[Array, "batch _"]]]
    decode: Callable[[Float[Array, "batch latent"]], Float[Array, "batch h w c"]]


class Network(NamedTuple):
    """Encoder and decoder as pure functions.

    Attributes:
        init: key -> Variables.
        apply: (variables, function, key=None, train=False, masks=None) -> (function(Autoencoder), updated Variables).
            The key feeds dropout and is needed in training only; out of training the variables come back as they are.
            `masks` are dropout's, if they are not to be drawn: {part: {layer: {"mask": (features, batch)}}}.
        trace: (variables, function, key=None, train=False) -> Trace: the same, watched.
    """

    init: Callable[[Key[Array, ""]], Variables]
    apply: Callable[..., tuple[Any, Variables]]
    trace: Callable[..., "Trace"]


class Trace(NamedTuple):
    """What went on inside the network, for comparisons.

    Attributes:
        result: the function's.
        layers: each layer's output by its name, (batch, features) or (batch, channels, height, width).
        masks: dropout's by the layer's name, (batch, features); none out of training.
    """

    result: Any
    layers: dict[str, Array]
    masks: dict[str, Array]


def build(
    config: ModelConfig, image_shape: tuple[int, int, int], heads: Mapping[str, int], outputs: int = 1
) -> Network:
    """The configured network for images of (height, width, channels).

    Args:
        config: of the model. With `classes`, an image comes with as many further channels, and z with as many numbers.
        image_shape: (height, width, channels).
        heads: of the posterior, each with its size.
        outputs: numbers that the decoder gives for each channel of a pixel.

    Raises:
        UserError: if a name is unknown or the sizes do not fit.
    """
    lookup(INITIALIZATIONS, config.initialization, "model.initialization")
    make = lookup(NETWORKS, config.network, "model.network", ("config", "image_shape", "heads", "outputs"))
    module = make(config, image_shape, heads, outputs)
    if not isinstance(module, nn.Module):
        kind = f"{type(module).__module__}.{type(module).__name__}"
        raise UserError(f"model.network: expected {config.network} to give a flax.linen.Module; found {kind}")

    precision = lookup(PRECISIONS, config.precision, "model.precision")

    def bind(module: nn.Module, train: bool) -> Autoencoder:
        def in_precision(part: Callable[..., Any]) -> Callable[[Array], Any]:
            """The part in its precision; what goes in and comes out has the caller's."""

            def run(x: Array) -> Any:
                with jax.default_matmul_precision(precision.products):
                    result = part(x.astype(precision.dtype or x.dtype), train=train)
                return jax.tree.map(lambda array: array.astype(x.dtype), result)

            return run

        return Autoencoder(in_precision(_part(module, "encode", config)), in_precision(_part(module, "decode", config)))

    def init(key: Key[Array, ""]) -> Variables:
        def both(module: nn.Module, images: Array, z: Array) -> None:
            autoencoder = bind(module, train=False)
            autoencoder.encode(images)
            autoencoder.decode(z)

        def make(key: Key[Array, ""], images: Array, z: Array) -> PyTree:
            variables = nn.init(both, module)(own_network_key(key), images, z)
            return {**variables, "params": initialize(config.initialization, key, variables["params"])}

        # The inputs are arguments: as constants the compiler would evaluate the network on them.
        images = jnp.zeros((1, *image_shape[:2], image_shape[2] + config.classes))
        variables = jax.jit(make)(key, images, jnp.zeros((1, config.latent + config.classes)))
        return Variables(variables["params"], variables.get("batch_stats", {}))

    def apply(
        variables: Variables,
        function: Callable[[Autoencoder], Any],
        key: Key[Array, ""] | None = None,
        train: bool = False,
        masks: PyTree = None,
    ) -> tuple[Any, Variables]:
        collections = {"params": variables.params, "batch_stats": variables.batch_stats, "masks": masks or {}}
        rngs = {} if key is None else {"dropout": key}

        def run(module: nn.Module) -> Any:
            return function(bind(module, train))

        if not train:
            return nn.apply(run, module)(collections, rngs=rngs), variables
        result, updated = nn.apply(run, module, mutable=["batch_stats"])(collections, rngs=rngs)
        return result, variables._replace(batch_stats=updated.get("batch_stats", {}))

    def trace(
        variables: Variables,
        function: Callable[[Autoencoder], Any],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> Trace:
        collections = {"params": variables.params, "batch_stats": variables.batch_stats}
        run = nn.apply(
            lambda module: function(bind(module, train)),
            module,
            mutable=["batch_stats", "intermediates", "masks"],
            capture_intermediates=True,
        )
        result, seen = run(collections, rngs={} if key is None else {"dropout": key})
        parts = seen["intermediates"].values()
        layers = {
            name: _batch_first(found["__call__"][0])
            for part in parts
            for name, found in part.items()
            if isinstance(found, dict)
        }
        masks = {name: found["mask"].T for part in seen.get("masks", {}).values() for name, found in part.items()}
        return Trace(result, layers, masks)

    return Network(init, apply, trace)


def _part(module: nn.Module, name: str, config: ModelConfig) -> Callable[..., Any]:
    """A network's encoder or decoder.

    Raises:
        UserError: if it has none that takes an array and `train`.
    """
    expected = f"model.network: expected {config.network} to have {name}(x, train)"
    try:
        part = getattr(module, name)
    except AttributeError as error:
        if users_line(error):  # of its own setup
            raise
        raise UserError(f"{expected}; found none") from error
    check_takes(part, expected, "x", train=True)
    return part


def _batch_first(output: Array) -> Array:
    """A layer's output, (features, batch) or features as in layout.py, with the batch first."""
    if output.ndim == 2:
        return output.T
    _, *shape, _ = output.shape
    return output.transpose(0, 4, 1, 2, 3).reshape(-1, *shape)


def count_parameters(params: PyTree) -> int:
    """Trainable numbers in `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
