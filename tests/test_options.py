"""Options: what a dataclass of them may be, and that any other is refused in one line when it is first looked at."""

from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal

import jax
import pytest

from vae_jax.errors import UserError
from vae_jax.options import TRACED, made, only, options_in


@pytest.mark.parametrize(
    ("hint", "default", "message"),
    [
        (float, field(default=3.0, init=False), "expected an option that can be given; found init=False"),
        (Annotated[int, "[0, 1"], 0, 'expected an interval, as "[0, 1)"; found [0, 1'),
        (Annotated[int, "[0, x]"], 0, 'expected an interval, as "[0, 1)"; found [0, x]'),
        (Annotated[int, "[2, 1]"], 0, 'expected an interval, as "[0, 1)"; found [2, 1]'),
        (tuple[int, int], (1, 2), "expected an option of a whole number, a number, text, true or false, "),
        ([int], 1, "expected an option of a whole number, a number, text, true or false, "),
        (Literal[1, 2], 1, "expected a Literal of text; found 1"),
        (Literal["a", None], "a", "expected a Literal of text; found None"),
        (float, field(default_factory=float), "expected an option with a default; found a default_factory"),
        (float, field(), "expected an option with a default; found none"),
    ],
)
def test_what_an_option_may_not_be(hint: Any, default: Any, message: str):
    line = refused(make_dataclass("Own", [("alpha", hint, default)], frozen=True))
    assert line.startswith(f"Own.alpha: {message}")


@pytest.mark.parametrize(
    ("hint", "default", "message"),
    [
        (Annotated[float, "[0, 1)"], 3.0, "expected a number in [0, 1); found 3.0"),
        (Literal["a", "b"], "c", "expected one of a, b; found 'c'"),
        (int, None, "expected a value; found null"),
        (int, 0.5, "expected a whole number; found 0.5"),
    ],
)
def test_a_default_is_a_value_of_its_option(hint: Any, default: Any, message: str):
    line = refused(make_dataclass("Own", [("alpha", hint, default)], frozen=True))
    assert line.startswith(f"Own.alpha's default: {message}")


def test_what_an_annotation_names_is_there():
    @dataclass(frozen=True)
    class Own:
        alpha: "Missing" = 1  # type: ignore[name-defined]

    assert refused(Own).startswith("Own: expected annotations that can be read; ")
    other = make_dataclass("Own", [("alpha", Annotated[int, only(betta=1)], 1), ("beta", int, 1)], frozen=True)
    assert "betta" in refused(other)


def refused(kind: type) -> str:
    with pytest.raises(UserError) as caught:
        options_in(kind)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@dataclass(frozen=True)
class Derived:
    alpha: Annotated[float, TRACED] = 3.0
    kind: str = "plain"

    def __post_init__(self):
        object.__setattr__(self, "half", self.alpha / 2)
        object.__setattr__(self, "alpha", self.alpha * 100)

    @property
    def double(self):
        return 2 * self.alpha


def test_what_a_class_derives_from_a_number_is_derived_from_the_argument_and_once():
    own = made(Derived, "objective", {"kind": "other"})
    assert (own.alpha, own.half, own.double, own.kind) == (300.0, 1.5, 600.0, "other")

    @jax.jit
    def of(number):
        own = made(Derived, "objective", {"kind": "other"}, {"alpha": number})
        assert own.kind == "other"
        return own.alpha, own.half, own.double

    assert [float(found) for found in of(5.0)] == [500.0, 2.5, 1000.0]


def test_a_class_that_compares_a_number_that_is_an_argument_is_refused():
    @dataclass(frozen=True)
    class Comparing(Derived):
        def __post_init__(self):
            if self.alpha < 0:
                raise ValueError

    message = (
        r"objective, options Comparing: expected it not to ask in Python, .* for the value of alpha or .*; found Tr"
    )
    with pytest.raises(UserError, match=message):
        jax.jit(lambda number: made(Comparing, "objective", {}, {"alpha": number}).alpha)(1.0)


@pytest.mark.parametrize(("hint", "default"), [(float | None, None), (str, "a"), (tuple[int, ...], (1,))])
def test_what_is_no_number_is_not_traced(hint: Any, default: Any):
    line = refused(make_dataclass("Own", [("alpha", Annotated[hint, TRACED], default)], frozen=True))
    assert line.startswith("Own.alpha: expected a number, or true or false, that is TRACED; found ")
