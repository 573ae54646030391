"""Images from .npy and .npz files."""

import contextlib
import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.config import DataConfig
from vae_jax.data import load
from vae_jax.errors import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (10, 6, 6)).astype(np.uint8)


@pytest.fixture
def config(tmp_path):
    def make(name: str = "data.npz", **options) -> DataConfig:
        options = {"image_size": 6, "test": 2.0, **options}
        return DataConfig(source="array", path=str(tmp_path / name), cache_dir=str(tmp_path / "cache"), **options)

    return make


def refused(config: DataConfig, place: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        load(config)
    assert "\n" not in str(error.value)
    assert (place or config.path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("shape", [(10, 6, 6), (10, 6, 6, 1), (5, 6, 6, 3), (4, 6, 6, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_npy(config, shape, channels):
    images = np.random.RandomState(1).randint(0, 256, shape).astype(np.uint8)
    np.save(config("data.npy").path, images)
    data = load(config("data.npy", channels=channels))
    assert (data.name, len(data.train), data.image_shape) == ("data", shape[0] - 2, (6, 6, channels))
    assert data.train.labels is None
    if channels == 1 and shape[3:] in ((), (1,)):
        everything = np.sort(np.concatenate([data.train.images, data.test.images]), axis=0)
        np.testing.assert_array_equal(everything, np.sort(images.reshape(-1, 6, 6, 1), axis=0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_scaled_and_rounded(config, dtype):
    levels = (IMAGES / 255).astype(dtype)
    np.savez(config().path, images=levels)
    np.savez(config("bytes.npz").path, images=IMAGES)
    expected = load(config("bytes.npz"))
    data = load(config())
    tolerance = 0 if np.dtype(dtype).itemsize > 2 else 1
    assert np.abs(data.train.images.astype(int) - expected.train.images).max() <= tolerance
    np.savez(config().path, images=np.full((5, 6, 6), 0.5 / 255 + 1e-6, dtype))
    if tolerance == 0:
        assert (load(config()).train.images == 1).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_as_keras_names_it(config, save):
    labels = np.arange(10, dtype=np.uint8)[:, None]
    save(config().path, x_train=IMAGES, y_train=labels, x_test=IMAGES[:3], y_test=labels[:3])
    data = load(config())
    np.testing.assert_array_equal(data.train.images[..., 0], IMAGES)
    np.testing.assert_array_equal(data.train.labels, np.arange(10))
    np.testing.assert_array_equal(data.test.images[..., 0], IMAGES[:3])
    np.testing.assert_array_equal(data.test.labels, np.arange(3))
    assert data.test.labels.dtype == np.int64


def test_npz_with_other_names(config):
    np.savez(config().path, train=IMAGES, test=IMAGES[:4])
    assert (len(load(config()).train), len(load(config()).test)) == (10, 4)
    np.savez(config().path, images=IMAGES, labels=np.arange(10), more=np.zeros(3))
    lines = []
    data = load(config(), report=lines.append)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert any(line.endswith("ignoring more") for line in lines)


@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [
        (("X_train", "y_train"), ("X_test", "y_test"), ("X_val", "y_val")),
        (("train_images", "train_labels"), ("test_images", "test_labels"), ("val_images", "val_labels")),
        (("images_train", "labels_train"), ("images_test", "labels_test"), ("images_valid", "labels_valid")),
        (("images", "targets"), ("testing", "testing_y"), ("validation", "y_validation")),
        (("train", ""), None, ("val", "")),
        (("data", "labels"), None, None),
    ],
)
def test_npz_names_in_any_usual_way(config, train, test, validation):
    arrays = {}
    for start, names in ((0, train), (4, test), (7, validation)):
        if names:
            arrays |= {names[0]: IMAGES[start:]} | ({names[1]: np.arange(start, 10)} if names[1] else {})
    np.savez(config().path, **arrays)
    lines = []
    data = load(config(), report=lines.append)
    for start, names, split in ((4, test, data.test), (7, validation, data.validation)):
        if names:
            np.testing.assert_array_equal(split.images[..., 0], IMAGES[start:])
            assert (split.labels is None) == (not names[1])
            assert split.labels is None or split.labels.tolist() == list(range(start, 10))
    assert (len(data.test), data.validation is None) == (6 if test else 2, validation is None)
    assert len(data.train) == (10 if test else 8)
    assert not [line for line in lines if "ignoring" in line]


def test_npz_names_that_cannot_be_understood(config):
    np.savez(config().path, x_train=IMAGES, train=IMAGES)
    assert "expected one array of train images, found x_train and train" in refused(config())
    np.savez(config().path, x_test=IMAGES, x_val=IMAGES)
    assert "expected training images in an array named x_train" in refused(config())
    np.savez(config().path, train=IMAGES, test=IMAGES[:3], labels_val=np.arange(10), more_train_images=IMAGES)
    lines = []
    load(config(), report=lines.append)
    assert any(line.endswith("ignoring labels_val, more_train_images") for line in lines)


def test_of_very_many_arrays_the_first_are_named(config):
    def write(*images):
        with zipfile.ZipFile(config().path, "w") as archive:
            for name in (*(f"{number:07}" for number in range(2000)), "x" * 60_000):
                archive.writestr(f"{name}.npy", b"")
            for name in images:
                with archive.open(f"{name}.npy", "w") as file:
                    np.save(file, IMAGES)

    write()
    message = refused(config())
    assert "found 0000000, 0000001, " in message
    assert message.endswith(", and 1,981 more")
    write("images")
    lines = []
    load(config(), report=lines.append)
    (line,) = [line for line in lines if "ignoring" in line]
    assert line.endswith(", 0000019, and 1,981 more")
    assert len(line) < 10_000


def test_a_validation_split_is_not_held_out_once_more(config):
    np.savez(config().path, train=IMAGES, val=IMAGES[:4])
    assert "data.validation: expected 0, since data has a validation split of its own" in refused(
        config(validation=0.5), "data.validation"
    )


@pytest.mark.parametrize("name", ["data.npy", "data.npz"])
def test_bools_are_black_and_white(config, name):
    bits = IMAGES > 99
    np.save(config(name).path, bits) if name == "data.npy" else np.savez(config(name).path, images=bits)
    lines = []
    data = load(config(name, test=1.0), report=lines.append)
    order = np.sort(np.random.RandomState(0).permutation(10)[1:])
    np.testing.assert_array_equal(data.train.images[..., 0], np.where(bits, 255, 0)[order])
    assert any("False and True are taken for levels 0 and 255" in line for line in lines)


def test_only_what_is_resized_is_cached(config, tmp_path):
    np.savez(config().path, images=IMAGES)
    load(config())
    assert not (tmp_path / "cache").exists()
    load(config(image_size=8))
    assert (tmp_path / "cache").exists()


def test_fortran_order(config):
    np.save(config("data.npy").path, np.asfortranarray(IMAGES))
    data = load(config("data.npy", test=1.0))
    np.testing.assert_array_equal(
        data.train.images[..., 0], IMAGES[np.sort(np.random.RandomState(0).permutation(10)[1:])]
    )


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (IMAGES.astype(np.int64), "found int64; if 255 is white, take (images / 255)"),
        (IMAGES.astype(np.uint16), "found uint16; if 65535 is white, take (images / 65535)"),
        (IMAGES.astype(complex), "found complex"),
        (IMAGES / 1.0, "to 255.0; divide them by 255"),
        (IMAGES * 2.0, "levels from"),
        (IMAGES / 255 - 0.5, "take (images + 1) / 2"),
        (np.full((4, 6, 6), np.nan), "levels from nan"),
        (np.full((4, 6, 6), np.inf), "levels from inf"),
        (IMAGES[0], "found shape"),
        (np.zeros((4, 3, 6, 6), np.uint8), "found shape"),
        (np.zeros((2, 2, 6, 6, 3), np.uint8), "found shape"),
        (np.zeros((0, 6, 6), np.uint8), "expected an array of at least one number"),
        (np.zeros((4, 6, 0), np.uint8), "expected an array of at least one number"),
        (np.array([[["a"]]], object), "expected an array of at least one number, found object"),
        (np.array([[["a"]]]), "found <U1"),
    ],
)
@pytest.mark.parametrize("name", ["data.npy", "data.npz"])
def test_other_arrays_are_refused(config, images, reason, name):
    np.save(config(name).path, images) if name == "data.npy" else np.savez(config(name).path, images=images)
    assert reason in refused(config(name))


@pytest.mark.parametrize("labels", [np.arange(9), np.arange(10.0), np.arange(20).reshape(10, 2), np.int64(1)])
def test_other_labels_are_refused(config, labels):
    np.savez(config().path, images=IMAGES, labels=labels)
    assert "expected 10 whole numbers as labels" in refused(config())


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.full(10, 2**63 + 5, np.uint64), "found 9223372036854775813 to 9223372036854775813"),
        (np.arange(2**63 - 4, 2**63 + 6, dtype=np.uint64), "to 9223372036854775813"),
        (np.arange(-1, 9), "found -1 to 8"),
    ],
)
@pytest.mark.parametrize("size", [6, 8])  # read again each time, and cached
def test_labels_out_of_range_are_refused(config, labels, found, size):
    np.savez(config().path, images=IMAGES, labels=labels)
    assert found in refused(config(image_size=size))
    np.savez(config().path, images=IMAGES, labels=np.arange(10, dtype=np.uint64))
    assert load(config(image_size=size)).train.labels.dtype == np.int64


def test_other_files_are_refused(config, tmp_path):
    assert "found nothing" in refused(config("missing.npz"))
    (tmp_path / "folder.npz").mkdir()
    assert "found a folder" in refused(config("folder.npz"))
    (tmp_path / "text.txt").write_text("text")
    assert "found another file" in refused(config("text.txt"))
    np.savez(config().path, pictures=IMAGES)
    assert "found pictures" in refused(config())


def test_nothing_is_unpickled(config):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    array = np.empty((1, 1, 1), object)
    array[0, 0, 0] = Trap()
    np.savez(config().path, images=array)
    refused(config())
    np.save(config("data.npy").path, array)
    refused(config("data.npy"))


def npy_header(shape: str, descr: str = "|u1") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "shape", ["(1000000, 1000, 1000)", f"({10**30}, 6, 6)", "(-1, 6, 6)", "(4, 6, 6)", "(2, 6, 6)"]
)
@pytest.mark.parametrize("name", ["data.npy", "data.npz"])
def test_lying_headers_are_refused(config, shape, name):
    content = npy_header(shape) + bytes(3 * 36)
    with open(config(name).path, "wb") as file:
        if name == "data.npy":
            file.write(content)
        else:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("images.npy", content)
    assert "does not fit" in refused(config(name))


