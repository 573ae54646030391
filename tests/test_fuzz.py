"""Whatever comes in gives a valid result or one line that names it, within seconds and in little memory.

By default a few inputs, always the same. VAE_JAX_TORTURE=1 tries over 10,000 new ones; a failure prints how to repeat
it.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import socket
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from data_fixtures import chunk, idx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from vae_jax.cli import VERBS, _parse
from vae_jax.compare import results
from vae_jax.config import Config, DataConfig, check_used, load_config, to_yaml
from vae_jax.config.change import options_of_section
from vae_jax.data import Dataset, load
from vae_jax.data.idx import read_idx
from vae_jax.errors import UserError, printable
from vae_jax.interop import weights_file
from vae_jax.registry import lookup
from vae_jax.runs import own_parts
from vae_jax.runs.checkpoint import Keeper, Saved, restore
from vae_jax.runs.description import DESCRIPTION
from vae_jax.runs.folder import origin, read_config, read_data, read_reason
from vae_jax.runs.reading import _epochs
from vae_jax.sweeps import plan
from vae_jax.sweeps.plan import members_of, read_sweep
from vae_jax.training.figures import Epoch
from vae_jax.training.state import TrainState
from vae_jax.variables import Variables

TORTURE = os.environ.get("VAE_JAX_TORTURE") == "1"
MEMORY = 1 << 30  # bytes above the start
STATUS = Path("/proc/self/status")


def fuzzed(torture: int, quick: int = 60) -> settings:
    """How a test tries inputs, so many of them where it is tortured."""
    return settings(
        max_examples=torture if TORTURE else quick,
        deadline=5000,
        derandomize=not TORTURE,
        print_blob=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Any slower input is a bug as well: hypothesis notices only when it has ended.
pytestmark = pytest.mark.timeout(3600 if TORTURE else 300)


def kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))


def outcome(call: Callable[[], Any], *names: str | Path) -> Any:
    """What a call gives, or None where it is refused as it should be: in one line with one of the names."""
    measured = STATUS.exists()
    if measured:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = kilobytes("VmRSS")
    found = message = None
    try:
        found = call()
    except UserError as error:
        message = str(error)
    if measured:
        assert (kilobytes("VmHWM") - before) * 1024 < MEMORY
    if message is not None:
        assert message.isprintable()
        assert len(message) < 20_000
        assert any(printable(str(name)) in message for name in names), message
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for one input after the other."""
    return tmp_path_factory.mktemp("fuzz")


# --- Bytes -----------------------------------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 3, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1]
numbers = st.sampled_from(NUMBERS) | st.integers(-(2**70), 2**70)
lengths = st.sampled_from(NUMBERS[:-6]) | st.integers(0, 40)


