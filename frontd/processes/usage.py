"""What the processes of a worker use: it and everything it has started, which share its session (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

_TICK = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """`private`: bytes of memory that nobody else has a part in; `cpu`: seconds of computing since the start."""

    private: int
    cpu: float


NOTHING = Usage(0, 0.0)


def usage_of(session: int) -> Usage:
    """The sum over the processes of a session; zeros when it has none."""
    return usages([session])[session]


def usages(sessions: Iterable[int]) -> dict[int, Usage]:
    """`usage_of` several, in one look at all processes."""
    found = dict.fromkeys(sessions, NOTHING)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                words = file.read().rpartition(")")[2].split()
            if (session := int(words[3])) not in found:
                continue
            private, cpu = found[session]
            cpu += (int(words[11]) + int(words[12])) / _TICK
            found[session] = Usage(private + _private(name), cpu)
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
    return found


def _private(pid: str) -> int:
    """Bytes of a process in pages that are its own (Private_Clean and Private_Dirty)."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))
