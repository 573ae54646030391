"""All random keys, one per purpose, as functions of the seed and of counts.

Code that gets a key (an objective, a part's `init`, a prior's `sample`, dropout) owns all keys derived from it, and may
split or fold it in any way. JAX's `fold_in(key, i)` equals `split(key, n)[i]`, so a second purpose must never be
another child of a key that was given away: it is a sibling, with its own number in this table. Steps, batches and
images count from 0, far below LAST = 2³² − 1.

| key | number | purpose |
|---|---|---|
| `key(seed)` | 0 INIT | the networks' and parts' initialisation |
| | 1 SHUFFLE | the orders of the images: one per epoch |
| | 2 STEPS | training: one per step |
| | 3 EVALUATE | evaluation |
| | 4 SAMPLES | the run's own pictures from the prior, drawn as `Model.sample` does |
| | 5 SAMPLING | `Model.sample` and `vae-jax sample`, whose `--seed` may be the run's |
| | 6 SAMPLERS | the fit of a distribution that replaces the prior, see `vae_jax.evaluation.samplers` |
| | 7 ENCODING | of seed 0: the treatment of images in `Model.encode`, one per batch |
| | 8 PROBING | of seed 0: a step in which a network is only examined |
| INIT | the key itself | the draw of a named initialisation |
| | LAST PARTS | 0, 1, 2: the parameters of the posterior, the prior, the likelihood |
| | LAST − 1 OWN_NETWORK | the initialisers of a user's own network |
| | LAST − 2 OBJECTIVES | an objective's own networks |
| | LAST − 3 BEGIN | parts that are made from data: a key like a step's |
| a step's | 0, 1 | the objective, dropout |
| | 2 TREATMENT | the images' treatment |
| | 3 STREAMS | a network's further random numbers in training |
| | 4 PHASES | an objective's further phases, from 1: one key like a step's per phase |
| EVALUATE, a key of latents | a batch's number | the objective, or z ~ q(z given x) |
| | LAST − 1 TREATMENTS | the images' treatment: one per batch |
| | LAST − 2 TRAINING_IMAGES | the training images' latents, beside those of the evaluated images |
| | LAST − 3 FURTHER | an objective's further phases, from 1: one key like EVALUATE per phase |
| EVALUATE | LAST AFTERWARDS | 0: estimates of log p(x); 1: the latents of the diagnostics |
| estimates | an image's place | the image's |
| an image's | 0 IMAGE | its treatment |
| | 1 IMPORTANCE | importance sampling: one per sample |
| | 2 PILOTS, 3 CHAINS | annealing: 0 FIRST_Z for the chains' starts, then one per temperature, from 1 |
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Int, Key, UInt

OneKey = Key[Array, ""]
Number = int | Int[Array, ""] | UInt[Array, ""]

INIT, SHUFFLE, STEPS, EVALUATE, SAMPLES, SAMPLING, SAMPLERS, ENCODING, PROBING = range(9)  # of a seed
TREATMENT, STREAMS, PHASES = 2, 3, 4  # of a step; its 0 and 1 come from `split`
LAST = 2**32 - 1
PARTS, OWN_NETWORK, OBJECTIVES, BEGIN = LAST, LAST - 1, LAST - 2, LAST - 3  # of INIT
AFTERWARDS, TREATMENTS, TRAINING_IMAGES, FURTHER = LAST, LAST - 1, LAST - 2, LAST - 3  # of EVALUATE
ESTIMATES, DIAGNOSTICS = range(2)  # of AFTERWARDS
IMAGE, IMPORTANCE, PILOTS, CHAINS = range(4)  # of an image, in an estimate
FIRST_Z = 0  # of PILOTS and CHAINS; temperatures count from 1


class Keys(NamedTuple):
    """A run's keys, one per purpose, all from the seed."""

    init: OneKey
    shuffle: OneKey
    steps: OneKey
    evaluate: OneKey
    samples: OneKey
    samplers: OneKey


def make_keys(seed: int | UInt[Array, ""]) -> Keys:
    """The keys of a run with this seed."""
    root = jax.random.key(seed)
    return Keys(*(jax.random.fold_in(root, number) for number in (INIT, SHUFFLE, STEPS, EVALUATE, SAMPLES, SAMPLERS)))


def part_key(init: OneKey, part: int) -> OneKey:
    """The key for the parameters of the posterior (0), the prior (1) or the likelihood (2)."""
    return jax.random.fold_in(jax.random.fold_in(init, PARTS), part)


def own_network_key(init: OneKey) -> OneKey:
    """The key for the initialisers of a user's own network."""
    return jax.random.fold_in(init, OWN_NETWORK)


def objective_key(init: OneKey) -> OneKey:
    """The key for the initialisation of an objective's own networks."""
    return jax.random.fold_in(init, OBJECTIVES)


