"""Level 2, the gradient: compares all gradients, for the same weights, batch, noise and masks in training mode."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vae_jax.compare.level import Level, Request, judge
from vae_jax.compare.pair import PRECISIONS, Pair, dead_biases, difference, precisely
from vae_jax.interop.torch_training import TorchTraining
from vae_jax.interop.torch_weights import COUNTER, to_state_dict
from vae_jax.keys import make_keys, step_key
from vae_jax.training.step import make_step
from vae_jax.variables import Variables

TOLERANCES = {"float32": 1e-4, "float64": 1e-9}  # of a tensor's largest entry
DEAD_TOLERANCES = {"float32": 1e-6, "float64": 1e-12}  # of the largest entry of all gradients


def gradient(request: Request) -> Level:
    """Compares one training step's gradients and updated running statistics."""
    precisions = {}
    for i, precision in enumerate(PRECISIONS):
        request.on_progress(f"gradient, {precision}", i, len(PRECISIONS))
        with precisely(precision):
            precisions[precision] = _gradients(request, precision)
    within = {name: all(row["within"] for row in tensors["tensors"]) for name, tensors in precisions.items()}
    alive = {
        name: [row["relative"] for row in tensors["tensors"] if row["kind"] == "gradient"]
        for name, tensors in precisions.items()
    }
    summary = (
        f"{len(alive['float32'])} gradients, without those whose true value is 0: largest relative error "
        f"{max(alive['float32']):.1e} in float32 and {max(alive['float64']):.1e} in float64"
    )
    return Level(judge(within), summary, precisions)


def recorder() -> optax.GradientTransformation:
    """An optimiser that changes nothing and keeps the gradient as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
    )


def _gradients(request: Request, precision: str) -> dict[str, Any]:
    config = request.config
    images = request.data.train.images[: config.train.batch_size]
    pair = Pair(config, request.data.image_shape)
    variables = pair.variables()
    pair.share(variables)
    key = make_keys(config.seed).steps
    # The same step as in training, with another optimiser.
    step = make_step(config, pair.composition, pair.objective, recorder())
    updated, ours, _ = jax.jit(lambda variables, images, key: step(variables, variables.params, images, key))(
        variables, jnp.asarray(images), step_key(key, 0)
    )
    TorchTraining(config, pair.twin, 1, 1).backward(pair.images(images), *pair.draws(variables, images, key, 0))
    gradients = to_state_dict(Variables(ours, {}))
    statistics = to_state_dict(Variables({}, updated.state), 1)
    expected = {
        name: parameter.grad.cpu().numpy()
        for name, parameter in pair.twin.named_parameters()
        if parameter.grad is not None
    }
    expected_statistics = {name: buffer.cpu().numpy() for name, buffer in pair.twin.named_buffers()}
    if gradients.keys() != expected.keys() or statistics.keys() != expected_statistics.keys():
        raise AssertionError("the networks have different parameters")
    dead = dead_biases(config)
    scale = max(difference(gradient, gradient)[1] for gradient in expected.values())
    rows = []
    for name, theirs in expected.items():
        error, largest = difference(gradients[name], theirs)
        if name in dead:
            largest = max(largest, difference(theirs, gradients[name])[1])
            relative, tolerance = largest / scale, DEAD_TOLERANCES[precision]
        else:
            relative, tolerance = (error / largest if largest else float(error > 0)), TOLERANCES[precision]
        kind = "gradient, true value 0" if name in dead else "gradient"
        rows.append(_row(name, kind, error, largest, relative, tolerance))
    for name, theirs in expected_statistics.items():
        if name.endswith(COUNTER):  # a count, which we keep as the state's step
            continue
        error, largest = difference(statistics[name], theirs)
        rows.append(_row(name, "statistic", error, largest, error / largest, TOLERANCES[precision]))
    return {"tolerance": TOLERANCES[precision], "dead_tolerance": DEAD_TOLERANCES[precision], "tensors": rows}


def _row(name: str, kind: str, error: float, largest: float, relative: float, tolerance: float) -> dict[str, Any]:
    return {
        "tensor": name,
        "kind": kind,
        "largest": largest,
        "difference": error,
        "relative": relative,
        "within": relative <= tolerance,
    }
