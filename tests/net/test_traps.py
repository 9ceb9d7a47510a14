"""The traps, and the driver that serves them in a task."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from frontd.model.errors import FrontdError, Reason
from frontd.net.streams import Stream
from frontd.net.traps import (
    TASK_LANE,
    Ended,
    OthersFirst,
    Waitable,
    carry,
    clock,
    fault_at_once,
    fault_of,
    others_first,
    readable,
    task_lane,
)


@contextmanager
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


# ---------------------------------------------------------------------------------------------------- by plain calls


def test_what_a_coroutine_yields_is_what_it_waits_for() -> None:
    async def life(stream: Waitable) -> str:
        await readable(stream, 7.0, Reason.Timer_Response)
        await others_first(stream)
        await task_lane()
        return "done"

    with ends() as (near, _):
        stream = Waitable(near)
        coroutine = life(stream)
        assert coroutine.send(None) is stream
        assert (stream.deadline, stream.reason) == (7.0, Reason.Timer_Response)
        paused = coroutine.send(None)
        assert isinstance(paused, OthersFirst)
        assert paused.stream is stream
        assert coroutine.send(None) is TASK_LANE
        with pytest.raises(StopIteration) as end:
            coroutine.send(None)
        assert end.value.value == "done"


def test_a_stream_that_nobody_waited_for_has_no_deadline() -> None:
    with ends() as (near, _):
        stream = Waitable(near)
        assert (stream.deadline, stream.reason) == (math.inf, Reason.Internal)
        stream.leave_reactor()  # it is in none


def test_an_end_runs_what_stands_in_finally_and_is_no_fault() -> None:
    ran = []

    async def life(stream: Waitable) -> None:
        try:
            await readable(stream, 1.0, Reason.Timer_Response)
        except Exception:  # pragma: no cover
            ran.append("taken for a fault")
        finally:
            ran.append("finally")

    with ends() as (near, _):
        coroutine = life(Waitable(near))
        coroutine.send(None)
        with pytest.raises(Ended):
            coroutine.throw(Ended())
    assert ran == ["finally"]
    assert fault_of(Ended()) is None


# ---------------------------------------------------------------------------------------------------- in a task


async def test_a_task_waits_for_bytes_and_passes_trio_s_own_traps() -> None:
    async def life(stream: Stream) -> list[object]:
        await task_lane()  # nothing to do: it is in one
        await readable(stream, trio.current_time() + 60, Reason.Timer_Response)
        first = stream.receive_now()
        await others_first(stream)
        with trio.move_on_after(0.001) as scope:
            await trio.sleep(60)
        return [first, scope.cancelled_caught]

    with ends() as (near, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_when_idle, far)
            assert await carry(life(Stream(near))) == [b"x", True]


async def send_when_idle(far: socket.socket) -> None:
    await trio.testing.wait_all_tasks_blocked()
    far.send(b"x")


async def test_a_timer_is_thrown_into_the_coroutine(autojump_clock: object) -> None:
    async def life(stream: Stream) -> str:
        try:
            await readable(stream, trio.current_time() + 5, Reason.Timer_EntityBody)
        except FrontdError as error:
            await trio.sleep(1)  # the coroutine goes on with what it does about it
            return error.reason.word
        raise AssertionError("nothing came")

    with ends() as (near, _):
        began = trio.current_time()
        assert await carry(life(Stream(near))) == Reason.Timer_EntityBody.word
        assert trio.current_time() == pytest.approx(began + 6)


async def test_a_cancellation_goes_through_the_coroutine_and_on() -> None:
    ran = []

    async def life(stream: Stream) -> None:
        try:
            await readable(stream, math.inf, Reason.Internal)
        except trio.Cancelled:
            ran.append("cleaned up")
            raise

    with ends() as (near, _), trio.move_on_after(0.001) as scope:
        await carry(life(Stream(near)))
    assert scope.cancelled_caught
    assert ran == ["cleaned up"]


async def test_a_stream_that_its_owner_closes_wakes_who_waits() -> None:
    async def life(stream: Stream) -> str:
        await readable(stream, math.inf, Reason.Internal)
        return "woken"

    with ends() as (near, _):
        stream = Stream(near)
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                await trio.testing.wait_all_tasks_blocked()
                stream.close_now()

            nursery.start_soon(close)
            assert await carry(life(stream)) == "woken"


# ---------------------------------------------------------------------------------------------------- faults


async def test_a_cancellation_is_the_end_only_where_something_was_cancelled() -> None:
    kept: list[trio.Cancelled] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            kept.append(error)
            ends = [fault_of(error), fault_of(BaseExceptionGroup("both", [error, KeyError()]))]
            raise
    assert ends == [None, None]
    fault = fault_of(kept[0])  # raised again where nothing is cancelled: somebody kept it
    assert isinstance(fault, RuntimeError)
    assert fault.__cause__ is kept[0]


def test_what_is_no_exception_becomes_one() -> None:
    plain = KeyError("x")
    assert fault_at_once(plain) is plain
    for odd in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        fault = fault_at_once(odd)
        assert isinstance(fault, RuntimeError)
        assert fault.__cause__ is odd
        assert type(odd).__name__ in str(fault)


# ---------------------------------------------------------------------------------------------------- the clock


async def test_the_clock_is_trio_s_in_a_run_and_out_of_one(autojump_clock: trio.testing.MockClock) -> None:
    assert clock.now() == trio.current_time()
    with clock.found():
        await trio.sleep(3)
        assert clock.now() == trio.current_time() == autojump_clock.current_time()
        assert clock.now != trio.current_time
    assert clock.now is trio.current_time


async def test_the_clock_found_is_let_go_after_a_fault() -> None:
    with pytest.raises(KeyError), clock.found():
        raise KeyError
    assert clock.now is trio.current_time
