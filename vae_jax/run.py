"""A run folder: training that leaves its configuration, figures, checkpoints and pictures, and reading them back.

RUN/config.yaml     the configuration in full
RUN/metrics.jsonl   one JSON object for each epoch
RUN/data.json       the name, the digest and the classes of what it is trained on, and the run's own digest
RUN/summary.json    the final figures, the versions and the device
RUN/checkpoints/    named by the step: the newest ones and the best; what was found damaged is in damaged/
RUN/figures/        pictures
RUN/diverged.txt    why the run has ended, where it diverged
RUN/imported.json   where the run's first weights came from, if they were imported
RUN/code/           copies of users' files that the configuration names, see `vae_jax.runs.own_parts`
RUN/.lock           held by the process that trains
"""

import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from vae_jax import figures, networks, optimizer
from vae_jax.config import (
    EXTENSIBLE,
    PARTS,
    Config,
    adapted,
    changed_options,
    check_used,
    options_of,
    resolve_parts,
    to_yaml,
    value_of,
)
from vae_jax.data import Dataset, resolve, settled
from vae_jax.device.devices import Devices, cores
from vae_jax.errors import PATH, Diverged, Stopped, UserError, argument, cut, in_words, listed, printable
from vae_jax.files import checked
from vae_jax.files.folders import is_folder
from vae_jax.files.held import check_held, make_inside
from vae_jax.files.lock import writing
from vae_jax.files.replace import remove, scratch, write_text
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.model.use import Model, make_model, model_maker
from vae_jax.objectives import FIGURES
from vae_jax.runs import own_parts
from vae_jax.runs.fit import fit
from vae_jax.runs.folder import DATA, PRIOR, Data, absolute_start, check_folder, check_start, read_config, read_data
from vae_jax.training.checks import labels_for
from vae_jax.training.figures import has_stopped
from vae_jax.training.loop import compiling
from vae_jax.training.start import start, start_from
from vae_jax.training.state import Progress, Trained, TrainState, names_of, used
from vae_jax.variables import Variables

if TYPE_CHECKING:
    from vae_jax.checkpoint import Description, Saved

DEVICE = ("device", "devices", "cores", "XLA_FLAGS")  # of `environment`; the others are versions
SUMMARY_SPLITS = ("train", "validation", "test")
ORIGIN, DIVERGED = "imported.json", "diverged.txt"
REASON_LIMIT = 1 << 16  # bytes of why a run diverged
# Of a run, in the order in which it is deleted; its configuration, which makes the folder a run's, is written over.
CONTENTS = ("figures", "latents_*.npz", "summary.json", "metrics.jsonl", "checkpoints", PRIOR, DATA, ORIGIN, DIVERGED)
# What may differ between the processes that train a run together: where the data lie and what is kept.
LOCAL = ("data.manual_dir", "data.cache_dir", "data.path", "output.")
# What may differ when a run is continued: how far it goes, where its data lie and what it keeps.
CHANGEABLE = (
    "train.epochs",
    "train.chunk_steps",
    "train.shard_images",
    "train.patience",
    "train.min_delta",
    "train.skip_nonfinite",  # a run that diverged may go on with it
    *LOCAL,
)


class Origin(NamedTuple):
    """What RUN/imported.json tells of the weights that a run began with.

    Attributes:
        counters: training batches that each BatchNorm had seen, by PyTorch's names.
        file: that they were in.
        sha256: of it.
    """

    counters: dict[str, Annotated[int, "[0, 9007199254740992]"]]
    file: str = ""
    sha256: str = ""


class _Line(NamedTuple):
    """What counts of a line of RUN/metrics.jsonl."""

    epoch: int


