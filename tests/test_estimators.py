"""Estimates of log p(x), and the bounds and gradients they share samples with, against a model whose log p(x) is known.

Probabilistic PCA (Tipping & Bishop 1999): z ~ N(0, I), x|z ~ N(Wz + b, σ²I), so x ~ N(b, C) with C = WWᵀ + σ²I
(equation 7), and z|x ~ N(M⁻¹Wᵀ(x − b), σ²M⁻¹) with M = WᵀW + σ²I (equation 8).
"""

import itertools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from vae_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, PosteriorConfig
from vae_jax.config import LikelihoodConfig as Likelihoods
from vae_jax.errors import UserError
from vae_jax.evaluation import estimators
from vae_jax.evaluation.estimators import annealed_nll, importance_nll
from vae_jax.keys import image_keys
from vae_jax.likelihoods import LIKELIHOODS, Likelihood
from vae_jax.model.build import build
from vae_jax.networks import NETWORKS
from vae_jax.variables import Variables

SHAPE, PIXELS, LATENT, SIGMA = (2, 3, 1), 6, 2, 0.2
RANDOM = np.random.RandomState(0)
W, B = 0.3 * RANDOM.randn(PIXELS, LATENT), RANDOM.uniform(0.3, 0.7, PIXELS)
M = W.T @ W + SIGMA**2 * np.eye(LATENT)
C = W @ W.T + SIGMA**2 * np.eye(PIXELS)
IMAGES = RANDOM.randint(0, 256, (8, *SHAPE)).astype(np.uint8)
CONFIG = Config(
    model=ModelConfig(network="linear", latent=LATENT),
    posterior=PosteriorConfig("full_gaussian"),
    likelihood=Likelihoods("isotropic"),
)


