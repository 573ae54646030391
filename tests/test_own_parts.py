"""Users' own parts: how they are named and refused, whose line an exception shows, and what a run keeps of them."""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from run_fixtures import flags, snapshot

from vae_jax import cli, data, registry
from vae_jax.config import Config, load_config
from vae_jax.errors import Diverged, Stopped, UserError
from vae_jax.model.build import build
from vae_jax.runs import own_parts
from vae_jax.runs.adopt import adopt
from vae_jax.runs.fit import fit
from vae_jax.runs.folder import delete, origin, read_config
from vae_jax.runs.reading import checkpoint_to_resume, load
from vae_jax.runs.recorder import Recorder
from vae_jax.runs.train import train
from vae_jax.sweeps import sweep
from vae_jax.sweeps.plan import delete_sweep, make_sweep
from vae_jax.sweeps.sweep import run
from vae_jax.training import several

NETWORK = """\
import os

import flax.linen as nn


class Net(nn.Module):
    options: object
    shapes: object

    def setup(self):
        self.to_heads = {name: nn.Dense(size) for name, size in self.shapes.heads.items()}
        self.to_pixels = nn.Dense(64 * self.shapes.outputs // len(os.environ.get("VALUE", "1")))

    def encode(self, images, train):
        return {name: head(images.reshape(len(images), -1)) for name, head in self.to_heads.items()}

    def decode(self, z, train):
        return 1.0 * self.to_pixels(z).reshape(-1, 8, 8, self.shapes.outputs)
"""
CHANGED = NETWORK.replace("1.0", "9.0")  # as long as before
LIKELIHOOD = """\
import jax
import jax.numpy as jnp
from vae_jax.likelihoods import Likelihood


def laplace(options, shapes):
    def log_prob(params, outputs, images):
        return -jnp.abs(images - jax.nn.sigmoid(outputs)).sum((1, 2, 3))

    return Likelihood(1, log_prob, lambda params, outputs: jax.nn.sigmoid(outputs))
"""
OBJECTIVE = """\


def bound(key, model, images, options):
    z, log_q = model.sample(key, model.encode(images))
    reconstruction = -model.log_likelihood(images, model.decode(z))
    kl = log_q - model.log_prior(z)
    return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
"""
TINY = {
    "data.image_size": 8,
    "data.channels": 1,
    "model.network": "mlp",
    "model.layers": [4],
    "model.latent": 2,
    "train.epochs": 1,
    "train.batch_size": 70,
    "output.figure_images": 1,
}


@pytest.fixture
def write(tmp_path):
    """Writes a user's file; returns its path."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    return write


def tiny(**options):
    options = {name.replace("__", "."): value for name, value in options.items()}
    layers = {} if "model.network" in options else {"model.layers": [4]}
    return load_config(
        **{**{name: value for name, value in TINY.items() if name != "model.layers"}, **layers, **options}
    )


def with_part(option, name):
    """The default configuration but for this."""
    section, _, field = option.partition(".")
    return replace(Config(), **{section: replace(getattr(Config(), section), **{field: str(name)})})


def refused(function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Named and refused

SIGNATURES = {
    "model.network": "(options, shapes)",
    "posterior.name": "(options, shapes)",
    "prior.name": "(options, shapes)",
    "likelihood.name": "(options, shapes)",
    "objective.name": "(key, model, images, options)",
}


@pytest.mark.parametrize("option", SIGNATURES)
@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("def entry(x): ...", "entry(x)"),
        ("def entry(a, b, c, d, *, rngs): ...", "entry(a, b, c, d, *, rngs)"),
        ("class entry: ...", "entry()"),
        ("entry = 3", "an instance of int"),
        ("entry = (1, 2)", "an instance of tuple"),
        ("entry = None", "None"),
        ("class Net:\n    def __call__(self, x): ...\nentry = Net()", "an instance of Net(x)"),
    ],
)
def test_what_cannot_be_called_so_is_refused(write, option, entry, found):
    path = write(entry + "\n")
    expected = f"{option}: expected entry in {path} to be a function or a class of {SIGNATURES[option]}; found {found}"
    assert refused(build, with_part(option, f"{path}:entry"), (8, 8, 1)) == expected


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        (
            "model.network",
            "net = lambda *_: 3",
            "expected {name} to give a flax.linen.Module or a vae_jax.hierarchy.Hierarchy; found builtins.int",
        ),
        (
            "model.network",
            "from flax import nnx\nclass net(nnx.Module):\n    def __init__(self, *_): ...",
            "expected {name} to give a flax.linen.Module or a vae_jax.hierarchy.Hierarchy; found vae_jax_user_",
        ),
        (
            "model.network",
            NETWORK.replace("def decode", "def decoder").replace("class Net", "class net"),
            "expected {name} to have decode(x, train); found none",
        ),
        (
            "model.network",
            NETWORK.replace("encode(self, images, train)", "encode(self, images)").replace("class Net", "class net"),
            "expected {name} to have encode(x, train); found encode(images)",
        ),
        (
            "likelihood.name",
            LIKELIHOOD.replace("log_prob(params, outputs", "log_prob(outputs").replace("def laplace", "def net"),
            "expected log_prob of its Likelihood to be a function of 3 arguments; found log_prob(outputs, images)",
        ),
        (
            "objective.name",
            "from vae_jax.objectives import Objective\nnet = Objective(lambda model: 0)",
            "expected terms of its Objective to be a function of 4 arguments; found <lambda>(model)",
        ),
    ],
)
def test_what_a_factory_gives_is_refused_in_one_line(write, option, text, message):
    name = f"{write(text)}:net"

    def make():
        network, _ = build(with_part(option, name), (8, 8, 1))
        jax.eval_shape(network.init, jax.random.key(0))

    assert f"{option}: {message.format(name=name)}" in refused(make)


def test_a_submodule_may_be_the_encoder(write):
    text = """\
