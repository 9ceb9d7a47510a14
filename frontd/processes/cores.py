"""How many fronts this process's surroundings have room for: the meaning of ``fronts: auto``.

Limits are those of its cgroup and of every one above it.  In a container the cgroup is mounted as the root of the tree,
while its path may be the one outside: what does not exist is passed over.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# What a front may need: 33 MiB of its own at the start (measured), `cache.memory` of 64 MiB, and room for connections.
MEMORY = 128 * 1024 * 1024


def usable_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """The cores this process may run on, no more than its CPU quota pays for, rounded up, and no more than its memory
    limit has room for; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota, memory = cpu_quota(cgroups, membership), memory_limit(cgroups, membership)
    found = [cores, *([math.ceil(quota)] if quota else []), *([memory // MEMORY] if memory else [])]
    return max(1, min(found))


def cpu_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """The cores that CPU quotas pay for; None: there is no quota.

    cgroup v2 has it in ``cpu.max``, v1 in ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``.
    """
    found = []
    for folder in _folders("cpu", cgroups, membership):
        words = _words(folder / "cpu.max")
        words = words or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] > 0 and words[1] > 0:
            found.append(words[0] / words[1])
    return min(found, default=None)


def memory_limit(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes; None: there is no limit.  cgroup v2 has it in ``memory.max``, v1 in ``memory.limit_in_bytes``."""
    found = []
    for folder in _folders("memory", cgroups, membership):
        found += _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
    return min(found, default=None)


def _folders(controller: str, cgroups: Path, membership: Path) -> Iterator[Path]:
    """The cgroup of this process that has `controller`, and those above it; lines of cgroups(7), /proc/PID/cgroup."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = cgroups / controllers if controllers else cgroups
            inner = root / path.lstrip("/")
            yield from (folder for folder in [inner, *inner.parents] if folder.is_relative_to(root))


def _words(path: Path) -> list[int]:
    """The numbers in a file; none of them if one is ``max``, or there is no such file."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
