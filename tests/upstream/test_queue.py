"""The request queue by itself: order, bound, leaving."""

from __future__ import annotations

import pytest
import trio

from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import URGENCY
from frontd.upstream.queue import Rank, RequestQueue
from tests.wire import settled

FOREVER = float("inf")


Got = list[tuple[int, str | None]]


def ranked(number: int) -> Rank:
    return URGENCY, number


async def wait(queue: RequestQueue[str], rank: Rank, got: Got, deadline: float = FOREVER) -> None:
    """A waiter that notes what it was given."""
    got.append((rank[1], await queue.wait(rank, trio.current_time(), deadline, returned.append)))


returned: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_returned() -> None:
    returned.clear()


async def test_first_come_first_served() -> None:
    queue: RequestQueue[str] = RequestQueue(10)
    got: Got = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait, queue, queue.draw(), got)
            await settled()
        for gift in "abc":
            queue.serve_next(gift)
            await settled()
    assert got == [(1, "a"), (2, "b"), (3, "c")]
    assert len(queue) == 0


async def test_who_comes_back_stands_where_its_number_says() -> None:
    queue: RequestQueue[str] = RequestQueue(10)
    got: Got = []
    early = queue.draw()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(wait, queue, queue.draw(), got)
            await settled()
        nursery.start_soon(wait, queue, early, got)  # drew first, comes last: its connect failed meanwhile
        await settled()
        for gift in "abc":
            queue.serve_next(gift)
            await settled()
    assert got == [(1, "a"), (2, "b"), (3, "c")]


async def test_the_bound_is_exact() -> None:
    queue: RequestQueue[str] = RequestQueue(2)
    async with trio.open_nursery() as nursery:
        for number in (1, 2):
            queue.check_room()
            nursery.start_soon(wait, queue, ranked(number), [])
            await settled()
        with pytest.raises(FrontdError) as caught:
            queue.check_room()
        assert caught.value.reason is Reason.QueueFull
        assert caught.value.retry_after == 1
        nursery.cancel_scope.cancel()
    assert len(queue) == 0
    queue.check_room()


async def test_at_the_deadline_the_place_is_given_up(autojump_clock: object) -> None:
    queue: RequestQueue[str] = RequestQueue(2)
    assert await queue.wait(queue.draw(), trio.current_time(), trio.current_time() + 3, returned.append) is None
    assert len(queue) == 0


async def test_the_most_urgent_goes_first_and_what_was_lost_before_its_equals() -> None:
    queue: RequestQueue[str] = RequestQueue(10)
    got: Got = []
    ranks = [queue.draw(), queue.draw(7), queue.draw(0), queue.draw(), queue.draw(again=True), queue.draw(0)]
    async with trio.open_nursery() as nursery:
        for rank in ranks:
            nursery.start_soon(wait, queue, rank, got)
            await settled()
        for gift in "abcdef":
            queue.serve_next(gift)
            await settled()
    assert got == [(3, "a"), (5, "b"), (0, "c"), (1, "d"), (4, "e"), (2, "f")]


async def test_longest_counts_whoever_waits_longest(autojump_clock: object) -> None:
    queue: RequestQueue[str] = RequestQueue(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, queue, queue.draw(7), [])
        await trio.sleep(4)
        nursery.start_soon(wait, queue, queue.draw(0), [])
        await trio.sleep(3)
        assert queue.longest(trio.current_time()) == pytest.approx(7)
        nursery.cancel_scope.cancel()


async def test_longest_is_the_age_of_the_first(autojump_clock: object) -> None:
    queue: RequestQueue[str] = RequestQueue(2)
    assert queue.longest(trio.current_time()) == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, queue, ranked(1), [])
        await trio.sleep(4)
        nursery.start_soon(wait, queue, ranked(2), [])
        await trio.sleep(3)
        assert queue.longest(trio.current_time()) == pytest.approx(7)
        nursery.cancel_scope.cancel()


async def leaver(scope: trio.CancelScope, queue: RequestQueue[str], got: Got) -> None:
    """Waits until `scope` is cancelled."""
    with scope:
        await wait(queue, queue.draw(), got)


async def test_what_was_given_to_one_who_leaves_comes_back() -> None:
    queue: RequestQueue[str] = RequestQueue(2)
    got: Got = []
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(leaver, scope, queue, got)
        await settled()
        scope.cancel()  # it is woken by the cancellation first …
        queue.serve_next("gift")  # … and given something before it runs
    assert got == []
    assert returned == ["gift"]
    assert len(queue) == 0


async def test_given_and_cancelled_in_one_moment_is_not_lost() -> None:
    queue: RequestQueue[str] = RequestQueue(2)
    got: Got = []
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(leaver, scope, queue, got)
        await settled()
        queue.serve_next("gift")
        scope.cancel()
    assert [gift for _, gift in got] + returned == ["gift"]


async def test_given_at_the_deadline_is_kept(autojump_clock: object) -> None:
    queue: RequestQueue[str] = RequestQueue(2)
    got: Got = []
    end = trio.current_time() + 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, queue, ranked(1), got, end)
        nursery.start_soon(wait, queue, ranked(2), got, end + 1)

        async def give_late() -> None:
            await trio.sleep_until(end)
            if len(queue):
                queue.serve_next("a")

        nursery.start_soon(give_late)
        await trio.sleep(10)
    assert sorted(got) in ([(1, "a"), (2, None)], [(1, None), (2, "a")])
    assert returned == []
