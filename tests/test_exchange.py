"""Weights to and from PyTorch's files: what comes through, and that nothing else does."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_fixtures import TINY, compiled_once, flags, snapshot
from safetensors.numpy import load_file, save_file

from vae_jax import load_config, load_data
from vae_jax.data import resolve
from vae_jax.errors import UserError
from vae_jax.files.held import LOCK
from vae_jax.interop import exchange, torch_pickle, weights_file
from vae_jax.interop.export import export
from vae_jax.interop.torch_source import network_of
from vae_jax.interop.torch_weights import from_state_dict, to_state_dict
from vae_jax.model.build import build
from vae_jax.runs.reading import load, use
from vae_jax.runs.train import train
from vae_jax.training.start import start_from
from vae_jax.training.state import Trained

CONFIG = load_config(**TINY)
NETWORKS = {
    "article": load_config("article"),
    "autoencoder": load_config("ae"),
    "tiny": CONFIG,
    "plain": replace(
        CONFIG,
        model=replace(
            CONFIG.model, batch_norm=False, kernel=5, strides=(2, 3), paddings=(2, 1), head_activation=False, latent=3
        ),
        data=replace(CONFIG.data, image_size=13, channels=3),
    ),
    "biased": replace(CONFIG, model=replace(CONFIG.model, unbiased_running_variance=False)),
    "mlp": load_config(**{"data.image_size": 8, "model.network": "mlp", "model.layers": [6, 5], "model.gated": True}),
    "residual": load_config(**{"data.image_size": 8, "model.network": "residual", "model.channels": [4, 8]}),
}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def data():
    return load_data(CONFIG.data)


@pytest.fixture(scope="module")
def made(tmp_path_factory, data):
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("made") / "run"
    train(CONFIG, data, folder)
    return folder


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    export(made, path)
    return path


@pytest.fixture
def refused(command, tmp_path):
    """Imports a file that must be refused in one line, with nothing written; gives the line."""

    def run(path, *arguments):
        before = snapshot(tmp_path)
        code, out, err = command("import", path, tmp_path / "new", *(arguments or flags(**TINY)))
        assert code == 2, out
        assert snapshot(tmp_path) == before
        (line,) = err.splitlines()
        assert line.startswith("vae-jax: error: ")
        return line

    return run


def variables_of(config, seed=0):
    network, _ = build(config, resolve(config.data).image_shape)
    variables = network.init(jax.random.key(seed))
    random = np.random.RandomState(seed)
    return jax.tree.map(lambda x: (x + random.rand(*x.shape)).astype(x.dtype), variables)


# --- Round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_layouts_go_both_ways(name):
    variables, flat = variables_of(NETWORKS[name]), network_of(NETWORKS[name].model).flat
    state = to_state_dict(variables, 7, flat)
    assert all(array.flags.c_contiguous for array in state.values())
    back = from_state_dict(state, variables_of(NETWORKS[name], seed=1), flat)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_imports_and_exports_bit_for_bit(name, tmp_path):
    config = NETWORKS[name]
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    weights_file.write(path, to_state_dict(variables_of(config), 41, network_of(config.model).flat))
    exchange.import_run(path, config, tmp_path / "run")
    export(tmp_path / "run", again)
    assert path.read_bytes() == again.read_bytes()


def test_a_run_exports_and_imports_bit_for_bit(made, exported, command, tmp_path):
    code, out, err = command("import", exported, "--config", made / "config.yaml", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "fresh" in out
    assert str(tmp_path / "run" / "figures" / "samples.png") in out
    code, out, _ = command("export", tmp_path / "run", "--to", "torch", tmp_path / "again.safetensors")
    assert code == 0
    assert (tmp_path / "again.safetensors").read_bytes() == exported.read_bytes()
    assert load_file(exported)["BN1.num_batches_tracked"] == 20  # two epochs of ten batches
    first, second = load(made), load(tmp_path / "run")
    for found, expected in zip(
        jax.tree.leaves(second.state.variables), jax.tree.leaves(first.state.variables), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(second.state.opt_state))


def test_an_import_is_a_normal_run(made, exported, command, tmp_path, data):
    folder = tmp_path / "run"
    code, _, err = command("import", exported, folder, *flags(**TINY))
    assert code == 0
    assert f"no --config says which data the weights were trained on: {folder} assumes data.source digits" in err
    figures = [json.loads(command("evaluate", each, "--json")[1]) for each in (made, folder)]
    assert figures[0] == figures[1]
    assert command("sample", folder, "-n", "4")[0] == 0
    code, out, err = command("train", "--out", folder, "--resume", "--train.epochs=1")
    assert code == 0, err
    assert "imported weights" in out
    assert "fresh" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_loss"] < json.loads((made / "summary.json").read_text())["test_loss"]
    assert command("export", folder, tmp_path / "more.safetensors")[0] == 0
    assert load_file(tmp_path / "more.safetensors")["deb1.num_batches_tracked"] == 30
    # From now on it is a run like any other.
    code, out, _ = command("train", "--out", folder, "--resume", "--train.epochs=2")
    assert code == 0
    assert "after epoch 1, step 10" in out


def test_export_the_best_and_not_over_a_file(made, command, tmp_path):
    path = tmp_path / "model.safetensors"
    assert command("export", made, path, "--checkpoint", "best")[0] == 0
    written = path.read_bytes()
    code, _, err = command("export", made, path)
    assert (code, path.read_bytes()) == (2, written)
    assert "--overwrite" in err
    assert command("export", made, path, "--overwrite")[0] == 0
    names = ["model.py", "model.safetensors", "model.safetensors.md"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model.pt"], ".safetensors"),
        (["m.safetensors", "--to", "keras"], "--to"),
        (["m.safetensors", "--checkpoint", "first"], "--checkpoint"),
        (["none/such/../../m"], ".safetensors"),
    ],
)
def test_export_refuses(made, command, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("export", made, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert named in err
    assert not list(tmp_path.iterdir())


def test_export_of_what_is_no_run(made, command, tmp_path):
    for folder in (tmp_path / "none", tmp_path, made / "config.yaml"):
        code, _, err = command("export", folder, tmp_path / "m.safetensors")
        assert code == 2
        assert str(folder) in err
    assert not list(tmp_path.iterdir())


def test_import_does_not_train_over_a_run(exported, made, command):
    before = snapshot(made)
    code, _, err = command("import", exported, made, *flags(**TINY))
    assert code == 2
    assert "--overwrite" in err
    assert snapshot(made) == before


def test_a_failed_save_leaves_nothing(exported, made, tmp_path, monkeypatch):
    def fail(*_, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vae_jax.runs.checkpoint.save", fail)
    with pytest.raises(OSError, match="No space"):
        exchange.import_run(exported, CONFIG, tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())
    # Nor does the run go that it was to replace.
    shutil.copytree(made, tmp_path / "run")
    before = snapshot(tmp_path)
    with pytest.raises(OSError, match="No space"):
        exchange.import_run(exported, CONFIG, tmp_path / "run", overwrite=True)
    assert snapshot(tmp_path) == before


def test_import_replaces_a_run(exported, made, command, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert command("import", exported, tmp_path / "run", *flags(**TINY), "--overwrite")[0] == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml",
        "checkpoints",
        "figures",
        "imported.json",
        "mine.txt",
        LOCK,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert load(tmp_path / "run").history == []


# --- Other weights ---------------------------------------------------------------------------------------------------


def changed(exported, **changes):
    arrays = load_file(exported)
    for name, array in changes.items():
        if array is None:
            del arrays[name.replace("__", ".")]
        else:
            arrays[name.replace("__", ".")] = array
    return arrays


def test_every_tensor_that_differs_is_named(exported, refused, tmp_path):
    arrays = changed(
        exported,
        conv1__weight=None,
        fc_mu__bias=None,
        fc1__bias=np.zeros(3, np.float32),
        fc1__weight=np.zeros((16, 16, 1), np.float32),
        BN1__weight=np.zeros(4, np.int64),
        upsample__weight=np.zeros(2, np.float32),
    )
    path = tmp_path / "other.safetensors"
    save_file(arrays, path)
    line = refused(path)
    assert "missing: conv1.weight, fc_mu.bias" in line
    assert "not expected: upsample.weight" in line
    assert "fc1.bias (expected 16, found 3)" in line
    assert "found 16x16x1" in line
    assert "BN1.weight (expected float32, found int64)" in line


def test_strange_and_many_names(exported, refused, tmp_path):
    arrays = changed(exported, **{"\x1b[31m" + "a" * 500: np.zeros(1), "b\nc": np.zeros(1)})
    arrays |= {f"extra{i:05}": np.zeros(1, np.float32) for i in range(1000)}
    save_file(arrays, tmp_path / "m.safetensors")
    line = refused(tmp_path / "m.safetensors")
    assert "\x1b" not in line
    assert "more" in line
    assert len(line) < 10_000


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("conv1.weight", np.nan, "1 of 64 not finite"),
        ("fc2.bias", -np.inf, "not finite"),
        ("BN2.running_var", -1.0, "below 0"),
        ("deb1.num_batches_tracked", -5, "below 0"),
        ("deb1.num_batches_tracked", 2**62, "too large"),
    ],
)
def test_numbers_that_cannot_be(exported, refused, tmp_path, name, value, said):
    arrays = load_file(exported)
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[:1] = value
    save_file(arrays, tmp_path / "m.safetensors")
    line = refused(tmp_path / "m.safetensors")
    assert name in line
    assert said in line


def test_another_networks_weights(exported, refused):
    assert "conv3.weight" in refused(exported, "--config", "article")


@pytest.fixture(scope="module")
def expected():
    return to_state_dict(variables_of(CONFIG))


# --- Weights as programs leave them ----------------------------------------------------------------------------------


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.vae.module.", "state_dict."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_before_names_is_left_out(exported, expected, tmp_path, prefix):
    path, reported = tmp_path / "m.safetensors", []
    save_file({f"{prefix}{name}": array for name, array in load_file(exported).items()}, path)
    found = weights_file.read(path, expected, "the model", reported.append).arrays
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in load_file(exported).items()
    }
    (line,) = reported
    assert f"{path}: names are taken without what a wrapper has added, " in line
    assert f" for {prefix}" in line


def test_what_wrappers_put_into_names_is_left_out(exported, expected, tmp_path):
    """As `torch.compile` of single layers does."""
    path, reported = tmp_path / "m.safetensors", []
    arrays = load_file(exported)
    save_file({name.replace("fc1.", "fc1._orig_mod."): array for name, array in arrays.items()}, path)
    found = weights_file.read(path, expected, "the model", reported.append).arrays
    np.testing.assert_array_equal(found["fc1.bias"], arrays["fc1.bias"])
    assert "fc1.weight for fc1._orig_mod.weight" in reported[0] or "fc1.bias for fc1._orig_mod.bias" in reported[0]
    # Where a tensor would have two places, and where the rest does not fit, they are named as they are stored.
    save_file({**arrays, "module.fc1.bias": arrays["fc1.bias"]}, path)
    with pytest.raises(UserError, match=r"not expected: module\.fc1\.bias"):
        weights_file.read(path, expected, "the model", reported.append)
    save_file({"module.conv9.bias": arrays["fc1.bias"]}, path)
    with pytest.raises(UserError, match=r"not expected: module\.conv9\.bias"):
        weights_file.read(path, expected, "the model", reported.append)
    assert len(reported) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_numbers_of_another_precision_are_converted(exported, expected, tmp_path, dtype):
    path, reported = tmp_path / "m.safetensors", []
    arrays = {
        name: array.astype(jnp.dtype(dtype)) if array.dtype == np.float32 else array.astype(np.int32)
        for name, array in load_file(exported).items()
    }
    save_file(arrays, path)
    found = weights_file.read(path, expected, "the model", reported.append).arrays
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, arrays[name].astype(expected[name].dtype))
    assert reported == [f"{path}: numbers are converted, {dtype} to float32, int32 to int64"]


def test_numbers_too_large_for_their_type_are_refused(exported, refused, tmp_path):
    arrays = load_file(exported)
    save_file({**arrays, "fc1.bias": arrays["fc1.bias"].astype(np.float64) + 1e300}, tmp_path / "m.safetensors")
    assert "fc1.bias (16 of 16 not finite)" in refused(tmp_path / "m.safetensors")


# --- Files that are none ---------------------------------------------------------------------------------------------


def header(content, size=None, data=b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(shape, offsets, dtype="F32", data=16) -> bytes:
    """A file with one tensor as described."""
    return header({"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, data=b"0" * data)


SIZE, WHOLE = "expected a safetensors file, at most", "expected a whole safetensors file; "
HOSTILE = {
    "empty": (b"", SIZE),
    "short": (b"\x01\x02", SIZE),
    "a header longer than the file": (header({}, size=1 << 20), SIZE),
    "a header of 2^64 bytes": (header({}, size=(1 << 64) - 1), SIZE),
    "a long header": (header(b"{" + b" " * (1 << 24) + b"}"), SIZE),
    "no JSON": (header(b"{{{{"), WHOLE),
    "deep JSON": (header(b"[" * 100_000), WHOLE),
    "a list": (header([1, 2]), WHOLE),
    "a huge shape": (one([1 << 62, 4], [0, 16]), WHOLE),
    "a shape that overflows": (one([1 << 63, 2], [0, 16]), WHOLE),
    "offsets beyond the end": (one([4], [0, 16], data=4), WHOLE),
    "offsets backwards": (one([4], [16, 0]), WHOLE),
    "a negative shape": (one([-4], [0, 16]), WHOLE),
    "an unknown type": (one([4], [0, 16], dtype="F128"), WHOLE),
    "more data than said": (one([4], [0, 16], data=20), WHOLE),
    "text": (b"conv1.weight: 1 2 3\n" * 100, SIZE),
    "other tensors": (
        one([4], [0, 16]),
        "expected the 31 tensors of model.network convolutional as configured; missing: ",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(refused, tmp_path, name):
    path = tmp_path / "model.safetensors"
    content, reason = HOSTILE[name]
    path.write_bytes(content)
    assert f"{path}: {reason}" in refused(path)


@pytest.mark.parametrize("path", ["none.safetensors", "folder", "folder.safetensors", "fifo.safetensors", "m.h5", "m"])
def test_no_file_of_weights(refused, tmp_path, path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "fifo.safetensors")
    for name in ("m.h5", "m"):
        (tmp_path / name).write_bytes(b"abc")
    assert path in refused(tmp_path / path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files(exported, expected, data):
    """Cut short or with bytes changed: refused in one line, or read as the same names, shapes and types, all finite."""
    whole = exported.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["cut", "header", "anywhere", "inserted"]))
    if kind == "cut":
        damaged = damaged[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "inserted":
        place = data.draw(st.integers(0, len(whole)))
        damaged[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        last = 8 + length if kind == "header" else len(whole)
        for _ in range(data.draw(st.integers(1, 8))):
            damaged[data.draw(st.integers(0, last - 1))] = data.draw(st.integers(0, 255))
    path = exported.with_name("damaged.safetensors")
    path.write_bytes(damaged)
    try:
        found = weights_file.read(path, expected, "the model").arrays
    except UserError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert said.startswith(str(path))
        assert len(said) < 20_000
        return
    assert kind != "cut"
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape and np.isfinite(found[name]).all() for name in found)


# --- Pickles ---------------------------------------------------------------------------------------------------------


def test_a_pickle_without_torch(exported, refused, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"")
    monkeypatch.setattr(weights_file, "version", lambda name: "2.9.1+cpu")
    line = refused(tmp_path / "model.pt")
    assert "2.10" in line
    assert "2.9.1" in line
    assert "weights_only=True" in line


def test_import_and_export_need_no_torch(exported, made, tmp_path):
    """In a process where torch cannot be imported."""
    import subprocess
    import sys

    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from vae_jax.cli import main\n"
        f"sys.exit(main(['import', {str(exported)!r}, {str(tmp_path / 'run')!r}, '--config', "
        f"{str(made / 'config.yaml')!r}]) or main(['export', {str(tmp_path / 'run')!r}, "
        f"{str(tmp_path / 'm.safetensors')!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "m.safetensors").read_bytes() == exported.read_bytes()


class Hostile:
    """In a pickle: code that leaves a file behind when it is executed."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class Large:
    """In a pickle: eight gigabytes, by a function that weights may call."""

    def __reduce__(self):
        return bytearray, (1 << 33,)


