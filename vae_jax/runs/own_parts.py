"""A run's copies of the files that its configuration names as FILE.py:ENTRY, so that it can be used anywhere.

RUN/code/                  the files as they were when the run began
RUN/code/sources.json      their origins and SHA-256; no copy of a module named as PACKAGE.MODULE:ENTRY
RUN/code/signature.json    the import paths that this user's training ran, signed with the above

A file is loaded from its origin while it is the same, and from its copy if it has changed or is gone. Only `kept`
allows code to run because a run's folder or configuration names it: that needs the signature of this user's training
(see `vae_jax.runs.signature`) or the user's word. Nothing runs or is imported before.
"""

import json
import os
import re
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vae_jax.config import EXTENSIBLE, Config, expand, renamed_part
from vae_jax.errors import UserError, argument
from vae_jax.files.checked import read_json, shown
from vae_jax.files.folders import contents
from vae_jax.files.held import make_inside
from vae_jax.files.replace import replacing, write_text
from vae_jax.registry import Source, locate, pin, source_of
from vae_jax.runs.signature import NoSecretError, is_own, sign

CODE, INDEX, SIGNATURE = "code", "sources.json", "signature.json"
COPY = re.compile(r"([^/\\\0]{1,255}\.py)?")  # the name of a copy: a file beside the index and nowhere else
SIZE_LIMIT = 1 << 20  # bytes of a run's index or signature


class Kept(NamedTuple):
    """A user's file in a run's index.

    Attributes:
        sha256: of its content when the run began.
        copy: the name of its copy beside the index; empty for a module, which may need other modules.
    """

    sha256: str
    copy: str


def names_in(config: Config) -> list[str]:
    """The import paths in a configuration."""
    return [name for name in _options(config).values() if ":" in name]


def _options(config: Config) -> dict[tuple[str, str], str]:
    """The options that may be an import path, by section and option."""
    sections = [tuple(option.split(".")) for option in EXTENSIBLE]
    return {(section, option): getattr(getattr(config, section), option) for section, option in sections}


def renamed(config: Config, names: Mapping[str, str]) -> Config:
    """The configuration with import paths replaced as `names` says."""
    for (section, _), name in _options(config).items():
        if names.get(name, name) != name:
            config = replace(config, **{section: renamed_part(getattr(config, section), names[name])})
    return config


def absolute(config: Config) -> Config:
    """The configuration with absolute paths of users' files, which work from any folder."""
    return renamed(config, {name: absolute_name(name) for name in names_in(config)})


def absolute_name(name: str) -> str:
    """An import path with an absolute path of its file, if it names one."""
    file, colon, entry = name.rpartition(":")
    return f"{expand(file).absolute()}{colon}{entry}" if file.endswith(".py") else name


def by_content(config: Config) -> Config:
    """The configuration with the SHA-256 of its users' files in place of their paths."""
    parts = {name: name.rpartition(":") for name in names_in(config)}
    return renamed(config, {name: f"{_sha256(origin)}:{entry}" for name, (origin, _, entry) in parts.items()})


def sources(names: Iterable[str]) -> dict[str, Source]:
    """The files of import paths, by the part before the colon.

    Raises:
        OSError: if one cannot be read.
    """
    origins = dict.fromkeys(name.rpartition(":")[0] for name in names)
    return {origin: source_of(origin) for origin in origins if origin.endswith(".py") or _sha256(origin)}


def keep(files: Mapping[str, Source], names: Iterable[str], folder: Path) -> str:
    """Copies `sources` into a run folder, unless it has copies already, and signs the import paths that the run uses.

    Args:
        files: see `sources`.
        names: the import paths with which the run begins, or goes on.
        folder: of the run.

    Returns:
        A line if later commands of this user will not know that this user's training has written the copies; else
        nothing.

    Raises:
        OSError: if a file cannot be written.
        UserError: if the copies there are not the files that were loaded.
    """
    if not (names := list(names)):
        return ""
    code = make_inside(folder / CODE)
    if files and not (code / INDEX).exists():
        index, copies = {}, {}  # copies by content
        for origin, source in files.items():
            if origin.endswith(".py") and source.sha256 not in copies:
                copies[source.sha256] = _write_copy(code, source)
            index[origin] = Kept(source.sha256, copies[source.sha256] if origin.endswith(".py") else "")._asdict()
        write_text(code / INDEX, json.dumps(index, indent=2) + "\n")  # last: if it is there, the copies are whole
    index = read_index(folder)
    origins = _known(names, index)
    for name, (origin, _) in origins.items():  # the loaded content is signed, not a later one
        loaded = files.get(_parts(name)[0])
        if loaded and loaded.sha256 != index[origin].sha256:
            raise UserError(f"{code}: expected {origin} there as it was loaded; it was changed while this run began")
    run = [f"{origin}:{entry}" for origin, entry in (origins.get(name, _parts(name)) for name in names)]
    signed = _signed(folder, index)
    if isinstance(signed, Signed) and set(run).issubset(signed.names):
        return ""
    modules = {origin: locate(origin) for origin, _ in map(_parts, run) if not origin.endswith(".py")}
    places = {origin: str(place.file) if place and place.file else "" for origin, place in modules.items()}
    names = sorted(set(run))
    signature, why = sign(_canonical(index, names, places))
    write_text(code / SIGNATURE, json.dumps(Signed(names, places, signature)._asdict(), indent=2) + "\n")
    return why and f"using what is trained here will need {argument('trust_code', True)} to run its code: {why}"


