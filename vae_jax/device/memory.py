"""What fits into memory, asked before anything is allocated: an allocation that is too large succeeds, and the
system then ends the process when it writes there."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from vae_jax.errors import UserError

SMALL = 1 << 24  # bytes that are not asked about: the program itself takes many times as much
RESERVE = 1 << 27  # bytes of a process's limit that are left for threads' stacks and what libraries map
START = 200_000_000  # bytes without which no command comes far …
STACKS = 40_000_000  # … for each core, of addresses and of data, since each gets threads, with stacks of 8 MB …
MAPPED = 1_300_000_000  # … and of addresses, most of which are jax's libraries
ARENA = 1 << 26  # bytes that the C library reserves for a new thread
GROUPS = Path("/sys/fs/cgroup")
# On a process's memory: each limit, the command of shells that sets it, and what psutil calls what counts.
LIMITS = (("RLIMIT_AS", "ulimit -v", "vms"), ("RLIMIT_DATA", "ulimit -d", "data"))
# By the names of a control group's files, in the second version and in the first: limit, use, and what makes room.
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class NotEnough(UserError):
    """Something does not fit into the memory that is free."""


def available(groups: Path = GROUPS) -> int:
    """Bytes of memory that this process can have without swapping: of the machine, in its control groups (as of a
    container), and within its own limits (`ulimit -v`, `ulimit -d`)."""
    own = (free - RESERVE for free in limits().values())
    return max(0, min([psutil.virtual_memory().available, *_in_groups(groups), *own]))


def _in_groups(groups: Path) -> Iterator[int]:
    """What is left in each control group that this process is in."""
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
        if not group.is_dir():  # seen from inside a container its own group may be the base
            group = base
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            if (free := _in_group(folder)) is not None:
                yield free


def _in_group(folder: Path) -> int | None:
    """What is left in the control group of a folder; None where it has no limit."""
    for limit, used, cached in GROUP_FILES:
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            return most - now + int(stat[cached])  # cached files make room
        except (OSError, ValueError, KeyError):  # no such file, or a limit that says "max"
            continue
    return None


def limits() -> dict[str, int]:
    """The limits on this process's own memory by the commands that set them: how many bytes each leaves."""
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
    """Refuses to begin where limits leave too little for a command to load its libraries: some end the process then.

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
    """Whether a limit on this process leaves not even what a new thread takes."""
    return any(free < ARENA for free in limits().values())


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
