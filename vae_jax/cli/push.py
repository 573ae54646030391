"""`vae-jax push`: brings a run to the Hugging Face Hub."""

from typing import Any

from vae_jax.cli.common import (
    Verb,
    answer,
    check_checkpoint,
    check_code,
    checkpoint_option,
    run_argument,
    set_device,
    trust_option,
)
from vae_jax.config import expand


def _options(parser: Any) -> None:
    run_argument(parser)
    parser.add_argument("repository", metavar="OWNER/NAME", help="on the hub; it is made if there is none")
    parser.add_argument("--private", action="store_true", help="make it a repository that only its owner sees")
    parser.add_argument("--licence", default=None, metavar="NAME", help="of the weights, for the card: apache-2.0, …")
    checkpoint_option(parser)
    trust_option(parser)


def _run(options: Any) -> None:
    check_checkpoint(options)
    folder = expand(options.run)
    check_code(options, folder)
    set_device("cpu")
    from vae_jax.interop.push import push

    url = push(
        folder,
        options.repository,
        private=options.private,
        licence=options.licence,
        checkpoint=options.checkpoint,
        report=answer,
        on_file=lambda line: answer(f"  {line}"),
        trust_code=options.trust_code,
    )
    answer(url)


VERBS = {
    "push": Verb(
        "bring a run to the Hugging Face Hub; where a command reads a run, hub:OWNER/NAME takes it from there",
        _options,
        _run,
        "examples:\n"
        "  vae-jax push runs/digits me/digits-vae --licence apache-2.0\n"
        "  vae-jax push runs/digits me/digits-vae --private --checkpoint best",
        usage="RUN OWNER/NAME",
    ),
}
