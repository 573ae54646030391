"""Time and memory as the number of images, their size and the batch grow, and what streaming costs.

    .venv/bin/python benchmarks/growth.py [--images 16384] [--groups images size batch streamed] [--json]

Every row trains the article's network for six epochs on random images, in a process of its own; the time is that of
the fastest but the first. A row's "linear" is the time that its group's first row would lead to expect, over
the time it took: 1.0 is linear, below is worse.
"""

import argparse
import json
import multiprocessing
import resource
import sys
from dataclasses import replace
from typing import Any, NamedTuple

EPOCHS = 6
GROUPS = ["images", "size", "batch", "streamed"]


class Case(NamedTuple):
    """What is trained.

    Attributes:
        group: the rows it is compared with.
        images: how many.
        size: their side.
        batch: images in a batch.
        shard: images on the device at a time; 0 for all.
    """

    group: str
    images: int
    size: int = 32
    batch: int = 64
    shard: int = 0

    @property
    def pixels(self) -> int:
        """Of an epoch, which the operations of convolutions grow with."""
        return self.images * self.size**2


def cases(images: int) -> list[Case]:
    """All rows, group by group."""
    return [
        *(Case("images", factor * images) for factor in (1, 4, 16)),
        *(Case("size", images, size) for size in (32, 64, 128)),
        *(Case("batch", images, batch=batch) for batch in (64, 256, 1024, 4096, 8192)),
        *(Case("streamed", 4 * images, shard=shard) for shard in (0, images, images // 8)),
    ]


def measure(case: Case) -> dict[str, float]:
    """Trains one case; seconds of an epoch and peak memory in MB."""
    import jax
    import numpy as np

    from vae_jax import Config, Dataset, Split, fit

    levels = np.random.RandomState(0).randint(0, 256, (case.images, case.size, case.size, 1), np.uint8)
    data = Dataset("noise", Split(levels), Split(levels[:250]))
    config = Config()
    config = replace(
        config,
        data=replace(config.data, image_size=case.size),
        train=replace(config.train, epochs=EPOCHS, batch_size=case.batch, shard_images=case.shard),
    )
    history = fit(config, data).history
    found = {
        "seconds": min(epoch["train_seconds"] for epoch in history[1:]),
        "compile_seconds": history[0]["compile_seconds"],
        "host_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "images_mb": levels.nbytes / 2**20,
    }
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        found["device_mb"] = statistics["peak_bytes_in_use"] / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16384, help="images of the smallest data set")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS, help="which rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    for case in cases(options.images):
        if case.group not in options.groups:
            continue
        print(f"training {case}", file=sys.stderr, flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = {**case._asdict(), **pool.apply(measure, (case,))}
        start = first.setdefault(case.group, {**row, "pixels": case.pixels})
        row["linear"] = start["seconds"] * case.pixels / start["pixels"] / row["seconds"]
        rows.append(row)
    if options.json:
        print(json.dumps(rows))
        return
    print(
        "| what grows | images | size | batch | shard | s an epoch | images/s | linear | images, MB | peak memory, MB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        device = f" + {row['device_mb']:,.0f} device" if "device_mb" in row else ""
        print(
            f"| {row['group']} | {row['images']:,} | {row['size']} | {row['batch']} | {row['shard'] or '–'} "
            f"| {row['seconds']:.2f} | {row['images'] / row['seconds']:,.0f} | {row['linear']:.2f} "
            f"| {row['images_mb']:,.0f} | {row['host_mb']:,.0f}{device} |"
        )


if __name__ == "__main__":
    main()
