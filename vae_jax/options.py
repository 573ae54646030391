"""Options: the fields of a frozen dataclass, whose annotations say which values they take.

    @dataclass(frozen=True)
    class Renyi:
        alpha: Annotated[float, "[0, 1)", TRACED] = 0.5
        kl: Annotated[str, one_of("analytic", "sampled")] = "analytic"

An option is a whole number, a number, text, true or false, a list of whole numbers, or null, or one of several of these
(`int | None`). In `Annotated` an interval bounds a number, or all numbers of a list; `one_of` (or a Literal) lists the
choices of text; `only` names the value of another option that the option needs; `TRACED` makes the number an argument
of the compiled program, which all its values share (objectives, optimisers and `train` only). Help comes from
"Attributes:". Nothing here imports jax.
"""

import functools
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import PurePath
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from vae_jax.errors import UserError, brief, cut, listed
from vae_jax.files import checked, plain_yaml
from vae_jax.files.checked import within
from vae_jax.registry import lookup

SIZE_LIMIT = 1 << 17  # characters of a value
TEXT_LIMIT = 4096  # characters of a name or a path
COUNT_LIMIT = 64  # numbers in a list
NO_DECIMAL = re.compile(r"[-+]?(0[0-9_box][0-9a-fA-F_]*|[0-9][0-9_]*(:[0-9]+)+\.?[0-9_]*)")  # 017, 0x1F, 1:30
LIST = tuple[int, ...]
INTERVAL = re.compile(r"[\[(][^,]+,[^,]+[\])]")
KINDS = {kind: checked.KINDS[kind] for kind in (int, float, str, bool, NoneType)} | {LIST: "a list of whole numbers"}
HELP = re.compile(r"^ *Attributes:\n(.*)", re.MULTILINE | re.DOTALL)


NO_NUMBERS: Mapping[str, Any] = MappingProxyType({})


class Choices(NamedTuple):
    """The choices of an option that is text.

    Attributes:
        names: of the choices.
        own: whether it may be other text too, a user's own; whoever uses the option checks it.
    """

    names: tuple[str, ...]
    own: bool


def one_of(*names: str, own: bool = False) -> Choices:
    """In an annotation: the option is one of these names."""
    return Choices(names, own)


class Need(NamedTuple):
    """The values that another option of the same dataclass must have for this one to be used.

    Attributes:
        option: the other option's name.
        values: it must have one of them.
    """

    option: str
    values: tuple[Any, ...]


def only(**needs: Any) -> Need:
    """In an annotation: the option is used only if another option has this value, or one of a tuple of values."""
    ((option, values),) = needs.items()
    return Need(option, values if isinstance(values, tuple) else (values,))


class _Mark(NamedTuple):
    name: str


TRACED = _Mark(
    "traced"
)  # in an annotation: the number may be traced, so that members of a sweep that differ in it share a program
FILLED = _Mark("filled")  # in an annotation: the list is not empty
FIRST = _Mark("first")  # in an annotation: a short help shows the option too


class Option(NamedTuple):
    """One option.

    Attributes:
        kinds: the types it may have, of KINDS.
        default: its value if none is given.
        interval: in which its numbers lie, or empty.
        choices: of text, or None.
        needs: other options' values that it needs to be used.
        marks: TRACED, FILLED, FIRST.
        help: a description.
    """

    kinds: tuple[Any, ...]
    default: Any
    interval: str
    choices: Choices | None
    needs: tuple[Need, ...]
    marks: tuple[_Mark, ...]
    help: str


