"""Faults on purpose: runs that are killed, refused a write or damaged must end where an undisturbed run ends.

    python tests/faults.py writes --count 8      killed at a write, or the write refused as on a full disk
    python tests/faults.py kills --count 100     killed at random moments, as real processes
    python tests/faults.py processes --count 20  one of two processes that train together killed at a random moment
    python tests/faults.py removed --count 20    the run's folder removed at a write, and another run in its place
    python tests/faults.py presses --count 30    Ctrl-C in other commands at random moments, as real processes
    python tests/faults.py links                 links in a run's folder wherever something is written
    python tests/faults.py raises                a user's file that raises while a run is opened

`make torture` does most at length. All is pinned to one core, where a run repeats bit for bit, and chosen by --seed.
"""

import argparse
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMING = {"images_per_second", "train_seconds", "compile_seconds", "chunk_steps", "seconds"}
# Three epochs of ten steps, saved after every four steps as well.
TINY = [
    "--config=digits",
    "--data.image_size=8",
    "--data.test=597",
    "--data.validation=200",
    "--model.channels=[4,8]",
    "--model.latent=2",
    "--model.hidden=16",
    "--train.epochs=3",
    "--train.batch_size=100",
    "--train.chunk_steps=4",
    "--output.checkpoint_minutes=1e-9",
    "--output.figure_images=9",
]
TINY_OF_ANY = [flag for flag in TINY if not flag.startswith(("--model.channels", "--model.hidden"))]  # network

