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
from vae_jax.shapes import Shapes, Size
from vae_jax.variables import Variables

LLOYD_STEPS = 10  # of k-means, when a codebook is made of data
SMALLEST = 1e-12  # of a squared length that is divided by
KEPT = 32  # of the rows of codes that a search among stages goes on with
MOST_ROWS = 2**31 - 1  # among which those are drawn that dead codes become
SEARCHED = 256  # vectors searched at a time

Vectors = Float[Array, "n latent"]
Codebook = Float[Array, "codes latent"]


@dataclass(frozen=True)
class CodebookOptions:
    """Of codebook.

    Attributes:
        codes: vectors of the codebook, K.
        places: the shape of the codes of an image, as [7, 7]; null takes the network's own map.
        stages: of residual quantisation; a stage has a codebook for the residuals of the stages before.
        update: of the codebook: ema (moving averages of the vectors assigned to a code) or gradient.
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
    """All of q(z|x) on the codes nearest to the encoder's vectors, one at every place (VQ-VAE).

    (van den Oord et al. 2017, section 3; appendix A.1 for the moving averages.) The encoder's vector E at a place
    becomes the nearest code e. The loss gets Σ β‖E − sg(e)‖² and, if the codebook follows a gradient, Σ‖sg(E) − e‖²,
    summed over places and dimensions, so that no weight depends on the batch's size. A code whose average count falls
    below a part of the mean of all counts (the uniform share) becomes one of the batch's vectors; otherwise most codes
    die.
    """
    places, latent, count, stages = places_of(options.places, shapes), shapes.latent, options.codes, options.stages
    shape, rows_of_codes = (*places, latent), places if stages == 1 else (*places, stages)
    cosine, learned = options.distance == "cosine", options.update == "gradient"

    def normal(vectors: Float[Array, "*any latent"]) -> Float[Array, "*any latent"]:
        return _unit(vectors) if cosine else vectors

    def codebooks(variables: Variables) -> Float[Array, "stages codes latent"]:
        return normal(variables.params["codes"] + variables.state["moved"]) if learned else variables.state["codes"]

    def with_codes(codes: Float[Array, "stages codes latent"], counts: Float[Array, "stages codes"]) -> Variables:
        if learned:
            return Variables({"codes": codes}, {"moved": jnp.zeros_like(codes), "counts": counts})
        return Variables({}, {"codes": codes, "counts": counts})

    def init(key: Key[Array, ""]) -> Variables:
        codes = jax.random.normal(key, (stages, count, latent)) / math.sqrt(latent)
        return with_codes(normal(codes), jnp.ones((stages, count)))

    def begin(variables: Variables, key: Key[Array, ""], heads: Heads) -> Variables:
        """The codebooks by k-means of the encoder's vectors of some images, stage by stage."""
        residual = normal(precise(heads["mu"]).reshape(-1, latent))
        stages_made = []
        for stage_key in jax.random.split(key, stages):
            codes, counts = k_means(stage_key, residual, count)
            codes = normal(codes)
            stages_made.append((codes, counts))
            residual = residual - codes[nearest(residual, codes)]
        codes, counts = (
            jnp.stack(arrays).astype(variables.state["counts"].dtype) for arrays in zip(*stages_made, strict=True)
        )
        # The counts of a batch of these images; the first batches move them to theirs.
        return with_codes(codes, jnp.maximum(counts, options.revival * counts.sum(-1, keepdims=True) / count))

    def quantized(variables: Variables, heads: Heads) -> tuple[Vectors, list[tuple[Vectors, Int[Array, " n"]]]]:
        """The encoder's vectors, and for every stage the residuals that it gets and the nearest codes' numbers."""
        vectors = normal(precise(heads["mu"]).reshape(-1, latent))
        residual, chosen = lax.stop_gradient(vectors), []
        for codes in lax.stop_gradient(codebooks(variables)):
            numbers = nearest(residual, codes)
            chosen.append((residual, numbers))
            residual = residual - codes[numbers]
        return vectors, chosen

    def center(variables: Variables, heads: Heads) -> Sample:
        return quantization(variables, heads, *quantized(variables, heads))

    def quantization(
        variables: Variables, heads: Heads, vectors: Vectors, chosen: list[tuple[Vectors, Int[Array, " n"]]]
    ) -> Sample:
        lead = heads["mu"].shape[: -len(shape)]
        books, so_far = codebooks(variables), jnp.zeros_like(vectors)
        commitment = book = jnp.zeros(lead)
        for codes, (residual, numbers_of_stage) in zip(books, chosen, strict=True):
            vector = codes[numbers_of_stage]
            # The sum of the first stages should be near at every stage; with one stage this is the paper's term.
            so_far = so_far + vector
            commitment = commitment + _summed(vectors - lax.stop_gradient(so_far), lead)
            book = book + _summed(residual - vector, lead)
        target = lax.stop_gradient(so_far)
        through = rotated if options.estimator == "rotation" else straight_through
        # In single precision at least: rounded further, z might be nearest to other codes.
        z = through(vectors, target).reshape(*lead, *shape)
        commitment = options.weight * options.commitment * commitment
        figures, cost = {"commitment": commitment}, commitment
        if learned:
            figures["codebook"] = options.weight * book
            cost = cost + figures["codebook"]
        numbers = jnp.stack([numbers_of_stage for _, numbers_of_stage in chosen], -1).reshape(*lead, *rows_of_codes)
        return Sample(z, jnp.zeros(lead), cost, figures=figures, codes=numbers)

    def transform(variables: Variables, key: Key[Array, ""], heads: Heads) -> Sample:
        vectors, chosen = quantized(variables, heads)
        return quantization(variables, heads, vectors, chosen)._replace(state=moved_on(variables, key, chosen))

    def moved_on(variables: Variables, key: Key[Array, ""], chosen: list[tuple[Vectors, Int[Array, " n"]]]) -> PyTree:
        codes, counts, row_count = lax.stop_gradient(codebooks(variables)), variables.state["counts"], len(chosen[0][0])
        stages_made = []
        for stage, (residual, numbers) in enumerate(chosen):
            sums, batch_counts = assigned(residual, numbers, count)
            book, before = codes[stage], counts[stage]
            after = options.decay * before + (1 - options.decay) * batch_counts
            if not learned:
                # N·e is the moving sum, so this is S/N; a code without vectors stays exactly as it is.
                change = (1 - options.decay) * (sums - batch_counts[:, None] * book)
                book = jnp.where(
                    batch_counts[:, None] > 0, normal(book + change / jnp.maximum(after, SMALLEST)[:, None]), book
                )
            kept = variables.state["moved"][stage] if learned else book
            if options.revival:
                # Of the counts' mean, not of this batch's size: the counts may be of larger or smaller batches.
                least = options.revival * after.mean()
                dead = after < least
                # Rows drawn without replacement: those with the largest random numbers.
                # More rows than are numbered in 32 bits fit no memory, which is said once this has been traced.
                drawn = jax.random.uniform(jax.random.fold_in(key, stage), (min(row_count, MOST_ROWS),))
                order = lax.top_k(drawn, min(count, row_count))[1]
                taken = residual[:MOST_ROWS][order[jnp.arange(count) % len(order)]]
                # Trained codes are left to the optimiser, whose averages of a dead code's gradient are nearly 0.
                becomes = taken - variables.params["codes"][stage] if learned else taken
                kept = jnp.where(dead[:, None], becomes, kept)
                after = jnp.where(dead, least, after)
            stages_made.append((kept, after))
        kept, after = (jnp.stack(arrays) for arrays in zip(*stages_made, strict=True))
        return {"moved" if learned else "codes": kept, "counts": after}

    def codes_of(variables: Variables, z: Latents) -> Int[Array, "..."]:
        lead = z.shape[: -len(shape)]
        vectors, books = precise(z).reshape(-1, latent), codebooks(variables)
        if stages == 1:
            return nearest(vectors, books[0]).reshape(*lead, *rows_of_codes)
        # Not stage by stage: a sum's own code of the first stage need not be the nearest one there.
        numbers = lax.map(lambda vector: summands(vector, books), vectors, batch_size=SEARCHED)
        return numbers.reshape(*lead, *rows_of_codes)

    def vectors_of(variables: Variables, codes: Int[Array, "..."]) -> Latents:
        books = codebooks(variables)
        if stages == 1:
            return books[0][codes]
        return sum((books[stage][codes[..., stage]] for stage in range(1, stages)), books[0][codes[..., 0]])

    def distances(variables: Variables, heads: Heads) -> Float[Array, "..."]:
        _, chosen = quantized(variables, heads)
        pairs = zip(codebooks(variables), chosen, strict=True)
        squares = [jnp.square(residual - book[numbers]).sum(-1) for book, (residual, numbers) in pairs]
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
    """The numbers of the vectors' nearest codes; ‖vector‖² is the same for all codes and left out."""
    # Without the codes' mean the products lose less to rounding, which could change the nearest code.
    middle = codes.mean(0)[None, :]
    vectors, codes = vectors - middle, codes - middle
    products = jnp.einsum("kd,nd->kn", codes, vectors, precision=lax.Precision.HIGHEST)
    distances = jnp.square(codes).sum(-1)[:, None] - 2 * products
    # XLA's argmin takes several times as long on a CPU.
    least = distances.min(0)[None, :]
    numbers = lax.broadcasted_iota(jnp.int32, distances.shape, 0)
    return jnp.where(distances == least, numbers, len(codes) - 1).min(0)


