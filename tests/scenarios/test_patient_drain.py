"""A drain that nobody waits for gives idle connections time, so that no request meets a connection that ends."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.scenarios.test_timers import lasts, timers
from tests.wire import OK, Line, app, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


async def test_a_drain_may_be_patient_with_what_is_idle(tmp_path: Path, autojump_clock: object) -> None:
    """Who asks in that time is answered, and told to connect anew; who does not is ended at its end."""
    async with app() as it, front(one_pool(it.url, extra=timers("drain: 30s")), tmp_path) as stage:
        asks, idle, fresh = [await stage.connect() for _ in range(3)]
        await asks.get()
        await idle.get()
        await settled()
        async with trio.open_nursery() as nursery:
            with lasts(5):
                nursery.start_soon(stage.front.drain, 5.0)
                await trio.sleep(4)
                head, body = await asks.get()
                assert (body, b"\r\nConnection: close\r\n" in head) == (b"ok", True)
                assert await asks.read_to_end() == b""
                async with trio.open_nursery() as both:
                    for line in (idle, fresh):
                        both.start_soon(ends, line)
        assert stage.reasons == {}


async def test_a_patient_drain_keeps_what_an_answer_has_promised(tmp_path: Path, autojump_clock: object) -> None:
    """Its head went out before and says nothing of an end: the client may ask again, and is answered."""

    async def halting(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        await trio.sleep(1)
        await line.send(b"lf")
        await line.head()
        await line.send(OK)

    async with app(halting) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET)
        assert b"Connection" not in await line.head()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.front.drain, 5.0)
            assert await line.read_exactly(4) == b"half"
            await trio.sleep(1)
            head, body = await line.get()
            assert (body, b"\r\nConnection: close\r\n" in head) == (b"ok", True)
            assert await line.read_to_end() == b""
        assert stage.reasons == {}


async def ends(line: Line) -> None:
    assert await line.read_to_end() == b""