@st.composite
def mutated(draw, content: bytes) -> bytes:
    """Bytes with a few faults."""
    faulty = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(faulty) - 1)))
        end = min(len(faulty), place + draw(st.integers(1, 40)))
        kind = draw(st.sampled_from(["bit", "byte", "cut", "delete", "insert", "repeat", "zero", "number"]))
        if kind == "bit" and faulty:
            faulty[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and faulty:
            faulty[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del faulty[place:]
        elif kind == "delete":
            del faulty[place:end]
        elif kind == "insert":
            faulty[place:place] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "repeat":
            faulty[place:place] = faulty[place:end] * draw(st.integers(1, 5))
        elif kind == "zero":
            faulty[place:end] = bytes(end - place)
        elif kind == "number":
            size, order = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            value = draw(st.sampled_from(NUMBERS)) % (1 << 8 * size)
            faulty[place : place + size] = value.to_bytes(size, order)
    return bytes(faulty)


# --- Configurations --------------------------------------------------------------------------------------------------

SECTIONS = [field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)]
OPTIONS = ["seed"] + [f"{name}.{option}" for name in SECTIONS for option in options_of_section(name)]
STRANGE = [
    *("yes", "no", "on", "off", "y", "true", "null", "~", "", "-", "--", "=", "<<", "?", ":", "*a", "&a", "&a [*a]"),
    *("017", "0o17", "0x1F", "0b1", "1:30", "1:30.5", "1e3", "1e-3", "1E400", "1_000", "+1", "-0", "-1", "1.", ".5"),
    *(".nan", ".inf", "-.inf", "nan", "inf", "9" * 400, "9" * 5000, "-" + "9" * 30, "0.1e-400", "2024-01-01", "٣", "²"),
    *("!!python/object/apply:os.getcwd []", "!!bool x", "!x y", "!!set {a, b}", "!!binary aGk=", "{a: 1}", "{1: 2}"),
    *(
        "{? [a]: b}",
        "{a: {b: {c: {d: 1}}}}",
        "[]",
        "[1, x]",
        "[1, 2.5]",
        "[[1]]",
        "[" * 2000,
        "[" + "1, " * 3000 + "1]",
    ),
    *("'", '"', "'a'", '"\\x00"', '"\\ud800"', "|", "> x", "@", "`", "%", "#", "a # b", "a: b", "- a", "a\n b", "\t"),
    *(
        "a" * 5000,
        "\x00",
        "\u2028",
        "\x85",
        "\ufeff",
        "\x1b[31m",
        "/dev/zero",
        "/",
        ".",
        "~nobody/x",
        "{class_path: x}",
    ),
    *("folder", "array", "tfds", "mnist", "autoencoder", "exponential", "[8, 8]", "2", "0.5"),
]
strange = st.sampled_from(STRANGE) | st.text(max_size=8) | numbers.map(str) | st.floats().map(str)
WHOLE = to_yaml(load_config("article"))


@st.composite
def yaml_texts(draw) -> str:
    """A whole configuration with a few faults in its lines."""
    lines = WHOLE.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        key, _, value = lines[place].partition(":")
        kind = draw(st.sampled_from([*["value"] * 9, "key", "repeat", "delete", "indent", "insert", "join"]))
        if kind == "value":
            lines[place] = f"{key}: {draw(strange)}"
        elif kind == "key":
            lines[place] = f"  {draw(strange)}:{value}"
        elif kind == "repeat":
            lines.insert(place, lines[draw(st.integers(0, len(lines) - 1))])
        elif kind == "delete" and len(lines) > 1:
            del lines[place]
        elif kind == "indent":
            lines[place] = draw(st.sampled_from([" ", "\t", "    ", "- ", "? ", "# ", "---", "..."])) + lines[place]
        elif kind == "insert":
            lines.insert(place, draw(strange))
        elif kind == "join":
            lines[place : place + 2] = ["".join(lines[place : place + 2])]
    return draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])).join(lines)


def check_config(found: Config | None, place: Path) -> None:
    """What was read is a configuration that can be kept and read again."""
    if found is None:
        return
    again = place / "again.yaml"
    again.write_text(to_yaml(found), encoding="utf-8", errors="surrogatepass")
    assert load_config(again) == found
    outcome(lambda: check_used(found), *(f"{name}." for name in SECTIONS))


