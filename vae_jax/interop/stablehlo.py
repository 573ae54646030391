"""Exports a trained model as StableHLO, jax's own format, which keeps its meaning in later versions.

The file is a zip archive with a program for each function, serialised by `jax.export`. jax reads it, without this
package and without Flax:

    programs = zipfile.ZipFile("model.zip")
    decode = jax.export.deserialize(programs.read("decode.jax")).call
    pictures = decode(z)["pictures"]
"""

import io
import json
import zipfile

import jax

from vae_jax.errors import argument, listed
from vae_jax.interop.functions import Function, for_any_batch, refused

PLATFORMS = ("cpu", "cuda", "tpu")
DATE = (1980, 1, 1, 0, 0, 0)  # of the archive's files, so that the same model gives the same file


def archive_of(functions: list[Function], card: str) -> bytes:
    """The file of the functions, for every platform and any batch, with a card on the model.

    Raises:
        UserError: if a function needs a batch of known size, or flatbuffers is missing.
    """
    try:
        import flatbuffers  # type: ignore[import-untyped]  # noqa: F401 (jax.export serialises with it)
    except ImportError as error:
        raise refused("stablehlo", "expected the extra stablehlo, pip install 'vae_jax[stablehlo]'") from error
    programs = {}
    for function in functions:
        with for_any_batch(argument("to", "stablehlo")):
            exported = jax.export.export(jax.jit(function.call), platforms=PLATFORMS)(*function.inputs.values())
        programs[f"{function.name}.jax"] = bytes(exported.serialize())
    about = {
        function.name: {
            "inputs": {name: _described(shape) for name, shape in function.inputs.items()},
            "outputs": list(function.outputs),
        }
        for function in functions
    }
    texts = {"functions.json": json.dumps(about, indent=2), "README.md": card}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**programs, **texts}.items():
            archive.writestr(zipfile.ZipInfo(name, DATE), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _described(shape: jax.ShapeDtypeStruct) -> str:
    return f"{shape.dtype} ({listed(shape.shape)})"
