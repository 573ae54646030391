"""Exports a trained model as ONNX, for onnxruntime, browsers and phones. Needs the extra `onnx`.

The decoder is the file, `model.onnx`; the encoder lies beside it, `model.encode.onnx`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vae_jax.errors import UserError
from vae_jax.interop.functions import Function, refused

TOLERANCE = 1e-5  # of results, beside their size
CHECKED = (1, 7)  # batches
FUNCTIONS = ("encode", "decode_codes", "decode")  # as they are written


def onnx_path(function: str, path: Path) -> Path:
    """The file of a function, beside the decoder's."""
    return path if function == "decode" else path.with_suffix(f".{function}{path.suffix}")


class Translated(NamedTuple):
    """A model's functions as ONNX.

    Attributes:
        models: of the functions that could be translated, by name.
        gaps: their largest differences from jax's results, on random inputs, beside the results' size.
        left_out: why functions other than the decoder could not be translated.
    """

    models: dict[str, Any]
    gaps: dict[str, float]
    left_out: dict[str, str]


def translated(functions: list[Function]) -> Translated:
    """The functions as models for any batch, after onnxruntime has computed what jax does.

    A function that cannot be translated is left out, unless it is the decoder.

    Raises:
        UserError: if the extra is missing, the decoder has operations that are not translated, or onnxruntime computes
            something else than jax.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]

        from vae_jax.interop.onnx_graph import to_onnx
    except ImportError as error:
        raise refused("onnx", "expected the extra onnx, pip install 'vae_jax[onnx]'") from error
    models, gaps, left_out = {}, {}, {}
    for function in functions:
        try:
            models[function.name], gaps[function.name] = _checked(function, to_onnx, onnxruntime)
        except UserError as error:
            if function.name == "decode":
                raise
            left_out[function.name] = str(error)
    return Translated(models, gaps, left_out)


def _checked(function: Function, to_onnx: Any, onnxruntime: Any) -> tuple[Any, float]:
    """A function's model, and the largest difference of its results from jax's.

    Raises:
        UserError: see `translated`.
    """
    model = to_onnx(function.call, function.inputs, function.outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = list(function.outputs)
    gap = float(np.max([_gap(function, lambda inputs: session.run(outputs, inputs), batch) for batch in CHECKED]))
    if not gap <= TOLERANCE:
        raise refused(
            "onnx",
            f"expected onnxruntime to compute {function.name} as jax does, to {TOLERANCE}; found a "
            f"difference of {gap:.2g}",
        )
    return model, gap


def files_of(models: dict[str, Any], path: Path, about: str) -> dict[Path, bytes]:
    """The contents of the models' files, the decoder's last, with a text on them."""
    contents = {}
    for name in FUNCTIONS:
        if name in models:
            models[name].doc_string = models[name].graph.doc_string = about
            contents[onnx_path(name, path)] = models[name].SerializeToString()
    return contents


def _gap(function: Function, run: Callable[[dict[str, np.ndarray]], Any], batch: int) -> float:
    """The largest difference of a function's results for random inputs, relative where they are greater than 1.

    Raises:
        UserError: if jax's results are not finite, with which nothing can be compared.
    """
    random = np.random.default_rng(batch)
    inputs = {}
    for name, shape in function.inputs.items():
        sizes = batch, *shape.shape[1:]
        if name in function.values:
            drawn = random.integers(0, function.values[name], sizes)
        else:  # images lie in [0, 1], z anywhere
            drawn = random.random(sizes) if name == "images" else random.normal(scale=2, size=sizes)
        inputs[name] = drawn.astype(shape.dtype)
    expected = jax.jit(function.call)(*inputs.values())
    gaps = []
    for name, array in zip(function.outputs, run(inputs), strict=True):
        wanted = np.asarray(expected[name], np.float64)
        if not np.isfinite(wanted).all():
            raise refused("onnx", f"expected {function.name} to give finite numbers; found others among {name}")
        if np.shape(array) != wanted.shape:
            raise refused("onnx", f"expected {name} of shape {wanted.shape}; onnxruntime gives {np.shape(array)}")
        gaps.append(np.max(np.abs(array - wanted) / np.maximum(1, np.abs(wanted))))
    return float(np.max(gaps))  # NaN if one is
