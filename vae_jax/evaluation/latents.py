"""The posteriors of a split, image by image."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vae_jax.keys import batch_keys
from vae_jax.model.batches import in_batches
from vae_jax.model.composition import Composition
from vae_jax.objectives import BoundModel
from vae_jax.posteriors import Heads, Latents
from vae_jax.variables import Variables


class Posteriors(NamedTuple):
    """What the encoder makes of images, with one z drawn for each.

    Attributes:
        heads: of the posterior, each (images, size).
        centers: the posteriors' centres, (images, latent).
        z: drawn from each, (images, latent); of an autoencoder its code.
        log_q: log q(z|x) of it, (images,), in nats; 0 for an autoencoder.
        log_p: log p(z), (images,), in nats; of no meaning for an autoencoder.
    """

    heads: Heads
    centers: Latents
    z: Latents
    log_q: Float[Array, " images"]
    log_p: Float[Array, " images"]


def make_posteriors(network: Composition, variables: Variables) -> Callable[..., Posteriors]:
    """(key, images of a split, labels=None) -> Posteriors; labels where the model is told them."""

    @jax.jit
    def posteriors(key: Key[Array, ""], images: Any, labels: Any = None) -> Posteriors:
        def batch(number, images, labels):
            z_key, treatment_key = batch_keys(key, number)
            treated = network.treat(treatment_key, images)

            def look(model: BoundModel) -> Posteriors:
                heads = model.encode(treated)
                z, log_q = model.sample(z_key, heads)
                return Posteriors(heads, z, z, log_q, model.log_prior(z))

            found = network.apply(variables, look, labels=labels)[0]
            return found._replace(centers=network.center(variables, found.heads)[0])

        return in_batches(batch, len(images), jnp.asarray(images), labels)

    return posteriors
