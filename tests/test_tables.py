"""Tables: what a spreadsheet or a browser would run, or take for a mark, is only text in them."""

import csv
import io

import pytest

from vae_jax.files.tables import csv_text, escaped


def cells(*values):
    """Values of one row, as a reader of CSV gets them."""
    columns = [f"c{i}" for i in range(len(values))]
    text = csv_text(columns, [dict(zip(columns, values, strict=True))])
    assert len(text.splitlines()) == 2
    header, row = csv.reader(io.StringIO(text))
    assert header == columns
    return row


def test_texts_that_begin_as_a_formula_does_are_none():
    assert cells("=1+1", "+x", "-cmd|' /C calc'!A0", "@SUM(A1)", "＝1") == [
        "'=1+1", "'+x", "'-cmd|' /C calc'!A0", "'@SUM(A1)", "'＝1",
    ]  # fmt: skip


def test_numbers_stay_numbers_also_where_they_are_text():
    assert cells(-1.5, "-1.5", "+2", "-1e-05", "-inf", 3, "1,2") == ["-1.5", "-1.5", "+2", "-1e-05", "-inf", "3", "1,2"]


def test_what_is_not_there_is_empty_and_headers_are_texts_too():
    assert csv_text(["a", "=b"], [{"a": 1}, {"=b": None}]) == "a,'=b\n1,\n,\n"


def test_a_row_is_one_line():
    assert cells('a\nb\r"c"', "\x1b[31m", "\u202e") == ['a\\nb\\r"c"', "\\x1b[31m", "\\u202e"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\nb", r"a\\nb"),
        ("`rm`", r"\`rm\`"),
        ("<img src=x onerror=alert(1)>", r"\<img src=x onerror=alert(1)>"),
        ("&lt;b", r"\&lt;b"),
        ("[x](javascript:y)", r"[x]\(javascript:y)"),
        ("![x](http://y)", r"![x]\(http://y)"),
        ("[8, 16]", "[8, 16]"),
        ("leaky_relu 0.5 ± 1 −ELBO é漢", "leaky_relu 0.5 ± 1 −ELBO é漢"),
    ],
)
def test_marks_of_markdown_are_text(text, expected):
    assert escaped(text) == expected
