"""The memory limit of the control groups that the process is in (Linux cgroups, version 1 and 2).

The kernel kills a process that passes the limit of its group, or of a group around it, without asking.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path, PurePosixPath

UNLIMITED = 2**62


def control_group_available(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes left below the limit of every group around the process; `UNLIMITED` where there is none.

    Args:
        root: where the file systems of the groups are mounted.
        membership: the file that says which groups the process is in.

    Cost: two small files a group.
    """
    return min((_available(folder) for folder in _folders(root, membership)), default=UNLIMITED)


@cache
def _folders(root: Path, membership: Path) -> tuple[Path, ...]:
    """The folders of the groups that limit memory, from the process's own to the outermost."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return ()
    found: dict[Path, None] = {}
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
                folder = base / part
                if (folder / "memory.max").exists() or (folder / "memory.limit_in_bytes").exists():
                    found[folder] = None
    return tuple(found)


def _available(folder: Path) -> int:
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (folder / limit).read_text().strip()
            if text == "max" or int(text) >= UNLIMITED:
                return UNLIMITED
            taken = int((folder / used).read_text())
            return max(int(text) - max(taken - _statistic(folder, cached), 0), 0)
        except (OSError, ValueError):
            continue
    return UNLIMITED


def _statistic(folder: Path, name: str) -> int:
    """Bytes of the page cache that the kernel gives back before it kills."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
    except (OSError, ValueError):
        return 0
