"""Makes a run folder of weights from elsewhere."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_jax.config import (
    Config,
    to_yaml,
)
from vae_jax.errors import UserError, argument
from vae_jax.files.held import check_held
from vae_jax.files.lock import writing
from vae_jax.files.replace import scratch, write_text
from vae_jax.model.build import build
from vae_jax.model.model import make_model
from vae_jax.runs import own_parts
from vae_jax.runs.final_pictures import draw_samples
from vae_jax.runs.folder import ORIGIN, check_folder, delete
from vae_jax.runs.identity import digest_of_run, plain_options
from vae_jax.training.start import start_from
from vae_jax.training.state import Trained
from vae_jax.variables import Variables


def adopt(
    config: Config,
    variables: Variables,
    folder: str | Path,
    origin: dict[str, Any],
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Makes a run folder of weights from elsewhere, to be used or trained on; its optimiser's state is fresh.

    Args:
        config: of the run.
        variables: of its network.
        folder: of the run; created.
        origin: of the weights, for RUN/imported.json.
        overwrite: delete the run in the folder first.
        report: called with a line of text now and then.

    Raises:
        UserError: if the folder is in the way or cannot be written.
    """
    from vae_jax.runs import checkpoint
    from vae_jax.runs.checkpoint import save

    folder, config = Path(folder), own_parts.absolute(config)
    if config.train.start is not None:
        raise UserError(
            f"train.start: expected null, since the run starts with these weights; found {config.train.start}"
        )
    check_folder(folder, False, overwrite)
    shape = config.data.image_shape
    composition, objective = build(config, shape)
    state = start_from(config, objective, variables, 0)
    model = make_model(composition, objective, variables)
    names = own_parts.names_in(config)
    sources = own_parts.sources(names)
    with writing(folder):
        check_folder(folder, False, overwrite)
        if sources and (strange := own_parts.strangers(folder)):
            raise UserError(
                f"{strange[0]}: expected nothing but copies of users' files in {folder / own_parts.CODE}, which "
                f"{argument('overwrite', True)} replaces; found a file that is none of them; move it elsewhere"
            )
        # Made in a scratch folder and moved when it is whole: so half a run is no run, and an old one is not lost.
        with scratch(folder / "import") as making:
            (making / "figures").mkdir()
            write_text(making / ORIGIN, json.dumps(origin, indent=2) + "\n")
            if model.sample:
                draw_samples(making, config, model)
            (making / "checkpoints").mkdir()
            if unsigned := own_parts.keep(sources, names, making):
                report(unsigned)
            copies = own_parts.by_copy(config, making)
            saved = checkpoint.Saved(state, [], 0, options=plain_options(copies), run=digest_of_run(copies, making))
            save(making / "checkpoints", saved, read_back=True)
            write_text(making / "config.yaml", to_yaml(config))
            check_held(folder / "config.yaml")
            if overwrite:
                delete(folder)
            for path in sorted(making.iterdir(), key=lambda path: path.name == "config.yaml"):
                os.replace(path, folder / path.name)
    return Trained(config, shape, state, [])
