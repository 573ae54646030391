"""What lies in files: of the types that are declared, or refused in one line that says where and what was found."""

from typing import Annotated, Any, NamedTuple

import pytest

from vae_jax.files.checked import UnfitError, load, parse

Option = int | float | str | bool | list[int]


class Inner(NamedTuple):
    name: Annotated[str, "[1, 3]"]
    more: Any = None


class Outer(NamedTuple):
    whole: int
    part: Annotated[float, "[0, 1)"] | None
    inner: tuple[Inner, ...] = ()
    options: dict[str, Option] = {}  # noqa: RUF012 (a NamedTuple's defaults are never changed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"whole": 1, "part": 0}', Outer(1, 0.0)),
        ('{"whole": -1, "part": null, "unknown": [1]}', Outer(-1, None)),
        ('{"whole": 1, "part": 0.5, "inner": [{"name": "a"}]}', Outer(1, 0.5, (Inner("a"),))),
        ('{"whole": 1, "part": 0, "inner": [{"name": "a", "more": {"b": [1]}}]}',
         Outer(1, 0.0, (Inner("a", {"b": [1]}),))),
        ('{"whole": 1, "part": null, "options": {"a": 1, "b": true, "c": [1], "d": 1.5}}',
         Outer(1, None, (), {"a": 1, "b": True, "c": [1], "d": 1.5})),
    ],
)  # fmt: skip
def test_what_is_declared(text, expected):
    found = parse(text.encode(), Outer)
    assert found == expected
    assert [type(each) for each in found] == [type(each) for each in expected]
    assert [type(each) for each in found.options.values()] == [type(each) for each in expected.options.values()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected JSON; Expecting value: line 1 column 1 (char 0)"),
        ("\udcff", "expected JSON; 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("[" * 100_000, "expected JSON without deep nesting; found hundreds of brackets in one another"),
        ("9" * 5000, "expected whole numbers of at most 1000 digits; found one of 5,000"),
        ("[]", "expected an object; found a list of 0"),
        ("null", "expected an object; found null"),
        ("{}", "whole: expected a whole number; found nothing"),
        ('{"whole": 1}', "part: expected a number or null; found nothing"),
        ('{"whole": true, "part": 0}', "whole: expected a whole number; found true"),
        ('{"whole": 1.0, "part": 0}', "whole: expected a whole number; found 1.0"),
        ('{"whole": 9007199254740993, "part": 0}', "whole: expected a whole number of at most 9,007,199,254,740,992; "),
        ('{"whole": 1, "part": 1e999}', "part: expected a number in [0, 1); found Infinity"),
        ('{"whole": 1, "part": NaN}', "part: expected a number in [0, 1); found NaN"),
        ('{"whole": 1, "part": "x"}', "part: expected a number or null; found 'x'"),
        ('{"whole": 1, "part": 0, "inner": [{"name": "a"}, {}]}', "inner[1].name: expected text; found nothing"),
        ('{"whole": 1, "part": 0, "inner": [{"name": "abcd"}]}', "inner[0].name: expected text [1, 3] long; found 'ab"),
        ('{"whole": 1, "part": 0, "inner": {}}', "inner: expected a list; found an object of 0"),
        (
            '{"whole": 1, "part": 0, "options": {"a": null}}',
            "options.a: expected a whole number or a number or text or",
        ),
        ('{"whole": 1, "part": 0, "options": {"a": [1.5]}}', "options.a[0]: expected a whole number; found 1.5"),
        ('{"whole": 1, "part": 0, "options": {"\\u001b": {}}}', "options.\\x1b: expected a whole number or"),
        ('{"whole": "' + "\\u001b" * 10**5 + '", "part": 0}', r"whole: expected a whole number; found '\x1b\x1b"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_not_is_refused_by_its_place(text, said):
    with pytest.raises(UnfitError) as refused:
        parse(text.encode("utf-8", "surrogateescape"), Outer)
    assert str(refused.value).startswith(said)
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


def test_brackets_where_any_value_may_be():
    inner = '{{"whole": 1, "part": 0, "inner": [{{"name": "a", "more": {}}}]}}'
    assert parse(inner.format("[" * 16 + "]" * 16).encode(), Outer).inner[0].more
    with pytest.raises(UnfitError, match=r"^inner\[0\]\.more: expected at most 16 brackets in one another;"):
        parse(inner.format("[" * 17 + "]" * 17).encode(), Outer)


def test_a_short_text_does_not_become_a_large_structure():
    text = b"[" + b"[]," * (1 << 16) + b"[]]"
    with pytest.raises(UnfitError, match=r"^expected JSON of at most 65,536 values; found 131,074$"):
        load(text, limit=1 << 20)
    assert len(load(text)) == (1 << 16) + 1


def test_numbers_that_are_not_finite_where_they_must_be():
    for text in (b"[NaN]", b"[-Infinity]", b"[1e999]"):
        assert len(load(text)) == 1
        with pytest.raises(UnfitError, match=r"^expected finite numbers; found "):
            load(text, finite=True)
