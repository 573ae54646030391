"""A run's copies of the files that its configuration names as FILE.py:ENTRY, so that it can be used anywhere.

RUN/code/               the files as they were when the run began
RUN/code/sources.json   where each came from and its SHA-256; of a module named as PACKAGE.MODULE:ENTRY that alone

A file is loaded from where it came from while it is still the same, and its copy where it has changed or is gone.
`kept` alone decides that what lies in a run folder is run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vae_jax.checked import read_json, shown
from vae_jax.config import Config, expand
from vae_jax.errors import UserError
from vae_jax.folder import make_inside, replacing, write_text
from vae_jax.registry import EXTENSIBLE, Source, source_of

CODE, INDEX = "code", "sources.json"
COPY = re.compile(r"([^/\\\0]{1,255}\.py)?")  # the name of a copy: a file beside the index and nowhere else


class Kept(NamedTuple):
    """What a run knows of a user's file.

    Attributes:
        sha256: of its content when the run began.
        copy: the name of its copy beside the index; empty of a module, which may need others.
    """

    sha256: str
    copy: str


def names_in(config: Config) -> list[str]:
    """The import paths in a configuration."""
    return [name for name in _options(config).values() if ":" in name]


def _options(config: Config) -> dict[tuple[str, str], str]:
    """What may be an import path, by section and option."""
    sections = [tuple(option.split(".")) for option in EXTENSIBLE]
    return {(section, option): getattr(getattr(config, section), option) for section, option in sections}


def renamed(config: Config, names: Mapping[str, str]) -> Config:
    """The configuration with import paths replaced by others."""
    for (section, option), name in _options(config).items():
        if names.get(name, name) != name:
            config = replace(config, **{section: replace(getattr(config, section), **{option: names[name]})})
    return config


def absolute(config: Config) -> Config:
    """The configuration with its users' files by absolute paths, since a run must find them from anywhere."""
    return renamed(config, {name: absolute_name(name) for name in names_in(config)})


def absolute_name(name: str) -> str:
    """An import path with its file's path absolute, if it names a file."""
    file, colon, entry = name.rpartition(":")
    return f"{expand(file).absolute()}{colon}{entry}" if file.endswith(".py") else name


def by_content(config: Config) -> Config:
    """The configuration with the SHA-256 of its users' files in place of their paths."""
    parts = {name: name.rpartition(":") for name in names_in(config)}
    return renamed(config, {name: f"{_sha256(origin)}:{entry}" for name, (origin, _, entry) in parts.items()})


def sources(names: Iterable[str]) -> dict[str, Source]:
    """The files that import paths name, by what stands before the colon.

    Raises:
        OSError: if one cannot be read.
    """
    origins = dict.fromkeys(name.rpartition(":")[0] for name in names)
    return {origin: source_of(origin) for origin in origins if origin.endswith(".py") or _sha256(origin)}


def keep(files: Mapping[str, Source], folder: Path) -> None:
    """Copies `sources` into a run folder, unless it has copies already.

    Raises:
        OSError: if one cannot be written.
    """
    if not files or (not (folder / CODE).is_symlink() and (folder / CODE / INDEX).exists()):
        return
    make_inside(folder / CODE)
    index, copies = {}, {}  # copies by content
    for origin, source in files.items():
        if origin.endswith(".py") and source.sha256 not in copies:
            copies[source.sha256] = _write_copy(folder / CODE, source)
        index[origin] = Kept(source.sha256, copies[source.sha256] if origin.endswith(".py") else "")._asdict()
    write_text(folder / CODE / INDEX, json.dumps(index, indent=2) + "\n")  # last: where it is, the copies are whole


def _write_copy(folder: Path, source: Source) -> str:
    """Writes a file under a name that is free, also where a file system takes A and a for the same."""
    taken, number = {path.name.casefold() for path in folder.iterdir()}, 0
    while (name := f"{source.path.stem}{f'_{number}' * bool(number)}.py").casefold() in taken:
        number += 1
    with replacing(folder / name) as file:
        file.write(source.content)
    return name


def delete(folder: Path) -> None:
    """Deletes what `keep` has written, and nothing else that lies there; of a link the link."""
    if (folder / CODE).is_symlink():
        (folder / CODE).unlink()
    with suppress(UserError):  # of a damaged index, by which nobody knows what is whose
        for known in read_index(folder).values():
            if known.copy:
                (folder / CODE / known.copy).unlink(missing_ok=True)
    if (folder / CODE).is_dir():
        (folder / CODE / INDEX).unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something else is in it
        (folder / CODE).rmdir()


