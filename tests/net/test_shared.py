"""What fronts count together, seen from one process: names, sums, and what happens when there are too many of them."""

from __future__ import annotations

import fcntl
import gc
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.net.permits import Permits, SharedPermits, permits
from frontd.net.shared import (
    COUNTERS,
    PERMITS,
    Counter,
    CounterApart,
    LocalSlots,
    SharedCounter,
    SharedFds,
    Slots,
    size_of,
)


@pytest.fixture
def fds() -> Iterator[SharedFds]:
    made = SharedFds(3)
    yield made
    made.close()


def front(fds: SharedFds, index: int) -> Slots:
    return Slots(fds.fd, index, fds.fronts, fds.eventfds)


def left_in(eventfd: int) -> int:
    """The number in an eventfd, as the kernel tells it."""
    lines = Path(f"/proc/self/fdinfo/{eventfd}").read_text().splitlines()
    (count,) = (line.split()[1] for line in lines if line.startswith("eventfd-count"))
    return int(count, 16)


# ---------------------------------------------------------------------------------------------------- counters


def test_a_name_is_one_number_to_all_fronts(fds: SharedFds) -> None:
    one, two = front(fds, 0).counter("connections"), front(fds, 1).counter("connections")
    one.add(3)
    two.add(4)
    two.add(-1)
    assert (one.mine, one.others(), one.total()) == (3, 3, 6)
    assert (one.peers(), two.peers()) == ([3], [3])  # the third front has not asked for it
    three = front(fds, 2).counter("connections")
    assert (three.mine, three.total(), three.peers()) == (0, 6, [3, 3])


def test_other_names_are_other_numbers(fds: SharedFds) -> None:
    slots = front(fds, 0)
    one, two = slots.counter("site a"), slots.counter("site b")
    one.add(1)
    assert two.total() == 0
    assert slots.counter("site a") is one


def test_alone_it_is_the_same_without_memory() -> None:
    slots = LocalSlots()
    counter = slots.counter("connections")
    counter.add(2)
    assert slots.counter("connections") is counter
    assert (counter.mine, counter.others(), counter.total(), counter.peers()) == (2, 0, 2, [])
    assert type(permits(slots, "app", 2)) is Permits


def test_a_name_that_nobody_has_any_more_leaves_its_entry(fds: SharedFds) -> None:
    slots = front(fds, 0)
    for turn in range(3 * COUNTERS):
        counter = slots.counter(f"site {turn}")
        counter.add(5)
        del counter
    assert slots.missed == 0
    assert slots.counter("site 1").total() == 0


def test_an_entry_stays_while_another_front_has_it(fds: SharedFds) -> None:
    one, two = front(fds, 0).counter("site"), front(fds, 1).counter("site")
    one.add(7)
    two.add(2)
    del one
    others = [front(fds, 2).counter(f"other {turn}") for turn in range(COUNTERS - 1)]
    assert two.total() == 2
    assert front(fds, 0).counter("site").total() == 2
    del others


def test_without_an_entry_each_front_keeps_to_its_part(fds: SharedFds) -> None:
    slots = front(fds, 1)
    kept = [slots.counter(str(turn)) for turn in range(COUNTERS + 1)]
    assert isinstance(kept[-2], SharedCounter)
    assert isinstance(kept[-1], CounterApart)
    assert slots.missed == 1
    kept[-1].add(2)
    assert kept[-1].total() == 6  # as if all three fronts had two
    some = [permits(slots, str(turn), 7) for turn in range(PERMITS + 1)]
    assert [type(one) for one in some[-2:]] == [SharedPermits, Permits]
    assert some[-1].limit == 2  # 7 // 3


def test_a_lock_that_does_not_come_free_is_not_waited_for(fds: SharedFds, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def taken(fd: int, how: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", taken)
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert isinstance(front(fds, 0).counter("site"), CounterApart)
    assert sum(pauses) == pytest.approx(0.05)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(-3, 3) | st.none()), max_size=60))
def test_whoever_comes_and_goes_the_sum_is_right(steps: list[tuple[int, str, int | None]]) -> None:
    """A step adds to a counter, or (None) lets go of it; a model of plain integers says what must be read."""
    fds = SharedFds(3)
    try:
        fronts = [front(fds, index) for index in range(3)]
        have: dict[tuple[int, str], Counter] = {}
        model: dict[tuple[int, str], int] = {}
        for index, name, n in steps:
            if n is None:
                have.pop((index, name), None)
                model.pop((index, name), None)
                continue
            counter = have.setdefault((index, name), fronts[index].counter(name))
            counter.add(n)
            model[index, name] = model.get((index, name), 0) + n
            del counter
            totals = {key: have[key].total() for key in have}
            assert totals == {key: sum(model[other] for other in model if other[1] == key[1]) for key in have}
    finally:
        fds.close()


