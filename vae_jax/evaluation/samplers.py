"""Samplers of z that are fitted to a trained model's latents and take the prior's place.

They are fitted to one z ~ q(z|x) of every training image, not to the posteriors' means: the decoder has learned on such
samples, so a sampler has to match their density, q(z). The means are narrower, and have no spread at all in a collapsed
dimension. An autoencoder's z is its code, and drawing it makes it generative.
"""

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from vae_jax.errors import UserError, argument
from vae_jax.evaluation.latents import make_posteriors
from vae_jax.model.composition import Composition
from vae_jax.model.fits import check_vectors
from vae_jax.posteriors.gaussian import LOG_2PI, diagonal_kl, diagonal_transform
from vae_jax.registry import lookup
from vae_jax.variables import Variables

Sampler = Callable[[Key[Array, ""], int], Float[Array, "count latent"]]  # (key, count) -> z
OnProgress = Callable[[int, int], None]  # (done, total)

COMPONENTS = 10  # of the mixture, as in Ghosh et al. 2020, section 4
STEPS, BATCH, HIDDEN, LEARNING_RATE = 4000, 256, (128, 128), 3e-3  # of the second stage: well below a minute
BLOCK = 1 << 28  # bytes that drawing takes at most, whatever the number of z
CALLS = 20  # of its training, between which progress is reported


