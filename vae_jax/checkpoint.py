"""Checkpoints: a thin adapter to orbax that saves, ranks and restores a training state with its history."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from vae_jax.errors import UserError
from vae_jax.train import TrainState


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the training state.
        history: figures of the epochs finished before it.
        images: training images of the run.
    """

    state: TrainState
    history: list[dict[str, Any]]
    images: int


def _rank(metrics: dict[str, float | None] | None) -> float:
    """Higher is better; what has no finite loss comes last."""
    loss = (metrics or {}).get("loss")
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


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
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=options,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def save(self, saved: Saved, loss: float | None = None) -> None:
        """Writes a checkpoint; `loss` ranks it, None (inside an epoch) leaves it unranked."""
        self._manager.save(
            int(saved.state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(saved.state),
                run=ocp.args.JsonSave({"history": saved.history, "images": saved.images}),
            ),
            metrics={"loss": loss},
            force=True,
        )

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None without checkpoints."""
        return self._manager.latest_step()

    def restore(self, which: str, template: Callable[[int], TrainState]) -> Saved:
        """Reads a checkpoint.

        Args:
            which: "latest" or "best".
            template: training images -> a state of the same structure, shapes and types; only its shapes are used.

        Raises:
            UserError: if there is none, or it does not have the template's structure.
        """
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"{self._folder}: expected a checkpoint, found none")
        step = (
            max(steps) if which == "latest" else max(steps, key=lambda step: (_rank(self._manager.metrics(step)), step))
        )
        try:
            run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
                jax.eval_shape(lambda: template(run["images"])),
            )
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))
            return Saved(state["state"], run["history"], run["images"])
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{self._folder / str(step)}: expected a checkpoint of the model in config.yaml; found another's, or a "
                f"damaged one ({str(error).splitlines()[0]})"
            ) from error

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()
