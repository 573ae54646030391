"""A run's identity: its options, images and files; and the options that may change when it goes on."""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vae_jax import optimizer
from vae_jax.config import (
    EXTENSIBLE,
    PARTS,
    Config,
    adapted,
    changed_options,
    options_of,
    resolve_parts,
    value_of,
)
from vae_jax.data import Dataset
from vae_jax.device.devices import Devices, cores
from vae_jax.errors import PATH, UserError, argument, cut, listed
from vae_jax.runs import own_parts
from vae_jax.runs.folder import read_config, read_data
from vae_jax.training.checks import labels_for
from vae_jax.version import __version__

if TYPE_CHECKING:
    from vae_jax.runs.checkpoint import Saved
    from vae_jax.runs.description import Description


DEVICE = ("device", "devices", "cores", "XLA_FLAGS")  # of `environment`; the rest are versions
# Options that may differ between the processes that train a run together: where the data are and what is kept.
LOCAL = ("data.manual_dir", "data.cache_dir", "data.path", "output.")
# Options that may differ when a run is continued: how far it goes, where its data are and what it keeps.
CHANGEABLE = (
    "train.epochs",
    "train.chunk_steps",
    "train.shard_images",
    "train.patience",
    "train.min_delta",
    "train.skip_nonfinite",  # a run that diverged may go on with it
    *LOCAL,
)


def check_shape(config: Config, data: Dataset) -> None:
    """Refuses images of another shape than the configuration's, by which a run is read again.

    Raises:
        UserError: naming both.
    """
    if not data.spec.is_picture:  # `settled` has checked the shape of other examples
        return
    size, channels = config.data.image_size, config.data.channels
    if data.image_shape != (size, size, channels):
        height, width, found_channels = data.image_shape
        hint = f"; set data.image_size {height} and data.channels {found_channels}" if height == width else ""
        raise UserError(
            f"data.image_size, data.channels: expected images of {size}x{size}x{channels} to make a run of, as "
            f"configured; found {height}x{width}x{found_channels} in {data.name}{hint}"
        )


def check_alike(config: Config, digest: str, earlier: "Saved | None", devices: Devices) -> None:
    """Refuses processes that would not train the same run.

    Raises:
        UserError: if they differ, in every process.
    """
    values = {
        option: value
        for option, value in options_of(own_parts.by_content(config)).items()
        if not option.startswith(LOCAL)
    }
    values |= {"training images": digest, "the run folder's last step": int(earlier.state.step) if earlier else 0}
    marks = [hashlib.sha256(repr(value).encode()).digest()[:3] for value in values.values()]  # as much as fits 32 bits
    marks_of_all = np.atleast_2d(
        devices.agree(np.array([int.from_bytes(mark) for mark in marks], np.int32), np.asarray)
    )
    if differ := [name for name, column in zip(values, marks_of_all.T, strict=True) if len(set(column.tolist())) > 1]:
        raise UserError(
            f"{argument('distributed')}: expected every process to have the same options, the same images and the same "
            f"run folder; found some that differ in {listed(differ)}"
        )


def environment(devices: Devices | None = None) -> dict[str, str]:
    """The versions, device and cores, on which a run's last bits depend."""
    device = jax.devices()[0]
    many = devices and devices.count > 1
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "device": f"{device.platform} ({device.device_kind})",
        **({"devices": str(devices)} if many else {}),
        "cores": str(cores()),
        "python": platform.python_version(),
        "vae_jax": __version__,
        **{name: version(name) for name in packages},
        **({"XLA_FLAGS": flags} if (flags := os.environ.get("XLA_FLAGS")) else {}),
    }


def changed_environment(then: dict[str, str], now: dict[str, str]) -> str:
    """The differences between two environments in words; empty if there are none."""
    if not then:
        return "an older vae_jax, which did not note on what"
    both = {name: (then.get(name, "none"), now.get(name, "none")) for name in {**then, **now}}
    return listed(
        f"{cut(name)} {cut(before)} (now {cut(after)})" for name, (before, after) in both.items() if before != after
    )


