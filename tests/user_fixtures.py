"""Other users: this process becomes them for a while, which root may; elsewhere the tests that need it are skipped."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FIRST, SECOND, GROUP = 61001, 61002, 61000


@contextmanager
def user(number: int, umask: int) -> Iterator[None]:
    """Within it this process is another user's, a member of the group.

    What it has not imported before may lie where only root can read.
    """
    groups, mask = os.getgroups(), os.umask(umask)
    os.setgroups([GROUP])
    os.setresgid(number, number, 0)
    os.setresuid(number, number, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
        os.umask(mask)


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that every user may read, where this process can become other users."""
    if not hasattr(os, "setresuid") or os.geteuid() != 0:
        pytest.skip("needs to become other users, which root may")
    folder = Path(tempfile.mkdtemp(prefix="vae_jax-users-"))
    try:
        folder.chmod(0o755)
        try:
            with user(FIRST, 0o022):
                readable = os.access(folder, os.R_OK | os.X_OK)
        except OSError as error:  # in a container that knows one user only
            pytest.skip(f"needs to become other users: {error}")
        if not readable:
            pytest.skip(f"needs a folder for temporary files that every user may read; {folder} is none")
        yield folder
    finally:
        shutil.rmtree(folder)
