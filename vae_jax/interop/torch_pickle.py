"""`python -m vae_jax.interop.torch_pickle IN OUT`: a state_dict pickled by PyTorch, as a safetensors file.

A pickle is a program. It is read with `weights_only`, which executes no more of it than weights need, and in a process
of its own, since what is left can still ask for any amount of time or memory.
"""

# pyright: reportMissingImports=false

import io
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

PICKLE_LIMIT = 1 << 24  # bytes of names and shapes
HOLDERS = ("state_dict", "model_state_dict", "model")  # what programs call the weights beside an optimiser's state
MEMORY_LIMIT = 1 << 29  # bytes beyond PyTorch itself and what the file holds
REFUSED = 2


def convert(source: Path, target: Path) -> str:
    """Writes the tensors of `source` to `target`; returns where in a larger checkpoint they were, "" if it is none.

    Raises:
        ValueError: if it is no state_dict; the message tells what it is.
    """
    size = source.stat().st_size
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
    # PyTorch compresses nothing; with compressed or overlapping entries a small file could be any size.
    if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
        raise ValueError("found compressed data, which torch.save never writes")
    if any(entry.filename.endswith(".pkl") and entry.file_size > PICKLE_LIMIT for entry in entries):
        raise ValueError(f"found more than {PICKLE_LIMIT:,} bytes of names")

    import torch
    from safetensors.torch import save_file

    _limit_memory(size)
    state = torch.load(source, map_location="cpu", weights_only=True)
    within, state = _state_dict(state, torch.Tensor)
    tensors = {}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"found {name[:80]!r}, which is sparse, quantised or without data")
        # An expanded tensor can be any size with next to no data.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"found {name[:80]!r}, whose shape asks for more numbers than it has")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    save_file(tensors, target)
    return within


def _state_dict(found: Any, tensor: type) -> tuple[str, dict[str, Any]]:
    """The weights in a checkpoint, and the names that lead to them, "" where they are all that it holds.

    Raises:
        ValueError: if it holds none, or several that a training may have left.
    """
    if not isinstance(found, dict):
        raise ValueError(f"found a {type(found).__name__}; save model.state_dict()")
    other = [
        f"{name!s:.40} ({type(value).__name__})"
        for name, value in list(found.items())[:1000]
        if not (isinstance(name, str) and isinstance(value, tensor))
    ]
    if not other:
        return "", found
    held = _weights_in(found, tensor)
    names = [name for name in held if name.rpartition(".")[2] in HOLDERS] or list(held)
    if len(names) == 1:
        return names[0], held[names[0]]
    what = f"weights in {', '.join(f'{name:.80}' for name in names[:10])}" if names else ", ".join(other[:10])
    raise ValueError(f"found {what}; save model.state_dict() alone")


def _weights_in(found: dict[Any, Any], tensor: type, depth: int = 3) -> dict[str, dict[str, Any]]:
    """Whatever in a checkpoint holds nothing but tensors by their names, by the names that lead to it."""
    held = {}
    for name, value in list(found.items())[:1000] if depth else ():
        if not (isinstance(name, str) and isinstance(value, dict) and value):
            continue
        if all(isinstance(key, str) and isinstance(part, tensor) for key, part in value.items()):
            held[name] = value
        else:
            held |= {f"{name}.{below}": part for below, part in _weights_in(value, tensor, depth - 1).items()}
    return held


def _limit_memory(size: int) -> None:
    """From here on the process may take little more than twice the file's size."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux: only the time is limited then
        return
    limit = pages * resource.getpagesize() + 3 * size + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Converts; a refusal is one line on standard output and exit code 2."""
    warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may hold what it cannot encode
    try:
        within = convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except pickle.UnpicklingError as error:
        # PyTorch's message is long and tells how to load it all the same.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        print(f"found more than weights{f' ({asked[1]})' if asked else ''}; save model.state_dict()")
        return REFUSED
    except Exception as error:  # what hostile pickles raise is anybody's guess
        print(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error)
        return REFUSED
    if within:
        print(f"the weights are those in {within!a:.200} of a larger checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