import flax.linen as nn


class Encoder(nn.Module):
    heads: dict

    @nn.compact
    def __call__(self, images, train):
        return {name: nn.Dense(size)(images.reshape(len(images), -1)) for name, size in self.heads.items()}


class Net(nn.Module):
    options: object
    shapes: object

    def setup(self):
        self.encode = Encoder(self.shapes.heads)

    @nn.compact
    def decode(self, z, train):
        return nn.Dense(64)(z).reshape(-1, 8, 8, 1)
"""
    network, _ = build(tiny(model__network=f"{write(text)}:Net"), (8, 8, 1))
    assert network.init(jax.random.key(0)).params["encode"]


def test_a_name_that_is_none_tells_of_ones_own():
    message = refused(build, with_part("model.network", "mine.py"), (8, 8, 1))
    assert "expected one of convolutional, mlp, residual, or FILE.py:ENTRY for your own; found 'mine.py'" in message


def test_a_changed_file_is_loaded_anew(write):
    """Whatever its size and its time say."""
    path = write("def entry(a): return 1\n")
    values = []
    for text in ("1", "2", "1"):
        path.write_text(f"def entry(a): return {text}\n")
        os.utime(path, (1e9, 1e9))
        values.append(registry.lookup({}, f"{path}:entry", "option", ("a",))(0))
    assert values == [1, 2, 1]
    assert not (path.parent / "__pycache__").exists()


# Whose line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = (1,\ny = 2\n", ":1: x = (1,: SyntaxError: "),
        ("def f():\npass\n", ":2: pass: IndentationError: expected an indented block"),
        ("\nlength = 1 / 0\n", ":2 in <module>: length = 1 / 0: ZeroDivisionError: division by zero"),
        ("import nowhere_to_be_seen\n", ":1 in <module>: import nowhere_to_be_seen: ModuleNotFoundError: No module"),
        ("import sys\nsys.exit()\n", ":2 in <module>: sys.exit(): SystemExit"),
        ("raise ValueError('two\\nlines')\n", ":1 in <module>: raise ValueError('two\\nlines'): ValueError: two lines"),
    ],
)
def test_a_file_that_cannot_be_imported_shows_its_line(write, text, line):
    path = write(text)
    message = refused(build, with_part("model.network", f"{path}:Net"), (8, 8, 1))
    assert message.startswith(f"model.network: {path}{line}")


def test_a_file_beside_it_is_not_found_and_the_line_says_what_to_do(write, tmp_path):
    write("x = 1\n", "helper_beside.py")
    path = write("import helper_beside\n")
    message = refused(build, with_part("model.network", f"{path}:Net"), (8, 8, 1))
    assert message.endswith(f"install it, or add {tmp_path} to PYTHONPATH)")


# Where: option, entry, file, what is in place of what, and how the line ends.
RAISING = {
    "a factory": (
        "likelihood.name=laplace",
        LIKELIHOOD,
        ("Likelihood(1,", "Likelihood(1 // 0,"),
        "in laplace: return Likelihood(1 // 0, log_prob, ",
        "ZeroDivisionError: integer division or modulo by zero",
    ),
    "setup": (
        "model.network=Net",
        NETWORK,
        ("64 * self", "self.shapes.heads['ghost'] * self"),
        "in setup: self.to_pixels = nn.Dense(self.shapes.heads['ghost'] * ",
        "KeyError: 'ghost'",
    ),
    "decode": (
        "model.network=Net",
        NETWORK,
        ("1.0 * self", "z @ self"),
        "in decode: return z @ self.to_pixels(z).reshape(-1, 8, 8, self.shapes.outputs): ",
        "TypeError: ",
    ),
    "log_prob": (
        "likelihood.name=laplace",
        LIKELIHOOD,
        ("sum((1, 2, 3))", "sum(17)"),
        "in log_prob: return -jnp.abs(images - jax.nn.sigmoid(outputs)).sum(17)",
        "ValueError: axis 17 is out of bounds",
    ),
    "an objective": (
        "objective.name=bound",
        OBJECTIVE,
        ("log_q - model", "ghost - model"),
        "in bound: kl = ghost - model.log_prior(z)",
        "NameError: name 'ghost' is not defined",
    ),
}


@pytest.fixture
def array(tmp_path, small_data):
    """Options of images in a file."""
    np.savez(tmp_path / "images.npz", images=small_data.train.images)
    return {"data.source": "array", "data.path": tmp_path / "images.npz"}


def command(capsys, *arguments):
    code = cli.main([str(each) for each in arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("where", RAISING)
def test_what_a_users_code_raises_is_one_line_that_shows_its_own(write, array, capsys, tmp_path, where):
    option, text, change, line, error = RAISING[where]
    assert change[0] in text
    path = write(text.replace(*change, 1))
    number = next(n for n, each in enumerate(path.read_text().splitlines(), 1) if change[1] in each)
    options = {**TINY, **array, option.split("=")[0]: f"{path}:{option.split('=')[1]}"}
    if option.startswith("model"):
        del options["model.layers"]
    code, said = command(capsys, "train", "--out", tmp_path / "run", *flags(**options))
    assert code == 2
    (last,) = said.splitlines()
    assert last.startswith(f"vae-jax: error: {path}:{number} {line}")
    assert error in last


CALLBACK = """\
import jax


