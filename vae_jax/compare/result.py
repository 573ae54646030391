"""Level 4, the result: compares independent runs, each framework trained in its own way, and their cost."""

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
    """Trains every seed in both frameworks, in turn, and tests whether the losses differ.

    Without PyTorch ours is compared with the added results.
    """
    names = [name for name in FRAMEWORKS if name != "pytorch" or find_spec("torch")]
    trained = list(train(request, names).values())
    added = results.with_distinct_names(request.added, [entry["framework"] for entry in trained])
    entries = [*trained, *added]
    ours, theirs = entries[0], entries[1:]
    tests = [results.compare(ours, entry) for entry in theirs]
    verdicts = {test["verdict"] for test in tests}
    verdict = next((verdict for verdict in (DIFFERS, NO_DIFFERENCE) if verdict in verdicts), UNTESTED)
    details = {"results": entries, "tests": tests, "test": results.TEST}
    return Level(verdict, "; ".join(map(sentence, tests)), details)


def sentence(test: dict[str, Any]) -> str:
    """A test's outcome in words."""
    difference = "" if test["difference"] is None else f"{test['difference']:+.2f}, "
    begin = f"{test['a']} against {test['b']} after epoch {test['epoch']}: {difference}"
    if "why" in test:
        return f"{begin}not tested ({', '.join(test['why'])})"
    low, high = test["interval"]
    return f"{begin}95% interval {low:+.2f} to {high:+.2f}, p = {test['p']:.2g}, {test['verdict']}"


def train(request: Request, names: list[str]) -> dict[str, dict[str, Any]]:
    """Trains in all frameworks; returns their results by name."""
    config, data = request.config, request.data
    composition, objective = build(config, data.image_shape)
    shapes = jax.eval_shape(composition.init, make_keys(config.seed).init)
    common = {
        "format": "vae_jax results",
        "version": 1,
        "data": data.name,
        "unit": objective.unit,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "parameters": count_parameters(shapes.params),
    }
    outcomes: dict[str, dict[str, Any]] = {name: {**common, "runs": []} for name in names}
    epochs = config.train.epochs
    total, finished = len(request.seeds) * len(names) * epochs * len(data.train), 0
    workers = {}
    try:
        for name in names:
            request.on_progress(f"result, starting {name}", 0, total)
            workers[name] = Worker(Job(name, config, data, jax.config.jax_platforms))  # type: ignore[attr-defined]
        for name, worker in workers.items():
            outcomes[name] |= worker.about()
        # In turn, so that the frameworks share a machine's slow hours.
        for seed in request.seeds:
            for name, worker in workers.items():
                run: list[dict[str, Any]] = []
                for kind, content in worker.run(seed):
                    if kind == "epoch":
                        run.append(content)
                        finished += len(data.train)
                    done = finished + (content if kind == "progress" else 0)
                    epoch = min(len(run) + 1, epochs)
                    what = f"result, {outcomes[name]['framework']}, seed {seed}, epoch {epoch}/{epochs}"
                    request.on_progress(what, done, total)
                    if kind == "done":
                        outcomes[name] |= content
                outcomes[name]["runs"].append({"seed": seed, "epochs": run})
                request.keep(outcomes[name])
    finally:
        for worker in workers.values():
            worker.close()
    return outcomes


class Worker:
    """A process in which one framework trains, see `worker.py`."""

    def __init__(self, job: Job):
        """Starts the process."""
        self.name = job.framework
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (it outlives this method)
        # An empty cache: the first run's peak memory is that of a first start.
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
        except BaseException:  # Ctrl-C too: the caller has nothing to close yet
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
        """The error that says how the process ended."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return UserError(f"{self.name}: its process ended with {code}{f'; {lines[-1][:300]}' if lines else ''}")

    def about(self) -> dict[str, Any]:
        """The framework's name, version and device, once it is ready."""
        return self._receive()[1]

    def run(self, seed: int) -> Any:
        """Trains with a seed; yields ("progress", images), ("epoch", figures) and at last ("done", peak memory)."""
        self._send(seed)
        while True:
            kind, content = self._receive()
            yield kind, content
            if kind == "done":
                return

    def close(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()
        self.cache.cleanup()
