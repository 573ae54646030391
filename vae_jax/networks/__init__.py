"""Networks, behind `Network`'s pure functions: only this package and `vae_jax.layers` import Flax."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.config import ModelConfig, entry_of
from vae_jax.errors import UserError
from vae_jax.hierarchy import Hierarchy, Layered, layered
from vae_jax.keys import own_network_key, probing_key, step_keys
from vae_jax.networks.convolutional import convolutional
from vae_jax.networks.initialization import initialize
from vae_jax.networks.layers import UNFILLED
from vae_jax.networks.mlp import mlp
from vae_jax.networks.residual import residual
from vae_jax.part_outputs import expect, expect_all
from vae_jax.posteriors import Posterior
from vae_jax.priors import Prior
from vae_jax.registry import check_functions, check_takes, users_line
from vae_jax.shapes import Shapes, Size
from vae_jax.spec import Spec
from vae_jax.variables import Variables

# (options, Shapes) -> module; the annotation of `options` names the dataclass of its options.
NETWORKS = {"convolutional": convolutional, "mlp": mlp, "residual": residual}


class Precision(NamedTuple):
    """The arithmetic of a network.

    Attributes:
        dtype: of its activations; None leaves the input's.
        products: of matrix products and convolutions, see `jax.default_matmul_precision`. JAX's default would round
            float32 to 10 bits on a GPU and 8 on a TPU.
    """

    dtype: DTypeLike | None
    products: str


PRECISIONS = {
    "float32": Precision(None, "highest"),
    "tensorfloat32": Precision(None, "tensorfloat32"),
    "bfloat16": Precision(jnp.bfloat16, "default"),
}


BATCH_STATS = "batch_stats"  # Flax's name for running statistics


class Autoencoder(NamedTuple):
    """A network with its variables bound, for objectives.

    Attributes:
        encode: images (batch, height, width, channels) in [0, 1] -> the posterior's heads, each (batch, size).
        decode: z (batch, latent) -> the likelihood's input, (batch, height, width, outputs·channels).
            Examples of other kinds have another number of axes before the channels.
    """

    encode: Callable[[Float[Array, "batch *shape"]], dict[str, Float[Array, "batch _"]]]
    decode: Callable[[Float[Array, "batch latent"]], Float[Array, "batch *shape"]]


class Network(NamedTuple):
    """Encoder and decoder as pure functions.

    Attributes:
        init: key -> Variables.
        apply: (variables, function, key=None, train=False, masks=None, streams=None) -> (function(Autoencoder), updated
            Variables). The key feeds dropout, and `streams` all other draws of a network; only training needs them. Out
            of training the variables come back as they are. `masks` are dropout's, if they are not to be drawn:
            {part: {layer: {"mask": (features, batch)}}}.
        trace: (variables, function, key=None, train=False) -> Trace, of the same call.
        ties: () -> Ties.
        posterior: q(z|x) of a hierarchy, which draws z inside its decoder; a function of the network's parameters.
        prior: p(z) of a hierarchy, a function of the network's parameters.
    """

    init: Callable[[Key[Array, ""]], Variables]
    apply: Callable[..., tuple[Any, Variables]]
    trace: Callable[..., "Trace"]
    ties: Callable[[], "Ties"]
    posterior: Posterior | None = None
    prior: Prior | None = None


class Ties(NamedTuple):
    """How a network ties its images together in training.

    Attributes:
        couples: whether the results of a batch's images depend on one another, as with BatchNorm.
        remembers: whether its state depends on the images that it has seen, as running statistics do.
    """

    couples: bool
    remembers: bool


class Trace(NamedTuple):
    """The insides of a network's call, for comparisons.

    Attributes:
        result: the function's.
        layers: outputs by the layer's name, (batch, features) or (batch, channels, height, width).
        masks: dropout's by the layer's name, (batch, features); none out of training.
    """

    result: Any
    layers: dict[str, Array]
    masks: dict[str, Array]


def places(config: ModelConfig, spec: Spec) -> tuple[int, ...] | None:
    """The shape of the network's map of features, see `vae_jax.networks.layers.with_places`; None if it has none.

    Raises:
        UserError: if the name is unknown or the sizes do not fit.
    """
    known = getattr(entry_of("model", config.network), "places", None)
    return tuple(known(config.options, spec.shape)) if known and spec.is_picture else None


def build(config: ModelConfig, shapes: Shapes) -> Network:
    """The configured network.

    Args:
        config: of the model.
        shapes: of its inputs and outputs, complete.

    Raises:
        UserError: if a name is unknown or the sizes do not fit.
    """
    make_module, options = entry_of("model", config.network), config.options
    module, precision = make_module(options, shapes), PRECISIONS[config.precision]
    heads, outputs = shapes.heads, shapes.outputs
    if isinstance(module, Hierarchy):
        check_functions(module, "model.network")
        what = f"model.network {config.network}"
        return _hierarchical(layered(what, module, shapes.image_shape, outputs, *precision))
    if not isinstance(module, nn.Module):
        kind = f"{type(module).__module__}.{type(module).__name__}"
        wanted = f"{config.network} to give a flax.linen.Module or a vae_jax.hierarchy.Hierarchy"
        raise UserError(f"model.network: expected {wanted}; found {kind}")
    *axes, channels = shapes.image_shape
    head_shapes = {name: size if isinstance(size, tuple) else (size,) for name, size in heads.items()}
    *places, numbers = shapes.latent_shape or (shapes.latent,)
    latent_shape = (*places, numbers + config.classes)

    def bind(module: nn.Module, train: bool) -> Autoencoder:
        def in_precision(part: str, array: Array) -> Any:
            """A part's result, computed in its precision; input and result have the caller's."""
            with jax.default_matmul_precision(precision.products):
                return _part(module, part, config)(array.astype(precision.dtype or array.dtype), train=train)

        def encode(images: Array) -> dict[str, Array]:
            result = in_precision("encode", images)
            shapes = {name: (images.shape[0], *shape) for name, shape in head_shapes.items()}
            if isinstance(result, Mapping):
                result = {name: _unflattened(head, shapes.get(name)) for name, head in result.items()}
            expect_all(f"model.network {config.network}, encode", result, shapes)
            return {name: result[name].astype(images.dtype) for name in heads}

        def decode(z: Array) -> Array:
            result = in_precision("decode", z)
            expect(f"model.network {config.network}, decode", result, (z.shape[0], *axes, channels * outputs))
            return result.astype(z.dtype)

        return Autoencoder(encode, decode)

    def init(key: Key[Array, ""]) -> Variables:
        def both(module: nn.Module, images: Array, z: Array) -> None:
            autoencoder = bind(module, train=False)
            autoencoder.encode(images)
            autoencoder.decode(z)

        def make(key: Key[Array, ""], images: Array, z: Array) -> PyTree:
            variables = dict(nn.init(both, module)(own_network_key(key), images, z))
            unfilled = variables.pop(UNFILLED, {})
            params = initialize(config.initialization, key, variables.get("params", {}), unfilled)
            return {**variables, "params": params}

        # The inputs are arguments: as constants the compiler would evaluate the network on them.
        images = jnp.zeros((1, *axes, channels + config.classes))
        z = jnp.zeros((1, *latent_shape))
        variables = jax.jit(make)(key, images, z)
        made = Variables(variables.pop("params"), variables)
        for path, leaf in jax.tree_util.tree_leaves_with_path(made.params):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                where = f"model.network {config.network}, parameter {jax.tree_util.keystr(path)}"
                raise UserError(
                    f"{where}: expected floats, which are trained; found {leaf.dtype}; self.variable keeps it"
                )
        further = variables.keys() - {BATCH_STATS}
        return made._replace(state=lasting(made, images, z)) if further else made

    def lasting(variables: Variables, images: Array, z: Array) -> dict[str, PyTree]:
        """The collections that a step of training updates; not those to which every call adds (`sow`).

        Raises:
            UserError: if a step changes a type or shape. Flax raises errors of its own if an evaluation changes one.
        """

        def both(autoencoder: Autoencoder) -> None:
            autoencoder.encode(images)
            autoencoder.decode(z)

        def step(variables: Variables, train: bool) -> Variables:
            keys = step_keys(probing_key())
            dropout, streams = (keys.dropout, keys.streams) if train else (None, None)
            return apply(variables, both, dropout, train, None, streams)[1]

        kept = {}
        updated = jax.eval_shape(lambda variables: step(variables, True), variables).state
        for name, before in variables.state.items():
            if jax.tree.structure(before) != jax.tree.structure(updated[name]):
                continue
            kept[name] = before
            for (path, then), now in zip(
                jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(updated[name]), strict=True
            ):
                was, becomes = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in (then, now))
                if was != becomes:
                    where = f"model.network {config.network}, collection {name}{jax.tree_util.keystr(path)}"
                    raise UserError(f"{where}: expected a step of training to leave it {was}; found {becomes}")
        jax.eval_shape(lambda variables: step(variables, False), variables._replace(state=kept))
        return kept

    def collections_of(variables: Variables, masks: PyTree = None) -> dict[str, PyTree]:
        return {"params": variables.params, "masks": masks or {}, **variables.state}

    def apply(
        variables: Variables,
        function: Callable[[Autoencoder], Any],
        key: Key[Array, ""] | None = None,
        train: bool = False,
        masks: PyTree = None,
        streams: Key[Array, ""] | None = None,
    ) -> tuple[Any, Variables]:
        collections = collections_of(variables, masks)
        # Flax draws from "params" if there is no stream of a name.
        rngs = {name: given for name, given in (("dropout", key), ("params", streams)) if given is not None}

        def run(module: nn.Module) -> Any:
            return function(bind(module, train))

        if not train:
            return nn.apply(run, module)(collections, rngs=rngs), variables
        result, updated = nn.apply(run, module, mutable=[*variables.state])(collections, rngs=rngs)
        return result, Variables(variables.params, {name: updated.get(name, {}) for name in variables.state})

    def trace(
        variables: Variables,
        function: Callable[[Autoencoder], Any],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> Trace:
        run = nn.apply(
            lambda module: function(bind(module, train)),
            module,
            mutable=["intermediates", "masks", *variables.state],
            capture_intermediates=True,
        )
        result, seen = run(collections_of(variables), rngs={} if key is None else {"dropout": key})
        parts = seen["intermediates"].values()
        layers = {
            name: _batch_first(calls["__call__"][0])
            for part in parts
            for name, calls in part.items()
            if isinstance(calls, dict)
        }
        masks = {name: layer["mask"].T for part in seen.get("masks", {}).values() for name, layer in part.items()}
        return Trace(result, layers, masks)

    def ties() -> Ties:
        if (known := getattr(module, "couples", None)) is not None:  # the package's networks say so
            return Ties(bool(known), bool(known))
        made_of = make_module, config, shapes._replace(heads=tuple(heads.items()))
        if made_of not in _TIES:
            inputs = (*axes, channels + config.classes), latent_shape
            with jax.ensure_compile_time_eval():  # the caller may be traced
                _TIES[made_of] = _probe(init, apply, *inputs)
        return _TIES[made_of]

    return Network(init, apply, trace, ties)


def _hierarchical(parts: Layered) -> Network:
    """The network of a hierarchy, which has no state and draws only z."""

    def bind(variables: Variables) -> Autoencoder:
        return Autoencoder(partial(parts.encode, variables.params), partial(parts.decode, variables.params))

    def apply(variables: Variables, function: Callable[[Autoencoder], Any], *_: Any, **__: Any) -> Any:
        return function(bind(variables)), variables

    def trace(variables: Variables, function: Callable[[Autoencoder], Any], *_: Any, **__: Any) -> Trace:
        return Trace(function(bind(variables)), {}, {})

    def init(key: Key[Array, ""]) -> Variables:
        return Variables(jax.jit(parts.init)(key))

    return Network(init, apply, trace, lambda: Ties(False, False), parts.posterior, parts.prior)


_TIES: dict[Any, Ties] = {}  # of users' networks, by what they are made of; a run builds them several times


def _probe(
    init: Callable[..., Variables], apply: Callable[..., Any], shape: tuple[int, ...], latent: tuple[int, ...]
) -> Ties:
    """A network's ties, by what changes in training if all images of a batch but the first one change.

    Parameters get some noise, since layers may start as zeros.
    """
    random = np.random.RandomState(0)
    variables = init(probing_key())
    noise = jax.tree.map(lambda leaf: jnp.asarray(0.1 * random.randn(*leaf.shape), leaf.dtype), variables.params)
    variables = variables._replace(params=jax.tree.map(jnp.add, variables.params, noise))

    @jax.jit
    def first(variables: Variables, images: Array, z: Array) -> tuple[list[Array], PyTree]:
        def both(autoencoder: Autoencoder) -> list[Array]:
            return [result[0] for result in (*autoencoder.encode(images).values(), autoencoder.decode(z))]

        keys = step_keys(probing_key())
        results, updated = apply(variables, both, keys.dropout, train=True, streams=keys.streams)
        return results, updated.state

    inputs = jnp.asarray(random.rand(3, *shape), float), jnp.asarray(random.randn(3, *latent), float)
    changed = [array.at[1:].multiply(0.5) for array in inputs]

    def differ(before: PyTree, after: PyTree) -> bool:
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return any(not np.array_equal(*pair, equal_nan=True) for pair in pairs)

    return Ties(*map(differ, first(variables, *inputs), first(variables, *changed)))


def _part(module: nn.Module, name: str, config: ModelConfig) -> Callable[..., Any]:
    """A network's encoder or decoder.

    Raises:
        UserError: if it has none that takes an array and `train`.
    """
    expected = f"model.network: expected {config.network} to have {name}(x, train)"
    try:
        part = getattr(module, name)
    except AttributeError as error:
        if users_line(error):  # raised in the network's setup
            raise
        raise UserError(f"{expected}; found none") from error
    check_takes(part, expected, "x", train=True)
    return part


def _unflattened(head: Any, shape: tuple[Size, ...] | None) -> Any:
    """A head in its shape, also if a network has given its numbers in a row."""
    flat = shape and (shape[0], math.prod(shape[1:]))
    return head.reshape(shape) if shape and getattr(head, "shape", None) == flat else head


def _batch_first(output: Array) -> Array:
    """A layer's output, (features, batch) or features as in tiles.py, with the batch first."""
    if output.ndim == 2:
        return output.T
    _, *shape, _ = output.shape
    return output.transpose(0, 4, 1, 2, 3).reshape(-1, *shape)


def count_parameters(params: PyTree) -> int:
    """Trainable numbers in `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
