"""The prior that is trained for a run's model, in RUN/prior: whether it is this model's, and the model with it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from vae_jax.config import Config, options_of
from vae_jax.errors import PATH, UserError, argument, cut
from vae_jax.files.held import check_no_link
from vae_jax.options import as_text
from vae_jax.runs import own_parts, reading
from vae_jax.runs.identity import LOCAL
from vae_jax.training.state import Trained

OBJECTIVE = "prior"
SAME = ("data.", "model.", "posterior.", "likelihood.")  # options that a prior has in common with its run
OTHER_WEIGHTS = "it was trained for other weights of the run"


def misfit(run: Trained, prior: Trained) -> str:
    """Why a prior's run is none of a run's model, in words; empty if it is one.

    Its options are compared, users' files by content, and all weights but the prior's.
    """
    if why := other_options(run.config, prior.config):
        return why
    # What the model and its prior's run have in common: an objective's own networks are the run's alone.
    common = {*prior.variables.params, *prior.variables.state} - {"prior"}
    own, its = (
        [{name: part for name, part in group.items() if name in common} for group in trained.variables]
        for trained in (run, prior)
    )
    same = jax.tree.structure(own) == jax.tree.structure(its) and all(
        np.array_equal(one, other) for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(its), strict=True)
    )
    return "" if same else OTHER_WEIGHTS


def other_options(run: Config, prior: Config) -> str:
    """Why a prior's options are none of a run's model, in words; empty if they are."""
    if prior.objective.name != OBJECTIVE:
        return f"its objective.name is {prior.objective.name}, which trains no prior alone"
    then, now = (options_of(own_parts.by_content(config)) for config in (run, prior))
    for option in {**then, **now}:
        if option.startswith(SAME) and not option.startswith(LOCAL) and then.get(option) != now.get(option):
            own, other = (
                cut(as_text(options[option]), PATH) if option in options else "its default" for options in (then, now)
            )
            return f"its {option} is {other}, and the run's {own}"
    return ""


def with_prior(run: Trained, prior: Trained) -> Trained:
    """A run's model with a prior that fits it: all but the prior, and what has trained it, is the run's."""
    train = replace(
        prior.config.train, batch_size=run.config.train.batch_size, shard_images=run.config.train.shard_images
    )
    config = replace(
        run.config,
        prior=prior.config.prior,
        objective=prior.config.objective,
        optimizer=prior.config.optimizer,  # its state may hold the weights that are evaluated
        train=train,
    )
    return run._replace(config=config, state=prior.state)


def read_prior(
    folder: Path, run: Trained, checkpoint: str, report: Callable[[str], None], trust_code: bool, hint: str
) -> tuple[Trained | None, str]:
    """The prior in a run's folder, if it can be read, and why it is not to be taken, with what to do.

    Args:
        folder: of the prior, RUN/prior.
        run: the run's model.
        checkpoint: of the run, "latest" or "best".
        report: see `vae_jax.runs.reading.load`.
        trust_code: see `vae_jax.runs.reading.load`.
        hint: how another is trained.
    """
    try:
        check_no_link(folder.parent, folder)
        prior = reading.load(folder, checkpoint, report, trust_code)
    except UserError as error:
        return None, f"{error}{hint}"
    why = misfit(run, prior)
    if why == OTHER_WEIGHTS and checkpoint == "best":
        latest = reading.load(folder.parent, report=lambda line: None, trust_code=trust_code)
        if not misfit(latest, prior):
            why = "it is of the run's latest weights, not of its best"
            both, neither = argument("checkpoint", "latest"), argument("no_prior", True)
            hint = f"; {both} takes both, {neither} looks for none"
    return prior, why and f"{why}{hint}"
