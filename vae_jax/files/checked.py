"""Reads files that anybody may have written: within bounds, as values of declared types.

A type is declared as in Python: int, float, str, bool, None, unions of them, list[…], tuple[…, ...], dict[str, …], and
a NamedTuple for an object by its fields. `Annotated[int, "[0, 10)"]` bounds a number or a length.
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
HISTORY_LIMIT = 1 << 28  # bytes of a file with a line per epoch
BYTES_OF_A_PART = 16  # of the limit, per value of JSON: a short text can be a large structure
DIGITS_LIMIT = 1000  # digits of a whole number in a file
WHOLE_LIMIT = 1 << 53  # largest size of a whole number: up to here JSON's numbers are exact everywhere
DEPTH_LIMIT = 16  # nested brackets where any value may be
# Types in words.
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
KINDS |= {list: "a list", dict: "an object"}
# A path may turn out to be a pipe: it is opened without waiting for whoever writes into it.
FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


class UnfitError(ValueError):
    """A file's content is not as expected; the message says what was expected and found."""


def read_bytes(path: Path, limit: int = SIZE_LIMIT) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        limit: most bytes it may have.

    Raises:
        UnfitError: if it is longer, or a folder, a pipe, a device, ….
        OSError: if it does not exist or cannot be read.
    """
    with open(path, "rb", opener=open_file) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        raise UnfitError(f"expected at most {limit:,} bytes; found a longer one")
    return content


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`: opens a file, and nothing else, without waiting.

    Raises:
        UnfitError: if it is a folder, a pipe, a device, ….
        OSError: if it does not exist or cannot be read.
    """
    _check_regular(os.stat(path))  # first: some devices act when they are opened
    number = os.open(path, flags | FLAGS)
    try:
        _check_regular(os.fstat(number))
    except UnfitError:
        os.close(number)
        raise
    return number


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise UnfitError(f"expected a file; found {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}")


def read_text(path: Path, limit: int = SIZE_LIMIT) -> str:
    """The text of a file in UTF-8; raises as `read_bytes` does."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UnfitError(f"expected text in UTF-8; found the byte {error.object[error.start]:#04x} in it") from error


def read_json(path: Path, kind: Any, limit: int = SIZE_LIMIT) -> Any:
    """A JSON file's content, as a value of the declared type.

    Raises:
        FileNotFoundError, NotADirectoryError: if it does not exist.
        UserError: naming the file, the place in it, what was expected and what was found.
    """
    with named(path):
        return parse(read_bytes(path, limit), kind, limit)


def read_lines(path: Path, kind: Any) -> Iterator[Any]:
    """The values of a JSON Lines file, one by one; see `read_json`."""
    with named(path):
        content = read_bytes(path, HISTORY_LIMIT)
    for number, line in enumerate(BytesIO(content), 1):
        with named(path, f"line {number}: "):
            yield parse(line, kind)


@contextmanager
def named(path: Path, place: str = "") -> Iterator[None]:
    """A context that turns errors about a file into one line that names it.

    Raises:
        FileNotFoundError, NotADirectoryError: if it does not exist.
        UserError: if it is unfit or cannot be read.
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
    """A value of the declared type from JSON.

    Raises:
        UnfitError: naming the place in it, what was expected and what was found.
    """
    return typed(load(content, limit), kind)


def load(content: bytes, limit: int = SIZE_LIMIT, *, finite: bool = False) -> Any:
    """A value of any type from JSON.

    Args:
        content: a text in UTF-8.
        limit: most bytes it may have.
        finite: refuse infinities and NaN.

    Raises:
        UnfitError: if it is not JSON, or would become too large a structure.
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
    """Converts a JSON value to the declared type: lists to tuples, objects to NamedTuples, whole numbers to floats.

    Args:
        value: from JSON.
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
        result = typed(value, inside[0], place)
        if result is not None and not within(result, inside[1]):
            bounds = f"{inside[1]} long" if hasattr(result, "__len__") else f"in {inside[1]}"
            raise _unfit(place, f"{_words(inside[0])} {bounds}", shown(value))
        return result
    if origin in (Union, UnionType):
        if not (fitting := [choice for choice in inside if _may_be(value, choice)]):
            raise _unfit(place, _words(kind), shown(value))
        return typed(value, fitting[0], place)
    if not _may_be(value, kind):
        raise _unfit(place, _words(kind), shown(value))
    if origin is list or origin is tuple:
        return origin(typed(item, inside[0], f"{place}[{number}]") for number, item in enumerate(value))
    if origin is dict:
        return {name: typed(item, inside[1], _below(place, name)) for name, item in value.items()}
    if _is_named(kind):
        hints = _hints(kind)
        if missing := [name for name in hints if name not in value and name not in kind._field_defaults]:
            raise _unfit(_below(place, missing[0]), _words(hints[missing[0]]), "nothing")
        return kind(**{name: typed(value[name], hints[name], _below(place, name)) for name in hints if name in value})
    if type(value) is int and abs(value) > WHOLE_LIMIT:
        raise _unfit(place, f"{_words(kind)} of at most {WHOLE_LIMIT:,}", shown(value))
    return float(value) if kind is float else value


def _depth(value: Any) -> int:
    """The depth of nested brackets, counted up to one more than is allowed."""
    level, depth = [value], 0
    while depth <= DEPTH_LIMIT and (level := [item for item in level if isinstance(item, list | dict)]):
        level = [below for item in level for below in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _is_named(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _plain(kind: Any) -> Any:
    """The type that JSON has for a declared type."""
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
    """A JSON value for a message: a few words, however large the value."""
    if isinstance(value, list | dict):
        return f"{KINDS[type(value)]} of {len(value):,}"
    return f"'{cut(value)}'" if isinstance(value, str) else cut(json.dumps(value))


def within(value: Any, interval: str) -> bool:
    """Whether a number or a length lies in an interval as mathematics writes it: "[0, 1)"."""
    low, high = ends(interval)
    size = len(value) if hasattr(value, "__len__") else value
    above = size > low if interval[0] == "(" else size >= low
    below = size < high if interval[-1] == ")" else size <= high
    return above and below  # neither holds for NaN


@functools.cache
def ends(interval: str) -> tuple[float, ...]:
    """The two ends of an interval."""
    return tuple(float(end) for end in interval[1:-1].split(","))
