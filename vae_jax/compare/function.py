"""Level 1, the function: compares every layer's output, for the same weights and images in evaluation mode."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from vae_jax.compare.level import Level, Request, judge
from vae_jax.compare.pair import PRECISIONS, Pair, difference, precisely
from vae_jax.objectives import BoundModel

TOLERANCES = {"float32": 1e-5, "float64": 1e-12}  # of the larger of 1 and the output's largest entry


def function(request: Request) -> Level:
    """Compares both networks, from the image to the reconstruction."""
    precisions = {}
    for i, precision in enumerate(PRECISIONS):
        request.on_progress(f"function, {precision}", i, len(PRECISIONS))
        with precisely(precision):
            precisions[precision] = _outputs(request, precision)
    within = {name: all(row["within"] for row in outputs["layers"]) for name, outputs in precisions.items()}
    largest = {name: max(row["difference"] for row in outputs["layers"]) for name, outputs in precisions.items()}
    layers = len(precisions["float32"]["layers"])
    summary = (
        f"{layers} outputs, from the first layer to the reconstruction: largest difference "
        f"{largest['float32']:.1e} in float32 and {largest['float64']:.1e} in float64"
    )
    return Level(judge(within), summary, precisions)


def _outputs(request: Request, precision: str) -> dict[str, Any]:
    images = request.data.test.images[: request.config.train.batch_size]
    pair = Pair(request.config, request.data.image_shape)
    variables = pair.variables()
    pair.share(variables)

    def whole(model: BoundModel, images: Any) -> Any:
        heads = model.encode(pair.composition.treat(None, images))
        return heads, model.mean(model.decode(heads["mu"]))

    def ours(variables: Any, images: Any) -> Any:
        return pair.composition.trace(variables, partial(whole, images=images))

    trace = jax.jit(ours)(variables, jnp.asarray(images))
    heads, reconstruction = trace.result
    theirs = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: theirs.update({name: output}))
        for name, layer in pair.twin.named_children()
    ]
    pair.twin.eval()
    with torch.no_grad():
        their_heads = pair.twin.encode(pair.images(images))
        their_reconstruction = torch.sigmoid(pair.twin.decode(their_heads["mu"]))
    for hook in hooks:
        hook.remove()
    outputs = {name: (trace.layers[name], output) for name, output in theirs.items()}
    outputs |= {f"{name} (head)": (heads[name], output) for name, output in their_heads.items()}
    outputs["reconstruction"] = np.moveaxis(np.asarray(reconstruction), -1, 1), their_reconstruction
    rows = []
    for name, (our_output, their_output) in outputs.items():
        largest_difference, largest = difference(our_output, their_output.cpu().numpy())
        rows.append(
            {
                "layer": name,
                "shape": list(np.shape(our_output))[1:],
                "largest": largest,
                "difference": largest_difference,
                "within": largest_difference <= TOLERANCES[precision] * max(1.0, largest),
            }
        )
    return {"tolerance": TOLERANCES[precision], "images": len(images), "layers": rows}