# --- Is it the same run? ---------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    """All that two equal runs have in common: metrics, figures, the arrays of the newest and the best checkpoint."""
    from vae_jax.runs.description import read_description

    def plain(figures: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in figures.items() if name not in TIMING}

    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    described = {step: read_description(folder / "checkpoints" / str(step)) for step in steps}
    ranked = [step for step in steps if described[step].loss is not None]
    best = min(ranked, key=lambda step: (described[step].loss, -step))
    return {
        "metrics": [plain(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "summary": plain(json.loads((folder / "summary.json").read_text())),
        "config": (folder / "config.yaml").read_text(),
        "figures": {path.name: path.read_bytes() for path in sorted((folder / "figures").iterdir())},
        **{
            f"{name} checkpoint": (step, described[step].arrays, [*map(plain, described[step].history)])
            for name, step in (("newest", steps[-1]), ("best", best))
        },
    }


def differences(folder: Path, expected: dict[str, Any]) -> list[str]:
    """What is not as in an undisturbed run; empty where all is."""
    try:
        found = content(folder)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return [name for name in expected if found[name] != expected[name]]


# --- At a write ------------------------------------------------------------------------------------------------------


class Watch:
    """Calls a function just before each change that this process makes below a folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.act: Callable[[int, str], None] = lambda number, what: None
        self.count = 0
        self._lock, self._inside = threading.Lock(), threading.local()
        sys.addaudithook(self._hook)  # for good: Python removes none

    @contextmanager
    def on(self, folder: Path, act: Callable[[int, str], None]) -> Iterator[None]:
        self.folder, self.act, self.count = folder, act, 0
        try:
            yield
        finally:
            self.folder = None

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.folder is None or getattr(self._inside, "yes", False):
            return
        if event == "open":
            path, mode, flags = arguments
            changes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else "w" in mode
            paths = [path] if changes else []
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            at = [each for each in arguments[1:] if isinstance(each, int) and each >= 0 and event != "os.mkdir"]
            base = os.readlink(f"/proc/self/fd/{at[0]}") if at else ""
            paths = [os.path.join(base, os.fsdecode(arguments[0]))]
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike) and Path(os.fsdecode(path)).is_relative_to(self.folder):
                with self._lock:
                    self._inside.yes = True
                    try:
                        self.count += 1
                        self.act(self.count, f"{event} {os.path.relpath(os.fsdecode(path), self.folder)}")
                    finally:
                        self._inside.yes = False


def copy(source: Path, target: Path) -> None:
    """Copies a folder that is being written to, as far as it is there."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def half_write(folder: Path) -> str:
    """Cuts the newest of the files that are not in their place yet to half; gives words for it."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".tmp" in str(path.relative_to(folder))]
    if not files:
        return ""
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    return f" with {newest.relative_to(folder)} in half"


def again(folder: Path, options: list[str], always: bool = False) -> list[str]:
    """How a run is resumed: as the run says, once it has begun."""
    begun = (folder / "config.yaml").exists() and not always
    return ["train", "--out", str(folder), "--resume", *([] if begun else options)]


def command(*arguments: str) -> tuple[int, str]:
    """A command in this process: its exit code and what it prints to standard error."""
    from vae_jax.cli import main

    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = main(arguments)
    return code, errors.getvalue()


def writes(work: Path, count: int, seed: int) -> int:
    """At `count` writes (0 for all) of a small run: the folder as a kill there leaves it, and the write refused."""
    watch, moments = Watch(), work / "moments"
    names: dict[int, str] = {}

    def keep(number: int, what: str) -> None:
        names[number] = what
        copy(work / "whole", moments / str(number))
        if number % 2:  # a file that is being written may be there in part
            names[number] += half_write(moments / str(number))

    with watch.on(work / "whole", keep):
        assert command("train", "--out", str(work / "whole"), *TINY)[0] == 0
    expected = content(work / "whole")
    chosen = sorted(random.Random(seed).sample(sorted(names), count)) if count else sorted(names)
    print(f"{len(names)} writes, {len(chosen)} chosen", flush=True)
    failed = 0

    def tell(number: int, what: str, wrong: list[str]) -> None:
        nonlocal failed
        failed += bool(wrong)
        print(f"{what} at write {number}, {names[number]}: {', '.join(wrong) or 'equal'}", flush=True)

    for number in chosen:
        folder = moments / str(number)
        code, said = command(*again(folder, TINY))
        tell(number, "killed", differences(folder, expected) if code == 0 else [f"exit code {code}: {said}"])
        shutil.rmtree(folder)
    for number in chosen:
        folder = work / "refused"

        def refuse(at: int, what: str, number: int = number) -> None:
            if at == number:
                raise OSError(errno.ENOSPC, "No space left on device", what)

        with watch.on(folder, refuse):
            code, said = command("train", "--out", str(folder), *TINY)
        wrong = []
        if code not in (0, 2) or "Traceback" in said or (code == 2 and len(said.splitlines()) != 1):
            wrong.append(f"exit code {code}: {said}")
        if code == 2 or not (folder / "summary.json").exists():
            code, said = command(*again(folder, TINY))
            wrong += [f"exit code {code} afterwards: {said}"] if code else []
        tell(number, "refused", wrong + differences(folder, expected))
        shutil.rmtree(folder)
    return failed


# --- In a folder that is not what it was -----------------------------------------------------------------------------


def bytes_in(folder: Path) -> dict[str, bytes]:
    """The files below a folder, but for locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def removed(work: Path, count: int, seed: int) -> int:
    """At `count` writes (0 for all) a run's folder is removed and another run put there, which must stay as it is."""
    watch, other, folder = Watch(), work / "other", work / "run"
    assert command("train", "--out", str(other), *TINY, "--seed=1", "--train.epochs=1")[0] == 0
    expected, names = bytes_in(other), {}
    with watch.on(work / "whole", lambda number, what: names.update({number: what})):
        assert command("train", "--out", str(work / "whole"), *TINY)[0] == 0
    chosen = sorted(random.Random(seed).sample(sorted(names), count)) if count else sorted(names)
    print(f"{len(names)} writes, {len(chosen)} chosen", flush=True)
    failed = 0
    for number in chosen:

        def replace(at: int, what: str, number: int = number) -> None:
            if at == number:
                shutil.rmtree(folder, ignore_errors=True)
                copy(other, folder)

        with watch.on(folder, replace):
            code, said = command("train", "--out", str(folder), *TINY)
        wrong = [] if code == 2 and len(said.splitlines()) == 1 else [f"exit code {code}: {said}"]
        if bytes_in(folder) != expected:
            found = bytes_in(folder)
            names_of = {name for name in {*expected, *found} if expected.get(name) != found.get(name)}
            wrong.append(f"the other run is not as it was: {', '.join(sorted(names_of))}")
        failed += bool(wrong)
        print(f"removed at write {number}, {names[number]}: {', '.join(wrong) or 'equal'}", flush=True)
        shutil.rmtree(folder)
    return failed


USES = (
    ["train", "--resume", "--train.epochs=4"],
    ["train", "--overwrite", *TINY],
    ["sample", "-n", "4"],
    ["reconstruct", "-n", "4"],
    ["interpolate", "-n", "2", "--steps", "2"],
    ["traverse", "--steps", "2"],
    ["encode"],
)


def links(work: Path, count: int, seed: int) -> int:
    """Of a run every file is a link, or one of its folders: what they lead to must stay as it is, whatever is done."""
    whole, folder, others = work / "whole", work / "run", work / "others"
    network = work / "mine.py"
    network.write_text('from vae_jax.networks import NETWORKS\n\nnet = NETWORKS["mlp"]\n')
    assert command("train", "--out", str(whole), *TINY_OF_ANY, "--model.network", f"{network}:net")[0] == 0
    for use in USES[2:]:
        assert command(use[0], str(whole), *use[1:])[0] == 0
    assert command("train", "--out", str(whole), "--resume", "--train.epochs=3")[0] == 0
    folders = sorted(
        path.relative_to(whole) for path in whole.rglob("*") if path.is_dir() and "state" not in path.parts
    )
    cases = [None, Path(".lock"), *folders, Path("checkpoints/damaged")]
    if count:
        cases = random.Random(seed).sample(cases, count)
    failed = 0
    for place in cases:
        for use in USES:
            for path in (folder, others):
                shutil.rmtree(path, ignore_errors=True)
                copy(whole, path)
            if place is None:  # every file
                for path in [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]:
                    path.unlink()
                    path.symlink_to(others / path.relative_to(folder))
            else:
                shutil.rmtree(folder / place) if (folder / place).is_dir() else (folder / place).unlink(missing_ok=True)
                if not (others / place).exists():
                    (others / place).mkdir()
                (folder / place).symlink_to(others / place)
            if place == Path("checkpoints/damaged"):  # so that something is moved there
                (folder / "checkpoints" / ".1.0.tmp").mkdir()
            (others / ".lock").write_text("mine")
            before = bytes_in(others) | {".lock": b"mine"}
            out = ["--out", str(folder)] if use[0] == "train" else [str(folder)]
            code, said = command(use[0], *out, *use[1:])
            lines = [line for line in said.splitlines() if line.startswith("vae-jax: error")]
            wrong = (
                [] if (code, len(lines)) in ((0, 0), (2, 1)) and "Traceback" not in said else [f"code {code}: {said}"]
            )
            if bytes_in(others) | {".lock": (others / ".lock").read_bytes()} != before:
                wrong.append("what the link leads to has changed")
            failed += bool(wrong)
            how = "refused" if code else "written"
            print(
                f"{place or 'every file'} a link, {' '.join(use[:2])}, {how}: {', '.join(wrong) or 'equal'}", flush=True
            )
    return failed


# --- In a user's file ------------------------------------------------------------------------------------------------

RAISING = Path(__file__).parent / "own" / "raising.py"
ENTRIES = {
    "posterior.name": "posterior",
    "prior.name": "prior",
    "likelihood.name": "likelihood",
    "objective.name": "objective",
    "model.network": "network",
}
WHILE_TRAINED = ("transform", "log_prior", "log_prob", "objective")  # places that are not passed when nothing is


def raises(work: Path, count: int, seed: int) -> int:
    """What a user's file raises while a run or a sweep is opened, in `count` ways (0 for all), is shown with its line;
    what is there stays as it is, and goes on once the file raises no more."""
    sys.path.insert(0, str(RAISING.parent))
    from raising import PLACES, RAISED

    run, sweep = work / "run", work / "sweep"
    parts = [f"--{option}={RAISING}:{entry}" for option, entry in ENTRIES.items()]
    plain = [option for option in TINY if not option.startswith(("--model.channels", "--model.hidden"))]
    assert command("train", "--out", str(run), *plain, *parts, "--train.epochs=1") == (0, "")
    assert command("sweep", "--out", str(sweep), *plain, *parts, "--train.epochs=1", "--seeds=2")[0] == 0
    resume = ["train", "--out", str(run), "--resume", "--train.epochs=2"]
    uses = [
        ["evaluate", str(run)],
        resume,
        ["sample", str(run), "--out", str(work / "samples.png")],
        ["sweep", "--out", str(sweep), "--resume"],
    ]
    cases = [
        (place, kind, use)
        for use in uses
        for place in PLACES
        for kind in RAISED
        if use in uses[:2] or place not in WHILE_TRAINED
    ]
    chosen = random.Random(seed).sample(cases, count) if count else cases
    before, failed = (bytes_in(run), bytes_in(sweep)), 0
    for place, kind, use in chosen:
        for name in [name for name in sys.modules if name.startswith("vae_jax_user_")]:
            del sys.modules[name]  # so that the file is loaded again
        os.environ["RAISE"] = f"{place} {kind}"
        try:
            code, said = command(*use)
        finally:
            del os.environ["RAISE"]
        lines = said.splitlines() or [""]
        wrong = [] if code == 2 else [f"exit code {code}"]
        if not (lines[-1].startswith("vae-jax: error: ") and f"{RAISING}:" in lines[-1] and f": {kind}" in lines[-1]):
            wrong.append(f"said {said}")
        signs = ("Traceback", "start the run again", "rewritten", "passed over")
        if blamed := [line for line in lines if any(sign in line for sign in signs)]:
            wrong.append(f"blamed {blamed}")
        if (bytes_in(run), bytes_in(sweep)) != before:
            wrong.append("what was there has changed")
        failed += bool(wrong)
        print(f"{kind} in {place}, {use[0]}: {', '.join(wrong) or 'equal'}", flush=True)
    code, said = command(*resume)
    print(f"raising no more: {said if code else 'equal'}")
    return failed + bool(code)


# --- At any moment ---------------------------------------------------------------------------------------------------


def start(folder: Path, options: list[str], core: int, always: bool = False) -> subprocess.Popen:
    pinned = f"import os, sys; os.sched_setaffinity(0, {{{core}}}); from vae_jax.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", pinned, *again(folder, options, always)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kills(work: Path, count: int, seed: int, options: list[str], cores: list[int]) -> int:
    """`count` runs, each killed at a random moment, some once more or stopped by SIGTERM, and resumed to the end."""
    seconds = 0.0
    for name in ("warm", "whole"):  # the first fills the cache of compiled programs
        began = time.monotonic()
        process = start(work / name, options, cores[0])
        said = process.communicate()[1]
        assert process.returncode == 0, said
        seconds = time.monotonic() - began
    expected = content(work / "whole")
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    free = list(cores)

    def trial(number: int) -> tuple[int, list[float], list[str]]:
        rng, core, folder, at = random.Random(f"{seed} {number}"), free.pop(), work / f"killed{number}", []
        try:
            while True:
                process = start(folder, options, core)
                moment = rng.uniform(0, seconds)
                kill = not at or rng.random() < 0.25  # the first time always, now and then again
                try:
                    said = process.communicate(timeout=moment if kill else None)[1]
                    if process.returncode != 0:
                        return number, at, [f"exit code {process.returncode}: {said}"]
                    if at:
                        return number, at, differences(folder, expected)
                    shutil.rmtree(folder)  # it was faster than the kill: once more
                except subprocess.TimeoutExpired:
                    # The first time always without warning.
                    kind = signal.SIGKILL if not at else rng.choice([signal.SIGKILL, signal.SIGTERM])
                    process.send_signal(kind)
                    said = process.communicate()[1]
                    if process.returncode not in (-kind, 128 + kind, 0):
                        return number, at, [f"exit code {process.returncode} after {kind.name}: {said}"]
                    at.append(round(moment, 2))
        finally:
            free.append(core)
            shutil.rmtree(folder, ignore_errors=True)

    failed, killed = 0, 0
    with ThreadPoolExecutor(len(cores)) as pool:
        for number, at, wrong in pool.map(trial, range(count)):
            failed, killed = failed + bool(wrong), killed + len(at)
            print(f"{number + 1}/{count} killed after {at} s: {', '.join(wrong) or 'equal'}", flush=True)
    print(f"{count - failed} of {count} runs, killed {killed} times, end bit for bit where the undisturbed one ends")
    return failed


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

# Commands, by what is looked for in them; RUN is a run, OUT a folder of their own.
PRESSED = {
    "evaluate": ["evaluate", "RUN"],
    "evaluate --nll-samples": ["evaluate", "RUN", "--nll-samples=20", "--images=20"],
    "evaluate --ais": ["evaluate", "RUN", "--ais=20", "--ais-chains=2", "--images=8"],
    "evaluate --diagnostics": ["evaluate", "RUN", "--diagnostics"],
    "sample": ["sample", "RUN", "--out=OUT/samples.png"],
    "sample --from": ["sample", "RUN", "--from=gmm", "--out=OUT/samples.png"],
    "reconstruct": ["reconstruct", "RUN", "--out=OUT/pairs.png"],
    "encode": ["encode", "RUN", "--out=OUT/latents.npz"],
    "interpolate": ["interpolate", "RUN", "-n", "3", "--steps", "4", "--out=OUT/rows.png"],
    "traverse": ["traverse", "RUN", "--steps", "3", "--out=OUT/grid.png"],
    "export": ["export", "RUN", "OUT/weights.safetensors"],
    "import": ["import", "WEIGHTS", "OUT/imported", *TINY],
    "import a pickle": ["import", "PICKLE", "OUT/imported", *TINY],
    "compare": ["compare", "--out=OUT/comparison", "--levels=function,gradient,trajectory", "--steps=3", *TINY],
    "compare --levels result": ["compare", "--out=OUT/comparison", "--levels=result", "--seeds=2", "--epochs=1", *TINY],
    "sweep": ["sweep", "--out=OUT/sweep", "--seeds=2", *TINY, "--train.epochs=1"],
    "train": ["train", "--out=OUT/run", *TINY],
}
TELLING = ("vae-jax: interrupted", "vae-jax: SIGINT: saving and stopping", "vae-jax: stopped ", "vae-jax: SIGINT came ")


def press(work: Path, arguments: list[str], core: int, moment: float | None, seed: int) -> tuple[int, list[str], float]:
    """A command, in which Ctrl-C is pressed at a moment; its exit code, what is wrong, and how long it took."""
    import psutil

    out, scratch = work / f"out{seed}", work / f"scratch{seed}"
    for folder in (out, scratch):
        folder.mkdir()
    places = {"RUN": work / "whole", "OUT": out, "WEIGHTS": work / "weights.safetensors", "PICKLE": work / "weights.pt"}
    spelled = arguments
    for name, place in places.items():
        spelled = [each.replace(name, str(place)) for each in spelled]
    whole = bytes_in(work / "whole")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "vae_jax", *spelled],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    os.sched_setaffinity(process.pid, {core})
    wrong = []
    try:
        said = process.communicate(timeout=moment)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            said = process.communicate(timeout=SOON)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
            wrong.append(f"it did not end within {SOON} s")
    seconds = time.monotonic() - began
    lines = said.splitlines()
    ours = [line for line in lines if line.startswith(TELLING)]
    # Python itself is interrupted before it has come to the package's first lines, and says so in its own way.
    early = process.returncode in (-signal.SIGINT, 1) and "vae_jax/cli" not in said and not ours
    if process.returncode not in (0, 130) and not early:
        wrong.append(f"exit code {process.returncode}")
    if process.returncode == 130 and (not ours or lines[-1] != ours[-1]):
        wrong.append("the last line does not say so")
    if not early and any(sign in said for sign in ("Traceback", "Exception ignored", "KeyboardInterrupt", "Error")):
        wrong.append("more than a line")
    with contextlib.suppress(ProcessLookupError):  # the session's number is its first process's
        os.killpg(process.pid, 0)
        time.sleep(1)
        os.killpg(process.pid, 0)
        left = [each.cmdline() for each in psutil.process_iter() if os.getsid(each.pid) == process.pid]
        wrong.append(f"processes are left: {left}")
        os.killpg(process.pid, signal.SIGKILL)
    unfinished = [path for folder in (out, work / "whole") for path in folder.rglob(".*") if path.name != ".lock"]
    # PyTorch makes a folder for its compiler and leaves it.
    wrong += [f"left: {path}" for path in (*unfinished, *scratch.iterdir()) if "torchinductor" not in path.name]
    if bytes_in(work / "whole") != whole:
        wrong.append("the run is not as it was")
    if wrong:
        wrong.append(said)
    shutil.rmtree(out)
    shutil.rmtree(scratch)
    return process.returncode, wrong, seconds


def presses(work: Path, count: int, seed: int, only: str) -> int:
    """Ctrl-C at `count` random moments of commands: one line, exit code 130, and nothing left half-written."""
    cores, failed = sorted(os.sched_getaffinity(0)), 0
    # Ctrl-C is ignored in what a shell's background job starts, as this may be.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert command("train", "--out", str(work / "whole"), *TINY)[0] == 0
    assert command("export", str(work / "whole"), str(work / "weights.safetensors"))[0] == 0
    names = [name for name in PRESSED if name.startswith(only)]
    if any(name.startswith(("import", "compare")) for name in names):
        try:
            import torch
            from safetensors.torch import load_file
        except ImportError:
            names = [name for name in names if name not in ("import a pickle",) and not name.startswith("compare")]
        else:
            torch.save(load_file(work / "weights.safetensors"), work / "weights.pt")
    rng, seconds, codes = random.Random(seed), {}, []
    trials = [names[number % len(names)] for number in range(count)]
    for name in dict.fromkeys(trials):
        for _ in range(2):  # the first fills the cache of compiled programs
            code, wrong, seconds[name] = press(work, PRESSED[name], cores[0], None, 0)
            assert (code, wrong) == (0, []), (name, code, wrong)
    free = list(cores)

    def trial(number: int, name: str, moment: float) -> tuple[int, list[str], float]:
        core = free.pop()
        try:
            return press(work, PRESSED[name], core, moment, number)
        finally:
            free.append(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        moments = [rng.uniform(0, seconds[name]) for name in trials]
        for number, (code, wrong, took) in enumerate(pool.map(trial, range(count), trials, moments)):
            failed += bool(wrong)
            codes.append(code)
            how = f"pressed after {moments[number]:.2f} s, ended with {code} after {took:.2f} s"
            print(f"{number + 1}/{count} {trials[number]}, {how}: {', '.join(wrong) or 'equal'}", flush=True)
    print(f"{count - failed} of {count} end as they should, {codes.count(130)} of them interrupted")
    return failed


# --- One of two processes --------------------------------------------------------------------------------------------

SOON = 60  # seconds in which the process that is left must have stopped
ENDED = "another process has ended"


def start_two(folder: Path, options: list[str], more: Sequence[list[str]] = ([], [])) -> list[subprocess.Popen]:
    """Two processes that train one run, each on a core of its own where there are two, and with options of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    both = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    commands = [[*options, *both, "--process", str(i), *more[i]] for i in (0, 1)]
    return [start(folder, commands[i], cores[i % len(cores)], always=True) for i in (0, 1)]


def processes(work: Path, count: int, seed: int, options: list[str], late: bool) -> int:
    """`count` runs of two processes, one of them killed at a random moment, and resumed to the end."""
    seconds = 0.0
    for name in ("warm", "whole"):
        began = time.monotonic()
        both = start_two(work / name, options)
        said = [process.communicate()[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        seconds = time.monotonic() - began
    expected = content(work / "whole")
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    failed = 0
    for number in range(count):
        rng, folder, wrong = random.Random(f"{seed} {number}"), work / f"killed{number}", []
        moment, killed = rng.uniform(0.6 * seconds if late else 0, seconds), rng.randrange(2)
        both = start_two(folder, options)
        time.sleep(moment)
        both[killed].kill()
        at = time.monotonic()
        left = both[1 - killed]
        try:
            said = left.communicate(timeout=2 * SOON)[1]
        except subprocess.TimeoutExpired:
            left.kill()
            said = "it hangs" + left.communicate()[1]
        took = time.monotonic() - at
        both[killed].communicate()
        if took > SOON:
            wrong.append(f"the other took {took:.0f} s to stop: {said}")
        if left.returncode != 0 and ("Traceback" in said or (ENDED not in said and "expected 2 processes" not in said)):
            wrong.append(f"exit code {left.returncode}: {said}")
        both = start_two(folder, options)
        again_said = [process.communicate()[1] for process in both]
        codes = [process.returncode for process in both]
        wrong += differences(folder, expected) if codes == [0, 0] else [f"exit codes {codes}: {again_said}"]
        failed += bool(wrong)
        print(
            f"{number + 1}/{count} process {killed} killed after {moment:.2f} s, the other ended with "
            f"{left.returncode} in {took:.1f} s: {', '.join(wrong) or 'equal'}",
            flush=True,
        )
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{count - failed} of {count} runs end bit for bit where the undisturbed one ends")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["writes", "kills", "processes", "removed", "links", "presses", "raises"])
    parser.add_argument("--count", type=int, default=0, help="how many; 0 for every write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="of Ctrl-C, the commands whose names begin so")
    parser.add_argument("--epochs", type=int, default=60, help="of the digits run, 60 in full")
    parser.add_argument("--tiny", action="store_true", help="kill the tiny run instead of the digits run")
    parser.add_argument("--late", action="store_true", help="of two processes, kill one once both train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        # Every run needs the same programs; compiled once, they are the same bits for all.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{work}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["XDG_STATE_HOME"] = f"{work}/state"  # with a secret to sign with
        run = TINY if options.tiny else ["--config=digits", f"--train.epochs={options.epochs}"]
        if options.what == "processes":
            return processes(Path(work), options.count, options.seed, run, options.late) > 0
        if options.what == "presses":
            return presses(Path(work), options.count, options.seed, options.only) > 0
        if options.what == "kills":
            return kills(Path(work), options.count, options.seed, run, sorted(os.sched_getaffinity(0))) > 0
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before jax starts its threads
        what = {"writes": writes, "removed": removed, "links": links, "raises": raises}[options.what]
        return what(Path(work), options.count, options.seed) > 0


if __name__ == "__main__":
    sys.exit(main())