def test_a_zip_bomb_is_refused(config, monkeypatch):
    monkeypatch.setattr("vae_jax.data.npz.UNPACKED_LIMIT", 1 << 20)
    np.savez_compressed(config().path, images=np.zeros((2048, 32, 32), np.uint8))
    assert "expected at most 1,048,576 bytes" in refused(config())
    np.savez(config().path, images=np.zeros((2048, 32, 32), np.uint8))
    assert len(load(config()).test) == 2


def test_memory_is_asked_first(config, monkeypatch):
    np.savez_compressed(config().path, images=np.zeros((20_000, 32, 32), np.uint8))
    np.savez(config("floats.npz").path, images=np.zeros((6_000, 32, 32)))
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 19 << 20)
    assert "found a need of 20 MB" in refused(config(image_size=32))
    assert "found a need of 49 MB" in refused(config("floats.npz"))


def test_a_long_header_is_not_read(config):
    """Of format 2.0, it can claim 4 GB, and compressed it can have them."""
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 26)
    with zipfile.ZipFile(config().path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + b" " * (1 << 26))
    tracemalloc.start()
    try:
        assert "header of at most 10,000 bytes" in refused(config())
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(config, method):
    with zipfile.ZipFile(config().path, "w", method) as archive:
        archive.writestr("images.npy", npy_header("(3, 6, 6)") + bytes(108))
    assert "as np.savez or np.savez_compressed writes it" in refused(config())


