"""What an objective is: a pure function that gives each image its loss."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key

from vae_jax.config import ObjectiveConfig
from vae_jax.posteriors import Heads, Latents

Images = Float[Array, "batch height width channels"]
Outputs = Float[Array, "*batch height width outputs"]


class Terms(NamedTuple):
    """A loss and its two parts, per image, each (batch,).

    Attributes:
        loss: what is minimised; for a VAE with β = 1 it is −ELBO.
        reconstruction: minus the log-likelihood, or the squared error; the mean over an image's samples.
        kl: of the posterior from the prior, not weighted; where it is sampled, the mean of log q(z|x) − log p(z).
    """

    loss: Float[Array, " *batch"]
    reconstruction: Float[Array, " *batch"]
    kl: Float[Array, " *batch"]


class Model(NamedTuple):
    """What an objective works with: q(z|x), p(z) and p(x|z), with the run's variables bound.

    An image may have several samples: z is then (samples, batch, latent), and so on.

    Attributes:
        encode: images -> the posterior's heads, each (batch, size).
        sample: (key, heads, samples=None) -> z and log q(z|x): (batch, latent) and (batch,), or with an axis of samples
            before. Where an evaluation asks for it, z is the posterior's centre.
        decode: z -> what the likelihood makes of the decoder's output, (*batch, height, width, outputs).
        log_likelihood: (images, decoder's output) -> log p(x|z), (*batch,).
        log_prior: z -> log p(z), (*batch,).
        log_posterior: (z, heads) -> log q(z|x), (*batch,), through z alone: q's own parameters get no gradient.
        kl: heads -> KL(q(z|x) ‖ p(z)), (batch,); None where it has no closed form.
        kl_by_dimension: the same for each dimension, (batch, latent).
        mean: decoder's output -> E[x|z].
        epoch: epochs trained, with their fraction; infinite in evaluation, where every schedule has ended.
    """

    encode: Callable[[Images], Heads]
    sample: Callable[..., tuple[Latents, Float[Array, "*batch"]]]
    decode: Callable[[Latents], Outputs]
    log_likelihood: Callable[[Images, Outputs], Float[Array, "*batch"]]
    log_prior: Callable[[Latents], Float[Array, "*batch"]]
    log_posterior: Callable[[Latents, Heads], Float[Array, "*batch"]] | None
    kl: Callable[[Heads], Float[Array, "*batch"]] | None
    kl_by_dimension: Callable[[Heads], Float[Array, "*batch latent"]] | None
    mean: Callable[[Outputs], Outputs]
    epoch: Float[Array, ""]


class Objective(NamedTuple):
    """A registered objective.

    Attributes:
        terms: (key, model, images, config) -> Terms, one value per image.
        unit: of the loss.
        generative: whether there are q(z|x), p(z) and p(x|z) at all; an autoencoder has but a code.
        apart: whether it weighs the gradient of each sample by itself, so that samples must not depend on one another.
    """

    terms: Callable[[Key[Array, ""], Model, Images, ObjectiveConfig], Terms]
    unit: str = "nats per image"
    generative: bool = True
    apart: bool = False
