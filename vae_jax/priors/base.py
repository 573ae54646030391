"""Priors: densities over z that can be drawn from."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.posteriors import Codes, Latents
from vae_jax.posteriors.base import no_parameters
from vae_jax.shapes import Shapes


class Aggregate(NamedTuple):
    """The run's q(z|u) for images u (count, height, width, channels) in [0, 1].

    Attributes:
        log_prob: (z, u) -> log q(z|u) of every z (*batch, latent) under every u: (*batch, count).
        sample: (key, u) -> one z for each u, (count, latent).
        own: the posterior's variables: what its `init` gives, after training.
        codes: z -> its codes, of a posterior whose z are made of codes; see `vae_jax.posteriors.Codes`.
        vectors: codes -> z, its inverse.
        labels: of the images, (batch,), the last axis before z's; None if the model gets none.
    """

    log_prob: Callable[[Latents, Float[Array, "count *shape"]], Float[Array, "*batch count"]]
    sample: Callable[[Key[Array, ""], Float[Array, "count *shape"]], Float[Array, "count latent"]]
    own: PyTree = None
    codes: Callable[[Latents], Int[Array, "..."]] | None = None
    vectors: Callable[[Int[Array, "..."]], Latents] | None = None
    labels: Int[Array, " batch"] | None = None


def codes_in(shapes: Shapes, prior_name: str) -> Codes:
    """The codes that a posterior's z are made of.

    Raises:
        UserError: if they are made of no codes.
    """
    if shapes.codes is None:
        raise UserError(f"prior.name: expected a prior over real vectors, as the posterior's z are; found {prior_name}")
    return shapes.codes


class Prior(NamedTuple):
    """A prior p(z) over `latent` dimensions.

    Attributes:
        log_prob: (params, z, aggregate) -> log p(z), (*batch,), for z (*batch, latent), in nats.
        sample: (params, key, count, aggregate, **how) -> z, (count, latent).
        init: key -> params; none for the standard normal.
        kind: under which posteriors have their KL from it in closed form; empty if none has.
        posterior: whether it is made of the run's posterior, as the VampPrior is.
        support: the set of z, in words, as of `vae_jax.posteriors.Posterior`.
        of_codes: whether its density depends on the codes alone, so that no gradient reaches z.
        how: names of further arguments of `sample`, as temperature.
    """

    log_prob: Callable[[PyTree, Latents, Aggregate], Float[Array, "*batch"]]
    sample: Callable[[PyTree, Key[Array, ""], int, Aggregate], Float[Array, "count latent"]]
    init: Callable[[Key[Array, ""]], PyTree] = no_parameters
    kind: str = ""
    posterior: bool = False
    support: str = "real vectors"
    of_codes: bool = False
    how: tuple[str, ...] = ()
