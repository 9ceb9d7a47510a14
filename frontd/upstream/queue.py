"""The request queue of a pool: bounded, first come first served (HTTP.sys request queue, limit 1000).

A waiter keeps its place by the number it drew when it came: one whose connect failed goes back to where it stood, not
to the end.  Handing out is synchronous: `serve_next` gives a lease to the first waiter and wakes it, so nobody can slip
in between and a waiter that leaves can give its lease back.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

import trio

from frontd.model.errors import FrontdError, Reason

T = TypeVar("T")


class Waiter(Generic[T]):
    """One request in the queue: its number, since when it waits (s), and what it was given."""

    __slots__ = ("event", "given", "number", "since")

    def __init__(self, number: int, since: float) -> None:
        self.number = number
        self.since = since
        self.event = trio.Event()
        self.given: T | None = None

    def __lt__(self, other: Waiter[T]) -> bool:
        return self.number < other.number


class RequestQueue(Generic[T]):
    """Waiting requests in the order in which they came; `limit` bounds how many."""

    __slots__ = ("_numbers", "_waiters", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiters: list[Waiter[T]] = []
        self._numbers = count(1)

    def __len__(self) -> int:
        return len(self._waiters)

    def draw(self) -> int:
        """The number that decides a request's position."""
        return next(self._numbers)

    def longest(self, now: float) -> float:
        """For how many seconds the first waiter has waited."""
        return now - self._waiters[0].since if self._waiters else 0.0

    def check_room(self) -> None:
        """Raises `FrontdError` with `Reason.QueueFull` when one more would exceed the limit."""
        if len(self._waiters) >= self.limit:
            raise FrontdError(Reason.QueueFull, detail=f"{len(self._waiters)} requests wait", retry_after=1)

    async def wait(self, number: int, since: float, deadline: float, take_back: Callable[[T], None]) -> T | None:
        """Wait for what `serve_next` gives; None at `deadline` (s of trio's clock).

        Cancelled after something was given, it is handed to `take_back` before the cancellation goes on.
        """
        waiter: Waiter[T] = Waiter(number, since)
        insort(self._waiters, waiter)
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
                self._waiters.remove(waiter)
        return waiter.given

    def serve_next(self, given: T) -> None:
        """Give to the first waiter and wake it; the queue must not be empty."""
        waiter = self._waiters.pop(0)
        waiter.given = given
        waiter.event.set()
