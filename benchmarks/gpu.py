"""All that is to be known of one GPU, in at most eight minutes.

    benchmarks/gpu.sh [--out FOLDER] [--mnist DIR] [--seconds 460] [--small]

Everything that is compared gets a process of its own. Those of a group compile side by side; then one after the other
measures, alone on the device. Each result is a line of FOLDER/results.jsonl as soon as it is there, so nothing is lost
where the run is cut off, and at the end the results become one table, FOLDER/table.md, which is printed. What does not
fit into the seconds is left out, and so said.

- speed: the article's network at batch 64, 1024 and 8192 in each precision: vae_jax, PyTorch eager, PyTorch's fused
  Adam with a loss compiled into CUDA graphs or with the whole step in one, Flax's loop; vae_jax with cuBLAS's products
  alone and with `--xla_gpu_deterministic_ops`; Burda's MLP;
- article: `vae-jax train --config article` in full, from the command to the last picture, its images cached before:
  cold, warm, and warm with deterministic kernels; and `vae-jax sweep` with ten seeds of it;
- members: 1, 8, 32 and 128 members of the digits in one program.

`--small` does the same in small on any machine, to see that it works: its figures mean nothing.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpu_table import device, table

TURNS = 3  # of which the median counts
READY = 150  # seconds in which a process must be ready to measure, or the others go on without it
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CUBLAS = "--xla_gpu_enable_triton_gemm=false"
FLAGS = {DETERMINISTIC: "deterministic", CUBLAS: "cuBLAS's products alone"}


class Job(NamedTuple):
    """What one process measures.

    Attributes:
        group: with which it compiles side by side.
        name: of the row.
        kind: which of MEASURES.
        options: of the measure.
        flags: of XLA's.
    """

    group: str
    name: str
    kind: str
    options: dict[str, Any]
    flags: str = ""


# --- What is measured: each prepares (compiles, warms up) and gives a function that measures -------------------------


def prepare_speed(contender: str, batch: int, precision: str, variant: list[str], steps: int, seconds: float) -> Any:
    """Images a second of a contender."""
    from contenders import CONTENDERS, SHAPE, Options

    images = np.random.RandomState(0).randint(0, 256, (steps * batch, *SHAPE), np.uint8)
    run = CONTENDERS[contender](Options(batch, precision, tuple(variant)), images)
    return _speed(run, batch, steps, seconds)


def prepare_burda(steps: int, seconds: float) -> Any:
    """Steps a second of Burda's MLP."""
    from contenders import loop_of

    from vae_jax.config import load_config

    config = load_config("burda_vae")
    batch = config.train.batch_size
    images = np.random.RandomState(0).randint(0, 256, (steps * batch, 28, 28, 1), np.uint8)
    return _speed(loop_of(config, images), batch, steps, seconds)


def _speed(run: Any, batch: int, steps: int, seconds: float) -> Any:
    run(2)
    began = time.perf_counter()
    run(steps)  # all programs, once
    took = time.perf_counter() - began
    turns = max(1, round(seconds / TURNS / took))

    def measure() -> dict[str, Any]:
        speeds = []
        for _ in range(TURNS):
            began = time.perf_counter()
            for _ in range(turns):
                run(steps)
            speeds.append(turns * steps * batch / (time.perf_counter() - began))
        speed = statistics.median(speeds)
        return {"images_per_second": speed, "speeds": speeds, "microseconds_a_step": batch / speed * 1e6}

    return measure


def prepare_members(count: int, epochs: int) -> Any:
    """Seconds of the digits' epochs for so many members in one program, and their images a second, all together."""
    from dataclasses import replace

    from vae_jax import data
    from vae_jax.config import load_config
    from vae_jax.training import several

    base = load_config("digits", **{"train.epochs": 1})
    images = data.load(base.data)
    shown = several.Images(images)

    def of(epochs: int) -> list[Any]:
        config = replace(base, train=replace(base.train, epochs=epochs))
        return [several.Run(replace(config, seed=seed)) for seed in range(count)]

    program = several.program_that_fits([member.config for member in of(1)], shown)
    several.fit(program, of(1))  # warm

    def measure() -> dict[str, Any]:
        program.config = replace(base, train=replace(base.train, epochs=epochs))
        began = time.perf_counter()
        several.fit(program, of(epochs))
        seconds = time.perf_counter() - began
        trained = count * epochs * len(images.train)
        return {"members": count, "at_once": program.size, "seconds": seconds, "images_per_second": trained / seconds}

    return measure


