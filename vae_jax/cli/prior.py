"""`vae-jax train-prior`: trains a prior for a trained model's z, with the driver of all training."""

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

OF_RUN = ("data.", "model.", "posterior.", "likelihood.", "objective.")  # options that must be the run's …
LOCAL = tuple(f"data.{name}" for name in DATA_PATHS)  # … except the paths of its data


def _options(parser: Any) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, made by `vae-jax train`")
    parser.add_argument("--resume", action="store_true", help="continue the prior in it, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="delete the prior in it first, if there is one")
    trust_option(parser)
    devices_options(parser)
    add_options(parser)


def _base(options: Any) -> Config:
    """The run's configuration, with a recipe for its prior instead of the run's.

    Raises:
        UserError: if there is no such run.
    """
    folder = expand(options.run)
    if options.resume and (folder / PRIOR / "config.yaml").is_file():
        return read_config(folder / PRIOR)
    config = read_config(folder)
    default = type(config.train)()
    recipe = replace(
        default,
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
            raise UserError(
                f"{strange[0]}: expected the run's own, since the prior is trained for its model; found another"
            )
        # The run's weights belong to its own copies of users' files.
        options.configuration = own_parts.as_kept(config, folder, options.trust_code)
    options.out = str(folder / PRIOR)
    return train.train(options)


VERBS = {
    "train-prior": Verb(
        "train a prior for a run's model into RUN/prior, which `sample` and `evaluate` then use",
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