def check(x):
    raise KeyError("ghost")


def entry(x):
    return jax.pure_callback(check, jax.ShapeDtypeStruct((), "float32"), x)
"""


def test_a_callbacks_error_shows_its_own_line_too(write):
    path = write(CALLBACK)
    entry = jax.jit(registry.lookup({}, f"{path}:entry", "option", ("x",)))
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(entry(1.0))
    assert registry.users_line(caught.value) == f"{path}:5 in check: raise KeyError(\"ghost\"): KeyError: 'ghost'"


def test_the_library_lets_it_pass(write, small_data, tmp_path):
    path = write(OBJECTIVE.replace("log_q - model", "ghost - model"))
    with pytest.raises(NameError, match="ghost"):
        train(tiny(objective__name=f"{path}:bound"), small_data, tmp_path / "run")


def test_an_error_of_ones_own_is_left_as_it_is(write, array, capsys, tmp_path):
    path = write("from vae_jax import UserError\n\ndef q(options, shapes):\n    raise UserError('latent: mine')\n")
    options = flags(**{**TINY, **array, "posterior.name": f"{path}:q"})
    assert command(capsys, "train", "--out", tmp_path / "run", *options) == (2, "vae-jax: error: latent: mine\n")


def test_a_run_that_is_opened_shows_the_users_line_and_blames_no_checkpoint(copied, capsys, tmp_path, monkeypatch):
    before = snapshot(copied)
    monkeypatch.setenv("VALUE", "")
    for arguments in (
        ["evaluate", copied],
        ["sample", copied, "--out", tmp_path / "x.png"],
        ["train", "--out", copied, "--resume", "--train.epochs", 2],
    ):
        code, said = command(capsys, *arguments)
        assert code == 2
        assert said.startswith(f"vae-jax: error: {tmp_path}/mine.py:12 in setup: self.to_pixels = nn.Dense(")
        assert said.endswith("ZeroDivisionError: integer division or modulo by zero\n")
    with pytest.raises(ZeroDivisionError):
        load(copied)
    assert snapshot(copied) == before


def test_a_sweep_shows_the_users_line(write, array, capsys, tmp_path):
    path = write(OBJECTIVE.replace("log_q - model", "ghost - model"))
    options = [*flags(**TINY, **array), "--objective.name", f"{path}:bound"]
    code, said = command(capsys, "sweep", "--out", tmp_path / "sweep", *options)
    assert code == 2
    assert said.splitlines()[-1].startswith(f"vae-jax: error: {path}:6 in bound: kl = ghost")


# What a run keeps


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_data):
    """A run of a user's network, named by a relative path; with the file and the images beside it."""
    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "images.npz", images=small_data.train.images)
    (folder / "mine.py").write_text(NETWORK)
    options = {"data__source": "array", "data__path": str(folder / "images.npz"), "data__test": 10}
    config = tiny(**options, model__network="mine.py:Net", train__batch_size=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(config, data.load(config.data), Path("run"))
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A copy of it, and of what lies beside it, as if it had been made there."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in ("config.yaml", "code/sources.json"):
        path = tmp_path / "run" / name
        path.write_text(path.read_text().replace(str(made), str(tmp_path)))
    own_parts.keep({}, own_parts.names_in(read_config(tmp_path / "run")), tmp_path / "run")  # signed again
    return tmp_path / "run"


def begin(config, images, folder):
    """A run that has only begun."""
    folder.mkdir(exist_ok=True)
    recorder = Recorder(config, images, folder)
    delete(folder)
    recorder.open(None, print)


def index_of(folder):
    return json.loads((folder / "code" / "sources.json").read_text())


def test_a_run_that_was_moved_is_used_without_the_users_file(copied, capsys, tmp_path):
    epoch = json.loads((copied / "metrics.jsonl").read_text())
    (tmp_path / "elsewhere").mkdir()
    moved = copied.rename(tmp_path / "elsewhere" / "moved")
    (tmp_path / "mine.py").unlink()
    assert cli.main(["evaluate", str(moved), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["loss"] == pytest.approx(epoch["test_loss"], rel=1e-6)
    assert shown.err == ""
    assert f"network: {tmp_path}/mine.py:Net" in (moved / "config.yaml").read_text()  # where it came from


def test_a_run_goes_on_with_its_own_copy_where_the_file_has_changed(copied, tmp_path):
    begun, lines = load(copied, report=print), []
    config = replace(begun.config, train=replace(begun.config.train, epochs=2))
    images = data.load(config.data)
    whole = fit(config, images, resume=(begun.state, begun.history))
    (tmp_path / "mine.py").write_text(CHANGED)
    copy = copied / "code" / "mine.py"
    line = f"{tmp_path}/mine.py has changed since {copied} began: its copy {copy} is used"
    assert load(copied, report=lines.append).config.model.network == f"{copy}:Net"
    assert lines == [line]
    trained = train(config, images, copied, resume=True, report=lines.append)
    assert f"warning: {line}" in lines
    jax.tree.map(np.testing.assert_array_equal, trained.state, whole.state)
    assert copy.read_text() == NETWORK
    assert f"network: {tmp_path}/mine.py:Net" in (copied / "config.yaml").read_text()
    (tmp_path / "mine.py").write_text(NETWORK)
    assert own_parts.changes(copied) == []


def test_a_file_is_known_by_its_content_too(copied, write, tmp_path):
    config = load(copied, report=print).config
    assert config.model.network == f"{tmp_path}/mine.py:Net"
    images = data.load(config.data)
    again = write(NETWORK, "again/again.py")
    (tmp_path / "mine.py").unlink()
    other = own_parts.renamed(config, {config.model.network: f"{again}:Net"})
    earlier = checkpoint_to_resume(other, images, copied, print)
    assert earlier
    assert int(earlier.state.step) == 1
    assert own_parts.named(other, copied) == config
    assert own_parts.named(own_parts.as_kept(config, copied), copied) == config
    again.write_text(CHANGED)
    assert f"found {again}:Net" in refused(checkpoint_to_resume, other, images, copied, print)


def test_files_of_one_name_and_of_one_content(write, tmp_path):
    names = [
        f"{write(text, f'{folder}/mine.py')}:{entry}"
        for folder, text, entry in (("a", NETWORK, "Net"), ("b", LIKELIHOOD, "laplace"), ("c", NETWORK, "Net"))
    ]
    (tmp_path / "run" / "code").mkdir(parents=True)
    (tmp_path / "run" / "code" / "MINE_1.py").write_text("not ours")
    own_parts.keep(own_parts.sources(names), names, tmp_path / "run")
    copies = [each["copy"] for each in index_of(tmp_path / "run").values()]
    assert copies == ["mine.py", "mine_2.py", "mine.py"]
    for folder in "abc":
        shutil.rmtree(tmp_path / folder)
    paths = own_parts.kept(names, tmp_path / "run")
    assert list(paths.values()) == [
        f"{tmp_path}/run/code/{copy}:{name.rpartition(':')[2]}" for copy, name in zip(copies, names, strict=True)
    ]
    own_parts.delete(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "code").iterdir()] == ["MINE_1.py"]


def test_a_copy_that_was_edited_is_said_and_not_trained_on(copied):
    copy, lines = copied / "code" / "mine.py", []
    copy.write_text(CHANGED)
    line = f"{copy} has been edited since {copied} began: it is used as it is now"
    assert refused(load, copied).startswith(f"{copied}: expected code that your own training has put there")
    config = load(copied, report=lines.append, trust_code=True).config
    assert config.model.network == f"{copy}:Net"
    assert lines == [line]
    assert line in refused(train, config, data.load(config.data), copied, resume=True)


def test_a_module_that_has_changed_is_said(write, small_data, tmp_path, monkeypatch):
    write("", "users_package/__init__.py")
    path = write(LIKELIHOOD, "users_package/module.py")
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny(likelihood__name="users_package.module:laplace")
    begin(config, small_data, tmp_path / "run")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert index_of(tmp_path / "run") == {"users_package.module": {"sha256": sha256, "copy": ""}}
    assert own_parts.changes(tmp_path / "run") == []
    path.write_text(LIKELIHOOD + "# changed\n")
    said = f"users_package.module has changed since {tmp_path / 'run'} began: it is used as it is now"
    assert own_parts.changes(tmp_path / "run") == [said]
    path.write_text("1 / 0\n")
    monkeypatch.delitem(sys.modules, "users_package.module")
    assert own_parts.changes(tmp_path / "run") == [said]
    assert f"likelihood.name: {path}:1 in <module>: 1 / 0: ZeroDivisionError" in refused(build, config, (8, 8, 1))


def test_a_run_begun_anew_with_its_own_copy(write, small_data, tmp_path):
    begin(tiny(model__network=f"{write(NETWORK)}:Net"), small_data, tmp_path / "run")
    own = tmp_path / "run" / "code" / "mine.py"
    (tmp_path / "run" / "code" / "notes.txt").write_text("the user's")
    begin(tiny(model__network=f"{own}:Net"), small_data, tmp_path / "run")
    assert own.read_text() == NETWORK
    assert list(index_of(tmp_path / "run")) == [str(own)]
    begin(tiny(), small_data, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "code").iterdir()] == ["notes.txt"]


def test_a_run_of_weights_from_elsewhere_keeps_its_files_too(copied, tmp_path, monkeypatch):
    monkeypatch.setattr("vae_jax.runs.adopt.draw_samples", lambda *_: None)
    trained, adopted = load(copied), tmp_path / "adopted"
    adopt(trained.config, trained.state.variables, adopted, {"counters": {}})
    (tmp_path / "mine.py").unlink()
    found = load(adopted)
    assert found.config.model.network == f"{adopted}/code/mine.py:Net"
    jax.tree.map(np.testing.assert_array_equal, found.state.variables, trained.state.variables)


def test_a_users_file_among_the_copies_is_not_lost_to_an_import(copied, monkeypatch):
    monkeypatch.setattr("vae_jax.runs.adopt.draw_samples", lambda *_: None)
    trained, own = load(copied), copied / "code" / "notes.txt"
    own.write_text("mine")
    before = snapshot(copied)
    arguments = trained.config, trained.state.variables, copied, {"counters": {}}
    assert refused(adopt, *arguments, overwrite=True).startswith(f"{own}: expected nothing but copies of ")
    assert snapshot(copied) == before
    own.unlink()
    adopt(*arguments, overwrite=True)
    assert origin(copied).counters == {}


def test_a_file_that_is_missing_is_refused_and_nothing_is_left(small_data, tmp_path):
    message = refused(train, tiny(model__network=f"{tmp_path}/none.py:Net"), small_data, tmp_path / "run")
    assert message.startswith(f"model.network: expected a module to import in '{tmp_path}/none.py:Net'; FileNotFound")
    assert not (tmp_path / "run").exists()


def test_a_copy_that_is_gone_is_said(copied, tmp_path):
    (tmp_path / "mine.py").write_text(CHANGED)
    copy = copied / "code" / "mine.py"
    copy.unlink()
    assert own_parts.changes(copied) == [
        f"{tmp_path}/mine.py has changed since {copied} began, and its copy {copy} is gone"
    ]


def test_an_index_that_cannot_be_read_is_refused(copied, tmp_path):
    index = copied / "code" / "sources.json"
    index.unlink()
    index.mkdir()
    assert refused(load, copied).startswith(f"{index}: expected a file; found a folder")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "code").write_text("a user's")  # and no index
    assert own_parts.changes(tmp_path / "plain") == []
    own_parts.delete(tmp_path / "plain")
    assert (tmp_path / "plain" / "code").read_text() == "a user's"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"/x.py": 3}',
        '{"/x.py": {"sha256": "0", "copy": "../x.py"}}',
        '{"/x.py": {"sha256": "0"}}',
        "[" * 9999,
    ],
)
def test_a_damaged_index_is_refused(copied, content):
    (copied / "code" / "sources.json").write_text(content)
    message = refused(load, copied)
    assert message.startswith(f"{copied}/code/sources.json: ")
    assert "expected " in message
    assert "found " in message or "JSON; Expecting value" in message


