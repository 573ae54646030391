"""Models for other tools: StableHLO and ONNX compute what the model does, and a card goes with them."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_fixtures import MODELS, expected_of, inputs_of, trained_of
from jax import lax
from run_fixtures import TINY, compiled_once, flags, snapshot

from vae_jax.cli import main
from vae_jax.errors import UserError
from vae_jax.files import replace as files_replace
from vae_jax.interop.card import NO_LICENCE, card_of
from vae_jax.interop.export import export
from vae_jax.interop.functions import functions_of
from vae_jax.interop.onnx_file import files_of, translated
from vae_jax.interop.onnx_graph import to_onnx
from vae_jax.interop.stablehlo import archive_of
from vae_jax.model.build import build
from vae_jax.runs.reading import load, use

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx: onnx and onnxruntime")

OWN = Path(__file__).parent / "own"
LADDER = f"{OWN}/ladder.py:ladder"
NO_ONNX_ENCODER = {"flow", "codebook"}  # of loops and searches


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    with compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


def arguments_of(function, inputs, labels):
    return [labels if name == "labels" else inputs[name] for name in function.inputs]


@pytest.mark.parametrize("name", MODELS)
def test_stablehlo_computes_what_the_model_does(name, tmp_path):
    trained = trained_of(name)
    functions = functions_of(trained)
    (tmp_path / "model.zip").write_bytes(archive_of(functions, "a card"))
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        programs = {
            function.name: jax.export.deserialize(archive.read(f"{function.name}.jax")) for function in functions
        }
        assert json.loads(archive.read("functions.json"))["decode"]["outputs"] == ["pictures"]
        assert archive.read("README.md") == b"a card"
    for batch in (1, 7):
        inputs, labels = inputs_of(trained, batch)
        for function, wanted in expected_of(trained, inputs, labels).items():
            assert programs[function].platforms == ("cpu", "cuda", "tpu")
            of = next(each for each in functions if each.name == function)
            results = programs[function].call(*arguments_of(of, inputs, labels))
            assert sorted(results) == sorted(wanted)
            for output, array in wanted.items():
                np.testing.assert_allclose(results[output], array, rtol=1e-5, atol=1e-5, err_msg=f"{function} {output}")


@pytest.mark.parametrize("name", MODELS)
def test_onnx_computes_what_the_model_does(name, tmp_path):
    trained = trained_of(name)
    functions = functions_of(trained)
    written = translated(functions)
    for path, content in files_of(written.models, tmp_path / "model.onnx", "a card").items():
        path.write_bytes(content)
    assert set(written.left_out) == ({"encode"} if name in NO_ONNX_ENCODER else set())
    for batch in (1, 7):
        inputs, labels = inputs_of(trained, batch)
        expected = expected_of(trained, inputs, labels)
        assert set(written.gaps) | set(written.left_out) == set(expected)
        for function in functions:
            if function.name in written.left_out:
                continue
            file = "model.onnx" if function.name == "decode" else f"model.{function.name}.onnx"
            session = onnxruntime.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
            assert [given.name for given in session.get_inputs()] == list(function.inputs)
            assert session.get_inputs()[0].shape[0] == "batch"
            results = session.run(None, dict(zip(function.inputs, arguments_of(function, inputs, labels), strict=True)))
            for output, array in zip(session.get_outputs(), results, strict=True):
                wanted = expected[function.name][output.name]
                np.testing.assert_allclose(
                    array, wanted, rtol=1e-5, atol=1e-5, err_msg=f"{function.name} {output.name}"
                )


def test_convolutions_stay_convolutions(tmp_path):
    """One node a layer of the network, in NCHW, without transpositions between them."""
    (decode,) = (function for function in functions_of(trained_of("convolutional")) if function.name == "decode")
    names = [node.op_type for node in to_onnx(decode.call, decode.inputs, decode.outputs).graph.node]
    assert names.count("ConvTranspose") == 2
    assert "Gather" not in names
    assert "Transpose" not in names[: len(names) - 1 - names[::-1].index("ConvTranspose")]


# --- Operations -------------------------------------------------------------------------------------------------------

TABLE = np.random.RandomState(1).rand(6, 4).astype(np.float32)
KERNEL = np.random.RandomState(2).rand(3, 2, 2, 3).astype(np.float32)
NUMBERS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

NONE = (0, 0), (0, 0)


def convolved(x, **options):
    return lax.conv_general_dilated(x, KERNEL, dimension_numbers=NUMBERS, precision=lax.Precision.HIGHEST, **options)


# Functions of x, (batch, 4, 6, 2).
OPERATIONS = {
    "merge": lambda x: jnp.tanh(x.reshape(x.shape[0], 24, 2)),
    "merge turned": lambda x: jnp.tanh(x.transpose(0, 3, 2, 1).reshape(x.shape[0], 12, 4)),
    "merge with the batch": lambda x: jnp.exp(x.reshape(-1, 6, 2)),
    "split": lambda x: jnp.sin(x.reshape(x.shape[0], 2, 2, 6, 2)).transpose(0, 4, 1, 2, 3),
    "split and merge": lambda x: x.reshape(x.shape[0], 2, 2, 12).swapaxes(1, 3) * 2,
    "new axes": lambda x: jnp.sin(x)[:, None, ..., None] * jnp.ones((1, 1, 4, 6, 2, 3)),
    "sum": lambda x: x.transpose(3, 0, 1, 2).sum((1, 3)),
    "sum of repeats": lambda x: jnp.broadcast_to(x[:, :1], (x.shape[0], 5, 6, 2)).sum(1),
    "repeats": lambda x: jnp.broadcast_to(x[:, :, :1], x.shape).reshape(x.shape[0], 4, 12),
    "repeats over the batch": lambda x: jnp.concatenate(
        [x[..., 0, :], jnp.broadcast_to(TABLE[:4, :2], (x.shape[0], 4, 2))], 1
    ),
    "extremes": lambda x: jnp.stack([x.max(1), x.min(1)], -1),
    "products of entries": lambda x: x.prod(2),
    "softmax": lambda x: jax.nn.softmax(x, 1),
    "logsumexp": lambda x: jax.nn.logsumexp(x, 2),
    "places of extremes": lambda x: jnp.argmax(x, 2) * 10 + jnp.argmin(x, 2),
    "product": lambda x: jnp.einsum("bhwc,wd->bhcd", x, TABLE, precision="highest"),
    "product from the left": lambda x: jnp.tensordot(TABLE, x, ([1], [1]), precision="highest"),
    "product over two axes": lambda x: jnp.einsum("bhwc,wh->bc", x, TABLE, precision="highest"),
    "product of two": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, jnp.cos(x), precision="highest"),
    "outer product": lambda x: jnp.einsum("bhwc,bvuc->bhwvu", x, x[:, :2], precision="highest"),
    "slices": lambda x: lax.slice_in_dim(x, 1, 4, axis=1)[:, :, 2] - lax.slice_in_dim(x, 0, 6, 2, axis=2)[:, 1:, 1],
    "pieces": lambda x: jnp.subtract(*jnp.split(x, 2, 2)),
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=7.0),
    "choice": lambda x: jnp.where(x > 0, jnp.log1p(jnp.abs(x)), jnp.expm1(x)),
    "one-hot": lambda x: jax.nn.one_hot(jnp.argmax(x, 1), 4).sum(-2),
    "rows of a table": lambda x: jnp.asarray(TABLE)[jnp.argmax(x, 2)],
    "numbers of the batch": lambda x: x[:, 0, 0, 0] * 0 + jnp.arange(x.shape[0]),
    "bounds": lambda x: jnp.clip(x, -0.5, 0.25),
    "signs": lambda x: jnp.sign(x) + jnp.floor(x) + jnp.ceil(x) + jnp.round(3 * x),
    "powers": lambda x: x**3 + jnp.abs(x) ** 0.7 + jnp.sqrt(jnp.abs(x)) + lax.rsqrt(jnp.abs(x) + 1),
    "errors": lambda x: lax.erf(x) + lax.erfc(x / 2),
    "small numbers": lambda x: jnp.log1p(jnp.abs(x) * 1e-7) * 1e7 + jnp.expm1(x * 1e-7) * 1e7,
    "logarithm of softplus": lambda x: jnp.log(jax.nn.softplus(10 * x)),
    "rounded away": lambda x: lax.round(jnp.round(4 * x) / 2, lax.RoundingMethod.AWAY_FROM_ZERO),
    "product with what is the same for all": lambda x: (
        x[..., 0] @ jnp.ones((6, 4)) + jnp.zeros((x.shape[0], 4, 4)) @ TABLE[:4]
    ),
    "sum over no axis": lambda x: jnp.sum(x, ()),
    "comparisons": lambda x: ((x >= 0.1) & ~(x > 0.5) | (x != x.max()) & (x <= 1) & (x < 3)).astype(jnp.float32),
    "whole numbers": lambda x: lax.rem(jnp.round(9 * x).astype(jnp.int32), 4),
    "activations": lambda x: (
        jax.nn.gelu(x) + jax.nn.elu(x) + jax.nn.silu(x) + jax.nn.softplus(x) + jax.nn.leaky_relu(x)
    ),
    "convolution": lambda x: convolved(x, window_strides=(2, 1), padding=((1, 2), (0, 1))),
    "dilated convolution": lambda x: convolved(x, window_strides=(1, 1), padding="SAME", rhs_dilation=(1, 2)),
    "transposed convolution": lambda x: convolved(
        x, window_strides=(1, 1), padding=((2, 2), (1, 1)), lhs_dilation=(2, 2)
    ),
    "transposed, uneven": lambda x: convolved(x, window_strides=(1, 1), padding=((1, 3), (0, 2)), lhs_dilation=(3, 2)),
    "convolution turned": lambda x: lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), KERNEL, (1, 1), "VALID", dimension_numbers=("CHWN", "HWIO", "CHWN")
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name):
    function = OPERATIONS[name]
    (batch,) = jax.export.symbolic_shape("b")
    model = to_onnx(function, {"x": jax.ShapeDtypeStruct((batch, 4, 6, 2), jnp.float32)}, ["y"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        x = np.random.default_rng(count).normal(size=(count, 4, 6, 2)).astype(np.float32)
        (found,) = session.run(None, {"x": x})
        expected = np.asarray(jax.jit(function)(x))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, 1), "found sort"),
        (lambda x: lax.select_n(jnp.argmax(x, 0) % 3, x[0], x[1], x[2]), "found one between 3"),
        (lambda x: x.astype(jnp.int32) & 3, "expected operations as ONNX has them"),
        (lambda x: lax.scan(lambda c, _: (c + 1, c), x, None, 3)[0], "found scan"),
        (lambda x: jnp.roll(x, jnp.argmax(x[0, 0, 0]), 1), "found "),
        (
            lambda x: convolved(x, window_strides=(2, 2), padding=((0, 0), (0, 0)), lhs_dilation=(2, 2)),
            "found one that is both",
        ),
    ],
)
def test_what_is_not_translated_is_named(function, message):
    with pytest.raises(UserError, match=f"^to=onnx: .*{message}"):
        to_onnx(function, {"x": jax.ShapeDtypeStruct((3, 4, 6, 2), jnp.float32)}, ["y"])


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--config", "digits", *flags(**TINY), "--train.epochs=1", "--out", str(folder)]) == 0
    return folder


ALONE = """
import sys, zipfile
import numpy as np
z = np.load(sys.argv[2])["z"]
if sys.argv[1].endswith(".zip"):
    import jax
    decode = jax.export.deserialize(zipfile.ZipFile(sys.argv[1]).read("decode.jax")).call
    pictures = [np.asarray(decode(z[i:i + n])["pictures"]) for n in (1, 7) for i in range(0, len(z), n)]
