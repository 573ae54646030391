"""What lies in a file that anybody may have written: read with bounds, and of the types that are declared.

A type is declared as in Python: int, float, str, bool, None, unions of them, list[…], tuple[…, ...], dict[str, …], and
a NamedTuple for an object by its fields. `Annotated[int, "[0, 10)"]` bounds a number, or the length of what has one.
"""

import functools
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from vae_jax.errors import UserError, brief, cut

SIZE_LIMIT = 1 << 26  # bytes of a file
HISTORY_LIMIT = 1 << 28  # bytes of one with a line for each epoch
BYTES_OF_A_PART = 16  # of the limit, for each value of JSON that there may be: a short text can be a large structure
DIGITS_LIMIT = 1000  # of a whole number in a file …
WHOLE_LIMIT = 1 << 53  # … and how large one may be, either way: up to here numbers of JSON's are exact everywhere
DEPTH_LIMIT = 16  # of brackets in one another where any value may be
# What values may be, in words.
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
KINDS |= {list: "a list", dict: "an object"}
# How a file is opened that may turn out to be none: without waiting for whoever writes into a pipe.
FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


class UnfitError(ValueError):
    """A file's content is not what was expected; the message says what was, and what was found."""


def read_bytes(path: Path, limit: int = SIZE_LIMIT) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        limit: bytes that it may have.

    Raises:
        UnfitError: if it is longer, or no file but a folder, a pipe, a device, ….
        OSError: if there is none, or it cannot be read.
    """
    with open(path, "rb", opener=open_file) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        raise UnfitError(f"expected at most {limit:,} bytes; found a longer one")
    return content


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """For `open`: opens a file, and nothing else, without waiting.

    Raises:
        UnfitError: if it is no file but a folder, a pipe, a device, ….
        OSError: if there is none, or it cannot be read.
    """
    _check_regular(os.stat(path))  # first: some devices act when they are opened
    number = os.open(path, flags | FLAGS)
    try:
        _check_regular(os.fstat(number))
    except UnfitError:
        os.close(number)
        raise
    return number


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise UnfitError(f"expected a file; found {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}")


def read_text(path: Path, limit: int = SIZE_LIMIT) -> str:
    """The text in a file, in UTF-8; see `read_bytes` for what it raises."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UnfitError(f"expected text in UTF-8; found the byte {error.object[error.start]:#04x} in it") from error


def read_json(path: Path, kind: Any, limit: int = SIZE_LIMIT) -> Any:
    """What a JSON file holds, as a value of the declared type.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is none.
        UserError: naming the file, the place in it, what was expected and what was found.
    """
    with named(path):
        return parse(read_bytes(path, limit), kind, limit)


def read_lines(path: Path, kind: Any) -> Iterator[Any]:
    """What a file of JSON, a value a line, holds, one after another; see `read_json`."""
    with named(path):
        content = read_bytes(path, HISTORY_LIMIT)
    for number, line in enumerate(BytesIO(content), 1):
        with named(path, f"line {number}: "):
            yield parse(line, kind)


@contextmanager
def named(path: Path, place: str = "") -> Iterator[None]:
    """Within it what is wrong with a file becomes a line that names it.

    Raises:
        FileNotFoundError, NotADirectoryError: if it is not there.
        UserError: if it is unfit, or cannot be read.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except UnfitError as error:
        raise UserError(f"{path}: {place}{error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read; {error.strerror or error}") from error


def parse(content: bytes, kind: Any, limit: int = SIZE_LIMIT) -> Any:
    """What JSON says, as a value of the declared type.

    Raises:
        UnfitError: naming the place in it, what was expected and what was found.
    """
    return typed(load(content, limit), kind)


def load(content: bytes, limit: int = SIZE_LIMIT, *, finite: bool = False) -> Any:
    """What JSON says, of any type.

    Args:
        content: a text in UTF-8.
        limit: bytes that it may have.
        finite: refuse numbers that are not.

    Raises:
        UnfitError: if it is none, or would become too large a structure.
    """
    values = sum(map(content.count, (b",", b"[", b"{")))
    if values > limit // BYTES_OF_A_PART:
        raise UnfitError(f"expected JSON of at most {limit // BYTES_OF_A_PART:,} values; found {values:,}")
    try:
        more: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
        return json.loads(content, parse_int=_whole, **more)
    except RecursionError as error:
        raise UnfitError("expected JSON without deep nesting; found hundreds of brackets in one another") from error
    except UnfitError:
        raise
    except ValueError as error:
        raise UnfitError(f"expected JSON; {brief(error, 200)}") from error


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise UnfitError(f"expected finite numbers; found {cut(text)}")
    return number


def _whole(text: str) -> int:
    if len(text) > DIGITS_LIMIT:
        raise UnfitError(f"expected whole numbers of at most {DIGITS_LIMIT} digits; found one of {len(text):,}")
    return int(text)


def typed(value: Any, kind: Any, place: str = "") -> Any:
    """A value of JSON's as one of the declared type: tuples of lists, NamedTuples of objects, floats of whole numbers.

    Args:
        value: of JSON's.
        kind: the type.
        place: of the value, for the message.

    Raises:
        UnfitError: naming the place, what was expected and what was found.
    """
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        if _depth(value) > DEPTH_LIMIT:
            raise _unfit(place, f"at most {DEPTH_LIMIT} brackets in one another", "more")
        return value
    if origin is Annotated:
        found = typed(value, inside[0], place)
        if found is not None and not within(found, inside[1]):
            bounds = f"{inside[1]} long" if hasattr(found, "__len__") else f"in {inside[1]}"
            raise _unfit(place, f"{_words(inside[0])} {bounds}", shown(value))
        return found
    if origin in (Union, UnionType):
        if not (fitting := [each for each in inside if _may_be(value, each)]):
            raise _unfit(place, _words(kind), shown(value))
        return typed(value, fitting[0], place)
    if not _may_be(value, kind):
        raise _unfit(place, _words(kind), shown(value))
    if origin is list or origin is tuple:
        return origin(typed(each, inside[0], f"{place}[{number}]") for number, each in enumerate(value))
    if origin is dict:
        return {name: typed(each, inside[1], _below(place, name)) for name, each in value.items()}
    if _is_named(kind):
        hints = _hints(kind)
        if missing := [name for name in hints if name not in value and name not in kind._field_defaults]:
            raise _unfit(_below(place, missing[0]), _words(hints[missing[0]]), "nothing")
        return kind(**{name: typed(value[name], hints[name], _below(place, name)) for name in hints if name in value})
    if type(value) is int and abs(value) > WHOLE_LIMIT:
        raise _unfit(place, f"{_words(kind)} of at most {WHOLE_LIMIT:,}", shown(value))
    return float(value) if kind is float else value


def _depth(value: Any) -> int:
    """How many brackets are in one another, at the most counted that is allowed and one more."""
    level, depth = [value], 0
    while depth <= DEPTH_LIMIT and (level := [each for each in level if isinstance(each, list | dict)]):
        level = [below for each in level for below in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    return depth


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _is_named(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _plain(kind: Any) -> Any:
    """The type of JSON's values that such a one is made of."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _plain(get_args(kind)[0])
    if origin is dict or _is_named(kind):
        return dict
    return list if origin in (list, tuple) else NoneType if kind is None else kind


def _may_be(value: Any, kind: Any) -> bool:
    plain = _plain(kind)
    return type(value) is plain or (plain is float and type(value) is int)


def _words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_words, get_args(kind)))
    return KINDS.get(_plain(kind), "a value")


def _below(place: str, name: str) -> str:
    return f"{place}.{cut(name)}" if place else cut(name)


def _unfit(place: str, expected: str, found: str) -> UnfitError:
    return UnfitError(f"{place and f'{place}: '}expected {expected}; found {found}")


def shown(value: Any) -> str:
    """A value of JSON's in a message: never more than a few words, however large it is."""
    if isinstance(value, list | dict):
        return f"{KINDS[type(value)]} of {len(value):,}"
    return f"'{cut(value)}'" if isinstance(value, str) else cut(json.dumps(value))


def within(value: Any, interval: str) -> bool:
    """Whether a number, or the length of what has one, is in an interval written as in mathematics: "[0, 1)"."""
    low, high = ends(interval)
    size = len(value) if hasattr(value, "__len__") else value
    above = size > low if interval[0] == "(" else size >= low
    below = size < high if interval[-1] == ")" else size <= high
    return above and below  # neither holds for NaN


@functools.cache
def ends(interval: str) -> tuple[float, ...]:
    """An interval's two ends."""
    return tuple(float(end) for end in interval[1:-1].split(","))
