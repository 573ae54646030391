"""The command line: what its commands write and print, and that bad input ends in one line and exit code 2."""

import ast
import hashlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from run_fixtures import TINY, compiled_once, flags, snapshot
from user_fixtures import SECOND, public_folder, user

import vae_jax
from vae_jax.cli import VERBS, compare, evaluate, main, reconstruct, sweep, train
from vae_jax.cli.pictures import label_of
from vae_jax.cli.progress import progress
from vae_jax.cli.run_data import load_data
from vae_jax.config import Config, DataConfig, LikelihoodConfig, ModelConfig, load_config, shipped
from vae_jax.errors import UserError, printable
from vae_jax.files.held import LOCK
from vae_jax.model.batches import BATCH
from vae_jax.model.build import build
from vae_jax.objectives.vae import VAEOptions
from vae_jax.options import options_in
from vae_jax.training.state import Trained

# The signs of a pattern and of a shell's; what colours a terminal, turns the text around, or begins a line.
HOSTILE = "run  [1]*?$x$ \x1b[31m\u202e\u200b\r\nrun: none"
LEFT_OUT = ("JAX_DISABLE_JIT", "JAX_NUMPY_DTYPE_PROMOTION")
TIMED = {"images_per_second": 0, "seconds": 0}  # what differs from one run to the next


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "compiled"


@pytest.fixture(scope="module", autouse=True)
def compiled(cache):
    with compiled_once(cache):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with two latent dimensions, trained once; what is printed comes from `test_train` itself."""
    folder = tmp_path_factory.mktemp("made") / "run"
    assert main(["train", "--out", str(folder), *flags(**TINY)]) == 0
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / HOSTILE)


@pytest.fixture
def command(capsys):
    """Runs a command that must succeed; gives its lines on standard output."""

    def run(*arguments) -> list[str]:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        printed = capsys.readouterr()
        check_harmless(printed)
        return printed.out.splitlines()

    return run


def check_harmless(printed) -> None:
    """Nothing is printed that does more to a terminal than end a line; and nothing by Python itself."""
    assert (printed.out + printed.err).replace("\n", "").isprintable()
    assert "Traceback" not in printed.err
    assert not re.search(r"\.py:\d+: \w*Warning", printed.err)


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused in one line; gives the line."""

    def run(*arguments) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        check_harmless(printed)
        *before, line = printed.err.splitlines()
        assert line.startswith("vae-jax: error: ")
        assert len(line) < 21_000
        assert not any("error" in line for line in before)
        return line

    return run


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


# --- Help ------------------------------------------------------------------------------------------------------------


def help_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_help(capsys):
    text = help_of(capsys)
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.summary)}$", text, re.MULTILINE)
    assert "vae-jax train --config handwriting --out runs/first" in text


