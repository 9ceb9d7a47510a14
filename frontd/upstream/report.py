"""What a pool says of itself: rows for people, and numbers for those who look after its apps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frontd.upstream.pool import Pool


def rows(pool: Pool) -> list[dict[str, object]]:
    """One row for each place, for `frontd status`: what this front has, and in ``held`` the permits that all fronts
    hold (None without `concurrency`)."""
    concurrency = pool.settings.concurrency
    found: list[dict[str, object]] = [
        {
            "target": place.target,
            "address": str(place.address),
            "state": place.state,
            "active": place.active,
            "idle": len(place.idle),
            "concurrency": concurrency,
            "held": place.permits.total() if place.permits is not None else None,
            "error": place.error,
        }
        for place in pool.places
    ]
    resolved = {place.target for place in pool.places}
    for target in pool.names:
        if target.text not in resolved:
            row: dict[str, object] = dict.fromkeys(("active", "idle"), 0)
            row |= {"target": target.text, "address": "-", "state": "unresolved"}
            row |= {"concurrency": concurrency, "held": None}
            row["error"] = pool.lookup_errors.get(target, "")
            found.append(row)
    return found


def served(pool: Pool) -> int:
    """How many exchanges this front has begun with the apps of a pool."""
    return pool.departed + sum(place.served for place in (*pool.leaving, *pool.places))


def load(pools: Sequence[Pool], now: float) -> dict[str, Any]:
    """How busy this front keeps the apps of a pool; counts since this front has the pool, `oldest` in s.  The pool is
    the last one; before it come those that it has replaced and that are not over.

    A place has its row while it is among the places, and then until the last exchange on it is over.
    """
    places: dict[str, dict[str, int]] = {}
    for pool in pools:
        for place in (*pool.leaving, *pool.places):
            row = places.setdefault(str(place.address), {"active": 0, "served": 0, "moved": 0})
            row["active"] += place.active
            row["served"] += place.served
            row["moved"] += place.moved
    queue = pools[-1].queue
    return {
        "queue": sum(len(pool.queue) for pool in pools),
        "oldest": round(max(pool.queue.longest(now) for pool in pools), 3),
        "arrived": queue.arrived, "refused": queue.refused, "places": places,
    }  # fmt: skip