@fuzzed(1000)
@given(yaml_texts() | st.text(max_size=60), st.sampled_from([*["utf-8"] * 12, "utf-8-sig", "utf-16", "latin-1"]))
def test_configuration_files(place, text, encoding):
    path = place / "some.yaml"
    path.write_bytes(text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace"))
    check_config(outcome(lambda: load_config(path), path, *OPTIONS), place)


@fuzzed(1000)
@given(
    mutated(WHOLE.encode()) | mutated(b"seed: 1\ntrain: {epochs: 3, learning_rate: 1e-3}\n") | st.binary(max_size=60)
)
def test_configuration_bytes(place, content):
    path = place / "some.yaml"
    path.write_bytes(content)
    check_config(outcome(lambda: load_config(path), path, *OPTIONS), place)


flags = st.sampled_from([f"--{option}" for option in [*OPTIONS, *SECTIONS, "config", "out", "device", "resume"]])


@fuzzed(1000)
@given(
    st.lists(
        st.tuples(flags | flags | st.text(max_size=6).map("--n".__add__), strange, st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_flags(place, given_flags):
    arguments = []
    for flag, value, joined in given_flags:
        arguments += [f"{flag}={value}"] if joined else [flag, value]
    names = (*OPTIONS, *SECTIONS, "--", "config", "arguments", "train")
    options = outcome(lambda: _parse("train", VERBS["train"], arguments), *names)
    if options is not None:
        check_config(options.configuration, place)


# --- MNIST's files ---------------------------------------------------------------------------------------------------


@st.composite
def idx_contents(draw) -> bytes:
    kind = draw(st.sampled_from(["mutated", "header", "header", "bomb", "unzipped", "raw", *["mutated inside"] * 2]))
    whole = idx(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    if kind == "mutated":
        return draw(mutated(whole))
    if kind == "raw":
        return draw(st.binary(max_size=100))
    if kind == "mutated inside":
        return gzip.compress(draw(mutated(gzip.decompress(whole))), mtime=0)
    magic = draw(st.sampled_from([*[bytes((0, 0, 8, 3)), bytes((0, 0, 8, 1))] * 4, bytes((0, 0, 13, 3)), b"\0\0\0\0"]))
    shape = [length % 2**32 for length in draw(st.lists(lengths, min_size=1, max_size=4))]
    body = draw(st.sampled_from([0, 1, 60, 1000])) if kind != "bomb" else draw(st.sampled_from([1 << 20, 1 << 26]))
    content = magic + struct.pack(f">{len(shape)}I", *shape) + bytes(body)
    return content if kind == "unzipped" else gzip.compress(content, draw(st.sampled_from([1, 9])), mtime=0)


@fuzzed(2500)
@given(idx_contents(), st.sampled_from([1, 3]))
def test_idx_files(content, dimensions):
    found = outcome(lambda: read_idx(content, dimensions, "images.gz"), "images.gz")
    assert found is None or (found.ndim == dimensions and found.dtype == np.uint8 and found.size > 0)


# --- Folders of images -----------------------------------------------------------------------------------------------

MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "jpeg": ["L", "RGB", "CMYK"],
    "webp": ["L", "RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F"],
    "gif": ["1", "L", "P"],
    "ppm": ["1", "L", "RGB", "I;16"],
}


@st.composite
def pictures(draw) -> bytes:
    """An image of any format, mode and size, whole or not."""
    kind = draw(st.sampled_from([*MODES, "png", "jpeg"]))
    mode = draw(st.sampled_from(MODES[kind]))
    size = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    random = np.random.RandomState(draw(st.integers(0, 3)))
    if mode == "I;16":
        image = Image.fromarray(random.randint(0, 65536, size[::-1]).astype(np.uint16))
    else:
        image = Image.fromarray(random.randint(0, 256, (*size[::-1], 4)).astype(np.uint8)).convert("RGB").convert(mode)
    options: dict[str, Any] = {}
    if kind in ("png", "jpeg", "webp", "tiff") and draw(st.booleans()):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = draw(st.integers(0, 9))
    if kind == "jpeg":
        options["progressive"] = draw(st.booleans())
    elif kind == "tiff":
        options["compression"] = draw(st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    elif kind == "png" and mode in ("L", "P") and draw(st.booleans()):
        options["transparency"] = 0 if mode == "L" else draw(st.sampled_from([0, bytes(range(3))]))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    content = buffer.getvalue()
    return draw(mutated(content)) if draw(st.booleans()) else content


@st.composite
def bombs(draw) -> bytes:
    """A PNG of valid chunks whose header claims any size and kind, with few or many pixels in it."""
    width, height = draw(lengths) % 2**31, draw(lengths) % 2**31
    kind = [draw(st.sampled_from(values)) for values in ([1, 2, 8, 16, 3], [0, 2, 3, 4, 6, 9], [0], [0], [0, 1])]
    pixels = zlib.compress(bytes(draw(st.sampled_from([0, 100, 1 << 20]))))
    extra = [chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\0\0"), chunk(b"eXIf", b"MM\0*"), chunk(b"acTL", bytes(8))]
    extra += [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22))), chunk(b"iCCP", b"a\0\0" + pixels)]
    more = b"".join(draw(st.lists(st.sampled_from(extra), max_size=2)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *kind))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


NAMES = ["a", "B", "é", "日本", "a b", " ", "a\nb", "\x1b[31m", "-n", "~", "%s", "x" * 200, "a.png", "\udcff", "'", "*"]
file_names = st.builds(
    "{}{}".format,
    st.sampled_from(NAMES) | st.integers(0, 99).map(str),
    st.sampled_from([".png", ".png", ".jpg", ".JPEG", ".webp", ".tif", ".txt", ""]),
)
contents = st.one_of(
    pictures(),
    pictures(),
    bombs(),
    st.binary(max_size=30),
    st.sampled_from(["fifo", "folder", "loop", "dangling", "up", "link"]),
)
PLACES = [
    ["", "", ".hidden"],
    ["cat", "dog", "cat/deep", "\udcff", "q\nr", "train"],
    ["train/a", "train/b", "test/a", "test/c/d", "test/.hidden"],
    ["", "cat", "train", "test", "test/a", "\udcff"],
    ["train/a", "Val/a", "testing/a", "train/b"],
    ["TRAIN/a", "valid/a", "train/a", "dev/b", "other"],
]
GOOD = io.BytesIO()
Image.new("L", (3, 3), 9).save(GOOD, "png")


@st.composite
def folders(draw) -> list[tuple[str, str, bytes | str]]:
    """Images directly in a folder, in classes, in splits, or anywhere; most of the time some of them are good."""
    places = draw(st.sampled_from([*PLACES[:3], *PLACES]))
    files = draw(st.lists(st.tuples(st.sampled_from(places), file_names, contents), max_size=5))
    good = draw(st.sampled_from([0, 2, 2, 2])) * places[:3:2]
    return files + [(place, f"good{number}.png", GOOD.getvalue()) for number, place in enumerate(good)]


def make(root: Path, folder: str, name: str, content: bytes | str) -> None:
    """One entry; one that cannot be is left out."""
    path = root / folder / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            return
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "fifo":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()
        else:
            path.symlink_to({"loop": path, "dangling": root / "none", "up": root, "link": root / "a.png"}[content])


@fuzzed(2500)
@given(
    folders(),
    st.booleans(),
    st.sampled_from([1, 3, None]),
    st.sampled_from([1, 2, 7, 64, None]),
    st.sampled_from([0.2, 1.0, 0.2, 1.0, 0.0, 2.0, 0.999]),
)
def test_folders(place, files, skip_bad, channels, size, test):
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        root = Path(temporary) / "images"
        root.mkdir()
        for file in files:
            make(root, *file)
        config = DataConfig(
            "folder", path=str(root), cache_dir=f"{temporary}/cache", skip_bad=skip_bad, channels=channels,
            image_size=size, test=test,
        )  # fmt: skip
        found = outcome(lambda: load(config), root, "data.test")
        if found is not None:
            check_data(found, config)
            assert skip_bad or not found.skipped
            again = load(config)
            assert again.skipped == found.skipped
            np.testing.assert_array_equal(again.train.images, found.train.images)
            assert all(printable(str(root)) in line and line.isprintable() for line in found.skipped)


def check_data(data: Dataset, config: DataConfig) -> None:
    for split in (data.train, data.test):
        assert len(split) > 0
        assert split.images.shape[1:] == data.image_shape
        assert split.images.shape[1] == split.images.shape[2] == (config.image_size or split.images.shape[1]) <= 64
        assert split.images.shape[3] == (config.channels or split.images.shape[3])
        assert split.labels is None or len(split.labels) == len(split)
        if split.labels is not None and data.class_names is not None:
            assert 0 <= split.labels.min() <= split.labels.max() < len(data.class_names)


# --- Arrays ----------------------------------------------------------------------------------------------------------


DESCRIPTIONS = [
    *(repr(each) for each in ("|u1", "<f4", "|O", "<U0", "|V0", "x", "<f16", "<M8[s]", "|u" + "1" * 50)),
    *("[('a', '|u1')]", "('|u1', (4,))", "1", "[]", "None"),
]
TYPES = [np.uint8, np.float32, np.float16, np.int64, ">f8", bool, "U1", "V3", complex]
SHAPES = [(6, 4, 4), (6, 4, 4, 3), (6, 4, 4, 4), (6,), (6, 1), (2, 30, 3), (), (0, 4, 4), (6, 1, 1, 4)]
LAYOUTS = [
    ("images",),
    ("images",),
    ("train", "test"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train", "test"),
    ("images", "labels"),
    ("images", "images"),
    ("X_train", "val", "y_val", "x_valid", "testing_x"),
    ("a", "../b"),
]


@st.composite
def npy(draw) -> bytes:
    """An .npy file with any header."""
    if draw(st.integers(0, 2)):
        array, shape = draw(st.sampled_from([np.uint8, np.float32, ">f8"])), draw(st.sampled_from(SHAPES[:3]))
    else:
        array, shape = draw(st.sampled_from(TYPES)), draw(st.sampled_from(SHAPES))
    values = np.full(shape, draw(st.sampled_from([0, 1])), np.uint8).astype(array)
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(values) if draw(st.booleans()) else values)
    content = buffer.getvalue()
    if draw(st.integers(0, 2)):
        return content
    descr = draw(st.sampled_from(DESCRIPTIONS))
    sizes = draw(st.lists(numbers | st.integers(0, 6), max_size=5))
    text = draw(
        st.sampled_from([repr(tuple(sizes)), "(6, 4, 4)", "6", "(6L, 4L, 4L)", "None", "(" * 300, "-" * 3000 + "1"])
    )
    header = (
        f"{{'descr': {descr}, 'fortran_order': {draw(st.sampled_from(['False', 'True', '2']))}, 'shape': {text}}}\n"
    )
    version, form = draw(
        st.sampled_from([(b"\x01\x00", "<H"), (b"\x02\x00", "<I"), (b"\x03\x00", "<I"), (b"\x09\x09", "<I")])
    )
    length = draw(st.sampled_from([len(header), len(header), 0, 20_000, 2**32 - 1])) % (1 << 8 * struct.calcsize(form))
    body = bytes(draw(st.sampled_from([0, 96, 96 * 4, 1000])))
    return b"\x93NUMPY" + version + struct.pack(form, length) + header.encode() + body


@st.composite
def array_files(draw) -> tuple[str, bytes]:
    kind = draw(st.sampled_from(["npy", "npz", "npz", "bomb", "raw"]))
    if kind == "raw":
        return draw(st.sampled_from([".npy", ".npz", ".NPZ"])), draw(st.binary(max_size=60))
    if kind == "npy":
        content = draw(npy())
        return ".npy", draw(mutated(content)) if draw(st.booleans()) else content
    buffer = io.BytesIO()
    methods = [*[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 4, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from(methods))) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names given twice
        for name in draw(st.sampled_from(LAYOUTS)):
            if kind == "bomb":
                head = io.BytesIO()
                shape = (draw(st.sampled_from([1, 1 << 14, 1 << 20, 1 << 40])), 32, 32)
                np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
                archive.writestr(f"{name}.npy", head.getvalue() + bytes(1 << 22))
            else:
                archive.writestr(name + draw(st.sampled_from([*[".npy"] * 9, ""])), draw(npy()))
    content = buffer.getvalue()
    return ".npz", content if draw(st.integers(0, 2)) else draw(mutated(content))


@fuzzed(2500)
@given(
    array_files(),
    st.sampled_from([1, 3, None]),
    st.sampled_from([1, 4, 9, None]),
    st.sampled_from([0.2, 1.0, 0.2, 1.0, 0.0, 2.0, 0.999]),
)
def test_arrays(place, file, channels, size, test):
    extension, content = file
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        path = Path(temporary) / f"some{extension}"
        path.write_bytes(content)
        config = DataConfig(
            "array", path=str(path), cache_dir=f"{temporary}/cache", channels=channels, image_size=size, test=test
        )
        found = outcome(lambda: load(config), path, "data.test")
        if found is not None:
            check_data(found, config)


# --- Weights ---------------------------------------------------------------------------------------------------------

EXPECTED = {
    "conv.weight": np.zeros((2, 3), np.float32),
    "bn.running_var": np.ones(4, np.float32),
    "bn.num_batches_tracked": np.array(3, np.int64),
}


@st.composite
def weight_files(draw) -> bytes:
    whole = save(EXPECTED, metadata={"format": "pt"})
    kind = draw(st.sampled_from(["mutated", *["header"] * 6, "raw"]))
    if kind == "mutated":
        return draw(mutated(whole))
    if kind == "raw":
        return draw(st.binary(max_size=60))
    length = int.from_bytes(whole[:8], "little")
    entries = [(name, dict(entry)) for name, entry in json.loads(whole[8 : 8 + length]).items()]
    others = []  # values that are no entries
    for _ in range(draw(st.integers(0, 3))):
        name, entry = draw(st.sampled_from(entries))
        fault = draw(st.sampled_from(["dtype", "shape", "offsets", "name", "twice", "field", "lost", "extra", "value"]))
        if fault == "dtype":
            entry["dtype"] = draw(
                st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "X", "", 1, None])
            )
        elif fault == "shape":
            entry["shape"] = draw(st.lists(numbers, max_size=4) | st.sampled_from([None, "2", [2.5], [[2]], [True]]))
        elif fault == "offsets":
            entry["data_offsets"] = draw(st.lists(numbers | st.integers(0, 60), max_size=3))
        elif fault == "name":
            entries[0] = (draw(st.text(max_size=5)), entries[0][1])
        elif fault == "twice":
            entries.append((name, entry))
        elif fault == "field":
            entry[draw(st.text(max_size=3))] = draw(numbers)
        elif fault == "lost":
            entry.pop(draw(st.sampled_from(sorted(entry))), None) if entry else None
        elif fault == "extra":
            entries.append((draw(st.text(max_size=5)), {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}))
        elif fault == "value":
            value = st.sampled_from([None, 1, [], {"a": 1}, {"a": None}, {"a": "b"}])
            others.append((draw(st.sampled_from(["__metadata__", "x"])), draw(value)))
    many = draw(st.sampled_from([0, 0, 0, 2000]))
    entries += [(f"more{i}", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}) for i in range(many)]
    text = (
        "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries + others) + "}"
    )  # names may repeat
    header = draw(st.sampled_from([*[text.encode()] * 9, text.encode("utf-16"), b"[" * 5000, b"{" * 500]))
    claimed = draw(st.sampled_from([*[len(header)] * 99, *NUMBERS])) % 2**64
    data = whole[8 + length :]
    if draw(st.integers(0, 2)):
        return struct.pack("<Q", claimed) + header + data
    levels = np.frombuffer(data, "<f4").copy()
    levels[draw(st.integers(0, len(levels) - 1))] = draw(st.floats(width=32))
    return struct.pack("<Q", claimed) + header + draw(st.sampled_from([levels.tobytes(), data[:-1], data + b"0"]))


