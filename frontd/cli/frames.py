"""What `frontd top` shows: two samples of ``GET /counters`` become one page.  Pure.

Counters are compared by process: a front that was replaced between two samples begins at nothing, and one that did not
answer in time counts for nothing until it has answered twice.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from frontd.cli.common import count
from frontd.cli.live import memory
from frontd.cli.tables import duration, table

Data = dict[str, Any]
LEAST_ROWS = 2  # of each table, however low the terminal


class Sample(NamedTuple):
    """One answer, when it came (s of a clock that does not jump), and each front with its part of the queues."""

    at: float
    answer: Data
    fronts: list[Data]


def sample_of(at: float, answer: Data) -> Sample:
    """What came at `at`."""
    fronts = {front["index"]: {**front, "queues": {}} for front in answer["fronts"]}
    for queue in answer["request_queues"]:
        for one in queue["fronts"]:
            if one["index"] in fronts:
                fronts[one["index"]]["queues"][queue["name"]] = one
    return Sample(at, answer, list(fronts.values()))


class Page(NamedTuple):
    """Lines, and which of them are heads."""

    lines: list[str]
    heads: list[int]


def page(now: Sample, before: Sample | None, height: int | None = None, note: str = "") -> Page:
    """The whole page; `height` lines at most (None: as many as it takes), `note` stands beside the headline."""
    pools = pool_rows(now, before)
    fronts = front_rows(now, before)
    room = None if height is None else max(height - 6, 2 * LEAST_ROWS)  # two heads, a headline, three empty lines
    if room is not None:
        few = min(len(fronts), max(room // 3, LEAST_ROWS, room - len(pools)))
        fronts, pools = cut(fronts, few), cut(pools, room - few)
    lines = [headline(now, before, note), ""]
    heads = [0, 2]
    lines += table(POOL_HEADS, pools).splitlines()
    lines.append("")
    heads.append(len(lines))
    lines += table(FRONT_HEADS, fronts).splitlines()
    return Page(lines, heads)


def cut(rows: list[list[object]], most: int) -> list[list[object]]:
    """At most so many rows; the last one says how many are left out."""
    if len(rows) <= most:
        return rows
    left = len(rows) - most + 1
    return [*rows[: most - 1], [f"… and {left} more", *[""] * (len(rows[0]) - 1)]]


def headline(now: Sample, before: Sample | None, note: str) -> str:
    """How much there is in all."""
    answer = now.answer
    parts = [
        "frontd", count(len(answer["fronts"]), "front"), count(answer["connections"], "connection"),
        f"{shown(per_second(now, before, requests_of))} requests/s",
        f"{shown(per_second(now, before, lambda one: queue_counts(one, '5xx')))} 5xx/s",
    ]  # fmt: skip
    return "   ".join([*parts, *([note] if note else [])])


POOL_HEADS = ["POOL", "QUEUE", "OLDEST", "ACTIVE", "REQ/S", "5XX/S", "REFUSED/S BY REASON"]


def pool_rows(now: Sample, before: Sample | None) -> list[list[object]]:
    """A row for each pool; those with the longest queue and the most requests come first."""
    rows: list[tuple[tuple[int, float, str], list[object]]] = []
    for queue in now.answer["request_queues"]:
        name = queue["name"]
        served = per_second(now, before, lambda one, name=name: queue_counts(one, "served", name))
        wrong = per_second(now, before, lambda one, name=name: queue_counts(one, "5xx", name))
        reasons = []
        for word in sorted(queue["reasons"]):
            rate = per_second(now, before, lambda one, name=name, word=word: reason_counts(one, name, word))
            if rate:
                reasons.append(f"{word} {rate:.1f}")
        row = [
            name, queue["size"], duration(queue["oldest"]), queue["active"], shown(served), shown(wrong),
            ", ".join(reasons),
        ]  # fmt: skip
        rows.append(((-queue["size"], -(served or 0.0), name), row))
    return [row for _, row in sorted(rows, key=lambda one: one[0])]


FRONT_HEADS = ["FRONT", "PID", "STATE", "CPU %", "MEMORY", "CONNECTIONS", "REQ/S"]


def front_rows(now: Sample, before: Sample | None) -> list[list[object]]:
    """A row for each front."""
    rows: list[list[object]] = []
    for front in now.answer["fronts"]:
        pid = front["pid"]
        busy = per_second(now, before, lambda one, pid=pid: {pid: one["cpu"]} if one["pid"] == pid else {})
        requests = per_second(now, before, lambda one, pid=pid: requests_of(one) if one["pid"] == pid else {})
        rows.append([
            front["index"], pid, front["state"], shown(None if busy is None else busy * 100),
            memory(front["memory"]) if front["memory"] else None, front["connections"], shown(requests),
        ])  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------------------- rates


def shown(rate: float | None) -> str:
    """Something per second; ``-``: there is nothing to compare with."""
    return "-" if rate is None else f"{rate:.1f}"


def per_second(now: Sample, before: Sample | None, find: Any) -> float | None:
    """The rate of what `find` finds in each front, by process; None without a sample to compare with."""
    if before is None or now.at <= before.at:
        return None
    new, old = counted(now, find), counted(before, find)
    for front in before.fronts:
        if front["state"] == "silent":  # what it had counted by then is not known
            new.pop(front["pid"], None)
    return float(sum(max(value - old.get(pid, 0), 0) for pid, value in new.items()) / (now.at - before.at))


def counted(sample: Sample, find: Any) -> Counter[int]:
    """What `find` finds, by the pid of a front."""
    total: Counter[int] = Counter()
    for front in sample.fronts:
        total.update(find(front))
    return total


def requests_of(front: Data) -> dict[int, int]:
    """The requests of a front."""
    return {front["pid"]: front["requests"]}


def queue_counts(front: Data, counter: str, name: str | None = None) -> dict[int, int]:
    """A counter of one queue, or of all, in a front."""
    queues = front["queues"].values() if name is None else [front["queues"].get(name, {})]
    return {front["pid"]: sum(queue.get(counter, 0) for queue in queues)}


def reason_counts(front: Data, name: str, word: str) -> dict[int, int]:
    """How often a front has refused requests of a queue for that reason."""
    return {front["pid"]: front["queues"].get(name, {}).get("reasons", {}).get(word, 0)}