def _parts(name: str) -> tuple[str, str]:
    origin, _, entry = name.rpartition(":")
    return origin, entry


def _write_copy(folder: Path, source: Source) -> str:
    """Writes a file under a free name, also on file systems that ignore case."""
    taken, number = {path.name.casefold() for path in folder.iterdir()}, 0
    while (name := f"{source.path.stem}{f'_{number}' * bool(number)}.py").casefold() in taken:
        number += 1
    with replacing(folder / name) as file:
        file.write(source.content)
    return name


def delete(folder: Path) -> None:
    """Deletes the files that `keep` has written, and nothing else; of a link the link."""
    if (folder / CODE).is_symlink():
        (folder / CODE).unlink()
    with suppress(UserError):  # of a damaged index, without which the copies are unknown
        for known in read_index(folder).values():
            if known.copy:
                (folder / CODE / known.copy).unlink(missing_ok=True)
    if (folder / CODE).is_dir():
        for name in (INDEX, SIGNATURE):
            (folder / CODE / name).unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something else is in it
        (folder / CODE).rmdir()


def strangers(folder: Path) -> list[Path]:
    """Files in the place of a run's copies that are none of them.

    Raises:
        UserError: if the run's index is damaged.
    """
    if not (folder / CODE).is_dir():
        return [folder / CODE] if (folder / CODE).exists() else []
    known_names = {INDEX, SIGNATURE, *(known.copy for known in read_index(folder).values())}
    return [path for path in contents(folder / CODE) if path.name not in known_names]


def read_index(folder: Path) -> dict[str, Kept]:
    """A run's index of users' files, by their origins.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / CODE / INDEX
    try:
        index = read_json(path, dict[str, Kept], SIZE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for known in index.values():
        if not COPY.fullmatch(known.copy):
            raise UserError(f"{path}: expected copies called NAME.py beside it; found {shown(known.copy)}")
    return index


class Signed(NamedTuple):
    """The import paths that this user's training has signed.

    Attributes:
        names: import paths, with their files' origins.
        places: a module's name -> where its file was; empty for one without a file.
        signature: of these and of the index.
    """

    names: list[str]
    places: dict[str, str]
    signature: str


def _canonical(index: dict[str, Kept], names: list[str], places: dict[str, str]) -> bytes:
    files = {origin: known._asdict() for origin, known in index.items()}
    return json.dumps(["vae_jax code", 1, files, names, places], sort_keys=True).encode()


def _signed(folder: Path, index: dict[str, Kept]) -> Signed | str:
    """The import paths that this user's training has signed in a run folder, or the reason why there are none."""
    path = folder / CODE / SIGNATURE
    try:
        signed = read_json(path, Signed, SIZE_LIMIT)
        if is_own(_canonical(index, signed.names, signed.places), signed.signature):
            return signed
        return f"{path} is not of this user's and of this content"
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no {path}"
    except (NoSecretError, UserError) as error:
        return str(error)


