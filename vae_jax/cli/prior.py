"""`vae-jax train-prior`: a prior fitted to a trained model's z, by the driver that trains everything else."""

from dataclasses import replace
from typing import Any

from vae_jax.cli import train
from vae_jax.cli.arguments import add_options
from vae_jax.cli.common import DATA_PATHS, Verb, devices_options, trust_option
from vae_jax.config import Config, ObjectiveConfig, PriorConfig, expand
from vae_jax.config.change import options_of
from vae_jax.errors import UserError
from vae_jax.runs import own_parts
from vae_jax.runs.folder import PRIOR, read_config

OF_RUN = ("data.", "model.", "posterior.", "likelihood.", "objective.")  # options that stay as the run has them …
LOCAL = tuple(f"data.{name}" for name in DATA_PATHS)  # … but for where its data lie


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
        raise UserError("--config: expected options alone, as --prior.name, since the model is the run's; found a file")
    if not (folder / PRIOR / "config.yaml").is_file():
        options.resume = False
    if not options.resume:
        config, kept = options.configuration, _base(options)
        if config.train.start is None or expand(config.train.start).resolve() != folder.resolve():
            raise UserError(f"train.start: expected {folder}, whose prior it is; found {config.train.start}")
        then, now = options_of(kept), options_of(config)
        changed = [name for name in {**then, **now} if name.startswith(OF_RUN) and then.get(name) != now.get(name)]
        if strange := [name for name in changed if name not in LOCAL]:
            raise UserError(f"{strange[0]}: expected the run's own, of which the prior is trained; found another")
        # The run's own copies of users' files are what its weights belong to.
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