def gaussian_mixture(
    latents: Float[np.ndarray, "images latent"],
    key: Key[Array, ""],
    on_progress: OnProgress | None = None,
    *,
    components: int = COMPONENTS,
) -> Sampler:
    """A mixture of Gaussians with full covariances, fitted by EM (Ghosh et al. 2020, section 4).

    Args:
        latents: z of the training images.
        key: of EM's start.
        on_progress: not called.
        components: of the mixture; at most one for each image.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    _check(latents)
    seed = int(np.asarray(jax.random.bits(key, dtype=np.uint32)))
    mixture = GaussianMixture(min(components, len(latents)), covariance_type="full", random_state=seed, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a likelihood that still creeps up changes no picture
        mixture.fit(np.float64(latents))
    logits = jnp.log(jnp.asarray(mixture.weights_, jnp.float32))
    middles = jnp.asarray(mixture.means_, jnp.float32)
    roots = jnp.asarray(np.linalg.cholesky(np.asarray(mixture.covariances_)), jnp.float32)

    def sample(key: Key[Array, ""], count: int) -> Array:
        which, noise = jax.random.split(key)
        chosen = jax.random.categorical(which, logits, shape=(count,))

        def place(chosen: Array, normal: Array) -> Array:
            return middles[chosen] + jnp.einsum("nij,nj->ni", roots[chosen], normal)

        normal = jax.random.normal(noise, (count, latents.shape[1]))
        return _in_blocks(place, roots[0].nbytes, chosen, normal)

    return sample


def second_stage(
    latents: Float[np.ndarray, "images latent"],
    key: Key[Array, ""],
    on_progress: OnProgress | None = None,
    *,
    steps: int = STEPS,
) -> Sampler:
    """A second VAE, of z: u ~ N(0, I), z ~ p(z|u) (Dai & Wipf 2019, section 4).

    Its latent u has as many dimensions as z, its likelihood is a Gaussian with one learned variance, and encoder and
    decoder are MLPs whose last layers also see the input (as in the paper). It learns on standardised z.

    Args:
        latents: z of the training images.
        key: of its initialisation, batches and noise.
        on_progress: called with the numbers of steps done and of all steps.
        steps: of Adam, in batches of 256, with a learning rate that falls to 0 (cosine).
    """
    _check(latents)
    latent = latents.shape[1]
    middle, scale = latents.mean(0), latents.std(0)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    data = jnp.asarray((latents - middle) / scale)
    encoder_key, decoder_key, steps_key = jax.random.split(key, 3)
    params = {
        "encoder": _init_mlp(encoder_key, latent, 2 * latent),
        "decoder": _init_mlp(decoder_key, latent, latent),
        "log_scale": jnp.zeros(()),
    }
    adam = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def loss(params: PyTree, z: Array, key: Key[Array, ""]) -> Array:
        mu, log_var = jnp.split(_mlp(params["encoder"], z), 2, -1)
        heads = {"mu": mu, "log_var": log_var}
        u, _ = diagonal_transform({}, jax.random.normal(key, mu.shape), heads)
        log_scale = params["log_scale"]
        squares = jnp.square((z - _mlp(params["decoder"], u)) * jnp.exp(-log_scale))
        minus_log_likelihood = (0.5 * squares + log_scale + LOG_2PI / 2).sum(-1)
        return (minus_log_likelihood + diagonal_kl(heads).sum(-1)).mean()

    @partial(jax.jit, donate_argnums=0)
    def run(
        state: tuple[PyTree, PyTree], data: Array, key: Key[Array, ""], first: Int[Array, ""], last: Int[Array, ""]
    ) -> tuple[PyTree, PyTree]:
        def step(number: Array, state: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            params, opt_state = state
            batch_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
            z = data[jax.random.randint(batch_key, (min(BATCH, len(data)),), 0, len(data))]
            change, opt_state = adam.update(jax.grad(loss)(params, z, noise_key), opt_state, params)
            return optax.apply_updates(params, change), opt_state

        return lax.fori_loop(first, last, step, state)

    state, ends = (params, adam.init(params)), np.linspace(0, steps, CALLS + 1).astype(int)
    for first, last in itertools.pairwise(ends):
        state = jax.block_until_ready(run(state, data, steps_key, jnp.int32(first), jnp.int32(last)))
        if on_progress:
            on_progress(int(last), steps)
    trained = state[0]

    def sample(key: Key[Array, ""], count: int) -> Array:
        u_key, noise_key = jax.random.split(key)
        shape = (count, latent)

        def decode(u: Array, noise: Array) -> Array:
            z = _mlp(trained["decoder"], u) + jnp.exp(trained["log_scale"]) * noise
            return jnp.broadcast_to(middle, z.shape) + jnp.broadcast_to(scale, z.shape) * z

        normals = jax.random.normal(u_key, shape), jax.random.normal(noise_key, shape)
        return _in_blocks(decode, 4 * (sum(HIDDEN) + 4 * latent), *normals)

    return sample


def _in_blocks(function: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """`function` of rows of arrays, block by block; a row takes `size` bytes."""
    rows = max(1, BLOCK // size)
    parts = [function(*(array[i : i + rows] for array in arrays)) for i in range(0, len(arrays[0]), rows)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


# (latents, key, on_progress=None) -> Sampler.
SAMPLERS = {"gmm": gaussian_mixture, "second_stage": second_stage}


def fit_sampler(
    source: str,
    composition: Composition,
    variables: Variables,
    images: Shaped[np.ndarray, "images *stored"],
    key: Key[Array, ""],
    labels: Int[np.ndarray, " images"] | None = None,
    on_progress: OnProgress | None = None,
) -> Sampler:
    """A sampler fitted to a trained model's latents.

    Args:
        source: gmm or second_stage.
        composition: of the run.
        variables: trained.
        images: the training images.
        key: of the latents drawn and of the fit.
        labels: of the images, if the model gets them; z is drawn without regard to them, as from a prior.
        on_progress: called with the numbers of steps done and of all steps.

    Raises:
        UserError: if the name is unknown or the model's latents are not finite.
    """
    check_vectors(composition, argument("source"))
    fit: Any = lookup(SAMPLERS, source, argument("source"))
    latents_key, fit_key = jax.random.split(key)
    latents = np.asarray(make_posteriors(composition, variables)(latents_key, images, labels).z)
    return fit(latents, fit_key, on_progress)


def _check(latents: Float[np.ndarray, "images latent"]) -> None:
    if not np.isfinite(latents).all():
        raise UserError(
            f"{argument('source')}: expected latents of the training images that are finite numbers; found others"
        )


def _init_mlp(key: Key[Array, ""], inputs: int, outputs: int) -> list[PyTree]:
    """Hidden layers, and a last one that sees the input too; weights as He et al. 2015, biases 0."""
    into = [inputs, *HIDDEN[:-1], HIDDEN[-1] + inputs]
    out = [*HIDDEN, outputs]
    gains = [2.0] * len(HIDDEN) + [1.0]
    return [
        {"w": jax.random.normal(key, (rows, columns)) * np.sqrt(gain / rows), "b": jnp.zeros(columns)}
        for key, rows, columns, gain in zip(jax.random.split(key, len(into)), into, out, gains, strict=True)
    ]


def _mlp(layers: list[PyTree], inputs: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
    *hidden, last = layers
    x = inputs
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None, :])
    return jnp.concatenate([x, inputs], -1) @ last["w"] + last["b"][None, :]
