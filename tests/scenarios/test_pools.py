"""Pools through the front: what waits, and names that lead elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.upstream.parts import Connects, Names
from tests.wire import OK, Line, app, free_port, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def put(body: bytes, method: bytes = b"PUT") -> bytes:
    return method + b" / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body


# ---------------------------------------------------------------------------------------------------- the queue


async def test_the_queue_is_here_and_not_in_the_app(tmp_path: Path, autojump_clock: object) -> None:
    now = most = 0

    async def work(line: Line) -> None:
        nonlocal now, most
        while await line.head():
            now += 1
            most = max(most, now)
            await trio.sleep(0.1)
            now -= 1
            await line.send(OK)

    async with app(work) as it, front(one_pool(it.url, pool="concurrency: 3"), tmp_path) as stage:
        answers: list[bytes] = []

        async def client() -> None:
            line = await stage.connect()
            answers.extend([(await line.get())[1] for _ in range(4)])

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client)
        assert answers == [b"ok"] * 40
        assert most == 3
        assert it.connections == 3
        assert trio.current_time() - began == pytest.approx(40 / 3 * 0.1, abs=0.15)  # never fewer than 3 at work


async def test_first_come_first_served(tmp_path: Path, autojump_clock: object) -> None:
    async def work(line: Line) -> None:
        while head := await line.head():
            order.append(head.split(b" ")[1])
            await trio.sleep(0.1)
            await line.send(OK)

    order: list[bytes] = []
    async with app(work) as it, front(one_pool(it.url, pool="concurrency: 1"), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(6)]
        for number, line in enumerate(lines):
            await line.send(b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n" % number)
            await settled()
        for line in lines:
            assert (await line.message())[1] == b"ok"
        assert order == [b"/%d" % number for number in range(6)]


async def test_a_full_queue(tmp_path: Path, autojump_clock: object) -> None:
    text = one_pool(f"http://127.0.0.1:{free_port()}", pool="queue: {limit: 2, wait: 10s}")
    async with front(text, tmp_path) as stage:
        waiting = [await stage.connect() for _ in range(2)]
        for line in waiting:
            await line.send(GET)
        await settled()
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert b'\r\nProxy-Status: frontd; error=connection_limit_reached; details="QueueFull"\r\n' in head
        assert b"Reason: QueueFull" in body
        await waiting[0].close()  # a client that leaves frees its place
        await settled()
        assert len(stage.front.pools["app"].queue) == 1
        await line.send(GET)  # on the connection that was refused before
        await settled()
        assert len(stage.front.pools["app"].queue) == 2
        for one in (waiting[1], line):
            head, body = await one.message()
            assert b"Reason: AppOffline" in body
            assert b"\r\nRetry-After: 5\r\n" in head
        assert stage.reasons == {"QueueFull": 1, "AppOffline": 2, "Client_Reset": 1}


async def test_waited_out_while_the_app_is_busy(tmp_path: Path, autojump_clock: object) -> None:
    async def slow(line: Line) -> None:
        await line.head()
        await trio.sleep(20)
        await line.send(OK)

    async with (
        app(slow) as it,
        front(one_pool(it.url, pool="concurrency: 1\n    queue: {wait: 5s}"), tmp_path) as stage,
    ):
        busy, line = await stage.connect(), await stage.connect()
        await busy.send(GET)
        await settled()
        began = trio.current_time()
        head, body = await line.get()
        assert trio.current_time() - began == pytest.approx(5, abs=0.01)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert b"Reason: Timer_ReqQueue" in body
        assert (await busy.message())[1] == b"ok"


async def test_an_upload_waits_too(tmp_path: Path, autojump_clock: object) -> None:
    port = free_port()
    async with front(one_pool(f"http://127.0.0.1:{port}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(put(b"abc", b"POST"))
        await trio.sleep(5)
        async with app(port=port) as it:
            assert (await line.message())[1] == b"ok"
            assert it.bodies == [b"abc"]


async def test_two_pools_do_not_wait_for_each_other(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app, /dead/: dead}}}}}}
pools:
  app: {{targets: ["{it.url}"]}}
  dead: {{targets: ["http://127.0.0.1:{free_port()}"]}}
"""
        async with front(text, tmp_path) as stage:
            stuck, line = await stage.connect(), await stage.connect()
            await stuck.send(b"GET /dead/ HTTP/1.1\r\nHost: a\r\n\r\n")
            await settled()
            began = trio.current_time()
            assert (await line.get())[1] == b"ok"
            assert trio.current_time() - began < 0.1


# ---------------------------------------------------------------------------------------------------- names


async def test_a_scaled_app_through_the_front(tmp_path: Path, autojump_clock: object) -> None:
    names = Names({})
    port = free_port()
    async with app(port=port) as one, app(port=port, host="127.0.0.2") as two:
        async with front(one_pool(f"http://app.test:{port}"), tmp_path) as stage:
            line = await stage.connect()
            await line.send(GET)
            await trio.sleep(2)
            names.table["app.test"] = ["127.0.0.1"]
            assert (await line.message())[1] == b"ok"
            names.table["app.test"] = ["127.0.0.1", "127.0.0.2"]
            await trio.sleep(6)
            for _ in range(6):
                assert (await line.get())[1] == b"ok"
            assert (len(one.heads), len(two.heads)) == (4, 3)
            names.table["app.test"] = ["127.0.0.2"]
            await trio.sleep(6)
            for _ in range(3):
                assert (await line.get())[1] == b"ok"
            assert (len(one.heads), len(two.heads)) == (4, 6)


async def test_a_flood_on_an_app_that_is_down_knocks_gently(tmp_path: Path, autojump_clock: object) -> None:
    """However many wait, one connect per back-off step."""
    async with front(one_pool(f"http://127.0.0.1:{free_port()}", pool="queue: {wait: 5s}"), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(50)]
        connects = Connects()
        for line in lines:
            await line.send(GET)
        for line in lines:
            assert b"AppOffline" in (await line.message())[1]
        assert len(connects.times) <= 50 + 10