def train(
    config: Config,
    data: Dataset,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    devices: Devices | None = None,
    report: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict[str, Any], TrainState], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    trust_code: bool = False,
) -> Trained:
    """Trains into a run folder.

    Args:
        config: of the run.
        data: the images.
        folder: of the run; created.
        resume: continue the run in it, or start one where there is none.
        overwrite: delete the run in it first.
        devices: to train on, together; by default one. Of several processes the first writes the folder, which all see.
        report: called with a line of text now and then.
        on_progress: see `vae_jax.runs.fit.fit`.
        on_epoch: see `vae_jax.runs.fit.fit`.
        should_stop: asked about once a second whether to save and stop.
        trust_code: with `resume`, run copies of users' files in the folder though no training of this user's has put
            them there. What `config` names is run anyway.

    Raises:
        UserError: if the folder is in the way, in use or cannot be written, the images are not of the size and channels
            that are configured, a checkpoint cannot be saved, or anything of `fit`.
        Stopped: once it has stopped because it should.
    """
    from vae_jax.finetune import begun_from

    folder, devices = Path(folder), devices or Devices()
    config = own_parts.absolute(absolute_start(settled(config, data)))
    check_used(config)
    check_shape(config, data)
    check_folder(folder, resume, overwrite)
    if overwrite:
        check_start(config.train.start, folder)
    devices.wait()
    with writing(folder) if devices.writes else nullcontext():
        check_folder(folder, resume, overwrite)  # again, since another process may have been here meanwhile
        earlier = None
        if resume and (folder / "config.yaml").exists():
            config = own_parts.as_kept(config, folder, trust_code, own_parts.names_in(config))
            earlier = standing(config, data, folder, report, trust_code=trust_code)
            for line in own_parts.changes(folder):
                report(f"warning: {line}")
        elif resume:
            report(f"no run in {folder} yet: beginning one")
        config = resolve_parts(config)
        make_recorder = Recorder if devices.writes else Follower
        recorder = make_recorder(config, data, folder, lambda: bool(devices.agree(should_stop(), np.any)), devices)
        _check_alike(config, recorder.digest, earlier, devices)  # all have read by then what the first will write over

        def on_start() -> None:  # whatever does not fit together has been refused by now
            if overwrite and devices.writes:
                delete(folder)
            recorder.open(earlier, report)
            if recorder.should_stop():
                raise Stopped("stopped before the first step")

        def record_epoch(epoch: dict[str, Any], state: TrainState) -> None:
            recorder.epoch(epoch, state)
            if on_epoch:
                on_epoch(epoch, state)
            recorder.stop_after(epoch, state)

        with compiling() as pool:  # orbax takes a third of a second to import, in which the model can be compiled
            pool.submit(import_module, "vae_jax.checkpoint")
        began = time.perf_counter()
        begun = (earlier.state, earlier.history) if earlier else None
        if begun is None and config.train.start is not None:
            begun = begun_from(config, data.image_shape, len(data.train), report, trust_code), []
        try:
            trained = fit(
                config,
                data,
                devices=devices,
                resume=begun,
                on_start=on_start,
                on_progress=on_progress,
                on_chunk=recorder.chunk,
                on_epoch=record_epoch,
            )
        except Diverged as error:
            on = f" or go on from step {recorder.saved_step} with {argument('resume', True)}, train.skip_nonfinite true"
            how = f"{argument('overwrite', True)} or another {argument('folder')}"
            anew = f"begin anew ({how}){on if recorder.saved_step else ''}"
            recorder.diverged(error)
            raise Diverged(f"{error}; {anew}") from error
        if has_stopped(config, trained.history):
            report(stopped_line(config, trained.history))
        recorder.finish(trained, time.perf_counter() - began)
        return trained


def stopped_line(config: Config, history: list[dict[str, Any]]) -> str:
    """What is said of a run that has stopped early."""
    count = config.train.patience
    return f"stopped after epoch {len(history)}: validation loss has not fallen for {count} epoch{'s' * (count != 1)}"


def check_shape(config: Config, data: Dataset) -> None:
    """Refuses images of another shape than the configuration says, by which a run is read again.

    Raises:
        UserError: naming both.
    """
    if not data.spec.is_picture:  # whose shape `settled` has looked at
        return
    size, channels = config.data.image_size, config.data.channels
    if data.image_shape != (size, size, channels):
        height, width, found = data.image_shape
        hint = f"; set data.image_size {height} and data.channels {found}" if height == width else ""
        raise UserError(
            f"data.image_size, data.channels: expected images of {size}x{size}x{channels} to make a run of, as "
            f"configured; found {height}x{width}x{found} in {data.name}{hint}"
        )