def test_without_arguments_the_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == help_of(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_command(capsys, verb):
    text = help_of(capsys, verb)
    assert VERBS[verb].summary[1:] in text
    examples = [line for line in text.splitlines() if line.startswith(f"  vae-jax {verb} ")]
    assert examples
    assert VERBS[verb].epilog in text
    # Each option's entry begins a line with it, and says more than its name and type.
    entries = re.split(r"\n  (?=-)", text.split("\noptions:")[1].split("\nexample")[0])[1:]
    few = {"completion": 0, "configs": 0, "report": 1}  # options beside --help
    assert len(entries) == len(set(entries)) > few.get(verb, 3)
    for entry in entries:
        option, _, description = " ".join(entry.split("\n\n")[0].split()).partition(" ")
        description = re.sub(r"^\S*[A-Z_]{3,}\S* |\((type|default):.*", "", description)
        assert len(re.findall(r"\w+", description)) >= 2, f"{option} has no help"


def test_help_shows_what_matters_first(capsys):
    """The rest by section, with the part that is named, or all at once."""

    def options(*arguments):
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        return set(re.findall(r"^  --(\w+\.\w+)", capsys.readouterr().out, re.MULTILINE))

    first = options("--help")
    assert {"data.source", "model.latent", "objective.name", "train.epochs", "train.learning_rate"} <= first
    assert len(first) < 20
    own = {f"objective.{name}" for name in options_in(VAEOptions)}
    assert options("-h", "objective") == {"objective.name"} | own
    iwae = options("--objective.name", "iwae", "--help")
    assert "objective.samples" in iwae
    assert "objective.beta" not in iwae
    every = options("--help-all")
    assert first < every
    assert {name for name in every if name.startswith("train.")} == options("--help", "train")
    assert {name for name in every if name.startswith(("data.", "prior."))} == options("--help", "prior", "data")
    assert main(["train", "--help", "priro"]) == 2
    assert "(did you mean prior?)" in capsys.readouterr().err
    assert len(every) > 60


def test_help_of_train_has_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    text = capsys.readouterr().out
    for option in ("--out", "--resume", "--overwrite", "--device", "--config", "--seed", "--model.latent"):
        assert re.search(rf"^  {option}\b", text, re.MULTILINE)
    assert "dimensions of the latent space" in text


@pytest.mark.parametrize("verb", VERBS)
def test_examples_parse(verb, monkeypatch):
    """Every example of the help has options that there are."""
    from vae_jax.cli import _parse, prior

    monkeypatch.setattr(prior, "read_config", lambda folder: Config())  # of a run that is not there
    for line in VERBS[verb].epilog.splitlines()[1:]:
        arguments = re.split(r" {3,}", line.strip())[0].split()
        assert arguments[:2] == ["vae-jax", verb]
        _parse(verb, VERBS[verb], arguments[2:])


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"vae_jax {vae_jax.__version__}\n"


def test_as_a_module():
    found = python("-m", "vae_jax", "--version")
    assert (found.returncode, found.stdout) == (0, f"vae_jax {vae_jax.__version__}\n")
    found = python("-m", "vae_jax", "nonsense")
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1


HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorflow_datasets", "matplotlib", "sklearn", "numpy", "rich")


@pytest.mark.parametrize(
    "code",
    [
        "import vae_jax",
        "import vae_jax.cli; vae_jax.cli.main([])",
        "import vae_jax.cli; vae_jax.cli.main(['trian'])",
        "import vae_jax.cli; vae_jax.cli.main(['train', '--train.epochs', 'ten', '--out', 'x'])",
        "import vae_jax.cli\ntry: vae_jax.cli.main(['evaluate', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_for_it(code):
    found = python("-c", f"{code}\nimport sys; print('\\n', [name for name in {HEAVY} if name in sys.modules])")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].strip() == "[]"


def test_help_is_there_at_once():
    def seconds(*arguments):
        began = time.perf_counter()
        assert python(*arguments).returncode == 0
        return time.perf_counter() - began

    assert min(seconds("-m", "vae_jax", "--help") for _ in range(3)) < 0.5


def test_every_public_name_is_there():
    for name in vae_jax.__all__:
        assert getattr(vae_jax, name) is not None
    assert set(vae_jax.__all__) <= set(dir(vae_jax))
    with pytest.raises(AttributeError, match="nonsense"):
        vae_jax.nonsense  # noqa: B018


# --- What is refused before anything is done -------------------------------------------------------------------------


def test_unknown_command(refused):
    assert "did you mean train?" in refused("trian")
    assert "expected a command" in refused("-x")
    assert "version" in refused("--version=3")
    assert "expected a command" in refused("--versio")


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_option(refused, verb, tmp_path):
    needed = re.findall(r"\b(?:RUN|FILE|OWNER)\b", re.sub(r"\[.*?\]|--out RUN", "", VERBS[verb].usage))
    assert "--nonsense" in refused(verb, *[tmp_path / "some"] * len(needed), "--nonsense", "3")


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.usage.startswith(("RUN", "FILE"))])
def test_what_is_missing_is_said(refused, verb):
    assert f"vae-jax {verb} {VERBS[verb].usage}" in refused(verb)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--train.epoch", "2"], "did you mean --train.epochs"),  # no abbreviations
        (["--trian.epochs", "2"], "did you mean --train.epochs"),
        (["--optimizer.learning_rate", "2"], "did you mean --train.learning_rate"),
        (["--model.likelihood", "gaussian"], "did you mean --likelihood.name"),
        (["--train.seed", "2"], "did you mean --seed?"),
        (["--resume", "--overwrite"], "expected one of them"),
        (["--train.epochs", "ten"], "train.epochs"),
        (["--train.epochs", "0"], "train.epochs"),
        (["--train.epochs", "null"], "train.epochs"),
        (["--train.learning_rate", "nan"], "train.learning_rate"),
        (["--train.epochs"], "train.epochs"),
        (["--config", "nonsense"], "digits"),
        (["--config"], "--config"),
        (["--device", "abacus"], "--device"),
        (["--data.source", "minst"], "did you mean mnist"),
        (["--train.schedule", "cosin"], "did you mean cosine"),
        (["--train.reduction", "max"], "train.reduction"),
        (["--model.activation", "rleu"], "did you mean relu"),
        (["--model.network", "resnet"], "model.network"),
        (["--model.initialization", "zeros"], "model.initialization"),
        (["--objective.name", "gan"], "objective.name"),
        (["--objective.corruption", "blur"], "objective.corruption"),
        (["--model.channels", "[4,8,16,32,64,128]"], "model"),
        (["--train.batch_size", "1"], "train.batch_size"),
        (["--data.test", "5000"], "data.test"),
        (["--data.source", "folder"], "data.path"),
        (["--data.source", "folder", "--data.path", "nowhere"], "nowhere"),
        (["--data.source", "array", "--data.path", "nowhere.npz"], "nowhere.npz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_refuses(refused, tmp_path, arguments, named):
    folder = tmp_path / "new" / "run"
    assert named in refused("train", *flags(**{"data.image_size": 16}), "--out", folder, *arguments)
    assert not folder.parent.exists()


def test_train_needs_a_folder(refused):
    assert "--out" in refused("train")


def test_a_flags_fault_is_not_the_files(refused, tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("train: {epochs: 3}")
    assert str(path) not in refused("train", "--config", path, "--out", tmp_path / "run", "--train.epochs", "ten")
    path.write_text("train: {epochs: ten}")
    assert str(path) in refused("train", "--config", path, "--out", tmp_path / "run", "--seed", "3")


def test_a_file_may_not_overwrite(refused, copied, tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("overwrite: true\nout: x")
    before = snapshot(copied)
    assert "overwrite" in refused("train", "--config", path, "--out", copied)
    assert snapshot(copied) == before


def test_print_config_prints_a_configuration(command, refused, tmp_path):
    lines = command("train", "--config", "digits", "--train.epochs", 3, "--print_config")
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    assert load_config(tmp_path / "mine.yaml") == load_config("digits", **{"train.epochs": 3})
    assert "--print_config" in refused("evaluate", tmp_path, "--print_config")


@pytest.mark.parametrize("verb", VERBS)
def test_errors_do_nothing_to_a_terminal(refused, tmp_path, monkeypatch, verb):
    """Whatever is named, wherever it stands; and a name or a value of a million characters is not said in full."""
    monkeypatch.chdir(tmp_path)
    for strange in (HOSTILE, "x" * 1_000_000, "\x1b" * 5000):
        for arguments in ([strange, strange], ["--config", strange], [f"--{strange}"]):
            assert len(refused(verb, *arguments)) < 2000
        assert len(refused(strange)) < 1000
    if "--out" in VERBS[verb].usage:
        assert len(refused(verb, "--out", HOSTILE, "--model.network", HOSTILE, "--train.epochs", HOSTILE)) < 1000
        assert len(refused(verb, "--out", HOSTILE, "--data.source", "x" * 4000)) < 1000


def test_only_what_makes_lines_harmless_prints():
    """A command prints by `say` and `answer`; a configuration is YAML, which escapes; the others are no command."""
    allowed = {"cli/common.py", "cli/__init__.py", "device/processes.py", "interop/torch_pickle.py"}
    package, found = Path(vae_jax.__file__).parent, set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.add(path.relative_to(package).as_posix())
    assert found <= allowed


def test_what_packages_warn_of_is_one_line(monkeypatch, capsys):
    def warn(options):
        warnings.warn(f"of {HOSTILE}", RuntimeWarning, stacklevel=1)
        np.float64(1) / np.zeros(1)

    monkeypatch.setitem(VERBS, "sample", VERBS["sample"]._replace(run=warn))
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["sample", "some"]) == 0
    assert warnings.showwarning is before
    printed = capsys.readouterr()
    check_harmless(printed)
    first, second = printed.err.splitlines()
    assert first.startswith("vae-jax: warning: of run [1]*?$x$ \\x1b[31m\\u202e")
    assert second == "vae-jax: warning: divide by zero encountered in divide"


def altered(path, change):
    """A checkpoint's description says something else, with a hash that is right."""
    description = json.loads(path.read_text())["checkpoint"] | change
    sha256 = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": sha256, "checkpoint": description}))


OPENING = [
    *([verb] for verb in reconstruct.VERBS),
    ["export", "{}", "model.safetensors"],
    ["train", "--resume", "--out"],
]


@pytest.mark.parametrize("arguments", OPENING, ids=lambda arguments: arguments[0])
def test_what_a_run_tells_wrongly_is_one_line_in_every_command(refused, copied, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    arguments = [each.format(copied) for each in arguments]
    arguments += [] if str(copied) in arguments else [str(copied)]
    for path in (copied / "checkpoints").glob("*/checkpoint.json"):
        altered(path, {"history": "x"})
    line = refused(*arguments)
    assert (
        "checkpoints/20: damaged, checkpoint.json: history: expected a list; found 'x'; expected an undamaged" in line
    )
    for name, content, said in (
        ("config.yaml", "a: &a [1]\nb: [*a]", "config.yaml: expected a YAML file; expected plain options by section"),
        (
            "config.yaml",
            "pipe",
            "expected a new or empty folder or a run's; found other files"
            if arguments[0] == "train"
            else "expected a run folder with a config.yaml in it",
        ),
    ):
        (copied / name).unlink()
        os.mkfifo(copied / name) if content == "pipe" else (copied / name).write_text(content)
        assert said in refused(*arguments)
    assert not (tmp_path / "model.safetensors").exists()


def test_export_past_a_damaged_checkpoint(command, copied, capsys, tmp_path):
    altered(copied / "checkpoints" / "20" / "checkpoint.json", {"images": -1})
    command("export", copied, tmp_path / "first.safetensors")
    assert main(["export", str(copied), str(tmp_path / "model.safetensors")]) == 0
    printed = capsys.readouterr()
    check_harmless(printed)
    assert printed.err.splitlines() == [
        f"{printable(str(copied))}/checkpoints/20: damaged, checkpoint.json: images: expected a whole number in "
        f"[0, 2147483647]; found -1; it is passed over"
    ]


@pytest.mark.parametrize("order", ["before", "after", "equals"])
def test_flags_win_whatever_the_order(capsys, order, tmp_path):
    from vae_jax.cli import _parse

    path = tmp_path / "some.yaml"
    path.write_text("train: {epochs: 3, batch_size: 7}")
    config, flag = ["--config", str(path)], ["--train.epochs", "4"]
    arguments = {"before": flag + config, "after": config + flag, "equals": [*flag, f"--config={path}"]}[order]
    train = _parse("train", VERBS["train"], arguments).configuration.train
    assert (train.epochs, train.batch_size) == (4, 7)


@pytest.mark.parametrize("below", ["run", "a/b/run"])
def test_a_folder_that_cannot_be_made(refused, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in refused("train", "--out", file / below, *flags(**TINY))
    assert "/dev/null" in refused("train", "--out", f"/dev/null/{below}", *flags(**TINY))
    refused("train", "--out", tmp_path / ("a" * 300), *flags(**TINY))


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_no_such_device(tmp_path, device):
    """In a process of its own, since jax chooses its device once."""
    if device == "gpu" and any(os.path.exists(f"/dev/{name}") for name in ("nvidia0", "kfd")):
        pytest.skip("there is one")
    environment = {**os.environ, "JAX_PLATFORMS": ""}
    arguments = ["train", "--out", str(tmp_path / "run"), "--device", device]
    found = python("-m", "vae_jax", *arguments, env=environment)
    assert found.returncode == 2
    assert f"--device {device}" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "run").exists()


# --- Data that are not there -----------------------------------------------------------------------------------------


def test_data_that_cannot_be_read(refused, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "run"
    options = ["train", "--out", out, *flags(**{**TINY, "data.source": "folder", "data.path": folder})]
    options += [f"--data.cache_dir={tmp_path / 'cache'}"]
    folder.mkdir()
    assert str(folder) in refused(*options)
    for i in range(4):
        Image.fromarray(np.full((8, 8), i * 60, np.uint8)).save(folder / f"{i}.png")
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    assert str(folder / "2.png") in refused(*options, "--data.test=1")
    (folder / "2.png").write_text("no image")
    assert str(folder / "2.png") in refused(*options, "--data.test=1")
    assert not out.exists()


def test_bad_data_leave_nothing_behind(refused, tmp_path, monkeypatch):
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8), i * 60, np.uint8)).save(folder / f"{i}.png")
    np.save(tmp_path / "data.npy", np.zeros((4, 8, 8), np.uint8))
    os.mkfifo(tmp_path / "fifo.npy")
    before = snapshot(folder)

    def train(source, path, *more):
        options = flags(**{**TINY, "data.test": 1, "data.validation": 0, "data.source": source, "data.path": path})
        line = refused("train", "--out", out, *options, f"--data.cache_dir={tmp_path / 'cache'}", *more)
        assert not out.exists()
        assert not list(tmp_path.rglob(".*"))
        return line

    assert "data.skip_bad: expected data.source folder; found array" in train(
        "array", tmp_path / "data.npy", "--data.skip_bad=true"
    )
    assert "data.name" in train("folder", folder, "--data.name=cifar10")
    assert "data.manual_dir" in train("folder", folder, f"--data.manual_dir={tmp_path}")
    assert "found a special file" in train("array", tmp_path / "fifo.npy")
    assert "data.test" in train("folder", folder, "--data.test=4")
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 1 << 21)
    monkeypatch.setattr("vae_jax.device.memory.SMALL", 0)
    assert "data.image_size 1024: 4 images" in train("folder", folder, "--data.image_size=1024")
    monkeypatch.undo()
    (folder / "5.png").symlink_to(folder / "5.png")
    assert str(folder / "5.png") in train("folder", folder)
    (folder / "5.png").unlink()
    assert snapshot(folder) == before


