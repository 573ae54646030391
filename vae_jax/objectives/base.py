"""Objectives: pure functions that give a loss for each image."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.optimizer import Rule
from vae_jax.posteriors import KL, Heads, Latents, Posterior, Sample

Images = Float[Array, "batch *shape"]
Outputs = Float[Array, "*shape outputs"]


# Figures of a batch by name, with one number an image, (batch,), or one of the whole batch, ():
# "loss", which is minimised (for a VAE with β = 1 it is −ELBO);
# "reconstruction", minus the log-likelihood or the squared error, the mean over an image's samples;
# "kl", of the posterior from the prior, not weighted; if it is sampled, the mean of log q(z|x) − log p(z);
# and further names that an objective chooses. If z are made of codes, an evaluation adds those of every image,
# (batch, places).
Terms = dict[str, Float[Array | np.ndarray, "..."] | Int[Array | np.ndarray, "..."]]
FIGURES = ("loss", "reconstruction", "kl")


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of figures in the order in which they are shown: FIGURES first, then the rest by name."""
    names = set(names)
    return (*(name for name in FIGURES if name in names), *sorted(names.difference(FIGURES)))


class Figures(NamedTuple):
    """The figures that an objective has.

    Attributes:
        names: in order.
        of_batch: names of figures of the whole batch, as an estimate of a divergence from its images.
    """

    names: tuple[str, ...] = FIGURES
    of_batch: tuple[str, ...] = ()


class Draw(NamedTuple):
    """z ~ q(z|x) and its densities; (*batch,) is (batch,), or (samples, batch).

    Attributes:
        z: (*batch, latent), or of the posterior's shape.
        log_q: log q(z|x), (*batch,), in nats.
        log_pz: log p(z), (*batch,), in nats.
        log_px: log p(x|z), (*batch,), in nats.
        kl: KL(q(z|x) ‖ p(z)), (batch,), in nats; None if it has no closed form. Of a hierarchy the mean over samples of
            the KL given the layers above, see `vae_jax.posteriors.base.Decoded`.
        kl_by_dimension: the same by dimension, (batch, latent); None if there is no closed form, and of a hierarchy.
        cost: the posterior's term of a loss, (*batch,), as a codebook's commitment; None for nothing.
        heads: the posterior's, each (batch, size).
        outputs: the decoder's output for the likelihood, (*batch, height, width, outputs).
        figures: the posterior's figures of its sample, by name, as parts of the cost: (*batch,), or () for one of the
            batch.
        codes: that z is made of, if the posterior's are made of codes.
    """

    z: Latents
    log_q: Float[Array, "*batch"]
    log_pz: Float[Array, "*batch"]
    log_px: Float[Array, "*batch"]
    kl: Float[Array, "*batch"] | None
    kl_by_dimension: Float[Array, "*batch latent"] | None
    cost: Float[Array, "*batch"] | None
    heads: Heads
    outputs: Outputs
    figures: Mapping[str, Float[Array, "..."]] = {}
    codes: Int[Array, "..."] | None = None


class BoundModel(NamedTuple):
    """A model for objectives: q(z|x), p(z) and p(x|z), with the run's variables bound.

    An image may have several samples: z is then (samples, batch, latent), and so on. Values that an objective does not
    use are not computed.

    Attributes:
        draw: (key, images, samples=None, targets=None) -> Draw: all of it at once; log p(x|z) is of `targets`, if they
            differ from the images that are encoded.
        encode: images -> the posterior's heads, each (batch, size).
        sample: (key, heads, samples=None) -> z and log q(z|x): (batch, latent) and (batch,), or with an axis of samples
            before. z is the posterior's centre if an evaluation asks for it.
        decode: z -> the decoder's output for the likelihood, (*batch, height, width, outputs).
        log_likelihood: (images, decoder's output) -> log p(x|z), (*batch,).
        log_prior: z -> log p(z), (*batch,).
        log_posterior: (z, heads) -> log q(z|x), (*batch,), with a gradient through z only: q's parameters get none.
        kl: heads -> KL(q(z|x) ‖ p(z)), (batch,); None if it has no closed form.
        kl_by_dimension: the same by dimension, (batch, latent).
        mean: decoder's output -> E[x|z].
        epoch: epochs trained, with their fraction; infinite in evaluation, when every schedule has ended.
        own: the objective's parameters: what its `init` gives, after training.
        support: the kind of an example's numbers: "levels" in [0, 1], "reals", or "categories", one-hot.
        codes: z -> the codes that it is made of, see `vae_jax.posteriors.Codes`; None if it is made of none.
        vectors: codes -> z; None without codes.
        distances: heads -> distances of the encoder's vectors from their codes; None without codes.
        noise: (key, leading axes) -> the posterior's noise, of which it makes z.
        transform: (noise, heads) -> Sample, of heads with the noise's leading axes; `draw` and `sample` call it with
            noise of their own.
        train: whether this is a step of training.
    """

    draw: Callable[..., Draw]
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
    own: PyTree = None
    support: str = "levels"
    codes: Callable[[Latents], Int[Array, "..."]] | None = None
    vectors: Callable[[Int[Array, "..."]], Latents] | None = None
    distances: Callable[[Heads], Float[Array, "..."]] | None = None
    noise: Callable[[Key[Array, ""], tuple[int, ...]], PyTree] | None = None
    transform: Callable[[PyTree, Heads], Sample] | None = None
    train: bool = False


