"""`vae-jax explore`: a page in which a model decodes what the reader points at."""

import os
import sys
from typing import Any

from vae_jax.cli.arguments import whole
from vae_jax.cli.common import Verb, answer, open_run, out_option, positive, run_options, say, target
from vae_jax.cli.run_data import load_data
from vae_jax.config import expand
from vae_jax.files.folders import name_of


def _options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("-n", type=whole, default=2000, help="at most so many test images on the map")
    parser.add_argument("--no-open", action="store_true", help="write the page and open no browser")
    out_option(parser, "RUN/explore.html")


def _run(options: Any) -> None:
    path, points = target(options, "explore.html", ".html", ".htm"), positive(options.n, "-n")
    from vae_jax.pages.page import check_target

    check_target(path)
    trained, model = open_run(options)
    from vae_jax.files.replace import write_text
    from vae_jax.pages.explore import check, explore

    check(trained)
    data = load_data(options, trained)
    write_text(path, explore(name_of(expand(options.run)), trained, model, data, points, say))
    if not options.no_open:
        _open(path.absolute().as_uri())
    answer(str(path))


def _open(address: str) -> None:
    """Opens a page in the browser, where there is a screen; says so where there is none."""
    import webbrowser

    on_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (on_screen and webbrowser.open(address)):
        say("no browser is opened, since there is no screen here: open the file in one")


VERBS = {
    "explore": Verb(
        "write a page of the latent space in which the decoder runs, and open it in the browser",
        _options,
        _run,
        "examples:\n  vae-jax explore runs/digits\n  vae-jax explore runs/digits --out digits.html --no-open",
    ),
}
