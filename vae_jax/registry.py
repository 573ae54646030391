"""Looking a variant up by its name, or by the import path of a user's own; and whose line an exception is of.

What a user's code raises passes through the library as it is; `users_line` says where in that code it arose.
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

NAMED = ("options", "shapes", "learning_rate")  # arguments that users' functions have by these names
PREFIX = "vae_jax_user_"  # of the names of modules that are files
FILE_LIMIT = 1 << 24  # bytes of a user's file
LINE_LIMIT, MESSAGE_LIMIT = 120, 500  # characters of a user's line, and of what was raised there


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
        file: absolute; None of a module that is in no file.
        here: whether it is there only because the working folder is looked at too.
    """

    file: Path | None
    here: bool


_sources: dict[str, Source] = {}  # by the name of the module
_packages: set[str] = set()  # that users' import paths begin with
_pinned: dict[Path, str] = {}  # the SHA-256 of files that are loaded with this content only


def lookup(registry: Mapping[str, T], name: str, option: str, takes: tuple[str, ...] = ()) -> T:
    """The registry's entry called `name`; or what "FILE.py:ENTRY" or "PACKAGE.MODULE:ENTRY" names, a user's own.

    Args:
        registry: entries by name.
        name: of the entry.
        option: which has this value.
        takes: names of the arguments that a user's own takes; empty where there can be none.

    Raises:
        UserError: if there is none; names the option, the choices and the nearest one. If a user's own cannot be
            imported, or does not take these arguments.
    """
    if name in registry:
        return registry[name]
    if takes and ":" in name:
        return _imported(registry, str(name), option, takes)
    near = difflib.get_close_matches(str(name)[:QUOTED], registry, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    own = ", or FILE.py:ENTRY for your own" if takes else ""
    raise UserError(f"{option}: expected one of {listed(registry)}{own}; found {quoted(name)}{hint}")


def _imported(registry: Mapping[str, Any], name: str, option: str, takes: tuple[str, ...]) -> Any:
    """What stands under a name in a user's module.

    Raises:
        UserError: if there is no such module or name, the module fails, or it is nothing that takes these arguments.
    """
    where, _, entry = name.rpartition(":")
    try:
        module = _module(where)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        if line := users_line(error):
            raise UserError(f"{option}: {line}{_beside(where, error)}") from error
        why = str(error) if isinstance(error, UnfitError) else _what(error)
        raise UserError(f"{option}: expected a module to import in {quoted(name, PATH)}; {why}") from error
    if not hasattr(module, entry):
        near = difflib.get_close_matches(entry, [each for each in vars(module) if each[0] != "_"], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{option}: expected {entry!r} in {where}; found none of that name{hint}")
    found = getattr(module, entry)
    if isinstance(found, tuple) and any(type(found) is type(own) for own in registry.values()):
        return found  # it is what our own entries are
    expected = f"{option}: expected {entry} in {where} to be a function or a class of ({', '.join(takes)})"
    check_takes(found, expected, *takes)
    _check_named(found, expected, takes)
    return found


def _check_named(function: Any, expected: str, takes: tuple[str, ...]) -> None:
    """Refuses a function whose arguments mean something else: those that are NAMED must have their names.

    Raises:
        UserError: that begins with `expected`.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some of Python's own have none
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
    if (here := _here()) and here not in sys.path:
        sys.path.append(here)  # as `python -m` would find it
    if (package := where.partition(".")[0]) != __package__:
        _packages.add(package)
    return importlib.import_module(where)


def _here() -> str:
    """The working folder, where it is not looked at for modules anyway; empty where there is none."""
    with suppress(OSError):  # it was removed
        return "" if "" in sys.path else str(Path.cwd())
    return ""


def pin(file: Path, sha256: str) -> None:
    """From now on this process loads a file (absolute) with this content only: whoever has looked at it means that."""
    _pinned[file] = sha256


def _from_file(source: Source) -> ModuleType:
    """The module in a file; a file that has changed is another module.

    Raises:
        UserError: if it is not as it was pinned.
    """
    if _pinned.get(source.path) not in (source.sha256, None):
        raise UserError(f"{source.path}: expected it as it was when its run was opened; it has changed since")
    name = f"{PREFIX}{source.sha256[:16]}_{source.path}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(source.path)
        sys.modules[name], _sources[name] = module, source
        try:
            # Not by an import of Python's: it takes compiled code for up to date by the file's size and its time.
            exec(compile(source.content, str(source.path), "exec", dont_inherit=True), vars(module))
        except BaseException:
            sys.modules.pop(name, None)
            raise
    return sys.modules[name]


def source_of(where: str) -> Source:
    """The file, or the module's file, that an import path names before its colon, as it is now; nothing of it is run.

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
    """Where an import would find a module; None if nowhere. Nothing is imported, since packages are code too."""
    if (module := sys.modules.get(where)) is not None:
        file = getattr(module, "__file__", None)
        return Place(Path(file).absolute() if file else None, False)
    here = _here()
    for path in (None, [here] if here and here not in sys.path else []):
        spec, name, found = None, "", path
        for part in where.split("."):
            name = f"{name}.{part}" if spec else part
            if (spec := _spec(name, found) if part.isidentifier() else None) is None:
                break
            found = list(spec.submodule_search_locations or ())
        if spec:
            file = spec.origin if spec.has_location else None
            return Place(Path(file).absolute() if file else None, path is not None)
    return None


def _spec(name: str, path: Iterable[str] | None) -> ModuleSpec | None:
    """Of a module on a path, by default Python's own, found without its packages, which Python would import first."""
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
    """Refuses what cannot be called so.

    Raises:
        UserError: that begins with `expected`.
    """
    if not callable(function):
        raise UserError(f"{expected}; found {_kind(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of Python's own have none
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        empty = inspect.Parameter.empty
        plain = [each.replace(annotation=empty, default=empty) for each in signature.parameters.values()]
        name = getattr(function, "__name__", None) or _kind(function)
        shown = signature.replace(parameters=plain, return_annotation=empty)
        raise UserError(f"{expected}; found {name}{shown}") from None


def _kind(found: Any) -> str:
    return "None" if found is None else f"an instance of {type(found).__name__}"


def check_functions(part: Any, option: str) -> None:
    """Refuses a NamedTuple some of whose functions do not take as many arguments as its class says.

    Raises:
        UserError: naming the first of them.
    """
    for name, hint in get_type_hints(type(part)).items():
        choices = [hint, *get_args(hint)]
        value = getattr(part, name)
        if value is None and type(None) in choices:
            continue
        for function in (each for each in choices if get_origin(each) is Callable):
            taken = get_args(function)[0]
            expected = f"{option}: expected {name} of its {type(part).__name__} to be a function of {len(taken)}"
            check_takes(value, f"{expected} argument{'s' * (len(taken) > 1)}", *taken)


def users_line(error: BaseException) -> str | None:
    """Where in a user's own code an exception arose, and what it is; None if it arose elsewhere.

    "FILE:LINE in FUNCTION: the line: ErrorType: message", of the innermost function that is the user's.
    """
    place = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if _is_users(name := str(frame.f_globals.get("__name__"))):
            place = name, frame.f_code.co_filename, number, frame.f_code.co_name
    what, text = _what(error), message_of(error)
    if place is None:  # of a callback jax has but the text
        files = {str(getattr(module, "__file__", "")): name for name, module in sys.modules.items() if _is_users(name)}
        for file, number, function in re.findall(r'^ *File "(.+)", line (\d+), in (.+)$', text, re.MULTILINE):
            if file in files:
                place, what = (files[file], file, int(number), function), brief(text.splitlines()[-1], MESSAGE_LIMIT)
    if place:
        name, file, number, function = place
        return f"{file}:{number} in {function}: {brief(_line(name, file, number), LINE_LIMIT)}: {what}"
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}:{error.lineno}: {brief(error.text or '', LINE_LIMIT)}: {_what(error, error.msg)}"
    return None


def _is_users(module: str) -> bool:
    return module in _sources or module.partition(".")[0] in _packages


def _line(module: str, file: str, number: int) -> str:
    if module not in _sources:
        return linecache.getline(file, number)
    lines = importlib.util.decode_source(_sources[module].content).splitlines()  # the file may have changed since
    return lines[number - 1] if number <= len(lines) else ""


def _what(error: BaseException, message: str | None = None) -> str:
    text = brief(message_of(error) if message is None else message, MESSAGE_LIMIT)
    return f"{type(error).__name__}{text and ': '}{text}"


def _beside(where: str, error: BaseException) -> str:
    """A hint where a user's file imports another one beside it."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or not where.endswith(".py"):
        return ""
    folder = Path(os.path.expanduser(where)).absolute().parent
    if not any((folder / each).exists() for each in (error.name, f"{error.name}.py")):
        return ""
    return f" (a file is loaded alone: put {error.name} into it, install it, or add {folder} to PYTHONPATH)"