@pytest.fixture
def uncompiled(monkeypatch):
    """What stands for a sweep's compiled program, of one member; it knows of which configuration it is."""
    program = object.__new__(several.Several)
    program.size, program.compile_seconds, program.slow = 1, 0.0, False

    def compiled(configs, *_):
        program.config = configs[0]
        return program

    monkeypatch.setattr(several, "program_that_fits", compiled)
    return program


def test_a_file_edited_while_a_sweep_trains_is_said_and_not_trained_on(
    write, small_data, tmp_path, monkeypatch, uncompiled
):
    path, folder, lines, trained, ended = write(OBJECTIVE), tmp_path / "sweep", [], [], []

    def fit(*_, on_diverged, **__):
        trained.append(uncompiled.config.objective.name)
        path.write_text("broken" if len(trained) < 3 else "broken again")
        on_diverged(0, Diverged("at once"))
        return [Diverged("at once")]

    monkeypatch.setattr(several, "fit", fit)
    monkeypatch.setattr(sweep, "write_results", lambda _, plan, outcomes, data: ended.extend(outcomes))
    plan = make_sweep(tiny(objective__name=f"{path}:bound"), 2, ["model.latent=2,3"])
    run(plan, small_data, folder, report=lines.append)
    copy = f"{folder}/code/mine.py"
    assert trained == [f"{path}:bound"] * 2 + [f"{copy}:bound"] * 2
    assert {outcome.member.config.objective.name for outcome in ended} == {f"{copy}:bound"}  # what its unit is read of
    warnings = [line for line in lines if "changed" in line]
    assert warnings == [f"warning: {path} has changed since {folder} began: its copy {copy} is used"]
    assert [kept.read_text() for kept in folder.glob("*/code/mine.py")] == [OBJECTIVE] * 4
    run(plan, small_data, folder, resume=True)
    Path(copy).write_text("edited")
    message = refused(run, plan, small_data, folder, resume=True)
    assert (
        message == f"{copy} has been edited since {folder} began: it is used as it is now; a sweep goes on as it began"
    )


