"""Estimates of log p(x): by importance sampling from q(z|x), and by annealed importance sampling from the prior.

Both draw the noise of an image by its place among the images and of a sample by its number. So results depend on the
sizes of batches and chunks through rounding only, and the first samples of many are those of few. With the same key
both estimates are of the same binarised images.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, Shaped

from vae_jax import objectives
from vae_jax.config import Config
from vae_jax.errors import UserError, argument
from vae_jax.keys import first_z_key, image_keys, move_key, sample_key
from vae_jax.model.composition import Composition
from vae_jax.model.fits import check_vectors
from vae_jax.programs.sizes import check_memory
from vae_jax.variables import Variables

# A chunk holds as many samples of z as decode to about this many numbers, whatever the number of samples and images:
# 2 MB in float32 on a CPU, which stays in the cache, and 256 MB elsewhere. A chunk needs that a few times over, for the
# decoder's output, the images and the layers. On a CPU as many chunks are computed at a time as there are cores, up to
# THREADS.
CPU_NUMBERS, NUMBERS = 1 << 19, 1 << 26
THREADS = 8
ROWS = 512, 1 << 16  # samples of z in a chunk at most, on a CPU and elsewhere

TARGET = 0.65  # of HMC's acceptance
ADAPTATION = 0.02  # relative change of the step size from one temperature to the next
FIRST_STEP = 0.1  # size of a leapfrog step at the prior
PILOTS = 4  # chains that find the step sizes
STEEPNESS = 4.0  # of the sigmoid that spaces the temperatures


def importance_nll(
    config: Config,
    composition: Composition,
    variables: Variables,
    images: Shaped[np.ndarray, "images *stored"],
    key: Key[Array, ""],
    samples: int,
    *,
    labels: Int[np.ndarray, " images"] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, " images"]:
    """−log p̂(x), (images,), in nats, p̂(x) = 1/k Σ p(x|z)·p(z) / q(z|x) with z ~ q(z|x).

    p̂ is unbiased, so the mean of −log p̂ is an upper bound of −log p(x) that falls as k grows (Burda et al. 2016,
    equation 8 and theorem 1). All k samples are of the same treated image; dynamic binarisation draws it once.

    Args:
        config: of the run.
        composition: built from it.
        variables: of the network.
        images: as a split holds them, levels 0 to 255.
        key: of the treatment and of the samples.
        samples: k.
        labels: of the images, if the model gets them.
        on_progress: called with the number of images done and of all images.

    Raises:
        UserError: if k is below 1, the model is an autoencoder, which has no p(x), or memory does not suffice.
    """
    _require(config, samples=samples)
    if composition.posterior.single:
        raise UserError(
            f"{argument('samples')}: expected a posterior with samples to weigh; found posterior "
            f"{config.posterior.name}, whose samples are all the same: the bound is reconstruction + KL"
        )
    rows = _rows(composition)
    chunks = -(-samples // rows)
    chunk = -(-samples // chunks)

    def estimate(variables, images, labels, keys, _):
        treated = jax.vmap(composition.treat)(keys.treatment, images)

        def of_model(function):
            return composition.apply(variables, function, labels=labels)[0]

        heads = of_model(lambda model: model.encode(treated))

        def weigh(model, numbers):
            by_image = jax.vmap(sample_key, (0, None))
            sample_keys = jax.vmap(by_image, (None, 0))(keys.importance, numbers)  # keys of (samples, images)
            z, log_q = jax.vmap(jax.vmap(model.sample), (0, None))(sample_keys, heads)
            return model.log_likelihood(treated, model.decode(z)) + model.log_prior(z) - log_q

        def add(carry, numbers):
            log_w = of_model(lambda model: weigh(model, numbers))
            return _log_add(carry, jnp.where((numbers < samples)[:, None], log_w, -jnp.inf)), None

        start = jnp.full(len(images), -jnp.inf), jnp.zeros(len(images))
        return lax.scan(add, start, jnp.arange(chunks * chunk).reshape(chunks, chunk))[0]

    what = argument("samples", samples)
    top, total = _over_images(what, estimate, variables, images, labels, key, rows // chunk, on_progress)
    return math.log(samples) - top - np.log(total)


def annealed_nll(
    config: Config,
    composition: Composition,
    variables: Variables,
    images: Shaped[np.ndarray, "images *stored"],
    key: Key[Array, ""],
    *,
    temperatures: int = 500,
    chains: int = 16,
    leapfrog: int = 10,
    exact: Float[np.ndarray, "images latent"] | None = None,
    labels: Int[np.ndarray, " images"] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, " images"]:
    """−log p̂(x), (images,), in nats, by annealed importance sampling, which does not need q(z|x).

    A chain goes from p(z) to p(z)·p(x|z) over p(z)·p(x|z)^β, β rising from 0 to 1 along a sigmoid, with one step of
    Hamiltonian Monte Carlo at every temperature; p̂ is the mean of the chains' weights (Neal 2001, equations 4 and 11;
    Wu et al. 2017, section 3). A few pilot chains of the image, which are not counted, adapt the size of the leapfrog
    steps at every temperature: so p̂ is unbiased, and E[−log p̂] an upper bound of −log p(x).

    For images that the model drew itself, the chains can go backwards from the z drawn, an exact sample of p(z|x): then
    1/p̂ is the mean of the inverse weights and E[−log p̂] a lower bound. The two enclose −log p(x) (bidirectional Monte
    Carlo, Grosse et al. 2015, section 3.1).

    Args:
        config: of the run.
        composition: built from it.
        variables: of the network.
        images: as a split holds them, levels 0 to 255.
        key: of the treatment and of the chains.
        temperatures: steps of β.
        chains: for each image.
        leapfrog: steps of a transition.
        exact: samples of p(z|x), to go backwards from; by default the chains go forwards from the prior.
        labels: of the images, if the model gets them.
        on_progress: called with the number of images done and of all images.

    Raises:
        UserError: if a number is below 1, the model is an autoencoder, which has no p(x), its z are made of codes, or
            memory does not suffice.
    """
    _require(config, temperatures=temperatures, chains=chains, leapfrog=leapfrog)
    check_vectors(composition, "annealed importance sampling, which moves z along gradients")
    betas = _sigmoid_schedule(temperatures)

    def estimate(variables, images, labels, keys, exact):
        treated = jax.vmap(composition.treat)(keys.treatment, images)

        def of_model(function):
            return composition.apply(variables, function, labels=labels)[0]

        def log_prior(z):
            value = of_model(lambda model: model.log_prior(z))
            return value.sum(), value

        def log_likelihood(z):
            value = of_model(lambda model: model.log_likelihood(treated, model.decode(z)))
            return value.sum(), value

        def at(z):
            """z, log p(z), log p(x|z), and their gradients."""
            (_, prior), prior_gradient = jax.value_and_grad(log_prior, has_aux=True)(z)
            (_, likelihood), likelihood_gradient = jax.value_and_grad(log_likelihood, has_aux=True)(z)
            return z, prior, likelihood, prior_gradient, likelihood_gradient

        def anneal(first, keys, betas, sizes=None):
            """log w of the chains, (chains, images), and the leapfrog steps' sizes: those given, or adapted ones."""

            def move(carry, step):
                point, log_w, adapted = carry
                number, last_beta, beta, size_given = step
                size = adapted if size_given is None else size_given
                log_w = log_w + (beta - last_beta) * point[2]
                noise, uniform = jax.vmap(partial(_draw, shape=(len(first), composition.latent)), (0, None), 1)(
                    keys, number
                )
                point, accepted = _hmc(at, point, beta, size, leapfrog, noise, uniform)
                adapted = size * jnp.where(accepted.mean(0) > TARGET, 1 + ADAPTATION, 1 - ADAPTATION)
                return (point, log_w, adapted), size

            start = at(first), jnp.zeros(first.shape[:2]), jnp.full(len(images), FIRST_STEP)
            steps = jnp.arange(1, temperatures), jnp.asarray(betas[:-2]), jnp.asarray(betas[1:-1]), sizes
            (point, log_w, _), sizes = lax.scan(move, start, steps)
            return log_w + (betas[-1] - betas[-2]) * point[2], sizes  # a move after the last weight changes nothing

        def from_prior(keys, chains):
            draw = partial(composition.sample_prior, variables)
            return jax.vmap(lambda key: draw(first_z_key(key), chains), 0, 1)(keys)

        _, sizes = anneal(from_prior(keys.pilots, PILOTS), keys.pilots, betas)
        if exact is None:
            log_w, _ = anneal(from_prior(keys.chains, chains), keys.chains, betas, sizes)
        else:
            first = jnp.broadcast_to(jnp.asarray(exact, float), (chains, *exact.shape))
            log_w, _ = anneal(first, keys.chains, betas[::-1], sizes[::-1])
        return _log_add((jnp.full(len(images), -jnp.inf), jnp.zeros(len(images))), log_w)

    batch = max(1, _rows(composition) // max(chains, PILOTS))
    what = argument("chains", chains)
    top, total = _over_images(what, estimate, variables, images, labels, key, batch, on_progress, exact)
    nll = math.log(chains) - top - np.log(total)
    return nll if exact is None else -nll


def _require(config: Config, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name}: expected at least 1; found {count}")
    if not objectives.get(config.objective).generative:
        raise UserError(f"objective.name: expected one with a p(x), to estimate it; found {config.objective.name}")


def _rows(composition: Composition) -> int:
    """The number of samples of z that are decoded at a time."""
    on_cpu = jax.default_backend() == "cpu"
    numbers, most = (CPU_NUMBERS, ROWS[0]) if on_cpu else (NUMBERS, ROWS[1])
    return min(most, max(1, numbers // math.prod(composition.image_shape)))


def _log_add(carry: tuple[Array, Array], log_w: Float[Array, "samples images"]) -> tuple[Array, Array]:
    """Adds Σ w over samples to the images' sums, which are held as (m, s), s·eᵐ."""
    top, total = carry
    new = jnp.maximum(top, log_w.max(0))
    shift = jnp.where(jnp.isneginf(new), 0, new)  # all weights are 0 so far
    return new, total * jnp.exp(top - shift) + jnp.exp(log_w - shift[None]).sum(0)


def _over_images(
    what: str,
    estimate: Callable[..., tuple[Array, Array]],
    variables: Variables,
    images: Shaped[np.ndarray, "images *stored"],
    labels: Int[np.ndarray, " images"] | None,
    key: Key[Array, ""],
    batch: int,
    on_progress: Callable[[int, int], None] | None,
    exact: Float[np.ndarray, "images latent"] | None = None,
) -> tuple[Float[np.ndarray, " images"], Float[np.ndarray, " images"]]:
    """`estimate(variables, images, labels, keys, exact)` over batches of images, in double precision on the host.

    Batches are independent, and on a CPU several threads compute one each: XLA itself uses several cores only for
    matrix products.
    """
    count, batch = len(images), min(batch, len(images))

    def arguments() -> Iterator[tuple[Any, ...]]:
        for first in range(0, count, batch):
            # The last batch is filled up by repeating the last image; the surplus is cut off below.
            index = np.minimum(np.arange(first, first + batch), count - 1)
            batch_labels = None if labels is None else labels[index].astype(np.int32)
            yield variables, images[index], batch_labels, None if exact is None else exact[index], index, key

    def run(variables, images, labels, exact, index, key):
        return estimate(variables, images, labels, jax.vmap(image_keys, (None, 0))(key, index), exact)

    # Compiled here: contexts such as jax.enable_x64 hold for this thread only.
    compiled = jax.jit(run).lower(*next(arguments())).compile()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(cores, THREADS) if jax.default_backend() == "cpu" else 1
    needed: Any = compiled.memory_analysis()
    check_memory(threads * needed.temp_size_in_bytes, f"{what}: the arrays of a batch of images")
    parts = []
    pool = ThreadPoolExecutor(threads)
    try:
        for part in pool.map(lambda values: [np.asarray(x, np.float64) for x in compiled(*values)], arguments()):
            parts.append(part)
            if on_progress:
                on_progress(min(len(parts) * batch, count), count)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C a running batch may take minutes
    top, total = (np.concatenate(column)[:count] for column in zip(*parts, strict=True))
    return top, total


def _sigmoid_schedule(temperatures: int) -> Float[np.ndarray, " _"]:
    """The temperatures β, from 0 to 1, densest at both ends (Wu et al. 2017, section 4.1)."""
    sigmoid = 1 / (1 + np.exp(-np.linspace(-STEEPNESS, STEEPNESS, temperatures + 1)))
    return ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).astype(np.float32)


def _draw(key: Key[Array, ""], number: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """One image's momenta, (chains, latent), and uniform numbers, (chains,)."""
    noise_key, uniform_key = jax.random.split(move_key(key, number))
    return jax.random.normal(noise_key, shape), jax.random.uniform(uniform_key, shape[:1])


def _hmc(at, point, beta, size, leapfrog, momentum, uniform):
    """One transition of Hamiltonian Monte Carlo (Neal 2011, figure 2), with p(z)·p(x|z)^β invariant.

    Args:
        at: z -> (z, log p(z), log p(x|z), ∇log p(z), ∇log p(x|z)).
        point: at(z), z being (chains, images, latent).
        beta: the temperature.
        size: of the images' leapfrog steps, (images,).
        leapfrog: steps.
        momentum: standard normal, shaped as z.
        uniform: in [0, 1), (chains, images).

    Returns:
        at(the next z), and the probability of acceptance, (chains, images).
    """
    size = size[None, :, None]

    def energy(point, momentum):
        return jnp.square(momentum).sum(-1) / 2 - point[1] - beta * point[2]

    def force(point):
        return point[3] + beta * point[4]

    def step(carry, _):
        point, momentum = carry
        momentum = momentum + size / 2 * force(point)
        point = at(point[0] + size * momentum)
        return (point, momentum + size / 2 * force(point)), None

    (proposed, end), _ = lax.scan(step, (point, momentum), length=leapfrog)
    change = energy(point, momentum) - energy(proposed, end)
    probability = jnp.where(jnp.isnan(change), 0, jnp.exp(jnp.minimum(change, 0)))
    take = uniform < probability
    chosen = jax.tree.map(
        lambda new, old: jnp.where(take.reshape(*take.shape, *[1] * (new.ndim - 2)), new, old), proposed, point
    )
    return chosen, probability
