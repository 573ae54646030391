"""What all sources share: the registry, resizing, holding out, the cache."""

import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vae_jax.config import DataConfig, check_section
from vae_jax.data import SOURCES, Dataset, Split, load, read_images, resolve
from vae_jax.data.cache import cache_folder
from vae_jax.data.load import hold_out
from vae_jax.data.resize import Resizer
from vae_jax.device import memory
from vae_jax.errors import UserError

RANDOM = np.random.RandomState(0)
GREY = RANDOM.randint(0, 256, (30, 8, 8)).astype(np.uint8)


@pytest.fixture
def array_config(tmp_path):
    """Thirty grey images in a file, resized and cached."""
    path = tmp_path / "images.npz"
    np.savez(path, images=GREY, labels=np.arange(30))
    return DataConfig(source="array", path=str(path), image_size=16, test=0.1, cache_dir=str(tmp_path / "cache"))


def same(first: Dataset, second: Dataset) -> None:
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(first, split).images, getattr(second, split).images)
        np.testing.assert_array_equal(getattr(first, split).labels, getattr(second, split).labels)


# The registry


def test_importing_the_package_is_light():
    code = (
        "import sys, vae_jax.data; "
        "heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn', 'scipy', 'jax', 'requests', 'matplotlib'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_an_unknown_source_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"data\.source: .* found 'mnst' \(did you mean mnist\?\)"):
        load(DataConfig(source="mnst"))


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (DataConfig(source="folder"), "data.path"),
        (DataConfig(source="array"), "data.path"),
        (DataConfig(source="tfds"), "data.name"),
    ],
)
def test_an_impossible_option_is_refused(config, option):
    with pytest.raises(UserError, match=option):
        load(config)


# The digits


def test_digits():
    from sklearn.datasets import load_digits

    data = load(DataConfig(image_size=8))
    assert (data.name, len(data.train), len(data.test), data.validation) == ("digits", 1437, 360, None)
    assert data.class_names == tuple("0123456789")
    order = np.random.RandomState(0).permutation(1797)
    expected = np.round(load_digits().images * 255 / 16)
    np.testing.assert_array_equal(data.test.images[..., 0], expected[order[:360]])
    np.testing.assert_array_equal(data.test.labels, load_digits().target[order[:360]])
    np.testing.assert_array_equal(data.train.images[..., 0], expected[np.sort(order[360:])])
    assert data.train.images.max() == 255


