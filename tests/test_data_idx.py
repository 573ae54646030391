"""MNIST and its relatives: the IDX reader, files at hand, downloads."""

import contextlib
import gzip
import multiprocessing
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import idx, idx_files, remote, serving, source, write
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.config import DataConfig
from vae_jax.data import SOURCES, download, load
from vae_jax.data.idx import NAMES, read_idx
from vae_jax.errors import UserError

FILES = idx_files()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A developer's proxy has no business with the loopback interface."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server(monkeypatch):
    """Serves the files of the source tiny."""
    with serving(dict(FILES)) as server:
        monkeypatch.setitem(SOURCES, "tiny", source(lambda: remote(FILES, server.url)))
        yield server


@pytest.fixture
def config(tmp_path):
    return DataConfig(source="tiny", cache_dir=str(tmp_path / "cache"), image_size=28)


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """The files of the source tiny in a folder, which cannot be downloaded."""
    monkeypatch.setitem(SOURCES, "tiny", source(lambda: remote(FILES, "http://127.0.0.1:1")))
    return write(FILES, tmp_path / "manual")


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# The reader


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_reads_what_was_written(shape, random):
    array = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    np.testing.assert_array_equal(read_idx(idx(array), len(shape), "file"), array)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from((1, 3)), st.booleans())
def test_any_bytes_are_read_or_refused(content, dimensions, zipped):
    with contextlib.suppress(UserError):
        assert read_idx(gzip.compress(content) if zipped else content, dimensions, "file").ndim == dimensions


@settings(deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(data):
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    content = bytearray(idx(array))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(UserError):
        np.testing.assert_array_equal(read_idx(bytes(content), 3, "file"), array)


@settings(deadline=None)
@given(st.integers(0, 200))
def test_a_truncated_file_is_refused(length):
    content = idx(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    with pytest.raises(UserError):
        read_idx(content[: min(length, len(content) - 1)], 3, "file")


def bad_idx(magic=(0, 0, 8, 3), shape=(2, 2, 2), body=8) -> bytes:
    return gzip.compress(bytes(magic) + struct.pack(f">{len(shape)}I", *shape) + bytes(body), mtime=0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (bad_idx(magic=(0, 0, 9, 3)), "IDX header"),
        (bad_idx(magic=(0, 0, 8, 1)), "IDX header"),
        (bad_idx(body=7), "found 7"),
        (bad_idx(body=9), "found more"),
        (bad_idx(shape=(0, 2, 2), body=0), "says 0 bytes"),
        (bad_idx(shape=(2**32 - 1,) * 3), "found 0"),
        (gzip.compress(b"", mtime=0), "found none"),
        (b"", "found none"),
        (b"\0\0\x08\x03", "gzip"),
        (bad_idx() + b"more", "gzip"),
    ],
)
def test_says_what_is_wrong(content, expected):
    with pytest.raises(UserError, match=expected) as error:
        read_idx(content, 3, "images.gz")
    assert message(error).startswith("images.gz: ")


def test_a_lying_header_reserves_no_memory():
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            read_idx(bad_idx(shape=(60000, 1000, 1000)), 3, "file")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_bomb_that_does_not_fit(monkeypatch):
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 1 << 20)
    with pytest.raises(UserError, match=r"^file, 33,554,432 bytes .* a need of 34 MB$"):
        read_idx(bad_idx(shape=(1 << 15, 32, 32), body=1 << 25), 3, "file")


# Files at hand


@pytest.mark.parametrize("place", [".", "tiny"])
def test_files_at_hand(place, manual, config, tmp_path):
    folder = write(FILES, tmp_path / "other" / place)
    if place == "tiny":  # preferred to these
        write(dict.fromkeys(FILES, b"wrong"), folder.parent)
    data = load(DataConfig(**{**vars(config), "manual_dir": str(tmp_path / "other")}))
    expected = [read_idx(FILES[name], 3 if "images" in name else 1, name) for name in NAMES]
    np.testing.assert_array_equal(data.train.images[..., 0], expected[0])
    np.testing.assert_array_equal(data.train.labels, expected[1])
    np.testing.assert_array_equal(data.test.images[..., 0], expected[2])
    np.testing.assert_array_equal(data.test.labels, expected[3])
    assert (data.name, data.class_names) == ("tiny", tuple("0123456789"))


