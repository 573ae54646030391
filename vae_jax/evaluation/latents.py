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
    """The posteriors of images, with one z drawn from each.

    Attributes:
        heads: of the posterior, each (images, size).
        centers: the posteriors' centres, (images, latent).
        z: drawn from them, (images, latent); an autoencoder's code.
        log_q: log q(z|x), (images,), in nats; 0 for an autoencoder.
        log_p: log p(z), (images,), in nats; meaningless for an autoencoder.
    """

    heads: Heads
    centers: Latents
    z: Latents
    log_q: Float[Array, " images"]
    log_p: Float[Array, " images"]


def make_posteriors(composition: Composition, variables: Variables) -> Callable[..., Posteriors]:
    """(key, images of a split, labels=None) -> Posteriors; with labels if the model gets them."""

    @jax.jit
    def posteriors(key: Key[Array, ""], images: Any, labels: Any = None) -> Posteriors:
        def batch(number, images, labels):
            z_key, treatment_key = batch_keys(key, number)
            treated = composition.treat(treatment_key, images)

            def look(model: BoundModel) -> Posteriors:
                heads = model.encode(treated)
                z, log_q = model.sample(z_key, heads)
                return Posteriors(heads, z, z, log_q, model.log_prior(z))

            results = composition.apply(variables, look, labels=labels)[0]
            return results._replace(centers=composition.center(variables, results.heads)[0])

        return in_batches(batch, len(images), jnp.asarray(images), labels)

    return posteriors
