"""Who gets the next request: the places of a pool, and the choice among them.

A `Place` is one address of a pool's targets: a name that resolves to three addresses is three places.  The choice is
synchronous and does no I/O: round robin over the places that are not out of rotation and have room (nginx's and
HAProxy's default).  Where the concurrency is limited, room is a permit (`net.permits`), which another front may hold.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from frontd.model.errors import Reason
from frontd.net.permits import Permits
from frontd.upstream.client import Address, ConnectFailed, Dialect, Upstream

BACKOFF_FIRST = 0.05  # s until a refused address is tried again
BACKOFF_LAST = 1.0  # s, so that an app is noticed at most a second after it listens


class Moving(Protocol):
    """Something on which bytes move."""

    upstream: Upstream | None


class Place:
    """One address of a pool.  `active` counts the exchanges that hold it, `idle` the connections that wait for one.

    `permits`: one for each exchange (None: any number); `is_out`: out of rotation until a probe succeeds.
    """

    __slots__ = (
        "active", "address", "awaited", "backoff", "dialect", "error", "gone", "idle", "is_out", "leases", "name",
        "permits", "probing", "reason", "retry_at", "served", "state", "target",
    )  # fmt: skip

    def __init__(
        self, target: str, address: Address, dialect: Dialect, permits: Permits | None = None, *, watch: bool = False
    ) -> None:
        self.target = target
        self.address = address
        self.name = str(address)
        self.dialect = dialect
        self.state = "unknown"  # up | busy: there, but takes no connection | down | unknown: never tried
        self.is_out = False
        self.permits = permits
        self.awaited = False  # a task waits for a permit that is held elsewhere
        self.reason: Reason | None = None  # why it is out, when waiting would not help
        self.active = 0
        self.served = 0  # leases begun
        self.leases: set[Moving] | None = set() if watch else None  # that run; None: nobody asks
        self.idle: deque[Upstream] = deque()
        self.backoff = BACKOFF_FIRST
        self.retry_at = 0.0
        self.probing = False
        self.gone = False  # no longer among the addresses of its target
        self.error = ""

    def __repr__(self) -> str:
        return f"<Place {self.address} {self.state} active={self.active} idle={len(self.idle)}>"

    @property
    def moved(self) -> int:
        """A number that changes when bytes move on a connection that is leased, or an exchange begins."""
        running = [one.upstream.moved for one in self.leases or () if one.upstream is not None]
        return self.served + sum(running)

    def succeeded(self) -> None:
        """A connection was made: back in rotation."""
        self.state = "up"
        self.is_out = False
        self.reason = None
        self.error = ""
        self.backoff = BACKOFF_FIRST

    def failed(self, error: ConnectFailed, now: float) -> None:
        """A connect failed: out of rotation until a probe succeeds."""
        self.state = "busy" if error.busy else "down"
        self.is_out = True
        self.reason = error.reason
        self.error = str(error)
        self.retry_at = now + self.backoff
        self.backoff = min(self.backoff * 2, BACKOFF_LAST)

    def forget(self, upstream: Upstream) -> None:
        """Close an idle connection that has ended or on which the app spoke unasked; one that is leased stays."""
        try:
            self.idle.remove(upstream)
        except ValueError:
            return
        upstream.stream.close_now()

    def close_idle(self) -> None:
        """Close the connections that wait for an exchange."""
        while self.idle:
            self.idle.popleft().stream.close_now()


def choose(places: list[Place], turn: int) -> int:
    """The position of the next place in rotation that is not known to be full, beginning at `turn`; -1 for none."""
    size = len(places)
    for at in range(turn, turn + size):
        place = places[at % size]
        if not place.is_out and ((permits := place.permits) is None or permits.held < permits.limit):
            return at % size
    return -1


def take_place(places: list[Place], turn: int) -> int:
    """Like `choose`, but the place has room: a permit of it is taken, where it has some."""
    size = len(places)
    for at in range(turn, turn + size):
        place = places[at % size]
        if not place.is_out and (place.permits is None or place.permits.take()):
            return at % size
    return -1
