"""`vae-jax train-prior`: a prior fitted to a trained model's z, by the driver that trains everything else."""

from dataclasses import replace
from typing import Any

from vae_jax import own_parts
from vae_jax.cli import train
from vae_jax.cli.arguments import add_options
from vae_jax.cli.common import Verb, devices_options, trust_option
from vae_jax.config import Config, ObjectiveConfig, PriorConfig, expand
from vae_jax.config.parts import entry_of
from vae_jax.errors import UserError
from vae_jax.folder import PRIOR, read_config


def _options(parser: Any) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, as `vae-jax train` leaves it")
    parser.add_argument("--resume", action="store_true", help="continue the prior in it, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="delete the prior in it first, if there is one")
    trust_option(parser)
    devices_options(parser)
    add_options(parser)


def _base(options: Any) -> Config:
    """The run's configuration, with what its prior is trained by in place of what the run was.

    Raises:
        UserError: if there is no such run.
    """
    folder = expand(options.run)
    if options.resume and (folder / PRIOR / "config.yaml").is_file():
        return read_config(folder / PRIOR)
    config = read_config(folder)
    usual = type(config.train)()
    recipe = replace(
        usual,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        schedule="cosine",
        reduction="mean",
        start=str(folder),
        shard_images=config.train.shard_images,
    )
    return replace(
        config,
        prior=PriorConfig("transformer"),
        objective=ObjectiveConfig("prior"),
        optimizer=type(config.optimizer)(),
        train=recipe,
    )


def _run(options: Any) -> int:
    folder = expand(options.run)
    if options.config:
        raise UserError("--config: expected none, since the model is the run's; found one; --prior.name and the like")
    run, config = read_config(folder), options.configuration
    for section in ("data", "model", "posterior", "likelihood", "objective"):
        kept = ObjectiveConfig("prior") if section == "objective" else getattr(run, section)
        if getattr(config, section) != kept:
            raise UserError(f"{section}: expected the run's own, of which the prior is trained; found another")
    entry_of("prior", config.prior.name)
    if not options.resume:  # the run's own copies of users' files are what its weights belong to
        options.configuration = own_parts.as_kept(config, folder, options.trust_code)
    options.out = str(folder / PRIOR)
    return train.train(options)


VERBS = {
    "train-prior": Verb(
        "train a prior for a run's model into RUN/prior, which `sample` and `evaluate` take by themselves",
        _options,
        _run,
        "examples:\n"
        "  vae-jax train-prior runs/vq                                  a causal transformer over the codes\n"
        "  vae-jax train-prior runs/vq --prior.name pixelcnn --train.epochs 20\n"
        "  vae-jax train-prior runs/digits --prior.name flow            for z that are real numbers",
        interrupted="; `vae-jax train-prior RUN --resume` goes on from the last checkpoint, if there is one",
        base=_base,
    ),
}