class Linear(nn.Module):
    """An encoder and a decoder that are linear, as their posterior's covariance does not depend on x."""

    def setup(self):
        zeros = nn.initializers.zeros
        self.mean = self.param("mean", zeros, (LATENT, PIXELS))
        self.offset = self.param("offset", zeros, (LATENT,))
        self.log_var = self.param("log_var", zeros, (LATENT,))
        self.lower = self.param("lower", zeros, (LATENT * (LATENT - 1) // 2,))
        self.weight = self.param("weight", zeros, (PIXELS, LATENT))
        self.bias = self.param("bias", zeros, (PIXELS,))

    def encode(self, x, *, train):
        mu = x.reshape(len(x), -1) @ self.mean.T + self.offset[None]
        fixed = {"log_var": self.log_var, "lower": self.lower}
        return {"mu": mu} | {name: jnp.broadcast_to(head, (len(x), len(head))) for name, head in fixed.items()}

    def decode(self, z, *, train):
        return (z @ self.weight.T + self.bias[None]).reshape(-1, *SHAPE)


ENCODER, DECODER = ("mean", "offset", "log_var", "lower"), ("weight", "bias")


def isotropic(options, shapes):
    """N(the decoder's output, σ²I)."""

    def log_prob(params, mean, images):
        return -(jnp.square((images - mean) / SIGMA) / 2 + np.log(SIGMA) + np.log(2 * np.pi) / 2).sum((1, 2, 3))

    return Likelihood(1, log_prob, lambda params, mean: mean)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(NETWORKS, "linear", lambda options, shapes: Linear())
    monkeypatch.setitem(LIKELIHOODS, "isotropic", isotropic)


def variables_of(scale=1.0):
    """Variables of the exact posterior, its standard deviations multiplied with `scale`."""
    root = scale * SIGMA * np.linalg.cholesky(np.linalg.inv(M))
    mean = np.linalg.solve(M, W.T)
    params = {
        "mean": mean,
        "offset": -mean @ B,
        "log_var": 2 * np.log(np.diag(root)),
        "lower": root[np.tril_indices(LATENT, -1)],
        "weight": W,
        "bias": B,
    }
    return Variables({name: jnp.asarray(each, jnp.float32) for name, each in params.items()}, {})


def model_of(treatment="grey", **objective):
    config = replace(CONFIG, data=DataConfig(treatment=treatment), objective=ObjectiveConfig(**objective))
    return config, *build(config, SHAPE)


def exact_nll(images=IMAGES):
    return -multivariate_normal.logpdf(images.reshape(len(images), -1) / 255, B, C)  # type: ignore[arg-type]


def losses(variables, images=IMAGES, key=1, **options):
    config, network, objective = model_of(**options)
    x = network.treat(jax.random.key(0), jnp.asarray(images))

    def run(variables):
        return network.apply(
            variables, lambda model: objective.terms(jax.random.key(key), model, x, config.objective.options)
        )

    return np.asarray(jax.jit(run)(variables)[0]["loss"], np.float64)


def estimated(variables=None, images=IMAGES, samples=8, key=2, treatment="grey"):
    config, network, _ = model_of(treatment)
    return importance_nll(config, network, variables or variables_of(), images, jax.random.key(key), samples)


# With the exact posterior every weight is p(x), so nothing is left to chance. There are as many samples as images: a
# mean over the wrong axis has the right shape then, and the wrong values.
@pytest.mark.parametrize(
    "options",
    [
        {"name": "vae", "kl": "sampled"},
        {"name": "vae", "gradient": "stl"},
        {"name": "iwae", "samples": 8},
        {"name": "iwae", "samples": 8, "gradient": "dreg"},
        {"name": "miwae", "samples": 4, "groups": 2},
        {"name": "piwae", "samples": 4, "groups": 2},
        {"name": "ciwae", "samples": 8},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_bound_is_tight_at_the_exact_posterior(options):
    np.testing.assert_allclose(losses(variables_of(), **options), exact_nll(), atol=1e-3)


def test_the_elbo_with_a_kl_in_closed_form_is_tight_on_average():
    many = np.repeat(IMAGES, 20_000, 0)
    found = losses(variables_of(), many, name="vae", kl="analytic").reshape(len(IMAGES), -1)
    np.testing.assert_allclose(found.mean(1), exact_nll(), atol=0.02)
    assert found.std() > 0.1  # unlike the others it depends on its samples


def test_the_importance_estimate_is_exact_at_the_exact_posterior():
    np.testing.assert_allclose(estimated(samples=8), exact_nll(), atol=1e-3)
    np.testing.assert_allclose(estimated(samples=1), exact_nll(), atol=1e-3)


def test_the_importance_estimate_and_the_iwae_bound_with_a_wider_posterior():
    wide = variables_of(1.3)
    # The weights' variance in units of p(x)², in closed form for each direction of N(0, I) and N(0, 1.3² I).
    error = np.sqrt(((1.3**2 / np.sqrt(2 * 1.3**2 - 1)) ** LATENT - 1) / 5000)
    assert 0.005 < error < 0.01
    for found in (estimated(wide, samples=5000), losses(wide, name="iwae", samples=5000)):
        np.testing.assert_allclose(found, exact_nll(), atol=0.02)
        assert np.abs(found - exact_nll()).max() > error / 10  # not by leaving the weights out
    few = estimated(wide, np.repeat(IMAGES[:1], 4000, 0), samples=1) - exact_nll()[0]
    kl = LATENT * (1.3**2 - 1 - np.log(1.3**2)) / 2  # −ELBO's distance from −log p(x)
    assert few.mean() == pytest.approx(kl, abs=5 * few.std() / 4000**0.5)


def test_annealed_importance_sampling_finds_log_p_without_the_posterior():
    config, network, _ = model_of()
    wrong = variables_of(3.0)
    # Their standard error is 0.005 nats.
    found = annealed_nll(
        config, network, wrong, IMAGES[:4], jax.random.key(1), temperatures=1000, chains=2048, leapfrog=3
    )
    np.testing.assert_allclose(found, exact_nll()[:4], atol=0.02)


def test_annealing_forwards_and_backwards_encloses_log_p():
    """One chain over few temperatures: E[p̂] = p(x) forwards and E[1/p̂] = 1/p(x) backwards all the same.

    Where the counted chains chose their own step sizes, the latter was 10 standard errors off.
    """
    config, network, _ = model_of()
    images, truth = np.repeat(IMAGES[:4], 1000, 0), np.repeat(exact_nll()[:4], 1000)
    mean = (images.reshape(len(images), -1) / 255 - B) @ np.linalg.solve(M, W.T).T
    root = SIGMA * np.linalg.cholesky(np.linalg.inv(M))
    exact = (mean + np.random.RandomState(1).randn(len(images), LATENT) @ root.T).astype(np.float32)
    run = (config, network, variables_of(3.0), images, jax.random.key(1))
    for start, side in ((None, 1), (exact, -1)):
        gap = side * (annealed_nll(*run, temperatures=200, chains=1, leapfrog=3, exact=start) - truth)
        ratio = np.exp(-gap)
        assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / len(ratio) ** 0.5)
        assert 5 * gap.std() / len(gap) ** 0.5 < gap.mean() < 0.3  # a bound, and not a loose one


def test_both_estimates_of_a_bernoulli_network_against_numerical_integration():
    config = Config(model=ModelConfig(network="mlp", latent=1, layers=(8,), activation="tanh"))
    network, _ = build(config, SHAPE)
    start = network.init(jax.random.key(0))
    # An encoder near 0, so that q is near the prior and no weight is far above the others.
    factors = {"encoder": 0.2, "decoder": 2.0}
    params = {part: jax.tree.map(lambda leaf, by=by: by * leaf, start.params[part]) for part, by in factors.items()}
    variables = start._replace(params=params)
    z = jnp.linspace(-8, 8, 2001)[:, None]
    x = network.treat(None, jnp.asarray(IMAGES))
    every = jnp.broadcast_to(z[:, None], (len(z), len(x), 1))

    def joint(model):
        return model.log_likelihood(x, model.decode(every)) + model.log_prior(every)

    expected = -np.log(
        np.trapezoid(np.exp(np.asarray(network.apply(variables, joint)[0], np.float64)), dx=16 / 2000, axis=0)
    )
    found = importance_nll(config, network, variables, IMAGES, jax.random.key(1), 20_000)
    np.testing.assert_allclose(found, expected, atol=0.02)
    found = annealed_nll(
        config, network, variables, IMAGES, jax.random.key(1), temperatures=200, chains=1024, leapfrog=3
    )
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_the_iwae_bound_falls_as_k_rises():
    many = np.tile(IMAGES, (2500, 1, 1, 1))
    one, five, fifty = (
        losses(variables_of(1.3), many, key=k, name="iwae", samples=k) - np.tile(exact_nll(), 2500) for k in (1, 5, 50)
    )
    for worse, better in ((one, five), (five, fifty)):
        assert worse.mean() - better.mean() > 5 * np.hypot(worse.std(), better.std()) / len(many) ** 0.5
    assert fifty.mean() > -5 * fifty.std() / len(many) ** 0.5


def gradients(variables, seed, count, **options):
    """The gradient of the images' mean loss for each key, the encoder's and the decoder's: (keys, parameters)."""
    keys = jax.random.split(jax.random.key(seed), count)
    config, network, objective = model_of(**options)
    x = network.treat(jax.random.key(0), jnp.asarray(IMAGES))

    def loss(params, key):
        bound = Variables(params, {})
        terms = network.apply(bound, lambda model: objective.terms(key, model, x, config.objective.options))[0]
        return terms["loss"].mean()

    found = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(variables.params, keys)
    return [
        np.concatenate([np.asarray(found[name], np.float64).reshape(count, -1) for name in part], 1)
        for part in (ENCODER, DECODER)
    ]


def test_dreg_has_the_gradient_of_iwae_and_less_variance():
    count, wide = 500, variables_of(1.3)
    standard, standard_decoder = gradients(wide, 1, count, name="iwae", samples=50)
    dreg, dreg_decoder = gradients(wide, 2, count, name="iwae", samples=50, gradient="dreg")
    for a, b in ((standard, dreg), (standard_decoder, dreg_decoder)):
        error = np.sqrt((a.var(0) + b.var(0)) / count)
        assert (np.abs(a.mean(0) - b.mean(0)) < 5 * error).all()
    assert (np.abs(dreg.mean(0)) > 5 * dreg.std(0) / count**0.5).any()  # there is a gradient to agree on
    assert dreg.var(0).sum() < standard.var(0).sum() / 5


@pytest.mark.parametrize("name", ["vae", "iwae"])
def test_sticking_the_landing_has_no_variance_at_the_exact_posterior(name):
    standard = gradients(variables_of(), 1, 50, name=name, **({"kl": "sampled"} if name == "vae" else {}))[0]
    stl = gradients(variables_of(), 1, 50, name=name, gradient="stl")[0]
    assert np.abs(stl).max() < 1e-4
    assert standard.std(0).max() > 0.1


def test_piwae_has_iwaes_gradient_of_the_decoder_and_miwaes_of_the_encoder():
    wide = variables_of(1.3)
    encoder, decoder = gradients(wide, 1, 3, name="piwae", samples=4, groups=3)
    iwae_encoder, iwae_decoder = gradients(wide, 1, 3, name="iwae", samples=12)
    miwae_encoder, miwae_decoder = gradients(wide, 1, 3, name="miwae", samples=4, groups=3)
    np.testing.assert_allclose(decoder, iwae_decoder, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(encoder, miwae_encoder, rtol=1e-3, atol=1e-4)
    assert np.abs(encoder - iwae_encoder).max() > 0.01
    assert np.abs(decoder - miwae_decoder).max() > 0.01


def test_no_estimate_depends_on_how_the_work_is_split(monkeypatch):
    config, network, _ = model_of()
    wide, key, reported = variables_of(1.3), jax.random.key(1), []

    def both(**more):
        annealed = annealed_nll(config, network, wide, IMAGES, key, temperatures=5, chains=4, leapfrog=2, **more)
        return importance_nll(config, network, wide, IMAGES, key, 17, **more), annealed

    whole = both()
    monkeypatch.setattr(estimators, "THREADS", 1)
    monkeypatch.setattr(estimators, "ROWS", (5, 5))  # less than an image's 17 samples: chunks, the last not full
    for parts, expected in zip(both(on_progress=lambda *so_far: reported.append(so_far)), whole, strict=True):
        np.testing.assert_allclose(parts, expected, atol=1e-5)
    monkeypatch.setattr(estimators, "ROWS", (3 * 4, 3 * 4))  # three images with their chains: the last batch not full
    np.testing.assert_allclose(both()[1], whole[1], atol=1e-5)
    assert reported[:8] == [(done, 8) for done in range(1, 9)]
    assert np.ptp(whole[0] - exact_nll()) > 0.1  # the samples matter


def test_memory_does_not_grow_with_the_number_of_samples_or_images(monkeypatch):
    config, network, _ = model_of()
    needed = []

    def measure(what, estimate, variables, images, labels, key, batch, on_progress, exact=None):
        count = min(batch, len(images))
        keys = jax.vmap(image_keys, (None, 0))(key, np.arange(count))
        memory = jax.jit(estimate).lower(variables, images[:count], labels, keys, None).compile().memory_analysis()
        assert memory
        needed.append(memory.temp_size_in_bytes + memory.output_size_in_bytes)
        return np.zeros(len(images)), np.ones(len(images))

    monkeypatch.setattr(estimators, "_over_images", measure)
    for count, samples in ((512, 512), (512, 512 * 400), (2048, 1)):
        images = np.zeros((count, *SHAPE), np.uint8)
        importance_nll(config, network, variables_of(), images, jax.random.key(0), samples)
    for chains in (1, 64):
        annealed_nll(config, network, variables_of(), images, jax.random.key(0), temperatures=3, chains=chains)
    few, many, many_images, one_chain, many_chains = needed
    assert few > 512 * PIXELS * 4
    assert many < few + 512 * 400 * 4 + 10_000  # but for the numbers of the samples
    assert many_images < 2 * few
    assert one_chain < 2 * many_chains


def test_all_samples_of_an_image_are_of_the_same_binarised_image():
    binary = np.array(list(itertools.product([0, 255], repeat=PIXELS)), np.uint8)
    known = exact_nll(binary)
    grey = np.full((20, *SHAPE), 128, np.uint8)
    found = estimated(images=grey, samples=30, treatment="dynamic")
    nearest = np.abs(found[:, None] - known[None]).argmin(1)
    np.testing.assert_allclose(found, known[nearest], atol=1e-3)
    assert len(set(nearest)) > 10  # each image is drawn by itself
    config, network, _ = model_of("dynamic")
    annealed = annealed_nll(config, network, variables_of(), grey, jax.random.key(2), chains=256, leapfrog=3)
    np.testing.assert_allclose(annealed, found, atol=0.2)  # the same images with the same key; others are 1 apart


def test_labels_go_with_their_images():
    config = Config(model=ModelConfig(network="mlp", latent=2, layers=(4,), classes=2))
    network, _ = build(config, SHAPE)
    variables = network.init(jax.random.key(0))

    def found(*labels, estimate=importance_nll, **options):
        labels = np.array(labels)
        return estimate(config, network, variables, IMAGES[:2], jax.random.key(1), labels=labels, **options)

    for options in ({"samples": 3}, {"estimate": annealed_nll, "temperatures": 3, "chains": 3}):
        mixed, zeros, ones = (found(*labels, **options) for labels in ((0, 1), (0, 0), (1, 1)))
        np.testing.assert_allclose(mixed, [zeros[0], ones[1]], atol=1e-5)
        assert (np.abs(zeros - ones) > 1e-3).all()


def test_what_cannot_be_estimated_is_refused():
    config, network, _ = model_of()
    with pytest.raises(UserError, match="samples: expected at least 1; found 0"):
        importance_nll(config, network, variables_of(), IMAGES, jax.random.key(0), 0)
    with pytest.raises(UserError, match="chains: expected at least 1; found 0"):
        annealed_nll(config, network, variables_of(), IMAGES, jax.random.key(0), chains=0)
    autoencoder = Config(objective=ObjectiveConfig("autoencoder"))
    with pytest.raises(UserError, match=r"objective\.name: expected one with a p\(x\)"):
        importance_nll(autoencoder, network, variables_of(), IMAGES, jax.random.key(0), 1)
