"""Level 4, the result: independent runs in each framework's own way; what they reach, and what they cost."""

import os
import pickle
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from typing import Any

import jax

from vae_jax.compare import results
from vae_jax.compare.level import DIFFERS, NO_DIFFERENCE, UNTESTED, Level, Request
from vae_jax.compare.worker import FRAMEWORKS, Job
from vae_jax.errors import UserError
from vae_jax.keys import make_keys
from vae_jax.model.build import build
from vae_jax.networks import count_parameters


def result(request: Request) -> Level:
    """Trains every seed in both frameworks, taking turns, and tests whether the losses differ.

    Where PyTorch is missing, ours is laid beside the results that were added.
    """
    names = [name for name in FRAMEWORKS if name != "pytorch" or find_spec("torch")]
    trained = list(train(request, names).values())
    found = [*trained, *results.named_apart(request.added, [each["framework"] for each in trained])]
    ours, others = found[0], found[1:]
    tests = [results.compare(ours, other) for other in others]
    verdicts = {test["verdict"] for test in tests}
    verdict = next((each for each in (DIFFERS, NO_DIFFERENCE) if each in verdicts), UNTESTED)
    details = {"results": found, "tests": tests, "test": results.TEST}
    return Level(verdict, "; ".join(map(sentence, tests)), details)


def sentence(test: dict[str, Any]) -> str:
    """What a test has found, in words."""
    difference = "" if test["difference"] is None else f"{test['difference']:+.2f}, "
    begin = f"{test['a']} against {test['b']} after epoch {test['epoch']}: {difference}"
    if "why" in test:
        return f"{begin}not tested ({', '.join(test['why'])})"
    low, high = test["interval"]
    return f"{begin}95% interval {low:+.2f} to {high:+.2f}, p = {test['p']:.2g}, {test['verdict']}"


def train(request: Request, names: list[str]) -> dict[str, dict[str, Any]]:
    """Each framework's results, by its name."""
    config, data = request.config, request.data
    network, objective = build(config, data.image_shape)
    shapes = jax.eval_shape(network.init, make_keys(config.seed).init)
    common = {
        "format": "vae_jax results",
        "version": 1,
        "data": data.name,
        "unit": objective.unit,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "parameters": count_parameters(shapes.params),
    }
    found: dict[str, dict[str, Any]] = {name: {**common, "runs": []} for name in names}
    epochs = config.train.epochs
    total, finished = len(request.seeds) * len(names) * epochs * len(data.train), 0
    workers = {}
    try:
        for name in names:
            request.tell(f"result, starting {name}", 0, total)
            workers[name] = Worker(Job(name, config, data, jax.config.jax_platforms))  # type: ignore[attr-defined]
        for name, worker in workers.items():
            found[name] |= worker.about()
        # Turn by turn, so that a machine's slow hours are shared.
        for seed in request.seeds:
            for name, worker in workers.items():
                run: list[dict[str, Any]] = []
                for kind, content in worker.run(seed):
                    if kind == "epoch":
                        run.append(content)
                        finished += len(data.train)
                    done = finished + (content if kind == "progress" else 0)
                    what = (
                        f"result, {found[name]['framework']}, seed {seed}, epoch {min(len(run) + 1, epochs)}/{epochs}"
                    )
                    request.tell(what, done, total)
                    if kind == "done":
                        found[name] |= content
                found[name]["runs"].append({"seed": seed, "epochs": run})
                request.keep(found[name])
    finally:
        for worker in workers.values():
            worker.close()
    return found


class Worker:
    """A process in which one framework trains, see `worker.py`."""

    def __init__(self, job: Job):
        """Starts it."""
        self.name = job.framework
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (it outlives this method)
        # Nothing compiled before, by whomever: the first run's peak memory is that of a first start.
        self.cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vae_jax.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": self.cache.name},
        )
        try:
            self._send(job)
        except BaseException:  # Ctrl-C too: whoever makes this has nothing to close yet
            self.close()
            raise

    def _send(self, content: Any) -> None:
        assert self.process.stdin is not None
        try:
            pickle.dump(content, self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failure() from error

    def _receive(self) -> tuple[str, Any]:
        assert self.process.stdout is not None
        try:
            kind, content = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._failure() from error
        if kind == "error":
            raise UserError(content)
        return kind, content

    def _failure(self) -> UserError:
        """How the process ended."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return UserError(f"{self.name}: its process ended with {code}{f'; {lines[-1][:300]}' if lines else ''}")

    def about(self) -> dict[str, Any]:
        """The framework's name, version and device, once it is ready."""
        return self._receive()[1]

    def run(self, seed: int) -> Any:
        """Trains with a seed: ("progress", images), ("epoch", figures) and at last ("done", peak memory)."""
        self._send(seed)
        while True:
            kind, content = self._receive()
            yield kind, content
            if kind == "done":
                return

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()
        self.cache.cleanup()
