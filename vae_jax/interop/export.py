"""Exports runs for other tools: PyTorch, StableHLO or ONNX, with a model card beside the file."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vae_jax.errors import UserError, argument, listed, quoted
from vae_jax.files.replace import write_together
from vae_jax.interop.card import CARD_OF, card_of
from vae_jax.interop.exchange import other_parts, state_dict_of
from vae_jax.interop.functions import functions_of
from vae_jax.interop.onnx_file import FUNCTIONS, files_of, onnx_path, translated
from vae_jax.interop.stablehlo import archive_of
from vae_jax.interop.torch_source import check_path, loading, python_path, settings_of_trained, source_of, use_of
from vae_jax.interop.weights_file import packed
from vae_jax.model.build import build
from vae_jax.registry import lookup
from vae_jax.runs.reading import load
from vae_jax.training.state import Trained


class Export(NamedTuple):
    """A run as another tool's file.

    Attributes:
        files: that were written, the model's own last.
        about: lines on them.
    """

    files: list[Path]
    about: list[str]


class Request(NamedTuple):
    """What is to be exported.

    Attributes:
        folder: of the run.
        path: of the file.
        trained: the run's model.
        card: (functions, how the file is used) -> the model card's text.
    """

    folder: Path
    path: Path
    trained: Trained
    card: Callable[..., str]


def _torch(request: Request) -> Export:
    trained, path = request.trained, request.path
    settings = settings_of_trained(trained)
    arrays = state_dict_of(trained, request.folder)
    python, card = python_path(path), card_path(path)
    use = use_of(settings, path)
    contents = {
        card: request.card(None, "\n".join(["```python", *use, "```"])).encode(),
        python: source_of(settings, path).encode(),
        path: packed(arrays),
    }
    write_together(contents)
    about = [f"{len(arrays)} tensors with PyTorch's names and layouts", f"in PyTorch: {'; '.join(loading(path))}"]
    if others := other_parts(trained.config, trained.variables):
        about.append(f"left out, since encoder and decoder do without: the parameters of {listed(others)}")
    options = trained.config.model.options
    if getattr(options, "batch_norm", False) and not getattr(options, "unbiased_running_variance", True):
        about.append("PyTorch's BatchNorm, if trained on, keeps the unbiased variance, where the run keeps the biased")
    return Export([*contents], [*about, *_in_float32(trained)])


def _stablehlo(request: Request) -> Export:
    functions = functions_of(request.trained)
    name = request.path.name
    lines = [
        "import zipfile, jax",
        f"programs = zipfile.ZipFile({name!r})",
        'decode = jax.export.deserialize(programs.read("decode.jax")).call',
        f'pictures = decode({_arguments(request.trained)})["pictures"]',
    ]
    card = request.card(functions, "\n".join(["```python", *lines, "```"]))
    contents = {card_path(request.path): card.encode(), request.path: archive_of(functions, card)}
    write_together(contents)
    names = ", ".join(function.name for function in functions)
    return Export([*contents], [f"{names}, for cpu, cuda and tpu, and any batch"])


def _onnx(request: Request) -> Export:
    functions = functions_of(request.trained, "float32")
    made = translated(functions)
    lines = [
        "import onnxruntime",
        f"decode = onnxruntime.InferenceSession({request.path.name!r})",
        f"(pictures,) = decode.run(None, {{{_arguments(request.trained, named=True)}}})",
    ]
    held = [function for function in functions if function.name in made.models]
    files = "\n".join(f"- `{function.name}` is in `{onnx_path(function.name, request.path).name}`" for function in held)
    card = request.card(held, "\n".join(["```python", *lines, "```", "", files]))
    contents = {card_path(request.path): card.encode(), **files_of(made.models, request.path, card)}
    write_together(contents)
    stale = [file for name in FUNCTIONS if _is_ours(file := onnx_path(name, request.path)) and name not in made.models]
    for file in stale:
        file.unlink()
    about = [f"{name}: as jax computes it to {gap:.1g}" for name, gap in made.gaps.items()]
    about += [f"{name} is left out: {why}" for name, why in made.left_out.items()]
    about += [f"{file} is deleted, which belonged to an earlier decoder" for file in stale]
    return Export([*contents], [*about, *_in_float32(request.trained)])


def _is_ours(file: Path) -> bool:
    """Whether there is a file with a card of ours in it."""
    return file.is_file() and CARD_OF.encode() in file.read_bytes()


def _in_float32(trained: Trained) -> list[str]:
    """What there is to say on a file that is computed in float32."""
    precision = trained.config.model.precision
    return [] if precision == "float32" else [f"computed in float32, where the run has {precision}"]


def _arguments(trained: Trained, named: bool = False) -> str:
    """How z and labels are given to an exported decoder."""
    names = ["z", "labels"] if trained.config.model.classes else ["z"]
    return ", ".join(f'"{name}": {name}' for name in names) if named else ", ".join(names)


class Format(NamedTuple):
    """A format of exports.

    Attributes:
        suffix: of the file's name.
        write: writes an export.
        files: the file's path -> those that an export may write, but for the card.
        check: refuses a file's path, beside its suffix.
    """

    suffix: str
    write: Callable[[Request], Export]
    files: Callable[[Path], list[Path]] = lambda path: [path]
    check: Callable[[Path], None] = lambda path: None


FORMATS = {
    "torch": Format(".safetensors", _torch, lambda path: [path, python_path(path)], check_path),
    "stablehlo": Format(".zip", _stablehlo),
    "onnx": Format(".onnx", _onnx, lambda path: [onnx_path(name, path) for name in FUNCTIONS]),
}


def card_path(path: Path) -> Path:
    """The model card of a file, beside it."""
    return path.with_name(f"{path.name}.md")


def check_target(path: Path, to: str) -> None:
    """Refuses a format that there is not, and a file's name that is none for it.

    Raises:
        UserError: naming what was expected.
    """
    known = lookup(FORMATS, to, argument("to"))
    if path.suffix != known.suffix:
        raise UserError(
            f"{path}: expected a name that ends in {known.suffix}, for {argument('to', to)}; found {quoted(path.name)}"
        )
    known.check(path)


def check_licence(licence: str | None) -> None:
    """Refuses what is no identifier of a licence.

    Raises:
        UserError: naming what was expected.
    """
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}", licence):
        raise UserError(f"{argument('licence')}: expected an identifier as apache-2.0 or mit; found {quoted(licence)}")


def written_by(path: Path, to: str) -> list[Path]:
    """The files that an export may write."""
    return [*FORMATS[to].files(path), card_path(path)]


def export(
    folder: str | Path,
    path: str | Path,
    to: str = "torch",
    checkpoint: str = "latest",
    licence: str | None = None,
    report: Callable[[str], None] = warnings.warn,
    trust_code: bool = False,
) -> Export:
    """Writes a run's model for another tool, and a model card beside it; existing files are replaced.

    Args:
        folder: of the run.
        path: of the file: .safetensors for torch, .zip for stablehlo, .onnx for onnx.
        to: torch, the weights, and beside model.safetensors the classes that take them, model.py; stablehlo, encoder
            and decoder for `jax.export.deserialize`; or onnx, the decoder, and the encoder beside model.onnx as
            model.encode.onnx.
        checkpoint: latest or best.
        licence: of the weights, for the card.
        report: see `vae_jax.runs.reading.load`.
        trust_code: see there.

    Raises:
        UserError: if there is no such run, its model cannot be exported so, the file's name is none for it, or a file
            of yours has the name of model.py.
        OSError: if a file cannot be written.
    """
    path, folder = Path(path), Path(folder)
    check_target(path, to)
    check_licence(licence)
    trained = load(folder, checkpoint, report, trust_code)
    _, objective = build(trained.config, trained.image_shape)

    def card(functions: object, use: str) -> str:
        return card_of(trained, objective, path.stem, licence, functions, use)  # type: ignore[arg-type]

    return FORMATS[to].write(Request(folder, path, trained, card))
