"""The user's folders for what is kept between runs."""

import os
from pathlib import Path


def user_cache() -> Path | None:
    """The default folder for downloads, resized images and compiled programs; None without a home."""
    return _users("XDG_CACHE_HOME", "~/.cache")


def user_state() -> Path | None:
    """The folder of this user's secret, see `vae_jax.runs.signature`; None without a home."""
    return _users("XDG_STATE_HOME", "~/.local/state")


def _users(variable: str, otherwise: str) -> Path | None:
    for base in (os.environ.get(variable, ""), os.path.expanduser(otherwise)):
        if os.path.isabs(base):
            return Path(base) / "vae_jax"
    return None
