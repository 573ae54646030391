"""Every registered objective: its shape, its gradient, and its numbers on a model small enough to see through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from vae_jax import posteriors
from vae_jax.config import ObjectiveConfig, PosteriorConfig
from vae_jax.errors import UserError
from vae_jax.likelihoods import bernoulli_log_prob, pixel_mean
from vae_jax.objectives import OBJECTIVES, BoundModel, get
from vae_jax.objectives.autoencoder import CORRUPTIONS
from vae_jax.objectives.base import make_draw
from vae_jax.posteriors import Sample
from vae_jax.priors import standard_normal_log_prob
from vae_jax.shapes import Shapes

SHAPES = Shapes((2, 2, 1), 2)


def linear_model(weight, generative=True, seen=None, epoch=np.inf):
    """Heads and logits linear in the input, over 2x2 images and two latents."""
    posterior = posteriors.get(PosteriorConfig(), SHAPES) if generative else posteriors.point(None, SHAPES)

    def encode(images):
        if seen is not None:
            seen.append(images)
        flat = images.reshape(len(images), -1)
        heads = {"mu": weight * flat[:, :2], "log_var": weight * flat[:, 2:]}
        return {name: heads[name] for name in posterior.heads}

    def sample(key, heads, samples=None):
        repeats = () if samples is None else (samples,)
        heads = {name: jnp.broadcast_to(head, (*repeats, *head.shape)) for name, head in heads.items()}
        return Sample(*posterior.transform({}, jax.random.normal(key, heads["mu"].shape), heads))

    def decode(z):
        return (weight * jnp.concatenate([z, -z], -1)).reshape(*z.shape[:-1], 2, 2, 1)

    def log_likelihood(images, outputs):
        images = jnp.broadcast_to(images, outputs.shape).reshape(-1, 2, 2, 1)
        return bernoulli_log_prob(outputs.reshape(-1, 2, 2, 1), images).reshape(outputs.shape[:-3])

    def log_posterior(z, heads):
        heads = {name: jnp.broadcast_to(jax.lax.stop_gradient(head), z.shape) for name, head in heads.items()}
        return posterior.log_prob({}, z, heads)

    closed = posterior.kl.get("standard_normal")
    kl, by_dimension = (closed and (lambda heads, of=of: of(heads, {})) for of in closed or (None, None))
    return BoundModel(
        make_draw(encode, sample, decode, log_likelihood, standard_normal_log_prob, kl, by_dimension),
        encode,
        lambda *arguments: sample(*arguments)[:2],
        decode,
        log_likelihood,
        standard_normal_log_prob,
        log_posterior,
        kl,
        by_dimension,
        pixel_mean,
        jnp.asarray(epoch, float),
    )


IMAGES = jnp.asarray(np.random.RandomState(0).rand(5, 2, 2, 1), float)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_loss_for_each_image_and_a_gradient(name):
    objective = get(ObjectiveConfig(name=name))

    def total(weight):
        model = linear_model(weight, objective.generative)
        terms = objective.terms(jax.random.key(0), model, IMAGES, ObjectiveConfig(name=name).options)
        assert all(part.shape == (5,) for part in terms.values())
        return terms["loss"].sum(), terms

    gradient, terms = jax.grad(total, has_aux=True)(0.5)
    assert np.isfinite(gradient)
    assert float(gradient) != 0
    assert (np.asarray(terms["kl"]).mean() > 0) == objective.generative
    assert (np.asarray(terms["reconstruction"]) > 0).all()
    assert objective.unit == ("nats per image" if objective.generative else "squared error per image")


VARIANTS = {
    **{name: {} for name in OBJECTIVES},
    "vae sampled": {"kl": "sampled"},
    "vae stl": {"gradient": "stl"},
    "vae free bits": {"free_bits": 0.1},
    "iwae stl": {"gradient": "stl"},
    "iwae dreg": {"gradient": "dreg"},
    "miwae dreg": {"gradient": "dreg"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_finite_wherever_losses_are(variant):
    config = ObjectiveConfig(name=variant.split()[0], **VARIANTS[variant])
    objective = get(config)
    weights = jnp.array([0.0, 1e-30, 1e-3, 1.0, 20.0, 100.0, 1e4, -1e-3, -20.0, -100.0, -1e4])

    def loss(weight, image):
        model = linear_model(weight, objective.generative, epoch=0.5)
        return objective.terms(jax.random.key(0), model, image[None], config.options)["loss"][0]

    each = jax.vmap(jax.vmap(jax.value_and_grad(loss), (None, 0)), (0, None))
    values, gradients = jax.jit(each)(weights, IMAGES)
    finite = np.isfinite(values)
    assert finite[:5].all()
    assert np.isfinite(gradients)[finite].all()


@pytest.mark.parametrize("variant", ["piwae", "iwae dreg"])
def test_an_image_that_weighs_nothing_adds_nothing_to_a_gradient(variant):
    """As where a user leaves some images out of a batch's sum."""
    config = ObjectiveConfig(name=variant.split()[0], **VARIANTS[variant])

    def gradient(weights):
        def total(weight):
            return (
                get(config).terms(jax.random.key(0), linear_model(weight), IMAGES, config.options)["loss"] * weights
            ).sum()

        return jax.grad(total)(0.5)

    rows = jnp.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], float)
    first, second, both, none = jax.jit(jax.vmap(gradient))(rows)
    assert float(none) == 0
    assert float(first + second) == pytest.approx(float(both), rel=1e-5)


