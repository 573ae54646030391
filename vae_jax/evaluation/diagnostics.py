"""How a trained model uses its latent space: units in use, the aggregate posterior, reconstructions, labels.

The functions take posteriors and pictures (see `vae_jax.evaluation.latents.make_posteriors`); `diagnose` gives all
figures of a trained model.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from vae_jax import objectives
from vae_jax.config import Config
from vae_jax.data.split import Split
from vae_jax.data.treatments import treatment_of
from vae_jax.errors import UserError, argument
from vae_jax.evaluation.latents import ACTIVE, make_posteriors
from vae_jax.keys import training_images_key
from vae_jax.model.batches import in_batches
from vae_jax.model.composition import Composition
from vae_jax.model.fits import check_vectors
from vae_jax.posteriors import Heads
from vae_jax.variables import Variables

BLOCK = 256  # pairs of z and posterior are computed in blocks of BLOCK × BLOCK, which bounds the memory
NEIGHBOURS = 5

# (z (n, latent), heads (m, size)) -> log q(z_i|x_j), (n, m), in nats.
PairwiseLogProb = Callable[[Any, Heads], Any]
OnProgress = Callable[[int, int], None]  # (done, total)


class Surgery(NamedTuple):
    """The KL term of the ELBO, cut in two (Hoffman & Johnson 2016, section 2): their sum is E KL(q(z|x) ‖ p(z)).

    Attributes:
        aggregate_kl: KL(q(z) ‖ p(z)) in nats, where q(z) is the mean of all images' posteriors.
        mutual_information: I_q(x; z) in nats; at most `limit`. Noise may take both estimates a little beyond their
            bounds, and so below 0.
        limit: log of the number of images.
    """

    aggregate_kl: float
    mutual_information: float
    limit: float


def unit_variances(centers: Float[Array, "images latent"]) -> Float[np.ndarray, " latent"]:
    """The activity of latent units over the images, Cov_x(E_q(z|x)[z]) (Burda et al. 2016, section 5.2).

    Args:
        centers: the posteriors' means; for a flow, its centres.
    """
    return np.asarray(centers, np.float64).var(0)


def active_units(variances: Float[np.ndarray, " latent"], threshold: float = ACTIVE) -> int:
    """How many units are active: those with a variance above the threshold (Burda et al. 2016, section 5.2)."""
    return int((variances > threshold).sum())


def aggregate_log_prob(
    log_prob: PairwiseLogProb,
    heads: Heads,
    z: Float[Array, "images latent"],
    total: int | None = None,
    on_progress: OnProgress | None = None,
) -> Float[np.ndarray, " images"]:
    """log q(z), (images,), in nats, with q(z) = 1/N Σₙ q(z|xₙ) (Hoffman & Johnson 2016, section 2).

    All images' posteriors make it exact. If the M images are a part of N, z's own image has the weight 1/N and the rest
    (N − 1)/(N (M − 1)), so that q(z), though not its logarithm, is without bias (Chen et al. 2018, appendix C.2,
    minibatch stratified sampling); with equal weights log q(z) would be too high by up to log N/M.

    Args:
        log_prob: of every z under every posterior, (n, m); compiled here, for blocks of BLOCK × BLOCK.
        heads: of the images' posteriors, (images, size) each.
        z: one from each posterior, in the same order.
        total: N, if there are more images than these M.
        on_progress: called with the number of z done and of all z.

    Raises:
        ValueError: if `total` is less than the number of images.
    """
    images = len(z)
    total = images if total is None else total
    if total < images:
        raise ValueError(f"total: expected at least the {images} images; found {total}")
    log_weight_of_own = -np.log(total)
    log_weight_of_rest = np.log((total - 1) / (total * (images - 1))) if images > 1 else 0.0
    blocks = -(-images // BLOCK)
    places = jnp.arange(blocks * BLOCK).reshape(blocks, BLOCK)

    def blocked(array: Array) -> Array:  # fills the last block up; `places` excludes the surplus
        return array[jnp.minimum(places, images - 1)]

    @jax.jit
    def block(z: Array, rows: Array, heads: Heads) -> Array:
        def add(log_sum: Array, columns_and_heads: tuple[Array, Heads]) -> tuple[Array, None]:
            columns, heads = columns_and_heads
            weight = jnp.where(rows[:, None] == columns[None, :], log_weight_of_own, log_weight_of_rest)
            weight = jnp.where((columns < images)[None, :], weight, -jnp.inf)
            log_terms = log_prob(z, heads) + weight
            return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_terms, -1)), None

        return lax.scan(add, jnp.full(BLOCK, -jnp.inf), (places, heads))[0]

    heads, z = jax.tree.map(blocked, heads), blocked(z)
    parts = []
    for number in range(blocks):
        parts.append(np.asarray(block(z[number], places[number], heads)))
        if on_progress:
            on_progress(min((number + 1) * BLOCK, images), images)
    return np.concatenate(parts)[:images]


def elbo_surgery(
    log_prob: PairwiseLogProb,
    heads: Heads,
    z: Float[Array, "images latent"],
    log_q: Float[Array, " images"],
    log_p: Float[Array, " images"],
    total: int | None = None,
    on_progress: OnProgress | None = None,
) -> Surgery:
    """KL(q(z) ‖ p(z)) and I_q(x; z) by Monte Carlo (Hoffman & Johnson 2016, equations 6 to 8).

    They are the means over images, with one z ~ q(z|x) an image, of log q(z) − log p(z) and of log q(z|x) − log q(z).
    With all N images q(z) is exact and the estimates have no bias. With M < N images log q(z) depends on the choice of
    images and is too low on average (Jensen), so that the information is too high and the KL too low.

    Args:
        log_prob: see `aggregate_log_prob`, as for `heads`, `total` and `on_progress`.
        heads: of the posteriors.
        z: one from each posterior.
        log_q: log q(z|x) of z under its own image.
        log_p: log p(z).
        total: N, if there are more images than these.
        on_progress: called with the number of z done and of all z.
    """
    log_aggregate = aggregate_log_prob(log_prob, heads, z, total, on_progress).astype(np.float64)
    information = float((np.asarray(log_q, np.float64) - log_aggregate).mean())
    kl = float((log_aggregate - np.asarray(log_p, np.float64)).mean())
    return Surgery(kl, information, float(np.log(len(z) if total is None else total)))


def check_density(config: Config, composition: Composition) -> None:
    """Refuses a posterior without a density at any z, which the aggregate posterior needs.

    Raises:
        UserError: naming the posterior.
    """
    if composition.posterior.log_prob is None:
        reason = f"posterior {config.posterior.name}, whose density is known at its own samples only"
        if not objectives.get(config.objective).generative:
            reason = f"objective {config.objective.name}, whose code has no density"
        name = argument("diagnostics")
        raise UserError(f"{name}: the aggregate posterior needs a posterior's density at any z; found {reason}")


def pairwise_log_prob(composition: Composition, variables: Variables) -> PairwiseLogProb:
    """log q(z_i|x_j) of a model's posteriors."""

    def log_prob(z: Array, heads: Heads) -> Array:
        count = len(next(iter(heads.values())))
        z_by_image = jnp.broadcast_to(z[:, None, :], (len(z), count, z.shape[-1]))

        def look(model: Any) -> Array:
            return model.log_posterior(z_by_image, heads)

        return composition.apply(variables, look)[0]

    return log_prob


