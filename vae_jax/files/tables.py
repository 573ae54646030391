"""Names in tables: CSV in which no spreadsheet finds a formula, Markdown in which a name is no mark."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vae_jax.errors import printable

FORMULA = tuple("=+-@＝＋－＠")  # how spreadsheets know one
MARKS = re.compile(r"[\\|`<&]|(?<=\])\(")  # what ends a cell, or begins code, HTML, a character's name or a link


def csv_text(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """A table as CSV, a line for each row; what a row has no value for stays empty.

    A text that begins as a formula does, and is no number, gets an apostrophe before it.
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
    """A text for Markdown, on one line, also in a table's cell."""
    return MARKS.sub(r"\\\g<0>", printable(text))
