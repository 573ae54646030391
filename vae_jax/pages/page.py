"""The shell of a page: one HTML file with its style, its programs and its data, which fetches nothing."""

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vae_jax.errors import UserError, argument
from vae_jax.files.checked import open_file

# A page may run what is in it and show pictures that are in it; a browser refuses it everything else.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

MARK = '<meta name="generator" content="vae_jax">'  # by which a page of ours is known
HEAD = 1024  # bytes of a file, in which a page of ours has its mark


def check_target(path: Path) -> None:
    """Refuses to write a page where it would take the place of something else.

    Raises:
        UserError: if the name does not end in .html, or there is a folder, or a file that is no page of ours.
    """
    out = argument("out")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: expected a name that ends in .html; found {path}")
    if path.is_dir():
        raise UserError(f"{argument('out', str(path))}: expected a file, found a folder")
    if path.exists():
        with open(path, "rb", opener=open_file) as file:
            ours = MARK.encode() in file.read(HEAD)
        if not ours:
            raise UserError(f"{path}: expected no file, or an earlier page of vae_jax; found another file")


def resource(name: str) -> str:
    """The text of a file of this package."""
    return files("vae_jax.pages").joinpath(name).read_text(encoding="utf-8")


def escaped(text: object) -> str:
    """The text as HTML shows it, in elements and in attributes."""
    return html.escape(str(text), quote=True)


def embedded(data: Any) -> str:
    """The data as JSON inside an element of a page, which no text in them can end."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter, spelled in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028")):
        text = text.replace(letter, spelled)
    return text


def page(title: str, body: str, scripts: Sequence[str] = (), data: Any = None) -> str:
    """A whole page in light or dark, as the reader's system is.

    Args:
        title: of the page; any text.
        body: HTML.
        scripts: names of this package's files, which run in this order after the body.
        data: for the scripts, in the element `data`; JSON without NaN or infinities.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        MARK,
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escaped(title)}</title>",
        f"<style>\n{resource('page.css')}</style>",
        "</head>",
        "<body>",
        body,
    ]
    if data is not None:
        parts.append(f'<script type="application/json" id="data">{embedded(data)}</script>')
    parts += [f"<script>\n{resource(name)}</script>" for name in scripts]
    return "\n".join([*parts, "</body>", "</html>", ""])
