"""A lease: the right to use one upstream connection for one exchange, and whose that connection is afterwards.

Invariant: ``place.active`` is the number of leases on a place; each `Lease` is ended exactly once, by `give_back` or
`discard`.
"""

from __future__ import annotations

from typing import Protocol

from frontd.upstream.balance import Place
from frontd.upstream.client import Upstream
from frontd.upstream.targets import PoolSettings


class Keeper(Protocol):
    """Whose a connection is that is nobody else's."""

    @property
    def place(self) -> Place | None:
        """Where it leads to (None: it is not made yet)."""

    def returned(self, upstream: Upstream, /, *, keep: bool) -> None:
        """An exchange on it is over; `keep`: the connection may serve another one of the same client."""

    def look(self, oldest: float, /) -> None:
        """End it if it has been idle since `oldest` (trio's clock, s) or is too old."""

    def end(self) -> None:
        """Nothing more is to be asked on it."""


class _Nobody:
    """The keeper of a connection that serves one exchange alone."""

    place = None

    def returned(self, upstream: Upstream, /, *, keep: bool) -> None:
        upstream.stream.close_now()

    def look(self, oldest: float, /) -> None: ...
    def end(self) -> None: ...


NOBODY: Keeper = _Nobody()


class Leasing(Protocol):
    """What a lease knows of its pool; `passes_answers_on`: nothing in the head of an answer is for frontd, neither a
    file to send nor a logon of the connection; but for 401, which is for everybody."""

    passes_answers_on: bool

    @property
    def settings(self) -> PoolSettings: ...
    def release(self, lease: Lease, /, *, keep: bool) -> None: ...


class Lease:
    """The right to use one upstream connection for one exchange.  `keeper`: to whom the connection goes afterwards
    (None: to the pool)."""

    __slots__ = ("ended", "keeper", "place", "pool", "upstream")

    def __init__(self, pool: Leasing, place: Place, upstream: Upstream | None, keeper: Keeper | None = None) -> None:
        self.pool = pool
        self.place = place
        self.upstream = upstream
        self.keeper = keeper
        self.ended = False
        place.active += 1
        place.served += 1
        if place.leases is not None:
            place.leases.add(self)

    @property
    def connection(self) -> Upstream:
        """The connection it was made with or for."""
        assert self.upstream is not None, "the lease has no connection yet"
        return self.upstream

    @property
    def is_fresh(self) -> bool:
        """Whether the connection was made for this lease."""
        return self.connection.uses <= 1

    def put_back(self, *, keep: bool) -> None:
        """Leave the idle connection that came with it, if one did, to others; not `keep`: its place has left since."""
        upstream = self.upstream
        if upstream is not None:
            self.upstream = None
            upstream.uses -= 1
            if keep:
                upstream.is_idle = True
                self.place.idle.append(upstream)
            else:
                upstream.stream.close_now()

    def give_back(self) -> None:
        """The exchange is over; the connection is kept when both sides allow it."""
        if not self.ended:
            self.ended = True
            self.pool.release(self, keep=True)

    def discard(self) -> None:
        """The exchange is over and so is the connection.  Harmless after `give_back`."""
        if not self.ended:
            self.ended = True
            self.pool.release(self, keep=False)