def test_bad_images_are_left_out_if_asked_for(command, refused, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for i in range(300):
        Image.fromarray(np.full((8, 8), i % 256, np.uint8)).save(folder / f"{i:03}.png")
    (folder / "bad.png").write_text("no image")
    options = [*flags(**{**TINY, "data.source": "folder", "data.test": 50, "data.validation": 50})]
    options += [f"--data.path={folder}", f"--data.cache_dir={tmp_path / 'cache'}", "--train.epochs=1"]
    assert str(folder / "bad.png") in refused("train", "--out", out, *options)
    assert main(["train", "--out", str(out), *options, "--data.skip_bad=true"]) == 0
    assert f"  {folder / 'bad.png'}: expected an image (PNG, " in capsys.readouterr().err
    (skipped,) = summary(out)["skipped_images"]
    assert skipped.startswith(f"{folder / 'bad.png'}: expected an image (PNG, ")
    assert summary(out)["train_images"] == 200
    # The run knows: whatever reads its images again leaves the same ones out, and says so.
    assert main(["evaluate", str(out)]) == 0
    assert str(folder / "bad.png") in capsys.readouterr().err
    # From another place, too.
    folder.rename(tmp_path / "moved")
    assert str(folder) in refused("evaluate", out)
    command("evaluate", out, f"--data.path={tmp_path / 'moved'}")
    assert "data.manual_dir: expected data.source mnist" in refused("evaluate", out, f"--data.manual_dir={tmp_path}")


def test_truncated_mnist(refused, tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(b"\x1f\x8b\x08\0 half")
    line = refused(
        "train", "--config", "article", "--out", tmp_path / "run", "--data.manual_dir", folder,
        "--data.cache_dir", tmp_path / "cache",
    )  # fmt: skip
    assert str(folder) in line
    assert not (tmp_path / "run").exists()


# --- train -----------------------------------------------------------------------------------------------------------


def test_train(command, made, tmp_path):
    folder = tmp_path / "run"
    lines = command("train", "--out", folder, *flags(**TINY))
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("device: cpu")
    assert re.search("digits, 1,000 training, 200 validation and 597 test images of 8x8x1", lines[1])
    found = summary(folder)
    assert f"{found['parameters']:,} parameters, 2 latent" in lines[1]
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert lines[2] == "compiling …"
    for epoch, line in zip(epochs, lines[3:5], strict=True):
        assert line.startswith(f"epoch {epoch['epoch']}/2: train {epoch['train_loss']:.2f}")
        assert f"test {epoch['test_loss']:.2f} (reconstruction {epoch['test_reconstruction']:.2f}, KL" in line
        assert f"validation {epoch['validation_loss']:.2f}" in line
        assert re.search(r"\d images/s$", line)
        assert len(line) <= 120
    assert f"test loss {found['test_loss']:.2f} nats per image after 2 epochs" in lines
    assert f"run folder: {folder}" in lines
    pictures = [Path(line.removeprefix("  picture: ")) for line in lines if line.startswith("  picture: ")]
    assert {path.name for path in pictures} == {
        "loss.png",
        "samples.png",
        "latent_plane.png",
        "reconstructions_epoch_0002.png",  # the last one
    }
    assert all(pixels(path).size for path in pictures)
    assert found["best_by"] == "validation_loss"
    config = load_config(folder / "config.yaml")
    assert (config.train.epochs, config.model.options.channels, config.data.validation) == (2, (4, 8), 200)
    assert not list(tmp_path.rglob("*.tmp"))
    # The same seed gives the same model.
    assert {**found, **TIMED} == {**summary(made), **TIMED}
    command("sample", made, "--out", tmp_path / "a.npz")
    assert command("sample", folder, "--out", tmp_path / "b\n.npz") == [f"{tmp_path}/b\\n.npz"]
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b\n.npz").read_bytes()


def test_a_run_is_not_trained_over(refused, copied, tmp_path):
    before = snapshot(copied)
    assert "--resume" in refused("train", "--out", copied, *flags(**TINY))
    assert "--overwrite" in refused("train", "--out", copied, "--resume", "--overwrite")
    assert "model.hidden" in refused("train", "--out", copied, "--resume", "--model.hidden=17")
    # What is refused is refused before the old run is deleted.
    assert "cosine" in refused("train", "--out", copied, "--overwrite", "--train.schedule=cosin")
    assert "nowhere" in refused("train", "--out", copied, "--overwrite", "--data.source=folder", "--data.path=nowhere")
    assert snapshot(copied) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for option in ("--resume", "--overwrite"):
        assert "left alone" in refused("train", "--out", tmp_path / "mine", option, *flags(**TINY))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


def test_resume_needs_no_configuration(command, copied):
    lines = command("train", "--out", copied, "--resume", "--train.epochs", "3")
    assert any(line.startswith(f"continuing {printable(str(copied))} after epoch 2") for line in lines)
    assert [line[:11] for line in lines if line.startswith("epoch ")] == ["epoch 3/3: "]
    assert summary(copied)["epochs"] == 3
    assert load_config(copied / "config.yaml").train.epochs == 3


def test_overwrite_with_data_at_a_relative_path(command, copied, tmp_path, monkeypatch):
    """The new run finds its data from another folder."""
    monkeypatch.chdir(tmp_path)
    images = np.random.RandomState(0).randint(0, 256, (1797, 8, 8), np.uint8)
    np.savez("mine.npz", images=images)
    options = flags(**{**TINY, "train.epochs": 1})
    command("train", "--out", copied.name, "--overwrite", *options, "--data.source=array", "--data.path=mine.npz")
    assert (summary(copied)["epochs"], summary(copied)["data"]) == (1, "mine")
    assert not (copied / "figures" / "reconstructions_epoch_0002.png").exists()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "597 images" in command("evaluate", copied)[0]
    (tmp_path / "mine.npz").rename(tmp_path / "moved.npz")
    assert main(["evaluate", str(copied)]) == 2
    assert "597 images" in command("evaluate", copied, "--data.path", tmp_path / "moved.npz")[0]


# --- Surroundings ----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(monkeypatch, capsys):
    """Runs a command as a process of its own would; gives its exit code."""
    names = ("stdin", "stdout", "stderr")

    def run(*arguments) -> int:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["vae-jax", *map(str, arguments)])
        before = {name: getattr(sys, name) for name in names}
        try:
            return main()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            for name, stream in before.items():
                if stream is None and getattr(sys, name):
                    getattr(sys, name).close()
                setattr(sys, name, stream)

    return run


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_what_cannot_be_encoded_is_replaced(process, tmp_path, monkeypatch, encoding):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert process("train", "--help-all") == 0
    assert process("evaluate", tmp_path / "漢") == 2
    for stream in streams.values():
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams.values())
    assert "(uniform in ±1/√fan_in".encode(encoding, "replace").decode(encoding) in " ".join(out.split())
    assert err == f"vae-jax: error: {tmp_path}/?: expected a run folder, found no such folder\n"


