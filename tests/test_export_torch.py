"""Models for PyTorch: the written file computes what the model does, in a process without this package."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_fixtures import CONVOLUTIONS, MODELS, SMALL, expected_of, moved_of, trained_of
from run_fixtures import TINY, compiled_once, flags, snapshot
from safetensors.numpy import load_file

from vae_jax import load_config
from vae_jax.cli import main
from vae_jax.errors import UserError
from vae_jax.interop import torch_source
from vae_jax.interop.export import FORMATS, Request, export
from vae_jax.interop.torch_source import MARK, python_path
from vae_jax.likelihoods import LIKELIHOODS
from vae_jax.networks import NETWORKS
from vae_jax.runs.reading import load, use

torch = pytest.importorskip("torch", reason="needs the extra torch")

OWN = Path(__file__).parent / "own"
MLP = {**SMALL, "model.network": "mlp"}
RESIDUAL = {**CONVOLUTIONS, "model.network": "residual"}
EXAMPLES = {"model.network": "mlp", "model.latent": 3, "data.source": "array", "data.path": "none.npz"}
KINDS = {"vector": (3,), "sequence": (4, 2), "categories": (4, 3)}
# Model -> its configuration, each with something of its own in what PyTorch computes.
CASES = {
    **{name: given for name, given in MODELS.items() if name not in ("flow", "codebook", "fsq")},
    "plain convolutional": {
        **CONVOLUTIONS,
        "model.batch_norm": False,
        "model.hidden_activation": True,
        "model.head_activation": False,
        "model.activation": "elu",
    },
    "conditional mlp": {**MLP, "model.classes": 4, "model.layers": [9, 7], "data.channels": 3},
    "no layers": {**MLP, "model.layers": [], "model.activation": "tanh"},
    "conditional residual": {
        **RESIDUAL,
        "model.classes": 3,
        "data.image_size": 13,
        "model.blocks": 2,
        "model.activation": "silu",
    },
    "plain residual": {
        **RESIDUAL,
        "model.batch_norm": False,
        "model.blocks": 0,
        "model.activation": "relu",
        "data.channels": 3,
        "likelihood.name": "gaussian",
        "likelihood.variance": "pixel",
    },
    "discretized": {**MLP, "likelihood.name": "discretized_logistic", "data.channels": 3, "model.activation": "relu"},
    "full": {**MLP, "posterior.name": "full_gaussian", "prior.name": "mixture", "prior.components": 3},
    "shared": {**MLP, "likelihood.name": "gaussian", "likelihood.variance": "shared", "model.activation": "gelu"},
    "vector": {**EXAMPLES, "data.kind": "vector", "model.classes": 2, "likelihood.name": "gaussian"},
    "sequence": {
        **EXAMPLES,
        "data.kind": "sequence",
        "model.classes": 2,
        "likelihood.name": "gaussian",
        "likelihood.variance": "pixel",
    },
    "categories": {**EXAMPLES, "data.kind": "categories", "likelihood.name": "categorical"},
    "autoencoder of categories": {**EXAMPLES, "data.kind": "categories", "objective.name": "autoencoder"},
}
COUNT = 100  # z
BATCHES = (1, 7)

# What a user's process does: `sys.argv` has the folder; the results lie beside the inputs.
ALONE = """
import pathlib, sys
import numpy as np, torch
for name in ("vae_jax", "jax", "flax"):
    sys.modules[name] = None  # they cannot be imported
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    sys.path.insert(0, str(folder))
    from model import load
    model = load(folder / "model.safetensors")
    assert not model.training
    given = np.load(folder / "inputs.npz")
    images, z = (torch.from_numpy(given[name]) for name in ("images", "z"))
    labels = torch.from_numpy(given["labels"]) if "labels" in given else None
    results = {}
    with torch.no_grad():
        for size in (1, 7):
            pieces = [slice(i, i + size) for i in range(0, len(z), size)]
            more = [() if labels is None else (labels[piece],) for piece in pieces]
            heads = [model.encode(images[piece], *m) for piece, m in zip(pieces, more)]
            results |= {f"{name}_{size}": torch.cat([each[name] for each in heads]) for name in heads[0]}
            pictures = [model.decode(z[piece], *m) for piece, m in zip(pieces, more)]
            results[f"pictures_{size}"] = torch.cat(pictures)
    np.savez(folder / "results.npz", **results)
    sys.path.remove(str(folder))
    del sys.modules["model"]