def manual_config(config: DataConfig, folder: Path) -> DataConfig:
    return DataConfig(**{**vars(config), "manual_dir": str(folder)})


def test_missing_files_are_listed_even_where_the_images_are_cached(manual, config):
    load(manual_config(config, manual))
    (manual / NAMES[1]).unlink()
    (manual / NAMES[2]).unlink()
    with pytest.raises(UserError, match="missing") as error:
        load(manual_config(config, manual))
    assert message(error).endswith(f"missing {NAMES[1]}, {NAMES[2]}")
    with pytest.raises(UserError, match="missing"):
        load(manual_config(config, manual / "nowhere"))


def test_changed_files_are_verified_again(manual, config):
    load(manual_config(config, manual))
    content = bytearray(FILES[NAMES[0]])
    content[-1] ^= 1
    (manual / NAMES[0]).write_bytes(content)
    with pytest.raises(UserError, match="expected tiny's, sha256") as error:
        load(manual_config(config, manual))
    digests = re.findall(r"\b[0-9a-f]{64}\b", message(error))
    assert len(set(digests)) == 2
    assert str(manual / NAMES[0]) in message(error)


def test_a_relative_s_files_are_recognised(manual, config, monkeypatch):
    """The three real data sets use the same file names."""
    relative = idx_files(seed=1)
    monkeypatch.setattr("vae_jax.data.idx.FAMILY", (source(lambda: remote(relative, "http://127.0.0.1:1")),))
    with pytest.raises(UserError, match=f"which is tiny's {NAMES[0]}$"):
        load(manual_config(config, write(relative, manual)))


def test_files_of_another_size_are_not_read_to_the_end(manual, config):
    with (manual / NAMES[0]).open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no place on the disk
    with pytest.raises(UserError, match=r"expected tiny's, [\d,]+ bytes, found 1,099,511,627,776$") as error:
        load(manual_config(config, manual))
    assert str(manual / NAMES[0]) in message(error)


def test_special_files_are_no_files(manual, config):
    (manual / NAMES[0]).unlink()
    os.mkfifo(manual / NAMES[0])
    (manual / NAMES[1]).unlink()
    (manual / NAMES[1]).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"missing {NAMES[0]}, {NAMES[1]}$"):
        load(manual_config(config, manual))


def _load_in_process(files, url, config, answers):
    SOURCES["tiny"] = source(lambda: remote(files, url))
    lines = []
    data = load(config, report=lines.append)
    answers.put((data.train.images.tobytes(), data.test.images.tobytes(), lines))


@pytest.mark.parametrize("place", ["manual", "downloaded"])
def test_two_processes_on_an_empty_cache(manual, config, tmp_path, place):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with serving(dict(FILES)) as server:
        if place == "manual":
            config = manual_config(config, manual)
        config = replace(config, image_size=30)
        processes = [
            context.Process(target=_load_in_process, args=(FILES, server.url, config, answers)) for _ in range(2)
        ]
        for process in processes:
            process.start()
        first, second = (answers.get(timeout=100) for _ in processes)
        for process in processes:
            process.join()
        assert first[:2] == second[:2]
        assert sum("cached in" in line for line in first[2] + second[2]) == 1
        if place == "downloaded":
            assert all(server.requests.count(name) == 2 for name in NAMES)  # the probe, and the download
        images = load(config).train.images if place == "manual" else None
        assert images is None or images.tobytes() == first[0]
    assert len(leftovers(tmp_path / "cache" / "images")) == 1
    assert leftovers(tmp_path / "cache" / "downloads") == ([] if place == "manual" else sorted(NAMES))


