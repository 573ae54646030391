"""Categorical variables: relaxed by the Gumbel-softmax or passed straight through in training, hard out of it."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_softmax, logsumexp, one_hot
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, Int, Key, PyTree

from vae_jax.errors import UserError
from vae_jax.options import one_of, only
from vae_jax.posteriors.base import KL, Codes, Heads, Posterior, Sample
from vae_jax.shapes import Shapes, Size
from vae_jax.variables import Variables

Logits = Float[Array, "*batch variables classes"]  # also probabilities and z, which have the same shape
GUMBEL = ("gumbel", "straight_through")  # relaxations that have a temperature


@dataclass(frozen=True)
class CategoricalOptions:
    """Of categorical.

    Attributes:
        classes: of every variable, K; model.latent is how many variables there are.
        relaxation: in training: gumbel (a relaxed sample), straight_through (its largest class, with the relaxed
            sample's gradient) or categorical_straight_through (a class, with the probabilities' gradient).
        temperature: of the relaxed sample; at the first step, if it is annealed.
        annealing: rate r of max(least_temperature, temperature·exp(−r·steps)); 0 for a constant temperature.
        least_temperature: below which annealing does not bring it.
        mixing: part of the uniform distribution in the probabilities; 0.01 keeps all logarithms finite.
        kl: in training: categorical (of the categorical variables, which with relaxed samples gives no bound) or
            relaxed (from the densities of the relaxed sample, which bounds the relaxed model).
        prior_temperature: of the relaxed uniform prior; the lower, the less certainty of a class costs.
        balance: α of α·KL(sg(q) ‖ p) + (1 − α)·KL(q ‖ sg(p)); null for the plain KL. The uniform prior learns nothing,
            so with it α only scales the KL's gradient by 1 − α.
    """

    classes: Annotated[int, "[2, 65536]"] = 10
    relaxation: Annotated[str, one_of(*GUMBEL, "categorical_straight_through")] = "gumbel"
    temperature: Annotated[float, "(0, inf)", only(relaxation=GUMBEL)] = 1.0
    annealing: Annotated[float, "[0, inf)", only(relaxation=GUMBEL)] = 0.0
    least_temperature: Annotated[float, "(0, inf)", only(relaxation=GUMBEL)] = 0.5
    mixing: Annotated[float, "[0, 1)"] = 0.0
    kl: Annotated[str, one_of("categorical", "relaxed")] = "categorical"
    prior_temperature: Annotated[float, "(0, inf)", only(kl="relaxed")] = 0.5
    balance: Annotated[float | None, "[0, 1]", only(kl="categorical")] = None

    def __post_init__(self):
        if self.annealing and self.least_temperature > self.temperature:
            raise UserError(
                f"posterior.least_temperature: expected at most posterior.temperature, {self.temperature}, with "
                f"annealing; found {self.least_temperature}"
            )
        if self.kl == "relaxed" and self.relaxation not in GUMBEL:
            raise UserError(
                f"posterior.kl: expected categorical with relaxation {self.relaxation}, whose samples are not relaxed; "
                f"found relaxed"
            )


def categorical(options: CategoricalOptions, shapes: Shapes) -> Posterior:
    """n categorical variables of K classes, z one-hot of shape (n, K); mu are the logits.

    In training z is relaxed: softmax((log p + Gumbel noise)/τ) (Jang et al. 2017, equation 2; Maddison et al. 2017), or
    its largest class with that gradient (Jang et al. 2017, section 2.2), or a class with the gradient of p (Hafner et
    al. 2021, algorithm 1). Out of training z is always a sample of the categorical distribution, so that −ELBO is a
    bound. With `kl: relaxed` log q of a sample is shifted: its difference from the uniform prior's −n·log K is then
    that of the two relaxed densities.
    """
    count, classes = shapes.latent, options.classes
    shape = (count, classes)
    relaxed, annealed = options.kl == "relaxed", options.annealing > 0

    def init(key: Key[Array, ""]) -> PyTree:
        return Variables({}, {"steps": jnp.zeros((), jnp.int32)}) if annealed else {}

    def temperature(variables: PyTree) -> Array | float:
        if not annealed:
            return options.temperature
        steps = variables.state["steps"].astype(jnp.result_type(float))
        return jnp.maximum(options.least_temperature, options.temperature * jnp.exp(-options.annealing * steps))

    def log_p(heads: Heads) -> Logits:
        logits = heads["mu"].astype(jnp.promote_types(heads["mu"].dtype, jnp.float32))
        return mixed(log_softmax(logits), options.mixing)

    def noise(key: Key[Array, ""], lead: tuple[Size, ...]) -> Logits:
        return jax.random.gumbel(key, (*lead, *shape))  # of uniform numbers from the least positive one up

    def transform(variables: PyTree, gumbel: Logits, heads: Heads) -> Sample:
        log_probs, tau = log_p(heads), temperature(variables)
        log_y = log_softmax((log_probs + gumbel) / tau)
        if options.relaxation == "gumbel":
            z = jnp.exp(log_y)
        else:
            soft = jnp.exp(log_probs if options.relaxation == "categorical_straight_through" else log_y)
            z = hard(log_probs + gumbel) + (soft - lax.stop_gradient(soft))
        if relaxed:
            log_q = log_concrete(log_y, log_probs, tau).sum(-1)
            log_q = log_q - log_concrete(log_y, jnp.zeros_like(log_y), options.prior_temperature).sum(-1)
            log_q = log_q - count * math.log(classes)
        else:
            # z has a gradient, which gives log q the entropy's; log p of a constant class would have none.
            log_q = balanced(log_prob(variables, z, heads))
        state = {"steps": variables.state["steps"] + 1} if annealed else None
        return Sample(z.astype(heads["mu"].dtype), log_q, state=state)

    def exact(variables: PyTree, gumbel: Logits, heads: Heads) -> Sample:
        return of_class(hard(log_p(heads) + gumbel), heads)

    def center(variables: PyTree, heads: Heads) -> Sample:
        return of_class(hard(log_p(heads)), heads)

    def of_class(z: Logits, heads: Heads) -> Sample:
        return Sample(z.astype(heads["mu"].dtype), log_prob({}, z, heads))

    def log_prob(variables: PyTree, z: Logits, heads: Heads) -> Float[Array, "*batch"]:
        return (z * log_p(heads)).sum((-2, -1))

    def balanced(kl: Array) -> Array:
        if options.balance is None:
            return kl
        still = lax.stop_gradient(kl)
        return still + (1 - options.balance) * (kl - still)

    def by_variable(heads: Heads, prior: PyTree) -> Float[Array, "*batch variables"]:
        log_probs = log_p(heads)
        kl = (jnp.exp(log_probs) * log_probs).sum(-1) + math.log(classes)
        return balanced(kl)

    def codes_of(variables: PyTree, z: Logits) -> Int[Array, "*batch variables"]:
        return z.argmax(-1).astype(jnp.int32)

    def vectors_of(variables: PyTree, codes: Int[Array, "*batch variables"]) -> Logits:
        return one_hot(codes, classes)

    closed_form = KL(lambda heads, prior: by_variable(heads, prior).sum(-1), by_variable)
    asking_option = "posterior.kl relaxed" if relaxed else "posterior.balance" if options.balance is not None else ""
    return Posterior(
        {"mu": shape},
        transform,
        init,
        log_prob=None if relaxed else log_prob,
        kl={} if relaxed else {"uniform": closed_form},
        shape=shape,
        noise=noise,
        center=center,
        support="codes",
        exact=exact,
        codes=Codes(classes, (count,), codes_of, vectors_of, apart=True),
        priors={"uniform": asking_option} if asking_option else {},
    )


def mixed(log_p: Logits, part: float) -> Logits:
    """log of probabilities mixed with this part of uniform ones (Hafner et al. 2023, DreamerV3)."""
    if not part:
        return log_p
    return jnp.logaddexp(log_p + math.log1p(-part), math.log(part / log_p.shape[-1]))


def hard(scores: Logits) -> Logits:
    """The class with the largest score, one-hot."""
    return one_hot(scores.argmax(-1), scores.shape[-1], dtype=scores.dtype)


def log_concrete(log_y: Logits, logits: Logits, temperature: Array | float) -> Float[Array, "*batch variables"]:
    """The log density of log y, for y a relaxed categorical variable with these logits (Maddison et al. 2017).

    It is the ExpConcrete distribution (appendix C): log Γ(K) + (K − 1)·log τ + Σ(α − τ·log y) − K·log Σ exp(α −
    τ·log y), with respect to the K − 1 logits log(y_k/y_K).
    """
    classes = log_y.shape[-1]
    scores = logits - temperature * log_y
    constant = gammaln(float(classes)) + (classes - 1) * jnp.log(temperature)
    return constant + scores.sum(-1) - classes * logsumexp(scores, -1)
