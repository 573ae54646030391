"""What fits into memory, asked before anything is allocated: an allocation that is too large succeeds, and the
system then ends the process when it writes there."""

from pathlib import Path

import psutil

from vae_jax.errors import UserError


class NotEnough(UserError):
    """Something does not fit into the memory that is free."""


SMALL = 1 << 24  # bytes that are not asked about: the program itself takes many times as much


def available(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that can be had without swapping, on this machine or in this container (its control group)."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, max(0, limit - used + int(stat["inactive_file"])))  # cached files make room
    except (OSError, ValueError, KeyError):  # no group, or one without a limit, which says "max"
        return free


def check(needed: int, what: str) -> None:
    """Refuses what does not fit.

    Args:
        needed: bytes.
        what: needs them, for the message; it begins with the option or file to blame.

    Raises:
        NotEnough: naming what, how much is free and how much would be needed.
    """
    if needed > SMALL and needed > (free := available()):
        raise NotEnough(
            f"{what}: expected to fit into the {free / 1e6:,.0f} MB of memory that are free, found a need of "
            f"{needed / 1e6:,.0f} MB"
        )
