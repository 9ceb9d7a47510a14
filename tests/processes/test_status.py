"""Facts of several fronts become one answer."""

from __future__ import annotations

from typing import Any

from frontd.processes.status import merged


def facts(index: int, **more: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "front": {"index": index, "connections": 2},
        "listeners": [{"name": "http", "port": 80, "connections": 2}],
        "sites": [{"name": "a", "requests": 5, "errors": 1}],
        "pools": [],
        "store": {"used": 10, "limit": 100, "entries": 1},
        "certificates": [{"hosts": ["a.test"]}],
        "reasons": {"URL": 1},
        "log": {"dropped": 1},
        "dropped_underscore_fields": 3,
    }
    return plain | more


def target(address: str, state: str, *, active: int = 0, held: int | None = None, error: str = "") -> dict[str, Any]:
    return {
        "target": "http://app:80", "address": address, "state": state, "active": active, "idle": 1,
        "concurrency": None, "held": held, "error": error,
    }  # fmt: skip


def pool(*targets: dict[str, Any], length: int = 0, longest: float = 0.0, on_demand: bool = False) -> dict[str, Any]:
    queue = {"length": length, "limit": 1000, "wait": 30.0, "longest": longest}
    counted = {"counters": {"arrived": 3, "5xx": 1}, "reasons": {"QueueFull": 1}}
    counted["replay"] = {"used": length, "limit": 100, "missed": 1}
    return {"name": "app", "on_demand": on_demand, **counted, "queue": queue, "targets": list(targets)}


def test_counters_are_added() -> None:
    found = merged([facts(0), facts(1, reasons={"URL": 2, "ConnLimit": 1})])
    assert found["fronts"] == [{"index": 0, "connections": 2}, {"index": 1, "connections": 2}]
    assert found["listeners"] == [{"name": "http", "port": 80, "connections": 4}]
    assert found["sites"] == [{"name": "a", "requests": 10, "errors": 2}]
    assert found["store"] == {"used": 20, "limit": 200, "entries": 2}
    assert found["certificates"] == [{"hosts": ["a.test"]}]
    assert found["reasons"] == {"URL": 3, "ConnLimit": 1}
    assert (found["log"], found["dropped_underscore_fields"], found["connections"]) == ({"dropped": 2}, 6, 4)


def test_what_only_one_has_is_shown() -> None:
    """A front that is one reload behind, or the only one that was asked for a target on demand."""
    other = facts(1, sites=[{"name": "b", "requests": 1, "errors": 0}], pools=[pool(on_demand=True)])
    found = merged([facts(0, pools=[pool()]), other])
    assert [site["name"] for site in found["sites"]] == ["a", "b"]
    assert [one["on_demand"] for one in found["pools"]] == [False, True]


def test_a_target_is_up_if_one_front_reaches_it() -> None:
    one = pool(target("10.0.0.1", "down", active=1, held=2, error="refused"), length=1, longest=2.5)
    other = pool(target("10.0.0.1", "up", active=3, held=4), target("10.0.0.2", "unknown"), length=2, longest=1.0)
    (found,) = merged([facts(0, pools=[one]), facts(1, pools=[other])])["pools"]
    assert found["queue"] == {"length": 3, "limit": 1000, "wait": 30.0, "longest": 2.5}
    assert found["replay"] == {"used": 3, "limit": 200, "missed": 2}
    assert [(row["address"], row["state"], row["active"], row["idle"], row["held"]) for row in found["targets"]] == [
        ("10.0.0.1", "up", 4, 2, 4), ("10.0.0.2", "unknown", 0, 1, None),
    ]  # fmt: skip
    assert found["targets"][0]["error"] == ""
    assert (found["counters"], found["reasons"]) == ({"arrived": 6, "5xx": 2}, {"QueueFull": 2})


def test_pins_are_added_where_there_can_be_any() -> None:
    fronts = [facts(0, pools=[pool() | {"pins": 2}]), facts(1, pools=[pool() | {"pins": 3}]), facts(2, pools=[pool()])]
    assert [one["pins"] for one in merged(fronts)["pools"]] == [5]  # the third one is a reload behind
    assert [one["pins"] for one in merged([facts(0, pools=[pool() | {"pins": None}])])["pools"]] == [None]


def test_no_front_at_all() -> None:
    assert merged([])["fronts"] == []
    assert merged([])["certificates"] == []
