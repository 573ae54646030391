"""Finds a part by its name or by the import path of a user's own, and the line of a user's code that raised.

A user's exceptions pass through the library unchanged; `users_line` says where in their code they arose.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from vae_jax.errors import PATH, QUOTED, UserError, brief, listed, message_of, quoted
from vae_jax.files.checked import UnfitError, read_bytes

T = TypeVar("T")

NAMED = ("options", "shapes", "learning_rate")  # arguments that must have these names in users' functions
PREFIX = "vae_jax_user_"  # of the module names of users' files
FILE_LIMIT = 1 << 24  # bytes of a user's file
LINE_LIMIT, MESSAGE_LIMIT = 120, 500  # characters of a user's line, and of its exception's message


class Source(NamedTuple):
    """A user's file as it was when it was loaded.

    Attributes:
        path: of the file, absolute.
        content: of the file.
        sha256: of the content.
    """

    path: Path
    content: bytes
    sha256: str


class Place(NamedTuple):
    """Where a module is.

    Attributes:
        file: absolute; None if the module is in no file.
        here: whether only the search in the working folder gave it.
    """

    file: Path | None
    here: bool


_sources: dict[str, Source] = {}  # by the name of the module
_packages: set[str] = set()  # the first names of users' import paths
_pinned: dict[Path, str] = {}  # the only SHA-256 with which a file may be loaded


def lookup(registry: Mapping[str, T], name: str, option: str, takes: tuple[str, ...] = ()) -> T:
    """The registry's entry called `name`, or a user's own that "FILE.py:ENTRY" or "PACKAGE.MODULE:ENTRY" names.

    Args:
        registry: entries by name.
        name: of the entry.
        option: that has this value.
        takes: names of the arguments that a user's own must take; empty if it cannot be a user's own.

    Raises:
        UserError: if there is none, naming the option, the choices and the nearest one; or if a user's own cannot be
            imported, or does not take these arguments.
    """
    if name in registry:
        return registry[name]
    if takes and ":" in name:
        return _imported(registry, str(name), option, takes)
    near = difflib.get_close_matches(str(name)[:QUOTED], registry, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    users_own = ", or FILE.py:ENTRY for your own" if takes else ""
    raise UserError(f"{option}: expected one of {listed(registry)}{users_own}; found {quoted(name)}{hint}")


def _imported(registry: Mapping[str, Any], name: str, option: str, takes: tuple[str, ...]) -> Any:
    """The entry of a user's module.

    Raises:
        UserError: if there is no such module or entry, the module fails, or the entry does not take these arguments.
    """
    where, _, entry = name.rpartition(":")
    try:
        module = _module(where)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        if line := users_line(error):
            raise UserError(f"{option}: {line}{_import_hint(where, error)}") from error
        why = str(error) if isinstance(error, UnfitError) else _described(error)
        raise UserError(f"{option}: expected a module to import in {quoted(name, PATH)}; {why}") from error
    if not hasattr(module, entry):
        near = difflib.get_close_matches(entry, [name for name in vars(module) if name[0] != "_"], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{option}: expected {entry!r} in {where}; found none of that name{hint}")
    part = getattr(module, entry)
    if isinstance(part, tuple) and any(type(part) is type(ours) for ours in registry.values()):
        return part  # of the same type as our entries
    expected = f"{option}: expected {entry} in {where} to be a function or a class of ({', '.join(takes)})"
    check_takes(part, expected, *takes)
    _check_named(part, expected, takes)
    return part


def _check_named(function: Any, expected: str, takes: tuple[str, ...]) -> None:
    """Refuses a function whose arguments are others: those in NAMED must have their names.

    Raises:
        UserError: whose message begins with `expected`.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have none
        return
    for name, parameter in zip(takes, parameters, strict=False):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return
        if name in NAMED and parameter.name != name:
            shown = ", ".join(parameter.name for parameter in parameters)
            raise UserError(f"{expected}; found {getattr(function, '__name__', _kind(function))}({shown})")


def _module(where: str) -> ModuleType:
    if where.endswith(".py"):
        return _from_file(source_of(where))
    if (here := _working_folder()) and here not in sys.path:
        sys.path.append(here)  # as `python -m` would find it
    if (package := where.partition(".")[0]) != __package__:
        _packages.add(package)
    return importlib.import_module(where)


def _working_folder() -> str:
    """The working folder, unless modules are searched there anyway; empty if it does not exist."""
    with suppress(OSError):  # it was removed
        return "" if "" in sys.path else str(Path.cwd())
    return ""


def pin(file: Path, sha256: str) -> None:
    """From now on this process loads a file (absolute) only with this content, which has been checked."""
    _pinned[file] = sha256


def _from_file(source: Source) -> ModuleType:
    """The module in a file; a file that has changed is another module.

    Raises:
        UserError: if it is pinned with another content.
    """
    if _pinned.get(source.path) not in (source.sha256, None):
        raise UserError(f"{source.path}: expected it as it was when its run was opened; it has changed since")
    name = f"{PREFIX}{source.sha256[:16]}_{source.path}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(source.path)
        sys.modules[name], _sources[name] = module, source
        try:
            # Not imported: Python trusts cached bytecode if the file's size and time are the same.
            exec(compile(source.content, str(source.path), "exec", dont_inherit=True), vars(module))
        except BaseException:
            sys.modules.pop(name, None)
            raise
    return sys.modules[name]