def test_digits_are_not_cached(tmp_path):
    load(DataConfig(cache_dir=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


# Resizing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (5, 9), (5, 9, 3), (8, 8, 3), (8, 8, 4)])
def test_arrays_are_resized_as_pillow_does(shape, channels):
    images = RANDOM.randint(0, 256, (3, *shape)).astype(np.uint8)
    if shape[-1] == 4:
        images[..., 3] = 255  # opaque
    result = Resizer(8, channels).stack(images, 3)
    assert (result.shape, result.dtype) == ((3, 8, 8, channels), np.uint8)
    for image, row in zip(images, result, strict=True):
        picture = Image.fromarray(image[..., 0] if image.shape[-1:] == (1,) else image)
        picture = picture.convert("L" if channels == 1 else "RGB").resize((8, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(row, np.asarray(picture).reshape(8, 8, channels))


def test_what_has_the_right_size_and_mode_is_not_touched():
    images = GREY[..., None]
    assert np.shares_memory(Resizer(8, 1).stack(images, 30), images)
    assert np.shares_memory(Resizer(8, 1).stack(GREY, 30), GREY)


def test_the_number_of_images_is_checked():
    with pytest.raises(ValueError, match="zip"):
        Resizer(8, 1).stack(iter(GREY), 31)


# Size and channels where the configuration sets none


def write_images(root, *shapes: tuple[int, ...]):
    """PNG files of random levels, of these shapes."""
    root.mkdir(exist_ok=True)
    for number, shape in enumerate(shapes):
        Image.fromarray(RANDOM.randint(0, 256, shape).astype(np.uint8)).save(root / f"{number}.png")
    return DataConfig("folder", path=str(root), test=1.0, cache_dir=str(root.parent / "cache"))


@pytest.mark.parametrize(
    ("shapes", "expected", "said"),
    [
        ([(20, 20)] * 3, (20, 20, 1), "data.image_size 20 and data.channels 1, chosen for 3 images of 20x20, grey"),
        (
            [(20, 20, 3)] * 3,
            (20, 20, 3),
            "data.image_size 20 and data.channels 3, chosen for 3 images of 20x20, in col",
        ),
        ([(9, 9), (9, 9, 3)], (9, 9, 3), "of 9x9, in colour"),
        (
            [(20, 20), (24, 24), (24, 24), (31, 40)],
            (24, 24, 1),
            "of 20x20 to 40x31, grey; those not square (width x height)",
        ),
        (
            [(20, 30, 4)] * 2,
            (20, 20, 3),
            "of 30x20, in colour; those not square (width x height) are stretched",
        ),
        ([(70, 90), (300, 200)], (64, 64, 1), "of 90x70 to 200x300, grey; at most 64 is chosen, more must be set"),
        ([(40, 40), (600, 700)], (40, 40, 1), "of 40x40 to 700x600"),
    ],
)
def test_size_and_channels_are_the_images_own(tmp_path, shapes, expected, said):
    config, lines = write_images(tmp_path / "images", *shapes), []
    assert load(config, report=lines.append).image_shape == expected
    (line,) = (line for line in lines if "chosen" in line)
    assert said in line
    assert resolve(config).image_shape == expected
    # What is set stays so, and what is not is still chosen.
    assert load(replace(config, image_size=5)).image_shape == (5, 5, expected[2])
    assert load(replace(config, channels=1)).image_shape == (*expected[:2], 1)
    assert resolve(replace(config, image_size=5, channels=3, path="nowhere")).image_shape == (5, 5, 3)


def test_sizes_with_nothing_in_common_are_refused(tmp_path):
    config = write_images(tmp_path / "images", (8, 8), (64, 48), (8, 8))
    with pytest.raises(UserError, match=r"data\.image_size: .* found 8x8 \(.*0\.png\) to 48x64 \(.*1\.png\)"):
        load(config)
    assert load(replace(config, image_size=16)).image_shape == (16, 16, 1)


@pytest.mark.parametrize(("kind", "options"), [("png", {}), ("jpeg", {"quality": 50}), ("webp", {"quality": 50})])
def test_grey_images_stored_in_colour_are_grey(tmp_path, kind, options):
    grey = Image.fromarray(RANDOM.randint(0, 256, (20, 20)).astype(np.uint8)).convert("RGB")
    for number in range(2):
        grey.save(tmp_path / f"{number}.{kind}", **options)
    config = DataConfig("folder", path=str(tmp_path), image_size=20, cache_dir=str(tmp_path / "cache"))
    assert resolve(config).channels == 1
    Image.new("RGB", (20, 20), (200, 90, 0)).save(tmp_path / "2.png")
    assert resolve(config).channels == 3


def test_palettes_are_grey_or_in_colour(tmp_path):
    grey = Image.fromarray(GREY[0]).convert("P")
    grey.save(tmp_path / "0.png")
    config = DataConfig("folder", path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert resolve(config).image_shape == (8, 8, 1)
    grey.putpalette([255, 0, 0] * 256)
    grey.save(tmp_path / "0.png")
    assert resolve(config).image_shape == (8, 8, 3)


@pytest.mark.parametrize("shape", [(30, 8, 8), (30, 8, 8, 1), (30, 8, 8, 3), (30, 8, 12, 4)])
def test_an_arrays_size_and_channels(tmp_path, shape):
    np.save(tmp_path / "x.npy", RANDOM.randint(0, 256, shape).astype(np.uint8))
    config = DataConfig("array", path=str(tmp_path / "x.npy"), cache_dir=str(tmp_path / "cache"))
    assert load(config).image_shape == (8, 8, 3 if len(shape) == 4 and shape[3] > 1 else 1)
    assert (tmp_path / "cache").exists() == (shape[-1] == 4)  # what is not resized is not cached


def test_the_digits_stay_as_they_are():
    lines = []
    assert load(DataConfig(), report=lines.append).image_shape == (32, 32, 1)
    assert resolve(DataConfig("mnist")) == DataConfig("mnist", image_size=32, channels=1)
    assert lines == []


def test_image_files_are_read_as_the_data_set(tmp_path):
    config = write_images(tmp_path / "images", (20, 20, 3), (20, 20, 3))
    assert read_images([tmp_path / "images" / "0.png"], config).shape == (1, 20, 20, 3)
    assert read_images([tmp_path / "images" / "0.png"], DataConfig()).shape == (1, 32, 32, 1)


# Levels


@pytest.mark.parametrize("top", [0, 1, 16, 127, 128, 255])
def test_images_whose_white_is_not_255_are_reported(tmp_path, top):
    images = np.zeros((30, 8, 8), np.uint8)
    images[:, 3, 3] = top
    bright = np.full((30, 8, 8), 255, np.uint8)
    for train, test in ((images, images), (images, bright), (bright, images)):
        np.savez(tmp_path / "x.npz", train=train, test=test)
        lines = []
        for _ in range(2):  # made, and from the cache
            load(
                DataConfig(
                    "array", path=str(tmp_path / "x.npz"), image_size=9, channels=1, cache_dir=str(tmp_path / "cache")
                ),
                report=lines.append,
            )
        said = [line for line in lines if "brightest" in line]
        assert len(said) == (2 if top < 128 else 0)
        for line in said:
            assert ("among the train images" in line, "among the test images" in line) == (
                train is images,
                test is images,
            )
            assert (f"(images * (255 / {top}))" in line) == (top > 0)


# Holding out


@settings(deadline=None)
@given(st.integers(2, 300), st.floats(0.01, 0.99))
def test_a_fraction_is_held_out_rounded_up(total, fraction):
    split = Split(np.arange(total).astype(np.uint8).reshape(-1, 1, 1, 1), np.arange(total))
    count = math.ceil(round(fraction * total, 6))
    if count == total:
        with pytest.raises(UserError):
            hold_out(split, fraction, "data.test")
        return
    kept, held = hold_out(split, fraction, "data.test")
    assert (len(kept), len(held)) == (total - count, count)
    assert sorted([*kept.labels, *held.labels]) == list(range(total))
    assert (np.diff(kept.labels) > 0).all()
    np.testing.assert_array_equal(held.labels, np.random.RandomState(0).permutation(total)[:count])
    np.testing.assert_array_equal(held.images.ravel(), held.labels.astype(np.uint8))


def test_a_fraction_that_is_whole_but_for_rounding():
    assert 0.07 * 100 > 7
    assert len(hold_out(Split(np.zeros((100, 1, 1, 1), np.uint8)), 0.07, "data.test")[1]) == 7


@pytest.mark.parametrize("amount", [-1, -0.1, 0, 1.5, math.nan, math.inf, 30, 31, 0.999])
def test_an_impossible_amount_is_refused(amount):
    with pytest.raises(UserError, match=r"data\.test: expected"):
        hold_out(Split(GREY[..., None]), amount, "data.test")


def test_holding_out_everything_is_refused(array_config):
    for option in ("test", "validation"):
        with pytest.raises(UserError, match=rf"data\.{option}: "):
            load(replace(array_config, **{option: 30.0}))


def test_validation_and_test_are_disjoint(array_config):
    data = load(replace(array_config, test=5.0, validation=0.2))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 5, 5)
    assert sorted([*data.train.labels, *data.validation.labels, *data.test.labels]) == list(range(30))


def test_a_source_without_a_test_split_needs_one(array_config):
    with pytest.raises(UserError, match=r"data\.test: .* images has no test split"):
        load(replace(array_config, test=0.0))


# The cache


def cached_files(config):
    return sorted((cache_folder(config) / "images").iterdir())


def test_the_cache_gives_the_same(array_config, monkeypatch):
    lines = []
    first = load(array_config, report=lines.append)
    assert any("cached in" in line for line in lines)
    monkeypatch.setattr(Resizer, "stack", None)  # a second time nothing is resized
    same(first, load(array_config))
    other_split = load(replace(array_config, test=0.5))  # holding out comes after the cache
    assert len(other_split.test) == 15
    assert len(cached_files(array_config)) == 1


@pytest.mark.parametrize("change", [{"image_size": 12}, {"channels": 3}])
def test_the_key_holds_size_and_channels(array_config, change):
    load(array_config)
    data = load(replace(array_config, **change))
    assert data.image_shape[::2] == (change.get("image_size", 16), change.get("channels", 1))
    assert len(cached_files(array_config)) == 2


def test_a_changed_file_is_read_anew(array_config):
    first = load(array_config)
    np.savez(array_config.path, images=255 - GREY, labels=np.arange(30))
    assert (first.train.images != load(array_config).train.images).any()


def test_damage_anywhere_is_found(array_config):
    first = load(array_config)
    (file,) = cached_files(array_config)
    content = file.read_bytes()
    places = [*range(0, len(content), 97), *range(len(content) - 60, len(content), 7)]
    remade = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        lines = []
        same(first, load(array_config, report=lines.append))
        remade += any("making it again" in line for line in lines)
    assert remade > 0.8 * len(places)  # the rest is padding and file times in the zip format


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_cache_file_is_made_anew(array_config, size):
    first = load(array_config)
    (file,) = cached_files(array_config)
    content = file.read_bytes()
    file.write_bytes(content[:size])
    lines = []
    same(first, load(array_config, report=lines.append))
    assert any("making it again" in line for line in lines)
    assert len(file.read_bytes()) == len(content)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_of_zeros(shape):
    """An .npy file in parts, however many zeros it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    yield buffer.getvalue()
    for _ in range(shape[0]):
        yield bytes(math.prod(shape[1:]))


CACHED = {"train_images": np.zeros((30, 16, 16, 1), np.uint8), "train_labels": np.arange(30)}
TEXTS = {"class_names": None, "skipped": [], "notes": []}
NAMED = {"class_names": ["a", "b"], "skipped": [], "notes": []}


@pytest.mark.parametrize(
    ("arrays", "texts", "found"),
    [
        ({"train_images": np.zeros((30, 8, 8, 1), np.uint8)}, None, "found train_images"),
        ({"train_images": np.zeros((30, 8, 8, 1), np.uint8)}, TEXTS, "found uint8 (30, 8, 8, 1)"),
        ({"train_images": np.zeros((30, 16, 16, 1), np.int8)}, TEXTS, "found int8 (30, 16, 16, 1)"),
        ({"train_images": np.zeros((16, 16, 1), np.uint8)}, TEXTS, "found uint8 (16, 16, 1)"),
        ({"train_images": np.full((1, 16, 16, 1), None)}, TEXTS, "at least one number, found object"),
        ({**CACHED, "train_labels": np.arange(31)}, TEXTS, "found int64 (31,)"),
        ({**CACHED, "train_labels": np.arange(30, dtype=np.int32)}, TEXTS, "found int32 (30,)"),
        ({**CACHED, "train_labels": np.arange(30) + 10**12}, TEXTS, "found 1000000000000 to"),
        ({**CACHED, "train_labels": np.arange(30) - 1}, TEXTS, "found -1 to 28"),
        ({**CACHED, "more": np.zeros(3)}, TEXTS, "found text, train_images, train_labels, more"),
        (CACHED, NAMED, "a name for each label up to 29; found 2 names"),
        ({**CACHED, "train_labels": np.arange(30) % 2}, {**NAMED, "class_names": ["a", "a"]}, "found 'a' twice"),
        (
            {**CACHED, "train_labels": np.arange(30) % 2},
            {**NAMED, "class_names": [1, 2]},
            "class_names[0]: expected text; found 1",
        ),
        (CACHED, {**TEXTS, "class_names": "0123456789"}, "class_names: expected a list or null; found '0123456789'"),
        (CACHED, {**TEXTS, "skipped": "a"}, "skipped: expected a list; found 'a'"),
        (CACHED, {**TEXTS, "notes": [1]}, "notes[0]: expected text; found 1"),
        (CACHED, {**TEXTS, "notes": None}, "notes: expected a list; found null"),
        (CACHED, {"notes": []}, "class_names: expected a list or null; found nothing"),
        (CACHED, [], "expected an object; found a list of 0"),
        (CACHED, {**TEXTS, "notes": ["x" * (1 << 24)]}, "text: expected an array of cached images, found uint8 (16777"),
    ],
)
def test_other_arrays_in_the_cache_are_made_anew(array_config, arrays, texts, found):
    """And that is one line, whatever is wrong with them."""
    array_config = replace(array_config, channels=1)  # else how many there are is a line
    first = load(array_config)
    (file,) = cached_files(array_config)
    text = {} if texts is None else {"text": np.frombuffer(json.dumps(texts).encode(), np.uint8)}
    np.savez(file, **text, **arrays)
    lines = []
    same(first, load(array_config, report=lines.append))
    assert [line.endswith(": making it again") for line in lines] == [True, False]
    assert found in lines[0]
    assert str(file) in lines[0]
    lines = []
    same(first, load(array_config, report=lines.append))
    assert lines == []


@pytest.mark.parametrize(
    "kind", ["compressed", "long header", "deep header", "many members", "deep text", "huge", "pipe"]
)
def test_a_cache_file_that_holds_more_than_it_seems_is_not_read(array_config, kind, monkeypatch):
    array_config = replace(array_config, channels=1)  # else how many there are is a line
    first = load(array_config)
    (file,) = cached_files(array_config)
    whole = {f"{name}.npy": [npy(array)] for name, array in CACHED.items()}
    whole["text.npy"] = [npy(np.frombuffer(json.dumps(TEXTS).encode(), np.uint8))]
    head = b"\x93NUMPY\x02\x00"
    if kind == "compressed":
        whole["train_images.npy"] = npy_of_zeros((1 << 15, 16, 16, 1))  # 8 MB in 8 kB
        whole["train_labels.npy"] = [npy(np.zeros(1 << 15, np.int64))]
    elif kind == "long header":
        whole["train_images.npy"] = [head, (1 << 24).to_bytes(4, "little"), b" " * (1 << 24)]
    elif kind == "deep header":
        whole["train_images.npy"] = [head, (9000).to_bytes(4, "little"), b"(" * 9000]
    elif kind == "many members":
        whole |= {f"{number:0100}": [] for number in range(20_000)}
    elif kind == "deep text":
        whole["text.npy"] = [npy(np.full(1 << 20, ord("["), np.uint8))]
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "huge":  # a hole, which takes no place on the disk
        with file.open("wb") as opened:
            opened.truncate(1 << 40)
    else:
        deflated = zipfile.ZIP_DEFLATED if kind in ("compressed", "long header") else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", deflated) as archive:
            for name, parts in whole.items():
                with archive.open(name, "w") as member:
                    for part in parts:
                        member.write(part)
    lines = []
    monkeypatch.setattr("vae_jax.data.npz.READ_LIMIT", 1 << 20)
    tracemalloc.start()
    try:
        same(first, load(array_config, report=lines.append))
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert [line.endswith(": making it again") for line in lines] == [True, False]


def test_an_unwritable_cache_is_reported(array_config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    lines = []
    data = load(replace(array_config, cache_dir=str(tmp_path / "file")), report=lines.append)
    assert len(data.train) == 27
    assert any("not cached" in line for line in lines)


def test_a_failed_write_leaves_nothing(array_config, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    lines = []
    load(array_config, report=lines.append)
    assert any("no space left" in line for line in lines)
    assert cached_files(array_config) == []


def _load_in_process(config, answers):
    answers.put(load(config).train.images.sum())


def test_two_processes_at_once(array_config):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_load_in_process, args=(array_config, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sums[0] == sums[1] == load(array_config).train.images.sum()
    assert len(cached_files(array_config)) == 1


KILLED = """
import os, signal, sys
import numpy as np
from vae_jax.config import DataConfig
from vae_jax.data import load

whole = np.savez
def half(file, **arrays):
    whole(file, **arrays)
    file.flush()
    os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)
np.savez = half
load(DataConfig("array", path=sys.argv[1], image_size=16, test=0.1, cache_dir=sys.argv[2]))
"""


def test_a_process_killed_while_it_writes(array_config):
    """What it leaves is neither trusted, nor in the way, nor kept."""
    for _ in range(2):
        found = subprocess.run([sys.executable, "-c", KILLED, array_config.path, array_config.cache_dir], timeout=60)
        assert found.returncode == -signal.SIGKILL
    left = cached_files(array_config)
    assert sorted(path.name[-4:] for path in left if path.name[:5] != ".lock") == [
        ".tmp"
    ]  # the second removed the first's
    lines = []
    first = load(replace(array_config, channels=1), report=lines.append)
    assert len(lines) == 1
    assert "cached in" in lines[0]
    (file,) = cached_files(array_config)
    assert not file.name.startswith(".")
    same(first, load(array_config))


def test_what_others_left_is_removed_after_a_day(array_config):
    folder = cache_folder(array_config) / "images"
    folder.mkdir(parents=True)
    for name, hours in ((".old.npz.0a.tmp", 25), (".young.npz.0a.tmp", 1)):
        (folder / name).write_text("half")
        os.utime(folder / name, (time.time() - hours * 3600,) * 2)
    load(array_config)
    assert [path.name for path in cached_files(array_config) if path.name.startswith(".")] == [".young.npz.0a.tmp"]


WAITING = """
import sys
from pathlib import Path
from vae_jax.files.wait import locked

with locked(Path(sys.argv[1]), "it", lambda line: print(line, flush=True)) as alone:
    print(alone, flush=True)
    sys.stdin.readline()
"""


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path):
    path = tmp_path / "new" / "lock"

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", WAITING, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def said(process):
        return process.stdout.readline().strip()

    with start() as first:
        assert said(first) == "True"
        with start() as second:
            assert said(second) == "waiting for another process that prepares it"
            first.kill()
            assert said(second) == "True"
            with start() as third:
                assert said(third) == "waiting for another process that prepares it"
                second.communicate("\n", timeout=20)
                assert said(third) == "True"
                third.communicate("\n", timeout=20)
    assert list(path.parent.iterdir()) == []


def test_where_nothing_can_be_locked_each_works_for_itself(tmp_path):
    from vae_jax.files.wait import locked

    (tmp_path / "file").write_text("not a folder")
    with locked(tmp_path / "file" / "lock", "it", lambda line: None) as alone:
        assert not alone


# Memory


def test_what_does_not_fit_is_refused_before_it_is_made(array_config, monkeypatch):
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 30_000_000)
    with pytest.raises(
        UserError, match=r"data\.image_size 1024: 30 images of 1024x1024x1: expected to fit into the 30 MB"
    ):
        load(replace(array_config, image_size=1024))
    assert cached_files(array_config) == []
    monkeypatch.undo()
    load(replace(array_config, image_size=1024))
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 30_000_000)
    with pytest.raises(UserError, match=r"data\.image_size 1024: the images in .* a need of 31 MB"):
        load(replace(array_config, image_size=1024))


def test_what_is_held_out_is_a_copy(monkeypatch):
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 30_000_000)
    with pytest.raises(UserError, match=r"data\.test: another copy of 40 images"):
        hold_out(Split(np.zeros((40, 1000, 1000, 1), np.uint8)), 0.5, "data.test")


def test_memory_is_asked_of_the_system():
    assert 1 << 20 < memory.available() < 1 << 50
    memory.check(1, "nothing much")
    with pytest.raises(
        UserError, match=r"model: expected to fit into the .* MB of memory that are free, found a need of"
    ):
        memory.check(1 << 60, "model")


# What nothing looks at


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("mnist", skip_bad=True), "data.skip_bad: expected data.source folder; found mnist"),
        (DataConfig(path="x"), "data.path: expected data.source folder or array; found digits"),
        (DataConfig("array", name="x"), "data.name: expected data.source tfds; found array"),
    ],
)
def test_an_option_that_nothing_looks_at_is_refused(config, message):
    for use in (check_section, load):
        with pytest.raises(UserError) as error:
            use(config)
        assert str(error.value) == message


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(DataConfig()) == tmp_path / "xdg" / "vae_jax"
    assert cache_folder(DataConfig(cache_dir="~/mine")) == tmp_path / "mine"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder(DataConfig()) == tmp_path / ".cache" / "vae_jax"


def test_every_source_is_registered_under_its_documented_name():
    for name in SOURCES:
        assert name in DataConfig.__doc__


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    assert memory.available(tmp_path) == 100_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200\n")
    (tmp_path / "memory.current").write_text("700\n")
    for limit, free in (("1000", 500), ("max", 100_000), ("600", 100), ("300", 0), ("999999", 99_999 + 400)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory.available(tmp_path) == min(free, 100_000)


# Data sets of one's own

LEVELS = np.random.RandomState(3).randint(0, 256, (20, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (LEVELS / 255, None, "images: expected uint8 .*found float64 of shape .*from_arrays takes floats"),
        (LEVELS.astype(np.float32), None, "found float32"),
        (LEVELS.astype(np.int64), None, "found int64"),
        (LEVELS[..., 0], None, r"\(n, height, width, 1 or 3\); found uint8 of shape \(20, 4, 4\)"),
        (LEVELS[0], None, r"found uint8 of shape \(4, 4, 1\)"),
        (LEVELS[:0], None, "at least one image"),
        (LEVELS.repeat(2, 3), None, r"found uint8 of shape \(20, 4, 4, 2\)"),
        ([[1], [2, 3]], None, "images: expected an array"),
        (None, None, "images: expected uint8"),
        (LEVELS, np.arange(19), "labels: expected 20 whole numbers from 0 on.*found int64 of shape .19"),
        (LEVELS, [], r"labels: .*found float64 of shape \(0,\)"),
        (LEVELS, np.arange(20.0), "labels: .*found float64"),
        (LEVELS, ["cat"] * 20, "labels: .*found <U3 .*names go into class_names"),
        (LEVELS, np.arange(20) > 3, "labels: .*found bool"),
        (LEVELS, np.arange(20) - 1, "labels: expected numbers from 0 to 2147483647; found -1 to 18"),
        (LEVELS, np.full(20, 2**64 - 1, np.uint64), "found 18446744073709551615 to 18446744073709551615"),
    ],
)
def test_a_split_of_ones_own_is_checked(images, labels, found):
    with pytest.raises(UserError, match=found):
        Split(images, labels)


def test_a_split_takes_other_whole_numbers_and_other_arrays():
    for labels in (np.arange(20, dtype=np.uint8), np.arange(20, dtype=np.int32)[:, None], list(range(20))):
        split = Split(jnp.asarray(LEVELS), labels)
        assert (type(split.images), split.images.dtype, split.labels.dtype) == (np.ndarray, np.uint8, np.int64)
        np.testing.assert_array_equal(split.images, LEVELS)
        np.testing.assert_array_equal(split.labels, np.arange(20))
    assert Split(LEVELS).images is LEVELS


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"test": Split(LEVELS[:, :3])}, "test: expected images of 4x4x1, as the training images are; found 3x4x1"),
        ({"validation": Split(LEVELS.repeat(3, 3))}, "validation: expected images of 4x4x1, .* found 4x4x3"),
        ({"test": LEVELS}, "test: expected a Split; found ndarray"),
        ({"train": None}, "train: expected a Split; found NoneType"),
        ({"name": 3}, "name: expected the data set's name; found int"),
        ({"class_names": "abcd"}, "class_names: expected a name for each label; found 'abcd'"),
        ({"class_names": ("a", 1)}, "class_names: expected a name for each label"),
        ({"class_names": ("a", "b", "a", "c")}, "class_names: expected a name for one class only; found 'a' twice"),
        ({"class_names": ("a", "b")}, "class_names: expected a name for each label up to 3; found 2 names"),
        ({"train": Split(LEVELS), "test": Split(LEVELS), "class_names": ("a",)}, "class_names: expected none"),
    ],
)
def test_a_data_set_of_ones_own_is_checked(change, found):
    right = Dataset("mine", Split(LEVELS, np.arange(20) % 4), Split(LEVELS), class_names=["a", "b", "c", "d"])
    assert right.class_names == ("a", "b", "c", "d")
    with pytest.raises(UserError, match=found):
        replace(right, **change)


def test_a_data_set_from_arrays():
    labels = np.arange(20) % 4
    plain = Dataset.from_arrays(LEVELS, labels)
    kept, held = hold_out(Split(LEVELS, labels), 0.2, "data.test")  # what data.test does, and as much
    for found, expected in ((plain.train, kept), (plain.test, held)):
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)
    assert (plain.name, plain.validation, plain.class_names) == ("arrays", None, None)
    floats = [LEVELS / 255, np.float32(LEVELS / 255), (LEVELS / 255)[..., 0], jnp.asarray(LEVELS) / 255]
    for images in (LEVELS[..., 0], jnp.asarray(LEVELS), *floats):
        data = Dataset.from_arrays(images, test=images[:3], validation=4, name="mine", class_names=None)
        np.testing.assert_array_equal(data.test.images, LEVELS[:3])
        assert (len(data.train), len(data.validation), data.train.labels, data.name) == (16, 4, None, "mine")
    data = Dataset.from_arrays(
        LEVELS, labels, test=LEVELS[:2], test_labels=[3, 1], validation=LEVELS[2:3], validation_labels=[2],
        class_names=list("abcd"),
    )  # fmt: skip
    assert (data.class_names, data.test.labels.tolist(), data.validation.labels.tolist()) == (
        tuple("abcd"),
        [3, 1],
        [2],
    )
    with pytest.warns(UserWarning, match="^arrays: white is 255, .* level is 1 among the train images, 1 among"):
        Dataset.from_arrays(LEVELS % 2)
    data = Dataset.from_arrays(LEVELS % 2, report=lambda line: None)
    assert data.darkness() == replace(data, name="other").darkness() == []  # it has been said
    rgb = Dataset.from_arrays(np.full((5, 2, 3, 3), 0.5), test=1)
    assert (rgb.image_shape, rgb.train.images.max(), len(rgb.test)) == ((2, 3, 3), 128, 1)


class Unwilling(SimpleNamespace):
    """Like a tensor of PyTorch's that requires a gradient."""

    def __init__(self, levels):
        super().__init__(shape=levels.shape, dtype=levels.dtype)

    def __array__(self, *args, **kwargs):
        raise RuntimeError("call detach() first")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"train": LEVELS.astype(float)}, r"train: expected floats in \[0, 1\], found levels from 0.0 to 253.0"),
        ({"test": LEVELS / 250}, "test: expected floats in"),
        ({"train": LEVELS * np.nan}, "train: expected floats in .* from nan to nan"),
        ({"train": LEVELS.astype(int)}, r"train: expected images .*uint8 or floats in \[0, 1\]; found int64"),
        ({"train": LEVELS[0, :, :, 0]}, r"train: expected images \(n, height, width\) .*found uint8 of shape \(4, 4\)"),
        ({"train": LEVELS[:0]}, r"train: .*found uint8 of shape \(0, 4, 4, 1\)"),
        ({"test": LEVELS[:, :2]}, "test: expected images of 4x4x1"),
        ({"train_labels": np.arange(3)}, "train_labels: expected 20 whole numbers"),
        ({"test": LEVELS[:2], "test_labels": ["a", "b"]}, "test_labels: .*names go into class_names"),
        ({"test_labels": [1]}, "test_labels: expected the images that they are of as test; found none"),
        ({"validation_labels": [1]}, "validation_labels: expected the images"),
        ({"test": 0}, "test: expected a fraction below 1"),
        ({"test": 20}, "test: expected to leave images"),
        ({"test": None}, "test: expected images"),
        ({"test": True}, "test: expected images .*found bool"),
        ({"train": np.ma.masked_array(LEVELS, LEVELS > 9)}, "train: expected an array without a mask"),
        ({"train_labels": np.arange(len(LEVELS)) % 2, "class_names": {"b", "a"}}, "class_names: .*found a set"),
        ({"train_labels": np.arange(len(LEVELS)) % 2, "class_names": {"b": 1, "a": 0}}, "class_names: .*found a dict"),
        ({"validation": np.True_}, "validation: expected images .*found bool"),
        ({"train": Unwilling(LEVELS)}, "train: expected an array; call detach"),
        ({"train_labels": Unwilling(LEVELS)}, "train_labels: expected an array; call detach"),
    ],
)
def test_arrays_that_are_no_data_set(arguments, found):
    with pytest.raises(UserError, match=found):
        Dataset.from_arrays(**{"train": LEVELS, **arguments})


