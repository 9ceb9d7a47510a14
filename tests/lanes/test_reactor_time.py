"""The wheel: deadlines that are kept, deadlines that move on, and many at once; on the fake clock."""

from __future__ import annotations

import math
import random
import socket

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from frontd.lanes.wheel import LEAST_SLEEP, TICK, Wheel
from frontd.model.errors import FrontdError, Reason
from frontd.net.traps import readable
from tests.lanes.guests import Guest, House, house, listen
from tests.net.test_peek import counted
from tests.wire import settled


def quiet_guest(it: House, idle: float) -> Guest:
    """A guest whose client neither speaks nor is there: a socket that is nobody's."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    it.sockets.append(sock)
    guest = Guest(it.reactor, sock, listen, idle)
    it.reactor.welcome(guest, None)
    return guest


async def test_a_deadline_is_kept_to_the_moment(autojump_clock: object) -> None:
    async with house() as it:
        await settled()
        for idle in (0.0, 0.001, 0.05, 0.1, 0.3, 1.2345, 7.0, 119.99, 86400.5):
            began = trio.current_time()
            guest = quiet_guest(it, idle)
            await trio.sleep(idle + 1)
            assert guest.ended_at == pytest.approx(began + idle, abs=1e-6)


async def test_many_deadlines_are_never_early_and_hardly_late(autojump_clock: object) -> None:
    dice = random.Random(4)
    async with house() as it:
        began = trio.current_time()
        guests = [quiet_guest(it, dice.choice((0.3, 3.0, 30.0)) * dice.random()) for _ in range(400)]
        await trio.sleep(40)
        for guest in guests:
            assert -1e-6 <= guest.ended_at - (began + guest.idle) <= LEAST_SLEEP + 1e-6


async def test_a_deadline_that_moved_on_is_the_one_that_counts(autojump_clock: object) -> None:
    async with house() as it:
        guest, far = it.guest(idle=10)
        began = trio.current_time()
        with counted() as steps:
            for _ in range(9):
                await trio.sleep(3)
                far.send(b"x")
            await trio.sleep(20)
        assert guest.turns == 9
        assert guest.ended_at == pytest.approx(began + 9 * 3 + 10)
        # a turn for each arrival, and a look for about each deadline that has passed since the last look: no timer each
        assert steps.count <= 9 + 6


async def test_a_shorter_deadline_than_the_one_before_counts_at_once(autojump_clock: object) -> None:
    async with house() as it:
        waited: list[float] = []

        async def asks(guest: Guest) -> None:
            await listen(guest)
            began = trio.current_time()
            with pytest.raises(FrontdError):
                await readable(guest.stream, began + 2, Reason.Timer_HeaderWait)
            waited.append(trio.current_time() - began)
            guest.idle = 4

        guest, far = it.guest(asks, 1000)
        other = quiet_guest(it, 500)
        await trio.sleep(50)
        far.send(b"x")
        began = trio.current_time()
        await trio.sleep(100)
        assert waited == [pytest.approx(2)]
        assert guest.ended_at == pytest.approx(began + 2 + 4)
        assert other.ended_at == math.inf


async def test_thousands_of_deadlines_in_one_bucket(autojump_clock: object) -> None:
    async with house() as it:
        guests = [quiet_guest(it, 10.01 + number / 100_000) for number in range(3000)]
        others = [quiet_guest(it, 10.0), quiet_guest(it, 10.0999), quiet_guest(it, 10.2)]
        began = trio.current_time()
        with counted() as steps:
            await trio.sleep(11)
        for guest in guests + others:
            assert began + guest.idle - 1e-6 <= guest.ended_at <= began + guest.idle + LEAST_SLEEP + 1e-6
        assert steps.count <= 40  # looks, and slices of the reactor: not one for each


async def test_a_dismissed_connection_is_held_by_no_timer(autojump_clock: object) -> None:
    async with house() as it:
        guest, _ = it.guest(idle=5)
        guest.finish()
        guest.finish()
        assert guest.due == math.inf
        await trio.sleep(10)
        assert guest.ended_at == math.inf


async def test_one_whose_end_ends_another(autojump_clock: object) -> None:
    """Both are due at one look, and the first takes the second with it."""
    async with house() as it:
        pair = [quiet_guest(it, 5), quiet_guest(it, 5)]
        ends: list[Guest] = []

        async def takes_the_other(guest: Guest) -> None:
            ends.append(guest)
            for one in pair:
                one.finish()

        for guest in pair:
            guest.end = takes_the_other
        await trio.sleep(10)
        assert len(ends) == 1
        assert it.faults == []
        await settled()


# ---------------------------------------------------------------------------------------------------- alone


class Timed:
    def __init__(self) -> None:
        self.deadline = self.due = math.inf


times = st.floats(0, 1000, allow_nan=False) | st.integers(0, 100).map(lambda n: n * TICK) | st.just(math.inf)
doings = st.lists(st.tuples(st.sampled_from(["put", "move", "drop", "look"]), st.integers(0, 5), times), max_size=40)


@given(doings)
@example([("put", 1, 0.0), ("move", 1, math.inf), ("put", 0, 1.0)])
def test_a_wheel_gives_everyone_once_and_never_early(todo: list[tuple[str, int, float]]) -> None:
    wheel: Wheel[Timed] = Wheel()
    everybody = [Timed() for _ in range(6)]
    now, waiting = 0.0, set[Timed]()
    for what, number, time in todo:
        one = everybody[number]
        if what == "put":
            one.deadline = time
            wheel.put(one, time)
            waiting.discard(one)
            if time < math.inf:
                waiting.add(one)
        elif what == "move":  # on, without a word to the wheel
            one.deadline = max(one.deadline, time)
        elif what == "drop":
            one.deadline = math.inf
            wheel.drop(one)
            waiting.discard(one)
        else:
            now = max(now, time if time < math.inf else now)
            taken = wheel.take_due(now)
            assert len(taken) == len(set(taken))
            assert set(taken) == {it for it in waiting if it.deadline <= now}
            waiting -= set(taken)
            assert all(it.due == math.inf for it in taken)
        finite = [it.deadline for it in waiting if it.deadline < math.inf]
        if finite:  # it may be looked at too early, but never late
            assert wheel.next_look(now) <= max(min(finite), now + LEAST_SLEEP)
