"""A hierarchy of latent layers: the decoder draws z layer by layer, and gives the layers' priors too.

One pass from the top down makes q(z|x) = Π q(z_l|z_<l, x), p(z) = Π p(z_l|z_<l) and the decoder's output (the ladder
VAE, Sønderby et al. 2016, section 2.2). Outside, z is one flat vector an image: the layers' numbers, top first.
"""

import math
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.keys import own_network_key, probing_key
from vae_jax.part_outputs import Shape, expect, expect_all, kind
from vae_jax.posteriors import Heads, Latents, Posterior, Sample
from vae_jax.posteriors.base import Decoded
from vae_jax.posteriors.gaussian import diagonal_log_prob, diagonal_transform
from vae_jax.priors import Prior

HEADS = ("mu", "log_var")


class Hierarchy(NamedTuple):
    """Three pure functions that a network's factory gives in place of a Flax module, if z has several layers.

    They have no axis of samples, no dropout and no running statistics. They decide how the parameters start and which
    of the model's options (`latent`, `layers`, `initialization` …) they read. `model.precision` works as with a user's
    Flax module: products are computed as it says, and with bfloat16 images, activations and z come rounded.

    Attributes:
        init: key -> the parameters, a dict by the names of parts.
        encode: (params, images (batch, height, width, channels) in [0, 1]) -> activations by name, each (batch, …).
        top_down: (params, latent, activations, or None without an image) -> the decoder's output for the likelihood,
            (batch, height, width, outputs·channels). It calls `latent(prior, posterior)` once for each layer, top
            first, and gets the layer's z, (batch, *shape). Both are {"mu": (batch, *shape), "log_var": the same}, of
            independent Gaussians. A first axis of length 1 stands for all images, as in the top layer's prior, where no
            batch is known. The posterior is None if the activations are.
    """

    init: Callable[[Key[Array, ""]], dict[str, PyTree]]
    encode: Callable[[PyTree, Float[Array, "batch *shape"]], dict[str, Float[Array, "batch ..."]]]
    top_down: Callable[[PyTree, Callable[..., Any], dict[str, Array] | None], Float[Array, "batch *places outputs"]]


class Layered(NamedTuple):
    """A hierarchy as the parts of a model, each a function of its parameters.

    Attributes:
        init: key -> params.
        encode: (params, images) -> activations.
        decode: (params, z (batch, latent)) -> the decoder's output for the likelihood.
        posterior: q(z|x), whose heads are the activations and whose samples come decoded.
        prior: p(z).
    """

    init: Callable[[Key[Array, ""]], dict[str, PyTree]]
    encode: Callable[[PyTree, Array], Heads]
    decode: Callable[[PyTree, Latents], Array]
    posterior: Posterior
    prior: Prior


# (a layer's prior heads, posterior heads or None, its part of the noise or z) -> z and densities or the like, (batch,).
Visit = Callable[..., tuple[Array, ...]]