@functools.cache
def options_in(kind: Any) -> dict[str, Option]:
    """A dataclass's options by name; none for None.

    Raises:
        UserError: if it is no frozen dataclass whose fields have defaults and are of KINDS, or if an annotation is
            wrong or does not fit the default.
    """
    if kind is None:
        return {}
    if not (isinstance(kind, type) and is_dataclass(kind) and kind.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise UserError(f"options: expected a frozen dataclass; found {getattr(kind, '__name__', kind)!s:.60}")
    try:
        hints = get_type_hints(kind, include_extras=True)
    except Exception as error:  # an annotation that is text may raise anything
        raise UserError(f"{kind.__name__}: expected annotations that can be read; {brief(error)}") from error
    words = help_in(kind)
    own_fields = [field for field in fields(kind) if not (field.metadata.get("of_part") or is_dataclass(field.type))]
    options = {
        field.name: _option(f"{kind.__name__}.{field.name}", field, hints[field.name], words.get(field.name, ""))
        for field in own_fields
    }
    for name, option in options.items():
        for need in option.needs:
            lookup(options, need.option, f"{kind.__name__}.{name}: only")
    return options


def _option(name: str, field: Field[Any], hint: Any, help: str) -> Option:
    hint, *more = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(hint) is Literal:
        if strange := [choice for choice in get_args(hint) if not isinstance(choice, str)]:
            raise UserError(f"{name}: expected a Literal of text; found {strange[0]!s:.60}")
        hint, more = str, [*more, one_of(*get_args(hint))]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(kind not in list(KINDS) for kind in kinds):  # a list, since `kind` may have no hash
        raise UserError(f"{name}: expected an option of {', '.join(KINDS.values())}; found {hint!s:.60}")
    if not field.init:
        raise UserError(f"{name}: expected an option that can be given; found init=False")
    if field.default is MISSING:
        instead = "none" if field.default_factory is MISSING else "a default_factory"
        raise UserError(f"{name}: expected an option with a default; found {instead}")
    interval = next((part for part in more if isinstance(part, str)), "")
    choices = next((part for part in more if isinstance(part, Choices)), None)
    needs = tuple(part for part in more if isinstance(part, Need))
    if interval and not _is_interval(interval):
        raise UserError(f'{name}: expected an interval, as "[0, 1)"; found {interval:.60}')
    marks = tuple(part for part in more if isinstance(part, _Mark))
    if TRACED in marks and not {*kinds} <= {int, float, bool}:
        raise UserError(f"{name}: expected a number, or true or false, that is TRACED; found {hint!s:.60}")
    option = Option(kinds, field.default, interval, choices, needs, marks, help)
    return option._replace(default=value(f"{name}'s default", option, field.default))


def _is_interval(text: str) -> bool:
    if not INTERVAL.fullmatch(text):
        return False
    try:
        low, high = checked.ends(text)
    except ValueError:
        return False
    return low <= high


def help_in(kind: type) -> dict[str, str]:
    """The descriptions of attributes in the docstrings of a class and its bases, by name."""
    words: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if (doc := vars(base).get("__doc__")) and (match := HELP.search(doc)):
            entries = re.split(r"^ +(\w+): ", f"\n{_dedented(match[1])}", flags=re.MULTILINE)[1:]
            words |= {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}
    return words


def _dedented(text: str) -> str:
    """The lines of a block of attributes until its end: entries indented by one space, continued lines by none."""
    lines = text.splitlines()
    depth = len(lines[0]) - len(lines[0].lstrip())
    block = []
    for line in lines:
        inside = len(line) - len(line.lstrip())
        if line.strip() and inside < depth:
            break
        # A continued line is no entry, even if it has a colon.
        block.append(f" {line.strip()}" if inside == depth else line.strip())
    return "\n".join(block)


def value(name: str, option: Option, given: Any) -> Any:
    """A given value converted to one of the option's kinds. Text is read as YAML, unless the option may be text.

    Args:
        name: of the option, with its section.
        option: the option.
        given: the value to convert.

    Raises:
        UserError: naming the option, what was expected and what was found.
    """
    result = given
    if type(given) not in option.kinds or isinstance(given, str):  # nothing to convert: thousands of values are made
        result = _converted(name, option.kinds, given)
    for number in result if isinstance(result, tuple) else (result,):
        if option.interval and number is not None and type(number) is not str and not within(number, option.interval):
            raise UserError(f"{name}: expected a number in {option.interval}; found {number!s:.40}")
    if TRACED in option.marks and type(result) is int and not -(1 << 31) <= result < 1 << 31:
        raise UserError(f"{name}: expected a whole number of 32 bits, since it is TRACED; found {result!s:.40}")
    if FILLED in option.marks and result == ():
        raise UserError(f"{name}: expected at least one number; found none")
    if option.choices and not option.choices.own and isinstance(result, str):
        lookup(dict.fromkeys(option.choices.names), result, name)
    return result


def _converted(name: str, kinds: tuple[Any, ...], given: Any) -> Any:
    read = read_text(name, given) if isinstance(given, str) and str not in kinds else given
    if LIST in kinds and isinstance(read, list | tuple) and len(read) > COUNT_LIMIT:
        raise UserError(f"{name}: expected at most {COUNT_LIMIT} numbers; found {len(read):,}")
    result = _as_one_of(kinds, read)
    if result is ...:
        values = read if isinstance(read, list | tuple) else [read]
        strange = [item for item in values if isinstance(item, str) and NO_DECIMAL.fullmatch(item)]
        if strange and str not in kinds:
            raise UserError(f"{name}: expected a decimal number; found {strange[0]:.60}")
        wanted = "a value" if read is None else " or ".join(KINDS[kind] for kind in kinds)
        raise UserError(f"{name}: expected {wanted}; found {shown(given)}")
    if isinstance(result, str):
        if len(result) > TEXT_LIMIT:
            raise UserError(f"{name}: expected at most {TEXT_LIMIT:,} characters; found {len(result):,}")
        if "\0" in result:
            raise UserError(f"{name}: expected at most {TEXT_LIMIT:,} characters; found a null character")
        if not result.isascii() and result != result.encode(errors="replace").decode():
            raise UserError(f"{name}: expected text in UTF-8; found {result!a:.60}")  # a path in another encoding, say
    if isinstance(read, int) and abs(read) > 1e308:
        raise UserError(f"{name}: expected a number below 1e308; found one too large")
    return result


def read_text(name: str, text: str) -> Any:
    """The value of a text as YAML; the text itself if it is no YAML."""
    if len(text) > SIZE_LIMIT:
        raise UserError(f"{name}: expected at most {SIZE_LIMIT:,} characters; found {len(text):,}")
    try:
        return plain_yaml.load(text)
    except ValueError:
        return text


def _as_one_of(kinds: tuple[Any, ...], given: Any) -> Any:
    """A value as one of these kinds; an ellipsis if it cannot be one."""
    if getattr(given, "shape", None) == ():  # a NumPy number
        given = given.item()
    if type(given) in kinds:
        return given
    if type(given) is int and float in kinds:
        return float(given) if abs(given) <= 1e308 else math.inf
    if isinstance(given, PurePath) and str in kinds:
        return str(given)
    if isinstance(given, list | tuple) and LIST in kinds:
        numbers = tuple(_as_one_of((int,), number) for number in given)
        return ... if ... in numbers else numbers
    return ...


def made(kind: type, section: str, changed: Mapping[str, Any], numbers: Mapping[str, Any] = NO_NUMBERS) -> Any:
    """An instance of an options dataclass with some options changed, all of them checked.

    Args:
        kind: the dataclass.
        section: of the part, for messages.
        changed: values by option.
        numbers: arguments of a compiled program by option, in place of their values. The class's `__post_init__` then
            derives other values from these.

    Raises:
        UserError: naming an option and what is wrong with its value; or if the class asks in Python for the value of a
            number, which a compiled program does not know.
    """
    known = options_in(kind)
    values = {
        name: value(f"{section}.{name}", option, changed.get(name, option.default)) for name, option in known.items()
    }
    if not numbers:
        return kind(**values)
    result = object.__new__(kind)  # around the constructor, whose arguments are Python's numbers
    for name, given in {**values, **numbers}.items():
        object.__setattr__(result, name, given)
    with of_unknown_value(f"{section}, options {kind.__name__}", traced_of(result)):
        getattr(result, "__post_init__", lambda: None)()
    return result


def traced_of(options: Any) -> list[str]:
    """The names of a part's options (its dataclass or None) that are arguments of compiled programs."""
    return [name for name, known in options_in(type(options)).items() if TRACED in known.marks] if options else []


@contextmanager
def of_unknown_value(where: str, traced: Sequence[str]) -> Iterator[None]:
    """A context that turns jax's error about an unknown traced value into one line that names the traced options.

    Args:
        where: the code that runs, for the message.
        traced: names of options; without any the error is left as it is.

    Raises:
        UserError: if the code asks for a traced value.
    """
    try:
        yield
    except Exception as error:
        errors = sys.modules["jax"].errors if traced and "jax" in sys.modules else None
        asked = errors and isinstance(
            error,
            errors.ConcretizationTypeError | errors.TracerArrayConversionError | errors.TracerIntegerConversionError,
        )
        # For hashing and formatting jax has no error of its own: Python's names the class.
        if not asked and not (errors and type(error) is TypeError and "Tracer" in str(error)):
            raise
        raise UserError(
            f"{where}: expected it not to ask in Python, as by if, float(), numpy or a format, for the value of "
            f"{listed(traced)} or of another argument of the compiled program; found {type(error).__name__}"
        ) from error


def unmet(kind: Any, values: Any) -> list[tuple[str, Need, Any]]:
    """The options that are set but not used, with the value they need and the value that the other option has.

    Args:
        kind: a dataclass with options.
        values: an instance of it.
    """
    options = options_in(kind)
    unused = []
    for name, option in options.items():
        if not option.needs or getattr(values, name) == option.default:
            continue
        for need in option.needs:
            current, choices = getattr(values, need.option), options[need.option].choices
            if current not in need.values and not (choices and choices.own and current not in choices.names):
                unused.append((name, need, current))
                break
    return unused


def shown(given: Any) -> str:
    """A value on one line of bounded length."""
    if given is None:
        return "null"
    try:
        return cut(" ".join(str(given).split())) or "nothing"
    except ValueError:  # a whole number of very many digits
        return "one too large"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the option that was probably meant; empty if none is near."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def as_text(given: Any) -> str:
    """A value as text for a flag."""
    if isinstance(given, float) and not math.isfinite(given):
        return ".nan" if math.isnan(given) else ".inf" if given > 0 else "-.inf"
    if isinstance(given, str | PurePath):
        return str(given)
    return json.dumps(list(given) if isinstance(given, tuple) else given, default=str)