def test_without_standard_streams(process, copied, tmp_path, monkeypatch):
    """As a daemon's are, and those of pythonw: Python has None there."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert process("train", "--out", copied, "--resume") == 0
    assert process("evaluate", copied, "--images", 9, "--nll-samples", 2) == 0
    assert process("evaluate", tmp_path / "none") == 2
    assert process("train", "--help") == 0
    bars = train._progress(load_config(), "image", True), sweep._progress("image"), compare._progress()
    for bar in (*bars, progress("something")):
        with bar:  # as main lets them be called by a program without streams
            pass


def test_a_home_folder_that_there_is_not(command, refused, copied, tmp_path, monkeypatch):
    """Neither a variable nor an entry for the user's number; or one that cannot be written."""
    monkeypatch.chdir(tmp_path)
    np.save("mine.npy", np.random.RandomState(0).randint(0, 256, (40, 16, 16), np.uint8))
    config = load_config(**{**TINY, "data.source": "array", "data.path": "mine.npy", "data.test": 10}).data
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    reported = []
    vae_jax.load_data(replace(config, validation=0.0), report=reported.append)
    assert len([line for line in reported if line.startswith("the images are not cached in /dev/null")]) == 1
    reported.clear()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    data = vae_jax.load_data(replace(config, validation=0.0), report=reported.append)
    line = "the images are not cached: there is no home folder (HOME); data.cache_dir names another one"
    assert reported.count(line) == 1
    assert len(data.train) == 30
    before = snapshot(tmp_path)
    for path in ("~/run", "~", "~nobody-of-this-name/run"):
        assert f"{path}: expected a path; ~" in refused("train", "--out", path)
    assert "data.name cifar10: expected a folder to download into; there is no home folder (HOME)" in refused(
        "train", "--out", "run", "--data.source=tfds", "--data.name=cifar10"
    )
    assert snapshot(tmp_path) == before
    copied.rename("~second")  # a name may begin so
    command("encode", "~second")


def test_settings_of_jax_with_which_nothing_trains_are_left_out(process, monkeypatch, capsys):
    seen = []
    run = VERBS["sample"]._replace(run=lambda options: seen.append(set(LEFT_OUT) & set(os.environ)))
    monkeypatch.setitem(VERBS, "sample", run)
    for value in ("0", "False"):
        monkeypatch.setenv("JAX_DISABLE_JIT", value)
        assert process("sample", "some") == 0
    assert capsys.readouterr().err == ""
    for value in zip(LEFT_OUT, ("1", "strict"), strict=True):
        monkeypatch.setenv(*value)
    assert process("sample", "some") == 0
    assert seen == [{"JAX_DISABLE_JIT"}] * 2 + [set()]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" is left out, since ")[0] for line in lines] == [
        "vae-jax: JAX_DISABLE_JIT=1", "vae-jax: JAX_NUMPY_DTYPE_PROMOTION=strict",
    ]  # fmt: skip


def test_a_device_that_a_variable_asks_for(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    found = python("-m", "vae_jax", "train", "--out", str(tmp_path / "run"), env=environment)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("vae-jax: error: JAX_PLATFORMS=nonsense: jax finds no such device")


def test_epoch_lines_are_short():
    from vae_jax.cli.train import _epoch_line

    figures = {"epoch": 3280, "images_per_second": 123456.7}
    figures |= {f"{split}_loss": 12345.678 for split in ("train", "validation", "test")}
    figures |= {"test_reconstruction": 12345.678, "test_kl": 123.456}
    line = _epoch_line(figures, load_config(**{"train.epochs": 3280}), "nats per image", "image")
    assert line == (
        "epoch 3280/3280: train 12345.68, validation 12345.68, test 12345.68 (reconstruction 12345.68, KL 123.46) "
        "nats per image; 123,457 images/s"
    )


# --- On a terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_on_a_terminal_a_bar_shows_and_a_signal_saves_and_stops(tmp_path, cache, number):
    """One run on a pseudo-terminal that is stopped while it trains."""
    folder = tmp_path / "run"
    options = flags(**{**TINY, "out": folder, "train.epochs": 100_000, "train.chunk_steps": 1})
    terminal, its_side = pty.openpty()
    # Ctrl-C is ignored in what a shell's background job starts, as these tests may be. Where it hangs, it tells where.
    begin = (
        "import faulthandler, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "faulthandler.dump_traceback_later(100)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", f"{begin}; from vae_jax.cli import main; sys.exit(main())", "train", *options],
        env={
            **os.environ,
            "TERM": "xterm",
            "COLUMNS": "100",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
        },
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
    )
    os.close(its_side)
    shown, interrupted, deadline = "", False, time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    shown += os.read(terminal, 65536).decode(errors="replace")
                except OSError:  # the child has closed it
                    break
            # Of a run this fast the bar does not show every epoch, but each has its line.
            if not interrupted and "images/s" in shown and re.search(r"epoch +[2-9]\d*/", shown):
                child.send_signal(number)
                interrupted = True
        hangs = child.poll() is None and time.monotonic() > deadline
        assert not hangs, f"it hangs; stopped: {interrupted}\n{shown[-9000:]}"
        code = child.wait(60)
    finally:
        child.kill()
        child.wait()
        os.close(terminal)
    assert interrupted, shown[-2000:]
    assert code == 128 + number, shown[-2000:]
    assert "\x1b[" in shown  # the bar
    assert "loss" in shown
    stopped = re.search(
        r"vae-jax: stopped .*saved after .*step (\d+); `vae-jax train --out \S+ --resume` goes on", shown
    )
    assert stopped, shown[-2000:]
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    assert max(steps) == int(stopped[1])
    assert "Traceback" not in shown
    assert not (folder / "summary.json").exists()


def test_a_second_ctrl_c_stops_at_once_and_what_was_ignored_stays_so(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with train.stop_signals() as stop:
            assert not train.stop_requested(stop)
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert train.stop_requested(stop)
            assert train.stop_requested(stop)
        assert capsys.readouterr().err == "vae-jax: SIGTERM: saving and stopping\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with train.stop_signals() as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop == []
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("verb", "hint"), [("train", True), ("sample", False)])
def test_ctrl_c_in_a_command(monkeypatch, capsys, verb, hint):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, verb, VERBS[verb]._replace(run=interrupt))
    assert main([verb, *(["some"] if verb == "sample" else [])]) == 130
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert ("--resume" in printed) == hint


def test_a_full_disk_is_one_line(monkeypatch, refused):
    def fill(options):
        raise OSError(28, "No space left on device", "some/file")

    monkeypatch.setitem(VERBS, "sample", VERBS["sample"]._replace(run=fill))
    assert refused("sample", "some") == "vae-jax: error: some/file: No space left on device"


def test_into_a_closed_pipe():
    code = "import vae_jax.cli, sys; sys.exit(vae_jax.cli.main([]))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    printed = child.stderr.read()
    child.stderr.close()
    child.wait(60)
    assert printed == b""


# --- evaluate --------------------------------------------------------------------------------------------------------


