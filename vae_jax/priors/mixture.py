"""A mixture of Gaussians as the prior."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.nn import log_softmax, logsumexp
from jaxtyping import Array, Float, Key, PyTree

from vae_jax.posteriors import Latents
from vae_jax.posteriors.gaussian import diagonal_log_prob
from vae_jax.priors.base import Aggregate, Prior
from vae_jax.shapes import Shapes


@dataclass(frozen=True)
class ComponentsOptions:
    """Of a prior that is a mixture.

    Attributes:
        components: of the mixture; of vamp the pseudo-inputs.
    """

    components: Annotated[int, "[1, 65536]"] = 100


def mixture(options: ComponentsOptions, shapes: Shapes) -> Prior:
    """Σ πₖ N(z; μₖ, diag σₖ²), all of it learned (Tomczak & Welling 2018, section 4.3, "MoG prior")."""
    count, latent = options.components, shapes.latent

    def init(key: Key[Array, ""]) -> PyTree:
        # Half of the variance within the components and half between them: that of N(0, I) in all.
        mu = math.sqrt(0.5) * jax.random.normal(key, (count, latent))
        return {"logits": jnp.zeros(count), "mu": mu, "log_var": jnp.full((count, latent), math.log(0.5))}

    def log_prob(params: PyTree, z: Latents, aggregate: Aggregate) -> Float[Array, "*batch"]:
        gaussians = {name: params[name] for name in ("mu", "log_var")}
        # Terms of a component alone are computed once for it, not for every z.
        log_probs = jax.vmap(jax.vmap(partial(diagonal_log_prob, {}), (None, 0)), (0, None))(
            z.reshape(-1, latent), gaussians
        )
        weighted = log_probs + jnp.broadcast_to(log_softmax(params["logits"]), log_probs.shape)
        return logsumexp(weighted, -1).reshape(z.shape[:-1])

    def sample(params: PyTree, key: Key[Array, ""], samples: int, aggregate: Aggregate) -> Float[Array, "count latent"]:
        which, noise = jax.random.split(key)
        chosen = jax.random.categorical(which, params["logits"], shape=(samples,))
        deviation = jnp.exp(params["log_var"] / 2)[chosen]
        return params["mu"][chosen] + deviation * jax.random.normal(noise, (samples, latent))

    return Prior(log_prob, sample, init)
