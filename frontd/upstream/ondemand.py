"""Pools for targets that no configuration names, made when a plugin routes to one.

Bounded: at `MOST` pools the one that was asked for longest ago leaves (its exchanges finish).  The pools are State and
stay over a reload (`following`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from frontd.upstream.pool import Pool

MOST = 256


class OnDemandPools:
    """Pools by target.  `start` runs a new pool beside the requests; None while nothing serves yet."""

    def __init__(self, make: Callable[[str], Pool]) -> None:
        self.make = make
        self.start: Callable[[Pool], None] | None = None
        self._pools: dict[str, Pool] = {}

    def following(self, make: Callable[[str], Pool]) -> OnDemandPools:
        """The same pools, for a configuration of which new ones are made by `make`."""
        other = OnDemandPools(make)
        other.start, other._pools = self.start, self._pools
        return other

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def get(self, target: str) -> Pool:
        """The pool of `target`.  Raises `ValueError` when that is no target."""
        pool = self._pools.pop(target, None)
        if pool is None:
            pool = self.make(target)
            assert self.start is not None, "nothing is routed before the front runs"
            self.start(pool)
            if len(self._pools) >= MOST:
                self._pools.pop(next(iter(self._pools))).retire()
        self._pools[target] = pool
        return pool