def _check_alike(config: Config, digest: str, earlier: "Saved | None", devices: Devices) -> None:
    """Refuses processes that would not train the same run.

    Raises:
        UserError: if they differ, in every process.
    """
    own = {
        option: value
        for option, value in options_of(own_parts.by_content(config)).items()
        if not option.startswith(LOCAL)
    }
    own |= {"training images": digest, "the run folder's last step": int(earlier.state.step) if earlier else 0}
    marks = [hashlib.sha256(repr(value).encode()).digest()[:3] for value in own.values()]  # as much as fits 32 bits
    every = np.atleast_2d(devices.agree(np.array([int.from_bytes(mark) for mark in marks], np.int32), np.asarray))
    if differ := [name for name, column in zip(own, every.T, strict=True) if len(set(column.tolist())) > 1]:
        raise UserError(
            f"{argument('distributed')}: expected every process to have the same options, the same images and the same "
            f"run folder; found some that differ in {listed(differ)}"
        )


def environment(devices: Devices | None = None) -> dict[str, str]:
    """What a run's last bits depend on: versions, device and cores."""
    device = jax.devices()[0]
    many = devices and devices.count > 1
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "device": f"{device.platform} ({device.device_kind})",
        **({"devices": str(devices)} if many else {}),
        "cores": str(cores()),
        "python": platform.python_version(),
        "vae_jax": vae_jax.__version__,
        **{name: version(name) for name in packages},
        **({"XLA_FLAGS": flags} if (flags := os.environ.get("XLA_FLAGS")) else {}),
    }


def _changed(then: dict[str, str], now: dict[str, str]) -> str:
    """Where two environments differ, in words; empty where they do not."""
    if not then:
        return "an older vae_jax, which did not note on what"
    both = {name: (then.get(name, "none"), now.get(name, "none")) for name in {**then, **now}}
    return listed(
        f"{cut(name)} {cut(before)} (now {cut(after)})" for name, (before, after) in both.items() if before != after
    )


