"""The objective that trains a prior alone, for a model that is trained already."""

from vae_jax.errors import UserError
from vae_jax.objectives.base import Around, Terms


def prior(key, model, images, options: None) -> Terms:
    """−log p(x|z) + log q(z|x) − log p(z), in nats per image; training changes p(z) alone.

    With codes it is the bound on −log p(x) that a second stage makes tighter (van den Oord et al. 2017, section 3.3).
    The model is as in evaluation, without dropout; its running statistics, its codebook and its weights stay.
    """
    draw = model.draw(key, images)
    kl = draw.log_q - draw.log_pz
    return {"loss": -draw.log_px + kl, "reconstruction": -draw.log_px, "kl": kl}


def check_prior(options: None, around: Around) -> None:
    """Refuses a prior that has nothing to train.

    Raises:
        UserError: naming the prior.
    """
    if around.posterior.decodes or not around.learned():
        raise UserError(
            f"prior.name: expected one with parameters of its own with objective prior, which trains them alone; found "
            f"{around.p}"
        )
