"""A trained model in use: encode, decode, reconstruct, sample."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from vae_jax.errors import UserError, argument, listed
from vae_jax.keys import block_key, encoding_key, sampling_key
from vae_jax.model import batches
from vae_jax.model.composition import Composition
from vae_jax.objectives import BoundModel, Objective
from vae_jax.programs.sizes import check_memory, largest_operation
from vae_jax.variables import Variables

LARGEST = -float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)  # finite floats lie between
MANY = 10_000  # drawing more z at once than this checks the memory first


class Model(NamedTuple):
    """A trained model in use: pure, compiled functions of arrays, differentiable, also inside jit, vmap and grad.

    Images are uint8 levels, treated as `data.treatment` says, or floats in [0, 1], taken as they are. Examples of other
    kinds are real numbers, or categories, or floats in [0, 1] for each of their values. If the model gets labels
    (`model.classes`), every function takes them too, (n,): `encode(images, labels)`. Arrays of other shapes or types
    are refused with a UserError, and so are empty ones, floats outside [0, 1], and arrays whose results do not fit into
    memory. Inside a JAX transformation the numbers are unknown and not checked, and all n are computed at once; outside
    they are computed in batches.

    Attributes:
        encode: images (n, height, width, channels), or examples of another kind -> {"mu", and "log_var" for a VAE},
            each (n, latent), and the posterior's other heads. "mu" is the posterior's mean (of a flow, its centre). If
            z is made of codes, "mu" are their vectors, and "codes" are whole numbers.
        decode: z (n, latent), or whole numbers that are codes -> pictures (n, height, width, channels) in [0, 1], or
            E[x|z] of another example: of categories their probabilities, (n, length, values).
        reconstruct: images -> pictures decoded from "mu".
        sample: (key, n) -> pictures decoded from the prior; None for an autoencoder, which has no prior. A prior over
            codes takes `temperature` and `top_p` too.
        latent: dimensions of z.
        draw: (key, n) -> the prior's z that `sample` decodes, (n, latent); None for an autoencoder.
        classes: how many labels there are; 0 if the model gets none.
        plane: whether z are points of a plane.

    Examples:
        >>> import jax
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"data.image_size": 8, "model.network": "mlp", "train.epochs": 1})
        >>> data = vae_jax.load_data(config.data)
        >>> model = vae_jax.use(vae_jax.fit(config, data))
        >>> z = model.draw(jax.random.key(0), 5)
        >>> z.shape, model.decode(z).shape, model.reconstruct(data.test.images[:2]).shape
        ((5, 20), (5, 8, 8, 1), (2, 8, 8, 1))
    """

    encode: Callable[..., dict[str, Float[Array, "n _"]]]
    decode: Callable[..., Float[Array, "n *shape"]]
    reconstruct: Callable[..., Float[Array, "n *shape"]]
    sample: Callable[..., Float[Array, "n *shape"]] | None
    latent: int
    draw: Callable[..., Float[Array, "n latent"]] | None = None
    classes: int = 0
    plane: bool = False

    def __repr__(self) -> str:
        return f"Model(latent={self.latent}, classes={self.classes}{', without a prior' * (self.sample is None)})"

    def _repr_png_(self) -> bytes | None:
        from vae_jax.model.notebook import samples

        return samples(self)


def make_model(composition: Composition, objective: Objective, variables: Variables) -> Model:
    """The model with these variables, ready for use."""
    return model_maker(composition, objective).make(variables)


class ModelMaker(NamedTuple):
    """Makes models with functions that are compiled once for all variables.

    Attributes:
        make: variables -> the model with them, ready for use.
        lower: (variables, n) -> the lowered programs that `reconstruct` and `sample` of n pictures need.
    """

    make: Callable[[Variables], Model]
    lower: Callable[[Variables, int], list[jax.stages.Lowered]]


def model_maker(composition: Composition, objective: Objective) -> ModelMaker:
    """The maker of models of this network and objective."""

    def check(count: int, labels: Any) -> Any:
        if labels is None:  # a model that needs labels refuses this itself
            return labels
        if not composition.classes:
            raise UserError("labels: expected none, since the model gets none (model.classes 0); found some")
        labels = labels if isinstance(labels, Tracer) else np.asarray(labels)
        if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise UserError(f"labels: expected {count} whole numbers; found {labels.dtype} of shape {labels.shape}")
        if isinstance(labels, Tracer):
            return labels
        if not 0 <= labels.min(initial=0) <= labels.max(initial=0) < composition.classes:
            extremes = f"{labels.min()} to {labels.max()}"
            raise UserError(f"labels: expected numbers from 0 to {composition.classes - 1}; found {extremes}")
        return labels.astype(np.int32)

    def check_images(images: Any) -> Any:
        """The images: floats of the networks' shape, or whole numbers that the treatment turns into such floats."""
        images, spec = images if isinstance(images, jax.Array) else np.asarray(images), composition.spec
        if spec.support == "reals" and images.dtype.kind in "iub":
            images = images.astype(float)
        treated = bool(jnp.issubdtype(images.dtype, jnp.floating))
        in_words, whole, (low, high) = {
            "levels": ("uint8 levels 0 to 255 or floats in [0, 1]", images.dtype == np.uint8, (0, 255)),
            "reals": ("finite floats", False, LARGEST),
            "categories": (
                f"whole numbers from 0 to {spec.values - 1} or floats in [0, 1]",
                images.dtype.kind in "iub",
                (0, spec.values - 1),
            ),
        }[spec.support]
        if not (treated or whole):
            raise UserError(f"images: expected {in_words}; found {images.dtype}")
        shape = spec.shape if treated else spec.stored
        if images.shape[1:] != shape or not images.ndim or not len(images):
            axes = ", ".join(map(str, shape))
            one = f"; one {spec.noun} alone is images[None]" if images.shape == shape else ""
            raise UserError(f"images: expected shape (n, {axes}) with n at least 1; found {images.shape}{one}")
        if isinstance(images, Tracer):  # numbers are unknown, and must not wrap around in a smaller type
            return images if treated or spec.is_picture else images.astype(jnp.int32)
        if treated or not spec.is_picture:
            low, high = (0, 1) if treated and spec.support != "reals" else (low, high)
            least, most = images.min().item(), images.max().item()
            if not low <= least <= most <= high:  # also if one is not a number
                raise UserError(f"images: expected {in_words}; found {least} to {most}")
        return images if treated else images.astype(spec.dtype)

    def check_codes(codes: Any) -> Any:
        assert composition.posterior.codes
        most = composition.posterior.codes.values - 1
        if not isinstance(codes, Tracer) and len(codes) and not 0 <= codes.min() <= codes.max() <= most:
            raise UserError(f"z: expected codes from 0 to {most}; found {codes.min()} to {codes.max()}")
        return codes.astype(np.int32)

    def check_latents(z: Any) -> Any:
        z, codes = z if isinstance(z, jax.Array) else np.asarray(z), composition.posterior.codes
        if codes and jnp.issubdtype(z.dtype, jnp.integer) and z.ndim and len(z) and z.shape[1:] == codes.shape:
            return check_codes(z)
        if not (jnp.issubdtype(z.dtype, jnp.floating) or jnp.issubdtype(z.dtype, jnp.integer)):
            raise UserError(f"z: expected real numbers; found {z.dtype}")
        if z.ndim == 0 or z.shape[1:] != composition.latent_shape or not len(z):
            one = "; one z alone is z[None]" if z.shape == composition.latent_shape else ""
            shape = ", ".join(map(str, composition.latent_shape))
            raise UserError(f"z: expected shape (n, {shape}) with n at least 1; found {z.shape}{one}")
        return z if jnp.issubdtype(z.dtype, jnp.floating) else z.astype(float)

    def check_ways(how: dict[str, Any]) -> None:
        """Refuses values that are no temperature or no probability; traced values are unknown."""
        for name, most in (("temperature", LARGEST[1]), ("top_p", 1)):
            value = how.get(name, 1)
            if isinstance(value, Tracer):
                continue
            number = isinstance(value, int | float) or getattr(value, "shape", None) == ()
            if not number or not (0 <= value <= most) or (name == "top_p" and not value):
                least = "(0" if name == "top_p" else "[0"
                end = "1]" if name == "top_p" else "inf)"
                raise UserError(f"{argument(name)}: expected a number in {least}, {end}; found {value!r:.40}")

    def room_for(count: int) -> int:
        return min(1 << (count - 1).bit_length(), batches.BATCH)

    def in_turns(function: Callable[..., Any], variables: Variables, *arrays: Any) -> Any:
        """`function(variables, number, *batch)` over batches of the arrays' first axis, concatenated.

        The last batch is filled up to a size for which the function may be compiled already, and its results are cut:
        one z does not take a full batch's time, and other sizes do not take a compilation each. Traced arrays are
        computed at once, in the caller's program.
        """
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((variables, arrays))):
            return function(variables, np.int32(0), *arrays)
        parts = []
        for number, first in enumerate(range(0, len(arrays[0]), batches.BATCH)):
            batch = [None if array is None else array[first : first + batches.BATCH] for array in arrays]
            count = min(batches.BATCH, len(arrays[0]) - first)
            room = room_for(count)

            def fill(array: Any, count: int = count, room: int = room) -> Any:
                if array is None or room == count:
                    return array
                of = np if isinstance(array, np.ndarray) else jnp  # jax would compile the filling for each size
                return of.concatenate([array, of.broadcast_to(array[-1:], (room - count, *array.shape[1:]))])

            results = function(variables, np.int32(number), *map(fill, batch))
            if not parts:  # twice, since parts and result are in memory together
                size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(results)) / room
                check_memory(int(2 * size * len(arrays[0])), f"{len(arrays[0]):,} results of the model")
            parts.append(results if room == count else jax.tree.map(lambda array, n=count: array[:n], results))
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

    def treat(number: Any, images: Any) -> Array:
        """Levels as floats, treated in full batches, the first of which has this number.

        So the draws for an image do not depend on how many images there are.
        """
        parts = []
        for first in range(0, len(images), batches.BATCH):
            batch = images[first : first + batches.BATCH]
            size = len(batch)
            full = batch if size == batches.BATCH else batch[jnp.minimum(jnp.arange(batches.BATCH), size - 1)]
            parts.append(composition.treat(encoding_key(number + first // batches.BATCH), full)[:size])
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    @jax.jit
    def encode_batch(variables: Variables, number: Any, images: Any, labels: Any) -> dict[str, Array]:
        treated = images if jnp.issubdtype(images.dtype, jnp.floating) else treat(number, images)
        heads = composition.apply(variables, lambda model: model.encode(treated), labels=labels)[0]
        z = composition.center(variables, heads)[0]
        codes = composition.center_codes(variables, heads)
        return {**heads, "mu": z, **({} if codes is None else {"codes": codes})}

    @jax.jit
    def decode_batch(variables: Variables, number: Any, z: Any, labels: Any) -> Array:
        def decode(model: BoundModel) -> Array:
            made = model.vectors(z) if model.vectors and jnp.issubdtype(z.dtype, jnp.integer) else z
            return model.mean(model.decode(made))

        return composition.apply(variables, decode, labels=labels)[0]

    @partial(jax.jit, static_argnames="count")
    def draw_batch(variables: Variables, key: Any, labels: Any, how: Any, count: int) -> Array:
        return composition.sample_prior(variables, key, count, labels, **how)

    def make(variables: Variables) -> Model:
        def encode(images: Any, labels: Any = None) -> dict[str, Array]:
            images = check_images(images)
            return in_turns(encode_batch, variables, images, check(len(images), labels))

        def decode(z: Any, labels: Any = None) -> Array:
            z = check_latents(z)
            return in_turns(decode_batch, variables, z, check(len(z), labels))

        def reconstruct(images: Any, labels: Any = None) -> Array:
            return decode(encode(images, labels)["mu"], labels)

        def draw_in_blocks(key: Key[Array, ""], n: int, labels: Any, how: dict[str, Any]) -> Array:
            """Draws z in blocks, since drawing place by place takes much more memory than z itself."""
            parts = []
            for first in range(0, n, batches.BATCH):
                count = room_for(min(batches.BATCH, n - first))
                block = labels if labels is None else labels[np.minimum(np.arange(first, first + count), n - 1)]
                key_of_block = block_key(key, first // batches.BATCH)
                parts.append(draw_batch(variables, key_of_block, block, how, count)[: n - first])
            return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

        def draw(key: Key[Array, ""], n: Any, labels: Any = None, **how: Any) -> Array:
            try:
                n = operator.index(n)
            except TypeError as error:  # also jax's, if n is traced
                raise UserError(f"n: expected a whole number, known before anything is traced; found {n}") from error
            if n < 1:
                raise UserError(f"n: expected at least 1; found {n}")

            check_ways(how)
            if strange := [name for name in how if name not in composition.prior.how]:
                knows = (
                    f"which takes {listed(composition.prior.how)} only" if composition.prior.how else "which takes none"
                )
                raise UserError(f"{argument(strange[0])}: expected none with this model's prior, {knows}; found one")
            labels = None if labels is None else jnp.asarray(check(n, labels))
            if composition.prior.how:
                return draw_in_blocks(sampling_key(key), n, labels, how)

            def sample_prior(key: Key[Array, ""]) -> Array:
                return composition.sample_prior(variables, sampling_key(key), n, *([] if labels is None else [labels]))

            if n > MANY:
                check_memory(largest_operation(sample_prior, key), f"n {n}: drawing z from the prior")
            return sample_prior(key)

        def sample(key: Key[Array, ""], n: Any, labels: Any = None, **how: Any) -> Array:
            return decode(draw(key, n, labels, **how), labels)

        plane = composition.latent_shape == (2,) and not composition.posterior.codes
        if not objective.generative:
            return Model(encode, decode, reconstruct, None, composition.latent, None, composition.classes, plane)
        return Model(encode, decode, reconstruct, sample, composition.latent, draw, composition.classes, plane)

    def lower(variables: Variables, n: int) -> list[jax.stages.Lowered]:
        room, number = room_for(n), np.int32(0)
        variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
        images = jax.ShapeDtypeStruct((room, *composition.spec.stored), composition.spec.dtype)
        labels = jax.ShapeDtypeStruct((room,), jnp.int32) if composition.classes else None
        encoded = encode_batch.trace(variables, number, images, labels)
        z = jax.ShapeDtypeStruct((room, *composition.latent_shape), encoded.out_info["mu"].dtype)
        return [encoded.lower(), decode_batch.lower(variables, number, z, labels)]

    return ModelMaker(make, lower)