def evaluated(command, *arguments):
    (line,) = command("evaluate", *arguments, "--json")
    return json.loads(line)


def test_evaluate_repeats_the_summary(command, made):
    found, expected = evaluated(command, made), summary(made)
    assert {name: found[name] for name in ("loss", "reconstruction", "kl", "images")} == {
        "loss": expected["test_loss"],
        "reconstruction": expected["test_reconstruction"],
        "kl": expected["test_kl"],
        "images": 597,
    }
    assert (found["unit"], found["split"], found["latent"]) == ("nats per image", "test", "sample")
    assert found == evaluated(command, made, "--latent", "sample", "--split", "test", "--checkpoint", "latest")
    (line,) = command("evaluate", made)
    assert f"test loss {found['loss']:.3f} = reconstruction {found['reconstruction']:.3f} + KL" in line


def test_another_users_run_is_evaluated_and_not_changed(made, refused):
    with public_folder() as place:
        run = shutil.copytree(made, place / "run")
        (place / "compiled").mkdir()
        (place / "compiled").chmod(0o777)
        before = snapshot(run)
        assert main(["evaluate", str(run)]) == 0  # all is imported
        with user(SECOND, 0o022), compiled_once(place / "compiled"):
            assert main(["evaluate", str(run)]) == 0
            assert f"{run}/figures: expected a folder that can be written" in refused("sample", run)
            assert f"{run}: expected a folder that can be written" in refused("train", "--out", run, "--resume")
        assert snapshot(run) == before
        run.chmod(0o700)
        with user(SECOND, 0o022):
            assert str(run) in refused("evaluate", run)


def test_evaluate_at_the_mean(command, made):
    mean, sample = evaluated(command, made, "--latent", "mean"), evaluated(command, made)
    assert mean["kl"] == pytest.approx(sample["kl"], rel=1e-6)  # by two programs, so the last bits differ
    assert mean["reconstruction"] != sample["reconstruction"]


def test_evaluate_other_splits(command, made):
    validation = evaluated(command, made, "--split", "validation")
    assert (validation["loss"], validation["images"]) == (summary(made)["validation_loss"], 200)
    train = evaluated(command, made, "--split", "train")
    assert train["images"] == 1000
    assert train["loss"] != summary(made)["train_loss"]  # that one is of the model as it trained


def test_evaluate_the_best(command, made):
    found = evaluated(command, made, "--checkpoint", "best", "--split", "validation")
    assert found["loss"] == summary(made)["best_loss"]


def test_evaluate_more(command, made, monkeypatch):
    """Estimates and diagnostics come after what is printed without them, which stays as it is."""
    from vae_jax.evaluation import estimators

    def importance_nll(config, network, variables, images, key, samples, *, labels=None, on_progress=None):
        assert (images.shape, images.dtype, samples, labels) == ((50, 8, 8, 1), np.uint8, 7, None)
        return np.arange(50.0)

    def annealed_nll(config, network, variables, images, key, *, temperatures, chains, labels=None, on_progress=None):
        assert (len(images), temperatures, chains, labels) == (50, 30, 16, None)
        return np.full(50, 2.5)

    monkeypatch.setattr(estimators, "importance_nll", importance_nll)
    monkeypatch.setattr(estimators, "annealed_nll", annealed_nll)
    few = ("--images", 50)
    plain, (line,) = evaluated(command, made, *few), command("evaluate", made, *few)
    assert plain["images"] == 50
    more = (*few, "--nll-samples", 7, "--ais", 30, "--diagnostics")
    found, lines = evaluated(command, made, *more), command("evaluate", made, *more)
    assert {name: found[name] for name in plain} == plain
    assert found["nll"] == 24.5
    assert (found["ais_nll"], found["ais_temperatures"], found["ais_chains"]) == (2.5, 30, 16)
    assert found["nll_samples"] == 7
    assert found["active_units"] == sum(variance > 0.01 for variance in found["unit_variances"])
    assert found["mutual_information_limit"] == pytest.approx(np.log(50))  # all figures are of these images
    assert "(50 of 597 images, z: sample)" in line
    assert 0 < found["probe_accuracy"] < 1
    assert lines[:3] == [
        line,
        "test NLL 24.500 nats per image (importance-weighted, 7 samples)",
        "test NLL 2.500 nats per image (annealed importance sampling, 30 temperatures, 16 chains)",
    ]
    assert [re.sub(r"-?\d.*", "", line) for line in lines[3:]] == [
        "active units ",
        "KL of the aggregate posterior from the prior ",
        "mutual information of image and z ",
        "squared error of reconstructions ",
        "linear probe of the labels ",
        "",
    ]


@pytest.mark.parametrize(
    ("likelihood", "treatment", "bits", "expected"),
    [
        ("continuous_bernoulli", "dequantized", 3.0, "at most 3.0000 bits per dimension of the 256 levels: (loss + 64"),
        ("continuous_bernoulli", "grey", None, "no bits per dimension: the loss is of densities, comparable with"),
        ("bernoulli", "grey", None, ""),
        ("bernoulli", "dynamic", None, ""),
    ],
)
def test_evaluate_says_of_what_bits_are(likelihood, treatment, bits, expected):
    config = Config(0, DataConfig(treatment=treatment), ModelConfig("mlp"), likelihood=LikelihoodConfig(likelihood))
    network, _ = build(config, (8, 8, 1))
    trained = Trained(config, (8, 8, 1), None, [])  # type: ignore[arg-type]
    found = evaluate._about_bits(trained, network, bits)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)
    assert evaluate._bits(trained, network, 0.0) == (8 if bits else None)


