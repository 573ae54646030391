"""Checks whether something fits into memory before it is allocated: an allocation that is too large succeeds, and the
system ends the process once it writes there."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from vae_jax.errors import UserError

SMALL = 1 << 24  # bytes that are not checked: the program itself takes many times as much
RESERVE = 1 << 27  # bytes of a process's limit that are kept for threads' stacks and libraries
START = 200_000_000  # bytes that every command needs
STACKS = 40_000_000  # bytes more per core, of addresses and of data: its threads have stacks of 8 MB
MAPPED = 1_300_000_000  # bytes more of addresses, most of them for jax's libraries
ARENA = 1 << 26  # bytes that the C library reserves for a new thread
GROUPS = Path("/sys/fs/cgroup")
# Limits on a process's memory: name, the shell's command that sets it, and psutil's name for the use that counts.
LIMITS = (("RLIMIT_AS", "ulimit -v", "vms"), ("RLIMIT_DATA", "ulimit -d", "data"))
# Names of a control group's files, in versions 2 and 1: limit, use, and the cache that can make room.
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class NotEnough(UserError):
    """Something does not fit into the free memory."""


def available(groups: Path = GROUPS) -> int:
    """Bytes of memory that this process can have without swapping: the least of what the machine, its control groups
    (as of a container) and its own limits (`ulimit -v`, `ulimit -d`) leave."""
    within_limits = (free - RESERVE for free in limits().values())
    return max(0, min([psutil.virtual_memory().available, *_in_groups(groups), *within_limits]))


def _in_groups(groups: Path) -> Iterator[int]:
    """The bytes left in the control groups of this process."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = groups / "memory" if controllers else groups
        group = base / path.lstrip("/")
        if not group.is_dir():  # inside a container its own group may be the base
            group = base
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            if (free := _in_group(folder)) is not None:
                yield free


def _in_group(folder: Path) -> int | None:
    """The bytes left in the control group of a folder; None if it has no limit."""
    for limit, used, cached in GROUP_FILES:
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            return most - now + int(stat[cached])  # cached files make room
        except (OSError, ValueError, KeyError):  # no such file, or a limit that says "max"
            continue
    return None


def limits() -> dict[str, int]:
    """The bytes left by the limits on this process, by the commands that set them."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    set_to = [(resource.getrlimit(getattr(resource, name))[0], *more) for name, *more in LIMITS]
    used = psutil.Process().memory_info()
    return {
        command: limit - getattr(used, counted, 0)
        for limit, command, counted in set_to
        if limit != resource.RLIM_INFINITY
    }


def check_start() -> None:
    """Refuses to start if limits leave too little for a command's libraries: some would end the process.

    Raises:
        NotEnough: naming the limit.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = STACKS * cores
    needed = {"ulimit -v": START + MAPPED + threads, "ulimit -d": START + threads}
    for name, free in (*limits().items(), *(("control group", free) for free in _in_groups(GROUPS))):
        if free < needed.get(name, START):
            raise NotEnough(
                f"{name}: expected at least {needed.get(name, START) / 1e6:,.0f} MB of memory for jax to start; found "
                f"{max(0, free) / 1e6:,.0f} MB"
            )


def is_used_up() -> bool:
    """Whether a limit on this process leaves too little even for a new thread."""
    return any(free < ARENA for free in limits().values())


def check(needed: int, what: str) -> None:
    """Refuses a use of memory that does not fit.

    Args:
        needed: bytes.
        what: uses them, for the message; begins with the option or file to blame.

    Raises:
        NotEnough: naming the use, the free bytes and the needed ones.
    """
    if needed > SMALL and needed > (free := available()):
        raise NotEnough(
            f"{what}: expected to fit into the {free / 1e6:,.0f} MB of memory that are free, found a need of "
            f"{needed / 1e6:,.0f} MB"
        )
