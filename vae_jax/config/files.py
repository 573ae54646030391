"""Finds, reads and writes the files of configurations."""

import os
from pathlib import Path
from typing import Any

from vae_jax.config.change import RENAMED, adapted, as_listed, check_used, options_of, options_of_section, with_options
from vae_jax.config.parts import PARTS, registry_of
from vae_jax.config.schema import Config
from vae_jax.config.section import SECTIONS
from vae_jax.errors import UserError, argument, brief, cut
from vae_jax.files import checked, plain_yaml
from vae_jax.options import SIZE_LIMIT, nearest, options_in, shown
from vae_jax.registry import lookup


def expand(path: str | Path) -> Path:
    """The path with ~ replaced by the home folder; a shell does so only at the beginning of a word.

    Raises:
        UserError: if there is no such home folder.
    """
    expanded = Path(os.path.expanduser(path))
    user = expanded.parts[0] if expanded.parts else ""
    # An existing file's or folder's name may begin with ~ too.
    if user == "~" or (user.startswith("~") and len(expanded.parts) > 1 and not os.path.exists(user)):
        raise UserError(f"{path}: expected a path; {user} is no home folder here")
    return expanded


def shipped() -> dict[str, Path]:
    """The files of the configurations that come with the package, by name."""
    package = Path(__file__).parent.parent
    # A wheel has them inside the package, a checkout beside it.
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str | Path) -> Path:
    """The YAML file called `name`: a path, or the name of a shipped configuration.

    Raises:
        UserError: if neither exists.
    """
    path = expand(name)
    try:
        if path.is_file():
            return path
        kind = "a folder" if path.is_dir() else "a special file" if path.exists() else "no such file"
    except (OSError, ValueError) as error:  # a name that no file can have
        kind = getattr(error, "strerror", None) or error
    if str(name) in shipped():
        return shipped()[str(name)]
    what = argument("config", cut(str(name), 200))
    raise UserError(
        f"{what}: expected a YAML file or one of {', '.join(shipped())}; found {kind}{nearest(str(name), shipped())}"
    )


def read_file(path: Path, strict: bool = True) -> Config:
    """The configuration in a YAML file, which must hold options by section and nothing else.

    Args:
        path: of the file.
        strict: refuse options that are not used, instead of leaving them out.

    Raises:
        UserError: naming the file, what was expected and what was found.
    """
    try:
        read = plain_yaml.load(checked.read_bytes(path, SIZE_LIMIT).decode())
    except checked.UnfitError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a YAML file; {brief(error)}") from error
    if not isinstance(read, dict):
        kind = "nothing" if read is None else type(read).__name__
        raise UserError(f"{path}: expected options by section, as in `train: {{epochs: 5}}`; found {kind}")
    for name, options in read.items():
        if lookup({"seed": None, **SECTIONS}, str(name), str(path)) is None:
            continue
        if not isinstance(options, dict):
            raise UserError(f"{path}: {name}: expected a section of options; found {shown(options)}")
        _check_names(name, options, str(path))
    try:
        return (as_listed if strict else adapted)(Config(), **read)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_names(section: str, options: dict[Any, Any], path: str) -> None:
    """Refuses a name that no option of this section has; the options of a user's part are checked once it is loaded."""
    known: dict[str, Any] = dict(options_in(SECTIONS[section]))
    known |= {old.partition(".")[2]: None for old in RENAMED if old.startswith(f"{section}.")}
    more = [name for name in options if name not in known]
    if more and section in PARTS:
        naming = PARTS[section].option
        if options.get(naming, known[naming].default) not in registry_of(section):
            return
        known = options_of_section(section)
    for name in more:
        lookup(known, str(name), f"{path}: {section}")


def load_config(name: str | Path | None = None, **overrides: Any) -> Config:
    """A configuration from a YAML file or a shipped name, with overrides by dotted option.

    `load_config("article", **{"train.epochs": 2})`; without a name, the defaults.

    Raises:
        UserError: for a missing file, an unknown option, a wrong type, a value out of range, or an option that the rest
            would ignore.

    Examples:
        >>> import vae_jax
        >>> config = vae_jax.load_config("digits", **{"train.epochs": 2, "model.latent": 2})
        >>> config.train.epochs, config.objective.name
        (2, 'vae')
    """
    config = with_options(Config() if name is None else read_file(find(name)), **overrides)
    check_used(config)
    return config


def as_sections(config: Config) -> dict[str, Any]:
    """Every option's value by section, as YAML and JSON hold it."""
    sections: dict[str, Any] = {}
    for option, value in options_of(config).items():
        section, _, name = option.rpartition(".")
        place = sections.setdefault(section, {}) if section else sections
        place[name] = list(value) if isinstance(value, tuple) else value
    return sections


def to_yaml(config: Config) -> str:
    """The whole configuration as text that `load_config` reads."""
    return plain_yaml.dump(as_sections(config))
