"""Rates are made of notes of what fronts have counted."""

from __future__ import annotations

from frontd.processes.rates import EVERY, KEPT, Key, Rates, counted


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(pid: int, name: str = "a") -> Key:
    return pid, "pool", name, "served"


def test_a_rate_is_over_the_last_notes() -> None:
    time = Time()
    rates = Rates(time)
    for number in range(4):
        rates.note({key(1): 100 * number})
        time.now += EVERY
    assert rates.over == KEPT * EVERY
    assert rates.per_second({key(1): 400}, [key(1)]) == 20.0
    assert rates.per_second({key(1): 400, key(1, "b"): 10}, [key(1), key(1, "b")]) == 21.0


def test_without_a_note_there_is_no_rate() -> None:
    assert Rates().over is None
    assert Rates().per_second({key(1): 5}, [key(1)]) is None


def test_a_moment_says_nothing() -> None:
    time = Time()
    rates = Rates(time)
    rates.note({key(1): 0})
    time.now += 0.5
    assert rates.per_second({key(1): 1000}, [key(1)]) is None


def test_a_front_that_died_takes_its_counters_along() -> None:
    """The one in its place has another pid and begins at nothing."""
    time = Time()
    rates = Rates(time)
    rates.note({key(1): 1000, key(2): 500})
    time.now += 10
    assert rates.per_second({key(3): 30, key(2): 520}, [key(3), key(2)]) == 5.0
    assert rates.per_second({key(1): 10}, [key(1)]) == 0.0


def test_a_front_that_did_not_answer_has_not_counted_all_at_once() -> None:
    time = Time()
    rates = Rates(time)
    rates.note({key(1): 1000})
    for _ in range(KEPT):
        rates.note({}, {1})
    time.now += 10
    assert rates.per_second({key(1): 1020}, [key(1)]) == 2.0


def test_what_is_counted_is_by_process() -> None:
    pool = {"name": "app", "counters": {"arrived": 1, "refused": 2, "served": 3, "5xx": 4}}
    sites = [{"name": "s", "requests": 5, "errors": 6}]
    one = {"front": {"pid": 7, "requests": 9, "state": "serving"}, "sites": sites, "pools": [pool]}
    silent = {"front": {"pid": 9, "requests": 0, "state": "silent"}, "sites": [], "pools": []}
    found = counted([one, {**one, "front": {**one["front"], "pid": 8, "requests": 10}}, silent])  # type: ignore[dict-item]
    assert found[7, "front", "", "requests"] == 9
    assert found[8, "front", "", "requests"] == 10
    assert found[8, "site", "s", "errors"] == 6
    assert [found[7, "pool", "app", name] for name in ("arrived", "refused", "served", "5xx")] == [1, 2, 3, 4]
    assert {pid for pid, *_ in found} == {7, 8}