@fuzzed(2500)
@given(weight_files())
def test_weights(place, content):
    path = place / "model.safetensors"
    path.write_bytes(content)
    found = outcome(lambda: weights_file.read(path, EXPECTED, "the model"), path)
    if found is not None:
        assert found.arrays.keys() == EXPECTED.keys()
        for name, array in found.arrays.items():
            assert (array.shape, array.dtype) == (EXPECTED[name].shape, EXPECTED[name].dtype)
            assert np.isfinite(array).all()


# --- What a run tells of itself --------------------------------------------------------------------------------------

# Of JSON: values of every other kind; text that stands for itself where json.dumps would not write it.
DEEP, DIGITS = "[" * 5000 + "]" * 5000, "9" * 5000
VALUES = [
    *(None, True, -1, 0, 1, 0.5, 2**31, 2**53 + 1, 10**30, 1e300, math.nan, math.inf, -math.inf, "@deep@", "@digits@"),
    *("", "x", "2", "\x1b[31m", "a\nb", "\ud800", "\0", "../../x", "/etc/passwd", "a" * 100_000, "=1+1", "$\\frac{"),
    *([], {}, [1], ["x"], [[[[1]]]], {"a": {"b": [None]}}, [{}] * 1000),
]
values = st.sampled_from(VALUES) | numbers | st.text(max_size=5) | st.floats()


