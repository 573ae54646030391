"""Writes and reads safetensors files of weights; converts PyTorch's pickles to safetensors and reads those.

Nothing in a file is trusted: names, types and shapes are checked before any array is read, and numbers afterwards.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax.errors import UserError, brief, cut, listed
from vae_jax.files.replace import replacing

HEADER_LIMIT = 1 << 24  # bytes of names and shapes
COUNT_LIMIT = 1 << 53  # training batches that a BatchNorm may have seen
NAMES_SHOWN = 200  # per kind of fault
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of PyTorch's files, from version 1.6 on and before
WRAPPERS = ("module", "_orig_mod")  # names that DataParallel and torch.compile add
DTYPES = {"BF16": "bfloat16", "BOOL": "bool"} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}"
    for kind, sizes in {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}.items()
    for bits in sizes
}
TORCH_NEEDED = (2, 10)  # older versions execute more of a pickle than weights
CONVERT = (
    'python -c "import sys, torch, safetensors.torch as s; '
    's.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" model.pt model.safetensors'
)


class Weights(NamedTuple):
    """The content of a file of weights.

    Attributes:
        arrays: by PyTorch's names.
        sha256: of the file.
    """

    arrays: dict[str, np.ndarray]
    sha256: str


def packed(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file; by default its format is PyTorch's."""
    from safetensors.numpy import save

    return save(dict(arrays), metadata=dict(metadata or {"format": "pt"}))


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file as a whole, see `packed`."""
    data = packed(arrays, metadata)
    with replacing(path) as file:
        file.write(data)


def check_target(path: Path) -> None:
    """Refuses to write to a file whose ending means another format."""
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path}: expected a file name ending in .safetensors; found {path.suffix or 'no ending'}")


def check_source(path: Path) -> str:
    """The format of a file, safetensors or pickle, by its name; checks its first bytes, see `read` for the errors."""
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "something else" if path.exists() else "no such file"
        raise UserError(f"{path}: expected a file of weights; found {kind}")
    with path.open("rb") as file:
        begin = file.read(8)
    named = {".safetensors": "safetensors", ".pt": "pickle", ".pth": "pickle"}.get(path.suffix.lower())
    if named is None:
        raise UserError(f"{path}: expected a name ending in .safetensors, .pt or .pth; found {path.suffix or 'none'}")
    pickled = begin.startswith((ZIP, PICKLE)) and int.from_bytes(begin, "little") > HEADER_LIMIT
    if named == "safetensors" and pickled:
        raise UserError(f"{path}: expected a safetensors file; found a pickle, which would be read from .pt only")
    if named == "pickle" and not begin.startswith(ZIP):
        kind = "one of a PyTorch before 1.6; save it again" if begin.startswith(PICKLE) else "something else"
        raise UserError(f"{path}: expected a file of torch.save; found {kind}")
    if named == "pickle":
        _check_torch(path)
    return named


def _check_torch(path: Path) -> None:
    try:
        installed = version("torch")
    except PackageNotFoundError:
        installed = "none"
    if installed == "none" or tuple(map(int, re.findall(r"\d+", installed)[:2])) < TORCH_NEEDED:
        needed = ".".join(map(str, TORCH_NEEDED))
        raise UserError(
            f"{path}: a pickle is read with PyTorch {needed} or newer only, found {installed}; convert it where "
            f"PyTorch is: {CONVERT}"
        )


def read(
    path: Path, expected: Mapping[str, np.ndarray], model: str, report: Callable[[str], None] = warnings.warn
) -> Weights:
    """The arrays of a file, with the expected names and types.

    Names may have the prefixes of PyTorch's wrappers, and numbers another precision.

    Args:
        path: of a safetensors file, or of a state_dict saved by torch.save (.pt, .pth), which needs PyTorch.
        expected: arrays of these names, shapes and types; their values do not matter.
        model: that gets the weights, for messages.
        report: gets a line on what was left out or converted.

    Raises:
        UserError: if it is no such file, or has other arrays, all of which are named; or holds numbers that are not
            finite, or variances or counts below 0.
    """
    notes: list[str] = []  # reported at the end, unless the file is refused
    if check_source(path) == "safetensors":
        arrays = _read_safetensors(path, path, expected, model, notes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            converted = Path(folder) / "model.safetensors"
            _unpickle(path, converted, notes)
            arrays = _read_safetensors(converted, path, expected, model, notes)
    _check_numbers(path, arrays)
    for note in notes:
        report(f"{path}: {note}")
    with path.open("rb") as file:  # last: only now it is known not to be too large
        return Weights(arrays, hashlib.file_digest(file, "sha256").hexdigest())


def _read_safetensors(
    file: Path, path: Path, expected: Mapping[str, np.ndarray], model: str, notes: list[str]
) -> dict[str, np.ndarray]:
    """Reads `file`; messages name `path`, and what was left out or converted is added to `notes`."""
    with opened(file, path) as stored:
        names = _unwrapped_names(stored.keys(), expected)
        slices = {name: stored.get_slice(full) for name, full in names.items()}
        layouts = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
        check_layout(path, layouts, expected, model, _kind)
        arrays = {name: np.array(stored.get_tensor(names[name])) for name in expected}
    if wrapped := [(name, stored) for name, stored in names.items() if name != stored]:
        name, stored = wrapped[0]
        notes.append(f"names are taken without what a wrapper has added, {name} for {_shown(stored)} and so on")
    converted = {
        f"{array.dtype} to {expected[name].dtype}"
        for name, array in arrays.items()
        if array.dtype != expected[name].dtype
    }
    if converted:
        notes.append(f"numbers are converted, {listed(sorted(converted))}")
    with np.errstate(over="ignore"):  # infinities are refused later
        return {name: array.astype(expected[name].dtype) for name, array in arrays.items()}


@contextmanager
def opened(file: Path, path: Path) -> Iterator[Any]:
    """A context with an open safetensors file; messages name `path`.

    Raises:
        UserError: if it is no such file, or it is damaged where it is read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        size = file.stat().st_size
        with file.open("rb") as begin:
            header = int.from_bytes(begin.read(8), "little")
        if size < 8 or header > min(size - 8, HEADER_LIMIT):
            raise UserError(
                f"{path}: expected a safetensors file, at most {HEADER_LIMIT:,} bytes of names; found another"
            )
        with safe_open(str(file), framework="numpy") as stored:
            yield stored
    except UserError:
        raise
    except (SafetensorError, ValueError, TypeError, OverflowError, OSError) as error:
        reason = brief(error, 200)
        raise UserError(f"{path}: expected a whole safetensors file; {reason}") from error


