"""Every registered objective: its shape, its gradient, and its numbers on a model small enough to see through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.config import ObjectiveConfig
from vae_jax.errors import UserError
from vae_jax.objectives import OBJECTIVES, Model, get
from vae_jax.objectives.autoencoder import CORRUPTIONS


def linear_model(weight, objective, seen=None):
    """Heads and logits linear in the input, over 2x2 images and two latents."""

    def encode(images):
        if seen is not None:
            seen.append(images)
        flat = images.reshape(len(images), -1)
        heads = {"mu": weight * flat[:, :2], "log_var": weight * flat[:, 2:]}
        return {name: heads[name] for name in objective.posterior.heads}

    return Model(
        encode, objective.posterior.sample, lambda z: (weight * jnp.concatenate([z, -z], 1)).reshape(-1, 2, 2, 1)
    )


IMAGES = jnp.asarray(np.random.RandomState(0).rand(5, 2, 2, 1), float)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_loss_for_each_image_and_a_gradient(name):
    objective = get(ObjectiveConfig(name=name))

    def total(weight):
        terms = objective.terms(jax.random.key(0), linear_model(weight, objective), IMAGES, ObjectiveConfig(name=name))
        assert all(part.shape == (5,) for part in terms)
        return terms.loss.sum(), terms

    gradient, terms = jax.grad(total, has_aux=True)(0.5)
    assert np.isfinite(gradient)
    assert float(gradient) != 0
    np.testing.assert_allclose(terms.loss, terms.reconstruction + terms.kl, rtol=1e-6)
    assert (np.asarray(terms.kl) > 0).all() == objective.generative
    assert objective.unit == ("nats per image" if objective.generative else "squared error per image")


def test_vae_is_reconstruction_plus_beta_kl_at_the_sampled_z():
    objective = OBJECTIVES["vae"]
    terms = objective.terms(jax.random.key(3), linear_model(0.5, objective), IMAGES, ObjectiveConfig(beta=4.0))
    flat = np.asarray(IMAGES, np.float64).reshape(5, 4)
    mu, log_var = 0.5 * flat[:, :2], 0.5 * flat[:, 2:]
    z = mu + np.asarray(jax.random.normal(jax.random.key(3), (5, 2))) * np.exp(log_var / 2)
    p = 1 / (1 + np.exp(-0.5 * np.concatenate([z, -z], 1)))
    reconstruction = -(flat * np.log(p) + (1 - flat) * np.log(1 - p)).sum(1)
    kl = 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var).sum(1)
    np.testing.assert_allclose(terms.reconstruction, reconstruction, rtol=1e-5)
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(terms.loss, reconstruction + 4 * kl, rtol=1e-5)


def test_autoencoder_does_not_sample():
    objective = OBJECTIVES["autoencoder"]
    first, second = (
        objective.terms(jax.random.key(seed), linear_model(0.5, objective), IMAGES, ObjectiveConfig())
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(first.loss, second.loss)
    assert not np.asarray(first.kl).any()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_denoising_corrupts_the_input_and_not_the_target(corruption):
    objective = OBJECTIVES["denoising_autoencoder"]
    config = ObjectiveConfig(name="denoising_autoencoder", corruption=corruption, corruption_level=0.5)
    images = jnp.asarray(np.random.RandomState(1).uniform(0.2, 0.8, (2000, 2, 2, 1)), float)
    seen = []
    # A decoder of weight 0 gives 0.5 everywhere, so the error tells the target alone.
    terms = objective.terms(jax.random.key(0), linear_model(0.0, objective, seen), images, config)
    np.testing.assert_allclose(terms.loss, np.square(np.asarray(images) - 0.5).sum((1, 2, 3)), rtol=1e-5)
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
    objective.terms(jax.random.key(1), linear_model(0.0, objective, other), images, config)
    assert not np.array_equal(seen[0], other[0])


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"objective\.name: expected one of vae, .*found 'vea' \(did you mean vae\?\)"):
        get(ObjectiveConfig(name="vea"))
    with pytest.raises(UserError, match=r"objective\.corruption: .*found 'salt'"):
        get(ObjectiveConfig(corruption="salt"))