def prepare_command(arguments: list[str], sweep: bool, cache: str) -> Any:
    """Seconds of a command in full, and its last epoch's figures (a sweep's: of every member)."""

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "vae_jax", *arguments, "--out", f"{folder}/made"]
            environment = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
            environment["XDG_CACHE_HOME"] = cache
            began = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - began
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed")
            found = sorted(Path(folder, "made").rglob("metrics.jsonl"))
            last = [json.loads(path.read_text().splitlines()[-1]) for path in found]
        losses = [epoch["test_loss"] for epoch in last]
        result = {"seconds": seconds, "test_losses": losses}
        if not sweep:
            result |= {name: last[0][name] for name in ("train_seconds", "compile_seconds", "images_per_second")}
        return result

    return measure


MEASURES = {
    "speed": prepare_speed,
    "burda": prepare_burda,
    "members": prepare_members,
    "command": prepare_command,
}


# --- The jobs --------------------------------------------------------------------------------------------------------


def speed_jobs(batch: int, small: bool) -> list[Job]:
    """Of one batch size: every contender in every precision."""
    jobs: list[Job] = []
    steps, seconds = (4, 0.1) if small else (max(64, 12800 // batch // 32 * 32), 1.5)
    ours, eager, best, flax = "vae_jax", "PyTorch eager", "PyTorch best", "Flax loop"
    fast = [["fused"]] if small else [["fused", "cuda_graphs"], ["fused", "step_graph"]]
    ways: list[tuple[str, str, list[str], str]] = []
    for precision in ("float32",) if small else ("float32", "tensorfloat32", "bfloat16"):
        ways += [(precision, ours, [], ""), (precision, eager, [], "")]
        ways += [(precision, best, variant, "") for variant in fast]
        ways.append((precision, flax, [], ""))
    ways.append(("float32", ours, [], CUBLAS))
    if batch <= 64:
        ways.append(("float32", ours, [], DETERMINISTIC))
    ways += [("torch", eager, [], ""), *(("torch", best, variant, "") for variant in fast)]
    for precision, contender, variant, flags in ways:
        more = [*variant, *([FLAGS[flags]] if flags else [])]
        name = contender.removesuffix(" best") + f" ({' '.join(more)})" * bool(more)
        options = {"contender": contender, "batch": batch, "precision": precision, "variant": variant}
        options |= {"steps": steps, "seconds": seconds}
        jobs.append(Job(f"batch {batch}", f"{precision}: {name}", "speed", options, flags))
    return jobs


def article_jobs(mnist: str | None, small: bool, cache: str) -> list[Job]:
    """The article in full, which reads its images first; and ten seeds of it."""
    if mnist is None or small:
        data = ["--config", "digits", "--train.epochs=2", "--output.figure_every=1000"]
    else:
        data = ["--config", "article", f"--data.manual_dir={mnist}", f"--data.cache_dir={cache}/data"]
    train, sweep = {"arguments": ["train", *data], "sweep": False}, ["sweep", *data, f"--seeds={2 if small else 10}"]
    cold, warm, cublas = f"{cache}/cold", f"{cache}/warm", f"{cache}/cublas"
    return [
        Job("article", "cold", "command", {**train, "cache": cold}),
        Job("article", "warm", "command", {**train, "cache": cold}),
        Job("article", "ten seeds in one sweep", "command", {"arguments": sweep, "sweep": True, "cache": cold}),
        Job("article", "deterministic, cold", "command", {**train, "cache": warm}, DETERMINISTIC),
        Job("article", "deterministic, warm", "command", {**train, "cache": warm}, DETERMINISTIC),
        Job("article", "deterministic, warm again", "command", {**train, "cache": warm}, DETERMINISTIC),
        *(
            Job(
                "article",
                f"deterministic, cuBLAS's products alone, {time}",
                "command",
                {**train, "cache": cublas},
                f"{DETERMINISTIC} {CUBLAS}",
            )
            for time in ("cold", "warm")
        ),
    ]


def all_jobs(mnist: str | None, small: bool, cache: str) -> list[Job]:
    """In the order in which they matter."""
    small_batch, *batches = (4, 8) if small else (64, 1024, 8192)
    steps, seconds = (4, 0.1) if small else (640, 1.5)
    first = speed_jobs(small_batch, small)
    first.append(Job(first[0].group, "Burda's MLP, batch 20", "burda", {"steps": steps, "seconds": seconds}))
    counts, epochs = ((1, 2), 1) if small else ((1, 8, 32, 128), 10)
    members = [Job("members", f"{count}", "members", {"count": count, "epochs": epochs}) for count in counts]
    rest = [job for batch in batches for job in speed_jobs(batch, small)]
    return [*first, *article_jobs(mnist, small, cache), *members, *(job._replace(group="large") for job in rest)]


# --- Their processes -------------------------------------------------------------------------------------------------


class Process:
    """A job's process: compiles at once, measures at the word go."""

    def __init__(self, job: Job, log: Any):
        """Starts it."""
        self.job, self.lines = job, []
        environment = dict(os.environ)
        if job.flags:
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {job.flags}".strip()
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # so that it ends with the commands that it runs
        )
        self.arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self.arrived:
                self.lines.append(line)
                self.arrived.notify_all()
        with self.arrived:
            self.lines.append("")
            self.arrived.notify_all()

    def line(self, until: float) -> dict[str, Any]:
        """What it says next; why it says nothing where it does not."""
        with self.arrived:
            while not self.lines:
                left = until - time.monotonic()
                if left <= 0 or not self.arrived.wait(left):
                    return {"failed": "out of time"}
            line = self.lines.pop(0)
        if not line:
            return {"failed": f"its process ended with code {self.process.wait()}"}
        return json.loads(line)

    def measure(self, until: float) -> dict[str, Any]:
        """Lets it measure."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        return self.line(until)

    def end(self) -> None:
        """Ends it, and what it runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serve(job: Job) -> None:
    """A job's process: prepares, says so, waits, measures, says what."""
    out = os.dup(1)  # what the libraries print is none of it
    os.dup2(2, 1)

    def say(found: dict[str, Any]) -> None:
        os.write(out, (json.dumps(found) + "\n").encode())

    try:
        began = time.perf_counter()
        measure = MEASURES[job.kind](**job.options)
        say({"prepared": time.perf_counter() - began})
        if sys.stdin.readline():
            say(measure())
    except Exception as error:  # a way that does not work here is said, not hidden
        say({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def run(jobs: list[Job], out: Path, seconds: float, at_once: int) -> list[dict[str, Any]]:
    """All jobs, group by group, until the time is up."""
    deadline, results = time.monotonic() + seconds, []

    def note(job: Job, found: dict[str, Any]) -> None:
        row = {"group": job.group, "name": job.name, **job.options, **found}
        results.append(row)
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        outcome = found.get("failed") or {
            name: found[name] for name in ("images_per_second", "seconds") if name in found
        }
        print(f"{time.monotonic() - deadline + seconds:5.0f} s  {job.group}, {job.name}: {outcome}", file=sys.stderr)

    with (out / "log.txt").open("a") as log:
        for group in dict.fromkeys(job.group for job in jobs):
            own = [job for job in jobs if job.group == group]
            # A command in full prepares nothing, and is not to meet another's start.
            size = 1 if own[0].kind == "command" else at_once
            for first in range(0, len(own), size):
                started = [Process(job, log) for job in own[first : first + size] if time.monotonic() < deadline]
                for job in own[first + len(started) : first + size]:
                    note(job, {"failed": "out of time"})
                ready, until = [], min(deadline, time.monotonic() + READY)
                for process in started:
                    found = process.line(until)
                    if "failed" in found:
                        note(process.job, found)
                    else:
                        ready.append((process, found))
                for process, found in ready:
                    note(process.job, {**found, **process.measure(deadline)})
                for process in started:
                    process.end()
    return results


def read_images(mnist: str, folder: str) -> None:
    """Has the article's images read, resized and cached in a folder."""
    code = (
        "import sys, vae_jax\n"
        "options = {'data.manual_dir': sys.argv[1], 'data.cache_dir': sys.argv[2]}\n"
        "vae_jax.load_data(vae_jax.load_config('article', **options).data)"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, mnist, folder], env=environment, check=True)


def main() -> None:
    """Runs all jobs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--mnist", help="folder of MNIST's four files; without it the article's commands train digits")
    parser.add_argument("--seconds", type=float, default=460, help="after which what still runs is ended")
    parser.add_argument(
        "--at-once", type=int, default=len(os.sched_getaffinity(0)), help="processes that compile side by side"
    )
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="such as 'batch 64', article, members, large")
    parser.add_argument("--small", action="store_true", help="the same in small, to see that it works")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        serve(Job(*json.loads(options.job)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        if options.mnist and not options.small:
            read_images(options.mnist, f"{cache}/data")
        jobs = all_jobs(options.mnist and os.path.abspath(options.mnist), options.small, cache)
        jobs = [job for job in jobs if not options.only or job.group in options.only]
        results = run(jobs, options.out, options.seconds, options.at_once)
    shown = table(results, device())
    (options.out / "table.md").write_text(shown + "\n")
    print(shown)


if __name__ == "__main__":
    main()
