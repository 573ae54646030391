"""`python -m vae_jax.interop.torch_pickle IN OUT`: a state_dict pickled by PyTorch, as a safetensors file.

A pickle is a program. It is read with `weights_only`, which executes no more of it than weights need, and in a process
of its own, since what is left can still ask for any amount of time or memory.
"""

# pyright: reportMissingImports=false

import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path

PICKLE_LIMIT = 1 << 24  # bytes of names and shapes
MEMORY_LIMIT = 1 << 29  # bytes beyond PyTorch itself and what the file holds
REFUSED = 2


def convert(source: Path, target: Path) -> None:
    """Writes the tensors of `source` to `target`.

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
    if not isinstance(state, dict):
        raise ValueError(f"found a {type(state).__name__}; save model.state_dict()")
    other = [
        f"{name!s:.40} ({type(value).__name__})"
        for name, value in list(state.items())[:1000]
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if other:
        raise ValueError(f"found {', '.join(other[:10])}; save model.state_dict() alone")
    tensors = {}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"found {name[:80]!r}, which is sparse, quantised or without data")
        # An expanded tensor can be any size with next to no data.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"found {name[:80]!r}, whose shape asks for more numbers than it has")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    save_file(tensors, target)


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
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except pickle.UnpicklingError as error:
        # PyTorch's message is long and tells how to load it all the same.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        print(f"found more than weights{f' ({asked[1]})' if asked else ''}; save model.state_dict()")
        return REFUSED
    except Exception as error:  # what hostile pickles raise is anybody's guess
        print(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