def adopt(
    config: Config,
    variables: Variables,
    folder: str | Path,
    origin: dict[str, Any],
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Makes a run folder of weights from elsewhere, to be used or trained on; its optimiser's state is fresh.

    Args:
        config: of the run.
        variables: of its network.
        folder: of the run; created.
        origin: what RUN/imported.json tells of them.
        overwrite: delete the run in the folder first.
        report: called with a line of text now and then.

    Raises:
        UserError: if the folder is in the way or cannot be written.
    """
    from vae_jax import checkpoint

    folder, config = Path(folder), own_parts.absolute(config)
    if config.train.start is not None:
        raise UserError(f"train.start: expected null, since these weights are begun with; found {config.train.start}")
    check_folder(folder, False, overwrite)
    shape = config.data.image_shape
    network, objective = build(config, shape)
    state = start_from(config, objective, variables, 0)
    model = make_model(network, objective, variables)
    names = own_parts.names_in(config)
    sources = own_parts.sources(names)
    with writing(folder):
        check_folder(folder, False, overwrite)
        if sources and (strange := own_parts.strangers(folder)):
            raise UserError(
                f"{strange[0]}: expected nothing but copies of users' files in {folder / own_parts.CODE}, which "
                f"{argument('overwrite', True)} replaces; found a file that is none of them; move it elsewhere"
            )
        # Made in a folder of its own and moved when it is whole: half a run is none, and an old one is not lost for it.
        with scratch(folder / "import") as making:
            (making / "figures").mkdir()
            write_text(making / ORIGIN, json.dumps(origin, indent=2) + "\n")
            if model.sample:
                _draw_samples(making, config, model)
            (making / "checkpoints").mkdir()
            if unsigned := own_parts.keep(sources, names, making):
                report(unsigned)
            copies = own_parts.by_copy(config, making)
            saved = checkpoint.Saved(state, [], 0, options=_plain_options(copies), run=_digest_of_run(copies, making))
            checkpoint.save(making / "checkpoints", saved, read_back=True)
            write_text(making / "config.yaml", to_yaml(config))
            check_held(folder / "config.yaml")
            if overwrite:
                delete(folder)
            for path in sorted(making.iterdir(), key=lambda path: path.name == "config.yaml"):
                os.replace(path, folder / path.name)
    return Trained(config, shape, state, [])


def origin(folder: str | Path) -> Origin | None:
    """What a run folder tells of the weights it began with; None if they were not imported.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return checked.read_json(Path(folder) / ORIGIN, Origin)
    except FileNotFoundError:
        return None


def read_reason(folder: Path) -> str:
    """Why a run diverged that has.

    Raises:
        UserError: if what tells is damaged.
    """
    with checked.named(folder / DIVERGED):
        if not (reason := printable(checked.read_text(folder / DIVERGED, REASON_LIMIT).strip())):
            raise checked.UnfitError("expected why the run diverged; found nothing")
    return reason


def load(
    folder: str | Path,
    checkpoint: str = "latest",
    report: Callable[[str], None] = warnings.warn,
    trust_code: bool = False,
) -> Trained:
    """The model in a run folder.

    Args:
        folder: of the run; nothing is written there.
        checkpoint: "latest" or "best".
        report: is told of each damaged checkpoint, which is passed over, and of a configuration or a user's file that
            has changed since.
        trust_code: run the code that the run's folder or configuration names though no training of this user's has put
            it there.

    Raises:
        UserError: if it is no run folder or has no sound checkpoint, or it names code that is not trusted.
    """
    folder = Path(folder)
    config = read_config(folder)
    used = own_parts.as_kept(config, folder, trust_code)
    config = replace(config, data=resolve(config.data))
    configured = _plain_options(own_parts.by_copy(config, folder))
    config = resolve_parts(replace(used, data=config.data))
    configured = _as_now(configured, config, folder)
    for line in own_parts.changes(folder):
        report(line)
    shape = config.data.image_shape

    def check(found: "Description") -> None:
        _check_own(folder, found)
        then = _as_now({**found.options}, config, folder) if found.options else {}
        if changed := _changed_options(configured, then, configured):
            report(f"warning: {folder}/config.yaml is not what the run was trained with; changed: {changed}")

    saved = _restore(folder, checkpoint, config, shape, report, check)
    if saved is None:
        why = f"it diverged, see {DIVERGED}" if (folder / DIVERGED).is_file() else "has its first epoch finished?"
        raise UserError(f"{folder}: expected a run with checkpoints, found none; {why}")
    noted = read_data(folder)
    return Trained(config, shape, saved.state, saved.history, noted and noted.class_names)


def _restore(
    folder: Path,
    which: str,
    config: Config,
    shape: tuple[int, ...],
    report: Callable[[str], None],
    check: "Callable[[Description], None]",
) -> "Saved | None":
    from vae_jax.checkpoint import restore  # orbax takes a second to import

    if not is_folder(folder / "checkpoints"):
        return None
    return restore(folder / "checkpoints", which, lambda images: start(config, shape, images), report, check)


def use(trained: Trained) -> Model:
    """The trained model ready for use: encode, decode, reconstruct and sample, compiled."""
    network, objective = build(trained.config, trained.image_shape)
    return make_model(network, objective, trained.variables)


def delete(folder: Path) -> None:
    """Deletes a run, and nothing else that lies in its folder."""
    for path in [path for pattern in CONTENTS for path in folder.glob(pattern)]:
        remove(path)
    own_parts.delete(folder)


def standing(
    config: Config,
    data: Dataset,
    folder: Path,
    report: Callable[[str], None],
    digest: str | None = None,
    trust_code: bool = False,
) -> "Saved | None":
    """Where the run in a folder stands, or None if it has no checkpoint yet.

    Args:
        config: it is to go on with.
        data: likewise.
        folder: of the run.
        report: is told of each damaged checkpoint, which is passed over.
        digest: `digest_of` config and data, if it is known already.
        trust_code: see `train`.

    Raises:
        UserError: if the run is not continued as it began.
    """
    config = resolve_parts(own_parts.as_kept(config, folder, trust_code, own_parts.names_in(config)))
    if edited := own_parts.edited(folder):
        raise UserError(f"{edited[0]}; {argument('resume', True)} continues a run as it began")
    now = _plain_options(own_parts.by_copy(config, folder))
    configured = _as_now(_plain_options(own_parts.by_copy(read_config(folder), folder)), config, folder)

    def check(then: dict[str, Any]) -> None:
        """Refuses to continue a run as something else; its configuration tells where an older checkpoint does not."""
        if changed := _changed_options(now, then or configured, configured):
            raise UserError(f"{folder}: {argument('resume', True)} continues a run as it began; changed: {changed}")
        if changed := _changed_options(configured, then, configured):
            report(f"warning: {folder}/config.yaml was changed, and is written anew as the run began: {changed}")

    def check_found(found: "Description") -> None:
        _check_own(folder, found)
        check(_as_now({**found.options}, config, folder) if found.options else {})

    earlier = _restore(folder, "latest", config, data.image_shape, report, check_found)
    if earlier is None:
        check({})
        if epochs := _epochs(folder):
            raise UserError(
                f"{folder}/checkpoints: expected a checkpoint, since metrics.jsonl has {epochs} epochs; found none; "
                f"put one back there, or begin the run anew in another folder"
            )
        return None
    if not earlier.images:
        _, objective = build(config, data.image_shape)
        return earlier._replace(state=start_from(config, objective, earlier.state.variables, len(data.train)))
    if earlier.images != len(data.train):
        raise UserError(
            f"{folder}: the run was trained on {earlier.images} images, found {len(data.train)}; a run continues "
            f"on the same data only"
        )
    if earlier.digest != (digest or digest_of(config, data)):
        others = "images, labels or classes" if config.model.classes else "images"
        raise UserError(f"{folder}: the run was trained on other {others}; a run continues on the same data only")
    if data.validation is not None and any("validation_loss" not in epoch for epoch in earlier.history):
        raise UserError(
            f"{folder}: the run was trained without validation images, found {len(data.validation):,}; a run continues "
            f"on the same data only"
        )
    begun = -(-int(earlier.state.step) // -(-earlier.images // config.train.batch_size))
    if begun > config.train.epochs:
        raise UserError(f"train.epochs: expected at least the {begun} epochs the run has; found {config.train.epochs}")
    return earlier


def _epochs(folder: Path) -> int:
    """How many epochs a run's metrics tell of; they are written after an epoch's checkpoint.

    Raises:
        UserError: if they are damaged: whether there has been an epoch is not known then.
    """
    try:
        return sum(1 for _ in checked.read_lines(folder / "metrics.jsonl", _Line))
    except FileNotFoundError:
        return 0


def digest_of(config: Config, data: Dataset) -> str:
    """Tells one set of training images from another, with their labels and classes where the model is told them."""
    digest = hashlib.sha256(np.ascontiguousarray(data.train.images).data)
    if (labels := labels_for(config, data.train)) is not None:
        digest.update(np.ascontiguousarray(labels).data)
        digest.update(json.dumps(data.class_names).encode())
    return digest.hexdigest()


def digest_of_all(config: Config, data: Dataset, training: str | None = None) -> str:
    """The same for all splits' images; `training` is `digest_of` config and data, if it is known already."""
    digest = hashlib.sha256((training or digest_of(config, data)).encode())
    for split in data.splits[1:]:
        for part in (split.images, labels_for(config, split)):
            if part is not None:
                digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _plain_options(config: Config) -> dict[str, Any]:
    """Every option's value by its dotted name, as JSON gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options_of(config).items()}


def _digest_of_run(config: Config, folder: Path) -> str:
    """Tells one run from another by its seed and all other options that stay as they are, and by its users' files."""
    fixed = {
        option: list(value) if isinstance(value, tuple) else value
        for option, value in changed_options(config).items()
        if not option.startswith(CHANGEABLE)
    }
    code = {known.copy: known.sha256 for known in own_parts.read_index(folder).values() if known.copy}
    return hashlib.sha256(json.dumps([fixed, code], sort_keys=True).encode()).hexdigest()


def _check_own(folder: Path, found: "Description") -> None:
    """Refuses a checkpoint that another run has written into this one's folder.

    Args:
        folder: of the run.
        found: what the checkpoint tells of itself.

    Raises:
        UserError: naming both.
    """
    noted = read_data(folder)
    if noted and noted.run and found.run and found.run != noted.run:
        seed = read_config(folder).seed
        raise UserError(
            f"{folder}: expected a checkpoint of this run, {noted.run[:12]} with seed {seed}; found one that another "
            f"run, {found.run[:12]} with seed {found.options.get('seed')!s:.20}, has written into its folder; move it "
            f"out of {folder / 'checkpoints'}"
        )


def _as_now(options: dict[str, Any], config: Config, folder: Path) -> dict[str, Any]:
    """Options as a checkpoint tells them, by their names of now and of the chosen parts only.

    Args:
        options: as an older version may have named them, or left them out.
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
    return _plain_options(own_parts.by_copy(then, folder))


def _changed_options(now: dict[str, Any], then: dict[str, Any], configured: dict[str, Any]) -> str:
    """The options that must stay as they were in a run and did not, in words.

    Args:
        now: what they are to be.
        then: what the run was trained with, by `_as_now`. Empty where that is not known.
        configured: what its config.yaml says.
    """
    if not then:
        return ""
    ending = now["train.schedule"] in optimizer.ENDING
    changeable = tuple(option for option in CHANGEABLE if option != "train.epochs" or not ending)
    others = {section for section, name in zip(PARTS, EXTENSIBLE, strict=True) if now[name] != then[name]}
    return listed(
        f"{option} (the run has {_shown(option, then)}, found {_shown(option, now)}"
        f"{' in its config.yaml' * (configured.get(option) == now.get(option))})"
        for option in now | then
        if now.get(option) != then.get(option)
        and not option.startswith(changeable)
        and (option in EXTENSIBLE or option.partition(".")[0] not in others)
    )


def _shown(option: str, options: dict[str, Any]) -> str:
    return cut(str(options[option]), PATH) if option in options else "its default"


class Recorder:
    """Keeps what a run's callbacks bring."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        folder: Path,
        should_stop: Callable[[], bool] = lambda: False,
        devices: Devices | None = None,
        like: "Recorder | None" = None,
    ):
        """Begins.

        Args:
            config: of the run.
            data: the images.
            folder: of the run.
            should_stop: asked about once a second whether to save and stop.
            devices: that it trains on.
            like: the recorder of a run of the same model on the same data, whose compiled functions serve this one too.
        """
        self.config, self.data, self.folder, self.should_stop = config, data, folder, should_stop
        self.devices = devices or Devices()
        self.made_with, self.saved_step = environment(devices), 0
        self.history: list[dict[str, Any]] = []
        self.saved_at = time.monotonic()
        self.drawing: list[Future] | None = None  # programs that the pictures need, once they are being compiled
        if like:
            self.objective, self.models, self.digest, self.noted = like.objective, like.models, like.digest, like.noted
            self.sources = like.sources
        else:
            network, self.objective = build(config, data.image_shape)
            self.sources = own_parts.sources(own_parts.names_in(config))  # as they have been loaded by now
            self.models, self.digest = model_maker(network, self.objective), digest_of(config, data)
            self.noted = Data(data.name, digest_of_all(config, data, self.digest), data.class_names)
        self.best_by = "test_loss" if data.validation is None else "validation_loss"

    def open(self, earlier: "Saved | None", report: Callable[[str], None]) -> None:
        """Writes what a run begins with, and tells what it goes on from.

        Raises:
            UserError: if the folder cannot be written.
        """
        from vae_jax.checkpoint import Keeper  # orbax takes a second to import

        folder = self.folder
        newest = int(earlier.state.step) if earlier else 0
        try:
            write_text(folder / "config.yaml", to_yaml(own_parts.named(self.config, folder)))
            if unsigned := own_parts.keep(self.sources, own_parts.names_in(self.config), folder):
                report(unsigned)
            self.options = _plain_options(own_parts.by_copy(self.config, folder))
            run = (earlier and earlier.run) or _digest_of_run(own_parts.by_copy(self.config, folder), folder)
            self.noted = self.noted._replace(run=run)
            write_text(folder / DATA, json.dumps(self.noted._asdict(), indent=2) + "\n")
            make_inside(folder / "figures")
            self.checkpoints = Keeper(folder / "checkpoints", self.config.output.keep_checkpoints, report, newest)
            for ended in ("summary.json", DIVERGED):  # of a run that is over
                remove(folder / ended)
        except OSError as error:
            raise UserError(f"{folder}: expected a folder that can be written; {in_words(error)}") from error
        if not self.data.spec.is_picture:
            report(f"no pictures but of the loss: examples of {self.data.spec} are none")
        if earlier is None:
            return
        self.saved_step = newest
        self.write_metrics(earlier.history)
        if not earlier.images:
            report(f"continuing {folder} from imported weights, with a fresh optimiser state")
            return
        report(f"continuing {folder} after epoch {len(earlier.history)}, step {int(earlier.state.step)}")
        if changed := _changed(earlier.made_with, self.made_with):
            report(
                f"warning: {folder} was trained with {changed}: it goes on, but may not end bit for bit where an "
                f"undisturbed run would"
            )

    def chunk(self, state: TrainState, history: list[dict[str, Any]]) -> None:
        stop = self.should_stop()
        if stop or time.monotonic() - self.saved_at > 60 * self.config.output.checkpoint_minutes:
            self.save(state, history)
        if stop:
            self.devices.wait()  # until the first process has saved, or the others would be lost to it
            raise Stopped(f"stopped in epoch {len(history) + 1} and saved after step {int(state.step)}")
        if self.drawing is None:
            self.prepare(state)

    def prepare(self, state: TrainState) -> None:
        """Begins to load and to compile what the pictures need, beside the training."""
        with compiling() as pool:
            pool.submit(figures.load)
            if not self.data.spec.is_picture:
                self.drawing = []
                return
            count = min(self.config.output.figure_images, len(self.data.test))
            lowered = self.models.lower(state.variables, count)
            self.drawing = [pool.submit(program.compile) for program in lowered]

    def epoch(self, epoch: dict[str, Any], state: TrainState) -> None:
        number, output = epoch["epoch"], self.config.output
        # Before the checkpoint: a run that goes on from there does not come by here again.
        last = number == self.config.train.epochs or has_stopped(self.config, [*self.history, epoch])
        if self.data.spec.is_picture and (number % output.figure_every == 0 or last):
            for program in self.drawing or []:
                program.result()
            shown = self.data.test.spread(output.figure_images)
            use = self.models.make(used(self.config, state))
            below = np.asarray(use.reconstruct(shown.images, labels_for(self.config, shown)))
            path = self.folder / "figures" / f"reconstructions_epoch_{number:04d}.png"
            figures.pairs(path, shown.images / 255, below)
        self.history.append(epoch)
        self.save(state, self.history, epoch[self.best_by])
        self.write_metrics(self.history)

    def stop_after(self, epoch: dict[str, Any], state: TrainState) -> None:
        if epoch["epoch"] < self.config.train.epochs and self.should_stop():
            raise Stopped(f"stopped and saved after epoch {epoch['epoch']}, step {int(state.step)}")

    def save(self, state: TrainState, history: list[dict[str, Any]], loss: float | None = None) -> None:
        from vae_jax.checkpoint import Saved

        images, run = len(self.data.train), self.noted.run
        self.checkpoints.save(Saved(state, history, images, self.digest, self.made_with, self.options, run), loss)
        self.saved_at, self.saved_step = time.monotonic(), int(state.step)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        self.history = list(history)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in history))

    def diverged(self, error: Diverged) -> None:
        with suppress(OSError, UserError):  # a full disk, say; the error itself is told
            write_text(self.folder / DIVERGED, f"{error}\n")

    def finish(self, trained: Trained, seconds: float) -> None:
        config, history = trained.config, trained.history
        use = self.models.make(trained.variables)
        folder = self.folder / "figures"
        figures.loss_curve(folder / "loss.png", history, self.objective.unit_of)
        pictures = self.data.spec.is_picture
        if pictures and use.sample:
            _draw_samples(self.folder, config, use)
        if pictures and use.plane and not config.model.classes:
            draw_latent_plane(folder / "latent_plane.png", use, self.data)
        write_text(self.folder / "summary.json", json.dumps(self._summary(trained, seconds), indent=2) + "\n")

    def _summary(self, trained: Trained, seconds: float) -> dict[str, Any]:
        history = trained.history
        # Ranked as the checkpoints are: what is not finite comes last, and of equals the newest is best.
        best = min(reversed(history), key=lambda epoch: (not math.isfinite(epoch[self.best_by]), epoch[self.best_by]))
        timed = history[1:] or history  # the first epoch's first calls are still warming up
        # A resumed epoch counts only what it trained itself.
        trained_images = sum(epoch["images_per_second"] * epoch["train_seconds"] for epoch in timed)
        last = {name: value for name, value in history[-1].items() if name.split("_")[0] in SUMMARY_SPLITS}
        last.pop("train_seconds")
        shown = (name.removeprefix("test_") for name in last if name.startswith("test_"))
        named = dict.fromkeys((*names_of(self.objective), *(name for name in shown if name in self.objective.units)))
        units = {name: self.objective.unit_of(name) for name in named if name not in FIGURES}
        return {
            **last,
            "unit": self.objective.unit,
            **({"units": units} if units else {}),
            "epochs": len(history),
            "best_epoch": best["epoch"],
            "best_loss": best[self.best_by],
            "best_by": self.best_by,
            **({"stopped_early": True} if has_stopped(trained.config, history) else {}),
            "images_per_second": trained_images / sum(epoch["train_seconds"] for epoch in timed),
            "chunk_steps": history[-1]["chunk_steps"],
            "seconds": seconds,
            "parameters": networks.count_parameters(trained.state.variables.params),
            "seed": trained.config.seed,
            "data": self.data.name,
            **({"class_names": list(self.data.class_names)} if self.data.class_names else {}),
            "train_images": len(self.data.train),
            "test_images": len(self.data.test),
            **({"skipped_images": list(self.data.skipped)} if self.data.skipped else {}),
            **{name: self.made_with[name] for name in ("device", "devices") if name in self.made_with},
            "cores": int(self.made_with["cores"]),
            "versions": {name: each for name, each in self.made_with.items() if name not in DEVICE},
        }