class TestPickles:
    """Of PyTorch, which must be there."""

    torch = None

    @pytest.fixture(autouse=True)
    def needs_torch(self):
        type(self).torch = pytest.importorskip("torch", reason="needs the extra torch")

    def test_a_state_dict(self, exported, command, tmp_path):
        state = {name: self.torch.tensor(array) for name, array in load_file(exported).items()}
        self.torch.save(state, tmp_path / "model.pth")
        assert command("import", tmp_path / "model.pth", tmp_path / "run", *flags(**TINY))[0] == 0
        assert command("export", tmp_path / "run", tmp_path / "m.safetensors")[0] == 0
        assert (tmp_path / "m.safetensors").read_bytes() == exported.read_bytes()

    @pytest.fixture
    def complete(self, exported):
        """A state_dict that would be imported."""
        return {name: self.torch.tensor(array) for name, array in load_file(exported).items()}

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("code", "found more than weights (posix.system); save model.state_dict()"),
            ("large", "MemoryError"),
            ("checkpoint", "expected the 31 tensors of model.network convolutional as configured; missing: "),
            ("two", "found weights in student, teacher; save model.state_dict() alone"),
            ("optimiser", "found optimizer (dict), epoch (int); save model.state_dict() alone"),
            ("number", "found lr (float)"),
            ("list", "found a list; save model.state_dict()"),
            ("model", "found more than weights (torch.nn.modules.linear.Linear)"),
            ("expanded", "'fc1.bias', whose shape asks for more numbers than it has"),
            ("meta", "'fc1.bias', which is sparse, quantised or without data"),
            ("sparse", "'fc1.bias', which is sparse, quantised or without data"),
            ("nan", "fc1.bias (16 of 16 not finite)"),
        ],
    )
    def test_what_is_no_state_dict(self, complete, refused, tmp_path, name, reason):
        torch, path, mark = self.torch, tmp_path / "model.pt", tmp_path.with_name(f"{tmp_path.name}_executed")
        bias = complete["fc1.bias"]
        contents = {
            "code": {**complete, "more": Hostile(mark)},
            "large": {**complete, "more": Large()},
            "checkpoint": {"state_dict": torch.nn.Linear(2, 2).state_dict(), "epoch": 3},
            "two": {"student": complete, "teacher": complete},
            "optimiser": {"optimizer": torch.optim.Adam([bias]).state_dict(), "epoch": 3},
            "number": {**complete, "lr": 0.1},
            "list": list(complete.values()),
            "model": torch.nn.Linear(2, 2),
            "expanded": {**complete, "fc1.bias": torch.zeros(1).expand(16)},
            "meta": {**complete, "fc1.bias": torch.zeros(16, device="meta")},
            "sparse": {**complete, "fc1.bias": bias.to_sparse()},
            "nan": {**complete, "fc1.bias": bias * torch.nan},
        }
        torch.save(contents[name], path)
        assert reason in refused(path)
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("code", "PyTorch before 1.6"),
            ("legacy", "PyTorch before 1.6"),
            ("cut", "zip"),
            ("compressed", "found compressed data"),
            ("names", "bytes of names"),
            ("another zip", "expected a state_dict"),
        ],
    )
    def test_what_is_no_file_of_pytorchs(self, complete, refused, tmp_path, name, reason):
        path, mark = tmp_path / "model.pt", tmp_path.with_name(f"{tmp_path.name}_executed")
        self.torch.save(complete, path, _use_new_zipfile_serialization=name != "legacy")
        if name == "code":
            path.write_bytes(pickle.dumps(Hostile(mark)))
        elif name == "cut":
            path.write_bytes(path.read_bytes()[:-200])
        elif name in ("compressed", "names", "another zip"):
            with zipfile.ZipFile(path) as archive:
                entries = {entry: archive.read(entry) for entry in archive.namelist()}
            if name == "names":
                entries["model/data.pkl"] += b"\0" * (1 << 24)
            elif name == "another zip":
                entries = {"readme.txt": b"hello"}
            kind = zipfile.ZIP_DEFLATED if name == "compressed" else zipfile.ZIP_STORED
            with zipfile.ZipFile(path, "w", kind) as archive:
                for entry, content in entries.items():
                    archive.writestr(entry, content)
        assert reason in refused(path)
        assert not mark.exists()

    def test_a_checkpoint_of_a_training(self, exported, complete, command, tmp_path):
        """Compiled, in half precision, beside an optimiser's state and a number."""
        torch, path = self.torch, tmp_path / "model.pt"
        state = {f"_orig_mod.{name}": t.bfloat16() if t.is_floating_point() else t for name, t in complete.items()}
        optimizer = torch.optim.Adam([complete["fc1.bias"]]).state_dict()
        torch.save({"epoch": 3, "run": {"model_state_dict": state, "ema": state}, "optimizer": optimizer}, path)
        code, _, err = command("import", path, tmp_path / "run", *flags(**TINY))
        assert code == 0, err
        lines = err.splitlines()
        assert lines[0] == f"{path}: the weights are those in 'run.model_state_dict' of a larger checkpoint"
        assert "_orig_mod" in lines[1]
        assert lines[2] == f"{path}: numbers are converted, bfloat16 to float32"
        assert lines[3].startswith("no --config says which data the weights were trained on")
        assert command("export", tmp_path / "run", tmp_path / "m.safetensors")[0] == 0
        np.testing.assert_allclose(
            load_file(tmp_path / "m.safetensors")["fc1.weight"], load_file(exported)["fc1.weight"], rtol=1e-2
        )

    def test_nothing_beside_the_file_is_imported(self, complete, command, tmp_path, monkeypatch):
        """A downloaded archive may hold a zipfile.py as well."""
        monkeypatch.chdir(tmp_path)
        for name in ("zipfile", "torch", "safetensors"):
            (tmp_path / f"{name}.py").write_text("open('executed', 'w')\n")
        self.torch.save(complete, "model.pt")
        assert command("import", "model.pt", "run", *flags(**TINY))[0] == 0
        assert not (tmp_path / "executed").exists()

    def test_a_name_that_lies(self, exported, refused, tmp_path):
        self.torch.save({}, tmp_path / "model.safetensors")
        assert "pickle" in refused(tmp_path / "model.safetensors")
        (tmp_path / "model.pt").write_bytes(exported.read_bytes())
        assert "torch.save" in refused(tmp_path / "model.pt")