else:
    import onnxruntime
    decode = onnxruntime.InferenceSession(sys.argv[1])
    pictures = [decode.run(None, {"z": z[i:i + n]})[0] for n in (1, 7) for i in range(0, len(z), n)]
assert not {"vae_jax", "flax"} & set(sys.modules)
np.save(sys.argv[3], np.concatenate(pictures))
"""


@pytest.mark.parametrize(("to", "file"), [("stablehlo", "model.zip"), ("onnx", "model.onnx")])
def test_a_process_without_this_package_decodes(run, command, tmp_path, to, file):
    code, out, err = command("export", run, tmp_path / file, "--to", to, "--licence", "mit")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(tmp_path / file)
    z = np.random.default_rng(0).normal(size=(100, TINY["model.latent"])).astype(np.float32)
    np.savez(tmp_path / "z.npz", z=z)
    arguments = [tmp_path / file, tmp_path / "z.npz", tmp_path / "pictures.npy"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True, cwd=tmp_path, timeout=200)
    expected = np.asarray(use(load(run)).decode(z))
    np.testing.assert_allclose(np.load(tmp_path / "pictures.npy"), np.concatenate([expected] * 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("to", "file"), [("stablehlo", "m.zip"), ("onnx", "m.onnx"), ("torch", "m.safetensors")])
def test_a_card_goes_with_it(run, command, tmp_path, to, file):
    assert command("export", run, tmp_path / file, "--to", to, "--licence", "cc-by-4.0")[0] == 0
    card = (tmp_path / f"{file}.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert "license: cc-by-4.0" in card
    assert f"| test loss | {summary['test_loss']:,.2f} nats per image |" in card
    assert f"{summary['parameters']:,} parameters" in card
    assert "manual_dir" not in card
    assert file in card
    first = (tmp_path / file).read_bytes()
    assert command("export", run, tmp_path / file, "--to", to, "--overwrite")[0] == 0
    assert NO_LICENCE in (tmp_path / f"{file}.md").read_text()
    if to == "torch":
        assert (tmp_path / file).read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["m.onnx", "--to", "stablehlo"],
            "m.onnx: expected a name that ends in .zip, for --to stablehlo; found 'm.onnx'",
        ),
        (["m.zip", "--to", "onnx"], "m.zip: expected a name that ends in .onnx, for --to onnx; found 'm.zip'"),
        (["m.onnx", "--to", "onxx"], "--to: expected one of torch, stablehlo, onnx; found 'onxx' (did you mean onnx?)"),
        (["there.onnx", "--to", "onnx"], "there.encode.onnx: there is such a file already; --overwrite writes over it"),
    ],
)
def test_export_refuses(run, command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.encode.onnx").write_text("mine")
    before = snapshot(tmp_path)
    code, _, err = command("export", run, *arguments)
    assert (code, err) == (2, f"vae-jax: error: {message}\n")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("to", "file", "module"), [("stablehlo", "m.zip", "flatbuffers"), ("onnx", "m.onnx", "onnxruntime")]
)
def test_a_missing_extra_is_named(run, command, tmp_path, monkeypatch, to, file, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = command("export", run, tmp_path / file, "--to", to)
    assert code == 2
    assert f"--to {to}: expected the extra {to}, pip install 'vae_jax[{to}]'" in err
    assert not list(tmp_path.iterdir())


def test_a_network_that_needs_to_know_the_batch(tmp_path):
    trained = trained_of("mlp")
    functions = [replace_call(function, lambda z: {"pictures": z * len(z)}) for function in functions_of(trained)[1:]]
    with pytest.raises(UserError, match=r"^to=stablehlo: expected networks for a batch of any size; found one that"):
        (tmp_path / "m.zip").write_bytes(archive_of(functions, ""))
    assert not list(tmp_path.iterdir())


def replace_call(function, call):
    return function._replace(call=call)


@pytest.mark.parametrize("own", [LADDER, f"{OWN}/vit.py:ViT", f"{OWN}/groupnorm.py:GroupNormNet"])
def test_users_own_networks_are_exported_also_if_they_take_the_size_of_a_batch(own, tmp_path):
    trained = trained_of("own", **{"model.network": own})
    functions = functions_of(trained)
    (tmp_path / "m.zip").write_bytes(archive_of(functions, ""))
    for batch in (1, 7):
        inputs, labels = inputs_of(trained, batch)
        wanted = expected_of(trained, inputs, labels)
        with zipfile.ZipFile(tmp_path / "m.zip") as archive:
            decode = jax.export.deserialize(archive.read("decode.jax")).call
        np.testing.assert_allclose(decode(inputs["z"])["pictures"], wanted["decode"]["pictures"], rtol=1e-5, atol=1e-5)
    decode = onnxruntime.InferenceSession(translated(functions[1:]).models["decode"].SerializeToString())
    (pictures,) = decode.run(None, {"z": inputs["z"]})
    np.testing.assert_allclose(pictures, wanted["decode"]["pictures"], rtol=1e-5, atol=1e-5)


def test_weights_in_half_precision_compute_in_float32_in_onnx():
    trained = trained_of("convolutional")
    half = trained._replace(config=replace(trained.config, model=replace(trained.config.model, precision="bfloat16")))
    whole, rounded = (translated(functions_of(of, "float32")).models["decode"] for of in (trained, half))
    assert whole.SerializeToString() == rounded.SerializeToString()


def test_numbers_that_are_not_finite_do_not_pass_the_check():
    def functions(call):
        return [replace_call(functions_of(trained_of("mlp"))[1], call)]

    def nowhere(z):  # a value that jax has and the graph has not
        return {"pictures": jnp.where(jnp.isnan(jnp.log(z)), 1.0, jnp.log(z)) * jnp.inf}

    with pytest.raises(UserError, match=r"^to=onnx: expected decode to give finite numbers; found others"):
        translated(functions(nowhere))


def test_a_later_export_leaves_no_encoder_of_an_earlier_model(tmp_path, monkeypatch):
    for name, files in (("mlp", ["m.encode.onnx", "m.onnx", "m.onnx.md"]), ("flow", ["m.onnx", "m.onnx.md"])):
        monkeypatch.setattr("vae_jax.interop.export.load", lambda *_, name=name: trained_of(name))
        made = export(tmp_path, tmp_path / "m.onnx", "onnx")
        assert any("m.encode.onnx is deleted" in line for line in made.about) == (name == "flow")
        assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_a_file_of_the_users_is_no_encoder_of_an_earlier_model(tmp_path, monkeypatch):
    (tmp_path / "m.encode.onnx").write_text("mine")
    monkeypatch.setattr("vae_jax.interop.export.load", lambda *_: trained_of("flow"))
    assert not any("deleted" in line for line in export(tmp_path, tmp_path / "m.onnx", "onnx").about)
    assert (tmp_path / "m.encode.onnx").read_text() == "mine"


@pytest.mark.parametrize(("to", "name"), [("onnx", "m.onnx"), ("stablehlo", "m.zip")])
def test_an_export_that_cannot_be_written_leaves_the_earlier_one_whole(to, name, tmp_path, monkeypatch):
    """None of its files, the card included, has taken its place."""
    monkeypatch.setattr("vae_jax.interop.export.load", lambda *_: trained_of("mlp"))
    export(tmp_path, tmp_path / name, to)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("vae_jax.interop.export.load", lambda *_: trained_of("flow"))
    replacing = files_replace.replacing

    def failing(path):
        if path.suffix == ".md":
            raise OSError("disk full")
        return replacing(path)

    monkeypatch.setattr(files_replace, "replacing", failing)
    with pytest.raises(OSError, match="disk full"):
        export(tmp_path, tmp_path / name, to)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_card_has_no_places_and_only_the_functions_that_the_file_holds(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "net.py").write_text((OWN / "groupnorm.py").read_text())
    own = f"{tmp_path}/secret/net.py:GroupNormNet"
    data = {"data.source": "mnist", "data.manual_dir": f"{tmp_path}/secret"}
    trained = trained_of("own", **data, **{"model.network": own})
    objective = build(trained.config, trained.image_shape).objective
    card = card_of(trained, objective, "a|b\nc", None, functions_of(trained)[1:])
    assert "secret" not in card
    assert "net.py:GroupNormNet" in card
    assert "`decode`" in card
    assert "`encode`" not in card
    assert "# a\\|b c\n" in card


@pytest.mark.parametrize("licence", ["mit\nmodel-index: []", "a b", "", "x" * 101])
def test_what_is_no_licence_is_refused(run, command, tmp_path, licence):
    code, _, err = command("export", run, tmp_path / "m.onnx", "--to", "onnx", "--licence", licence)
    assert code == 2
    assert "--licence: expected an identifier as apache-2.0 or mit; found" in err
    assert not list(tmp_path.iterdir())
