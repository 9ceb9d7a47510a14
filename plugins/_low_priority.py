"""Work that takes a core for milliseconds, in threads of low priority, so that the loop gets its core when it wants.

How it works
------------
`run` is called in a thread of trio's, and has a thread of its own do the work there and then: trio's serve others
afterwards, and an unprivileged process cannot raise a priority again.  Starting one takes 0.1 ms.  Threads that the
work itself starts (argon2's) inherit the priority.

Priority alone does not do it: where more such threads want to run than there are cores, the one that holds the
interpreter's lock may be one of those that wait, and the loop waits for it.  So who calls `run` does not do so in many
more threads than there are `cores`.

Invariants
----------
* Nobody's priority is changed but that of a thread that ends with its work.
* What the work returns or raises is what `run` returns or raises.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# About a tenth of the weight of the loop (sched(7)).  Not less, since for a moment after each piece of work such a
# thread holds the interpreter's lock, and whatever keeps it from running then keeps the loop from it too.
NICE = 10


def cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use: by affinity, and by the quota of its container (cgroup v2); at least 1."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return allowed


def run(function: Callable[..., T], *arguments: object) -> T:
    """`function` at low priority; blocks.  Raises what it raises."""
    outcome: Future[T] = Future()

    def work() -> None:
        if sys.platform == "linux":  # where a priority belongs to a thread (setpriority(2), NOTES)
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="frontd low priority", daemon=True).start()
    return outcome.result()
