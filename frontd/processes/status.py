"""What a front can tell about itself, and what several of them are together.

Facts are plain data, since they travel between processes.  Counters are counted by each front for itself, without any
coordination, and added up when somebody asks; those of a front that has ended are gone with it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import trio

from frontd.lanes.listener import Listener
from frontd.lanes.service import Service
from frontd.upstream.pool import Pool
from frontd.upstream.report import rows, served

_PAGE = os.sysconf("SC_PAGE_SIZE")
_ORDER = {"up": 0, "unknown": 1, "down": 2}  # the state of a target is the best that any front sees

Facts = dict[str, Any]


def facts(index: int, since: float, state: str, listeners: Sequence[Listener], service: Service) -> Facts:
    """What `frontd status` shows of one front; `since` is its start (s since the epoch)."""
    world, now = service.world, trio.current_time()
    found = [*((pool, False) for pool in world.pools.values()), *((pool, True) for pool in world.ondemand)]
    service.forget_failures({pool.settings.name for pool, _ in found})
    pools = [
        pool_facts(pool, now, service.failed.get(pool.settings.name, {}), on_demand=on_demand)
        for pool, on_demand in found
    ]
    return {
        "front": {
            "index": index, "pid": os.getpid(), "since": iso(since), "state": state, "generation": world.generation,
            "connections": len(service.connections),
            "requests": sum(site.state.requests for site in world.all_sites), "memory": memory(),
            "cpu": round(time.process_time(), 3),
        },
        "listeners": [
            {
                "name": one.settings.name, "kind": one.settings.kind, "address": one.settings.address or "*",
                "port": one.port, "public_port": one.public_port, "connections": service.by_listener[one.identity],
            }
            for one in listeners
        ],
        "sites": [
            {"name": site.name, "requests": site.state.requests, "errors": site.state.errors}
            for site in world.all_sites
        ],
        "pools": pools,
        "store": {"used": world.store.used, "limit": world.store.limit, "entries": len(world.store)},
        "certificates": [
            {
                "hosts": list(profile.certificate.hosts), "source": profile.certificate.source,
                "not_after": profile.certificate.not_after.isoformat(),
            }
            for profile in {id(p.certificate): p for p in world.profiles.profiles}.values()
        ],
        "reasons": dict(service.reasons),
        "log": {"dropped": service.log.dropped},
        "dropped_underscore_fields": service.underscores,
    }  # fmt: skip


def mute(index: int, pid: int, since: float, generation: int) -> Facts:
    """What is shown of a front that does not answer, or that is just being started (`generation` 0)."""
    front = {"index": index, "pid": pid, "since": iso(since), "generation": generation}
    front |= {"state": "silent" if generation else "starting", "connections": 0, "requests": 0, "memory": 0, "cpu": 0.0}
    nothing: dict[str, Any] = {noun: [] for noun in ("listeners", "sites", "pools", "certificates")}
    return {
        "front": front, **nothing, "store": dict.fromkeys(("used", "limit", "entries"), 0), "reasons": {},
        "log": {"dropped": 0}, "dropped_underscore_fields": 0,
    }  # fmt: skip


def pool_facts(pool: Pool, now: float, failed: Mapping[str, int], *, on_demand: bool) -> Facts:
    """A pool as ``/status`` shows it; `on_demand`: no configuration names it, a plugin has routed to its target.
    `failed` are the reasons for which its requests were not answered by an app, and how many answers were 5xx.

    ``pins``: connections to the app that are each of one client's connection alone; None where logons do not pass.
    """
    return {
        "name": pool.settings.name, "on_demand": on_demand,
        "counters": {
            "arrived": pool.queue.arrived, "refused": pool.queue.refused, "served": served(pool),
            "5xx": failed.get("5xx", 0),
        },
        "reasons": {word: number for word, number in failed.items() if word != "5xx"},
        "queue": {
            "length": len(pool.queue), "limit": pool.settings.queue_limit,
            "wait": pool.settings.queue_wait, "longest": round(pool.queue.longest(now), 3),
            "refuse_with": pool.settings.refuse_with,
        },
        "pins": len(pool.keepers) if pool.settings.pass_through else None,
        "replay": {"used": pool.replay.used, "limit": pool.replay.limit, "missed": pool.replay.missed},
        "targets": rows(pool),
    }  # fmt: skip


def merged(every: Sequence[Facts]) -> Facts:
    """What the fronts are together: counters added up, each pool and each of its addresses once.

    The first one's words hold for what is the same everywhere.
    """
    reasons: Counter[str] = Counter()
    for one in every:
        reasons.update(one["reasons"])
    return {
        "fronts": [one["front"] for one in every],
        "listeners": _added("listeners", every, ("name",), ("connections",)),
        "sites": _added("sites", every, ("name",), ("requests", "errors")),
        "pools": _pools(every),
        "store": {key: sum(one["store"][key] for one in every) for key in ("used", "limit", "entries")},
        "certificates": every[0]["certificates"] if every else [],
        "reasons": dict(reasons),
        "log": {"dropped": sum(one["log"]["dropped"] for one in every)},
        "dropped_underscore_fields": sum(one["dropped_underscore_fields"] for one in every),
        "connections": sum(one["front"]["connections"] for one in every),
    }


def _added(noun: str, every: Iterable[Facts], key: Sequence[str], counters: Sequence[str]) -> list[Facts]:
    """The rows of `noun` by `key`, in the order in which they were found, their `counters` added up."""
    rows: dict[tuple[Any, ...], Facts] = {}
    for row in (row for one in every for row in one[noun]):
        standing = rows.setdefault(tuple(row[part] for part in key), {**row, **dict.fromkeys(counters, 0)})
        for counter in counters:
            standing[counter] += row[counter]
    return list(rows.values())


def _pools(every: Iterable[Facts]) -> list[Facts]:
    found: dict[tuple[str, bool], list[Facts]] = {}
    for pool in (pool for one in every for pool in one["pools"]):
        found.setdefault((pool["name"], pool["on_demand"]), []).append(pool)
    return [
        {
            **same[0],
            "counters": _sum(pool["counters"] for pool in same),
            "reasons": _sum(pool["reasons"] for pool in same),
            "queue": {
                **same[0]["queue"],
                "length": sum(pool["queue"]["length"] for pool in same),
                "longest": max(pool["queue"]["longest"] for pool in same),
            },
            "pins": _pins(pool.get("pins") for pool in same),
            "replay": _sum(pool["replay"] for pool in same),
            "targets": _targets(same),
        }
        for same in found.values()
    ]


def _sum(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counters:
        total.update(one)
    return dict(total)


def _pins(counts: Iterable[int | None]) -> int | None:
    there = [count for count in counts if count is not None]
    return sum(there) if there else None


def _targets(pools: Iterable[Facts]) -> list[Facts]:
    rows: dict[tuple[str, str], Facts] = {}
    for row in (row for pool in pools for row in pool["targets"]):
        key = row["target"], row["address"]
        standing = rows.get(key)
        if standing is None:
            rows[key] = dict(row)
            continue
        best = min(standing, row, key=lambda one: _ORDER.get(one["state"], 1))
        held = [one["held"] for one in (standing, row) if one.get("held") is not None]
        rows[key] = {
            **best, "active": standing["active"] + row["active"], "idle": standing["idle"] + row["idle"],
            "held": max(held, default=None),  # of all fronts, as each of them sees it
        }  # fmt: skip
    return list(rows.values())


def memory() -> int:
    """Bytes of this process in memory, those included that it shares with others (proc(5), statm)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE


def iso(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