def as_json(value: Any) -> bytes:
    text = json.dumps(value).replace('"@deep@"', DEEP).replace('"@digits@"', DIGITS)
    return text.encode()


@st.composite
def altered(draw, whole: Any) -> Any:
    """What JSON says, with a few faults in its structure."""
    found = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place, steps = found, draw(st.integers(0, 4))
        while steps and isinstance(place, list | dict) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if steps == 1 or not isinstance(place[key], list | dict) or not place[key]:
                kind = draw(st.sampled_from(["value"] * 5 + ["lost", "twice", "more", "name"]))
                value = draw(values)
                if kind == "lost":
                    del place[key]
                elif kind == "value":
                    place[key] = value
                elif isinstance(place, list):
                    place.insert(key, place[key] if kind == "twice" else value)
                elif kind == "name":
                    place[draw(st.text(max_size=4))] = place.pop(key)
                else:
                    place[draw(st.sampled_from(["more", "../x", "\x1b", "a" * 5000]))] = value
                break
            place, steps = place[key], steps - 1
        else:
            found = draw(values)
    return found


def faulty(whole: Any) -> st.SearchStrategy[bytes]:
    """JSON with faults in its structure, in its bytes, or in both."""
    content = json.dumps(whole).encode()
    return altered(whole).map(as_json) | altered(whole).map(as_json) | mutated(content) | st.binary(max_size=40)


