"""Errors that a user can correct, the stop that they asked for, and how both are put into one line."""

import errno
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

LINE_LIMIT = 20_000  # characters of a line
LISTED = 20  # items of a list; the rest is counted
QUOTED = 60  # characters of a value
PATH = 4096  # characters of a path, or of a name that may be one
BRIEF = 500  # characters of another package's message
# Words for full memory in jax and XLA, C++, the system, its loader of libraries, Python's threads and numpy.
MEMORY_IS_FULL = (
    "resource_exhausted",
    "out of memory",
    "bad_alloc",
    "cannot allocate memory",
    "failed to map segment",
    "can't start new thread",
    "unable to allocate",
)


class UserError(ValueError):
    """Bad input: a configuration, a file, a folder or an option.

    Its message is one line: what is wrong and where, what was expected, what was found. The command line prints it and
    exits with code 2; library code lets it pass.

    Examples:
        >>> import vae_jax
        >>> try:
        ...     vae_jax.Config(seed=-1)
        ... except vae_jax.UserError as error:
        ...     print(error)
        seed: expected a number in [0, 4294967295]; found -1
    """

    def __init__(self, message: str):
        super().__init__(printable(message))  # it may name files, whose names may hold anything


def _in_python(name: str, value: object) -> str:
    return name if value is None else f"{name}={value}"


_spell: Callable[[str, object], str] = _in_python


def argument(name: str, value: object = None) -> str:
    """An argument, with a value or without, as the caller writes it: `resume=True` in Python, `--resume` for a command.

    Options of the configuration do not need it: their names, as `train.epochs`, are the same everywhere.
    """
    return _spell(name, value)


@contextmanager
def arguments_spelled(spell: Callable[[str, object], str]) -> Iterator[None]:
    """A context in which messages spell arguments with this function of their name and their value (or None)."""
    global _spell
    before, _spell = _spell, spell
    try:
        yield
    finally:
        _spell = before


class Diverged(UserError):
    """The loss, the gradient or the parameters of a training are no longer finite."""


class Stopped(Exception):
    """A training that stopped on request, once its state was saved; the message says where it stands."""


def message_of(error: BaseException) -> str:
    """An exception's message; empty if it cannot be formatted, as a user's class may fail to do."""
    try:
        return str(error)
    except (Exception, SystemExit):
        return ""


def memory_is_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that memory is full."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MemoryError) or getattr(link, "errno", None) == errno.ENOMEM:
            return True
        if any(sign in message_of(link).lower() for sign in MEMORY_IS_FULL):
            return True
        link = link.__cause__ or link.__context__
    return False


def in_words(error: OSError) -> str:
    """The system's message, with the limit that was reached if it is this process's."""
    reason = error.strerror or message_of(error)
    try:
        import resource
    except ImportError:  # Windows
        return reason
    names = {errno.EFBIG: ("RLIMIT_FSIZE", "-f", " bytes"), errno.EMFILE: ("RLIMIT_NOFILE", "-n", "")}
    if error.errno not in names:
        return reason
    name, option, unit = names[error.errno]
    limit = resource.getrlimit(getattr(resource, name))[0]
    return reason if limit == resource.RLIM_INFINITY else f"{reason} (ulimit {option}: {limit:,}{unit})"


_kept: list[object] = []  # functions that C code calls must not be collected


def say_if_aborted(message: str, code: int, stream: int = 2) -> None:
    """From now on, if C or C++ code aborts this process, it ends with this message and this exit code.

    Lines that the code itself prints come before it.
    """
    import ctypes  # here, since most commands do without it

    line = f"vae-jax: error: {printable(message)}\n".encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
        os.write(stream, line)
        os._exit(code)

    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    install(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
    _kept.append(on_abort)


def printable(text: str) -> str:
    """The text as one line of bounded length, without control characters."""
    if len(text) > LINE_LIMIT:  # drop the middle: the expectation comes first, the hint last
        begin, end = LINE_LIMIT // 2, LINE_LIMIT // 4
        text = f"{text[:begin]} … {len(text) - begin - end:,} characters more … {text[-end:]}"
    if text.isprintable():
        return text
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return escaped if len(escaped) <= LINE_LIMIT else f"{escaped[:LINE_LIMIT]} …"


def cut(text: str, most: int = QUOTED) -> str:
    """The text, or its beginning, on one line without control characters."""
    shown = printable(text[:most])
    return shown if len(shown) <= most and len(text) <= most else f"{shown[:most]} …"


def quoted(value: object, most: int = QUOTED) -> str:
    """A value's text, or its beginning, in quotation marks, on one line without control characters."""
    text = str(value)
    return f"{text[:most]!r}{' …' * (len(text) > most)}"


def brief(error: object, most: int = BRIEF) -> str:
    """Another package's message on one line of bounded length."""
    return cut(" ".join(str(error)[: 4 * most].split()), most)


def first(things: Iterable[Any], most: int = LISTED) -> list[str]:
    """The first of many things, and the number of the rest."""
    things = list(things)
    more = [f"and {len(things) - most:,} more"] if len(things) > most else []
    return [*map(str, things[:most]), *more]


def listed(things: Iterable[Any], most: int = LISTED, between: str = ", ") -> str:
    """The first of many things in a line, and the number of the rest; empty if there are none.

    A name is cut only if it is longer than a path may be, so that it can be copied.
    """
    return between.join(cut(thing, PATH) for thing in first(things, most))


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things in words: "1 image", "1,200 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def on_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal; it is None in a process started without one."""
    return stream is not None and stream.isatty()
