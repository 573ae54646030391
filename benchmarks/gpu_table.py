"""The results of gpu.py as a table, and what they were measured on."""

import statistics
import subprocess
import sys
from contextlib import suppress
from typing import Any


def table(results: list[dict[str, Any]], device: str) -> str:
    """All results as Markdown."""
    lines = [f"{device}", "", "| what | result | µs a step | vae_jax is |", "|---|---:|---:|---:|"]
    ours = {
        (row["batch"], row["precision"]): row["images_per_second"]
        for row in results
        if row["name"].endswith(": vae_jax") and "images_per_second" in row
    }
    for row in results:
        where = f"batch {row['batch']}" if "batch" in row else row["group"]
        what = f"{where}, {row['name']}"
        if "failed" in row:
            lines.append(f"| {what} | {row['failed']} | | |")
        elif "test_losses" in row:
            losses = row["test_losses"]
            spread = f" ± {statistics.stdev(losses):.2f}" if len(losses) > 1 else ""
            shown = f"{row['seconds']:.1f} s, {statistics.mean(losses):.2f}{spread} nats"
            if "compile_seconds" in row:
                shown += f" (compiling {row['compile_seconds']:.1f} s, an epoch {row['train_seconds']:.2f} s)"
            lines.append(f"| {what} | {shown} | | |")
        elif "members" in row:
            shown = f"{row['seconds']:.2f} s, {row['images_per_second']:,.0f} images/s"
            lines.append(f"| {what} of the digits, {row['epochs']} epochs | {shown} | | |")
        else:
            speed = row["images_per_second"]
            # PyTorch as it comes stands beside our tensorfloat32, whose convolutions round alike.
            precision = {"torch": "tensorfloat32"}.get(row.get("precision", ""), row.get("precision"))
            own = ours.get((row.get("batch"), precision))
            ratio = f"{own / speed:.2f}x" if own else ""
            lines.append(f"| {what} | {speed:,.0f} images/s | {row['microseconds_a_step']:,.0f} | {ratio} |")
    return "\n".join(lines)


def device() -> str:
    """The device's name and the libraries' versions, asked in another process."""
    from importlib.metadata import PackageNotFoundError, version

    code = "import jax; print(jax.devices()[0].device_kind)"
    name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    versions = []
    for package in ("jax", "flax", "torch"):
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    return f"{name}; {', '.join(versions)}"