DATA_JSON = {"name": "digits", "digest": "0" * 64, "class_names": ["0", "1"], "run": "1" * 64}


@fuzzed(1000)
@given(faulty(DATA_JSON))
def test_what_a_run_tells_of_its_data(place, content):
    (place / "data.json").write_bytes(content)
    found = outcome(lambda: read_data(place), place / "data.json")
    if found is not None:
        assert [type(each) for each in (found.name, found.digest, found.run)] == [str] * 3
        assert found.class_names is None or all(type(name) is str for name in found.class_names)


ORIGIN_JSON = {"file": "/x.pt", "sha256": "0" * 64, "counters": {"BN1.num_batches_tracked": 20, "BN2": 0}}


@fuzzed(1000)
@given(faulty(ORIGIN_JSON))
def test_what_a_run_tells_of_imported_weights(place, content):
    (place / "imported.json").write_bytes(content)
    found = outcome(lambda: origin(place), place / "imported.json")
    if found is not None:
        assert all(type(count) is int and 0 <= count <= 2**53 for count in found.counters.values())


SOURCES_JSON = {"/a/x.py": {"sha256": "0" * 64, "copy": "x.py"}, "package.module": {"sha256": "1" * 64, "copy": ""}}


@fuzzed(1000)
@given(faulty(SOURCES_JSON))
def test_what_a_run_tells_of_users_files(place, content):
    (place / "code").mkdir(exist_ok=True)
    (place / "code" / "sources.json").write_bytes(content)
    found = outcome(lambda: own_parts.read_index(place), place / "code" / "sources.json")
    for known in (found or {}).values():
        assert Path(place / "code" / known.copy).parent in (place / "code", place)


