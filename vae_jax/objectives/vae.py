"""The VAE's objective, and the β-VAE's."""

from vae_jax.likelihoods import bernoulli_log_prob
from vae_jax.objectives.base import Terms
from vae_jax.posteriors import diagonal_gaussian_kl


def vae(key, model, images, config) -> Terms:
    """−log p(x|z) + β·KL(q(z|x) ‖ N(0, I)), in nats per image.

    β = 1 gives −ELBO (Kingma & Welling 2013, equation 10, one sample of z); others the β-VAE (Higgins et al. 2017,
    equation 4).
    """
    heads = model.encode(images)
    reconstruction = -bernoulli_log_prob(model.decode(model.sample(key, heads)), images)
    kl = diagonal_gaussian_kl(heads)
    return Terms(reconstruction + config.beta * kl, reconstruction, kl)