def begin_key(init: OneKey) -> OneKey:
    """A key like a step's, for parts that are made from data before the first step, as a codebook."""
    return jax.random.fold_in(init, BEGIN)


def epoch_key(shuffle: OneKey, epoch: Number) -> OneKey:
    """The key for the order of an epoch, counted from 0."""
    return jax.random.fold_in(shuffle, epoch)


def step_key(steps: OneKey, step: Number) -> OneKey:
    """The key of a step of the run, counted from 0; only `step_keys` uses it."""
    return jax.random.fold_in(steps, step)


class StepKeys(NamedTuple):
    """The keys of one step of training.

    Attributes:
        objective: for the objective, above all for the reparameterization's noise.
        dropout: for dropout.
        treatment: for the images' treatment.
        streams: for a network's further random numbers in training.
    """

    objective: OneKey
    dropout: OneKey
    treatment: OneKey
    streams: OneKey


def step_keys(key: OneKey) -> StepKeys:
    """The keys of one step."""
    objective, dropout = jax.random.split(key)  # both in one call, in the innermost loop
    return StepKeys(objective, dropout, jax.random.fold_in(key, TREATMENT), jax.random.fold_in(key, STREAMS))


def phase_key(key: OneKey, phase: Number) -> OneKey:
    """A key like a step's, for an objective's further phase, counted from 1; `key` is the step's."""
    return jax.random.fold_in(jax.random.fold_in(key, PHASES), phase)


def further_key(evaluate: OneKey, phase: Number) -> OneKey:
    """A key like an evaluation's, for an objective's further phase, counted from 1."""
    return jax.random.fold_in(jax.random.fold_in(evaluate, FURTHER), phase)


def batch_keys(evaluate: OneKey, batch: Number) -> tuple[OneKey, OneKey]:
    """The two keys of a batch of an evaluation: for the objective, or for z ~ q(z|x); and for the images' treatment."""
    treatments = jax.random.fold_in(evaluate, TREATMENTS)
    return jax.random.fold_in(evaluate, batch), jax.random.fold_in(treatments, batch)


def estimates_key(evaluate: OneKey) -> OneKey:
    """The key for every estimate of log p(x), so that all are of the same images."""
    return jax.random.fold_in(jax.random.fold_in(evaluate, AFTERWARDS), ESTIMATES)


def diagnostics_key(evaluate: OneKey) -> OneKey:
    """The key for the latents of the diagnostics."""
    return jax.random.fold_in(jax.random.fold_in(evaluate, AFTERWARDS), DIAGNOSTICS)


def training_images_key(key: OneKey) -> OneKey:
    """The key for the training images' latents; `key` is for those of the evaluated images."""
    return jax.random.fold_in(key, TRAINING_IMAGES)


def encoding_key(batch: Number) -> OneKey:
    """The key for the treatment of a batch of images that are encoded; does not depend on the run's seed."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), ENCODING), batch)


def probing_key() -> OneKey:
    """The key of a step in which a network is only examined, see `step_keys`."""
    return jax.random.fold_in(jax.random.key(0), PROBING)


def showing_key() -> OneKey:
    """The key for the samples that show a model in a notebook or on a page: always the same."""
    return jax.random.key(0)


def block_key(key: OneKey, block: Number) -> OneKey:
    """The key for one block of new images' z, counted from 0; `key` is for all blocks."""
    return jax.random.fold_in(key, block)


def sampling_key(key: OneKey) -> OneKey:
    """The key for new images' z, from a key that may be `jax.random.key` of the run's seed."""
    return jax.random.fold_in(key, SAMPLING)


class ImageKeys(NamedTuple):
    """The keys of one image in an estimate of its log p(x).

    Attributes:
        treatment: for its treatment.
        importance: for importance sampling; see `sample_key`.
        pilots: for the chains that find annealing's step sizes; see `first_z_key` and `move_key`.
        chains: for the chains that count.
    """

    treatment: OneKey
    importance: OneKey
    pilots: OneKey
    chains: OneKey


def image_keys(estimates: OneKey, place: Number) -> ImageKeys:
    """The keys of the image at this place, from 0."""
    key = jax.random.fold_in(estimates, place)
    return ImageKeys(*(jax.random.fold_in(key, number) for number in (IMAGE, IMPORTANCE, PILOTS, CHAINS)))


def sample_key(importance: OneKey, sample: Number) -> OneKey:
    """The key for a sample of z, counted from 0."""
    return jax.random.fold_in(importance, sample)


def first_z_key(chains: OneKey) -> OneKey:
    """The key for the chains' starts."""
    return jax.random.fold_in(chains, FIRST_Z)


def move_key(chains: OneKey, temperature: Number) -> OneKey:
    """The key for the chains' move at a temperature, counted from 1."""
    return jax.random.fold_in(chains, temperature)
