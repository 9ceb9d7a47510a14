"""How a connection ends whose client asked for it: its answer arrives, what still comes is read within bounds, and no
task is needed for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from frontd.lanes.connection import Connection
from frontd.net.streams import LINGER_IDLE, LINGER_TIME
from tests.wire import Line, Stage, app, front, one_pool, settled

LAST = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"


def of(stage: Stage) -> list[Connection]:
    """The connections that are there."""
    return [one for one in stage.front.service.connections if isinstance(one, Connection)]


async def ended(line: Line) -> None:
    """The answer has come, and behind it the end."""
    assert (await line.read_to_end()).endswith(b"ok")


async def test_it_is_gone_when_the_client_is(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.get()  # the connection to the app is made in a task
        await line.send(LAST)
        await ended(line)
        await settled()
        (connection,) = of(stage)
        if stage.front.service.reactor.drives:
            assert connection.scope is None  # no task has it
            assert connection.parked is connection.stream
        began = trio.current_time()
        await line.close()
        await settled()
        assert of(stage) == []
        assert trio.current_time() - began < LINGER_IDLE


async def test_who_says_nothing_more_is_waited_for_a_moment(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(LAST)
        await ended(line)
        await trio.sleep(LINGER_IDLE - 0.5)
        assert len(of(stage)) == 1
        await trio.sleep(1)
        assert of(stage) == []


async def test_who_goes_on_and_on_is_not_heard_for_ever(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(LAST)
        await ended(line)
        for _ in range(int(LINGER_TIME)):
            assert len(of(stage)) == 1
            await line.send(b"x")
            await trio.sleep(0.99)
        await trio.sleep(LINGER_IDLE)
        assert of(stage) == []


async def test_a_front_that_ends_waits_for_nobody(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it:
        began = trio.current_time()
        async with front(one_pool(it.url), tmp_path) as stage:
            line = await stage.connect()
            await line.send(LAST)
            await ended(line)
            assert len(of(stage)) == 1
        assert trio.current_time() - began < LINGER_IDLE


@pytest.mark.parametrize("rest", [b"", b"GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n", b"x" * 3_000_000])
async def test_what_comes_behind_the_last_request_is_thrown_away(tmp_path: Path, rest: bytes) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, LAST + rest)
            await ended(line)
        assert len(it.heads) == 1
