"""`vae-jax report`: a page on a run, or on several side by side."""

from pathlib import Path
from typing import Any

from vae_jax.cli.common import Verb, answer, runs_argument
from vae_jax.config import expand
from vae_jax.errors import UserError
from vae_jax.files.folders import check_writable
from vae_jax.files.held import check_no_link

MOST = 200  # runs in a page


def _options(parser: Any) -> None:
    runs_argument(parser)
    parser.add_argument(
        "--out", default=None, metavar="FILE", help="the page; default RUN/report.html, of several runs report.html"
    )


def _run(options: Any) -> None:
    from vae_jax.files.replace import write_text
    from vae_jax.pages.page import check_target
    from vae_jax.pages.report import report
    from vae_jax.runs.overview import overview, runs_in

    given = [expand(run) for run in options.runs]
    folders = runs_in(given)
    if len(folders) > MOST:
        raise UserError(f"RUN: expected at most {MOST} runs; found {len(folders)}")
    path = expand(options.out) if options.out else (given[0] if len(given) == 1 else Path()) / "report.html"
    check_target(path)
    check_no_link(given[0], path.parent)
    check_writable(path.parent)
    write_text(path, report([overview(folder) for folder in folders]))
    answer(str(path))


VERBS = {
    "report": Verb(
        "write a page on runs: what they are, figures, curves, pictures, and how to repeat them",
        _options,
        _run,
        "examples:\n"
        "  vae-jax report runs/digits\n"
        "  vae-jax report runs/* --out runs.html            side by side, with the options in which they differ\n"
        "  vae-jax report sweeps/beta",
        usage="RUN…",
    ),
}
