"""The memory limit of the control groups that the process is in (Linux cgroups, version 1 and 2).

The kernel kills a process that passes the limit of its group, or of a group around it, without asking.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

UNLIMITED = 2**62


def control_group_available(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes left below the limit of every group around the process; `UNLIMITED` where there is none.

    Args:
        root: where the file systems of the groups are mounted.
        membership: the file that says which groups the process is in.

    Cost: three small files a group with a limit, one for the others.
    """
    return min((_available(group) for group in _groups(root, membership)), default=UNLIMITED)


class _Group(NamedTuple):
    """Where a group says what it may take and what it takes.

    Attributes:
        limit, used, statistics: the files.
        cached: what the statistics call bytes of the page cache that the kernel gives back before it kills.
    """

    limit: str
    used: str
    statistics: str
    cached: bytes


@cache
def _groups(root: Path, membership: Path) -> tuple[_Group, ...]:
    """The groups that limit memory, from the process's own to the outermost."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return ()
    found: dict[_Group, None] = {}
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            bases = [root, root / "unified"]
        elif "memory" in controllers.split(","):
            bases = [root / "memory", root / controllers]
        else:
            continue
        inside = PurePosixPath(group.lstrip("/"))
        for base in bases:
            for part in (inside, *inside.parents):  # in a container the group's own path may not be there, only its root
                found |= dict.fromkeys(_group(base / part))
    return tuple(found)


def _group(folder: Path) -> list[_Group]:
    for limit, used, cached in (
        ("memory.max", "memory.current", b"inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file"),
    ):
        if (folder / limit).exists():
            return [_Group(str(folder / limit), str(folder / used), str(folder / "memory.stat"), cached)]
    return []


def _available(group: _Group) -> int:
    try:
        limit = _read(group.limit).strip()
        if limit == b"max" or int(limit) >= UNLIMITED:
            return UNLIMITED
        taken = int(_read(group.used))
        return max(int(limit) - max(taken - _given_back(group), 0), 0)
    except (OSError, ValueError):
        return UNLIMITED


def _given_back(group: _Group) -> int:
    try:
        lines = _read(group.statistics).splitlines()
        return next((int(line.split()[1]) for line in lines if line.split(b" ", 1)[0] == group.cached), 0)
    except (OSError, ValueError):
        return 0


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
