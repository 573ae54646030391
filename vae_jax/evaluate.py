"""Evaluation and use of a trained model: the objective on held-out images, reconstructions, latents, samples.

Everything runs in batches inside one compiled call for each shape; BatchNorm uses its running statistics and
dropout is off.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, UInt8

from vae_jax import posteriors, priors
from vae_jax.config import Config
from vae_jax.errors import UserError
from vae_jax.feed import Feed
from vae_jax.likelihoods import pixel_mean
from vae_jax.models import Autoencoder, Network, Variables
from vae_jax.objectives import Objective, Terms, bind

BATCH = 250  # images at a time; no result depends on it but through the noise, which is drawn for each batch

Evaluator = Callable[[Variables, Key[Array, ""]], Terms]


def pixels(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Grey levels 0 to 255 as [0, 1]."""
    return images.astype(float) / 255


def _in_batches(function: Callable[..., Any], count: int, *arrays: Array, first: Int[Array, ""] | int = 0) -> Any:
    """`function(number, *batch)` over batches of the arrays' first axis, numbered from `first` on, joined again."""
    batches = -(-count // BATCH)
    # The last batch is filled up by repeating the last image; the surplus is cut off again.
    index = jnp.minimum(jnp.arange(batches * BATCH), count - 1).reshape(batches, BATCH)

    def body(_, number_and_index):
        number, index = number_and_index
        return None, function(number, *(array[index] for array in arrays))

    _, results = lax.scan(body, None, (first + jnp.arange(batches), index))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)


def make_evaluator(
    config: Config,
    network: Network,
    objective: Objective,
    images: UInt8[np.ndarray, "images h w c"],
    latent: str = "sample",
) -> Evaluator:
    """(variables, key) -> the objective's terms for each of these images, (images,) each.

    Args:
        config: of the run.
        network: built from it.
        objective: built from it.
        images: to evaluate on.
        latent: "sample" draws z from the posterior, one sample an image; "mean" takes its mean.
    """
    if latent not in ("sample", "mean"):
        raise UserError(f"--latent: expected sample or mean; found {latent!r}")
    sample = objective.posterior.sample if latent == "sample" else posteriors.mean
    feed = Feed(images, config.train.shard_images, BATCH)

    @jax.jit
    def evaluate_shard(
        variables: Variables, images: UInt8[Array, "images h w c"], first: Int[Array, ""], key: Key[Array, ""]
    ) -> Terms:
        def batch(number, images):
            def terms(autoencoder: Autoencoder) -> Terms:
                model = bind(autoencoder, sample)
                return objective.terms(jax.random.fold_in(key, number), model, pixels(images), config.objective)

            return network.apply(variables, terms)[0]

        return _in_batches(batch, len(images), images, first=first)

    def evaluate(variables: Variables, key: Key[Array, ""]) -> Terms:
        parts = [
            jax.tree.map(
                lambda part, count=shard.last - shard.first: part[:count],
                evaluate_shard(variables, shard.images, jnp.int32(shard.first // BATCH), key),
            )
            for shard in feed.shards()
        ]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *part: jnp.concatenate(part), *parts)

    return evaluate


def means(terms: Terms) -> tuple[float, float, float]:
    """Loss, reconstruction and KL per image, the mean over images taken in double precision."""
    loss, reconstruction, kl = (float(np.asarray(part, np.float64).mean()) for part in terms)
    return loss, reconstruction, kl


class Model(NamedTuple):
    """A trained model in use: pure, compiled functions of arrays.

    Attributes:
        encode: uint8 images (n, height, width, channels) -> {"mu", and "log_var" for a VAE}, each (n, latent);
            a UserError for images of another type.
        decode: z (n, latent) -> pictures (n, height, width, channels) in [0, 1].
        reconstruct: uint8 images -> pictures decoded from the posterior's mean.
        sample: (key, n) -> pictures decoded from the prior; None for an autoencoder, which has no prior.
        latent: dimensions of z.
    """

    encode: Callable[[ArrayLike], dict[str, Float[Array, "n latent"]]]
    decode: Callable[[ArrayLike], Float[Array, "n h w c"]]
    reconstruct: Callable[[ArrayLike], Float[Array, "n h w c"]]
    sample: Callable[[Key[Array, ""], int], Float[Array, "n h w c"]] | None
    latent: int


def make_model(config: Config, network: Network, objective: Objective, variables: Variables) -> Model:
    """The model with these variables, ready for use."""

    @jax.jit
    def encode(images):
        if images.dtype != jnp.uint8:
            raise UserError(f"images: expected uint8 levels 0 to 255; found {images.dtype}")

        def batch(_, images):
            return network.apply(variables, lambda autoencoder: autoencoder.encode(pixels(images)))[0]

        return _in_batches(batch, len(images), jnp.asarray(images))

    @jax.jit
    def decode(z):
        def batch(_, z):
            return pixel_mean(network.apply(variables, lambda autoencoder: autoencoder.decode(z))[0])

        return _in_batches(batch, len(z), jnp.asarray(z))

    def reconstruct(images):
        return decode(encode(images)["mu"])

    def sample(key, n):
        return decode(priors.standard_normal_sample(key, n, config.model.latent))

    return Model(encode, decode, reconstruct, sample if objective.generative else None, config.model.latent)