"""


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


def case(name):
    config = load_config(**CASES[name])
    return moved_of(config, KINDS.get(config.data.kind))


def write(trained, folder):
    """The export of a model that is in no run."""
    return FORMATS["torch"].write(Request(folder, folder / "model.safetensors", trained, lambda functions, use: use))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folders by model, with its file, inputs, and what PyTorch alone has computed from them."""
    place = tmp_path_factory.mktemp("alone")
    for name in CASES:
        trained, random, folder = case(name), np.random.default_rng(0), place / name
        folder.mkdir()
        write(trained, folder)
        inputs = {
            "images": np.moveaxis(random.random((COUNT, *trained.image_shape), np.float32), -1, 1),
            "z": random.normal(size=(COUNT, trained.config.model.latent)).astype(np.float32),
        }
        if classes := trained.config.model.classes:
            inputs["labels"] = random.integers(0, classes, COUNT).astype(np.int32)
        np.savez(folder / "inputs.npz", **inputs)
    subprocess.run([sys.executable, "-c", ALONE, str(place)], check=True, cwd=place, timeout=250)
    return {name: place / name for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_process_with_nothing_but_pytorch_encodes_and_decodes(alone, name):
    trained, given = case(name), np.load(alone[name] / "inputs.npz")
    inputs = {"images": np.moveaxis(given["images"], 1, -1), "z": given["z"]}
    expected = expected_of(trained, inputs, given.get("labels"))
    results = np.load(alone[name] / "results.npz")
    assert {name.rpartition("_")[0] for name in results} == {*expected["encode"], "pictures"}
    pictures = np.moveaxis(np.asarray(expected["decode"]["pictures"]), -1, 1)
    assert pictures.std(0).max() > 1e-3  # they depend on z
    for size in BATCHES:
        for head, array in expected["encode"].items():
            np.testing.assert_allclose(results[f"{head}_{size}"], array, rtol=1e-5, atol=1e-5, err_msg=head)
        np.testing.assert_allclose(results[f"pictures_{size}"], pictures, rtol=0, atol=1e-5)


def module_of(folder):
    """The written file, imported."""
    spec = importlib.util.spec_from_file_location("written", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_are_whole_paths_where_those_of_the_layers_occur_twice(alone):
    names = {name: set(load_file(alone[name] / "model.safetensors")) for name in CASES}
    assert {"conv1.weight", "BN1.num_batches_tracked", "fc_mu.bias", "deb1.running_var"} <= names["convolutional"]
    assert {"encoder.hidden.gate1.weight", "decoder.hidden.fc1.bias", "decoder.fc_out.weight"} <= names["mlp"]
    assert {"encoder.block1_1.act2.BN.running_mean", "decoder.dec2.weight"} <= names["residual"]
    layers = ("encoder.conv1", "encoder.conv2", "encoder.fc_mu", "encoder.fc_log_var", "decoder.fc", "decoder.dec1")
    arrays = {f"{layer}.{array}" for layer in (*layers, "decoder.dec2") for array in ("weight", "bias")}
    assert names["plain residual"] == arrays


def test_every_network_and_likelihood_of_the_package_is_there():
    assert set(torch_source.NETWORKS) == set(NETWORKS)
    assert set(torch_source.MEANS) == set(LIKELIHOODS)


def test_wrong_inputs_are_refused_there_too(alone):
    conditional, plain = (
        module_of(alone[name]).load(alone[name] / "model.safetensors") for name in ("conditional", "mlp")
    )
    images, z = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^labels: expected one of 5 for each of z; found none$"):
        conditional.decode(z)
    with pytest.raises(ValueError, match=r"^labels: expected none; found some$"):
        plain.encode(images, torch.zeros(2))
    with pytest.raises(ValueError, match=r"^images: expected shape \(batch, 1, 8, 8\); found \(2, 8, 8, 1\)$"):
        plain.encode(images.movedim(1, -1))
    with pytest.raises(ValueError, match=r"^z: expected shape \(batch, 3\); found \(3,\)$"):
        plain.decode(z[0])
    assert conditional.decode(z, torch.tensor([0, 4])).shape == (2, 1, 8, 8)


def test_it_trains_there(alone):
    """Dropout and BatchNorm are in it: a step of training moves all parameters and counts the batch."""
    folder = alone["convolutional"]
    model = module_of(folder).load(folder / "model.safetensors").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(16, 1, 8, 8)
    heads = model.encode(images)
    loss = (model.decode(heads["mu"]) - images).square().sum() + heads["log_var"].square().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not torch.equal(model.encode(images)["mu"], model.encode(images)["mu"])  # dropout
    assert int(after["BN1.num_batches_tracked"]) == int(before["BN1.num_batches_tracked"]) + 1
    dead = {"conv1.bias", "conv2.bias", "dec1.bias"}  # BatchNorm subtracts them again
    assert {name for name in before if torch.equal(before[name], after[name])} <= dead


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    given = {**TINY, "train.epochs": 1, "model.network": "mlp", "model.layers": [8], "prior.name": "mixture"}
    del given["model.hidden"], given["model.channels"]
    assert main(["train", "--config", "digits", *flags(**given), "--out", str(folder)]) == 0
    return folder


def test_the_card_shows_the_use_which_works(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("export", run, "my-model.safetensors", "--licence", "mit")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-3:] == ["my-model.safetensors.md", "my_model.py", "my-model.safetensors"]
    assert "  in PyTorch: from my_model import load; model = load('my-model.safetensors')" in lines
    assert "  left out, since encoder and decoder do without: the parameters of prior.name mixture" in lines
    used = (tmp_path / "my-model.safetensors.md").read_text().split("```python\n")[1].split("```")[0]
    z = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.save("z.npy", z)
    text = "import numpy, torch\nz, images = torch.from_numpy(numpy.load('z.npy')), torch.zeros(2, 1, 8, 8)\n"
    text += f"{used}\nassert heads['log_var'].shape == (2, 2)\nnumpy.save('pictures.npy', pictures.detach())\n"
    subprocess.run([sys.executable, "-c", text], check=True, timeout=100)
    expected = np.moveaxis(np.asarray(use(load(run)).decode(z)), -1, 1)
    np.testing.assert_allclose(np.load("pictures.npy"), expected, rtol=0, atol=1e-5)


def test_no_file_is_written_over_unless_asked_and_none_of_ones_own(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("mine")
    message = "model.py: expected no file, or one that an export of model.safetensors has written; found another"
    for more in ([], ["--overwrite"]):
        before = snapshot(tmp_path)
        code, _, err = command("export", run, "model.safetensors", *more)
        assert (code, err) == (2, f"vae-jax: error: {message}\n")
        assert snapshot(tmp_path) == before
    (tmp_path / "model.py").unlink()
    assert command("export", run, "model.safetensors")[0] == 0
    text = (tmp_path / "model.py").read_text()
    assert text.startswith(MARK)
    (tmp_path / "model.py").write_text(f"{text}\n# changed")
    assert command("export", run, "model.safetensors", "--overwrite")[0] == 0
    assert (tmp_path / "model.py").read_text() == text
    assert command("export", run, "model.safetensors")[0] == 2


def test_a_python_file_goes_with_one_file_of_weights(run, command, tmp_path, monkeypatch):
    """Names that differ in signs that Python does not take would share one, which has one model's likelihood."""
    monkeypatch.chdir(tmp_path)
    assert command("export", run, "a-b.safetensors")[0] == 0
    before = snapshot(tmp_path)
    code, _, err = command("export", run, "a_b.safetensors", "--overwrite")
    message = "a_b.py: expected no file, or one that an export of a_b.safetensors has written; found another"
    assert (code, err) == (2, f"vae-jax: error: {message}\n")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["__init__", "sitecustomize", "matplotlib"])
def test_a_python_file_hides_no_module(run, command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert f"expected a name other than a module's, which {name}.py" in command("export", run, f"{name}.safetensors")[2]
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_file_without_the_others(run, tmp_path, monkeypatch):
    export(run, tmp_path / "model.safetensors")
    before = snapshot(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vae_jax.files.replace.claim", full)
    with pytest.raises(OSError, match="No space"):
        export(run, tmp_path / "model.safetensors", licence="mit")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "python"),
    [("a-b.c", "a_b_c"), ("class", "model_class"), ("8x8", "model_8x8"), ("é", "_"), ("model", "model")],
)
def test_python_can_import_the_file_by_its_name(tmp_path, name, python):
    assert python_path(tmp_path / f"{name}.safetensors") == tmp_path / f"{python}.py"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "flow",
            {},
            "posterior.name: expected one whose z are vectors with the head mu as their centre, as Gaussians have; ",
        ),
        ("mlp", {"posterior.name": "planar"}, "posterior.name: expected one whose z are vectors with the head mu"),
        ("codebook", {}, "posterior.name: expected one whose z are vectors"),
        ("fsq", {}, "posterior.name: expected one whose z are vectors"),
        (
            "mlp",
            {"posterior.name": "bernoulli", "prior.name": "uniform", "objective.name": "vimco"},
            "posterior.name: expected one whose z are vectors",
        ),
        (
            "convolutional",
            {"model.network": "OWN/groupnorm.py:GroupNormNet"},
            "model.network: expected one of convolutional, mlp, residual, which have names and layers in PyTorch; ",
        ),
        (
            "mlp",
            {"likelihood.name": "OWN/mine.py:mine"},
            "likelihood.name: expected one of bernoulli, continuous_bernoulli, gaussian, discretized_logistic, ",
        ),
    ],
)
def test_what_is_not_translated_is_refused(tmp_path, name, changes, message):
    own, folder = tmp_path / "own", tmp_path / "out"
    own.mkdir()
    folder.mkdir()
    (own / "mine.py").write_text("from vae_jax.likelihoods.bernoulli import bernoulli as mine\n")
    (own / "groupnorm.py").write_text((OWN / "groupnorm.py").read_text())
    given = {option: value.replace("OWN", str(own)) for option, value in changes.items()}
    base = {} if name == "convolutional" else MODELS[name]
    trained = trained_of(name, **given) if base else moved_of(load_config(**SMALL, **given))
    with pytest.raises(UserError) as refused:
        write(trained, folder)
    assert str(refused.value).startswith(message)
    assert str(refused.value).endswith("; to=onnx and to=stablehlo take more models")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["torch", "numpy", "json", "safetensors"])
def test_a_file_that_would_hide_a_module_is_refused(run, command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = f"{name}.safetensors: expected a name other than a module's, which {name}.py beside it would hide"
    assert command("export", run, f"{name}.safetensors")[::2] == (2, f"vae-jax: error: {message}\n")
    assert not list(tmp_path.iterdir())


def test_what_differs_there_is_said(tmp_path):
    trained = trained_of("convolutional", **{"model.precision": "bfloat16", "model.unbiased_running_variance": False})
    about = write(trained, tmp_path).about
    assert about[-2:] == [
        "PyTorch's BatchNorm, if trained on, keeps the unbiased variance, where the run keeps the biased",
        "computed in float32, where the run has bfloat16",
    ]
