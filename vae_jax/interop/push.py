"""Brings a run to the Hugging Face Hub: what others need to use it and to train on, without places of this machine."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vae_jax.config import Config, to_yaml
from vae_jax.errors import UserError, argument, counted, quoted
from vae_jax.files.checked import read_json
from vae_jax.files.folders import contents
from vae_jax.interop.card import card_of
from vae_jax.interop.export import check_licence
from vae_jax.model.build import build
from vae_jax.pages.use import use_on_hub
from vae_jax.runs import own_parts
from vae_jax.runs.description import DESCRIPTION, files_of, resealed
from vae_jax.runs.folder import DATA, DIVERGED, ORIGIN, PRIOR, pictures, read_config
from vae_jax.runs.hub import CARD, LOG_IN, OF_A_RUN, PREFIX, downloaded, in_one_line, is_address, is_name
from vae_jax.runs.overview import PLACES
from vae_jax.runs.prior import read_prior
from vae_jax.runs.reading import load
from vae_jax.training.state import Trained

Files = dict[str, bytes | Path]  # by their paths in the repository
OWN_PLACES = ("data.manual_dir", "data.cache_dir")  # where this machine keeps what is downloaded


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    checkpoint: str = "latest",
    report: Callable[[str], None] = warnings.warn,
    on_file: Callable[[str], None] = lambda line: None,
    trust_code: bool = False,
) -> str:
    """Uploads a run to a repository of models on the hub, which is made if need be, in one commit.

    Of an earlier run in the repository nothing stays but in its history; other files there stay.

    Args:
        folder: of the run.
        repository: OWNER/NAME.
        private: make the repository private.
        licence: of the weights, for the card.
        checkpoint: "latest" or "best": the one that is uploaded.
        report: see `vae_jax.runs.reading.load`; called with a line for options with a place of this machine, and for a
            prior that is left out, too.
        on_file: called with a line for what is uploaded, before it is.
        trust_code: see `vae_jax.runs.reading.load`.

    Returns:
        The repository's URL.

    Raises:
        UserError: if there is no such run, huggingface_hub is not installed, the hub refuses it, or it cannot be
            reached.
    """
    if not is_name(repository):
        raise UserError(f"expected OWNER/NAME, a repository on the hub; found {quoted(repository)}")
    what, folder = f"{PREFIX}{repository}", downloaded(folder, report)
    check_licence(licence)
    with in_one_line(what, "write") as hub:
        if hub.get_token() is None:
            raise UserError(f"{what}: expected a token of the hub; found none; {LOG_IN}")
    trained = load(folder, checkpoint, report, trust_code)
    files = public_files(folder, trained, report)
    if contents(folder / PRIOR) or (folder / PRIOR).is_symlink():
        prior, why = read_prior(folder / PRIOR, trained, checkpoint, report, trust_code, "")
        if prior is None or why:
            report(f"the prior in {folder / PRIOR} is left out: {why}")
        else:
            own = public_files(folder / PRIOR, prior, report)
            files |= {f"{PRIOR}/{name}": content for name, content in own.items()}
    _, objective = build(trained.config, trained.image_shape)
    name = repository.partition("/")[2]
    use = use_on_hub(what, trained.config, own_parts.names_in(read_config(folder)) != [], bool(objective.generative))
    files[CARD] = card_of(trained, objective, name, licence, use=use).encode()
    for line in listing(files):
        on_file(line)
    with in_one_line(what, "write") as hub:
        return str(_upload(hub, repository, files, private, report))


def _upload(hub: Any, repository: str, files: Files, private: bool, report: Callable[[str], None]) -> str:
    """Makes the repository if there is none, and commits the files; returns its URL."""
    api, what = hub.HfApi(), f"{PREFIX}{repository}"
    url = api.create_repo(repository, private=private or None, exist_ok=True)
    there = api.model_info(repository)
    if private and not there.private:
        raise UserError(f"{what}: expected a private repository, for {argument('private', True)}; found a public one")
    earlier = [file.rfilename for file in there.siblings or ()]
    operations = [
        *(hub.CommitOperationAdd(name, content) for name, content in files.items()),
        *(
            hub.CommitOperationDelete(name)
            for name in earlier
            if name not in files and any(fnmatch(name, pattern) for pattern in OF_A_RUN)
        ),
    ]
    if "config.yaml" in earlier:
        report(f"{what}: the run there is replaced; it stays in the repository's history")
    # Refused if another commit has come between.
    made = api.create_commit(repository, operations, commit_message="A run of vae_jax", parent_commit=there.sha)
    if made.oid == there.sha:
        report(f"{what} has all of this already: there is no new commit")
    return url


def public_files(folder: Path, trained: Trained, report: Callable[[str], None]) -> Files:
    """What of a run is for others: files that are uploaded as they are, and contents without places of this machine.

    Args:
        folder: of the run.
        trained: the model of the checkpoint that is chosen.
        report: called with a line for every option with a place of this machine.

    Raises:
        UserError: if it names a file of code of which it has no copy, or a file in it is damaged.
    """
    config = read_config(folder)
    public, index = public_config(config, folder), public_index(folder)
    for name in own_parts.names_in(public):
        origin = name.rpartition(":")[0]
        if origin.endswith(".py") and origin not in index:
            raise UserError(f"{folder / own_parts.CODE}: expected a copy of {origin}, for others; found none")
    for option in PLACES:
        if (before := _value(config, option)) != (after := _value(public, option)):
            report(f"{folder}: {option} is {f'only {after}' if after else 'left out'} there, not {before}")
    files: Files = {"config.yaml": to_yaml(public).encode()}
    root = f"{config.data.path}/" if config.data.path else None  # of images, in lines on those that were skipped
    for name in (DATA, ORIGIN, "summary.json"):
        if (folder / name).is_file():
            noted = read_json(folder / name, dict[str, Any])
            files[name] = _json({key: _without(root, key, value) for key, value in noted.items()})
    files |= {name: folder / name for name in ("metrics.jsonl", DIVERGED) if (folder / name).is_file()}
    files |= {f"figures/{path.name}": path for path in pictures(folder)}
    code = folder / own_parts.CODE
    files |= {f"{own_parts.CODE}/{known['copy']}": code / known["copy"] for known in index.values() if known["copy"]}
    if index:
        files[f"{own_parts.CODE}/{own_parts.INDEX}"] = _json(index)
    return files | _checkpoint(folder, int(trained.state.step))


def _checkpoint(folder: Path, step: int) -> Files:
    """The files of a run's checkpoint."""
    place = Path("checkpoints", str(step))
    files: Files = {(place / name).as_posix(): folder / place / name for name in files_of(folder / place)}

    def public(description: dict[str, Any]) -> dict[str, Any]:
        options = {name: public_place(name, value) for name, value in description.get("options", {}).items()}
        made_with = dict(description.get("made_with", {}))
        if "XLA_FLAGS" in made_with:  # may name files and folders
            made_with["XLA_FLAGS"] = " ".join(word for word in made_with["XLA_FLAGS"].split() if "/" not in word)
        return {**description, "options": options, "made_with": made_with}

    files[(place / DESCRIPTION).as_posix()] = resealed(folder / place, public)
    return files