def make_squared_error(composition: Composition, variables: Variables) -> Callable[..., Array]:
    """(images of a split, z, labels=None) -> ‖x − E[x|z]‖², (images,), summed over pixels and channels.

    x are the images' grey levels in [0, 1] without `data.treatment`; or an example's real numbers, or its one-hot
    categories.
    """
    plain = treatment_of(composition.spec)

    @jax.jit
    def squared_error(variables: Variables, images: Any, z: Any, labels: Any = None) -> Array:
        def batch(_, images, z, labels):
            pictures = composition.apply(variables, lambda model: model.mean(model.decode(z)), labels=labels)[0]
            return jnp.square(plain(None, images) - pictures).sum(range(1, pictures.ndim))

        return in_batches(batch, len(images), jnp.asarray(images), z, labels)

    return partial(squared_error, variables)


def linear_probe(
    train_latents: Float[np.ndarray, "train latent"],
    train_labels: Int[np.ndarray, " train"],
    latents: Float[np.ndarray, "test latent"],
    labels: Int[np.ndarray, " test"],
) -> float:
    """The accuracy on test images of a logistic regression on standardised latents, learned on training images."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    middle, scale = train_latents.mean(0), train_latents.std(0)
    scale = np.where(scale > 0, scale, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy has long settled by then
        probe = LogisticRegression(max_iter=1000).fit((train_latents - middle) / scale, train_labels)
    return float(np.mean(probe.predict((latents - middle) / scale) == labels))


def nearest_neighbours(
    train_latents: Float[np.ndarray, "train latent"],
    train_labels: Int[np.ndarray, " train"],
    latents: Float[np.ndarray, "test latent"],
    labels: Int[np.ndarray, " test"],
    neighbours: int = NEIGHBOURS,
) -> float:
    """The accuracy on test images of a vote of the nearest training images.

    Latents are not standardised: an uninformative unit would otherwise count as much as any other.
    """
    from sklearn.neighbors import KNeighborsClassifier

    vote = KNeighborsClassifier(min(neighbours, len(train_labels))).fit(train_latents, train_labels)
    return float(np.mean(vote.predict(latents) == labels))


def diagnose(
    config: Config,
    composition: Composition,
    variables: Variables,
    split: Split,
    key: Key[Array, ""],
    *,
    train: Split | None = None,
    report: Callable[[str], None] = warnings.warn,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Every diagnostic figure of a trained model on the same images.

    Args:
        config: of the run.
        composition: built from it.
        variables: trained.
        split: the images.
        key: for the latents drawn.
        train: the training images, if they are not `split`: labels are learned from their latents.
        report: called with a line for figures that this model has not.
        on_progress: called with the progress of the aggregate posterior.

    Returns:
        "active_units" and "unit_variances" (one a unit); "aggregate_kl", "mutual_information" and
        "mutual_information_limit" in nats, see `Surgery`; "squared_error" and "squared_error_per_pixel" of the pictures
        decoded from the posteriors' centres, from the images' grey levels in [0, 1]; "probe_accuracy" and
        "knn_accuracy" of the centres. None for figures that the model has not: the aggregate posterior of a posterior
        without a density, accuracies without two classes of labels or without `train`.
    """
    check_vectors(composition, "diagnostics")
    posteriors = make_posteriors(composition, variables)

    def encode(split: Split, key: Key[Array, ""]) -> Any:
        return posteriors(key, split.images, split.labels if config.model.classes else None)

    results = encode(split, key)
    centers = np.asarray(results.centers)
    variances = unit_variances(results.centers)
    surgery = None
    try:
        check_density(config, composition)
    except UserError as error:
        report(str(error))
    else:
        log_prob = pairwise_log_prob(composition, variables)
        surgery = elbo_surgery(
            log_prob, results.heads, results.z, results.log_q, results.log_p, on_progress=on_progress
        )
    labels = split.labels if config.model.classes else None
    errors = np.asarray(make_squared_error(composition, variables)(split.images, results.centers, labels), np.float64)
    probe = knn = None
    if train is not None and train.labels is not None and split.labels is not None and np.ptp(train.labels):
        learned_from = np.asarray(encode(train, training_images_key(key)).centers)
        if np.isfinite(learned_from).all() and np.isfinite(centers).all():
            probe = linear_probe(learned_from, train.labels, centers, split.labels)
            knn = nearest_neighbours(learned_from, train.labels, centers, split.labels)
    return {
        "active_units": active_units(variances),
        "unit_variances": variances.tolist(),
        "aggregate_kl": surgery and surgery.aggregate_kl,
        "mutual_information": surgery and surgery.mutual_information,
        "mutual_information_limit": surgery and surgery.limit,
        "squared_error": float(errors.mean()),
        "squared_error_per_pixel": float(errors.mean() / np.prod(composition.image_shape)),
        "probe_accuracy": probe,
        "knn_accuracy": knn,
    }
