"""A wheel of deadlines: who is due, where nearly everybody's deadline moves on before it comes.

How it works
------------
Everyone stands in one bucket (`TICK` seconds each), no later than its deadline.  When its bucket has begun and the
deadline has moved on meanwhile, it is put into a later one.  So a deadline that moves on costs nothing, and a look at
the clock touches those that are due and few others.

Invariants
----------
* Nobody stands in two buckets; `due` says in which (infinite: in none).
* Nobody is due before the deadline, nor is found later than at the look that follows it.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

TICK = 0.1  # s of a bucket
LEAST_SLEEP = 0.01  # s between two looks at one bucket


class Due(Protocol):
    """Something with a `deadline` (trio's clock, s; infinite: none); `due` is the wheel's: when its bucket begins."""

    deadline: float
    due: float


D = TypeVar("D", bound=Due)


class _Bucket(Generic[D]):
    """Who is looked at when `begins` has come (s; the one float that is the `due` of all of them).

    `members` is a dict without values: at the few members that a bucket has, it takes half as much as a set.
    """

    __slots__ = ("begins", "members")

    def __init__(self, begins: float) -> None:
        self.begins = begins
        self.members: dict[D, None] = {}


class Wheel(Generic[D]):
    """The buckets."""

    def __init__(self) -> None:
        self._held: dict[int, _Bucket[D]] = {}
        self._buckets: list[int] = []  # a heap of their numbers

    def put(self, one: D, deadline: float) -> bool:
        """Have `one` looked at when `deadline` is due; whether that is in the first bucket of all."""
        self.drop(one)
        if deadline == math.inf:
            return False
        number = int(deadline / TICK)
        if number * TICK > deadline:  # by the rounding
            number -= 1
        bucket = self._held.get(number)
        if bucket is None:
            bucket = self._held[number] = _Bucket(number * TICK)
            heappush(self._buckets, number)
        one.due = bucket.begins
        bucket.members[one] = None
        return number == self._buckets[0]

    def drop(self, one: D) -> None:
        """No deadline of it counts any more."""
        if one.due < math.inf:
            self._held[round(one.due / TICK)].members.pop(one, None)
            one.due = math.inf

    def next_look(self, now: float) -> float:
        """When to look again (trio's clock, s): when the first bucket that holds anybody begins; when it has begun, at
        the first deadline in it, or at its end if all have moved on.  Infinite when there is nobody."""
        while self._buckets and not self._held[self._buckets[0]].members:
            del self._held[heappop(self._buckets)]
        if not self._buckets:
            return math.inf
        first = self._buckets[0]
        if first * TICK > now:
            return first * TICK
        # by its end at the latest: what stands in it may have moved on since it began, and others come behind it
        soonest = min(one.deadline for one in self._held[first].members)
        return max(now + LEAST_SLEEP, min(soonest, (first + 1) * TICK))

    def take_due(self, now: float) -> list[D]:
        """Take out who is due, and put who has a later deadline now where it belongs."""
        taken = []
        for number in [number for number in self._buckets if number * TICK <= now]:
            for one in list(self._held[number].members):
                if one.deadline <= now:
                    self.drop(one)
                    taken.append(one)
                elif one.deadline >= (number + 1) * TICK:
                    self.put(one, one.deadline)
        return taken