def public_config(config: Config, folder: Path) -> Config:
    """A run's configuration for others, with its own files by their copies and `public_place` of each path."""
    config = own_parts.by_copy(config, folder)
    for name in PLACES:
        section, _, option = name.partition(".")
        changed = replace(getattr(config, section), **{option: public_place(name, _value(config, name))})
        config = replace(config, **{section: changed})
    return config


def public_place(option: str, value: Any) -> Any:
    """An option's value for others: of a path the last name, which says what it is, or nothing."""
    if option not in PLACES or value is None or is_address(value):
        return value
    return None if option in OWN_PLACES else Path(value).name


def public_index(folder: Path) -> dict[str, Any]:
    """A run's index of its own files, by their copies in place of where they were; see `own_parts.read_index`."""
    index = own_parts.read_index(folder)
    return {
        f"{own_parts.CODE}/{known.copy}" if known.copy else origin: known._asdict() for origin, known in index.items()
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _value(config: Config, option: str) -> Any:
    section, _, name = option.partition(".")
    return getattr(getattr(config, section), name)


def _without(root: str | None, key: str, value: Any) -> Any:
    """A value in a run's notes without a folder of this machine: of a file's path the name, see `Origin`."""
    if key == "file":
        return Path(value).name
    if key == "skipped_images" and root:
        return [line.replace(root, "") for line in value]
    return value


def listing(files: Files) -> list[str]:
    """Lines on files with their sizes, those of a folder together."""
    groups: dict[str, list[int]] = {}
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        parent = Path(name).parts[0] if len(Path(name).parts) > 1 else name
        groups.setdefault(parent, []).append(size)
    lines = [
        f"{name}: {in_bytes(sum(sizes))}" + (f", {counted(len(sizes), 'file')}" if name not in files else "")
        for name, sizes in sorted(groups.items())
    ]
    whole = sum(sum(sizes) for sizes in groups.values())
    return [*lines, f"in all: {in_bytes(whole)}, {counted(len(files), 'file')}"]


def in_bytes(size: int) -> str:
    """A size in words."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
