"""Checkpoints: a thin adapter to orbax that saves, ranks and restores a training state with its history."""

import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from vae_jax.errors import UserError
from vae_jax.train import TrainState

CHECKSUMS = "sha256.json"  # in a checkpoint's folder; orbax restores a flipped byte without a word


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the training state.
        history: figures of the epochs finished before it.
        images: training images of the run; 0 for weights that have seen none of a run's yet.
        digest: of these images.
    """

    state: TrainState
    history: list[dict[str, Any]]
    images: int
    digest: str = ""


def _rank(metrics: dict[str, float | None] | None) -> float:
    """Higher is better; what has no finite loss comes last."""
    loss = (metrics or {}).get("loss")
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


def _checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _check(folder: Path) -> None:
    """Refuses a checkpoint whose files are not as they were saved.

    Raises:
        UserError: naming the first such file.
    """
    path = folder / CHECKSUMS
    try:
        saved, found = json.loads(path.read_bytes()), _checksums(folder)
        changed = [name for name in sorted({*saved, *found}) if saved.get(name) != found.get(name)]
    except (FileNotFoundError, NotADirectoryError):  # a kill may come between the checkpoint and its checksums
        return
    except (ValueError, AttributeError):
        changed = [CHECKSUMS]
    if changed:
        raise UserError(
            f"{folder / changed[0]}: damaged, the file is not as it was saved; delete {folder} to use the checkpoint "
            f"before it"
        )


def _shapes(state: TrainState) -> dict[str, str]:
    """Every array's type and shape, by its name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _check_shapes(saved: dict[str, str], expected: dict[str, str], folder: Path) -> None:
    """Refuses another model's checkpoint.

    Raises:
        UserError: naming the first array that differs.
    """
    for name in [*expected, *saved]:
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"{folder}: expected a checkpoint of the model in config.yaml, with {name} {expected.get(name)}; "
                f"found {saved.get(name)}"
            )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off until the block ends: orbax, interrupted, leaves half a checkpoint and threads that complain."""
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C goes to the main thread only
        yield
        return
    pressed = False

    def remember(*_: Any) -> None:
        nonlocal pressed
        pressed = True

    handler = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


class Checkpoints:
    """The checkpoints in one folder, named by the step: the newest few, and the one with the lowest loss."""

    def __init__(self, folder: Path, keep: int = 1):
        """Opens, and creates if need be, a folder that keeps the newest `keep` checkpoints besides the best."""
        options = ocp.CheckpointManagerOptions(
            # orbax's own `best_fn` with `max_to_keep` can delete the newest step; two policies side by side do not.
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(n=keep), policies.BestN(get_metric_fn=_rank, n=1)]
            ),
            best_fn=_rank,  # without it orbax does not write the metrics, and the next process knows no best
            # An asynchronous save reports its failure only at the next call, and there is little to wait for.
            enable_async_checkpointing=False,
        )
        self._folder = folder
        try:
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                options=options,
                item_handlers={"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
            )
            self._manager.all_steps()
        except ValueError as error:  # it reads every checkpoint's metrics
            for path in sorted(folder.iterdir()):
                _check(path)
            raise UserError(f"{folder}: expected whole checkpoints; {error}") from error

    def save(self, saved: Saved, loss: float | None = None) -> None:
        """Writes a checkpoint; `loss` ranks it, None (inside an epoch) leaves it unranked."""
        with _uninterrupted():
            self._manager.save(
                int(saved.state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(saved.state),
                    run=ocp.args.JsonSave(
                        {
                            "history": saved.history,
                            "images": saved.images,
                            "digest": saved.digest,
                            "shapes": _shapes(saved.state),
                        }
                    ),
                ),
                metrics={"loss": loss},
                force=True,
            )
            folder = self._folder / str(int(saved.state.step))
            (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder)), encoding="utf-8")

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None without checkpoints."""
        return self._manager.latest_step()

    def restore(self, which: str, template: Callable[[int], TrainState]) -> Saved:
        """Reads a checkpoint.

        Args:
            which: "latest" or "best".
            template: training images -> a state of the same structure, shapes and types; only its shapes are used.

        Raises:
            UserError: if there is none, it is damaged, or it does not have the template's structure.
        """
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"{self._folder}: expected a checkpoint, found none")
        step = (
            max(steps) if which == "latest" else max(steps, key=lambda step: (_rank(self._manager.metrics(step)), step))
        )
        folder = self._folder / str(step)
        _check(folder)
        try:
            run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            expected = jax.eval_shape(lambda: template(run["images"]))
            _check_shapes(run["shapes"], _shapes(expected), folder)
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), expected)
            restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))
            # Through numpy, since orbax binds arrays to a device, for which another program would be compiled than for
            # a state that was never saved.
            state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), restored["state"])
            return Saved(state, run["history"], run["images"], run["digest"])
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder}: expected a whole checkpoint; {reason}") from error

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()
