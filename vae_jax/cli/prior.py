"""`vae-jax train-prior`: a prior fitted to a trained model's z, by the driver that trains everything else."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_jax.cli import train
from vae_jax.cli.arguments import add_options
from vae_jax.cli.common import DATA_PATHS, Verb, devices_options, say, trains_prior, trust_option
from vae_jax.cli.run_data import renumbered
from vae_jax.config import Config, ObjectiveConfig, PriorConfig, expand
from vae_jax.config.change import options_of
from vae_jax.config.parts import registry_of
from vae_jax.errors import PATH, UserError, cut
from vae_jax.files.folders import contents
from vae_jax.files.held import check_no_link
from vae_jax.options import as_text
from vae_jax.runs import own_parts
from vae_jax.runs.folder import PRIOR, read_config, read_data

if TYPE_CHECKING:
    from vae_jax.data import Dataset

OF_RUN = ("data.", "model.", "posterior.", "likelihood.", "objective.")  # options that stay as the run has them …
LOCAL = tuple(f"data.{name}" for name in DATA_PATHS)  # … but for where its data lie
OVER_CODES = ("uniform", "pixelcnn", "transformer")
NO_FILE = "expected options alone, as --prior.name, since the model is the run's"


def _is_changeable(option: str) -> bool:
    return option in LOCAL or not (option.startswith(OF_RUN) or option == "train.start")


def _options(parser: Any) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, as `vae-jax train` leaves it")
    parser.add_argument("--resume", action="store_true", help="continue the prior in it, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="delete the prior in it first, if there is one")
    trust_option(parser)
    devices_options(parser)
    add_options(parser, NO_FILE)
    parser.changeable, parser.first = _is_changeable, ("prior", "train")
    parser.usual = _trained_by(Config(prior=PriorConfig("uniform")), "RUN")


def _base(options: Any) -> Config:
    """The run's configuration, with what its prior is trained by in place of what the run was.

    Raises:
        UserError: if there is no such run, or one that has no prior to train, or RUN/prior is none.
    """
    folder = expand(options.run)
    config = read_config(folder)
    if config.objective.part == "prior":
        raise UserError(f"{folder}: expected a run of a model; found one of a prior, that of {config.train.start}")
    known = registry_of("objective").get(config.objective.part)
    if known and not known.generative:
        raise UserError(
            f"{folder}: expected a model with a prior; found objective {config.objective.part}, which has none; "
            f"`vae-jax sample {shlex.quote(options.run)} --from gmm` draws from a mixture fitted to its z"
        )
    check_no_link(folder, folder / PRIOR)
    if not options.overwrite and contents(folder / PRIOR):
        try:
            its = read_config(folder / PRIOR)
        except UserError as error:
            raise UserError(f"{error}; {trains_prior(options.run)} trains another in its place") from error
        if options.resume:
            return its
    return _trained_by(config, str(folder))


def _trained_by(config: Config, folder: str) -> Config:
    """A run's configuration with the usual prior, and what trains it."""
    usual = type(config.train)()
    recipe = replace(
        usual,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        schedule="cosine",
        reduction="mean",
        start=folder,
        shard_images=config.train.shard_images,
    )
    return replace(
        config,
        prior=PriorConfig("flow" if _is_real(config) else "transformer"),
        objective=ObjectiveConfig("prior"),
        optimizer=type(config.optimizer)(),
        train=recipe,
    )


def _is_real(config: Config) -> bool:
    """Whether z are real numbers, as far as a run's own prior tells without being loaded."""
    return config.prior.part in registry_of("prior") and config.prior.part not in OVER_CODES


def _check(options: Any) -> None:
    """Refuses options of the run's other than its own.

    Raises:
        UserError: naming the first.
    """
    then, now = options_of(_base(options)), options_of(options.configuration)
    for name in {**then, **now}:
        if _is_changeable(name) or then.get(name) == now.get(name):
            continue
        own, other = (cut(as_text(of[name]), PATH) if name in of else "none" for of in (then, now))
        why = "with which a prior is trained" if name.startswith("objective.") else "of which the prior is trained"
        whose = f"{own}" if name.startswith("objective.") else f"the run's own, {own}"
        if name == "train.start":
            whose, why = str(expand(options.run)), "whose prior it is"
        raise UserError(f"{name}: expected {whose}, {why}; found {other}")


def _run(options: Any) -> int:
    folder = expand(options.run)
    config = read_config(folder)
    if not options.resume and options.configuration.prior.part == "flow" and _is_real(config):
        say("prior.name: flow, the usual one for z that are real numbers")
    if not contents(folder / PRIOR):
        options.resume = False
    if not options.resume:
        # The run's own copies of users' files are what its weights belong to.
        options.configuration = own_parts.as_kept(options.configuration, folder, options.trust_code)
    options.out = str(folder / PRIOR)

    def check(own: Config, images: "Dataset") -> "Dataset":
        if options.resume:
            _check_own(options, folder)
        return _check_data(own, config, images, folder)

    try:
        return train.train(options, check, f"vae-jax train-prior {shlex.quote(options.run)}")
    except UserError as error:
        if options.resume and str(error).startswith(options.out) and "train-prior" not in str(error):
            raise UserError(f"{error}; {trains_prior(options.run)} trains another in its place") from error
        raise


def _check_own(options: Any, folder: Path) -> None:
    """Refuses to go on with a prior that is not of the run's model as it is now.

    Raises:
        UserError: saying why.
    """
    from vae_jax.runs.prior import misfit, other_options
    from vae_jax.runs.reading import load

    config, its = (
        own_parts.as_kept(read_config(place), place, options.trust_code) for place in (folder, folder / PRIOR)
    )
    start = its.train.start
    why = other_options(config, its)
    if start is None or expand(start).resolve() != folder.resolve():
        why = f"it was trained for {start}"
    if not why and contents(folder / PRIOR / "checkpoints"):
        run, prior = (
            load(place, report=lambda line: None, trust_code=options.trust_code) for place in (folder, folder / PRIOR)
        )
        why = misfit(run, prior)
    if why:
        raise UserError(
            f"{folder / PRIOR}: expected a prior of this run's model as it is now; found that {why}; "
            f"{trains_prior(options.run)} trains another in its place"
        )


def _check_data(config: Config, run: Config, images: "Dataset", folder: Path) -> "Dataset":
    """The data, if they are what the run was trained on, with its numbers of the classes.

    Raises:
        UserError: if they are others.
    """
    from vae_jax.runs.identity import digest_of_all

    if (noted := read_data(folder)) is None:  # of weights from elsewhere
        return images
    images = renumbered(run, images, noted.class_names)
    if noted.digest != digest_of_all(run, images):
        place = f"--data.path {config.data.path}" if config.data.path else f"data.source {config.data.source}"
        raise UserError(
            f"{place}: expected the data that {folder} was trained on, {noted.name}, whose codes the prior is of; "
            f"found others, {images.name}"
        )
    return images


VERBS = {
    "train-prior": Verb(
        "train a prior for a run's model into RUN/prior, which `sample` and `evaluate` take by themselves",
        _options,
        _run,
        "examples:\n"
        "  vae-jax train-prior runs/vq                                  a causal transformer over the codes\n"
        "  vae-jax train-prior runs/vq --prior.name pixelcnn --train.epochs 20\n"
        "  vae-jax train-prior runs/digits                              a flow for z that are real numbers",
        interrupted="; `vae-jax train-prior RUN --resume` goes on from the last checkpoint, if there is one",
        base=_base,
        check=_check,
    ),
}