class Follower(Recorder):
    """Of several processes all but the first: they stop together with it, and write nothing."""

    def open(self, earlier: "Saved | None", report: Callable[[str], None]) -> None:
        self.saved_step = int(earlier.state.step) if earlier else 0

    def prepare(self, state: TrainState) -> None:
        pass

    def epoch(self, epoch: dict[str, Any], state: TrainState) -> None:
        pass

    def save(self, state: TrainState, history: list[dict[str, Any]], loss: float | None = None) -> None:
        pass

    def diverged(self, error: Diverged) -> None:
        pass

    def finish(self, trained: Trained, seconds: float) -> None:
        pass


def _draw_samples(folder: Path, config: Config, model: Model) -> None:
    """The picture of samples from the prior in a run folder."""
    assert model.sample is not None
    count = config.output.figure_images
    labels = jnp.arange(count) % config.model.classes if config.model.classes else None
    pictures = np.asarray(model.sample(make_keys(config.seed).samples, count, labels))
    figures.grid(folder / "figures" / "samples.png", pictures, columns=max(1, int(count**0.5)))


def draw_latent_plane(path: Path, use: Model, data: Dataset, side: int = 20) -> figures.Picture:
    """The picture of a two-dimensional latent space: where test images lie and what each point decodes to."""
    means = np.asarray(use.encode(data.test.images)["mu"])
    # Most of the prior's mass, and the images wherever they lie; the test images' panel shows the same square.
    extent = float(np.ceil(max(3.0, np.abs(means).max(initial=0.0))))
    line = np.linspace(-extent, extent, side)
    points = np.stack(np.meshgrid(line, line[::-1]), -1).reshape(-1, 2)  # the first row is the plane's top
    decoded = np.asarray(use.decode(points))
    return figures.latent_plane(path, means, data.test.labels, decoded, extent, data.class_names)