@pytest.mark.parametrize("sort", [np.sort, lambda labels: labels])
def test_some_of_the_images_are_spread_over_all(sort):
    """Of every class as many as of the others, about, whether they are sorted or take turns; the same every time."""
    labels = sort(np.arange(1000) % 10)
    split = Split(np.arange(1000).astype(np.uint8).reshape(-1, 1, 1, 1), labels)
    some = split.spread(200)
    assert len(some) == 200
    assert (np.abs(np.bincount(some.labels, minlength=10) - 20) <= 12).all()
    np.testing.assert_array_equal(some.images, split.spread(200).images)
    places = Split(np.zeros((1000, 1, 1, 1), np.uint8), np.arange(1000)).spread(7).labels
    assert [place * 7 // 1000 for place in places] == list(range(7))
    for count in (1000, 2000):
        assert split.spread(count) is split


def test_labels_are_matched_by_their_classes_names():
    train, test = Split(LEVELS, np.arange(20) % 2), Split(LEVELS[:3], [1, 0, 1])
    data = Dataset("mine", train, test, Split(LEVELS[:1]), ("dog", "bee"))
    found = data.renumbered(("ant", "bee", "cat", "dog"))
    assert found.class_names == ("ant", "bee", "cat", "dog")
    np.testing.assert_array_equal(found.train.labels, np.where(np.arange(20) % 2, 1, 3))
    assert (found.test.labels.tolist(), found.validation.labels, found.name) == ([1, 3, 1], None, "mine")
    with pytest.raises(UserError, match=r"mine: expected no other classes than 'ant', 'dog'; found 'bee'"):
        data.renumbered(("ant", "dog"))
    assert data.renumbered(None) is data
    nameless = replace(data, class_names=None)
    assert nameless.renumbered(("ant",)) is nameless
