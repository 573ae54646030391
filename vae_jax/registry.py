"""Looking a variant up by its name, or by the import path of a user's own."""

import difflib
import importlib
import importlib.machinery
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from vae_jax.errors import UserError

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, option: str, importable: bool = False) -> T:
    """The registry's entry called `name`; if `importable`, "FILE.py:ENTRY" or "PACKAGE.MODULE:ENTRY" names another.

    Raises:
        UserError: if there is none; names the option, the choices and the nearest one.
    """
    if name in registry:
        return registry[name]
    if importable and ":" in name:
        return _imported(str(name), option)
    near = difflib.get_close_matches(str(name), registry, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"{option}: expected one of {', '.join(registry)}; found {name!r}{hint}")


def _imported(path: str, option: str) -> Any:
    """What stands under a name in a user's module.

    Raises:
        UserError: if there is no such module or name, or the module fails.
    """
    where, _, entry = path.rpartition(":")
    try:
        module = _from_file(Path(where).expanduser()) if where.endswith(".py") else _from_path(where)
    except Exception as error:  # whatever a user's module raises
        found = f"{type(error).__name__}: {error}"
        raise UserError(f"{option}: expected a module to import in {path!r}; {found}") from error
    if not hasattr(module, entry):
        near = difflib.get_close_matches(entry, [each for each in vars(module) if each[0] != "_"], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{option}: expected {entry!r} in {where}; found none of that name{hint}")
    found = getattr(module, entry)
    if not callable(found) and not isinstance(found, tuple):
        kind = type(found).__name__
        raise UserError(f"{option}: expected a function or a class called {entry!r} in {where}; found {kind}")
    return found


def _from_path(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` would find it
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    name = f"vae_jax_user_{path.absolute()}"
    if name not in sys.modules:
        loader = importlib.machinery.SourceFileLoader(name, str(path))
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