def test_what_a_killed_download_left_is_removed(server, config, tmp_path):
    left = tmp_path / "cache" / "downloads" / "tiny" / ".new-killed"
    write({"half": b""}, left)
    load(config)
    assert not left.exists()


def test_labels_must_be_as_many_as_images(tmp_path, config, monkeypatch):
    files = {**FILES, NAMES[1]: idx(np.zeros(19, np.uint8))}
    monkeypatch.setitem(SOURCES, "tiny", source(lambda: remote(files, "http://127.0.0.1:1")))
    with pytest.raises(UserError, match=r"found 20 in .* and 19 in"):
        load(manual_config(config, write(files, tmp_path / "manual")))


def test_the_registered_checksums_are_complete():
    digests = set()
    for name in ("mnist", "fashion_mnist", "kmnist"):
        files = SOURCES[name].files()
        assert sorted(file.name for file in files) == sorted(NAMES)
        digests |= {file.sha256 for file in files}
    assert len(digests) == 12


# Downloads


def test_downloads_once(server, config, tmp_path):
    lines = []
    first = load(config, report=lines.append)
    assert any("downloading tiny" in line for line in lines)
    asked = len(server.requests)
    assert set(server.requests) == set(NAMES)
    again = load(config)
    smaller = load(DataConfig(**{**vars(config), "image_size": 14}))  # other images of the same files
    assert len(server.requests) == asked
    assert smaller.train.images.shape == (20, 14, 14, 1)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert leftovers(tmp_path / "cache" / "downloads") == sorted(NAMES)
    assert [path.name for path in (tmp_path / "cache" / "downloads").iterdir()] == ["tiny"]


def test_a_damaged_download_is_fetched_again(server, config, tmp_path):
    file = tmp_path / "cache" / "downloads" / "tiny" / NAMES[0]
    write({**FILES, NAMES[0]: b"damaged"}, file.parent)
    load(config)
    assert set(server.requests) == {NAMES[0]}
    assert file.read_bytes() == FILES[NAMES[0]]


def test_an_unwritable_cache_is_reported_and_not_needed(server, config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    lines = []
    data = load(DataConfig(**{**vars(config), "cache_dir": str(tmp_path / "file")}), report=lines.append)
    assert len(data.train) == 20
    assert any("not kept" in line for line in lines)
    assert any("not cached" in line for line in lines)


def failing(config: DataConfig, tmp_path: Path) -> str:
    """The message with which a download fails; nothing half-written may be left."""
    with pytest.raises(UserError) as error:
        load(config)
    text = message(error)
    for option in ("data.manual_dir", "digits", "folder", "array", *NAMES):
        assert option in text
    left = leftovers(tmp_path / "cache")
    assert set(left) <= set(NAMES)
    for name in left:
        assert (tmp_path / "cache" / "downloads" / "tiny" / name).read_bytes() == FILES[name]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".new")]
    return text


def test_a_missing_file(server, config, tmp_path):
    server.broken[NAMES[2]] = 404
    assert "404" in failing(config, tmp_path)
    assert leftovers(tmp_path / "cache") == sorted(NAMES[:2])


def test_a_wrong_checksum(server, config, tmp_path):
    server.files[NAMES[0]] = FILES[NAMES[0]][:-1] + b"!"
    assert "checksum" in failing(config, tmp_path)
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("broken", ["silent", "stalls"])
def test_a_download_that_stands_still(server, config, tmp_path, monkeypatch, broken):
    monkeypatch.setattr(download, "STALL_LIMIT", 0.3)
    server.broken[NAMES[0]] = broken
    server.from_request = 2  # after the probe
    start = time.monotonic()
    assert "not downloaded" in failing(config, tmp_path)
    assert time.monotonic() - start < 5


