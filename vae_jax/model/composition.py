"""A model as pure functions of its variables: q(z|x) × p(z) × p(x|z) × networks, put together."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, Shaped

from vae_jax.device.platforms import Platform
from vae_jax.likelihoods import Likelihood
from vae_jax.networks import Ties, Trace
from vae_jax.posteriors import Heads, Latents, Posterior
from vae_jax.priors import Prior
from vae_jax.spec import Spec
from vae_jax.variables import Variables

PARTS = ("posterior", "prior", "likelihood")  # beside the networks, of parts that have parameters


class Composition(NamedTuple):
    """A model as pure functions of its variables.

    Attributes:
        init: key -> Variables.
        apply: (variables, function, key=None, train=False, masks=None, labels=None, epoch=inf, streams=None,
            density=None) -> (function(BoundModel), updated Variables); see `vae_jax.networks.Network`. `labels` are of
            the images, (batch,), if the model gets them. With a density, every z that is drawn is the posterior's
            centre, and every density at z is this one.
        trace: (variables, function, key=None, train=False) -> Trace, of the same call.
        treat: (key, images as they are stored) -> floats; images in [0, 1], as `data.treatment` says.
        begin: (variables, key, images as they are stored, labels=None) -> the variables that training starts with; a
            codebook, for example, is made of data.
        sample_prior: (variables, key, count, labels=None, **how) -> z, (count, *latent_shape); `how` are arguments
            named in `Prior.how`.
        center: (variables, heads) -> the posterior's centre z and log q there, (batch, *latent_shape) and (batch,): the
            mean of a Gaussian; for a flow its image of the first Gaussian's mean.
        center_codes: (variables, heads) -> the codes that the centre is made of; None if it is made of none.
        ties: see `vae_jax.networks.Network`.
        posterior: q(z|x).
        prior: p(z).
        likelihood: p(x|z).
        classes: how many labels there are; 0 if the model gets none.
        latent: dimensions of z.
        latent_shape: of one z.
        spec: what an example is.
        platform: for which the functions are traced.
    """

    init: Callable[[Key[Array, ""]], Variables]
    apply: Callable[..., tuple[Any, Variables]]
    trace: Callable[..., Trace]
    treat: Callable[[Key[Array, ""] | None, Shaped[Array, "*stored"]], Float[Array, "*shape"]]
    begin: Callable[..., Variables]
    sample_prior: Callable[..., Latents]
    center: Callable[[Variables, Heads], tuple[Latents, Float[Array, "*batch"]]]
    center_codes: Callable[[Variables, Heads], Int[Array, "..."] | None]
    ties: Callable[[], Ties]
    posterior: Posterior
    prior: Prior
    likelihood: Likelihood
    classes: int
    latent: int
    latent_shape: tuple[int, ...]
    spec: Spec
    platform: Platform

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an example as the networks take it: (height, width, channels) of an image."""
        return self.spec.shape
