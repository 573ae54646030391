"""Level 3, the trajectory: compares many steps of training from the same weights, with the same order and noise."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from vae_jax.compare.level import Level, Request, judge
from vae_jax.compare.pair import PRECISIONS, Pair, precisely
from vae_jax.data.dataset import Dataset
from vae_jax.data.split import Split
from vae_jax.errors import UserError
from vae_jax.interop.torch_training import TorchTraining
from vae_jax.keys import make_keys
from vae_jax.runs.fit import fit
from vae_jax.training.divergence import remedies
from vae_jax.training.single import epoch_order
from vae_jax.training.start import start

TOLERANCE = 1e-9  # of the loss, in float64
FIRST_STEP = 1e-5  # of the first loss, in float32; from then on rounding grows as in any chaotic system
CHAOS = 1e-3


def trajectory(request: Request) -> Level:
    """Compares both frameworks' losses step by step."""
    precisions = {}
    for i, precision in enumerate(PRECISIONS):
        report = partial(_report, request, i * request.steps, precision)
        with precisely(precision):
            precisions[precision] = _curves(request, report)
    single, double = precisions["float32"], precisions["float64"]
    within = {"float32": single["gap"][0] <= FIRST_STEP, "float64": double["largest_gap"] <= TOLERANCE}
    chaos = f"first at step {single['chaos_step']}" if single["chaos_step"] else "never"
    summary = (
        f"{len(double['gap'])} steps from the same weights: largest relative gap of the losses "
        f"{double['largest_gap']:.1e} in float64; {single['largest_gap']:.1e} in float32, past {CHAOS:g} {chaos}"
    )
    return Level(judge(within), summary, {"tolerance": TOLERANCE, "chaos": CHAOS, **precisions})


def _report(request: Request, before: int, precision: str, done: int) -> None:
    request.on_progress(f"trajectory, {precision}", before + done, len(PRECISIONS) * request.steps)


def _curves(request: Request, report: Any) -> dict[str, Any]:
    """The losses per image of all steps in both frameworks; ours trains with `vae_jax.fit`."""
    size, wanted = request.config.train.batch_size, request.steps
    images = request.data.train.images[: wanted * size]
    images = images[: max(1, len(images) // size) * size]  # a smaller last batch would be another program to compile
    count = len(images)
    epoch_steps = -(-count // size)
    epochs = -(-wanted // epoch_steps)
    config = replace(request.config, train=replace(request.config.train, epochs=epochs))
    keys = make_keys(config.seed)
    report(0)

    # fit's initial state follows from the seed, so that the twin can get the same.
    pair = Pair(config, request.data.image_shape)
    variables = start(config, request.data.image_shape, count).variables
    pair.share(variables)
    sums = []
    few = Dataset("", Split(images), Split(request.data.test.images[:1]), darkness_said=True)
    fit(config, few, on_epoch=lambda _, state: sums.append(np.asarray(state.sums[:, 0], np.float64)))

    training = TorchTraining(config, pair.twin, epoch_steps, epochs * epoch_steps)
    order_of = jax.jit(partial(epoch_order, images=count))
    theirs, order = [], np.arange(count)
    for step in range(wanted):
        epoch, place = divmod(step, epoch_steps)
        if place == 0:
            order = np.asarray(order_of(keys.shuffle, jnp.int32(epoch)))
        batch = images[order[place * size : (place + 1) * size]]
        terms = training.step(pair.images(batch), *pair.draws(variables, batch, keys.steps, step))
        theirs.append(terms[0])
        if step % 10 == 9:
            report(step + 1)
    sizes = np.minimum(size, count - np.arange(wanted) % epoch_steps * size)
    ours = np.concatenate(sums)[:wanted] / sizes
    theirs = torch.stack(theirs).double().cpu().numpy() / sizes
    if not np.isfinite(theirs).all():
        raise UserError(f"PyTorch's training diverged: the loss of a step is not finite; {remedies(config)}")
    gap = np.abs(ours - theirs) / np.abs(theirs)
    past = np.flatnonzero(gap > CHAOS)
    return {
        "vae_jax": ours.tolist(),
        "pytorch": theirs.tolist(),
        "gap": gap.tolist(),
        "largest_gap": float(gap.max()),
        "chaos_step": int(past[0]) + 1 if len(past) else None,
    }