def test_a_server_that_never_answers_is_given_up_within_ten_seconds(server, config, tmp_path):
    server.broken[NAMES[0]] = "silent"
    start = time.monotonic()
    assert "cannot be reached" in failing(config, tmp_path)
    assert time.monotonic() - start < 10


def test_a_name_look_up_that_hangs(config, tmp_path, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(download, "ANSWER_LIMIT", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: ended.wait(30) or [])
    monkeypatch.setitem(SOURCES, "tiny", source(lambda: remote(FILES, "http://data.invalid")))
    assert "no answer within 0.3 s" in failing(config, tmp_path)
    ended.set()


def test_a_refused_connection(config, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening
        port = closed.getsockname()[1]
        monkeypatch.setitem(SOURCES, "tiny", source(lambda: remote(FILES, f"http://127.0.0.1:{port}")))
        start = time.monotonic()
        assert "ConnectionError" in failing(config, tmp_path)
        assert time.monotonic() - start < 5


def test_requests_are_limited_only_while_downloading():
    import requests

    before = requests.Session.request
    with download.limited_requests():
        assert requests.Session.request is not before
    assert requests.Session.request is before


# The real data

MNIST_DIR = os.environ.get("VAE_JAX_MNIST_DIR")
real = pytest.mark.skipif(not MNIST_DIR, reason="VAE_JAX_MNIST_DIR does not name a folder with MNIST's four files")


@pytest.fixture(scope="module")
def mnist_config(tmp_path_factory):
    return DataConfig(source="mnist", manual_dir=MNIST_DIR, cache_dir=str(tmp_path_factory.mktemp("cache")))


def bilinear(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlarging, written in another way: triangle weights, each pass rounded to 8 bits."""
    places = (np.arange(size) + 0.5) * images.shape[1] / size - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(images.shape[1])))
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    rows = np.floor(images.astype(np.float32) @ weights.T + 0.5)
    return np.floor(weights @ rows + 0.5)


@real
def test_real_mnist_at_32(mnist_config):
    """All 70,000 images are the bilinear enlargement, exactly (1/255 off would be accepted)."""
    data = load(mnist_config)
    raw = load(DataConfig(**{**vars(mnist_config), "image_size": 28}))
    assert (len(data.train), len(data.test), data.image_shape) == (60_000, 10_000, (32, 32, 1))
    assert raw.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    np.testing.assert_array_equal(np.bincount(raw.test.labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    for large, small in ((data.train, raw.train), (data.test, raw.test)):
        np.testing.assert_array_equal(large.labels, small.labels)
        for start in range(0, len(large), 5000):
            part = slice(start, start + 5000)
            expected = bilinear(small.images[part, ..., 0], 32)
            np.testing.assert_array_equal(large.images[part, ..., 0], expected)


@real
def test_real_mnist_too_large_for_memory(mnist_config, monkeypatch):
    monkeypatch.setattr("vae_jax.device.memory.available", lambda: 20_000_000_000)
    with pytest.raises(UserError, match=r"data\.image_size 1024: 60,000 images .* found a need of 62,915 MB$"):
        load(DataConfig(**{**vars(mnist_config), "image_size": 1024}))


@real
def test_real_mnist_from_the_cache_is_quick(mnist_config):
    """A second process reads it without tensorflow-datasets."""
    load(mnist_config)
    code = (
        "import sys, time; from vae_jax.config import DataConfig; from vae_jax.data import load; "
        "start = time.time(); "
        f"load(DataConfig(source='mnist', manual_dir={MNIST_DIR!r}, cache_dir={mnist_config.cache_dir!r})); "
        "assert 'tensorflow_datasets' not in sys.modules; print(time.time() - start)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 2  # a tenth of a second on an idle machine


@real
def test_mnist_is_not_taken_for_fashion_mnist(mnist_config):
    with pytest.raises(UserError, match=r"expected fashion_mnist's, .* which is mnist's"):
        load(DataConfig(**{**vars(mnist_config), "source": "fashion_mnist"}))