def summands(vector: Float[Array, " latent"], books: Float[Array, "stages codes latent"]) -> Int[Array, " stages"]:
    """The codes, one a stage, whose sum is nearest to the vector among the rows of codes that a beam search tries.

    After every stage the search keeps the rows that leave least. It hardly ever misses a sum that the stages have made.
    """
    count = books.shape[1]
    residual, rows = vector[None, :], jnp.zeros((1, 0), jnp.int32)
    for codes in books:
        products = jnp.einsum("rd,kd->rk", residual, codes, precision=lax.Precision.HIGHEST)
        further = jnp.square(codes).sum(-1)[None, :] - 2 * products + jnp.square(residual).sum(-1)[:, None]
        _, best = lax.top_k(-further.ravel(), min(KEPT, further.size))
        row, code = best // count, (best % count).astype(jnp.int32)
        residual = residual[row] - codes[code]
        rows = jnp.concatenate([rows[row], code[:, None]], -1)
    return rows[jnp.square(residual).sum(-1).argmin()]  # again, since the products are rounded


def assigned(
    vectors: Vectors, codes: Int[Array, " n"], count: int
) -> tuple[Float[Array, "codes latent"], Float[Array, " codes"]]:
    """The sum of the vectors assigned to a code and their number, for all codes."""
    sums = partial(jax.ops.segment_sum, segment_ids=codes, num_segments=count)
    return sums(vectors), sums(jnp.ones_like(vectors[:, 0]))


