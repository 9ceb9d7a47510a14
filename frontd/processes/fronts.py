"""The master's book of fronts: those that serve, those that an upgrade tries, and those that drain after one.

How it works
------------
A front is in one of three roles:

    beside ──▶ coming ──promote──▶ serving ──promote of the next ones──▶ leaving ──▶ gone
                  `──abandon, or the death of control──▶ gone

`coming` fronts have been started with the next world, from the code that is on the disk now.  They build it and then
wait: they accept nothing before they are promoted, so that nothing is lost when they are not.  `promote` is one step:
the next world is the committed one, those that came accept, and those that served stop to accept and drain.  The
listening sockets are the master's and stay open all the time.

Numbers 0 to N - 1 are one set of fronts and N to 2N - 1 the other, as the rows of the shared memory are
(`frontd.net.shared`); each upgrade takes the set that is free, and there is none while fronts of the one before drain.

Invariants
----------
* Only a front that serves is replaced when it dies.  One that was coming is told of, and control decides; one that was
  leaving has left.
* Those that leave are killed `GRACE` seconds after ``timeouts.drain``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from frontd.net.shared import SharedFds

PAUSE = 0.05  # s before a dead process is replaced, doubling
PAUSE_MOST = 5.0
LIVED = 10.0  # s after which a process counts as one that works
GRACE = 10.0  # s beyond `timeouts.drain` for a front to end
SERVING, COMING, LEAVING = "serving", "coming", "leaving"


@dataclass(slots=True)
class Child:
    """Control (`index` -1) or a front: its process, if there is one, and when the next is due (monotonic)."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0  # s since the epoch
    born: float = 0.0  # monotonic
    pause: float = PAUSE
    due: float | None = 0.0
    line: socket.socket | None = None  # the channel: for control the master's own end, for a front control's
    role: str = SERVING
    until: float | None = None  # when it is killed (monotonic)

    def later(self, now: float) -> None:
        """Start it again, soon the first time, later when it keeps dying."""
        if now - self.born >= LIVED:
            self.pause = PAUSE
        self.due, self.pause = now + self.pause, min(self.pause * 2, PAUSE_MOST)

    def kill(self) -> None:
        """SIGKILL, if it runs; it is reaped as any other."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    @property
    def facts(self) -> dict[str, Any]:
        """What control is told of a front that runs."""
        assert self.process is not None
        return {"do": "front", "index": self.index, "pid": self.process.pid, "since": self.since, "role": self.role}


@dataclass(slots=True)
class World:
    """What was committed: the generation, the file that holds it, and the keys of the sockets it listens on."""

    generation: int
    file: int
    keys: list[str]
    drain: float
    farewell: float  # s for workers to end


@dataclass(slots=True)
class Fronts:
    """All fronts there are, of `count` in a set; iterating gives those of every role."""

    count: int = 0
    shared: SharedFds | None = None  # counters and permits of all fronts
    next: World | None = None  # of those that are coming
    children: list[Child] = field(default_factory=list)

    def __iter__(self) -> Iterator[Child]:
        return iter(self.children)

    def begin(self, count: int) -> None:
        """The first ones, due at once."""
        self.count, self.shared = count, SharedFds(count)
        self.children = [Child(index) for index in range(count)]

    def of(self, role: str) -> list[Child]:
        """Those of one role."""
        return [child for child in self.children if child.role == role]

    def beside(self, world: World) -> str:
        """Have a set of new fronts started with `world`; why not, if they cannot be."""
        if self.next is not None or self.of(COMING):
            return "an upgrade is under way"
        if self.of(LEAVING):
            return "fronts of the upgrade before still drain"
        first = self.count if self.of(SERVING)[0].index < self.count else 0
        self.next = world
        self.children += [Child(first + at, role=COMING) for at in range(self.count)]
        return ""

    def promote(self, drain: float, now: float) -> World:
        """Those that were coming serve, and the others leave within `drain` seconds; returns the world they serve."""
        assert self.next is not None
        for child in self.children:
            if child.role == SERVING:
                child.role, child.due, child.until = LEAVING, None, now + drain + GRACE
            elif child.role == COMING:
                child.role = SERVING
                if child.process is None and child.due is None:  # it has died in the last moment
                    child.later(now)
        self._drop_gone()
        world, self.next = self.next, None
        return world

    def abandon(self) -> None:
        """End those that are coming."""
        if self.next is None:
            return
        os.close(self.next.file)
        self.next = None
        for child in self.of(COMING):
            child.due = None
            child.kill()
        self._drop_gone()

    def ended(self, child: Child) -> None:
        """A front is dead: what it held in common with others is free again."""
        assert self.shared is not None
        self.shared.reclaim(child.index)
        self._drop_gone()

    def _drop_gone(self) -> None:
        """Forget those that have left, and those that have come in vain."""
        over = {LEAVING} if self.next is not None else {LEAVING, COMING}
        self.children = [one for one in self.children if one.process is not None or one.role not in over]

    def close(self) -> None:
        """Let go of what is shared and of the next world."""
        if self.next is not None:
            os.close(self.next.file)
        if self.shared is not None:
            self.shared.close()