# --- The article's class in PyTorch ----------------------------------------------------------------------------------


class TestArticle:
    """A class with the article's names and shapes, written as a PyTorch user writes it."""

    @pytest.fixture(autouse=True)
    def needs_torch(self):
        pytest.importorskip("torch", reason="needs the extra torch")

    def test_it_loads_an_export_strictly(self, tmp_path):
        import torch
        from article_torch import ArticleVAE
        from safetensors.torch import load_file

        config = load_config("article")
        network, _ = build(config, (32, 32, 1))
        initial = network.init(jax.random.key(0))
        # As after some training: moved statistics, and a last layer that makes light and dark.
        initial.params["decoder"]["dec4"]["kernel"] *= 10
        variables = initial._replace(state=variables_of(config).state)
        path = tmp_path / "model.safetensors"
        weights_file.write(path, to_state_dict(variables, 938))
        model = ArticleVAE()
        state = load_file(path)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(state, strict=True)
        assert sum(parameter.numel() for parameter in model.parameters()) == 165_409
        images = np.random.RandomState(0).randint(0, 256, (32, 32, 32, 1), np.uint8)
        _, objective = build(config, (32, 32, 1))
        state = start_from(config, objective, variables, 1)
        trained = Trained(config, (32, 32, 1), state, [])
        found = np.asarray(use(trained).reconstruct(images))
        with torch.no_grad():
            model.eval()
            mu, _ = model.encode(torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255)
            expected = model.decode(mu).numpy().transpose(0, 2, 3, 1)
        assert expected.std() > 0.01
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)

    def test_weights_trained_there_evaluate_the_same_here(self, mnist_dir, command, tmp_path):
        import torch
        from article_torch import ArticleVAE, terms

        config = load_config("article", **{"data.manual_dir": str(mnist_dir)})
        data = load_data(config.data)
        torch.manual_seed(0)
        model = ArticleVAE()
        adam = torch.optim.Adam(model.parameters(), 1e-3)
        images = torch.tensor(data.train.images[:6_400].transpose(0, 3, 1, 2)).float() / 255
        for batch in images.split(64):
            adam.zero_grad()
            bce, kl = terms(*model(batch), batch)
            (bce + kl).sum().backward()
            adam.step()
        torch.save(model.state_dict(), tmp_path / "model.pt")
        model.eval()
        with torch.no_grad():
            test = torch.tensor(data.test.images.transpose(0, 3, 1, 2)).float() / 255
            parts = []
            for batch in test.split(500):
                mu, log_var = model.encode(batch)
                parts.append(torch.stack(terms(model.decode(mu), mu, log_var, batch)))
            bce, kl = torch.cat(parts, 1).double().mean(1).tolist()
        assert bce < 300  # it has learnt
        arguments = ("--config", "article", "--data.manual_dir", mnist_dir)
        assert command("import", tmp_path / "model.pt", *arguments, tmp_path / "run")[0] == 0
        found = json.loads(command("evaluate", tmp_path / "run", "--latent", "mean", "--json")[1])
        assert found["images"] == 10_000
        assert found["reconstruction"] == pytest.approx(bce, abs=1e-3)
        assert found["kl"] == pytest.approx(kl, abs=1e-3)
        with torch.no_grad():
            expected = model.decode(model.encode(test[:1000])[0]).numpy().transpose(0, 2, 3, 1)
        reconstructed = use(load(tmp_path / "run")).reconstruct(data.test.images[:1000])
        np.testing.assert_allclose(reconstructed, expected, atol=1e-5, rtol=0)


def test_a_refusals_names_are_printed_whatever_the_stream_encodes(monkeypatch):
    def refuse(*_):
        raise ValueError("found é…\udcff, which is sparse")

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(torch_pickle, "convert", refuse)
    monkeypatch.setattr("sys.argv", ["torch_pickle", "in", "out"])
    monkeypatch.setattr("sys.stdout", stream)
    assert torch_pickle.main() == 2
    stream.flush()
    assert stream.buffer.getvalue() == b"found \\xe9\\u2026\\udcff, which is sparse\n"
