"""The request queue of a pool: bounded, first come first served (HTTP.sys request queue, limit 1000).

Among those who wait the most urgent goes first (RFC 9218 4.1: 0 to 7), and of equal ones who came first.  Nobody is
put off for ever, since nobody waits longer than the queue allows.

A waiter keeps its place by the rank it drew when it came: one whose connect failed goes back to where it stood, not
to the end; and what an app had taken and lost stands before everybody of its urgency.  Handing out is synchronous:
`serve_next` gives a lease to the first waiter and wakes it, so nobody can slip in between and a waiter that leaves can
give its lease back.

The limit holds for all fronts together: each adds what waits with it to a counter that all of them read.  Fronts that
look at the same moment may let in one request each.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from itertools import count
from math import inf
from typing import Generic, TypeVar

import trio

from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import URGENCY
from frontd.net.shared import Counter

T = TypeVar("T")
Rank = tuple[float, int]  # urgency and number: the smallest goes first
LAST: Rank = (inf, 0)  # behind everybody


class Waiter(Generic[T]):
    """One request in the queue: its rank, since when it waits (s), and what it was given."""

    __slots__ = ("event", "given", "rank", "since")

    def __init__(self, rank: Rank, since: float) -> None:
        self.rank = rank
        self.since = since
        self.event = trio.Event()
        self.given: T | None = None

    def __lt__(self, other: Waiter[T]) -> bool:
        return self.rank < other.rank


class RequestQueue(Generic[T]):
    """Waiting requests in the order of their ranks; `limit` bounds how many, over all who share `counter`."""

    __slots__ = ("_numbers", "arrived", "counter", "limit", "refused", "waiters")

    def __init__(self, limit: int, counter: Counter | None = None) -> None:
        self.limit = limit
        self.counter = counter if counter is not None else Counter()
        self.waiters: list[Waiter[T]] = []  # always this list, so that who asks often may keep it
        self._numbers = count(1)
        self.arrived = 0  # requests that began to wait
        self.refused = 0  # that found it full

    def __len__(self) -> int:
        return len(self.waiters)

    def draw(self, urgency: int = URGENCY, *, again: bool = False) -> Rank:
        """What decides a request's position; `again`: it had its turn, and what it was given was lost."""
        return urgency, 0 if again else next(self._numbers)

    def longest(self, now: float) -> float:
        """For how many seconds the one has waited that has waited longest."""
        return now - min((waiter.since for waiter in self.waiters), default=now)

    def check_room(self) -> None:
        """Raises `FrontdError` with `Reason.QueueFull` when one more would exceed the limit."""
        if (waiting := self.counter.total()) >= self.limit:
            self.refused += 1
            raise FrontdError(Reason.QueueFull, detail=f"{waiting} requests wait", retry_after=1)

    async def wait(self, rank: Rank, since: float, deadline: float, take_back: Callable[[T], None]) -> T | None:
        """Wait for what `serve_next` gives; None at `deadline` (s of trio's clock), and when it is dismissed.

        Cancelled after something was given, it is handed to `take_back` before the cancellation goes on.
        """
        waiter: Waiter[T] = Waiter(rank, since)
        insort(self.waiters, waiter)
        self.arrived += 1
        self.counter.add(1)
        try:
            with trio.CancelScope(deadline=deadline):
                await waiter.event.wait()
        except BaseException:
            if waiter.given is not None:
                take_back(waiter.given)
                waiter.given = None
            raise
        finally:
            if waiter.given is None and not waiter.event.is_set():
                self.waiters.remove(waiter)
                self.counter.add(-1)
        return waiter.given

    def serve_next(self, given: T) -> None:
        """Give to the first waiter and wake it; the queue must not be empty."""
        waiter = self.waiters.pop(0)
        self.counter.add(-1)
        waiter.given = given
        waiter.event.set()

    def dismiss(self) -> None:
        """Let all go who wait, with nothing."""
        for waiter in self.waiters:
            waiter.event.set()
        self.counter.add(-len(self.waiters))
        self.waiters.clear()
