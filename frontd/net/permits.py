"""Permits: how many exchanges an app may be given at once, kept by one front or by all fronts together.

How it works
------------
`take` answers at once whether a permit was free; `give` returns one; `wait` waits until one may be free again.  Alone a
front counts (`Permits`).  Beside others it asks the kernel (`SharedPermits`): a permit is a unit of a semaphore eventfd
that all fronts have, and `wait` waits until that is readable.

Objects are found by name (`permits`): a pool that replaces another over a reload takes from the same permits as the
exchanges that the old one still has.

Invariants
----------
* ``held`` is what this process holds, and never more than ``limit``.
* Who is told that a permit is free must take it to have it: `wait` may come back for nothing.
* One task at a time waits for an eventfd; the others of this process wait for that task.
* The slot is written before the eventfd is read and after it is written (`net.shared` says why).
"""

from __future__ import annotations

import os

import trio

from frontd.net.shared import LocalSlots, SharedCounter, Slots


class Permits:
    """`limit` permits of one process; `held` of them are out."""

    is_shared = False  # with other processes

    __slots__ = ("__weakref__", "_lot", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._lot = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.held} of {self.limit}>"

    def take(self) -> bool:
        """Take one if one is free."""
        if self.held >= self.limit:
            return False
        self.held += 1
        return True

    def give(self) -> None:
        """Return one that was taken."""
        self.held -= 1
        if self._lot:
            self._lot.unpark_all()

    def total(self) -> int:
        """How many are out, over all fronts."""
        return self.held

    async def wait(self) -> None:
        """Wait until one may be free: somebody gave one since this was called."""
        await self._lot.park()


class SharedPermits(Permits):
    """`limit` permits of all fronts, which are units of the eventfd `fd`; `counter` has the slot for what is held."""

    is_shared = True

    __slots__ = ("_counter", "_is_watched", "fd")

    def __init__(self, limit: int, fd: int, counter: SharedCounter) -> None:
        super().__init__(limit)
        self.fd = fd
        self._counter = counter
        self._is_watched = False

    def take(self) -> bool:
        """Take one if one is free.

        When this front holds all there should be and finds one more, that one is thrown away: a front was killed while
        it took or gave it.
        """
        if self.held >= self.limit:
            self._read()
            return False
        self._counter.add(1)
        if self._read():
            self.held += 1
            return True
        self._counter.add(-1)
        return False

    def _read(self) -> bool:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        return True

    def give(self) -> None:
        """Return one that was taken."""
        os.eventfd_write(self.fd, 1)
        self.held -= 1
        self._counter.add(-1)

    def total(self) -> int:
        """How many are out, over all fronts."""
        return self._counter.total()

    async def wait(self) -> None:
        """Wait until one may be free, or until the task that waited for it has been cancelled."""
        if self._is_watched:
            await self._lot.park()
            return
        self._is_watched = True
        try:
            await trio.lowlevel.wait_readable(self.fd)
        finally:
            self._is_watched = False
            self._lot.unpark_all()


def permits(slots: LocalSlots, name: str, limit: int) -> Permits:
    """The `limit` permits called `name`: the same object as long as somebody has it."""
    key = f"{name} {limit}"
    found = slots.kept.get(key)
    if found is None:
        found = slots.kept[key] = _made(slots, key, limit)
    assert isinstance(found, Permits)
    return found


def _made(slots: LocalSlots, key: str, limit: int) -> Permits:
    if not isinstance(slots, Slots):
        return Permits(limit)
    entry = slots.permit_entry(key, limit)
    # without an entry each front keeps to its part; a front without any permit would answer nothing
    return Permits(max(1, limit // slots.fronts)) if entry is None else SharedPermits(limit, *entry)
