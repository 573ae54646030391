"""Compiled programs are kept between commands: whatever becomes of their files, a command does its work in silence."""

import ast
import os
import shutil
import stat
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vae_jax.cli import compiled

SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
ZSTANDARD = any(find_spec(name) for name in ("zstandard", "compression"))
NAME = f"compiled-{os.geteuid()}"


class Commands:
    """Commands, one after the other, as far as compiled programs go; each compiles one, or finds it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.large = False  # the program, beyond what a disk gives at once

    def run(self) -> None:
        self.start()
        self.compile()

    def start(self) -> None:
        for name in SETTINGS:
            os.environ.pop(name, None)
        compiled.keep_compiled()
        jax.config.update("jax_compilation_cache_dir", os.environ.get(SETTINGS[0]))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        compilation_cache.reset_cache()

    def compile(self) -> None:
        def program(x):
            return x[jnp.argsort(x)] if self.large else 4 - x

        np.testing.assert_array_equal(jax.jit(program)(np.array([3, 2, 1], np.float32)), [1, 2, 3])

    @property
    def entry(self) -> Path:
        (path,) = self.folder.glob("jit_program-*-cache")
        return path


@pytest.fixture
def commands(tmp_path, monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("warnings.showwarning", lambda message, *rest: pytest.fail(f"shown: {message}"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: jax.config.values[name.lower()] for name in SETTINGS}
    yield Commands(tmp_path / "vae_jax" / NAME)
    for name, value in before.items():
        jax.config.update(name.lower(), value)
    compilation_cache.reset_cache()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # What zstandard packs has no checksum, and jax takes it where it is there: zlib otherwise.
    content[0 if ZSTANDARD else len(content) // 2] ^= 1
    path.write_bytes(content)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def no_program(path: Path) -> None:
    path.write_bytes(zlib.compress(b"no program"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("")


def a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent.parent / "elsewhere")


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    path.chmod(0)


FAULTS = [truncated, emptied, flipped, zeroed, no_program, a_folder, a_dangling_link, a_circle, a_pipe, unreadable]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_entry_that_cannot_be_read_is_written_anew(commands, fault, capfd):
    commands.run()
    whole = commands.entry.read_bytes()
    fault(commands.entry)
    commands.run()
    assert stat.S_ISREG(commands.entry.lstat().st_mode)
    assert len(commands.entry.read_bytes()) == pytest.approx(len(whole), abs=99)  # times of day are in it
    written = commands.entry.stat().st_mtime_ns
    commands.run()
    assert commands.entry.stat().st_mtime_ns == written  # it was found
    assert {path.name for path in commands.folder.parent.iterdir()} == {NAME}
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs to mount a small disk, which root may")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("full", ["space", "inodes"])
def test_on_a_full_disk_one_line_says_so_and_no_part_of_a_file_stays(commands, small_disk, monkeypatch, capfd, full):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    commands.folder, commands.large = small_disk / "vae_jax" / NAME, True
    commands.run()
    size = commands.entry.stat().st_size
    commands.entry.unlink()
    filling = small_disk / "filling"
    filling.mkdir()
    free = os.statvfs(small_disk)
    if full == "space":
        assert size > free.f_bsize
        (filling / "file").write_bytes(bytes((free.f_bavail - 1) * free.f_bsize))  # there is room for a part of it
    else:
        for number in range(free.f_favail):
            (filling / str(number)).touch()
    for _ in range(2):
        commands.run()
        out, errors = capfd.readouterr()
        assert out == ""
        assert errors == (
            f"vae-jax: compiled programs are not kept in {commands.folder} (OSError: [Errno 28] No space left on "
            f"device); the next command compiles them again\n"
        )
        assert list(commands.folder.iterdir()) == []
    for path in filling.iterdir():
        path.unlink()
    for _ in range(2):
        commands.run()
    assert commands.entry.stat().st_size == pytest.approx(size, abs=99)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("used", "instead"), [(True, "nothing"), (True, "a file"), (True, "a file for a moment"), (False, "a file")]
)
def test_where_the_folder_goes_away_meanwhile_one_line_says_so(commands, capfd, used, instead):
    commands.start()
    if used:
        commands.compile()
    shutil.rmtree(commands.folder)
    if instead != "nothing":
        commands.folder.write_text("")
    for _ in range(3):
        commands.compile()
    out, errors = capfd.readouterr()
    assert out == ""
    assert errors.startswith(f"vae-jax: compiled programs are not kept in {commands.folder} (")
    assert errors.endswith("); the next command compiles them again\n")
    assert len(errors.splitlines()) == 1
    if instead == "a file for a moment":
        commands.folder.unlink()
    commands.run()
    assert commands.folder.is_file() if instead == "a file" else commands.entry.is_file()
    assert capfd.readouterr() == ("", "")


def test_the_programs_not_used_for_longest_go_first(commands, monkeypatch):
    commands.run()
    size = commands.entry.stat().st_size
    for number in range(4):
        path = commands.folder / f"jit_old-{number}-cache"
        path.write_bytes(bytes(1000))
        os.utime(path, (1e9 + number, 1e9 - number))
    monkeypatch.setattr(compiled, "LIMIT", size + 2500)
    commands.run()
    assert sorted(path.name for path in commands.folder.glob("jit_old*")) == ["jit_old-2-cache", "jit_old-3-cache"]
    monkeypatch.setattr(compiled, "LIMIT", 1)
    commands.run()
    assert list(commands.folder.iterdir()) == [commands.entry]  # written again


def test_other_warnings_are_shown(commands, monkeypatch):
    shown = []
    monkeypatch.setattr("warnings.showwarning", lambda message, *rest: shown.append(str(message)))
    commands.run()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Error reading something else", stacklevel=1)
    assert shown == ["Error reading something else"]


def settings(**environment) -> list[str | None]:
    """What jax's cache is set to by a command, started with this environment."""
    code = (
        "import os, sys; sys.argv = ['vae-jax', 'sample', 'nowhere']\n"
        "from vae_jax import cli\n"
        "assert cli.main() == 2\n"
        "assert 'jax' not in sys.modules\n"
        f"print([os.environ.get(name) for name in {SETTINGS}])"
    )
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=True
    )
    return ast.literal_eval(done.stdout)


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path):
    (tmp_path / "vae_jax" / NAME).mkdir(parents=True)
    (tmp_path / "vae_jax" / NAME).chmod(0o777)
    folder, limit, least = settings(XDG_CACHE_HOME=str(tmp_path))
    assert folder == str(tmp_path / "vae_jax" / NAME)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700  # what others could write would run as this user
    assert limit is None  # the limit is ours
    assert 0 < float(least) < 0.5
    # A cache the user has set is left as it is, and one that cannot be written is left out.
    assert settings(JAX_COMPILATION_CACHE_DIR="elsewhere") == ["elsewhere", None, None]
    assert settings(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_MAX_SIZE="0") == [None, "0", None]
    (tmp_path / "file").write_text("")
    assert settings(XDG_CACHE_HOME=str(tmp_path / "file")) == [None, None, None]
