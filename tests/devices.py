"""Trains on 1, 2 and 4 of XLA's emulated devices and prints the losses as JSON; the tests start it."""

import json
from dataclasses import replace

import jax
import numpy as np

from vae_jax import objectives
from vae_jax.config import Config, LikelihoodConfig, ModelConfig, ObjectiveConfig, TrainConfig, adapted
from vae_jax.data import Dataset, Split
from vae_jax.device.devices import Devices
from vae_jax.device.feed import Feed
from vae_jax.model.build import build
from vae_jax.runs.fit import fit
from vae_jax.training.loop import make_loop
from vae_jax.training.start import start
from vae_jax.training.state import fixed_of
from vae_jax.training.step import step_of

COUNTS = (1, 2, 4)
levels = np.random.RandomState(0).randint(0, 256, (100, 8, 8, 1), np.uint8)
DATA = Dataset("noise", Split(levels[:70]), Split(levels[70:91]), Split(levels[91:]))


def config(shard_images):
    shown = {"epochs": 2, "batch_size": 16, "shard_images": shard_images}
    return Config(model=ModelConfig(channels=(4, 6), latent=3), train=TrainConfig(**shown))


def spread(key, model, images, options):
    """An objective with a term of the whole batch, which must be that of all devices' images together."""
    draw = model.draw(key, images)
    spread = draw.heads["mu"].var(0).sum()
    return {"loss": -draw.log_px + draw.kl + 10 * spread, "spread": spread}


def losses(shard_images, count, own=None, data=DATA):
    steps = []
    found = fit(
        own or config(shard_images),
        data,
        devices=Devices(count),
        on_epoch=lambda figures, state: steps.append(np.asarray(state.sums[:, 0], np.float64)),
    )
    names = [name for name in found.history[0] if name.split("_")[0] in ("train", "test", "validation")]
    names = [name for name in names if not name.endswith("seconds")]
    return {
        "steps": np.concatenate(steps).tolist(),
        "epochs": [epoch[name] for epoch in found.history for name in names],
    }


def codebooks(count):
    """Of 4 places of 8 codes, whose averages and revived codes must be those of all devices' images together."""
    more = {"posterior.name": "codebook", "posterior.places": [4], "posterior.codes": 8, "prior.name": "uniform"}
    own = adapted(replace(config(0), model=ModelConfig("mlp", 3, layers=(8,))), **more)
    trained = fit(own, DATA, devices=Devices(count))
    state = jax.device_get(trained.state.variables.state["posterior"])
    used = trained.history[-1]["test_codes_used"]
    return {"codes": state["codes"].tolist(), "counts": state["counts"].tolist(), "used": used}


def all_reduces(count):
    """How often a step's program adds over the devices."""
    devices, plain = Devices(count), config(0)
    network, objective = build(plain, DATA.image_shape)
    step = step_of(plain, network, objective, 5)
    state = devices.whole(start(plain, DATA.image_shape, 70))
    images, places = Feed(DATA.train.images, 0, 16, devices=devices).shapes
    fixed, zero = devices.whole(fixed_of(plain)), np.int32(0)
    loop = make_loop(step, 16, 16, devices).lower(state, images, None, places, zero, fixed, zero, zero)
    return loop.compile().as_text().count("all-reduce(")


found = {}
for precision in ("float32", "float64"):
    jax.config.update("jax_enable_x64", precision == "float64")
    found[precision] = {count: losses(0, count) for count in COUNTS}
    if precision == "float32":
        found["codebook"] = {count: codebooks(count) for count in (1, 2)}
objectives.OBJECTIVES["spread"] = objectives.Objective(spread)
of_batch = replace(config(0), model=ModelConfig("mlp", 3, layers=(8,)), objective=ObjectiveConfig("spread"))
found["of_batch"] = {count: losses(0, count, of_batch) for count in COUNTS}
found["streamed"] = losses(32, 4)
categories = Dataset.from_arrays(levels[..., 0, 0] % 3, kind="categories", test=21, validation=9)
of_categories = replace(of_batch, objective=ObjectiveConfig(), likelihood=LikelihoodConfig("categorical"))
found["categories"] = {count: losses(0, count, of_categories, categories) for count in (1, 4)}
found["all_reduces"] = {count: all_reduces(count) for count in COUNTS}
found["images_on_each"] = {
    count: max(part.data.shape[0] for part in Devices(count).images(DATA.train.images).addressable_shards)
    for count in COUNTS
}
print(json.dumps(found))
