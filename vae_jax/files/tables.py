"""Tables as CSV and Markdown in which no text acts as a formula or a mark."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vae_jax.errors import printable

FORMULA = tuple("=+-@＝＋－＠")  # first characters of a spreadsheet's formula
MARKS = re.compile(r"[\\|`<&]|(?<=\])\(")  # ends a cell, or begins code, HTML, an entity or a link


def csv_text(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """A table as CSV, a line per row; a missing value gives an empty cell.

    A text that begins like a formula and is no number gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def escaped(text: str) -> str:
    """A text for one line of Markdown, or a cell of its tables."""
    return MARKS.sub(r"\\\g<0>", printable(text))