def strangers(folder: Path) -> list[Path]:
    """What lies where a run's copies are, or would be, and is none of them.

    Raises:
        UserError: if what the run tells of its copies is damaged.
    """
    if not (folder / CODE).is_dir():
        return [folder / CODE] if (folder / CODE).exists() else []
    own = {INDEX, *(known.copy for known in read_index(folder).values())}
    return [path for path in sorted((folder / CODE).iterdir()) if path.name not in own]


def read_index(folder: Path) -> dict[str, Kept]:
    """What a run knows of users' files, by where they came from.

    Raises:
        UserError: if the file that tells is damaged.
    """
    path = folder / CODE / INDEX
    try:
        index = read_json(path, dict[str, Kept])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for known in index.values():
        if not COPY.fullmatch(known.copy):
            raise UserError(f"{path}: expected copies called NAME.py beside it; found {shown(known.copy)}")
    return index


def kept(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Import paths -> those that a run uses instead, for the files that it has copies of.

    Raises:
        UserError: if what the run tells of its copies is damaged.
    """
    index = read_index(folder)

    def place(origin: str) -> str:
        sha256, copy = index[origin].sha256, _copy(origin, index, folder)
        return origin if _sha256(origin) == sha256 and _sha256(copy) in (sha256, None) else str(copy)

    return {name: f"{place(origin)}:{entry}" for name, (origin, entry) in _known(names, index).items()}


def as_kept(config: Config, folder: Path) -> Config:
    """The configuration with the import paths that a run uses, see `kept`."""
    return renamed(config, kept(names_in(config), folder))


def named(config: Config, folder: Path) -> Config:
    """The configuration with a run's files by where they came from, which undoes `as_kept`."""
    known = _known(names_in(config), read_index(folder))
    return renamed(config, {name: f"{origin}:{entry}" for name, (origin, entry) in known.items()})


def by_copy(config: Config, folder: Path) -> Config:
    """The configuration with a run's files by the names of its copies, which stay wherever the files go."""
    index = read_index(folder)
    known = _known(names_in(config), index)
    return renamed(config, {name: f"{CODE}/{index[origin].copy}:{entry}" for name, (origin, entry) in known.items()})


def _known(names: Iterable[str], index: dict[str, Kept]) -> dict[str, tuple[str, str]]:
    """Where the files came from that import paths name by their place or by their content, and the entries in them."""
    known = {}
    for name in names:
        origin, _, entry = name.rpartition(":")
        if origin not in index and origin.endswith(".py"):
            sha256 = _sha256(origin)
            origin = next((other for other, same in index.items() if same.copy and same.sha256 == sha256), origin)
        if origin in index and index[origin].copy:
            known[name] = origin, entry
    return known


def changes(folder: Path) -> list[str]:
    """A line for each file that is not what it was when a run began, and what is used."""
    index = read_index(folder)

    def used(origin: str) -> str:
        copy = _copy(origin, index, folder)
        if not index[origin].copy:
            return ": it is used as it is now"
        return f": its copy {copy} is used" if copy.is_file() else f", and its copy {copy} is gone"

    lines = [
        f"{origin} has changed since {folder} began{used(origin)}"
        for origin, known in index.items()
        if _sha256(origin) not in (known.sha256, None)
    ]
    return [*edited(folder), *lines]


def edited(folder: Path) -> list[str]:
    """A line for each of a run's copies that is not what it was when the run began."""
    index = read_index(folder)
    copies = {_copy(origin, index, folder): known.sha256 for origin, known in index.items() if known.copy}
    return [
        f"{copy} has been edited since {folder} began: it is used as it is now"
        for copy, sha256 in copies.items()
        if _sha256(copy) not in (sha256, None)
    ]


def _copy(origin: str, index: dict[str, Kept], folder: Path) -> Path:
    return (folder / CODE / index[origin].copy).absolute()


def _sha256(origin: str | Path) -> str | None:
    """Of a file or of a module's; None where there is none."""
    try:
        return source_of(str(origin)).sha256
    except (Exception, SystemExit):  # as a user's module may raise; whoever builds a model of it is told
        return None
