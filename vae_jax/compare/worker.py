"""`python -m vae_jax.compare.worker`: a process in which one framework trains on request.

Every framework has a process, so that its memory can be measured. Requests come on standard input and answers go to
standard output, both pickled: the first request is a Job, the next ones are seeds, None is the end.
"""

import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vae_jax.config import Config
from vae_jax.data.dataset import Dataset
from vae_jax.errors import UserError, message_of
from vae_jax.registry import users_line


class Job(NamedTuple):
    """The task of a worker.

    Attributes:
        framework: one of FRAMEWORKS.
        config: of the runs, whose seeds come with the requests.
        data: the images.
        platforms: jax's setting of this name in the parent process.
    """

    framework: str
    config: Config
    data: Dataset
    platforms: str | None


Send = Callable[[str, Any], None]


def vae_jax(job: Job, config: Config, send: Send) -> None:
    """Trains one run as `vae-jax train` does."""
    from vae_jax.runs.fit import fit

    names = ("epoch", "train_seconds", "images_per_second")
    prefixes = ("train_", "test_")

    def on_epoch(figures: dict[str, Any], state: Any) -> None:
        kept = {name: value for name, value in figures.items() if name in names or name.startswith(prefixes)}
        send("epoch", kept)

    size = config.train.batch_size
    fit(config, job.data, on_epoch=on_epoch, on_progress=lambda progress: send("progress", progress.step * size))


def pytorch(job: Job, config: Config, send: Send) -> None:
    """Trains one run of the twin as a PyTorch script does."""
    from vae_jax.compare.pair import torch_device
    from vae_jax.interop.torch_training import fit
    from vae_jax.interop.torch_twin import heads_of

    heads = heads_of(config)
    fit(
        config, job.data, heads, torch_device(), lambda done: send("progress", done), lambda epoch: send("epoch", epoch)
    )


FRAMEWORKS = {"vae_jax": vae_jax, "pytorch": pytorch}


def _about(job: Job) -> dict[str, Any]:
    """The framework's name, version and device; loads its libraries and prepares its device."""
    import jax

    from vae_jax.device.devices import described
    from vae_jax.version import __version__

    if job.platforms:
        jax.config.update("jax_platforms", job.platforms)
    if job.framework == "vae_jax":
        return {
            "framework": "vae_jax",
            "framework_version": f"{__version__}, jax {jax.__version__}",
            "device": described(jax.devices()[0]),
        }
    import torch

    import vae_jax.interop.torch_training  # noqa: F401
    from vae_jax.compare.pair import torch_device

    torch.zeros(1, device=torch_device())
    cpu = described(jax.devices("cpu")[0])
    theirs = f"gpu ({torch.cuda.get_device_name()})" if torch_device() == "cuda" else cpu
    return {"framework": "PyTorch", "framework_version": torch.__version__, "device": theirs}


def _peak_memory(framework: str) -> dict[str, int]:
    """The largest memory so far, in bytes: of the process, and of the accelerator."""
    peaks = {}
    try:
        # getrusage would give the larger of this process's and its parent's.
        lines = Path("/proc/self/status").read_text().splitlines()
        peaks["peak_memory_bytes"] = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):  # not Linux
        pass
    if framework == "pytorch":
        import torch

        on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    else:
        import jax

        on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peaks if on_device is None else peaks | {"peak_device_memory_bytes": on_device}


def main() -> None:
    """Serves until it is asked to end or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process gets Ctrl-C too, and ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # lines that libraries print must not come between the answers

    def send(kind: str, content: Any) -> None:
        pickle.dump((kind, content), answers)
        answers.flush()

    serve(sys.stdin.buffer, send)


def serve(requests: Any, send: Send) -> None:
    """Answers the requests in a binary stream; an error becomes an answer too."""
    job: Job = pickle.load(requests)
    try:
        send("about", _about(job))
        before = _peak_memory(job.framework)
        while (seed := pickle.load(requests)) is not None:
            FRAMEWORKS[job.framework](job, replace(job.config, seed=seed), send)
            peak = _peak_memory(job.framework)
            send("done", {name: value - before[name] for name, value in peak.items()})
    except UserError as error:
        send("error", str(error))
    except (Exception, SystemExit) as error:
        line = users_line(error)
        if not line and isinstance(error, EOFError | BrokenPipeError):  # the parent is gone
            return
        what = line or f"{type(error).__name__}: {' '.join(message_of(error).split())[:300]}"
        send("error", f"{job.framework}: {what}")


if __name__ == "__main__":
    main()