def make_draw(
    encode: Callable[[Images], Heads],
    sample: Callable[..., Sample],
    decode: Callable[[Latents], Outputs],
    log_likelihood: Callable[[Images, Outputs], Array],
    log_prior: Callable[..., Array],
    kl: Callable[[Heads], Array] | None,
    kl_by_dimension: Callable[[Heads], Array] | None,
) -> Callable[..., Draw]:
    """`BoundModel.draw` of a model; `sample` gives a whole Sample, which is decoded if z is drawn in the decoder."""

    def draw(key: Key[Array, ""], images: Images, samples: int | None = None, targets: Images | None = None) -> Draw:
        heads = encode(images)
        z, log_q, cost, _, decoded, figures, codes = sample(key, heads, samples)
        outputs = decoded.outputs if decoded else decode(z)
        log_px = log_likelihood(images if targets is None else targets, outputs)
        if decoded:
            once = decoded.kl if samples is None else decoded.kl.mean(0)
            return Draw(z, log_q, decoded.log_pz, log_px, once, None, cost, heads, outputs, figures)
        closed_form = kl and kl(heads), kl_by_dimension and kl_by_dimension(heads)
        log_pz = log_prior(z) if codes is None else log_prior(z, codes)
        return Draw(z, log_q, log_pz, log_px, *closed_form, cost, heads, outputs, figures, codes)

    return draw


class Phase(NamedTuple):
    """A further part of a step, with a loss for some of the parameters.

    It sees the changes of the phases before it, and is differentiated with respect to the parameters that it trains
    only: a critic's gradient does not reach the model, nor the model's the critic.

    Attributes:
        name: begins the names of its figures, as in "critic_loss".
        terms: as an objective's.
        trains: names of the parts whose parameters it changes, at the top level of `Variables.params`.
        optimizer: the run's optimiser -> the phase's, which has a state of its own.
        still: whether the model is as in evaluation: no dropout, and no state changes.
    """

    name: str
    terms: Callable[..., Terms]
    trains: tuple[str, ...]
    optimizer: Callable[[Rule], Rule] = lambda rule: rule
    still: bool = False


class Around(NamedTuple):
    """The parts around an objective.

    Attributes:
        posterior: q(z|x).
        closed: its KL from the prior, if that has a closed form.
        q: the posterior's name, for messages.
        p: the prior's name.
        support: the kind of an example's numbers, see `BoundModel`.
        learned: -> whether the prior has parameters.
    """

    posterior: Posterior
    closed: KL | None
    q: str
    p: str
    support: str = "levels"
    learned: Callable[[], bool] = lambda: False


def check_gradient(gradient: str, around: Around) -> None:
    """Refuses a gradient that needs q(z|x) at any z, if it is not known there.

    Raises:
        UserError: naming the posterior.
    """
    if gradient != "standard" and not around.posterior.log_prob:
        known_where = f"standard with {around.q}, whose density is known at its own samples only"
        raise UserError(f"objective.gradient: expected {known_where}; found {gradient}")


class Objective(NamedTuple):
    """A registered objective.

    Attributes:
        terms: (key, model, images, options) -> Terms. The annotation of `options` names the dataclass of its options,
            see `vae_jax.options`.
        unit: of the loss, the reconstruction and the KL.
        generative: whether there are q(z|x), p(z) and p(x|z); an autoencoder has only a code.
        apart: options -> whether it weighs the samples' gradients one by one, so that samples must not depend on one
            another.
        check: (options, parts around it) -> None, or a UserError if these options need other parts.
        init: (key, options, latent shape, image shape) -> parameters of the objective's networks, by names that neither
            the model's parts nor its networks have.
        trains: names of the parts whose parameters its loss changes; None for all but those that later phases train.
        then: further phases of a step.
        still: of the first phase, see `Phase`.
        units: of other figures, by name.
        figures: that it has, see `Figures`; None until they have been traced.
        options: of the configuration that it was built from.
        scores: whether it estimates the gradient through samples of a posterior that is not reparameterized.
    """

    terms: Callable[[Key[Array, ""], BoundModel, Images, Any], Terms]
    unit: str = "nats per image"
    generative: bool = True
    apart: Callable[[Any], bool] = lambda options: False
    check: Callable[[Any, Around], None] = lambda options, around: None
    init: Callable[[Key[Array, ""], Any, tuple[int, ...], tuple[int, ...]], dict[str, PyTree]] | None = None
    trains: tuple[str, ...] | None = None
    then: tuple[Phase, ...] = ()
    still: bool = False
    units: Mapping[str, str] = {}
    figures: "Figures | None" = None
    options: Any = None
    scores: bool = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases of a step; the first one has the objective's own terms."""
        return Phase("", self.terms, self.trains or (), still=self.still), *self.then

    def trained(self, phase: Phase, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The parameters that a phase trains."""
        later = {name for further in self.then for name in further.trains}
        names = phase.trains or [name for name in params if name not in later]
        return {name: params[name] for name in names}

    def unit_of(self, figure: str) -> str:
        """The unit of a figure."""
        return self.units.get(figure, self.unit if figure in FIGURES else "unit not stated")