def digest_of(config: Config, data: Dataset) -> str:
    """The digest of the training images, and of their labels and classes if the model gets them."""
    digest = hashlib.sha256(np.ascontiguousarray(data.train.images).data)
    if (labels := labels_for(config, data.train)) is not None:
        digest.update(np.ascontiguousarray(labels).data)
        digest.update(json.dumps(data.class_names).encode())
    return digest.hexdigest()


def digest_of_all(config: Config, data: Dataset, training: str | None = None) -> str:
    """The digest of all splits' images and labels; `training` is `digest_of` config and data, if known already."""
    digest = hashlib.sha256((training or digest_of(config, data)).encode())
    for split in data.splits[1:]:
        for part in (split.images, labels_for(config, split)):
            if part is not None:
                digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def plain_options(config: Config) -> dict[str, Any]:
    """The options' values by their dotted names, as JSON gives them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options_of(config).items()}


def digest_of_run(config: Config, folder: Path) -> str:
    """The digest of a run: of its seed and all other options that cannot change, and of its users' files."""
    fixed = {
        option: list(value) if isinstance(value, tuple) else value
        for option, value in changed_options(config).items()
        if not option.startswith(CHANGEABLE)
    }
    code = {known.copy: known.sha256 for known in own_parts.read_index(folder).values() if known.copy}
    return hashlib.sha256(json.dumps([fixed, code], sort_keys=True).encode()).hexdigest()


def check_same_run(folder: Path, description: "Description") -> None:
    """Refuses a checkpoint that another run has written into this one's folder.

    Args:
        folder: of the run.
        description: of the checkpoint.

    Raises:
        UserError: naming both.
    """
    noted = read_data(folder)
    if noted and noted.run and description.run and description.run != noted.run:
        seed = read_config(folder).seed
        writer = f"{description.run[:12]} with seed {description.options.get('seed')!s:.20}"
        raise UserError(
            f"{folder}: expected a checkpoint of this run, {noted.run[:12]} with seed {seed}; found one that another "
            f"run, {writer}, has written into its folder; move it out of {folder / 'checkpoints'}"
        )


def present_options(options: dict[str, Any], config: Config, folder: Path) -> dict[str, Any]:
    """A checkpoint's options by their present names, of the chosen parts only.

    Args:
        options: of the checkpoint; an older version may have named them differently or left them out.
        config: of the run, whose users' files are loaded.
        folder: of the run.
    """
    copies = own_parts.by_copy(config, folder)
    loaded = {option: value_of(config, option) for option in EXTENSIBLE}
    then = {
        option: loaded[option] if option in loaded and value == value_of(copies, option) else value
        for option, value in options.items()
    }
    then = resolve_parts(adapted(Config(), **then), set(loaded.values()))
    return plain_options(own_parts.by_copy(then, folder))


def changed_run_options(now: dict[str, Any], then: dict[str, Any], configured: dict[str, Any]) -> str:
    """The options that must not change in a run and have changed, in words.

    Args:
        now: the options to go on with.
        then: the options that the run was trained with, by `present_options`; empty if unknown.
        configured: the options in its config.yaml.
    """
    if not then:
        return ""
    ending = now["train.schedule"] in optimizer.ENDING
    changeable = tuple(option for option in CHANGEABLE if option != "train.epochs" or not ending)
    sections_of_other_parts = {
        section for section, name in zip(PARTS, EXTENSIBLE, strict=True) if now[name] != then[name]
    }
    return listed(
        f"{option} (the run has {_shown(option, then)}, found {_shown(option, now)}"
        f"{' in its config.yaml' * (configured.get(option) == now.get(option))})"
        for option in now | then
        if now.get(option) != then.get(option)
        and not option.startswith(changeable)
        and (option in EXTENSIBLE or option.partition(".")[0] not in sections_of_other_parts)
    )


def _shown(option: str, options: dict[str, Any]) -> str:
    return cut(str(options[option]), PATH) if option in options else "its default"
