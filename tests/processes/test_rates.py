"""Rates are made of notes of what fronts have counted."""

from __future__ import annotations

from collections.abc import Hashable

from frontd.processes.rates import EVERY, KEPT, Rates, counted


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_over_the_last_notes() -> None:
    time = Time()
    rates = Rates(time)
    for number in range(4):
        rates.note({"a": 100 * number})
        time.now += EVERY
    assert rates.over == KEPT * EVERY
    assert rates.per_second({"a": 400}, ["a"]) == 20.0
    assert rates.per_second({"a": 400, "b": 10}, ["a", "b"]) == 21.0


def test_without_a_note_there_is_no_rate() -> None:
    assert Rates().over is None
    assert Rates().per_second({"a": 5}, ["a"]) is None


def test_a_moment_says_nothing() -> None:
    time = Time()
    rates = Rates(time)
    rates.note({"a": 0})
    time.now += 0.5
    assert rates.per_second({"a": 1000}, ["a"]) is None


def test_a_front_that_died_takes_its_counters_along() -> None:
    """The one in its place has another pid and begins at nothing."""
    time = Time()
    rates = Rates(time)
    before: dict[Hashable, int] = {(1, "n"): 1000, (2, "n"): 500}
    rates.note(before)
    time.now += 10
    assert rates.per_second({(3, "n"): 30, (2, "n"): 520}, [(3, "n"), (2, "n")]) == 5.0
    assert rates.per_second({(1, "n"): 10}, [(1, "n")]) == 0.0


def test_what_is_counted_is_by_process() -> None:
    pool = {"name": "app", "counters": {"arrived": 1, "refused": 2, "served": 3, "5xx": 4}}
    one = {"front": {"pid": 7, "requests": 9}, "sites": [{"name": "s", "requests": 5, "errors": 6}], "pools": [pool]}
    found = counted([one, {**one, "front": {"pid": 8, "requests": 10}}])
    assert found[7, "front", "", "requests"] == 9
    assert found[8, "front", "", "requests"] == 10
    assert found[8, "site", "s", "errors"] == 6
    assert [found[7, "pool", "app", name] for name in ("arrived", "refused", "served", "5xx")] == [1, 2, 3, 4]
