"""What the fronts of one frontd count together: slots in memory they all map, and eventfds they all inherit.

How it works
------------
The master creates `SharedFds`: a memfd, and a number of semaphore eventfds (``EFD_SEMAPHORE``).  Every front maps the
memfd as `Slots` and asks it for counters by name; a process that is the only front has `LocalSlots`, which count in
plain integers.

A *limit* (connections, queue length) is a counter: each front adds to a slot of its own and compares the sum of all
slots with the limit.  A sum grants nothing, so fronts that look at the same moment each let one in: the sum exceeds the
limit by at most one for every other front.

A *permit* (one of an app's `concurrency`) is a unit in an eventfd: one ``read`` takes it, for one front alone, and who
finds none waits until the eventfd is readable (`net.permits`).  Each front writes into its slot how many it holds, and
`SharedFds.reclaim` gives back what a dead front held.

The memory is a row of names (16 bytes each, a hash) and for each front a row of values and a row of marks, 8 bytes
each.  A front that wants a name looks for it under a record lock of the memfd, takes a free entry when nobody has it,
and marks that it uses it.  So names need no agreement beforehand: an address that one front's name service has just
told is the same entry to all of them, and an entry is free again when the last front let go of its name.  The lock is
the kernel's and ends with its holder.

Killed at the wrong moment
--------------------------
Between the eventfd and the slot a front can be killed.  The slot is therefore written first when a permit is taken, and
last when one is given: it never says less than what the front holds.  What is killed in between leaves one permit too
many, never one too few: an app may be asked for one exchange more at a time, whereas a permit lost would take a place
away for good, and an app with a concurrency of one would be asked nothing any more.  A front that holds all permits
and finds another one throws it away.

Two sets of fronts
------------------
During an upgrade new fronts stand beside the old ones until these have drained, so there are rows for two sets
(`SETS`): numbers 0 to N - 1, and N to 2N - 1.  Sums are over all rows, so limits and permits hold for both sets
together; who is to accept next is a matter within a set (`Counter.peers`), since the other one does not accept.

Invariants
----------
* One writer for each value and each mark: its front, and after that front's death the master.
* A value is one aligned 8-byte store through a memoryview of C ``long long``, which a 64-bit processor does at once: a
  reader sees the old value or the new one.
* A name's entry is used while any front marks it; only an entry that nobody marks is given to another name.
* When there is no entry left, each front keeps to its part of the limit: too little is let in, not too much.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from weakref import WeakValueDictionary, finalize

COUNTERS = 1024  # names of counters at once: one for each site with a limit of its own and one for each pool
PERMITS = 256  # names of permits at once: one for each address of a pool with `concurrency`
ENTRIES = COUNTERS + PERMITS
SETS = 2  # of fronts at once: those that serve, and those that drain after an upgrade
WORD = 8
NAME = 16
LOCK_TRIES = 100
LOCK_PAUSE = 0.0005  # s; a claim takes microseconds, so this passes only when a front was stopped in the middle of one


# ---------------------------------------------------------------------------------------------------- counters


class Counter:
    """A number of this process, which is the only front."""

    __slots__ = ("__weakref__", "mine")

    def __init__(self) -> None:
        self.mine = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.mine} of {self.total()}>"

    def add(self, n: int) -> None:
        """Add `n`, which may be negative."""
        self.mine += n

    def peers(self) -> list[int]:
        """What each of the other fronts of its set that have this counter says."""
        return []

    def others(self) -> int:
        """The sum over the other fronts."""
        return 0

    def total(self) -> int:
        """The sum over all fronts."""
        return self.mine


class SharedCounter(Counter):
    """One front's part of a number that all fronts add up to: `mine` is in this front's slot."""

    __slots__ = ("_at", "_marks", "_peers", "_values", "_words")

    def __init__(self, words: memoryview, at: int, values: memoryview, marks: memoryview, peers: Sequence[int]) -> None:
        super().__init__()
        self._words, self._at = words, at
        self._values, self._marks = values, marks  # of all fronts, for this name
        self._peers = peers  # the other fronts of its set

    def add(self, n: int) -> None:
        """Add `n`, which may be negative."""
        self.mine += n
        self._words[self._at] = self.mine

    def peers(self) -> list[int]:
        """What each of the other fronts of its set that have this counter says."""
        values, marks = self._values, self._marks
        return [values[front] for front in self._peers if marks[front]]

    def others(self) -> int:
        """The sum over the other fronts."""
        return sum(self._values) - self.mine

    def total(self) -> int:
        """The sum over all fronts."""
        return sum(self._values)


class CounterApart(Counter):
    """A counter that found no entry: it takes every front for as busy as this one."""

    __slots__ = ("_fronts",)

    def __init__(self, fronts: int) -> None:
        super().__init__()
        self._fronts = fronts

    def total(self) -> int:
        """What the sum would be if all fronts were like this one."""
        return self.mine * self._fronts


# ---------------------------------------------------------------------------------------------------- the memory


class LocalSlots:
    """Counters of a process that is the only front.  `kept` is where `net.permits` finds its objects by name."""

    def __init__(self) -> None:
        self._counters: WeakValueDictionary[str, Counter] = WeakValueDictionary()
        self.kept: WeakValueDictionary[str, object] = WeakValueDictionary()

    def counter(self, name: str) -> Counter:
        """The counter `name`: the same object as long as somebody has it."""
        found = self._counters.get(name)
        if found is None:
            found = self._counters[name] = self._new_counter(name)
        return found

    def _new_counter(self, name: str) -> Counter:
        return Counter()


class _Memory:
    """The memfd `fd` of `fronts` fronts in each set as words.  Raises `ValueError` when it is one of another number."""

    def __init__(self, fd: int, fronts: int) -> None:
        if os.fstat(fd).st_size != size_of(fronts):
            raise ValueError(f"the shared memory is not one of {fronts} fronts")
        self.fd = fd
        self.fronts = fronts
        self.bytes = memoryview(mmap.mmap(fd, size_of(fronts)))
        self.names = self.bytes[: ENTRIES * NAME]
        self.words = self.bytes[ENTRIES * NAME :].cast("q")

    def value_at(self, front: int, entry: int) -> int:
        """Where the value of an entry stands among the words."""
        return front * 2 * ENTRIES + entry

    def values(self, entry: int) -> memoryview:
        """The values of an entry, one of each front."""
        return self.words[entry :: 2 * ENTRIES]

    def marks(self, entry: int) -> memoryview:
        """The marks of an entry, one of each front: whether it uses the name."""
        return self.words[ENTRIES + entry :: 2 * ENTRIES]

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Alone with the names, among processes; False when somebody else was for 0.05 s."""
        for _ in range(LOCK_TRIES):
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                time.sleep(LOCK_PAUSE)
        else:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)


