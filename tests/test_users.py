"""Several users of one machine: what they share has the mode that their umask says, and nobody's file is taken over."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import idx_files, remote, source, write
from user_fixtures import FIRST, GROUP, SECOND, public_folder, user

from vae_jax.cli import compiled
from vae_jax.config import DataConfig
from vae_jax.data import load
from vae_jax.files.wait import locked

IMAGES = np.random.RandomState(0).randint(0, 256, (20, 8, 8)).astype(np.uint8)


@pytest.fixture
def place():
    with public_folder() as folder:
        yield folder


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


class Cache:
    """A shared cache folder, and what one user after the other loads with it."""

    def __init__(self, place: Path, permissions: int):
        self.folder = place / "cache"
        self.folder.mkdir()
        os.chown(self.folder, 0, GROUP)
        self.folder.chmod(permissions)
        np.savez(place / "images.npz", images=IMAGES, labels=np.arange(20))
        self.config = DataConfig(
            "array", path=str(place / "images.npz"), image_size=16, channels=1, test=2.0, cache_dir=str(self.folder)
        )
        self.expected = load(replace(self.config, cache_dir=str(place / "warm")))  # and all is imported

    def load(self, number: int, umask: int, size: int = 16) -> list[str]:
        lines: list[str] = []
        with user(number, umask):
            data = load(replace(self.config, image_size=size), report=lines.append)
        if size == 16:
            np.testing.assert_array_equal(data.train.images, self.expected.train.images)
        return lines

    def file(self, size: int = 16) -> Path:
        (path,) = (self.folder / "images").glob(f"array-{size}x*.npz")
        return path


@pytest.fixture
def shared(place):
    """A folder as groups share it: what is made in it belongs to the group."""
    return Cache(place, 0o2775)


def test_who_shares_a_cache_reads_what_another_has_made(shared):
    (line,) = shared.load(FIRST, 0o002)
    assert line == f"cached in {shared.file()}"
    assert shared.load(SECOND, 0o002) == []
    assert shared.load(FIRST, 0o002) == []
    assert (mode(shared.file()), mode(shared.file().parent)) == ("664", "2775")
    assert (shared.file().stat().st_uid, shared.file().stat().st_gid) == (FIRST, GROUP)
    # The folder is the group's: the second writes there too, and mends what is damaged.
    assert shared.load(SECOND, 0o002, size=12) == [f"cached in {shared.file(12)}"]
    shared.file().write_bytes(b"damaged")
    damaged, cached = shared.load(SECOND, 0o002)
    assert damaged.endswith("making it again")
    assert cached.startswith("cached in")
    assert shared.load(FIRST, 0o002) == []
    assert mode(shared.file()) == "664"


@pytest.mark.parametrize("permissions", [0o2775, 0o1777])
def test_a_folder_that_only_its_user_writes_is_read_by_others(place, permissions):
    cache = Cache(place, permissions)
    cache.load(FIRST, 0o022)
    assert (mode(cache.file()), mode(cache.file().parent)[-3:]) == ("644", "755")
    assert cache.load(SECOND, 0o022) == []
    (line,) = cache.load(SECOND, 0o022, size=12)
    assert line.startswith(f"the images are not cached in {cache.folder}/images/array-12x12x1-")
    assert line.endswith("(Permission denied)")
    assert len(list(cache.file().parent.iterdir())) == 1


@pytest.mark.parametrize("theirs", [True, False])
def test_what_may_not_be_read_is_left_as_it_is(shared, theirs):
    """Whether the file is another user's, or the folder too."""
    if not theirs:
        shared.load(SECOND, 0o002, size=12)
    shared.load(FIRST, 0o077)
    assert (mode(shared.file()), mode(shared.file().parent)) == ("600", "2700" if theirs else "2775")
    before = shared.file().stat()
    line = f"{shared.file()}: cannot be read (Permission denied) and is left as it is: the images are not cached"
    assert shared.load(SECOND, 0o077) == [line]
    assert shared.file().stat() == before
    assert shared.load(FIRST, 0o077) == []


def test_a_lock_that_another_user_cannot_take_keeps_nobody_waiting(shared):
    shared.load(SECOND, 0o002, size=12)  # the folder is the group's
    (line,) = shared.load(FIRST, 0o022)
    digest = shared.file().stem.rsplit("-")[-1]
    shared.file().unlink()
    with user(FIRST, 0o022):
        lock = locked(shared.file(12).with_name(f".lock-{digest}"), "it", pytest.fail)
        assert lock.__enter__()
    assert shared.load(SECOND, 0o022) == [line]
    assert shared.file().stat().st_uid == SECOND
    with user(FIRST, 0o022):
        lock.__exit__(None, None, None)
    assert {path.name[:6] for path in shared.file().parent.iterdir()} == {"array-"}


def test_downloaded_files_are_read_or_left(place, monkeypatch):
    """Whole ones that another user has downloaded are read; those that may not be read are downloaded elsewhere."""
    files = idx_files()
    idx = source(lambda: remote(files, "http://localhost"))
    fetched = []

    def download(wanted, folder):
        fetched.append(folder)
        write({file.name: files[file.name] for file in wanted}, folder)

    monkeypatch.setattr("vae_jax.data.idx.download", download)
    config = DataConfig("mnist", cache_dir=str(place / "cache"))
    (place / "cache").mkdir()
    (place / "cache").chmod(0o1777)
    kept = place / "cache" / "downloads" / "tiny"
    with user(FIRST, 0o022):
        assert idx._downloaded(config, lambda line: None) == files
    assert fetched.pop() == kept
    with user(SECOND, 0o022):
        assert idx._downloaded(config, pytest.fail) == files
    assert fetched == []
    kept.chmod(0o777)
    before = {path: path.chmod(0o600) or path.stat() for path in kept.iterdir()}
    lines = []
    with user(SECOND, 0o022):
        assert idx._downloaded(config, lines.append) == files
    assert "Permission denied" in lines[0]
    assert lines[0].startswith("the downloaded files are not kept")
    assert kept not in fetched
    assert {path: path.stat() for path in kept.iterdir()} == before


def test_each_user_has_compiled_programs_of_their_own(place, monkeypatch):
    """What is in the folder runs as the user who starts a command."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setattr("warnings.showwarning", None)
    place.chmod(0o1777)

    def folder(number: int) -> str | None:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        with user(number, 0o002):
            compiled.keep_compiled()
        return os.environ.get("JAX_COMPILATION_CACHE_DIR")

    (place / "vae_jax").mkdir()
    (place / "vae_jax").chmod(0o777)
    assert folder(FIRST) == str(place / "vae_jax" / f"compiled-{FIRST}")
    assert mode(place / "vae_jax" / f"compiled-{FIRST}") == "700"
    (place / "vae_jax" / f"compiled-{SECOND}").mkdir()  # by root, under another user's name
    (place / "vae_jax" / f"compiled-{SECOND}").chmod(0o777)
    assert folder(SECOND) is None
