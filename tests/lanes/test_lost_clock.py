"""Timers that must come although something else moved on, took long, or came first."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from frontd.model.errors import FrontdError
from frontd.model.messages import Exchange
from tests.scenarios.plugged import made, plugged
from tests.wire import Line, app, front, one_pool

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


async def waits_for_upload(line: Line) -> None:
    """An app that answers GET at once, ``/never`` never, and anything with a body when that is there."""
    while head := await line.head():
        if b" /never " in head:
            await line.read_to_end()
        if head.startswith(b"POST"):
            await line.read_exactly(4)
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def test_a_bucket_that_begins_while_another_is_seen_to_delays_no_timer(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """All that stood in it has moved on meanwhile, to a task that has no deadline here; others still have theirs."""

    def takes_long(self: object, exchange: Exchange, error: FrontdError) -> None:
        autojump_clock.jump(0.15)

    slow = made("slow", forward_failed=takes_long)
    times = "timeouts: {response_head: 5s, idle_connection: 5s, entity_body: 1000s}"
    async with app(waits_for_upload) as it, plugged(tmp_path, it.url, slow, extra=times) as stage:
        fails, moves, stays = [await stage.connect() for _ in range(3)]
        await fails.get()  # so that the next one finds a connection to the app, and needs no task
        await fails.send(GET.replace(b"/", b"/never", 1))
        await trio.sleep(0.15)
        await moves.get()  # is idle: until 5.15 s
        await trio.sleep(0.05)
        await moves.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\n12")  # now in a task
        await trio.sleep(0.8)
        await stays.get()  # is idle: until 6 s
        assert (await fails.message())[0].startswith(b"HTTP/1.1 504 ")
        with trio.fail_after(100):
            assert await stays.read_to_end() == b""
        assert trio.current_time() == pytest.approx(6)
        assert stage.reasons == {"Timer_Response": 1, "Timer_ConnectionIdle": 1}


async def test_header_wait_of_a_head_that_came_while_the_one_before_was_answered(
    tmp_path: Path, autojump_clock: object
) -> None:
    """Its time runs from when it is looked for, not from the first byte of an earlier head of the same turn."""

    async def slow(line: Line) -> None:
        while await line.head():
            await trio.sleep(20)
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with app(slow) as it, front(one_pool(it.url, extra="timeouts: {header_wait: 7s}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET)
        assert (await line.message())[1] == b"ok"
        await line.send(GET[:10])
        await trio.sleep(1)
        await line.send(GET[10:] + GET[:10])
        assert (await line.message())[1] == b"ok"
        await trio.sleep(6)
        await line.send(GET[10:])
        assert (await line.message())[1] == b"ok"
        assert stage.reasons == {}
