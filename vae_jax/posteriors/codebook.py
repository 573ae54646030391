"""Vector quantisation: a posterior that puts all of q(z|x) on the nearest vectors of a learned codebook."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.options import one_of
from vae_jax.posteriors.base import Codes, Heads, Latents, Posterior, Sample
from vae_jax.posteriors.places import over_codes, places_of, precise
from vae_jax.shapes import Shapes
from vae_jax.variables import Variables

LLOYD_STEPS = 10  # of k-means, when a codebook is made of data
SMALLEST = 1e-12  # of a squared length that is divided by
KEPT = 32  # of the rows of codes that a search among stages goes on with
SEARCHED = 256  # vectors searched at a time

Vectors = Float[Array, "n latent"]
Codebook = Float[Array, "codes latent"]


@dataclass(frozen=True)
class CodebookOptions:
    """Of codebook.

    Attributes:
        codes: vectors of the codebook, K.
        places: the shape of the codes of an image, as [7, 7]; null takes the network's own map.
        stages: of residual quantisation, each with a codebook for what the ones before have left.
        update: of the codebook: ema (moving averages of what is assigned to a code) or gradient.
        decay: of the moving averages; with gradient, of the counts alone; the literature's 0.99 is slow at first.
        commitment: β, weight of the encoder's distance from its code.
        weight: of both code terms, beside the reconstruction.
        revival: a code whose average count is less than this part of the mean one becomes a vector of the batch; 0 for
            none.
        estimator: of the gradient through the choice of a code: straight_through or rotation.
        distance: euclidean, or cosine, between vectors of length 1.
    """

    codes: Annotated[int, "[1, 1048576]"] = 512
    places: Annotated[tuple[int, ...] | None, "[1, 65536]"] = None
    stages: Annotated[int, "[1, 64]"] = 1
    update: Annotated[str, one_of("ema", "gradient")] = "ema"
    decay: Annotated[float, "[0, 1)"] = 0.95
    commitment: Annotated[float, "[0, inf)"] = 0.25
    weight: Annotated[float, "(0, inf)"] = 1.0
    revival: Annotated[float, "[0, 1)"] = 0.05
    estimator: Annotated[str, one_of("straight_through", "rotation")] = "straight_through"
    distance: Annotated[str, one_of("euclidean", "cosine")] = "euclidean"

    def __post_init__(self):
        if self.stages > 1 and self.distance == "cosine":
            raise UserError("posterior.distance: expected euclidean with several stages; found cosine")


def codebook(options: CodebookOptions, shapes: Shapes) -> Posterior:
    """All of q(z|x) on the codes nearest to the encoder's vectors, one at each place (VQ-VAE).

    (van den Oord et al. 2017, section 3; the moving averages are appendix A.1's.) An encoder's vector E at a place
    becomes the nearest code e, and the loss has Σ β‖E − sg(e)‖² and, where the codebook follows a gradient,
    Σ‖sg(E) − e‖² beside it, summed over places and dimensions, so that no weight depends on the batch's size. A code
    whose average count falls below a part of the mean of all counts, which is the uniform share, becomes one of the
    batch's vectors, without which most codes die.
    """
    places, latent, count, stages = places_of(options.places, shapes), shapes.latent, options.codes, options.stages
    shape, rows_of_codes = (*places, latent), places if stages == 1 else (*places, stages)
    cosine, learned = options.distance == "cosine", options.update == "gradient"

    def normal(vectors: Float[Array, "*any latent"]) -> Float[Array, "*any latent"]:
        return _unit(vectors) if cosine else vectors

    def codebooks(own: Variables) -> Float[Array, "stages codes latent"]:
        return normal(own.params["codes"] + own.state["moved"]) if learned else own.state["codes"]

    def with_codes(codes: Float[Array, "stages codes latent"], counts: Float[Array, "stages codes"]) -> Variables:
        if learned:
            return Variables({"codes": codes}, {"moved": jnp.zeros_like(codes), "counts": counts})
        return Variables({}, {"codes": codes, "counts": counts})

    def init(key: Key[Array, ""]) -> Variables:
        codes = jax.random.normal(key, (stages, count, latent)) / math.sqrt(latent)
        return with_codes(normal(codes), jnp.ones((stages, count)))

    def begin(own: Variables, key: Key[Array, ""], heads: Heads) -> Variables:
        """The codebooks by k-means of what the encoder makes of some images, stage by stage."""
        left = normal(precise(heads["mu"]).reshape(-1, latent))
        made = []
        for stage_key in jax.random.split(key, stages):
            codes, counts = k_means(stage_key, left, count)
            codes = normal(codes)
            made.append((codes, counts))
            left = left - codes[nearest(left, codes)]
        codes, counts = (jnp.stack(each).astype(own.state["counts"].dtype) for each in zip(*made, strict=True))
        # As many as a batch of these images assigns; the first batches move them to their own.
        return with_codes(codes, jnp.maximum(counts, options.revival * counts.sum(-1, keepdims=True) / count))

    def quantized(own: Variables, heads: Heads) -> tuple[Vectors, list[tuple[Vectors, Int[Array, " n"]]]]:
        """The encoder's vectors, and of each stage what it is given and the codes nearest to it."""
        vectors = normal(precise(heads["mu"]).reshape(-1, latent))
        left, chosen = lax.stop_gradient(vectors), []
        for codes in lax.stop_gradient(codebooks(own)):
            found = nearest(left, codes)
            chosen.append((left, found))
            left = left - codes[found]
        return vectors, chosen

    def center(own: Variables, heads: Heads) -> Sample:
        return quantization(own, heads, *quantized(own, heads))

    def quantization(
        own: Variables, heads: Heads, vectors: Vectors, chosen: list[tuple[Vectors, Int[Array, " n"]]]
    ) -> Sample:
        lead = heads["mu"].shape[: -len(shape)]
        books, so_far = codebooks(own), jnp.zeros_like(vectors)
        commitment = book = jnp.zeros(lead)
        for codes, (left, found) in zip(books, chosen, strict=True):
            vector = codes[found]
            # Every prefix of the stages is to be near; of one stage this is the paper's term.
            so_far = so_far + vector
            commitment = commitment + _summed(vectors - lax.stop_gradient(so_far), lead)
            book = book + _summed(left - vector, lead)
        target = lax.stop_gradient(so_far)
        through = rotated if options.estimator == "rotation" else straight_through
        # In single precision at least: rounded further, z might be nearest to other codes.
        z = through(vectors, target).reshape(*lead, *shape)
        commitment = options.weight * options.commitment * commitment
        figures, cost = {"commitment": commitment}, commitment
        if learned:
            figures["codebook"] = options.weight * book
            cost = cost + figures["codebook"]
        numbers = jnp.stack([found for _, found in chosen], -1).reshape(*lead, *rows_of_codes)
        return Sample(z, jnp.zeros(lead), cost, figures=figures, codes=numbers)

    def transform(own: Variables, key: Key[Array, ""], heads: Heads) -> Sample:
        vectors, chosen = quantized(own, heads)
        return quantization(own, heads, vectors, chosen)._replace(state=moved_on(own, key, chosen))

    def moved_on(own: Variables, key: Key[Array, ""], chosen: list[tuple[Vectors, Int[Array, " n"]]]) -> PyTree:
        codes, counts, rows = lax.stop_gradient(codebooks(own)), own.state["counts"], len(chosen[0][0])
        made = []
        for stage, (left, found) in enumerate(chosen):
            sums, now = assigned(left, found, count)
            book, before = codes[stage], counts[stage]
            after = options.decay * before + (1 - options.decay) * now
            if not learned:
                # N·e is the moving sum, so this is S/N; a code that nothing is assigned to stays exactly as it is.
                change = (1 - options.decay) * (sums - now[:, None] * book)
                book = jnp.where(now[:, None] > 0, normal(book + change / jnp.maximum(after, SMALLEST)[:, None]), book)
            kept = own.state["moved"][stage] if learned else book
            if options.revival:
                # Of the counts' own mean, not of this batch's size: they may be of larger or smaller batches.
                least = options.revival * after.mean()
                dead = after < least
                # Rows drawn without replacement, those with the largest of as many random numbers.
                drawn = jax.random.uniform(jax.random.fold_in(key, stage), (rows,))
                order = lax.top_k(drawn, min(count, rows))[1]
                taken = left[order[jnp.arange(count) % len(order)]]
                # What is trained is left to its optimiser, whose averages of a dead code's gradient are all but 0.
                becomes = taken - own.params["codes"][stage] if learned else taken
                kept = jnp.where(dead[:, None], becomes, kept)
                after = jnp.where(dead, least, after)
            made.append((kept, after))
        kept, after = (jnp.stack(each) for each in zip(*made, strict=True))
        return {"moved" if learned else "codes": kept, "counts": after}

    def codes_of(own: Variables, z: Latents) -> Int[Array, "..."]:
        lead = z.shape[: -len(shape)]
        vectors, books = precise(z).reshape(-1, latent), codebooks(own)
        if stages == 1:
            return nearest(vectors, books[0]).reshape(*lead, *rows_of_codes)
        # Not stage by stage: a sum may be nearest to another code of the first stage than the one that is in it.
        found = lax.map(lambda vector: summands(vector, books), vectors, batch_size=SEARCHED)
        return found.reshape(*lead, *rows_of_codes)

    def vectors_of(own: Variables, codes: Int[Array, "..."]) -> Latents:
        books = codebooks(own)
        if stages == 1:
            return books[0][codes]
        return sum((books[stage][codes[..., stage]] for stage in range(1, stages)), books[0][codes[..., 0]])

    def distances(own: Variables, heads: Heads) -> Float[Array, "..."]:
        _, chosen = quantized(own, heads)
        pairs = zip(codebooks(own), chosen, strict=True)
        squares = [jnp.square(left - book[found]).sum(-1) for book, (left, found) in pairs]
        return jnp.sqrt(jnp.stack(squares, -1)).reshape(*heads["mu"].shape[: -len(shape)], *rows_of_codes)

    return over_codes(
        Codes(count, rows_of_codes, codes_of, vectors_of, apart=stages > 1, distances=distances),
        shape,
        transform,
        center,
        init=init,
        begin=begin,
        noise=lambda key, lead: key,
        units=dict.fromkeys(("commitment", "codebook") if learned else ("commitment",), "squared distance per image"),
    )


def nearest(vectors: Vectors, codes: Codebook) -> Int[Array, " n"]:
    """The number of each vector's nearest code. ‖vector‖² is the same for all of them and left out."""
    # What all codes have in common would only be rounded away again; a rounded product changes what is nearest.
    middle = codes.mean(0)[None, :]
    vectors, codes = vectors - middle, codes - middle
    products = jnp.einsum("kd,nd->kn", codes, vectors, precision=lax.Precision.HIGHEST)
    distances = jnp.square(codes).sum(-1)[:, None] - 2 * products
    # XLA's argmin takes several times as long on a CPU.
    least = distances.min(0)[None, :]
    numbers = lax.broadcasted_iota(jnp.int32, distances.shape, 0)
    return jnp.where(distances == least, numbers, len(codes) - 1).min(0)


def summands(vector: Float[Array, " latent"], books: Float[Array, "stages codes latent"]) -> Int[Array, " stages"]:
    """The codes, one of each stage, whose sum is nearest to the vector, among the rows of codes that are looked at.

    A beam search: of the rows of the first stages those go on that leave least. A sum that the stages themselves have
    made is hardly ever missed.
    """
    count = books.shape[1]
    left, rows = vector[None, :], jnp.zeros((1, 0), jnp.int32)
    for codes in books:
        products = jnp.einsum("rd,kd->rk", left, codes, precision=lax.Precision.HIGHEST)
        further = jnp.square(codes).sum(-1)[None, :] - 2 * products + jnp.square(left).sum(-1)[:, None]
        _, best = lax.top_k(-further.ravel(), min(KEPT, further.size))
        row, code = best // count, (best % count).astype(jnp.int32)
        left = left[row] - codes[code]
        rows = jnp.concatenate([rows[row], code[:, None]], -1)
    return rows[jnp.square(left).sum(-1).argmin()]  # again, since the products are rounded


def assigned(
    vectors: Vectors, codes: Int[Array, " n"], count: int
) -> tuple[Float[Array, "codes latent"], Float[Array, " codes"]]:
    """Of each code the sum of the vectors assigned to it, and how many they are."""
    sums = partial(jax.ops.segment_sum, segment_ids=codes, num_segments=count)
    return sums(vectors), sums(jnp.ones_like(vectors[:, 0]))


def k_means(
    key: Key[Array, ""], vectors: Vectors, count: int, steps: int = LLOYD_STEPS
) -> tuple[Codebook, Float[Array, " codes"]]:
    """Codes among vectors, and how many are nearest to each.

    They begin as vectors drawn one after another with probabilities as their squared distances from the ones before
    (k-means++; Arthur & Vassilvitskii 2007, section 2.2), which Lloyd's steps move to the means of what is assigned.
    """
    first_key, key = jax.random.split(key)

    def seed(carry, number):
        distances, last = carry
        distances = jnp.minimum(distances, jnp.square(vectors - last[None, :]).sum(-1))
        # Where all are codes already, any is as good.
        weights = jnp.where(distances.max() > 0, distances, jnp.ones_like(distances))
        chosen = vectors[jax.random.categorical(jax.random.fold_in(key, number), jnp.log(weights))]
        return (distances, chosen), chosen

    first = vectors[jax.random.randint(first_key, (), 0, len(vectors))]
    start = jnp.full(len(vectors), jnp.inf, vectors.dtype), first
    _, others = lax.scan(seed, start, jnp.arange(count - 1))
    codes = jnp.concatenate([first[None], others])

    def step(codes, _):
        sums, now = assigned(vectors, nearest(vectors, codes), count)
        return jnp.where(now[:, None] > 0, sums / jnp.maximum(now, 1)[:, None], codes), None

    codes, _ = lax.scan(step, codes, None, length=steps)
    return codes, assigned(vectors, nearest(vectors, codes), count)[1]


def straight_through(vectors: Vectors, targets: Vectors) -> Vectors:
    """The targets, whose gradient is taken for the vectors' (van den Oord et al. 2017, section 3.2)."""
    return _with_gradient_of(vectors, targets)


def rotated(vectors: Vectors, targets: Vectors) -> Vectors:
    """The targets, as the vectors turned and stretched to them, which the gradient takes for constants.

    (The rotation trick; Fifty et al. 2024, arXiv 2410.06424, section 4.) With unit vectors v of a vector and t of its
    target the rotation is I − 2rrᵀ + 2tvᵀ, r along v + t.
    """
    lengths = jnp.sqrt(jnp.square(vectors).sum(-1, keepdims=True) + SMALLEST)
    reached = jnp.sqrt(jnp.square(targets).sum(-1, keepdims=True) + SMALLEST)
    v, t = lax.stop_gradient(vectors / lengths), lax.stop_gradient(targets / reached)
    r = lax.stop_gradient(_unit(v + t))
    along_r, along_v = (vectors * r).sum(-1, keepdims=True), (vectors * v).sum(-1, keepdims=True)
    turned = lax.stop_gradient(reached / lengths) * (vectors - 2 * along_r * r + 2 * along_v * t)
    return _with_gradient_of(turned, targets)


def _with_gradient_of(vectors: Vectors, targets: Vectors) -> Vectors:
    """The targets' very values: to vectors the difference would be added rounded."""
    return lax.stop_gradient(targets) + (vectors - lax.stop_gradient(vectors))


def _unit(vectors: Float[Array, "*any latent"]) -> Float[Array, "*any latent"]:
    return vectors * lax.rsqrt(jnp.square(vectors).sum(-1, keepdims=True) + SMALLEST)


def _summed(differences: Vectors, lead: tuple[int, ...]) -> Float[Array, "*batch"]:
    """Squares summed over an image's places and dimensions."""
    return jnp.square(differences).reshape(*lead, -1).sum(-1)
