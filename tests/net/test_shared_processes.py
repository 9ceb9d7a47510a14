"""What fronts count together, with fronts that are processes, some of which are killed."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator

import pytest

from frontd.net.permits import permits
from frontd.net.shared import SharedFds, Slots
from tests.net.fronts import Front
from tests.net.test_shared import left_in


@pytest.fixture
def shared() -> Iterator[SharedFds]:
    made = SharedFds(4)
    yield made
    made.close()


@pytest.fixture
def start(shared: SharedFds) -> Iterator[Callable[[int], Front]]:
    """Starts front number so-and-so; front 3 is the test itself."""
    started: list[Front] = []

    def one(index: int) -> Front:
        started.append(Front(shared, index))
        return started[-1]

    yield one
    for front in started:
        if front.process.poll() is None:
            front.kill()


def here(shared: SharedFds) -> Slots:
    return Slots(shared.fd, 3, 4, shared.eventfds)


def test_the_sum_exceeds_the_limit_by_at_most_one_for_each_other_front(
    shared: SharedFds, start: Callable[[int], Front]
) -> None:
    fronts = [start(index) for index in range(3)]
    slots = here(shared)
    for turn in range(20):
        for front in fronts:
            front.begin(f"fill(slots, 'round {turn}', 500)")
        added = [int(front.result()) for front in fronts]
        assert slots.counter(f"round {turn}").total() == sum(added)
        assert 500 <= sum(added) <= 502, added


def test_a_value_is_written_at_once(shared: SharedFds, start: Callable[[int], Front]) -> None:
    """All bytes change together: a reader sees eight times 0x00 or eight times 0xff, never some of both."""
    front = start(0)
    counter = here(shared).counter("flicker")
    front.begin("flicker(slots, 'flicker', 300_000)")
    seen: set[int] = set()
    assert front.process.stdout is not None
    while not select.select([front.process.stdout], [], [], 0)[0]:
        for _ in range(1000):
            seen.add(counter.total())
    assert front.result() == "None"
    assert seen <= {0, -1}
    assert seen


def test_no_permit_is_lost_or_doubled_by_contention(shared: SharedFds, start: Callable[[int], Front]) -> None:
    fronts = [start(index) for index in range(3)]
    some = permits(here(shared), "app", 2)
    for front in fronts:
        front.begin("churn(permits(slots, 'app', 2), 20_000)")
    assert all(int(front.result()) for front in fronts)
    assert left_in(shared.eventfds[0]) == 2
    assert some.total() == 0


def test_what_a_killed_front_held_comes_back(shared: SharedFds, start: Callable[[int], Front]) -> None:
    slots = here(shared)
    some, connections = permits(slots, "app", 3), slots.counter("connections")
    front = start(0)
    front.do("kept.append(permits(slots, 'app', 3)) or kept.append(slots.counter('connections'))")
    assert front.do("[kept[0].take(), kept[0].take(), kept[1].add(9)]") == "[True, True, None]"
    assert [some.take(), some.take()] == [True, False]
    assert connections.total() == 9
    front.kill()
    assert not some.take()  # until the master says so
    assert shared.reclaim(0) == 2
    assert [some.take(), some.take(), some.take()] == [True, True, False]
    assert connections.total() == 0


def test_the_next_front_of_that_number_begins_with_nothing(shared: SharedFds, start: Callable[[int], Front]) -> None:
    some = permits(here(shared), "app", 1)
    front = start(0)
    assert front.do("kept.append(permits(slots, 'app', 1)) or kept[0].take()") == "True"
    front.kill()
    shared.reclaim(0)
    again = start(0)
    assert again.do("kept.append(permits(slots, 'app', 1)) or (kept[0].held, kept[0].take())") == "(0, True)"
    assert not some.take()


@pytest.mark.parametrize(
    ("moment", "step", "too_many"),
    [
        ("die_at('eventfd_read')", "take", 1),  # the slot says one more than it has
        ("die_after('eventfd_read')", "take", 0),
        ("die_at('eventfd_write')", "give", 0),
        ("die_after('eventfd_write')", "give", 1),  # the slot still says what it had
    ],
)
def test_killed_between_eventfd_and_slot_no_permit_is_lost(
    shared: SharedFds, start: Callable[[int], Front], moment: str, step: str, too_many: int
) -> None:
    some = permits(here(shared), "app", 2)
    front = start(0)
    front.do("kept.append(permits(slots, 'app', 2))")
    if step == "give":
        front.do("kept[0].take()")
    front.do(moment)
    assert front.do(f"kept[0].{step}()") == ""  # it is dead
    front.end()
    assert shared.reclaim(0) == 1
    assert left_in(shared.eventfds[0]) == 2 + too_many
    # who comes to hold all of them finds the one too many and throws it away
    assert [some.take(), some.take(), some.take()] == [True, True, False]
    assert left_in(shared.eventfds[0]) == 0


def test_killed_while_it_had_the_lock_it_holds_nobody_up(shared: SharedFds, start: Callable[[int], Front]) -> None:
    front = start(0)
    front.do("die_at('eventfd_read')")  # which a new entry is emptied with, under the lock
    assert front.do("permits(slots, 'app', 2)") == ""
    front.end()
    slots = here(shared)
    some = permits(slots, "app", 2)
    assert slots.missed == 0
    assert [some.take(), some.take(), some.take()] == [True, True, False]