def layered(
    what: str,
    hierarchy: Hierarchy,
    image_shape: tuple[int, ...],
    outputs: int,
    dtype: DTypeLike | None,
    products: str,
) -> Layered:
    """The parts of a model that a hierarchy makes.

    Args:
        what: the option and its value, with which messages begin.
        hierarchy: a user's.
        image_shape: (height, width, channels), or of examples of another kind.
        outputs: numbers for each channel of a pixel.
        dtype: of the arrays that the user's functions get; None leaves it as it is.
        products: see `jax.default_matmul_precision`.

    Raises:
        UserError: if its functions give other arrays than `Hierarchy` says.
    """
    *axes, channels = image_shape

    def init(key: Key[Array, ""]) -> dict[str, PyTree]:
        params = hierarchy.init(own_network_key(key))
        if not isinstance(params, dict):
            raise UserError(f"{what}, init: expected a dict of parameters; found {kind(params)}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            expect(f"{what}, init, {jax.tree_util.keystr(path)}", leaf, jnp.shape(leaf))
        return params

    def lower(array: Array) -> Array:
        return array.astype(dtype or array.dtype)

    def encode(params: PyTree, images: Array) -> Heads:
        with jax.default_matmul_precision(products):
            activations = hierarchy.encode(params, lower(images))
        if not isinstance(activations, Mapping) or not activations:
            raise UserError(f"{what}, encode: expected a dict of activations; found {kind(activations)}")
        for name, array in activations.items():
            expect(f"{what}, encode, {name}", array, (len(images), *jnp.shape(array)[1:]))
        return {name: array.astype(images.dtype) for name, array in activations.items()}

    def descend(params: PyTree, latent: Callable[..., Any], activations: Heads | None, count: int, like: Any) -> Array:
        """One pass for `count` z; the result has the type `like`."""
        given = activations and {name: lower(array) for name, array in activations.items()}
        with jax.default_matmul_precision(products):
            result = hierarchy.top_down(params, latent, given)
        expect(f"{what}, top_down", result, (count, *axes, outputs * channels))
        return result.astype(like)

    shapes: dict[str, Shape] = {}  # of activations, without the batch
    layers: list[Shape] = []  # of the layers' z, without the batch

    def look(params: PyTree, images: Array) -> None:
        activations = encode(params, images)
        shapes.update({name: array.shape[1:] for name, array in activations.items()})
        for seen, given in ((layers, activations), (generated := [], None)):

            def latent(prior: Any, posterior: Any, seen: list[Shape] = seen, given: Heads | None = given) -> Array:
                shape = getattr(prior.get("mu") if isinstance(prior, Mapping) else None, "shape", ())[1:]
                _check_layer(f"{what}, top_down, layer {len(seen) + 1}", prior, posterior, given, len(images), shape)
                seen.append(shape)
                return lower(jnp.zeros((len(images), *shape)))

            descend(params, latent, given, len(images), images.dtype)
        if not layers or layers != generated:
            expected = "expected the same layers of z with activations and without, at least one"
            raise UserError(f"{what}, top_down: {expected}; found z of shapes {layers} and {generated}")

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.result_type(float))
    jax.eval_shape(look, jax.eval_shape(init, probing_key()), images)
    ends = list(accumulate(map(math.prod, layers)))
    latent_shape = (ends[-1],)

    def passed(params: PyTree, given: Array, activations: Heads | None, visit: Visit) -> tuple[Array, list[Array]]:
        """The decoder's output, and the results of `visit` over layers: z concatenated, the rest summed.

        Args:
            params: of the hierarchy.
            given: noise or z of all layers, (*batch, latent).
            activations: each (*batch, …), or None.
            visit: see `Visit`.
        """
        lead, rows = given.shape[:-1], given.reshape(-1, *latent_shape)
        parts = jnp.split(rows, ends[:-1], -1)
        visited: list[tuple[Array, ...]] = []

        def latent(prior: Any, posterior: Any) -> Array:
            place = len(visited)
            where = f"{what}, top_down, layer {place + 1}"
            if place == len(layers):
                raise UserError(f"{where}: expected {place} layers, as at first; found another")
            _check_layer(where, prior, posterior, activations, len(rows), layers[place])
            heads = [_flat(heads, len(rows), given.dtype) for heads in (prior, posterior)]
            visited.append(visit(*heads, parts[place]))
            return lower(visited[-1][0].reshape(len(rows), *layers[place]))

        flat = activations and {name: array.reshape(-1, *shapes[name]) for name, array in activations.items()}
        result = descend(params, latent, flat, len(rows), given.dtype)
        if len(visited) < len(layers):
            raise UserError(f"{what}, top_down: expected {len(layers)} layers, as at first; found {len(visited)}")
        z, *sums = zip(*visited, strict=True)
        total = [reduce(jnp.add, terms).reshape(lead) for terms in sums]
        return result.reshape(*lead, *result.shape[1:]), [jnp.concatenate(z, -1).reshape(given.shape), *total]

    def transform(params: PyTree, noise: Latents, activations: Heads) -> Sample:
        def visit(prior: Heads, posterior: Heads, noise: Array) -> tuple[Array, ...]:
            z, log_q = diagonal_transform({}, noise, posterior)
            return z, log_q, diagonal_log_prob({}, z, prior), gaussian_kl(posterior, prior).sum(-1)

        result, (z, log_q, log_pz, kl) = passed(params, noise, activations, visit)
        return Sample(z, log_q, decoded=Decoded(result, log_pz, kl))

    def log_posterior(params: PyTree, z: Latents, activations: Heads) -> Array:
        return passed(params, z, activations, lambda prior, posterior, z: (z, diagonal_log_prob({}, z, posterior)))[1][
            1
        ]

    def log_prior(params: PyTree, z: Latents, aggregate: Any) -> Array:
        return passed(params, z, None, lambda prior, posterior, z: (z, diagonal_log_prob({}, z, prior)))[1][1]

    def sample_prior(params: PyTree, key: Key[Array, ""], count: int, aggregate: Any) -> Latents:
        noise = jax.random.normal(key, (count, *latent_shape))
        return passed(params, noise, None, lambda prior, posterior, noise: diagonal_transform({}, noise, prior)[:1])[1][
            0
        ]

    def decode(params: PyTree, z: Latents) -> Array:
        return passed(params, z, None, lambda prior, posterior, z: (z,))[0]

    heads: dict[str, int | tuple[int, ...]] = {**shapes}
    posterior = Posterior(heads, transform, log_prob=log_posterior, shape=latent_shape, decodes=True)
    return Layered(init, encode, decode, posterior, Prior(log_prior, sample_prior))


def gaussian_kl(q: Heads, p: Heads) -> Float[Array, "*batch latent"]:
    """KL(N(μ_q, σ_q²) ‖ N(μ_p, σ_p²)) in nats, by dimension."""
    moved = jnp.square(q["mu"] - p["mu"]) * jnp.exp(-p["log_var"])
    change = q["log_var"] - p["log_var"]
    return 0.5 * (jnp.exp(change) + moved - 1 - change)


def _check_layer(where: str, prior: Any, posterior: Any, activations: Any, count: int, shape: Shape) -> None:
    """Refuses heads of a layer that `Hierarchy` does not allow.

    Raises:
        UserError: naming the layer.
    """
    if (posterior is None) != (activations is None):
        expected = "none without activations" if activations is None else "one, since there are activations"
        raise UserError(f"{where}, posterior: expected {expected}; found {kind(posterior)}")
    for name, heads in (("prior", prior), ("posterior", posterior)):
        if name == "prior" or heads is not None:
            of = heads if isinstance(heads, Mapping) else {}
            firsts = {head: 1 if jnp.shape(of.get(head, 0))[:1] == (1,) else count for head in HEADS}
            expect_all(f"{where}, {name}", heads, {head: (first, *shape) for head, first in firsts.items()})


def _flat(heads: Heads | None, count: int, dtype: Any) -> Heads | None:
    """Heads of a layer as (batch, size)."""
    return heads and {
        name: jnp.broadcast_to(head, (count, *head.shape[1:])).reshape(count, -1).astype(dtype)
        for name, head in heads.items()
    }