def test_a_sweep_and_its_members_keep_theirs(write, small_data, tmp_path, monkeypatch, uncompiled):
    """What is compiled and trained is not looked at here, but of which file it is."""

    def fit(*_, **__):
        raise Stopped(uncompiled.config.objective.name)

    monkeypatch.setattr(several, "fit", fit)
    path, folder, lines = write(OBJECTIVE), tmp_path / "sweep", []
    plan = make_sweep(tiny(objective__name=f"{path}:bound"), 1, [])
    with pytest.raises(Stopped, match=str(path)):
        run(plan, small_data, folder)
    path.unlink()
    with pytest.raises(Stopped, match=f"{folder}/code/mine.py:bound"):
        run(plan, small_data, folder, resume=True, report=lines.append)
    assert not [line for line in lines if "changed" in line]
    path.write_text("changed")
    shutil.move(folder, tmp_path / "moved")
    moved = tmp_path / "moved"
    with pytest.raises(Stopped, match=f"{moved}/code/mine.py:bound"):
        run(plan, small_data, moved, resume=True, report=lines.append)
    line = f"warning: {path} has changed since {moved} began: its copy {moved}/code/mine.py is used"
    assert [each for each in lines if "changed" in each] == [line]
    for kept in (moved, moved / "seed=0"):
        assert (kept / "code" / "mine.py").read_text() == OBJECTIVE
        assert index_of(kept).keys() == {str(path)}
        assert f"name: {path}:bound" in (moved / "seed=0" / "config.yaml").read_text()
    delete_sweep(moved)
    assert {each.name for each in moved.iterdir()} <= {".lock", "sweep.json"}


