"""The posteriors of a split, image by image."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vae_jax.keys import batch_keys
from vae_jax.model.batches import in_batches
from vae_jax.model.composition import Composition
from vae_jax.objectives import BoundModel
from vae_jax.posteriors import Heads, Latents
from vae_jax.variables import Variables

ACTIVE = 0.01  # a unit is active if the variance of its mean over the images is larger
INERT = 0.01  # nats; a dimension whose mean KL is smaller says next to nothing about the image


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

    # The variables are an argument: as constants the compiler would compute with them, for seconds.
    @jax.jit
    def posteriors(variables: Variables, key: Key[Array, ""], images: Any, labels: Any = None) -> Posteriors:
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

    return partial(posteriors, variables)


class Use(NamedTuple):
    """How much the dimensions of z are used.

    Attributes:
        by: the measure: "KL", the mean of a dimension's KL(q(z|x) ‖ p(z)) over images, in nats, if the KL has parts by
            dimension; otherwise "variance", that of the posterior's centre over images.
        order: the dimensions' numbers, the most used one first, (latent,).
        use: of the dimensions in this order, (latent,).
        inert: whether they are next to unused, (latent,).
    """

    by: str
    order: Int[np.ndarray, " latent"]
    use: Float[np.ndarray, " latent"]
    inert: Bool[np.ndarray, " latent"]


def use_of_dimensions(
    composition: Composition, variables: Variables, key: Key[Array, ""], images: Any, labels: Any = None
) -> Use:
    """How much the dimensions of z, a vector, are used by images of a split; with labels if the model gets them."""
    posteriors = make_posteriors(composition, variables)(key, images, labels)

    def mean_kl(model: BoundModel) -> Array | None:
        return model.kl_by_dimension and model.kl_by_dimension(posteriors.heads).mean(0)

    kl = composition.apply(variables, mean_kl)[0]
    by, least = ("variance", ACTIVE) if kl is None else ("KL", INERT)
    centers = np.asarray(posteriors.centers, np.float64).reshape(len(posteriors.centers), -1)
    use = np.asarray(centers.var(0) if kl is None else kl, np.float64)
    order = np.argsort(-use, kind="stable")
    return Use(by, order, use[order], use[order] < least)
