"""What a pool says of itself: rows for people, and numbers for those who look after its apps."""

from __future__ import annotations

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


def load(pool: Pool, now: float) -> dict[str, object]:
    """How busy this front keeps the apps of a pool; counts since this front has the pool, `oldest` in s.

    A place has its row while it is among the places, and then until the last exchange on it is over.
    """
    queue = pool.queue
    places = {
        str(place.address): {"active": place.active, "served": place.served, "moved": place.moved}
        for place in (*pool.leaving, *pool.places)
    }
    return {
        "queue": len(queue), "oldest": round(queue.longest(now), 3), "arrived": queue.arrived,
        "refused": queue.refused, "places": places,
    }  # fmt: skip