def source_of(where: str) -> Source:
    """The current content of the file that an import path names before its colon; runs nothing.

    Raises:
        OSError: if it cannot be read.
        UnfitError: if it is no file, or far too long for a program.
        ImportError: if there is no such module, or it is in no file.
    """
    if where.endswith(".py"):
        path = Path(os.path.expanduser(where)).absolute()
    else:
        place = locate(where)
        if not place or not place.file:
            raise ImportError(f"{where} is in no file")
        path = place.file
    content = read_bytes(path, FILE_LIMIT)
    return Source(path, content, hashlib.sha256(content).hexdigest())


def locate(where: str) -> Place | None:
    """Where an import would find a module; None if nowhere. Imports nothing, since a package is code too."""
    if (module := sys.modules.get(where)) is not None:
        file = getattr(module, "__file__", None)
        return Place(Path(file).absolute() if file else None, False)
    here = _working_folder()
    for path in (None, [here] if here and here not in sys.path else []):
        spec, name, search = None, "", path
        for part in where.split("."):
            name = f"{name}.{part}" if spec else part
            if (spec := _spec(name, search) if part.isidentifier() else None) is None:
                break
            search = list(spec.submodule_search_locations or ())
        if spec:
            file = spec.origin if spec.has_location else None
            return Place(Path(file).absolute() if file else None, path is not None)
    return None


def _spec(name: str, path: Iterable[str] | None) -> ModuleSpec | None:
    """The spec of a module on a path, by default Python's; does not import its packages, as Python would."""
    if path is None:
        if (module := sys.modules.get(name)) is not None and module.__spec__:
            return module.__spec__
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        return next((spec for finder in finders if (spec := finder.find_spec(name, None))), None)
    portions = ModuleSpec(name, None, is_package=True)
    for finder in map(pkgutil.get_importer, path):
        if (spec := finder.find_spec(name) if finder else None) is None:
            continue
        if spec.loader:
            return spec
        portions.submodule_search_locations += spec.submodule_search_locations or []  # type: ignore[operator]
    return portions if portions.submodule_search_locations else None


def check_takes(function: Any, expected: str, *arguments: Any, **named: Any) -> None:
    """Refuses a value that cannot be called with these arguments.

    Raises:
        UserError: whose message begins with `expected`.
    """
    if not callable(function):
        raise UserError(f"{expected}; found {_kind(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        empty = inspect.Parameter.empty
        plain = [parameter.replace(annotation=empty, default=empty) for parameter in signature.parameters.values()]
        name = getattr(function, "__name__", None) or _kind(function)
        shown = signature.replace(parameters=plain, return_annotation=empty)
        raise UserError(f"{expected}; found {name}{shown}") from None


def _kind(value: Any) -> str:
    return "None" if value is None else f"an instance of {type(value).__name__}"


def check_functions(part: Any, option: str) -> None:
    """Refuses a NamedTuple with a function that does not take as many arguments as its class says.

    Raises:
        UserError: naming the first such function.
    """
    for name, hint in get_type_hints(type(part)).items():
        choices = [hint, *get_args(hint)]
        value = getattr(part, name)
        if value is None and type(None) in choices:
            continue
        for function in (choice for choice in choices if get_origin(choice) is Callable):
            taken = get_args(function)[0]
            expected = f"{option}: expected {name} of its {type(part).__name__} to be a function of {len(taken)}"
            check_takes(value, f"{expected} argument{'s' * (len(taken) > 1)}", *taken)


def users_line(error: BaseException) -> str | None:
    """Where in a user's code an exception arose, and its message; None if it arose elsewhere.

    "FILE:LINE in FUNCTION: the line: ErrorType: message", of the user's innermost function.
    """
    place = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if _is_users(name := str(frame.f_globals.get("__name__"))):
            place = name, frame.f_code.co_filename, number, frame.f_code.co_name
    what, text = _described(error), message_of(error)
    if place is None:  # of an error in a callback jax keeps only the text
        files = {str(getattr(module, "__file__", "")): name for name, module in sys.modules.items() if _is_users(name)}
        for file, number, function in re.findall(r'^ *File "(.+)", line (\d+), in (.+)$', text, re.MULTILINE):
            if file in files:
                place, what = (files[file], file, int(number), function), brief(text.splitlines()[-1], MESSAGE_LIMIT)
    if place:
        name, file, number, function = place
        return f"{file}:{number} in {function}: {brief(_line(name, file, number), LINE_LIMIT)}: {what}"
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}:{error.lineno}: {brief(error.text or '', LINE_LIMIT)}: {_described(error, error.msg)}"
    return None


def _is_users(module: str) -> bool:
    return module in _sources or module.partition(".")[0] in _packages


def _line(module: str, file: str, number: int) -> str:
    if module not in _sources:
        return linecache.getline(file, number)
    lines = importlib.util.decode_source(_sources[module].content).splitlines()  # the file may have changed since
    return lines[number - 1] if number <= len(lines) else ""


def _described(error: BaseException, message: str | None = None) -> str:
    text = brief(message_of(error) if message is None else message, MESSAGE_LIMIT)
    return f"{type(error).__name__}{text and ': '}{text}"


def _import_hint(where: str, error: BaseException) -> str:
    """A hint if a user's file imports another file beside it; else empty."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or not where.endswith(".py"):
        return ""
    folder = Path(os.path.expanduser(where)).absolute().parent
    if not any((folder / name).exists() for name in (error.name, f"{error.name}.py")):
        return ""
    return f" (a file is loaded alone: put {error.name} into it, install it, or add {folder} to PYTHONPATH)"
