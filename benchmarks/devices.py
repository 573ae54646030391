"""Training speed on 1, 2 and 4 of the devices there are, or of XLA's emulated ones.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python benchmarks/devices.py [--epochs 6]

The article's network on the digits. Emulated devices share the CPU's cores, so they show what splitting costs, and not
what it gains; the losses are compared with those of one device.
"""

import argparse
import json

import jax
import numpy as np

from vae_jax import data
from vae_jax.config import load_config
from vae_jax.device.devices import Devices
from vae_jax.runs.fit import fit


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--float64", action="store_true")
    options = parser.parse_args()
    if options.float64:
        jax.config.update("jax_enable_x64", True)
    config = load_config("digits", **{"train.epochs": options.epochs, "train.batch_size": options.batch})
    images = data.load(config.data)
    found = {}
    for count in (1, 2, 4):
        if count <= jax.device_count():
            steps = []
            history = fit(
                config,
                images,
                devices=Devices(count),
                on_epoch=lambda figures, state, steps=steps: steps.append(np.asarray(state.sums[:, 0], np.float64)),
            ).history
            losses = np.array([[epoch["train_loss"], epoch["test_loss"]] for epoch in history])
            speed = float(np.median([epoch["images_per_second"] for epoch in history[1:]]))
            found[count] = (np.concatenate(steps), losses, speed)
    steps, losses, speed = found[1]
    for count, (own_steps, own_losses, own_speed) in found.items():
        figures = {
            "devices": count,
            "device": jax.devices()[0].device_kind,
            "precision": "float64" if options.float64 else "float32",
            "images_per_second": round(own_speed),
            "of_one_device": round(own_speed / speed, 3),
            "gap_of_first_20_steps": float(np.max(np.abs(own_steps[:20] / steps[:20] - 1))),
            "gap_of_train_losses": float(np.max(np.abs(own_losses[:, 0] / losses[:, 0] - 1))),
            "gap_of_test_losses": float(np.max(np.abs(own_losses[:, 1] / losses[:, 1] - 1))),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