def size_of(fronts: int) -> int:
    """Bytes of the memory of `fronts` fronts in each set."""
    return ENTRIES * NAME + SETS * fronts * 2 * ENTRIES * WORD


class Slots(LocalSlots):
    """The memory as front number `front` sees it, of `fronts` in each set: 0 to `fronts` - 1 are one set, the numbers
    after them the other; `fd` and `eventfds` are those of `SharedFds`.

    `missed` counts the names for which there was no entry left, or no lock; they are kept apart (`CounterApart`).
    Raises `ValueError` when `fd` is not the memory of `fronts` fronts.
    """

    def __init__(self, fd: int, front: int, fronts: int, eventfds: Sequence[int] = ()) -> None:
        super().__init__()
        if not 0 <= front < SETS * fronts:
            raise ValueError(f"front {front} is none of {SETS} sets of {fronts}")
        self.front = front
        self.fronts = fronts
        self.missed = 0
        first = front - front % fronts
        self._peers = tuple(other for other in range(first, first + fronts) if other != front)
        self._eventfds = tuple(eventfds)
        self._memory = _Memory(fd, fronts)

    def _new_counter(self, name: str) -> Counter:
        entry = self._claim(name, range(COUNTERS))
        return CounterApart(self.fronts) if entry is None else self._counter_of(entry)

    def permit_entry(self, name: str, limit: int) -> tuple[int, SharedCounter] | None:
        """The eventfd of the `limit` permits `name` and the counter of those this front holds; None: no entry left."""
        entry = self._claim(name, range(COUNTERS, COUNTERS + min(PERMITS, len(self._eventfds))), limit)
        if entry is None:
            return None
        eventfd = self._eventfds[entry - COUNTERS]
        return eventfd, self._counter_of(entry, eventfd)

    def _counter_of(self, entry: int, eventfd: int | None = None) -> SharedCounter:
        memory = self._memory
        at = memory.value_at(self.front, entry)
        counter = SharedCounter(memory.words, at, memory.values(entry), memory.marks(entry), self._peers)
        finalize(counter, _let_go, memory.words, at, eventfd).atexit = False
        return counter

    def _claim(self, name: str, entries: range, permits: int | None = None) -> int | None:
        """Mark the entry of `name`; a new one's eventfd is filled with `permits`."""
        memory, digest = self._memory, blake2b(name.encode(), digest_size=NAME).digest()
        with memory.locked() as alone:
            entry = self._find(digest, entries) if alone else None
            if entry is None:
                self.missed += 1
                return None
            if not any(memory.marks(entry)):
                memory.names[entry * NAME : (entry + 1) * NAME] = digest
                if permits is not None:
                    refill(self._eventfds[entry - COUNTERS], permits)
            memory.words[memory.value_at(self.front, entry) + ENTRIES] = 1  # last: until here nobody has it
            return entry

    def _find(self, digest: bytes, entries: range) -> int | None:
        """The entry of a name, or one that nobody uses."""
        names, at = bytes(self._memory.names), entries.start * NAME
        while (at := names.find(digest, at, entries.stop * NAME)) >= 0:
            if at % NAME == 0:
                return at // NAME
            at += 1
        return next((entry for entry in entries if not any(self._memory.marks(entry))), None)


