"""Rates of what the fronts count: how much per second, lately.

How it works
------------
Fronts count and forget nothing; control notes what they have counted every `EVERY` seconds and keeps the last two
notes.  A rate is what was counted since the older one, so it is over the last 5 to 10 s (`Rates.over` says which time
it really was).  Somebody who wants another window asks twice and divides.

Invariant: a front that has died takes its counters along, and the one in its place begins at nothing; a rate is never
negative.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from typing import Any

import trio

EVERY = 5.0  # s between two notes
LEAST = 1.0  # s, below which a rate says nothing
KEPT = 2

Key = tuple[int, str, str, str]  # process, noun, name, counter
Counted = Mapping[Key, int]
Facts = dict[str, Any]


class Rates:
    """Notes of counters, by what is counted and where; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._notes: deque[tuple[float, Counted]] = deque(maxlen=KEPT)

    async def run(self, facts: Callable[[], Awaitable[list[Facts]]], fault: Callable[[str, Exception], None]) -> None:
        """Note what all fronts have counted, for ever; `fault` is told what went wrong with that."""
        while True:
            try:
                every = await facts()
                silent = {one["front"]["pid"] for one in every if one["front"]["state"] == "silent"}
                self.note(counted(every), silent)
            except Exception as error:  # a front of another version, for instance; nobody else must suffer from that
                fault("rates", error)
            await trio.sleep(EVERY)

    def note(self, now: Counted, silent: Container[int] = ()) -> None:
        """Keep what has been counted so far; of processes that are `silent`, what was known of them before."""
        last = self._notes[-1][1] if self._notes else {}
        self._notes.append((self._clock(), {key: count for key, count in last.items() if key[0] in silent} | dict(now)))

    @property
    def over(self) -> float | None:
        """The seconds that rates are over at this moment; None: there are none yet."""
        seconds = self._clock() - self._notes[0][0] if self._notes else 0.0
        return seconds if seconds >= LEAST else None

    def per_second(self, now: Counted, keys: Iterable[Key]) -> float | None:
        """The rate of `keys` together; None: there is none yet."""
        over = self.over
        if over is None:
            return None
        before = self._notes[0][1]
        return round(sum(max(now.get(key, 0) - before.get(key, 0), 0) for key in keys) / over, 3)


def counted(every: Iterable[Facts]) -> dict[Key, int]:
    """What the fronts count that answer."""
    found: dict[Key, int] = {}
    for one in every:
        if one["front"]["state"] == "silent":
            continue
        pid = one["front"]["pid"]
        found[pid, "front", "", "requests"] = one["front"]["requests"]
        for site in one["sites"]:
            for counter in SITE:
                found[pid, "site", site["name"], counter] = site[counter]
        for pool in one["pools"]:
            for counter in QUEUE:
                found[pid, "pool", pool["name"], counter] = pool["counters"][counter]
    return found


SITE = ("requests", "errors")
QUEUE = ("arrived", "refused", "served", "5xx")
