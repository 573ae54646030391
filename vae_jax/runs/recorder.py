"""Keeps a run's state, figures and pictures in its folder."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_jax import networks
from vae_jax.config import (
    Config,
    to_yaml,
)
from vae_jax.data import Dataset
from vae_jax.device.devices import Devices
from vae_jax.errors import Diverged, Stopped, UserError, in_words
from vae_jax.files.held import make_inside
from vae_jax.files.replace import remove, write_text
from vae_jax.model.build import build
from vae_jax.model.model import model_maker
from vae_jax.objectives import FIGURES
from vae_jax.pictures.plots import load, loss_curve
from vae_jax.pictures.sheet import pairs
from vae_jax.runs import own_parts
from vae_jax.runs.folder import DATA, LOGS, Data
from vae_jax.training.checks import labels_for
from vae_jax.training.figures import has_stopped
from vae_jax.training.loop import compiling
from vae_jax.training.state import Trained, TrainState, evaluated_variables, names_of

if TYPE_CHECKING:
    from vae_jax.loggers.base import Start
    from vae_jax.loggers.several import Loggers
    from vae_jax.runs.checkpoint import Saved
from vae_jax.runs.final_pictures import draw_latent_plane, draw_samples
from vae_jax.runs.folder import DIVERGED
from vae_jax.runs.identity import (
    DEVICE,
    changed_environment,
    digest_of,
    digest_of_all,
    digest_of_run,
    environment,
    plain_options,
)

SUMMARY_SPLITS = ("train", "validation", "test")
RECONSTRUCTIONS = "reconstructions_epoch_{}.png"


class Recorder:
    """Writes a run's folder; its methods are the callbacks of training."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        folder: Path,
        should_stop: Callable[[], bool] = lambda: False,
        devices: Devices | None = None,
        like: "Recorder | None" = None,
        log: "Mapping[str, Start] | None" = None,
        sweep: Path | None = None,
    ):
        """Prepares the recorder; writes nothing.

        Args:
            config: of the run.
            data: the images.
            folder: of the run.
            should_stop: called about once a second; whether to save and stop.
            devices: that it trains on.
            like: the recorder of a run of the same model on the same data; its compiled functions are shared.
            log: loggers by name, see `vae_jax.loggers.several.chosen`.
            sweep: the folder of the sweep that the run is a member of, if it is.
        """
        self.config, self.data, self.folder, self.should_stop = config, data, folder, should_stop
        self.devices = devices or Devices()
        self.made_with, self.saved_step = environment(devices), 0
        self.starts: Mapping[str, Start] = log or {}
        self.sweep = sweep.absolute() if sweep else None
        self.loggers: Loggers | None = None
        self.history: list[dict[str, Any]] = []
        self.saved_at = time.monotonic()
        self.drawing: list[Future] | None = None  # programs for the pictures, once they are being compiled
        if like:
            self.objective, self.models, self.digest, self.noted = like.objective, like.models, like.digest, like.noted
            self.sources = like.sources
        else:
            composition, self.objective = build(config, data.image_shape)
            self.sources = own_parts.sources(own_parts.names_in(config))  # as they are loaded now
            self.models, self.digest = model_maker(composition, self.objective), digest_of(config, data)
            self.noted = Data(data.name, digest_of_all(config, data, self.digest), data.class_names)
        self.best_by = "test_loss" if data.validation is None else "validation_loss"

    def open(self, earlier: "Saved | None", report: Callable[[str], None]) -> None:
        """Writes the files that a run starts with, reports the checkpoint that it goes on from, and begins its logs.

        Raises:
            UserError: if the folder cannot be written.
        """
        self._open(earlier, report)
        if (self.folder / LOGS).is_dir() and not (self.folder / LOGS).is_symlink():
            from vae_jax.loggers.several import left_out

            if line := left_out(self.folder / LOGS, list(self.starts)):
                report(line)
        if self.starts:
            self._begin_logs(report)

    def _begin_logs(self, report: Callable[[str], None]) -> None:
        from vae_jax.loggers.base import LoggedRun
        from vae_jax.loggers.several import Loggers

        folder = self.folder.absolute()
        try:
            place = make_inside(folder / LOGS)
            group, shared = (self.sweep.name, self.sweep / LOGS) if self.sweep else ("", place)
            run = LoggedRun(
                place, folder.name, "", self.options, self._unit_of, len(self.history), report, group, shared
            )
            self.loggers = Loggers(self.starts, run, self.history, self._pictures_of)
        except (OSError, UserError) as error:
            why = f"{folder / LOGS}: {in_words(error)}" if isinstance(error, OSError) else error
            report(f"warning: {why}; the run goes on without its logs")

    def _unit_of(self, name: str) -> str:
        """The unit of a figure of an epoch, in words; empty if it has none."""
        if name == "images_per_second":
            return f"{self.data.spec.noun}s per second"
        if name.endswith("_seconds"):
            return "seconds"
        if name.startswith("article_"):
            return f"{self.objective.unit.removesuffix(' per image')} per batch"
        split, _, figure = name.partition("_")
        return self.objective.unit_of(figure) if split in SUMMARY_SPLITS else ""

    def _pictures_of(self, epoch: int) -> list[tuple[str, Path]]:
        path = self.folder / "figures" / RECONSTRUCTIONS.format(f"{epoch:04d}")
        return [("reconstructions", path)] if path.is_file() else []

    @contextmanager
    def closing_logs(self) -> Iterator[None]:
        """A context that closes the logs where a run stops."""
        try:
            yield
        except Exception:
            self.end_logs()
            raise

    def end_logs(self, summary: dict[str, Any] | None = None) -> None:
        """Closes the logs, if there are any: with a summary those of a run that has ended."""
        if self.loggers:
            paths = sorted((self.folder / "figures").glob("*.png")) if summary else []
            pictures = [(path.stem, path) for path in paths if not path.match(RECONSTRUCTIONS.format("*"))]
            self.loggers.end(summary, pictures)

    def _open(self, earlier: "Saved | None", report: Callable[[str], None]) -> None:
        from vae_jax.runs.checkpoint import Keeper  # orbax takes a second to import

        folder = self.folder
        newest = int(earlier.state.step) if earlier else 0
        try:
            write_text(folder / "config.yaml", to_yaml(own_parts.named(self.config, folder)))
            if unsigned := own_parts.keep(self.sources, own_parts.names_in(self.config), folder):
                report(unsigned)
            self.options = plain_options(own_parts.by_copy(self.config, folder))
            run = (earlier and earlier.run) or digest_of_run(own_parts.by_copy(self.config, folder), folder)
            self.noted = self.noted._replace(run=run)
            write_text(folder / DATA, json.dumps(self.noted._asdict(), indent=2) + "\n")
            make_inside(folder / "figures")
            self.checkpoints = Keeper(folder / "checkpoints", self.config.output.keep_checkpoints, report, newest)
            for ended in ("summary.json", DIVERGED):  # these mark a run that is over
                remove(folder / ended)
        except OSError as error:
            raise UserError(f"{folder}: expected a folder that can be written; {in_words(error)}") from error
        if not self.data.spec.is_picture:
            report(f"examples of {self.data.spec} are no pictures: only the loss is drawn")
        if earlier is None:
            return
        self.saved_step = newest
        self.write_metrics(earlier.history)
        if not earlier.images:
            report(f"continuing {folder} from imported weights, with a fresh optimiser state")
            return
        report(f"continuing {folder} after epoch {len(earlier.history)}, step {int(earlier.state.step)}")
        if changed := changed_environment(earlier.made_with, self.made_with):
            report(
                f"warning: {folder} was trained with {changed}: it goes on, but may not end bit for bit where an "
                f"undisturbed run would"
            )

    def chunk(self, state: TrainState, history: list[dict[str, Any]]) -> None:
        stop = self.should_stop()
        if stop or time.monotonic() - self.saved_at > 60 * self.config.output.checkpoint_minutes:
            self.save(state, history)
        if stop:
            self.devices.wait()  # until the first process has saved, which the other processes must outlive
            raise Stopped(f"stopped in epoch {len(history) + 1} and saved after step {int(state.step)}")
        if self.drawing is None:
            self.prepare(state)

    def prepare(self, state: TrainState) -> None:
        """Begins to load and to compile the programs for the pictures, beside the training."""
        with compiling() as pool:
            pool.submit(load)
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
            use = self.models.make(evaluated_variables(self.config, state))
            below = np.asarray(use.reconstruct(shown.images, labels_for(self.config, shown)))
            path = self.folder / "figures" / RECONSTRUCTIONS.format(f"{number:04d}")
            pairs(path, shown.images / 255, below, names=self.data.names_of(shown.labels))
        self.history.append(epoch)
        self.save(state, self.history, epoch[self.best_by])
        self.write_metrics(self.history)
        if self.loggers:  # last: what they lack when the run dies here, they are given when it goes on
            self.loggers.epoch(epoch)

    def stop_after(self, epoch: dict[str, Any], state: TrainState) -> None:
        if epoch["epoch"] < self.config.train.epochs and self.should_stop():
            raise Stopped(f"stopped and saved after epoch {epoch['epoch']}, step {int(state.step)}")

    def save(self, state: TrainState, history: list[dict[str, Any]], loss: float | None = None) -> None:
        from vae_jax.runs.checkpoint import Saved

        images, run = len(self.data.train), self.noted.run
        self.checkpoints.save(Saved(state, history, images, self.digest, self.made_with, self.options, run), loss)
        self.saved_at, self.saved_step = time.monotonic(), int(state.step)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        self.history = list(history)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in history))

    def diverged(self, error: Diverged) -> None:
        with suppress(OSError, UserError):  # a full disk, say; the error is reported anyway
            write_text(self.folder / DIVERGED, f"{error}\n")

    def finish(self, trained: Trained, seconds: float) -> None:
        config, history = trained.config, trained.history
        use = self.models.make(trained.variables)
        folder = self.folder / "figures"
        loss_curve(folder / "loss.png", history, self.objective.unit_of)
        pictures = self.data.spec.is_picture
        if pictures and use.sample:
            draw_samples(self.folder, config, use)
        if pictures and use.plane and not config.model.classes:
            draw_latent_plane(folder / "latent_plane.png", use, self.data)
        summary = self._summary(trained, seconds)
        write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        self.end_logs(summary)

    def _summary(self, trained: Trained, seconds: float) -> dict[str, Any]:
        history = trained.history
        # Ranked as checkpoints are: a loss that is not finite comes last, and of equal ones the newest is best.
        best = min(reversed(history), key=lambda epoch: (not math.isfinite(epoch[self.best_by]), epoch[self.best_by]))
        timed = history[1:] or history  # the first epoch includes warming up
        # A resumed epoch counts only the images after resuming.
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
            "versions": {name: text for name, text in self.made_with.items() if name not in DEVICE},
        }


class Follower(Recorder):
    """The recorder of all processes but the first: they stop together with it, and write nothing."""

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
