"""A run's copies of the files that its configuration names as FILE.py:ENTRY, so that it can be used anywhere.

RUN/code/                  the files as they were when the run began
RUN/code/sources.json      where each came from and its SHA-256; of a module named as PACKAGE.MODULE:ENTRY that alone
RUN/code/signature.json    the import paths that this user's own training ran, signed with the above

A file is loaded from where it came from while it is still the same, and its copy where it has changed or is gone.
`kept` alone decides that code is run because a run's folder or configuration names it: that takes the signature of this
user's own training (see `vae_jax.signature`) or the user's word. Before it has decided nothing is run or imported.
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
SIZE_LIMIT = 1 << 20  # bytes of what a run tells of its code


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
    for (section, _), name in _options(config).items():
        if names.get(name, name) != name:
            config = replace(config, **{section: renamed_part(getattr(config, section), names[name])})
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


def keep(files: Mapping[str, Source], names: Iterable[str], folder: Path) -> str:
    """Copies `sources` into a run folder, unless it has copies already, and signs what the run runs.

    Args:
        files: by what stands before the colon.
        names: the import paths that the run begins, or goes on, with.
        folder: of the run.

    Returns:
        A line where no later command of this user will know that this was written by the user's own training; or
        nothing.

    Raises:
        OSError: if one cannot be written.
        UserError: if the copies there are not what was loaded.
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
        write_text(code / INDEX, json.dumps(index, indent=2) + "\n")  # last: where it is, the copies are whole
    index = read_index(folder)
    known = _known(names, index)
    for name, (origin, _) in known.items():  # what is signed is what was loaded, not what lies there by now
        loaded = files.get(_parts(name)[0])
        if loaded and loaded.sha256 != index[origin].sha256:
            raise UserError(f"{code}: expected {origin} there as it was loaded; it was changed while this run began")
    run = [f"{origin}:{entry}" for origin, entry in (known.get(name, _parts(name)) for name in names)]
    signed = _signed(folder, index)
    if isinstance(signed, Signed) and set(run).issubset(signed.names):
        return ""
    modules = {origin: locate(origin) for origin, _ in map(_parts, run) if not origin.endswith(".py")}
    places = {origin: str(place.file) if place and place.file else "" for origin, place in modules.items()}
    names = sorted(set(run))
    signature, why = sign(_canonical(index, names, places))
    write_text(code / SIGNATURE, json.dumps(Signed(names, places, signature)._asdict(), indent=2) + "\n")
    return why and f"whoever uses what is trained here will need {argument('trust_code', True)} to run its code: {why}"


def _parts(name: str) -> tuple[str, str]:
    origin, _, entry = name.rpartition(":")
    return origin, entry


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
        for name in (INDEX, SIGNATURE):
            (folder / CODE / name).unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something else is in it
        (folder / CODE).rmdir()


def strangers(folder: Path) -> list[Path]:
    """What lies where a run's copies are, or would be, and is none of them.

    Raises:
        UserError: if what the run tells of its copies is damaged.
    """
    if not (folder / CODE).is_dir():
        return [folder / CODE] if (folder / CODE).exists() else []
    own = {INDEX, SIGNATURE, *(known.copy for known in read_index(folder).values())}
    return [path for path in contents(folder / CODE) if path.name not in own]


def read_index(folder: Path) -> dict[str, Kept]:
    """What a run knows of users' files, by where they came from.

    Raises:
        UserError: if the file that tells is damaged.
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
    """What this user's own training has signed.

    Attributes:
        names: import paths, by where their files came from.
        places: of modules by their names, where their files were; empty of one in no file.
        signature: of these and of the index.
    """

    names: list[str]
    places: dict[str, str]
    signature: str


def _canonical(index: dict[str, Kept], names: list[str], places: dict[str, str]) -> bytes:
    files = {origin: known._asdict() for origin, known in index.items()}
    return json.dumps(["vae_jax code", 1, files, names, places], sort_keys=True).encode()


def _signed(folder: Path, index: dict[str, Kept]) -> Signed | str:
    """What this user's own training has signed in a run folder; or why nothing is known of any."""
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
        names: import paths, of the run's own configuration or of what it is to go on with.
        folder: of the run.
        trust_code: the user's word for all code that the run's folder or configuration names.
        users: those of the names by which the user has named a file or a module here and now, which is the word for
            them, but not for a copy in the run's folder.

    Raises:
        UserError: if code would be run for which there is neither the user's word nor the signature of this user's own
            training. If what the run tells of its copies is damaged.
    """
    index = read_index(folder)
    names = list(dict.fromkeys(names))
    known = _known(names, index)
    signed = "" if trust_code or not names else _signed(folder, index)
    found = {}
    for name in names:
        where, _ = _parts(name)
        origin, entry = known.get(name, _parts(name))
        place = _place(origin, index, folder) if name in known else where
        own_file = place == where or (place.endswith(".py") and _sha256(place) == _sha256(where) is not None)
        if not (trust_code or (name in users and own_file)):
            named = name in users
            if why := signed if isinstance(signed, str) else _doubt(signed, origin, entry, place, index, named):
                raise UserError(
                    f"{folder}: expected code that your own training has put there; found {name:.200}, which is not "
                    f"known to be that ({why}); read {_shown(place)}, and if you trust it use "
                    f"{argument('trust_code', True)}"
                )
        if name in known:
            found[name] = f"{place}:{entry}"
            if place != where:  # it is loaded later on, and may be changed until then
                pin(Path(place), (trust_code and _sha256(place)) or index[origin].sha256)
    return found


def _doubt(signed: Signed, origin: str, entry: str, place: str, index: dict[str, Kept], named: bool) -> str:
    """Why what is to be run is not what this user's own training has run; nothing where it is.

    Args:
        signed: by that training.
        origin: where the file came from, or the module.
        entry: in it.
        place: of the file, or the module, that is to be run.
        index: of the run's copies.
        named: whether the user has named this entry here and now.

    Raises:
        UserError: if it is a module that is not found here.
    """
    if not named and f"{origin}:{entry}" not in signed.names:
        return "that training did not run it"
    if place.endswith(".py"):
        known = index.get(origin)
        return "" if known and _sha256(place) in (known.sha256, None) else f"{place} has been edited since"
    if (found := locate(origin)) is None:
        raise UserError(f"expected a module to import, as this run names {origin}:{entry}; found none called {origin}")
    # What the user's own Python finds is the user's; what only lies in the working folder may be anybody's.
    if found.here and str(found.file or "") != signed.places.get(origin):
        return f"it was found in the working folder, not in {signed.places.get(origin) or 'a file'} as then"
    return ""


def _shown(place: str) -> str:
    """A file's absolute path, or a module's."""
    if place.endswith(".py"):
        return str(Path(os.path.expanduser(place)).absolute())
    found = locate(place)
    return f"the module {place:.200}" + (f" in {found.file}" if found and found.file else "")


def _place(origin: str, index: dict[str, Kept], folder: Path) -> str:
    """The file that a run uses: where it came from, or its copy where that is another one by now."""
    sha256, copy = index[origin].sha256, _copy(origin, index, folder)
    return origin if _sha256(origin) == sha256 and _sha256(copy) in (sha256, None) else str(copy)


def as_kept(config: Config, folder: Path, trust_code: bool = False, users: Container[str] = ()) -> Config:
    """The configuration with the import paths that a run uses, see `kept`."""
    return renamed(config, kept(names_in(config), folder, trust_code, users))


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
    """Of a file or of a module's; None where there is none that can be read."""
    try:
        return source_of(str(origin)).sha256
    except (OSError, ImportError, ValueError):
        return None
