"""Who gets the next request: the places of a pool, and the choice among them.

A `Place` is one address of a pool's targets: a name that resolves to three addresses is three places.  The choice is
synchronous and does no I/O: round robin over the places that are not out of rotation and have room (nginx's and
HAProxy's default).
"""

from __future__ import annotations

from collections import deque

from frontd.model.errors import Reason
from frontd.upstream.client import Address, ConnectFailed, Dialect, Upstream

BACKOFF_FIRST = 0.05  # s until a refused address is tried again
BACKOFF_LAST = 1.0  # s, so that an app is noticed at most a second after it listens


class Place:
    """One address of a pool.  `active` counts the exchanges that hold it, `idle` the connections that wait for one."""

    __slots__ = (
        "active", "address", "backoff", "dialect", "error", "gone", "idle", "probing", "reason", "retry_at", "state",
        "target",
    )  # fmt: skip

    def __init__(self, target: str, address: Address, dialect: Dialect) -> None:
        self.target = target
        self.address = address
        self.dialect = dialect
        self.state = "unknown"  # up | busy: there, but takes no connection | down | unknown: never tried
        self.reason: Reason | None = None  # why it is out, when waiting would not help
        self.active = 0
        self.idle: deque[Upstream] = deque()
        self.backoff = BACKOFF_FIRST
        self.retry_at = 0.0
        self.probing = False
        self.gone = False  # no longer among the addresses of its target
        self.error = ""

    def __repr__(self) -> str:
        return f"<Place {self.address} {self.state} active={self.active} idle={len(self.idle)}>"

    @property
    def is_out(self) -> bool:
        """Whether it is out of rotation until a probe succeeds."""
        return self.state in ("down", "busy")

    def succeeded(self) -> None:
        """A connection was made: back in rotation."""
        self.state = "up"
        self.reason = None
        self.error = ""
        self.backoff = BACKOFF_FIRST

    def failed(self, error: ConnectFailed, now: float) -> None:
        """A connect failed: out of rotation until a probe succeeds."""
        self.state = "busy" if error.busy else "down"
        self.reason = error.reason
        self.error = str(error)
        self.retry_at = now + self.backoff
        self.backoff = min(self.backoff * 2, BACKOFF_LAST)

    def close_idle(self) -> None:
        """Close the connections that wait for an exchange."""
        while self.idle:
            self.idle.popleft().stream.close_now()


def choose(places: list[Place], turn: int, concurrency: int | None) -> Place | None:
    """The next place with room, beginning at position `turn`; None when all are out or full."""
    for step in range(len(places)):
        place = places[(turn + step) % len(places)]
        if not place.is_out and (concurrency is None or place.active < concurrency):
            return place
    return None