@fuzzed(500)
@given(st.lists(faulty({"epoch": 1, "train_loss": 0.5}), max_size=3), st.booleans())
def test_metrics(place, lines, ended):
    (place / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n" * ended)
    found = outcome(lambda: _epochs(place), place / "metrics.jsonl")
    assert found is None or found >= 0


@fuzzed(500)
@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_why_a_run_diverged(place, content):
    (place / "diverged.txt").write_bytes(content)
    found = outcome(lambda: read_reason(place), place / "diverged.txt")
    assert found is None or (found and found.isprintable())


SWEEP_JSON = {
    "config": {"data.image_size": 8, "train.epochs": 2, "model.channels": [4, 8], "model.batch_norm": True},
    "seeds": 2,
    "set": {"objective.beta": ["0.5", "1"], "model.latent": ["2", "3"]},
}


@fuzzed(1500)
@given(faulty(SWEEP_JSON))
def test_what_is_swept(place, content):
    (place / "sweep.json").write_bytes(content)
    found = outcome(lambda: read_sweep(place), place / "sweep.json")
    if found is not None:
        members = outcome(lambda: members_of(found), "settings")
        assert members is None or 1 <= len(members) <= plan.MOST


RESULTS_JSON = {
    **{"format": "vae_jax results", "version": 1, "framework": "Keras", "data": "digits", "unit": "nats per image"},
    **{"train_images": 1000, "test_images": 597},
    "runs": [{"seed": seed, "epochs": [{"epoch": 1, "test_loss": 300.0 + seed}]} for seed in (0, 1)],
}


@fuzzed(500)
@given(faulty(RESULTS_JSON))
def test_results_of_other_frameworks(place, content):
    (place / "other.json").write_bytes(content)
    found = outcome(lambda: results.read(place / "other.json"), place / "other.json")
    if found is not None:
        assert np.isfinite(results.losses(found)).all()
        assert results.compare(RESULTS_JSON, found)["verdict"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of two whole checkpoints, of a state as small as can be."""
    folder = tmp_path_factory.mktemp("checkpoints") / "checkpoints"
    keeper = Keeper(folder, 2, print)
    figures = {**dict.fromkeys(Epoch._fields, 1.0), "chunk_steps": 4, "skipped_steps": 0}
    options = {"seed": 3, "model.channels": [4], "train.batch_size": 1, "data.path": None}
    for step in (1, 2):
        history = [{**figures, "epoch": epoch} for epoch in range(1, step + 1)]
        keeper.save(Saved(tiny_state(step), history, 1, "0" * 64, {"cores": "2"}, options, "1" * 64), 1.0)
    return folder


def tiny_state(step: int = 0) -> TrainState:
    return TrainState(jnp.int32(step), Variables({"w": jnp.arange(2.0)}, {}), {"m": jnp.ones(2)}, jnp.zeros((1, 3)))


def restored(folder: Path) -> tuple[Saved | None, list[str]]:
    """What is restored, or None where all is refused, and the lines on it."""
    reported: list[str] = []
    return outcome(lambda: restore(folder, "latest", lambda images: tiny_state(), reported.append), folder), reported


@fuzzed(1500, 30)
@given(st.data())
def test_checkpoints_whose_hash_was_computed_anew(checkpoints, data):
    """What a description says is looked at after its hash: either it is all right, or the older checkpoint is taken."""
    path = checkpoints / "2" / DESCRIPTION
    whole = path.read_bytes()
    content = as_json(data.draw(altered(json.loads(whole)["checkpoint"])))
    with contextlib.suppress(ValueError, RecursionError):  # what cannot be read has no hash
        described = json.loads(content)
        canonical = json.dumps(described, sort_keys=True).encode()
        sealed = {"sha256": hashlib.sha256(canonical).hexdigest(), "checkpoint": described}
        content = json.dumps(sealed).encode()
    try:
        path.write_bytes(content)
        found, reported = restored(checkpoints)
    finally:
        path.write_bytes(whole)
    if found is None:  # another model's, as far as anyone can know
        assert not reported
        return
    assert int(found.state.step) == 2 - len(reported)
    assert all(line.startswith(f"{path.parent}: damaged, ") and len(line) < 20_000 for line in reported)
    assert [type(each) for each in found[1:]] == [list, int, str, dict, dict, str]
    assert [epoch["epoch"] for epoch in found.history] == list(range(1, int(found.state.step) + 1))


SPECIAL = ["pipe", "folder", "socket", "device", "50 GB", "loop"]
READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": read_config,
    "data.json": read_data,
    "imported.json": origin,
    "code/sources.json": own_parts.read_index,
    "metrics.jsonl": _epochs,
    "diverged.txt": read_reason,
    "sweep.json": read_sweep,
    "other.json": lambda folder: results.read(folder / "other.json"),
    "mine.py": lambda folder: lookup({}, f"{folder}/mine.py:net", "model.network", ("config",)),
    "checkpoints/2/checkpoint.json": lambda folder: restored(folder / "checkpoints")[0],
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_or_has_no_end(checkpoints, tmp_path, monkeypatch, name, kind):
    """It is refused at once: nothing waits for whoever writes into a pipe, or reads gigabytes of nothing."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = tmp_path / name
    if name.startswith("checkpoints"):
        shutil.copytree(checkpoints, "checkpoints")
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "socket":
            listening.bind(name)
        elif kind == "50 GB":
            path.touch()
            os.truncate(path, 50 << 30)
        else:
            path.symlink_to("/dev/zero" if kind == "device" else path)
        found = outcome(lambda: READERS[name](tmp_path), path, tmp_path)
    assert found is None or int(found.state.step) == 1  # the older checkpoint