def test_headers_of_python_2_are_read_without_a_warning(config):
    with open(config("data.npy").path, "wb") as file:
        file.write(npy_header("(3L, 6L, 6L)") + bytes(108))
    assert len(load(config("data.npy")).train) == 1


def test_special_files_and_huge_ones(config, tmp_path):
    os.mkfifo(tmp_path / "fifo.npy")
    assert "found a special file" in refused(config("fifo.npy"))
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    assert "found a special file" in refused(config("zero.npz"))
    for name, claimed in (("data.npy", 1 << 40), ("images.npy", 1 << 20)):
        with open(tmp_path / name, "wb") as file:
            file.write(npy_header(f"({claimed}, 1024, 1024)"))
            file.truncate(file.tell() + (1 << 40))  # a hole, which takes no place on the disk
    assert "does not fit" in refused(config("data.npy"))
    assert "of memory that are free" in refused(config("images.npy"))


@pytest.mark.parametrize("shape", [(1, 9_000, 9_000), (1, 1, 70_000)])
def test_images_are_no_larger_than_in_a_folder(config, shape):
    np.save(config("data.npy").path, np.zeros(shape, np.uint8))
    assert "found an image over that limit" in refused(config("data.npy"))


def test_a_home_folder(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "data.npy", IMAGES)
    assert len(load(DataConfig("array", path="~/data.npy", image_size=6, test=2.0)).train) == 8


def saved(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, images=IMAGES, labels=np.arange(10))
    return buffer.getvalue()


@settings(deadline=None)
@given(data=st.data(), compressed=st.booleans())
def test_damage_is_refused_or_harmless(tmp_path_factory, data, compressed):
    content = bytearray(saved(compressed))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = tmp_path_factory.mktemp("array") / "data.npz"
    path.write_bytes(content)
    config = DataConfig(source="array", path=str(path), image_size=6, test=2.0)
    with contextlib.suppress(UserError):
        assert len(load(config).train) == 8