@pytest.mark.parametrize("verb", reconstruct.VERBS)
def test_what_is_no_run(refused, made, verb, tmp_path):
    for run in (tmp_path / "none", tmp_path, made / "config.yaml"):
        assert str(run) in refused(verb, run)
        assert not list(tmp_path.iterdir())
    assert "--checkpoint" in refused(verb, made, "--checkpoint", "newest")
    assert "--device" in refused(verb, made, "--device", "abacus")
    assert "RUN" in refused(verb)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "--latent", "mode"], "--latent"),
        (["evaluate", "--split", "tset"], "--split"),
        (["evaluate", "--images", "0"], "--images"),
        (["evaluate", "--images", "598"], "--images: expected at most the 597 of --split test; found 598"),
        (["evaluate", "--nll-samples", "0"], "--nll-samples"),
        (["evaluate", "--nll-samples", "many"], "--nll-samples: expected a whole number; found many"),
        (["evaluate", "--ais", "-1"], "--ais"),
        (["evaluate", "--ais", "10", "--ais-chains", "0"], "--ais-chains"),
        (["evaluate", "--ais-chains", "4"], "--ais-chains: expected --ais beside it; found none"),
        (["encode", "--split", "tset"], "--split"),
        (["encode", "--split", "../up/down"], "--split"),
        (["sample", "-n", "0"], "-n"),
        (["sample", "-n", "few"], "-n: expected a whole number; found few"),
        (["sample", "-n", "null"], "n"),
        (["sample", "--seed", "-1"], "--seed"),
        (["sample", "--seed", "9" * 30], "--seed"),
        (["sample", "--from", "kde"], "--from: expected prior, gmm or second_stage; found 'kde'"),
        (["sample", "--label", "3"], "--label: expected none"),
        (["reconstruct", "--label", "3"], "--label: expected none"),
        (["interpolate", "--seed", "-1"], "--seed"),
        (["interpolate", "-n", "0"], "-n"),
        (["interpolate", "--steps", "0"], "--steps"),
        (["traverse", "--steps", "-1"], "--steps"),
        (["traverse", "--image", "597"], "--image"),
        (["traverse", "--image", "-1"], "--image"),
        (["traverse", "--extent", "0"], "--extent"),
        (["traverse", "--extent", "1e300"], "--extent"),
        (["reconstruct", "-n", "-3"], "-n"),
        (["reconstruct", "nowhere.png"], "nowhere.png"),
        (["reconstruct", "--out", "/dev/null/x/y.png"], "/dev/null"),
        (["sample", "--out", "/dev/null/x/y.npz"], "/dev/null"),
        (["sample", "--out", "/tmp"], "--out /tmp"),
        (["encode", "--data.cache_dir", "null", "--split", "x"], "--split"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_options_of_the_other_commands(refused, made, arguments, named):
    before = snapshot(made)
    verb, *rest = arguments
    assert named in refused(verb, made, *rest)
    assert snapshot(made) == before


def test_data_that_have_gone(refused, copied, tmp_path):
    options = (copied / "config.yaml").read_text().replace("source: digits", "source: folder")
    (copied / "config.yaml").write_text(options.replace("path: null", f"path: {tmp_path / 'gone'}"))
    before = snapshot(copied)
    for verb in ("evaluate", "traverse"):
        assert str(tmp_path / "gone") in refused(verb, copied)
    assert snapshot(copied) == before


# --- reconstruct, sample, encode, interpolate, traverse --------------------------------------------------------------


def written(command, *arguments) -> Path:
    """The one file that a command says it has written."""
    (line,) = command(*arguments)
    shown = re.sub(r": \w+ \(\d.*", "", line)  # encode names the arrays too
    path = Path(ast.literal_eval(f'"{shown}"'))
    assert path.is_file()
    assert {hidden.name for hidden in path.parent.glob(".*")} <= {LOCK}
    return path


def test_reconstruct_test_images(command, copied, tmp_path):
    path = written(command, "reconstruct", copied)
    assert path == copied / "figures" / "reconstructions.png"
    assert (
        path.read_bytes() != written(command, "reconstruct", copied, "-n", 4, "--out", tmp_path / "a.png").read_bytes()
    )


def test_reconstruct_files(command, refused, made, tmp_path):
    level = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for name, size in (("a.png", 8), ("b.png", 40)):
        Image.fromarray(level.repeat(size // 8, 0).repeat(size // 8, 1)).save(tmp_path / name)
    out = tmp_path / "deep" / "er" / "pairs.png"
    path = written(command, "reconstruct", made, tmp_path / "a.png", tmp_path / "b.png", "--out", out)
    assert path == out
    image, scale = pixels(path), 192 // 8
    assert image.shape[1] == 2 * (8 * scale + 2) + 2
    first = image.shape[0] - 2 * (8 * scale + 2) - 22  # below the title; a line of captions is below
    assert (image[first : first + 8 * scale : scale, 2 : 2 + 8 * scale : scale] == level).all()
    (tmp_path / "bad.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    before = snapshot(tmp_path)
    for bad in ("bad.png", "none.png", "deep"):
        line = refused("reconstruct", made, tmp_path / "a.png", tmp_path / bad, "--out", tmp_path / "new" / "x.png")
        assert str(tmp_path / bad) in line
    assert snapshot(tmp_path) == before


def test_home_folder(command, copied, tmp_path, monkeypatch):
    """A shell expands ~ at the beginning of a word only; not in --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    run = f"~/{copied.relative_to(tmp_path)}" if copied.is_relative_to(tmp_path) else copied
    command("sample", run, "-n", 1, "--out=~/new/samples.png")
    command("reconstruct", run, "~/a.png", "--out=~/new/pairs.png")
    command("encode", run, "--out=~/new/latents.npz")
    command("export", run, "~/new/model.safetensors")
    command("import", "~/new/model.safetensors", "~/new/run", f"--config={run}/config.yaml")
    exported = {"model.safetensors", "model.safetensors.md", "model.py"}
    names = {"samples.png", "pairs.png", "latents.npz", "run", *exported}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    assert command("evaluate", "~/new/run") == command("evaluate", run)


def test_reconstruct_special_files(refused, made, tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("fifo.png", "zero.png"):
        assert "found a special file" in refused("reconstruct", made, tmp_path / name, "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_sample(command, copied, tmp_path):
    path = written(command, "sample", copied, "-n", 9)
    assert path == copied / "figures" / "samples_seed0.png"
    first = path.read_bytes()
    path.unlink()
    assert written(command, "sample", copied, "-n", 9).read_bytes() == first
    other = written(command, "sample", copied, "-n", 9, "--seed", 1)
    assert other == copied / "figures" / "samples_seed1.png"
    assert other.read_bytes() != first


def test_sample_from_a_mixture(command, copied):
    path = written(command, "sample", copied, "-n", 9, "--from", "gmm")
    assert path == copied / "figures" / "samples_gmm_seed0.png"
    first = path.read_bytes()
    assert first != written(command, "sample", copied, "-n", 9).read_bytes()
    assert written(command, "sample", copied, "-n", 9, "--from", "gmm").read_bytes() == first
    assert written(command, "sample", copied, "-n", 9, "--from", "gmm", "--seed", 1).read_bytes() != first


def test_samples_of_several_sources_stand_side_by_side(command, refused, copied, tmp_path, capsys):
    """Every block shows the pictures that its source gives alone."""
    path = written(command, "sample", copied, "-n", 4, "--from", "prior,gmm")
    assert path == copied / "figures" / "samples_prior_gmm_seed0.png"
    both, side = pixels(path), 192 + 2
    assert both.shape[1] == 4 * side + 2 + 16
    for number, source in enumerate(("prior", "gmm")):
        alone = pixels(written(command, "sample", copied, "-n", 4, "--from", source))
        left = number * (2 * side + 16)
        np.testing.assert_array_equal(both[-2 * side :, left + 2 : left + 2 + 2 * side], alone[2:, 2:])
    arrays = {
        source: np.load(written(command, "sample", copied, "-n", 4, "--from", source, "--out", tmp_path / "a.npz"))[
            "images"
        ]
        for source in ("prior", "gmm", "gmm,prior")
    }
    np.testing.assert_array_equal(arrays["gmm,prior"], np.concatenate([arrays["gmm"], arrays["prior"]]))
    capsys.readouterr()
    assert main(["sample", str(copied), "-n=4", "--from=gmm,prior", f"--out={tmp_path / 'b.npz'}"]) == 0
    assert "4 images from every one of these, in this order: gmm, prior\n" in capsys.readouterr().err
    line = refused("sample", copied, "--from", "gmm,gmm")
    assert "--from: expected a source once; found 'gmm,gmm'" in line
    line = refused("sample", copied, "--from", "prior,gmm", "--temperature", "0.5")
    assert "--temperature: expected --from prior with it; found --from prior,gmm" in line


@pytest.mark.parametrize(
    ("verb", "out", "endings"),
    [
        ("sample", "summary.json", ".png or .npz"),
        ("sample", "checkpoints", "a file, found a folder"),
        ("traverse", "config.yaml", ".png or .npz"),
        ("reconstruct", "metrics.jsonl", ".png or .npz"),
        ("encode", "data.json", ".npz"),
        ("sample", "notes", ".png or .npz"),
        ("sample", "new.jpg", ".png or .npz"),
    ],
)
def test_nothing_of_the_run_or_the_users_is_written_over(refused, copied, verb, out, endings):
    (copied / "notes").write_text("mine")
    before = snapshot(copied)
    assert endings in refused(verb, copied, "--out", copied / out)
    assert snapshot(copied) == before


def test_an_image_is_not_written_over_by_its_reconstruction(refused, made, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    before = snapshot(tmp_path)
    line = refused("reconstruct", made, tmp_path / "a.png", "--out", tmp_path / "a.png")
    assert "--out: expected another file than the images" in line
    line = refused("reconstruct", made, tmp_path / "a.png", "-n", 5, "--out", tmp_path / "b.png")
    assert "-n: expected no image files with it, of which all are taken; found some" in line
    assert snapshot(tmp_path) == before


def test_more_reconstructions_than_test_images_are_named(made, tmp_path, capsys):
    capsys.readouterr()
    assert main(["reconstruct", str(made), "-n=99999", f"--out={tmp_path / 'all.png'}"]) == 0
    assert re.search(r"-n 99999: there are \d+ test images, of which all are taken\n", capsys.readouterr().err)


def test_places_of_data_that_are_not_used_are_named(made, tmp_path, capsys):
    """Samples from the prior and files' reconstructions load no data."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    out = f"--out={tmp_path / 'out.png'}"
    for arguments in (["sample", str(made)], ["reconstruct", str(made), str(tmp_path / "a.png")]):
        assert main([*arguments, out, "--data.path=nowhere", "--data.cache_dir=none"]) == 0
        line = "not used, since no data are loaded here: --data.cache_dir, --data.path\n"
        assert capsys.readouterr().err.endswith(line)
        assert main([*arguments, out]) == 0
        assert "not used" not in capsys.readouterr().err


def test_sample_arrays(command, made, tmp_path):
    arrays = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = written(
            command, "sample", made, "-n", BATCH + 1, "--seed", seed, "--out", tmp_path / "new" / f"{name}.npz"
        )
        with np.load(path) as file:
            assert list(file) == ["images"]
            arrays.append(file["images"])
    assert arrays[0].shape == (BATCH + 1, 8, 8, 1)
    assert arrays[0].min() >= 0
    assert arrays[0].max() <= 1
    np.testing.assert_array_equal(arrays[0], arrays[1])
    assert (arrays[0] != arrays[2]).any()
    assert (tmp_path / "new" / "a.npz").read_bytes() == (tmp_path / "new" / "b.npz").read_bytes()


@pytest.mark.parametrize(("split", "count"), [("test", 597), ("validation", 200), ("train", 1000)])
def test_encode(command, copied, split, count):
    from vae_jax import load_data

    path = written(command, "encode", copied, "--split", split)
    assert path == copied / f"latents_{split}.npz"
    data = getattr(load_data(load_config(copied / "config.yaml").data), split)
    with np.load(path) as file:
        assert {name: file[name].shape for name in file} == {
            "mu": (count, 2),
            "log_var": (count, 2),
            "labels": (count,),
            "class_names": (10,),
        }
        np.testing.assert_array_equal(file["labels"], data.labels)
        from vae_jax import load_run, use

        np.testing.assert_array_equal(file["mu"], use(load_run(copied)).encode(data.images)["mu"])


def test_an_encoding_that_fails_leaves_the_old_one(command, copied, capsys, monkeypatch):
    path = written(command, "encode", copied)
    before = snapshot(copied)

    def half(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    monkeypatch.setattr(
        np.lib.format, "write_array_header_1_0", lambda file, header: half(file)
    )  # of pictures in blocks
    for verb, *more in (("encode",), ("sample", "--out", path)):
        assert main([verb, str(copied), *map(str, more)]) == 2
        assert "No space left" in capsys.readouterr().err
        assert snapshot(copied) == before


def test_encode_to_a_name_without_ending(command, made, tmp_path):
    path = written(command, "encode", made, "--out", tmp_path / "latents")
    assert path == tmp_path / "latents"


def test_interpolate(command, made, copied, tmp_path):
    """A row's images stand at its ends, the decoded path from one z to the other between them."""
    from vae_jax import load_data, load_run

    path = written(command, "interpolate", copied, "-n", 2, "--steps", 5)
    assert path == copied / "figures" / "interpolation.png"
    scale = 192 // 8
    side, picture = 8 * scale + 2, pixels(path)
    assert picture.shape == (2 * side + 2, 7 * side + 2)
    images = load_data(load_run(copied).config.data).test.images[..., 0]
    shown = picture[2:, 2:].reshape(2, side, 7, side)[:, : 8 * scale : scale, :, : 8 * scale : scale]
    chosen = np.random.RandomState(0).choice(len(images), 4, replace=False)
    np.testing.assert_array_equal(shown[:, :, 0], images[chosen[:2]])
    np.testing.assert_array_equal(shown[:, :, -1], images[chosen[2:]])
    arrays = written(command, "interpolate", made, "-n", 2, "--steps", 5, "--out", tmp_path / "path.npz")
    decoded = np.load(arrays)["images"].reshape(2, 5, 8, 8).swapaxes(1, 2)
    assert np.abs(shown[:, :, 1:-1] - 255 * decoded).max() <= 0.51
    again = written(command, "interpolate", made, "-n", 2, "--steps", 5, "--out", tmp_path / "again.png")
    assert again.read_bytes() == path.read_bytes()
    other = written(command, "interpolate", made, "-n", 2, "--steps", 5, "--seed", 1, "--out", tmp_path / "other.png")
    assert other.read_bytes() != path.read_bytes()


def test_interpolate_more_pairs_than_images(command, made, tmp_path):
    written(command, "interpolate", made, "-n", 300, "--steps", 12, "--out", tmp_path / "many.png")


def test_traverse(copied, tmp_path, monkeypatch, capsys):
    """A row varies one dimension alone; the first row that with the largest KL; those next to unused are left out."""
    from vae_jax import load_data, load_run, use
    from vae_jax.evaluation import latents

    trained = load_run(copied)
    model, images = use(trained), load_data(trained.config.data).test.images
    heads = {name: np.asarray(head, np.float64) for name, head in model.encode(images).items()}
    kl = (np.exp(heads["log_var"]) + heads["mu"] ** 2 - 1 - heads["log_var"]).mean(0) / 2
    order = np.argsort(-kl)
    # Both are hardly used after two epochs; the limit lies between them, and then above both.
    for limit, kept in ((kl.mean(), order[:1]), (kl.max() + 1, order)):
        monkeypatch.setattr(latents, "INERT", limit)
        out = tmp_path / f"{len(kept)}.png"
        assert main(["traverse", str(copied), "--image=3", "--steps=5", "--extent=2", f"--out={out}"]) == 0
        said = f"z {order[1]}\n" if len(kept) == 1 else "so none is left out\n"
        assert capsys.readouterr().err.endswith(said)
        scale = 192 // 8
        side, picture = 8 * scale + 2, pixels(out)
        margin = picture.shape[1] - 5 * side - 2
        assert 80 < margin < 200
        above = picture.shape[0] - len(kept) * side - 2
        assert 20 < above < 60  # the title
        assert (picture[:, :margin].min(), picture[:, :margin].max()) == (0, 255)  # the label
        for row, dimension in enumerate(kept):
            for step, value in enumerate(np.linspace(-2, 2, 5)):
                z = heads["mu"][3:4].astype(np.float32)
                z[0, dimension] = value
                expected = np.rint(np.asarray(model.decode(z))[0, :, :, 0] * 255)
                top, left = above + 2 + row * side, margin + 2 + step * side
                found = picture[top : top + 8 * scale : scale, left : left + 8 * scale : scale].astype(float)
                assert np.abs(found - expected).max() <= 1  # a level may fall on either side of a half


def test_traversals_in_an_array_have_all_dimensions_by_number(command, copied, tmp_path):
    from vae_jax import load_data, load_run, use

    path = written(command, "traverse", copied, "--steps", 3, "--extent", 2, "--out", tmp_path / "all.npz")
    trained = load_run(copied)
    model = use(trained)
    z = np.asarray(model.encode(load_data(trained.config.data).test.images[:1])["mu"]).repeat(6, 0)
    z[[0, 1, 2], 0] = z[[3, 4, 5], 1] = [-2, 0, 2]
    np.testing.assert_allclose(np.load(path)["images"], model.decode(z), atol=1e-6)


def test_reconstruct_does_not_write_over_the_last_picture(command, copied):
    first = written(command, "reconstruct", copied, "-n", 4)
    before = first.read_bytes()
    second = written(command, "reconstruct", copied, "-n", 6)
    assert (first.name, second.name) == ("reconstructions.png", "reconstructions_2.png")
    assert first.read_bytes() == before
    assert written(command, "reconstruct", copied, "-n", 6, "--out", first) == first  # a name that is given is taken
    assert first.read_bytes() == second.read_bytes()


# --- An autoencoder --------------------------------------------------------------------------------------------------


def test_an_autoencoder(command, refused, tmp_path):
    folder = tmp_path / "run"
    options = flags(**{**TINY, "train.epochs": 1, "objective.name": "autoencoder"})
    lines = command("train", "--out", folder, *options)
    assert not any("KL" in line for line in lines)
    assert not (folder / "figures" / "samples.png").exists()
    found = evaluated(command, folder)
    assert (found["kl"], found["unit"]) == (0, "squared error per image")
    assert found["loss"] == found["reconstruction"] == summary(folder)["test_loss"]
    before = snapshot(folder)
    line = refused("sample", folder)
    assert "--from: expected gmm or second_stage for objective autoencoder" in line
    for option in ("--nll-samples", "--ais"):
        assert f"{option}: expected a model with a likelihood" in refused("evaluate", folder, option, 10)
    assert snapshot(folder) == before
    assert written(command, "sample", folder, "--from", "gmm") == folder / "figures" / "samples_gmm_seed0.png"
    with np.load(written(command, "encode", folder)) as file:
        assert set(file) == {"mu", "labels", "class_names"}
    written(command, "reconstruct", folder)
    assert "KL" not in command("evaluate", folder)[0]


def test_a_conditional_model(command, refused, tmp_path):
    """Given the digit, through every command: what is drawn follows the label."""
    folder = tmp_path / "run"
    mlp = {name: value for name, value in TINY.items() if not name.startswith(("model.", "train.chunk"))}
    mlp |= {"model.network": "mlp", "model.layers": [32], "model.latent": 2, "model.classes": 10, "train.epochs": 1}
    mlp |= {"likelihood.name": "discretized_logistic"}
    command("train", "--out", folder, *flags(**mlp))
    found = evaluated(command, folder, "--diagnostics", "--nll-samples", 2)
    assert found["loss"] == summary(folder)["test_loss"]
    assert found["bits_per_dim"] == pytest.approx(found["loss"] / (64 * np.log(2)))
    assert found["nll_bits_per_dim"] == pytest.approx(found["nll"] / (64 * np.log(2)))
    assert command("evaluate", folder, "--nll-samples", 2)[1:] == [
        f"at most {found['bits_per_dim']:.4f} bits per dimension of the 256 levels: loss / (64·ln 2)",
        f"test NLL {found['nll']:.3f} nats per image, {found['nll_bits_per_dim']:.4f} bits per dimension "
        f"(importance-weighted, 2 samples)",
    ]
    assert "bits_per_dim" not in evaluated(command, folder, "--latent", "mean")

    def drawn(*arguments):
        with np.load(written(command, "sample", folder, "-n", 12, "--out", tmp_path / "x.npz", *arguments)) as file:
            return file["images"]

    turns, threes = drawn(), drawn("--label", 3)
    same = [np.array_equal(a, b) for a, b in zip(turns, threes, strict=True)]
    assert same == [number % 10 == 3 for number in range(12)]
    fitted = drawn("--from", "gmm", "--label", 3)
    assert not np.array_equal(fitted, threes)
    path = written(command, "sample", folder, "--label", 3)
    assert path == folder / "figures" / "samples_label3_seed0.png"
    for verb in ("reconstruct", "encode", "interpolate", "traverse"):
        written(command, verb, folder)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    pairs = []
    for label in (3, 4):
        path = written(
            command, "reconstruct", folder, tmp_path / "a.png", "--label", label, "--out", tmp_path / "b.png"
        )
        pairs.append(path.read_bytes())
    assert pairs[0] != pairs[1]
    before = snapshot(folder)
    assert "--label: expected the image files' label" in refused("reconstruct", folder, tmp_path / "a.png")
    assert "since test images have labels" in refused("reconstruct", folder, "--label", 3)
    for verb, *more in (("sample",), ("reconstruct", tmp_path / "a.png")):
        for label in (-1, 10):
            expected = f"--label: expected a number from 0 to 9; found {label}"
            assert expected in refused(verb, folder, *more, "--label", label)
    assert snapshot(folder) == before


def folder_of_levels(root, classes):
    """Images of one level with noise, train and test; those of a class are the same in every folder."""
    for name in classes:
        random = np.random.RandomState(ord(name))
        for place in ("train", "test"):
            folder = root / place / name
            folder.mkdir(parents=True)
            for number in range(4):
                image = 20 * (ord(name) - ord("a")) + random.randint(0, 20, (8, 8))
                Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def test_classes_are_matched_by_name(command, refused, tmp_path, capsys, monkeypatch):
    """Of a model that gets labels: the numbers of other data's classes are those of the run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    full, folder = folder_of_levels(tmp_path / "full", "abcd"), tmp_path / "run"
    mlp = {"model.network": "mlp", "model.layers": [8], "model.latent": 2, "model.classes": 4, "train.epochs": 1}
    options = {"data.source": "folder", "data.path": full, "data.image_size": 8, "train.batch_size": 8, **mlp}
    command("train", "--out", folder, *flags(**options))
    assert summary(folder)["class_names"] == list("abcd")

    def encoded(*arguments):
        with np.load(written(command, "encode", folder, *arguments)) as file:
            return dict(file)

    whole = encoded()
    assert whole["class_names"].tolist() == list("abcd")
    found = encoded("--data.path", folder_of_levels(tmp_path / "part", "db"))
    assert found["class_names"].tolist() == list("abcd")
    kept = np.isin(whole["labels"], [1, 3])
    np.testing.assert_array_equal(found["labels"], whole["labels"][kept])
    np.testing.assert_allclose(found["mu"], whole["mu"][kept], rtol=1e-5, atol=1e-6)
    line = refused("evaluate", folder, "--data.path", folder_of_levels(tmp_path / "other", "bxy"))
    assert "other: expected no other classes than 'a', 'b', 'c', 'd'; found 'x', 'y'" in line
    shutil.rmtree(full / "train" / "d")
    line = refused("evaluate", folder)
    assert "expected the data it was trained on, full; its configuration loads others" in line
    assert line.endswith(f"; --data.path {full} takes them as they are now")


def test_a_label_is_a_name_or_a_number(tmp_path, capsys):
    """The classes are called 1, cat and 2; of the fourth there were no images."""
    (tmp_path / "config.yaml").write_text("{model: {classes: 4}}")
    (tmp_path / "data.json").write_text('{"name": "x", "digest": "", "class_names": ["1", "cat", "2"]}')

    def label(text):
        return label_of(SimpleNamespace(label=text, run=str(tmp_path)))

    assert [label(text) for text in ("cat", "2", "0", "03")] == [1, 2, 0, 3]
    assert capsys.readouterr().err == ""
    assert label("1") == 0
    assert capsys.readouterr().err == "--label 1: the class of this name, whose number is 0\n"
    for other in ("4", "-1", "dog", ""):
        with pytest.raises(UserError, match=r"from 0 to 3 or a class's name \(0 1, 1 cat\); found"):
            label(other)


def test_classes_that_a_model_is_not_said_get_further_numbers(tmp_path, capsys):
    """It may be asked what it makes of them."""
    path = folder_of_levels(tmp_path / "other", "bxa")
    config = load_config(
        **{"data.source": "folder", "data.path": "elsewhere", "data.image_size": 8, "data.cache_dir": str(tmp_path)}
    )
    trained = Trained(config, (8, 8, 1), None, [], ("a", "b", "c"))
    options = SimpleNamespace(
        run=str(tmp_path), **dict.fromkeys(("data.manual_dir", "data.cache_dir")), **{"data.path": str(path)}
    )
    data = load_data(options, trained)
    assert data.class_names == ("a", "b", "c", "x")
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4 + [3] * 4
    assert "other: classes that the run does not know get further numbers: x" in capsys.readouterr().err


def test_a_run_of_data_made_in_python_says_so(refused, tmp_path):
    """Its configuration names the digits, which it has never seen."""
    small = {"model.network": "mlp", "model.layers": [8], "model.latent": 2, "train.epochs": 1, "data.image_size": 8}
    levels = np.random.RandomState(0).randint(0, 256, (40, 8, 8), np.uint8)
    folder = tmp_path / "run"
    vae_jax.train_run(load_config(**small), vae_jax.Dataset.from_arrays(levels, name="mine"), folder)
    for more in ((), ("--data.cache_dir", tmp_path)):  # where the data lie makes them no others
        line = refused("evaluate", folder, *more)
        assert "expected the data it was trained on, mine; its configuration loads others" in line
        assert line.endswith("(data.source digits): they were made in Python, or have changed since")
    assert "class_names" not in summary(folder)


def test_shipped_configurations_say_their_command():
    for name, path in shipped().items():
        assert f"vae-jax train --config {name} --out runs/{name}" in path.read_text()
