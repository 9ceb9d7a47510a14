"""Whether trio has anything to do besides one task: when it has not, that task may wait for events in its place.

How it works
------------
A turn of trio's loop costs as much as a whole answer from the cache, and a task that waits through it pays for one with
every wake-up.  So the reactor waits by itself, with trio's own epoll set as a member of its own, for as long as trio
could do nothing either but wait.  Trio tells when that is: before it waits it says for how long (`before_io_wait`), and
whenever a task is to go on, which one (`task_scheduled`).  Its epoll set it does not tell; the kernel does, in
/proc/self/fdinfo.  Where that cannot be read the reactor waits through trio.

Invariants
----------
* `nothing` is true only when no task is scheduled but the one that asks, and no deadline is due before `until`.
* What changes a deadline outside of any task says so by `look_again`; what is forgotten there is late by `LONGEST` at
  most.
* The two sets are never in each other: the kernel refuses circles.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

import trio

LONGEST = 1.0  # s without a turn of trio's, although it has nothing to do


class Others(trio.abc.Instrument):
    """What trio has to do besides the task that made this: `nothing`, before `until` (`time.perf_counter`, s)."""

    def __init__(self) -> None:
        self._own = trio.lowlevel.current_task()
        self.nothing = False
        self.until = 0.0

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Somebody is to go on."""
        if task is not self._own:
            self.nothing = False

    def before_io_wait(self, timeout: float) -> None:
        """Trio is going to wait, and has nobody to run if that is to take any time."""
        self.nothing = timeout > 0
        self.until = time.perf_counter() + min(timeout, LONGEST)

    def look_again(self) -> None:
        """Something of trio's was changed that it tells nobody about."""
        self.nothing = False


async def epoll_of_trio() -> int:
    """The descriptor of the epoll set that trio waits on; -1 where the kernel does not tell."""
    probe = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_wait_for, probe)
            found = _sets_with(probe)
            nursery.cancel_scope.cancel()
    finally:
        os.close(probe)
    return found[0] if len(found) == 1 else -1


async def _wait_for(fd: int, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.lowlevel.wait_readable(fd)


def _sets_with(member: int) -> list[int]:
    """The epoll sets of this process that hold the descriptor `member` (proc_pid_fdinfo(5): its ``tfd:`` lines)."""
    found = []
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}") != "anon_inode:[eventpoll]":
                    continue
                with open(f"/proc/self/fdinfo/{name}") as info:
                    lines = [line.split() for line in info if line.startswith("tfd:")]
                if any(words[1] == str(member) for words in lines):
                    found.append(int(name))
    return found
