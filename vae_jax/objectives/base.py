"""What an objective is: a pure function that gives each image its loss."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key

from vae_jax.config import ObjectiveConfig
from vae_jax.models import Autoencoder
from vae_jax.posteriors import DIAGONAL_GAUSSIAN, Heads, Latents, Posterior

Images = Float[Array, "batch height width channels"]


class Terms(NamedTuple):
    """A loss and its two parts, per image, each (batch,).

    Attributes:
        loss: what is minimised; for a VAE with β = 1 it is −ELBO.
        reconstruction: minus the log-likelihood, or the squared error.
        kl: of the posterior from the prior, not weighted.
    """

    loss: Float[Array, " *batch"]
    reconstruction: Float[Array, " *batch"]
    kl: Float[Array, " *batch"]


class Model(NamedTuple):
    """What an objective works with.

    Attributes:
        encode: images in [0, 1] -> the posterior's heads.
        sample: (key, heads) -> z; the posterior's, or its mean where an evaluation asks for it.
        decode: z -> logits.
    """

    encode: Callable[[Images], Heads]
    sample: Callable[[Key[Array, ""], Heads], Latents]
    decode: Callable[[Latents], Images]


class Objective(NamedTuple):
    """A registered objective.

    Attributes:
        terms: (key, model, images, config) -> Terms, one value per image.
        posterior: the family the encoder parametrises.
        unit: of the loss.
        generative: whether new images can be decoded from the prior.
    """

    terms: Callable[[Key[Array, ""], Model, Images, ObjectiveConfig], Terms]
    posterior: Posterior = DIAGONAL_GAUSSIAN
    unit: str = "nats per image"
    generative: bool = True


def bind(autoencoder: Autoencoder, sample: Callable[[Key[Array, ""], Heads], Latents]) -> Model:
    """The model an objective sees, with this way to draw z."""
    return Model(autoencoder.encode, sample, autoencoder.decode)