def k_means(
    key: Key[Array, ""], vectors: Vectors, count: int, steps: int = LLOYD_STEPS
) -> tuple[Codebook, Float[Array, " codes"]]:
    """Codes of vectors, and how many vectors are nearest to a code.

    Codes start as vectors drawn one after another with probability proportional to their squared distance from those
    before (k-means++; Arthur & Vassilvitskii 2007, section 2.2). Lloyd's steps move them to their vectors' means.
    """
    first_key, key = jax.random.split(key)

    def seed(carry, number):
        distances, last = carry
        distances = jnp.minimum(distances, jnp.square(vectors - last[None, :]).sum(-1))
        # If all vectors are codes already, any will do.
        weights = jnp.where(distances.max() > 0, distances, jnp.ones_like(distances))
        chosen = vectors[jax.random.categorical(jax.random.fold_in(key, number), jnp.log(weights))]
        return (distances, chosen), chosen

    first = vectors[jax.random.randint(first_key, (), 0, len(vectors))]
    start = jnp.full(len(vectors), jnp.inf, vectors.dtype), first
    _, later_codes = lax.scan(seed, start, jnp.arange(count - 1))
    codes = jnp.concatenate([first[None], later_codes])

    def step(codes, _):
        sums, counts = assigned(vectors, nearest(vectors, codes), count)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], codes), None

    codes, _ = lax.scan(step, codes, None, length=steps)
    return codes, assigned(vectors, nearest(vectors, codes), count)[1]


def straight_through(vectors: Vectors, targets: Vectors) -> Vectors:
    """The targets, whose gradient goes to the vectors (van den Oord et al. 2017, section 3.2)."""
    return _with_gradient_of(vectors, targets)


def rotated(vectors: Vectors, targets: Vectors) -> Vectors:
    """The targets, with the gradient of vectors turned and stretched to them by constants (the rotation trick).

    (Fifty et al. 2024, arXiv 2410.06424, section 4.) With unit vectors v of a vector and t of its target the rotation
    is I − 2rrᵀ + 2tvᵀ, r along v + t.
    """
    lengths = jnp.sqrt(jnp.square(vectors).sum(-1, keepdims=True) + SMALLEST)
    reached = jnp.sqrt(jnp.square(targets).sum(-1, keepdims=True) + SMALLEST)
    v, t = lax.stop_gradient(vectors / lengths), lax.stop_gradient(targets / reached)
    r = lax.stop_gradient(_unit(v + t))
    along_r, along_v = (vectors * r).sum(-1, keepdims=True), (vectors * v).sum(-1, keepdims=True)
    turned = lax.stop_gradient(reached / lengths) * (vectors - 2 * along_r * r + 2 * along_v * t)
    return _with_gradient_of(turned, targets)


def _with_gradient_of(vectors: Vectors, targets: Vectors) -> Vectors:
    """The targets' exact values with the vectors' gradient; vectors + (targets − vectors) would be rounded."""
    return lax.stop_gradient(targets) + (vectors - lax.stop_gradient(vectors))


def _unit(vectors: Float[Array, "*any latent"]) -> Float[Array, "*any latent"]:
    return vectors * lax.rsqrt(jnp.square(vectors).sum(-1, keepdims=True) + SMALLEST)


def _summed(differences: Vectors, lead: tuple[Size, ...]) -> Float[Array, "*batch"]:
    """The squares, summed over an image's places and dimensions."""
    return jnp.square(differences).reshape(*lead, -1).sum(-1)