def kept(names: Iterable[str], folder: Path, trust_code: bool = False, users: Container[str] = ()) -> dict[str, str]:
    """Import paths -> those that a run uses instead, for the files that it has copies of.

    Args:
        names: import paths, of the run's configuration or of the one to go on with.
        folder: of the run.
        trust_code: the user's word for all code that the run's folder or configuration names.
        users: those of the names that the user has given in this call, which is the user's word for these files and
            modules, but not for a copy in the run's folder.

    Raises:
        UserError: if code would run for which there is neither the user's word nor the signature of this user's
            training, or the run's index is damaged.
    """
    index = read_index(folder)
    names = list(dict.fromkeys(names))
    origins = _known(names, index)
    signed = "" if trust_code or not names else _signed(folder, index)
    used_names = {}
    for name in names:
        where, _ = _parts(name)
        origin, entry = origins.get(name, _parts(name))
        place = _place(origin, index, folder) if name in origins else where
        own_file = place == where or (place.endswith(".py") and _sha256(place) == _sha256(where) is not None)
        if not (trust_code or (name in users and own_file)):
            named = name in users
            if why := signed if isinstance(signed, str) else _doubt(signed, origin, entry, place, index, named):
                raise UserError(
                    f"{folder}: expected code that your own training has put there; found {name:.200}, which is not "
                    f"known to be that ({why}); read {_shown(place)}, and if you trust it use "
                    f"{argument('trust_code', True)}"
                )
        if name in origins:
            used_names[name] = f"{place}:{entry}"
            if place != where:  # it is loaded later and may change until then
                pin(Path(place), (trust_code and _sha256(place)) or index[origin].sha256)
    return used_names


def _doubt(signed: Signed, origin: str, entry: str, place: str, index: dict[str, Kept], named: bool) -> str:
    """Why code is not the code that this user's training has run; empty if it is.

    Args:
        signed: by that training.
        origin: of the file, or the module.
        entry: in it.
        place: of the file, or the module, that is to run.
        index: of the run's copies.
        named: whether the user has named this entry in this call.

    Raises:
        UserError: if it is a module that cannot be imported here.
    """
    if not named and f"{origin}:{entry}" not in signed.names:
        return "that training did not run it"
    if place.endswith(".py"):
        known = index.get(origin)
        return "" if known and _sha256(place) in (known.sha256, None) else f"{place} has been edited since"
    if (module := locate(origin)) is None:
        raise UserError(f"expected a module to import, as this run names {origin}:{entry}; found none called {origin}")
    # Modules of the user's Python are the user's; those in the working folder may be anybody's.
    if module.here and str(module.file or "") != signed.places.get(origin):
        return f"it was found in the working folder, not in {signed.places.get(origin) or 'a file'} as then"
    return ""


def _shown(place: str) -> str:
    """A file's absolute path, or a module's."""
    if place.endswith(".py"):
        return str(Path(os.path.expanduser(place)).absolute())
    module = locate(place)
    return f"the module {place:.200}" + (f" in {module.file}" if module and module.file else "")


def _place(origin: str, index: dict[str, Kept], folder: Path) -> str:
    """The file that a run uses: its origin, or its copy if the origin has changed."""
    sha256, copy = index[origin].sha256, _copy(origin, index, folder)
    return origin if _sha256(origin) == sha256 and _sha256(copy) in (sha256, None) else str(copy)


def as_kept(config: Config, folder: Path, trust_code: bool = False, users: Container[str] = ()) -> Config:
    """The configuration with the import paths that a run uses, see `kept`."""
    return renamed(config, kept(names_in(config), folder, trust_code, users))


def named(config: Config, folder: Path) -> Config:
    """The configuration with a run's files by their origins, which undoes `as_kept`."""
    origins = _known(names_in(config), read_index(folder))
    return renamed(config, {name: f"{origin}:{entry}" for name, (origin, entry) in origins.items()})


def by_copy(config: Config, folder: Path) -> Config:
    """The configuration with a run's files by the names of its copies, which never change."""
    index = read_index(folder)
    origins = _known(names_in(config), index)
    return renamed(config, {name: f"{CODE}/{index[origin].copy}:{entry}" for name, (origin, entry) in origins.items()})


def _known(names: Iterable[str], index: dict[str, Kept]) -> dict[str, tuple[str, str]]:
    """Import path -> (origin, entry), of paths that name a run's file by its origin or by its content."""
    origins = {}
    for name in names:
        origin, _, entry = name.rpartition(":")
        if origin not in index and origin.endswith(".py"):
            sha256 = _sha256(origin)
            origin = next((place for place, file in index.items() if file.copy and file.sha256 == sha256), origin)
        if origin in index and index[origin].copy:
            origins[name] = origin, entry
    return origins


def changes(folder: Path) -> list[str]:
    """A line for each file that has changed since a run began, with the file that is used instead."""
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
    """A line for each of a run's copies that has changed since the run began."""
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
    """The SHA-256 of a file, or of a module's file; None if there is none that can be read."""
    try:
        return source_of(str(origin)).sha256
    except (OSError, ImportError, ValueError):
        return None