def test_vae_is_reconstruction_plus_beta_kl_at_the_sampled_z():
    objective = OBJECTIVES["vae"]
    terms = objective.terms(jax.random.key(3), linear_model(0.5), IMAGES, ObjectiveConfig(beta=4.0).options)
    flat = np.asarray(IMAGES, np.float64).reshape(5, 4)
    mu, log_var = 0.5 * flat[:, :2], 0.5 * flat[:, 2:]
    z = mu + np.asarray(jax.random.normal(jax.random.key(3), (5, 2))) * np.exp(log_var / 2)
    p = 1 / (1 + np.exp(-0.5 * np.concatenate([z, -z], 1)))
    reconstruction = -(flat * np.log(p) + (1 - flat) * np.log(1 - p)).sum(1)
    kl = 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var).sum(1)
    np.testing.assert_allclose(terms["reconstruction"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(terms["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(terms["loss"], reconstruction + 4 * kl, rtol=1e-5)


def weights(key, samples):
    """log w of the linear model of weight 0.5, (samples, batch), in numpy."""
    flat = np.asarray(IMAGES, np.float64).reshape(5, 4)
    mu, log_var = 0.5 * flat[:, :2], 0.5 * flat[:, 2:]
    noise = np.asarray(jax.random.normal(key, (samples, 5, 2)), np.float64)
    z = mu + noise * np.exp(log_var / 2)
    p = 1 / (1 + np.exp(-0.5 * np.concatenate([z, -z], -1)))
    reconstruction = -(flat * np.log(p) + (1 - flat) * np.log(1 - p)).sum(-1)
    kl = 0.5 * (z**2 - noise**2 - log_var).sum(-1)
    return -reconstruction - kl, reconstruction, kl


def terms_of(name, model, key=7, **options):
    config = ObjectiveConfig(name=name, **options)
    return get(config).terms(jax.random.key(key), model, IMAGES, config.options)


def test_importance_weighted_bounds_are_what_the_papers_say():
    model, key = linear_model(0.5), jax.random.key(7)
    log_w, reconstruction, kl = weights(key, 6)
    bound = logsumexp(log_w, 0) - np.log(6)
    for name, options, expected in (
        ("iwae", {"samples": 6}, -bound),
        ("miwae", {"samples": 3, "groups": 2}, -(logsumexp(log_w.reshape(2, 3, 5), 1) - np.log(3)).mean(0)),
        ("piwae", {"samples": 3, "groups": 2}, -bound),
        ("ciwae", {"samples": 6, "elbo_weight": 0.3}, -0.3 * log_w.mean(0) - 0.7 * bound),
    ):
        found = terms_of(name, model, **options)
        np.testing.assert_allclose(found["loss"], expected, rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(found["reconstruction"], reconstruction.mean(0), rtol=2e-6)
        np.testing.assert_allclose(found["kl"], kl.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
@pytest.mark.parametrize("name", ["iwae", "miwae"])
def test_a_gradient_estimator_leaves_the_value_alone(name, gradient):
    standard, other = (terms_of(name, linear_model(0.5), gradient=each) for each in ("standard", gradient))
    np.testing.assert_allclose(other["loss"], standard["loss"], rtol=1e-6)


def test_dreg_and_piwae_weigh_each_samples_gradient_as_their_papers_say():
    """Against sums over samples written out, each sample's log w differentiated on its own."""
    model, samples = linear_model(0.5), 6
    heads = model.encode(IMAGES)
    # What q may move: its heads, shifted; and what the decoder may move: the logits, scaled.
    shifts = {name: jnp.zeros_like(head) for name, head in heads.items()}

    def moved(shifts, scale):
        def encode(images):
            return {name: head + shifts[name] for name, head in heads.items()}

        def decode(z):
            return scale * model.decode(z)

        def sample(*arguments):
            return Sample(*model.sample(*arguments))

        parts = encode, sample, decode, model.log_likelihood, model.log_prior, model.kl, model.kl_by_dimension
        return model._replace(draw=make_draw(*parts), encode=encode, decode=decode)

    def loss(name, shifts, scale, **options):
        return terms_of(name, moved(shifts, scale), **options)["loss"].sum()

    def log_w(shifts, scale, still):
        this = moved(shifts, scale)
        q = this.encode(IMAGES)
        z, log_q = this.sample(jax.random.key(7), q, samples)
        log_q = this.log_posterior(z, q) if still else log_q
        return this.log_likelihood(IMAGES, this.decode(z)) + this.log_prior(z) - log_q

    def weighted(still, argument, weights):
        return jax.grad(lambda *at: (jnp.asarray(weights) * log_w(*at, still)).sum(), argument)(shifts, 1.0)

    values = np.asarray(log_w(shifts, 1.0, False), np.float64)
    everyone, within = softmax(values, 0), softmax(values.reshape(2, 3, 5), 1).reshape(6, 5) / 2
    for name, options, of_decoder, of_q, still in (
        ("iwae", {"samples": 6, "gradient": "dreg"}, everyone, everyone**2, True),
        ("miwae", {"samples": 3, "groups": 2, "gradient": "dreg"}, within, 2 * within**2, True),
        ("iwae", {"samples": 6, "gradient": "stl"}, everyone, everyone, True),
        ("piwae", {"samples": 3, "groups": 2}, everyone, within, False),
        ("miwae", {"samples": 3, "groups": 2}, within, within, False),
    ):
        found_q, found_decoder = jax.grad(lambda *at: loss(name, *at, **options), (0, 1))(shifts, 1.0)  # noqa: B023
        expected = weighted(still, 0, of_q.astype(np.float32))
        for head in heads:
            np.testing.assert_allclose(found_q[head], -expected[head], rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found_decoder, -weighted(still, 1, of_decoder.astype(np.float32)), rtol=1e-5)


def test_a_sampled_kl_has_the_closed_forms_mean_and_stl_the_same_value():
    model = linear_model(0.5)
    config = ObjectiveConfig(kl="sampled")
    keys = jax.random.split(jax.random.key(0), 10_000)
    sampled = jax.jit(jax.vmap(lambda key: get(config).terms(key, model, IMAGES, config.options)["kl"]))(keys)
    error = np.std(sampled, 0) / 100
    assert (np.abs(np.mean(sampled, 0) - terms_of("vae", model)["kl"]) < 5 * error).all()
    np.testing.assert_allclose(
        terms_of("vae", model, gradient="stl")["loss"], terms_of("vae", model, kl="sampled")["loss"], rtol=1e-6
    )


def test_free_bits_cost_the_larger_of_each_dimensions_mean_kl_and_the_bits():
    model = linear_model(0.5, epoch=1.0)
    by_dimension = np.asarray(model.kl_by_dimension(model.encode(IMAGES)), np.float64).mean(0)
    bits = float(by_dimension.mean())  # between the two dimensions
    found = terms_of("vae", model, free_bits=bits, beta=2.0)
    assert by_dimension.min() < bits < by_dimension.max()
    np.testing.assert_allclose(found["loss"] - found["reconstruction"], 2 * (bits + by_dimension.max()), rtol=1e-5)
    np.testing.assert_allclose(found["kl"], terms_of("vae", model)["kl"])
    evaluated = terms_of("vae", linear_model(0.5), free_bits=bits)
    np.testing.assert_allclose(evaluated["loss"], evaluated["reconstruction"] + evaluated["kl"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"schedule": "warmup", "warmup_epochs": 4.0}, {0: 0, 1: 0.25, 4: 1, 9: 1, np.inf: 1}),
        (
            {"schedule": "cyclical", "cycle_epochs": 4.0, "cycle_ratio": 0.5},
            {0: 0, 1: 0.5, 2: 1, 3.5: 1, 4: 0, 5: 0.5, np.inf: 1},
        ),
    ],
)
def test_beta_follows_its_schedule(options, weights):
    for epoch, weight in weights.items():
        found = terms_of("vae", linear_model(0.5, epoch=epoch), beta=3.0, **options)
        np.testing.assert_allclose(
            found["loss"] - found["reconstruction"], 3 * weight * np.asarray(found["kl"]), atol=2e-5
        )


def test_capacity_grows_to_its_end_and_pulls_the_kl_there():
    for epoch, capacity in {0: 0.0, 25: 1.0, 50: 2.0, 80: 2.0, np.inf: 2.0}.items():
        found = terms_of("capacity_vae", linear_model(0.5, epoch=epoch), capacity=2.0, capacity_weight=10.0)
        expected = 10 * np.abs(np.asarray(found["kl"]) - capacity)
        np.testing.assert_allclose(found["loss"] - found["reconstruction"], expected, rtol=1e-4)


def test_autoencoder_does_not_sample():
    objective = OBJECTIVES["autoencoder"]
    first, second = (objective.terms(jax.random.key(seed), linear_model(0.5, False), IMAGES, None) for seed in (0, 1))
    np.testing.assert_array_equal(first["loss"], second["loss"])
    assert not np.asarray(first["kl"]).any()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_denoising_corrupts_the_input_and_not_the_target(corruption):
    objective = OBJECTIVES["denoising_autoencoder"]
    config = ObjectiveConfig(name="denoising_autoencoder", corruption=corruption, corruption_level=0.5)
    images = jnp.asarray(np.random.RandomState(1).uniform(0.2, 0.8, (2000, 2, 2, 1)), float)
    seen = []
    # A decoder of weight 0 gives 0.5 everywhere, so the error tells the target alone.
    terms = objective.terms(jax.random.key(0), linear_model(0.0, False, seen), images, config.options)
    np.testing.assert_allclose(terms["loss"], np.square(np.asarray(images) - 0.5).sum((1, 2, 3)), rtol=1e-5)
    noise = np.asarray(seen[0] - images)
    assert 0 <= seen[0].min() <= seen[0].max() <= 1
    if corruption == "masking":
        assert np.mean(np.asarray(seen[0]) == 0) == pytest.approx(0.5, abs=5 * 0.5 / 8000**0.5)
        assert ((noise == 0) | (np.asarray(seen[0]) == 0)).all()
    else:
        inside = (np.asarray(seen[0]) > 0) & (np.asarray(seen[0]) < 1)
        assert 0.4 < inside.mean() < 0.8  # ±1 deviation around the middle, roughly
        assert np.abs(noise[inside]).max() > 0.5

    other = []
    objective.terms(jax.random.key(1), linear_model(0.0, False, other), images, config.options)
    assert not np.array_equal(seen[0], other[0])


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"objective\.name: expected one of vae, .*found 'vea' \(did you mean vae\?\)"):
        get(ObjectiveConfig(name="vea"))
    with pytest.raises(UserError, match=r"objective\.corruption: .*found 'salt'"):
        get(ObjectiveConfig(corruption="salt"))
    with pytest.raises(UserError, match=r"objective\.gradient: expected one of standard, stl; found 'dreg'"):
        get(ObjectiveConfig(gradient="dreg"))
