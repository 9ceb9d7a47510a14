"""What the reactor does with the lives it drives: faults, foreign awaits, interruptions, waking."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import trio

from frontd.lanes.driven import Life
from frontd.lanes.reactor import Reactor
from frontd.model.errors import FrontdError, Reason
from frontd.net.streams import Stream
from frontd.net.traps import Ended, readable, task_lane
from tests.lanes.guests import Guest, House, house, listen
from tests.wire import settled


async def still_serves(it: House) -> None:
    """Another connection, which was there before or comes now, is driven as ever."""
    guest, far = it.guest()
    far.send(b"anybody there?")
    await settled()
    assert guest.heard == [b"anybody there?"]


# ---------------------------------------------------------------------------------------------------- faults


async def fails(guest: Guest) -> None:
    await listen(guest)
    raise LookupError("a fault of this connection")


async def fails_in_a_task(guest: Guest) -> None:
    await listen(guest)
    await task_lane()
    await trio.lowlevel.checkpoint()
    raise LookupError("a fault of this connection")


async def leaves_python(guest: Guest) -> None:
    await listen(guest)
    raise SystemExit(1)


@pytest.mark.parametrize("turn", [fails, fails_in_a_task, leaves_python])
async def test_a_fault_ends_its_connection_and_never_the_loop(turn: Callable[[Guest], Life]) -> None:
    async with house() as it:
        before, before_far = it.guest()
        guest, far = it.guest(turn)
        far.send(b"x")
        before_far.send(b"y")
        await settled()
        assert guest.stream.closed
        assert before.heard == [b"y"]
        (fault,) = it.faults
        assert "a fault of this connection" in str(fault) or isinstance(fault.__cause__, SystemExit)
        await still_serves(it)


class Clumsy(Guest):
    """A connection whose own answers to the reactor fail, not what it does."""

    fails_at = ""

    def _perhaps_fail(self, where: str) -> None:
        if self.fails_at == where:
            self.fails_at = ""
            raise LookupError(where)

    def on_event(self, stream: Stream) -> None:
        self._perhaps_fail("on_event")
        super().on_event(stream)

    def at_rest(self) -> float:
        self._perhaps_fail("at_rest")
        return super().at_rest()

    def next_turn(self) -> Life:
        self._perhaps_fail("next_turn")
        return super().next_turn()

    def expired(self) -> Life:
        self._perhaps_fail("expired")
        return super().expired()

    def finish(self) -> None:
        super().finish()
        self._perhaps_fail("finish")


@pytest.mark.parametrize("where", ["on_event", "at_rest", "next_turn", "expired", "finish"])
async def test_a_connection_that_cannot_answer_ends_alone(where: str, autojump_clock: object) -> None:
    async with house() as it:
        near, far = it.sockets_of()
        guest = Clumsy(it.reactor, near, fails if where == "finish" else listen, 5)
        it.reactor.welcome(guest, None)
        other, other_far = it.guest()
        guest.fails_at = where
        far.send(b"x")
        other_far.send(b"y")
        await trio.sleep(6)
        assert other.heard == [b"y"]
        assert guest.stream.closed
        assert where in [str(fault).strip("'") for fault in it.faults]
        await still_serves(it)


async def test_a_connection_that_the_kernel_will_not_watch_ends_alone() -> None:
    """epoll_ctl fails when a limit of the machine is reached; what stands for that here is a socket that is closed."""
    async with house() as it:
        closed = Stream(it.sockets_of()[0])
        closed.owner = Guest(it.reactor, it.sockets_of()[0])
        closed.sock.close()
        seen: list[BaseException] = []

        async def waits(guest: Guest) -> None:
            await listen(guest)
            try:
                await readable(closed, trio.current_time() + 60, Reason.Timer_Response)
            except BaseException as error:
                seen.append(error)
                raise

        guest, far = it.guest(waits)
        far.send(b"x")
        await settled()
        assert guest.stream.closed
        assert len(seen) == 1  # the coroutine was told, so that what it holds is given back
        assert not isinstance(seen[0], GeneratorExit)
        gone = Guest(it.reactor, it.sockets_of()[0])
        gone.stream.sock.close()
        it.reactor.welcome(gone, None)
        assert gone.stream.closed
        await still_serves(it)


# ---------------------------------------------------------------------------------------------------- foreign awaits


async def sleeps(guest: Guest) -> None:
    await trio.sleep(1)


async def passes_a_checkpoint(guest: Guest) -> None:
    await trio.lowlevel.checkpoint()


async def opens_a_nursery(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1)


@pytest.mark.parametrize("turn", [sleeps, passes_a_checkpoint])
async def test_a_foreign_await_is_refused_in_the_reactor(turn: Callable[[Guest], Life]) -> None:
    async with house() as it:
        guest, far = it.guest(turn)
        far.send(b"x")
        await settled()
        assert guest.stream.closed
        (fault,) = it.faults
        assert isinstance(fault, RuntimeError)
        assert str(fault).endswith("was awaited before task_lane()")
        await still_serves(it)


@pytest.mark.parametrize("turn", [sleeps, passes_a_checkpoint, opens_a_nursery])
async def test_the_same_is_fine_behind_task_lane(turn: Callable[[Guest], Life], autojump_clock: object) -> None:
    async def moved(guest: Guest) -> None:
        await listen(guest)
        await task_lane()
        await turn(guest)

    async with house() as it:
        guest, far = it.guest(moved)
        far.send(b"x")
        await trio.sleep(2)
        far.send(b"y")
        await trio.sleep(2)
        assert (guest.heard, guest.turns, it.faults) == ([b"x", b"y"], 2, [])


# ---------------------------------------------------------------------------------------------------- interruptions


async def test_whoever_is_parked_is_thrown_into() -> None:
    async with house() as it:
        ended: list[str] = []
        guest, far = it.guest(noting(ended))
        far.send(b"part of a head")
        await settled()
        it.reactor.interrupt(guest, Ended())
        assert ended == ["Ended"]
        assert guest.stream.closed
        assert it.faults == []
        await still_serves(it)


async def test_whoever_is_in_a_task_is_cancelled() -> None:
    async with house() as it:
        ended: list[str] = []
        guest, far = it.guest(noting(ended))
        far.send(b"to a task")
        await settled()
        it.reactor.interrupt(guest, Ended())
        assert ended == []  # a task ends in its own turn
        await settled()
        assert ended == ["Cancelled"]
        assert guest.stream.closed
        assert it.faults == []
        await still_serves(it)


async def test_whoever_is_idle_is_not_interrupted() -> None:
    async with house() as it:
        guest, far = it.guest()
        it.reactor.interrupt(guest, Ended())
        far.send(b"x")
        await settled()
        assert guest.heard == [b"x"]


def noting(ended: list[str]) -> Callable[[Guest], Life]:
    """Waits for ever, in a task when it hears of one, and notes what ends that."""

    async def waits(guest: Guest) -> None:
        await listen(guest)
        try:
            if guest.heard == [b"to a task"]:
                await task_lane()
                await trio.sleep_forever()
            await readable(guest.stream, trio.current_time() + 60, Reason.Timer_HeaderWait)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    return waits


@pytest.mark.parametrize("lane", [b"parked", b"to a task"])
async def test_a_client_that_leaves_ends_a_busy_exchange(lane: bytes) -> None:
    """Its end is heard in both lanes, also before anything had to be waited for."""
    async with house() as it:
        app = Stream(it.sockets_of()[0])
        app.owner = Guest(it.reactor, it.sockets_of()[0])
        ended: list[str] = []

        async def exchange(guest: Guest) -> None:
            await listen(guest)
            guest.busy = True
            try:
                if lane == b"to a task":
                    await task_lane()
                    await trio.sleep_forever()
                await readable(app, trio.current_time() + 60, Reason.Timer_Response)
            except BaseException as error:
                ended.append(type(error).__name__)
                raise

        guest, far = it.guest(exchange)
        far.send(b"x")
        far.shutdown(socket.SHUT_WR)
        await settled()
        assert ended == ["Cancelled" if lane == b"to a task" else "Ended"]
        assert guest.stream.closed
        app.close_now()


async def test_a_timer_is_thrown_in_as_its_reason(autojump_clock: object) -> None:
    async with house() as it:
        caught: list[FrontdError] = []

        async def waits(guest: Guest) -> None:
            await listen(guest)
            try:
                await readable(guest.stream, trio.current_time() + 3, Reason.Timer_EntityBody)
            except FrontdError as error:
                caught.append(error)

        guest, far = it.guest(waits)
        far.send(b"x")
        began = trio.current_time()
        await trio.sleep(10)
        assert [error.reason for error in caught] == [Reason.Timer_EntityBody]
        assert trio.current_time() == began + 10
        assert not guest.stream.closed  # it was dealt with: idle again
        far.send(b"y")
        await settled()
        assert guest.heard == [b"x", b"y"]


# ---------------------------------------------------------------------------------------------------- waking


async def test_an_idle_connection_that_is_woken_has_a_turn() -> None:
    async with house() as it:
        guests = [it.guest()[0] for _ in range(3)]
        for guest in guests:
            it.reactor.wake(guest)
        assert [guest.turns for guest in guests] == [0, 0, 0]
        await settled()
        assert [guest.turns for guest in guests] == [1, 1, 1]
        it.reactor.wake(guests[0])
        await settled()
        assert guests[0].turns == 2


async def test_waking_one_that_is_closed_before_its_turn_is_harmless() -> None:
    async with house() as it:
        guest, _ = it.guest()
        it.reactor.wake(guest)
        guest.finish()
        await settled()
        assert guest.turns == 0
        await still_serves(it)


async def test_waking_one_whose_turn_has_begun_is_no_second_turn() -> None:
    async with house() as it:
        guest, far = it.guest(noting([]))
        it.reactor.wake(guest)
        it.reactor.wake(guest)
        await settled()
        assert guest.turns == 1
        it.reactor.wake(guest)
        await settled()
        assert guest.turns == 1
        far.close()


async def test_a_turn_that_ended_for_the_sake_of_others_goes_on_after_them() -> None:
    order: list[str] = []

    def speaks(name: str, times: int) -> Callable[[Guest], Life]:
        async def turn(guest: Guest) -> None:
            await listen(guest)
            order.append(name)
            guest.more = guest.turns < times

        return turn

    async with house() as it:
        lines = [it.guest(speaks(name, times))[1] for name, times in (("a", 3), ("b", 1), ("c", 2))]
        for far in lines:
            far.send(b"x")
        await settled()
        assert order == ["a", "b", "c", "a", "c", "a"]


async def test_switched_off_a_connection_is_a_task_of_its_own(autojump_clock: object) -> None:
    """The same guests, the same lives: turns, timers, waking and the end."""
    async with house() as it:
        it.reactor.drives = False

        async def visits(guest: Guest) -> None:
            await listen(guest)
            await trio.lowlevel.checkpoint()  # nothing is foreign in a task
            await task_lane()

        guest, far = it.guest(visits, 5)
        await settled()
        far.send(b"x")
        await settled()
        assert (guest.heard, guest.turns) == ([b"x"], 1)
        it.reactor.wake(guest)
        await settled()
        assert guest.turns == 2
        began = trio.current_time()
        await trio.sleep(20)
        assert guest.ended_at == pytest.approx(began + 5)
        assert guest.stream.closed
        assert it.faults == []


def test_off_is_a_word_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, drives in (("off", False), ("on", True), ("", True)):
        monkeypatch.setenv("FRONTD_REACTOR", value)
        reactor = Reactor(lambda what, error: None)
        assert reactor.drives is drives
        reactor.close()