def _let_go(words: memoryview, at: int, eventfd: int | None) -> int:
    """Permits back into their eventfd, the value to zero, then the mark away; how many permits that were."""
    held = words[at] if eventfd is not None else 0
    if eventfd is not None and held > 0:
        os.eventfd_write(eventfd, held)
    words[at] = 0
    words[at + ENTRIES] = 0
    return held


def refill(eventfd: int, permits: int) -> None:
    """Make `permits` the number in a semaphore eventfd."""
    with suppress(BlockingIOError):
        while True:
            os.eventfd_read(eventfd)
    os.eventfd_write(eventfd, permits)


# ---------------------------------------------------------------------------------------------------- the master's


class SharedFds:
    """The memory and the eventfds as the master has them: `fd` and `eventfds` are handed to every front."""

    def __init__(self, fronts: int) -> None:
        self.fronts = fronts
        self.fd = os.memfd_create("frontd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size_of(fronts))
        # nobody can cut it under the others, who would die of SIGBUS
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory = _Memory(self.fd, fronts)
        flags = os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.eventfds = [os.eventfd(0, flags) for _ in range(PERMITS)]

    def reclaim(self, front: int) -> int:
        """Give back the permits of a front that is dead and zero its slots; how many permits that were."""
        memory = self._memory
        eventfds = [*[None] * COUNTERS, *self.eventfds]
        with memory.locked():  # without it too: a front that was stopped inside holds up no more than one name
            row = memory.value_at(front, 0)
            return sum(_let_go(memory.words, row + entry, eventfd) for entry, eventfd in enumerate(eventfds))

    def close(self) -> None:
        """Close every descriptor; the memory lives on in the fronts that map it."""
        for fd in (self.fd, *self.eventfds):
            os.close(fd)
