"""Places arrays on one device, or on all devices of all processes, which then train one model together.

Batches are split over the devices; everything else is the same on all. XLA adds up the devices' sums wherever the
program sums over images (the gradient, BatchNorm's mean and variance), so the arithmetic is that of one device.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from vae_jax.errors import UserError, argument, counted

AXIS = "images"


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def described(device: Any) -> str:
    """A device in words: "cpu, 2 cores", "gpu (NVIDIA H100)"."""
    if device.platform == "cpu":
        return f"cpu, {counted(cores(), 'core')}"
    return f"{device.platform} ({device.device_kind})"


class Devices:
    """The devices that a model trains on.

    Attributes:
        count: number of devices, in all processes.
        processes: number of processes.
    """

    def __init__(self, count: int = 1):
        """Takes the first `count` devices; with several processes it must be all.

        Raises:
            UserError: if there are fewer.
        """
        devices = jax.devices()
        if not 1 <= count <= len(devices):
            raise UserError(f"{argument('devices')}: expected 1 to {len(devices)}, as many as there are; found {count}")
        if jax.process_count() > 1 and count < len(devices):
            every = f"all {len(devices)} devices of {jax.process_count()} processes"
            raise UserError(f"{argument('devices')}: expected {every}; found {count}")
        self.count, self.processes = count, jax.process_count()
        mesh = Mesh(np.array(devices[:count]), (AXIS,)) if count > 1 else None
        self._split = mesh and NamedSharding(mesh, PartitionSpec(AXIS))
        self._whole = mesh and NamedSharding(mesh, PartitionSpec())
        # For jax.jit: results are the same on every device.
        self.outputs: dict[str, Any] = {"out_shardings": self._whole} if mesh else {}

    def __str__(self) -> str:
        return f"{self.count}" + (f" in {self.processes} processes" if self.processes > 1 else "")

    def split(self, batch: Array) -> Array:
        """Inside a compiled function: the batch spread over the devices."""
        return batch if self._split is None else jax.lax.with_sharding_constraint(batch, self._split)

    def images(self, images: np.ndarray, chosen: Int[np.ndarray, " places"] | None = None) -> Array:
        """The images, or the chosen ones: every device holds a part, and a process reads only its own parts.

        The last image is repeated until they can be split evenly.
        """
        if self._split is None:
            return jax.device_put(images if chosen is None else images[chosen])
        count = len(images) if chosen is None else len(chosen)

        def read(index: Any) -> np.ndarray:
            rows = np.minimum(np.arange(index[0].start or 0, index[0].stop or padded), count - 1)
            return np.asarray(images[rows if chosen is None else chosen[rows]])

        padded = self._padded(count)
        return jax.make_array_from_callback((padded, *images.shape[1:]), self._split, read)

    def _padded(self, count: int) -> int:
        return -(-count // self.count) * self.count

    def shapes(
        self, count: int, image: tuple[int, ...], dtype: Any
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """The shapes of what `images` gives for `count` images, and `whole` for a whole number for each."""
        images = jax.ShapeDtypeStruct((self._padded(count), *image), dtype, sharding=self._split)
        return images, jax.ShapeDtypeStruct((count,), jnp.int32, sharding=self._whole)

    def whole(self, tree: PyTree) -> PyTree:
        """Arrays that are the same in all processes, as arrays that all devices have."""
        return tree if self._whole is None else jax.tree.map(self._replicate, tree)

    def _replicate(self, leaf: Any) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._replicate(jax.random.key_data(leaf)))
        value, sharding = np.asarray(leaf), self._whole
        assert sharding is not None
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    def local(self, tree: PyTree) -> PyTree:
        """Arrays that all devices have, as arrays of this process on one device."""
        return tree if self._whole is None else jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)

    def agree(self, value: Any, reduce: Callable[[np.ndarray], Any] = lambda values: values[0]) -> Any:
        """One value from those of all processes: by default the first process's."""
        return (
            value if self.processes == 1 else reduce(np.asarray(multihost_utils.process_allgather(np.asarray(value))))
        )

    def wait(self) -> None:
        """Waits until every process is here."""
        if self.processes > 1:
            multihost_utils.sync_global_devices("wait")

    @property
    def writes(self) -> bool:
        """Whether this process writes files: only the first one does."""
        return jax.process_index() == 0