# Options of their own

RENYI = """\
from dataclasses import dataclass
from typing import Annotated, Literal

from vae_jax.options import TRACED, only


@dataclass(frozen=True)
class Options:
    \"\"\"Of the bound.

    Attributes:
        alpha: how much the KL weighs.
        kind: whether the KL is a square: plain or squared.
        power: of a squared KL.
    \"\"\"

    alpha: Annotated[float, "[0, 10]", TRACED] = 1.0
    kind: Literal["plain", "squared"] = "plain"
    power: Annotated[int, "[1, 4]", only(kind="squared")] = 2


def bound(key, model, images, options: Options):
    z, log_q = model.sample(key, model.encode(images))
    reconstruction = -model.log_likelihood(images, model.decode(z))
    kl = log_q - model.log_prior(z)
    cost = kl if options.kind == "plain" else kl**options.power
    return {"loss": reconstruction + options.alpha * cost, "reconstruction": reconstruction, "kl": kl}
"""


@pytest.mark.parametrize(
    ("asks", "found"),
    [
        ("if options.alpha > 0", "TracerBoolConversionError"),
        ("if {options.alpha: 1}", "TypeError"),
        ('if f"{options.alpha:.3f}"', "TypeError"),
    ],
)
def test_an_objective_that_asks_for_a_traced_option_is_refused_before_anything_is_written(
    write, tmp_path, capsys, asks, found
):
    comparing = RENYI.replace('if options.kind == "plain"', asks)
    out = tmp_path / "refused"
    flag = ["--objective.name", f"{write(comparing)}:bound"]
    assert cli.main(["train", "--out", str(out), *flags(**TINY), *flag]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "expected it not to ask in Python, as by if, float(), numpy or a format, for the value of alpha or" in line
    assert line.endswith(f"found {found}")
    assert not (out / "metrics.jsonl").exists()


NUMBERS = """\
from dataclasses import dataclass
from typing import Annotated

from vae_jax.options import TRACED


@dataclass(frozen=True)
class Options:
    share: Annotated[float, TRACED] = 50.0
    power: Annotated[int, "[1, 99999999999]", TRACED] = 2
    on: Annotated[bool, TRACED] = True

    def __post_init__(self):
        object.__setattr__(self, "share", self.share / 100)


def bound(key, model, images, options: Options):
    z, log_q = model.sample(key, model.encode(images))
    reconstruction, kl = -model.log_likelihood(images, model.decode(z)), log_q - model.log_prior(z)
    # What bfloat16 makes of it depends on the number's type.
    cost = ((kl.astype("bfloat16") * options.share).astype("float32") * options.power) * options.on
    return {"loss": reconstruction + cost, "reconstruction": reconstruction, "kl": kl, "share": options.share * kl / kl}
"""


@pytest.mark.optimized
def test_a_number_of_any_type_is_in_a_sweep_what_it_is_alone_whatever_its_class_makes_of_it(write, tmp_path):
    base = {**TINY, "objective.name": f"{write(NUMBERS)}:bound"}
    pairs = ((50, 2), (80, 3))
    configs = [load_config(**base, **{"objective.share": share, "objective.power": power}) for share, power in pairs]
    images = data.load(configs[0].data)
    program = several.program_that_fits(configs, several.Images(images))
    found = several.fit(program, [several.Run(config) for config in configs])
    for config, (_, history), share in zip(configs, found, (0.5, 0.8), strict=True):
        alone = fit(config, images).history
        for name in ("train_loss", "test_loss", "train_share"):
            assert history[-1][name] == alone[-1][name], name
        assert alone[-1]["test_share"] == pytest.approx(share, rel=1e-6)
    with pytest.raises(UserError, match=r"objective\.power: expected a whole number of 32 bits, since it is TRACED"):
        fit(load_config(**base, **{"objective.power": 10**10}), images)


OPTIMIZER = """\
import jax
import optax


def own(options, learning_rate):
    WHERE
    return optax.GradientTransformation(lambda params: (), update)


def update(gradient, state, params=None):
    INSIDE
    return jax.tree.map(lambda g: -0.01 * g, gradient), state
"""


@pytest.mark.parametrize(
    ("where", "inside"), [("float(learning_rate(0))", ""), ("", "if jax.tree.leaves(gradient)[0].sum() > 0: pass")]
)
def test_an_optimizer_that_asks_for_a_number_is_refused_in_a_line(write, where, inside):
    name = f"{write(OPTIMIZER.replace('WHERE', where).replace('INSIDE', inside))}:own"
    config = load_config(**{**TINY, "optimizer.name": name})
    message = "optimizer.name .*: expected it not to ask in Python, .* for the value of the learning rate or of another"
    with pytest.raises(UserError, match=message):
        fit(config, data.load(config.data))


FROZEN = "@dataclass(frozen=True)\n"


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def test_a_users_options_are_options_like_ours(write, tmp_path, capsys):
    name = f"{write(RENYI)}:bound"
    config = load_config(**{"objective.name": name, "objective.alpha": "2"})
    assert config.objective.options.alpha == 2.0
    assert load_config(objective={"alpha": 2, "name": name}).objective.options == config.objective.options
    (tmp_path / "some.yaml").write_text(f"objective: {{name: '{name}', alpha: 2.0, kind: squared, beta: 1.0}}")
    options = load_config(tmp_path / "some.yaml").objective.options  # ours of that name is as it is by default
    assert (options.alpha, options.kind, options.power) == (2.0, "squared", 2)
    for given, message in {
        "alpha=11": "objective.alpha: expected a number in [0, 10]; found 11.0",
        "alpha=much": "objective.alpha: expected a number; found much",
        "kind=square": "objective.kind: expected one of plain, squared; found 'square' (did you mean squared?)",
        "power=3": "objective.power: expected objective.kind squared; found plain",
        "alpa=1": "--objective.alpa: expected an option of a configuration; found none of that name (did you mean "
        "--objective.alpha?)",
        "beta=2": f"objective.beta: expected objective.name vae; found {name}",
        "beta=1": f"objective.beta: expected objective.name vae; found {name}",
    }.items():
        out = tmp_path / "refused"
        flag = [f"--objective.{given}", "--objective.name", name]
        assert cli.main(["train", "--out", str(out), *flags(**TINY), *flag]) == 2
        assert capsys.readouterr().err == f"vae-jax: error: {message}\n"
        assert not out.exists()
    with pytest.raises(SystemExit):
        cli.main(["train", "--objective.name", name, "--objective.alpha", "3", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--objective.alpha VALUE how much the KL weighs (a number in [0, 10]; 3.0)" in shown
    assert "--objective.beta" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("class Options:\n    alpha: float = 1.0\n", "expected a frozen dataclass; found Options"),
        ("@dataclass\nclass Options:\n    alpha: float = 1.0\n", "expected a frozen dataclass; found Options"),
        (
            "@dataclass(frozen=True)\nclass Options:\n    alpha: float\n",
            "Options.alpha: expected an option with a",
        ),
        (
            "@dataclass(frozen=True)\nclass Options:\n    alpha: dict = None\n",
            "Options.alpha: expected an option of a",
        ),
        (
            "@dataclass(frozen=True)\nclass Options:\n    name: str = ''\n    alpha: float = 1.0\n",
            "Options.name: expected a name other than changed, listed, name, which are objective's own; found name",
        ),
    ],
)
def test_what_a_users_options_may_not_be(write, options, message):
    text = f"from dataclasses import dataclass\n{options}\ndef bound(key, model, images, options: Options): ..."
    name = f"{write(text)}:bound"
    line = refused(build, load_config(**{**TINY, "objective.name": name, "objective.alpha": 1}), (8, 8, 1))
    assert line.startswith(f"objective.name {name}: ")
    assert message in line
    plain = f"{write(OBJECTIVE, 'plain.py')}:bound"
    line = refused(build, load_config(**{**TINY, "objective.name": plain, "objective.alpha": 1}), (8, 8, 1))
    assert line.startswith("objective.alpha: expected an option of a configuration; found none")


def test_a_users_options_are_kept_with_the_run_and_it_goes_on_with_them(write, tmp_path, capsys):
    path, out = write(RENYI), tmp_path / "run"
    begin = ["train", "--out", str(out), *flags(**TINY), "--objective.name", f"{path}:bound", "--objective.alpha", "2"]
    assert cli.main(begin) == 0
    assert read_config(out).objective.changed == (("alpha", 2.0),)
    path.write_text(RENYI.replace("alpha *", "alpha * 1.5 *"))  # the run has its own copy
    capsys.readouterr()
    for start in (begin[:-2], ["train", "--out", str(out)]):  # the option is the run's part's without its name too
        assert cli.main([*start, "--objective.alpha", "3", "--resume", "--train.epochs", "2"]) == 2
        assert "changed: objective.alpha (the run has 2.0, found 3.0)" in capsys.readouterr().err
    for again in (["train", "--out", str(out)], begin):
        assert cli.main([*again, "--resume", "--train.epochs", "2"]) == 0
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    whole = tmp_path / "whole"
    path.write_text(RENYI)
    assert cli.main(["train", "--out", str(whole), *begin[3:], "--train.epochs", "2"]) == 0
    assert losses_of(whole) == pytest.approx(losses_of(out), rel=1e-6)


def test_a_users_option_is_swept_and_traced(write, tmp_path, capsys):
    name, out = f"{write(RENYI)}:bound", tmp_path / "sweep"
    begin = ["sweep", "--out", str(out), *flags(**TINY), "--objective.name", name, "--set", "objective.alpha=0.5,2"]
    assert cli.main(begin) == 0
    assert "compiling 2 members as one program" in capsys.readouterr().out
    for value in ("0.5", "2"):
        alone = tmp_path / f"alone_{value}"
        assert cli.main(["train", "--out", str(alone), *begin[3:-2], "--objective.alpha", value]) == 0
        assert losses_of(out / f"alpha={value},seed=0") == pytest.approx(losses_of(alone), rel=1e-6)
    assert losses_of(out / "alpha=0.5,seed=0") != losses_of(out / "alpha=2,seed=0")
    assert cli.main(["sweep", "--out", str(out), "--resume"]) == 0
    assert cli.main([*begin[:-1], "objective.alpha=0.5,11", "--overwrite"]) == 2
    assert "objective.alpha: expected a number in [0, 10]; found 11.0" in capsys.readouterr().err


def test_an_optimiser_of_ones_own_trains(write, tmp_path, capsys):
    text = """\
from dataclasses import dataclass
from typing import Annotated

import optax


@dataclass(frozen=True)
class Sgd:
    momentum: Annotated[float, "[0, 1)"] = 0.0


def sgd(options: Sgd, learning_rate):
    return optax.sgd(learning_rate, options.momentum)


def wrong(options, learning_rate):
    return 3


def older(config, rate):
    return 3
"""
    path, losses = write(text), []
    for momentum in ("0", "0.9"):
        out = tmp_path / momentum
        own = ["--optimizer.name", f"{path}:sgd", "--optimizer.momentum", momentum, "--train.learning_rate", "1e-4"]
        assert cli.main(["train", "--out", str(out), *flags(**TINY), *own]) == 0
        losses.append(losses_of(out))
    assert losses[0] != losses[1]
    capsys.readouterr()
    for entry, said in {
        "wrong": "to give an optax.GradientTransformation; found builtins.int",
        "older": "to be a function or a class of (options, learning_rate); found older(config, rate)",
    }.items():
        assert (
            cli.main(["train", "--out", str(tmp_path / "x"), *flags(**TINY), "--optimizer.name", f"{path}:{entry}"])
            == 2
        )
        assert said in capsys.readouterr().err
