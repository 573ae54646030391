"""Exports a trained model as ONNX, for onnxruntime, browsers and phones. Needs the extra `onnx`.

The decoder is the file, `model.onnx`; the encoder lies beside it, `model.encode.onnx`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vae_jax.errors import UserError
from vae_jax.files.replace import replacing
from vae_jax.interop.functions import Function

TOLERANCE = 1e-5  # of results, beside their size
CHECKED = (1, 7)  # batches


def onnx_paths(functions: list[Function], path: Path) -> dict[str, Path]:
    """The file of every function."""
    return {
        function.name: path if function.name == "decode" else path.with_suffix(f".{function.name}{path.suffix}")
        for function in functions
    }


class Written(NamedTuple):
    """What is written.

    Attributes:
        gaps: for every function the largest difference from jax's results, on random inputs, beside the results' size.
        left_out: why functions other than the decoder are not written.
    """

    gaps: dict[str, float]
    left_out: dict[str, str]


def write_onnx(functions: list[Function], path: Path, about: str) -> Written:
    """Writes a model for every function, for any batch, after onnxruntime has computed what jax does.

    A function that cannot be translated is left out, unless it is the decoder.

    Args:
        functions: of the model.
        path: of the decoder.
        about: a text on the model, kept in the files.

    Raises:
        UserError: if the extra is missing, the decoder has operations that are not translated, or onnxruntime computes
            something else than jax.
        OSError: if a file cannot be written.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]

        from vae_jax.interop.onnx_graph import to_onnx
    except ImportError as error:
        raise UserError("--to onnx: expected the extra onnx, pip install 'vae_jax[onnx]'") from error
    files, gaps, left_out = {}, {}, {}
    for function in functions:
        try:
            model = to_onnx(function.call, function.inputs, function.outputs, about)
        except UserError as error:
            if function.name == "decode":
                raise
            left_out[function.name] = str(error)
            continue
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        gaps[function.name] = max(
            _gap(function, lambda inputs: session.run(list(function.outputs), inputs), batch)  # noqa: B023
            for batch in CHECKED
        )
        if not gaps[function.name] <= TOLERANCE:
            raise UserError(
                f"--to onnx: expected onnxruntime to compute {function.name} as jax does, to {TOLERANCE}; found a "
                f"difference of {gaps[function.name]:.2g}"
            )
        files[onnx_paths(functions, path)[function.name]] = content
    for target, content in files.items():
        with replacing(target) as file:
            file.write(content)
    return Written(gaps, left_out)


def _gap(function: Function, run: Callable[[dict[str, np.ndarray]], Any], batch: int) -> float:
    """The largest difference of a function's results for random inputs, relative where they are greater than 1."""
    random = np.random.default_rng(batch)
    inputs = {}
    for name, shape in function.inputs.items():
        sizes = batch, *shape.shape[1:]
        whole = function.values.get(name)
        drawn = random.random(sizes) if whole is None else random.integers(0, whole, sizes)
        inputs[name] = drawn.astype(shape.dtype)
    expected = jax.jit(function.call)(*inputs.values())
    gaps = [0.0]
    for name, array in zip(function.outputs, run(inputs), strict=True):
        wanted = np.asarray(expected[name], np.float64)
        gaps.append(float(np.max(np.abs(array - wanted) / np.maximum(1, np.abs(wanted)))))
    return max(gaps)