def _unwrapped_names(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """The tensors' stored names by their names without those that PyTorch's wrappers add.

    DataParallel and `torch.compile` put a name before that of the module they wrap; an object that holds the model as
    an attribute puts the attribute's name before all of them.
    """
    stored, expected = list(names), set(expected)
    bare = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in stored]
    while bare and len(first := {name.partition(".")[0] for name in bare}) == 1 and "" not in first:
        bare = [name.partition(".")[2] for name in bare]
        if expected & set(bare):
            break
    # If it does not help, messages name the tensors as they are stored.
    helps = len(set(bare)) == len(bare) and len(expected & set(bare)) > len(expected & set(stored))
    return dict(zip(bare if helps else stored, stored, strict=True))


def check_layout(
    path: Path,
    stored: Mapping[str, tuple[tuple[int, ...], str]],
    expected: Mapping[str, Any],
    model: str,
    of_type: Callable[[str], str] = str,
) -> None:
    """Refuses a file with other arrays, naming all that differ.

    Args:
        path: of the file.
        stored: the tensors' shapes and safetensors' names of their types.
        expected: arrays of these names, shapes and types, or objects with a shape and a dtype.
        model: that gets the weights.
        of_type: a type's name -> the part of it that must be the same.

    Raises:
        UserError: naming the file and what is missing, not expected, or of another shape or type.
    """

    def shape(sizes: tuple[int, ...]) -> str:
        return "x".join(map(str, sizes))[:60] or "a number"

    shapes, types = [], []
    for name in expected.keys() & stored.keys():
        sizes, dtype = stored[name]
        wanted = expected[name]
        if sizes != wanted.shape:
            shapes.append(f"{name} (expected {shape(wanted.shape)}, found {shape(sizes)})")
        elif of_type(DTYPES.get(dtype, dtype)) != of_type(str(wanted.dtype)):
            types.append(f"{name} (expected {wanted.dtype}, found {DTYPES.get(dtype, dtype)})")
    faults = {
        "missing": expected.keys() - stored.keys(),
        "not expected": [_shown(name) for name in stored.keys() - expected.keys()],
        "of another shape": shapes,
        "of another type": types,
    }
    lines = [f"{kind}: {listed(sorted(names), NAMES_SHOWN)}" for kind, names in faults.items() if names]
    if lines:
        raise UserError(f"{path}: expected the {len(expected)} tensors of {model}; {'; '.join(lines)}")


def _kind(dtype: str) -> str:
    """A type's kind of numbers, without their precision."""
    return re.sub(r"^b|\d+$", "", dtype)


def _shown(name: str) -> str:
    return cut(name, 80) or "''"


def _check_numbers(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    faults = []
    for name, array in arrays.items():
        broken = int((~np.isfinite(array)).sum())
        below = int((array < 0).sum()) if name.endswith((".running_var", ".num_batches_tracked")) else 0
        above = int((array > COUNT_LIMIT).sum()) if name.endswith(".num_batches_tracked") else 0
        if broken:
            faults.append(f"{name} ({broken:,} of {array.size:,} not finite)")
        elif below or above:
            faults.append(f"{name} ({below or above:,} of {array.size:,} {'below 0' if below else 'too large'})")
    if faults:
        names = listed(sorted(faults), NAMES_SHOWN)
        raise UserError(f"{path}: expected finite numbers, and variances and counts from 0 on; found {names}")


def _unpickle(path: Path, to: Path, notes: list[str]) -> None:
    """Converts a pickle to safetensors in another process, with limited time; adds its lines to `notes`."""
    seconds = 60 + path.stat().st_size // 10_000_000
    try:
        result = subprocess.run(
            # -P: never imports a torch.py or zipfile.py beside a downloaded file.
            [sys.executable, "-P", "-m", "vae_jax.interop.torch_pickle", str(path.absolute()), str(to)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path}: expected a state_dict; reading it took more than {seconds} s") from error
    if result.returncode:
        lines = (result.stdout if result.returncode == 2 else result.stderr).strip().splitlines()
        reason = lines[-1][:400] if lines else f"PyTorch ended with {result.returncode}"
        raise UserError(f"{path}: expected a state_dict, names with tensors, as torch.save writes it; {reason}")
    notes += result.stdout.splitlines()
