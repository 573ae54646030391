"""A trained model's encoder and decoder as pure functions with the weights inside, to be exported."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax.config import with_options
from vae_jax.device.platforms import Platform
from vae_jax.errors import UserError, argument
from vae_jax.model.build import build
from vae_jax.objectives import BoundModel
from vae_jax.training.state import Trained

PLATFORM = Platform("native")  # XLA's own convolutions, which other tools have as well


class Function(NamedTuple):
    """A function to export.

    Attributes:
        name: encode, decode, or decode_codes.
        call: arrays, by position -> {output: array}.
        inputs: names, shapes and types of the arguments; the first axis is the batch, which is symbolic.
        outputs: names of the results, sorted.
        values: how many values an input of whole numbers has: labels, codes.
    """

    name: str
    call: Callable[..., dict[str, Array]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]
    values: dict[str, int]


def refused(to: str, message: str) -> UserError:
    """The error of an export to a format that cannot be made."""
    return UserError(f"{argument('to', to)}: {message}")


@contextmanager
def for_any_batch(option: str) -> Iterator[None]:
    """A context in which functions are traced for a batch of any size.

    Raises:
        UserError: if one computes with the batch's size, as a user's own network may.
    """
    try:
        yield
    except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
        if isinstance(error, TypeError) and "_DimExpr" not in str(error):
            raise
        raise UserError(
            f"{option}: expected networks for a batch of any size; found one that computes with the size: it takes "
            f"x.shape[0] for len(x), and -1 for an axis that is reshaped"
        ) from error


def functions_of(trained: Trained, precision: str | None = None) -> list[Function]:
    """The functions of a trained model, for any platform and any batch, computed in its own precision or another.

    `encode` takes images in [0, 1], (batch, height, width, channels), or examples of another kind as the networks take
    them; it gives the posterior's heads, (batch, …), with its centre as "mu", and "codes", if there are any. `decode`
    takes z, (batch, *latent), and gives "pictures", E[x|z]; `decode_codes` takes whole numbers. All take labels too,
    (batch,), if the model gets them.
    """
    config, variables = trained.config, trained.variables
    if hasattr(config.model.options, "convolution"):
        config = with_options(config, **{"model.convolution": "auto"})
    if precision:
        config = with_options(config, **{"model.precision": precision})
    composition, _ = build(config, trained.image_shape, PLATFORM)

    def decode(z: Array, labels: Array | None = None) -> dict[str, Array]:
        def pictures(model: BoundModel) -> Array:
            given = model.vectors(z) if model.vectors and jnp.issubdtype(z.dtype, jnp.integer) else z
            return model.mean(model.decode(given))

        return {"pictures": composition.apply(variables, pictures, labels=labels)[0]}

    def encode(images: Array, labels: Array | None = None) -> dict[str, Array]:
        heads = composition.apply(variables, lambda model: model.encode(images), labels=labels)[0]
        codes = composition.center_codes(variables, heads)
        return {**heads, "mu": composition.center(variables, heads)[0], **({} if codes is None else {"codes": codes})}

    def function(name: str, call: Callable[..., Any], first: str, shape: tuple[int, ...], dtype: Any) -> Function:
        (batch,) = jax.export.symbolic_shape("batch")
        inputs, values = {first: jax.ShapeDtypeStruct((batch, *shape), dtype)}, {}
        if composition.posterior.codes and first == "codes":
            values[first] = composition.posterior.codes.values
        if composition.classes:
            inputs["labels"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
            values["labels"] = composition.classes
        try:
            with for_any_batch(argument("to")):
                outputs = jax.eval_shape(call, *inputs.values())
        except UserError:  # a network that takes len(x), as users' own may, sees one example at a time
            call = _one_by_one(call)
            outputs = jax.eval_shape(call, *inputs.values())
        return Function(name, call, inputs, tuple(sorted(outputs)), values)

    floats = jnp.result_type(float)
    functions = [
        function("encode", encode, "images", composition.spec.shape, floats),
        function("decode", decode, "z", composition.latent_shape, floats),
    ]
    if codes := composition.posterior.codes:
        functions.append(function("decode_codes", decode, "codes", codes.shape, jnp.int32))
    return functions


def _one_by_one(call: Callable[..., dict[str, Array]]) -> Callable[..., dict[str, Array]]:
    """The function with batches of one example, mapped over the batch."""

    def of_one(*arguments: Array) -> dict[str, Array]:
        return jax.tree.map(lambda array: array[0], call(*(argument[None] for argument in arguments)))

    return jax.vmap(of_one)
