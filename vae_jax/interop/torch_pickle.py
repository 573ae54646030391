"""`python -m vae_jax.interop.torch_pickle IN OUT`: converts a state_dict pickled by PyTorch to a safetensors file.

A pickle is a program. `weights_only` executes no more of it than weights need. It is read in a process of its own,
since even that can take any amount of time or memory.
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
HOLDERS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # names that programs give to the weights beside an optimiser's state
MEMORY_LIMIT = 1 << 29  # bytes beyond PyTorch itself and the file's content
REFUSED = 2


def convert(source: Path, target: Path) -> str:
    """Writes the tensors of `source` to `target`; returns their place in a larger checkpoint, else "".

    Raises:
        ValueError: if it is no state_dict; the message says what it is.
    """
    size = source.stat().st_size
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
    # PyTorch compresses nothing; compressed or overlapping entries could make a small file any size.
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
        # An expanded tensor can be any size with almost no data.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"found {name[:80]!r}, whose shape asks for more numbers than it has")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    save_file(tensors, target)
    return within


def _state_dict(content: Any, tensor: type) -> tuple[str, dict[str, Any]]:
    """The path of names to the weights in a checkpoint, "" if it holds nothing else, and the weights.

    Raises:
        ValueError: if it holds no weights, or several.
    """
    if not isinstance(content, dict):
        raise ValueError(f"found a {type(content).__name__}; save model.state_dict()")
    strange = [
        f"{name!s:.40} ({type(value).__name__})"
        for name, value in list(content.items())[:1000]
        if not (isinstance(name, str) and isinstance(value, tensor))
    ]
    if not strange:
        return "", content
    held = _weights_in(content, tensor)
    names = [name for name in held if name.rpartition(".")[2] in HOLDERS] or list(held)
    if len(names) == 1:
        return names[0], held[names[0]]
    what = f"weights in {', '.join(f'{name:.80}' for name in names[:10])}" if names else ", ".join(strange[:10])
    raise ValueError(f"found {what}; save model.state_dict() alone")


def _weights_in(content: dict[Any, Any], tensor: type, depth: int = 3) -> dict[str, dict[str, Any]]:
    """The dicts in a checkpoint that hold only tensors by name, by the paths of names to them."""
    held = {}
    for name, value in list(content.items())[:1000] if depth else ():
        if not (isinstance(name, str) and isinstance(value, dict) and value):
            continue
        if all(isinstance(key, str) and isinstance(part, tensor) for key, part in value.items()):
            held[name] = value
        else:
            held |= {f"{name}.{below}": part for below, part in _weights_in(value, tensor, depth - 1).items()}
    return held


def _limit_memory(size: int) -> None:
    """Limits this process's memory to what it has, three times the file's size and MEMORY_LIMIT."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux: only the time is limited then
        return
    limit = pages * resource.getpagesize() + 3 * size + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Runs the conversion; a refusal is one line on standard output and exit code 2."""
    warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may not be encodable
    try:
        within = convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except pickle.UnpicklingError as error:
        # PyTorch's message is long and explains how to load it anyway.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        print(f"found more than weights{f' ({asked[1]})' if asked else ''}; save model.state_dict()")
        return REFUSED
    except Exception as error:  # a hostile pickle may raise anything
        print(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error)
        return REFUSED
    if within:
        print(f"the weights are those in {within!a:.200} of a larger checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