# ---------------------------------------------------------------------------------------------------- the memory


def test_every_front_must_know_how_many_they_are(fds: SharedFds) -> None:
    with pytest.raises(ValueError, match="not one of 2 fronts"):
        Slots(fds.fd, 0, 2)
    with pytest.raises(ValueError, match="front 6 is none of 2 sets of 3"):
        Slots(fds.fd, 6, 3)


def test_two_sets_are_one_sum_and_no_peers(fds: SharedFds) -> None:
    """The other set drains, or has not begun: who accepts next is none of its business, limits are."""
    old, new, beside = (front(fds, index).counter("connections") for index in (0, 3, 5))
    old.add(4)
    new.add(2)
    beside.add(1)
    assert (old.peers(), new.peers(), beside.peers()) == ([], [1], [2])
    assert (old.total(), new.total(), new.others()) == (7, 7, 5)
    mine = permits(front(fds, 1), "app", 1)
    theirs = permits(front(fds, 4), "app", 1)
    assert (mine.take(), theirs.take(), theirs.total()) == (True, False, 1)
    fds.reclaim(1)
    assert theirs.take()


def test_nobody_can_cut_the_memory(fds: SharedFds) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(fds.fd, size_of(3) - 1)


def test_it_is_inherited_only_on_purpose(fds: SharedFds) -> None:
    assert not any(os.get_inheritable(fd) for fd in (fds.fd, *fds.eventfds))


def test_values_of_different_fronts_are_apart_and_aligned(fds: SharedFds) -> None:
    memory = fds._memory
    at = sorted(memory.value_at(index, entry) for index in range(3) for entry in (0, COUNTERS + PERMITS - 1))
    assert all(after - before >= 1 for before, after in pairwise(at))
    assert memory.words.itemsize == 8
    assert (memory.bytes.nbytes - memory.words.nbytes) % 64 == 0  # mmap begins at a page, the words at a cache line


# ---------------------------------------------------------------------------------------------------- permits


def test_permits_are_shared(fds: SharedFds) -> None:
    one, two = (permits(front(fds, index), "app", 2) for index in (0, 1))
    assert [one.take(), two.take(), one.take(), two.take()] == [True, True, False, False]
    assert (one.held, two.held, one.total()) == (1, 1, 2)
    one.give()
    assert [two.take(), one.take()] == [True, False]
    assert (one.total(), two.held) == (2, 2)


def test_a_successor_has_the_permits_of_its_predecessor(fds: SharedFds) -> None:
    for slots in (LocalSlots(), front(fds, 0)):
        old = permits(slots, "app", 1)
        assert old.take()
        assert permits(slots, "app", 1) is old
        assert permits(slots, "app", 2) is not old


def test_an_entry_that_is_used_again_has_its_own_number(fds: SharedFds) -> None:
    slots = front(fds, 0)
    for turn in range(2 * PERMITS):
        some = permits(slots, f"app {turn}", 1 + turn % 5)
        taken = 0
        while some.take():
            taken += 1
        assert taken == 1 + turn % 5
        for _ in range(taken):
            some.give()
        del some
    assert slots.missed == 0


def test_permits_that_are_dropped_go_back(fds: SharedFds) -> None:
    """Nobody drops them on purpose; but one lost would take a place away from all fronts."""
    one, two = (permits(front(fds, index), "app", 1) for index in (0, 1))
    assert one.take()
    del one
    gc.collect()
    assert two.take()


def test_a_permit_too_many_is_thrown_away_by_who_holds_all(fds: SharedFds) -> None:
    slots = front(fds, 0)
    some = permits(slots, "app", 1)
    os.eventfd_write(fds.eventfds[0], 1)  # as a front leaves it that was killed while it gave
    assert some.take()
    assert not some.take()
    assert left_in(fds.eventfds[0]) == 0
    some.give()
    assert left_in(fds.eventfds[0]) == 1


def test_reclaim_gives_back_and_zeroes(fds: SharedFds) -> None:
    one, two = (permits(front(fds, index), "app", 5) for index in (0, 1))
    connections, there = front(fds, 0).counter("connections"), front(fds, 1).counter("connections")
    connections.add(4)
    there.add(1)
    assert [one.take() for _ in range(3)] == [True] * 3
    assert two.take()
    assert fds.reclaim(0) == 3
    assert (there.total(), there.peers()) == (1, [])
    assert left_in(fds.eventfds[0]) == 4
    assert [two.take() for _ in range(5)] == [True, True, True, True, False]
    assert fds.reclaim(0) == 0  # nothing is given twice
