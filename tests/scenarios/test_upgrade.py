"""Upgrades: a tunnel of bytes after 101, and what is no upgrade."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.upstream.parts import reset
from tests.wire import App, Line, Script, Stage, app, free_port, front, one_pool, settled

ASK = (
    b"GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@asynccontextmanager
async def tunnelled(
    tmp_path: Path, script: Script, *, extra: str = "", early: bytes = b""
) -> AsyncIterator[tuple[Stage, Line, App]]:
    """A client whose upgrade was agreed to; `early` is sent behind the request in the same write."""

    async def agree(line: Line) -> None:
        assert await line.head()
        await script(line)

    async with app(agree) as it, front(one_pool(it.url, extra=extra), tmp_path) as stage:
        line = await stage.connect()
        await line.send(ASK + early)
        head = await line.head()
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        assert b"\r\nUpgrade: websocket\r\n" in head
        assert b"\r\nConnection: Upgrade\r\n" in head
        yield stage, line, it


async def echo(line: Line) -> None:
    await line.send(AGREED)
    while data := await line.read():
        await line.send(data)


async def test_the_request_that_the_app_gets(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.ask(ASK)
        head = it.heads[0]
        assert head.startswith(b"GET /chat HTTP/1.1\r\nHost: a.test\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
        assert head.count(b"Connection: Upgrade\r\nUpgrade: websocket\r\n") == 1
        assert head.lower().count(b"upgrade:") == 1
        assert b"keep-alive" not in head


async def test_bytes_both_ways(tmp_path: Path) -> None:
    async with tunnelled(tmp_path, echo) as (stage, line, _):
        for data in (b"\x81\x05hello", b"\x00" * 100_000, b"GET / HTTP/1.1\r\n\r\n"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.send, data)
                assert await line.read_exactly(len(data)) == data
        await line.close()
        await settled()
        assert stage.reasons == {}
        assert '"status":101' in stage.log().replace(" ", "")


async def test_bytes_sent_early_on_both_sides(tmp_path: Path) -> None:
    """The client's first frame sits behind its request, the app's behind its 101: neither is lost nor out of order."""
    got: list[bytes] = []

    async def script(line: Line) -> None:
        await line.send(AGREED + b"early from the app,")
        got.append(await line.read_exactly(22))
        await line.send(b" and more")

    async with tunnelled(tmp_path, script, early=b"early from the client!") as (_, line, _app):
        assert await line.read_to_end() == b"early from the app, and more"
        assert got == [b"early from the client!"]


async def test_the_end_of_one_side_leaves_the_other_open(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.send(AGREED)
        everything = await line.read_to_end()
        await line.send(b"got %d" % len(everything))
        await settled()
        await line.send(b" bye")

    async with tunnelled(tmp_path, script) as (stage, line, _):
        await line.send(b"12345")
        assert isinstance(line.stream, trio.SocketStream)
        await line.stream.send_eof()
        assert await line.read_to_end() == b"got 5 bye"
        await settled()
        assert stage.reasons == {}


async def test_the_app_may_end_first(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def script(line: Line) -> None:
        await line.send(AGREED + b"last words")
        assert isinstance(line.stream, trio.SocketStream)
        await line.stream.send_eof()
        got.append(await line.read_to_end())

    async with tunnelled(tmp_path, script) as (stage, line, _):
        assert await line.read_to_end() == b"last words"
        await line.send(b"still here")
        await line.close()
        await settled()
        assert got == [b"still here"]
        assert stage.reasons == {}


async def test_silence_ends_it(tmp_path: Path, autojump_clock: object) -> None:
    async with tunnelled(tmp_path, echo, extra="timeouts: {tunnel_idle: 90s}") as (stage, line, _):
        for _ in range(3):
            await trio.sleep(80)
            await line.send(b"x")
            assert await line.read() == b"x"
        began = trio.current_time()
        assert await line.read_to_end() == b""
        assert trio.current_time() - began == pytest.approx(90, abs=0.1)
        await settled()
        assert stage.reasons == {"Timer_TunnelIdle": 1}


async def test_traffic_one_way_is_no_silence(tmp_path: Path, autojump_clock: object) -> None:
    async def ticks(line: Line) -> None:
        await line.send(AGREED)
        for _ in range(10):
            await trio.sleep(60)
            await line.send(b".")

    async with tunnelled(tmp_path, ticks, extra="timeouts: {tunnel_idle: 90s}") as (_, line, _app):
        assert await line.read_exactly(10) == b"." * 10
        await line.close()


async def test_a_client_that_takes_nothing_is_silence(tmp_path: Path, autojump_clock: object) -> None:
    async def flood(line: Line) -> None:
        await line.send(AGREED)
        while True:
            await line.send(b"x" * 1_000_000)

    async with tunnelled(tmp_path, flood, extra="timeouts: {tunnel_idle: 90s}") as (stage, _, _app):
        await trio.sleep(89)
        assert stage.reasons == {}
        await trio.sleep(2)
        assert stage.reasons == {"Timer_TunnelIdle": 1}
        assert not stage.front.service.connections


@pytest.mark.parametrize("who", ["client", "app"])
async def test_a_reset_of_one_side_ends_the_other(tmp_path: Path, who: str) -> None:
    ended = trio.Event()
    go = trio.Event()

    async def script(line: Line) -> None:
        await line.send(AGREED)
        if who == "app":
            await go.wait()
            reset(line)
        else:
            await line.read_to_end()
            ended.set()

    async with tunnelled(tmp_path, script) as (stage, line, it):
        await settled()
        if who == "client":
            reset(line)
            with trio.fail_after(5):
                await ended.wait()
        else:
            go.set()
            with trio.fail_after(5):
                assert await line.read_to_end() in (b"", b"<reset>")
        await settled()
        assert stage.reasons == {"Connection_Dropped": 1}
        assert not stage.front.service.connections
        assert stage.front.pools["app"].places[0].active == 0
        assert it.connections == 1


async def test_a_refused_upgrade_is_an_answer_like_any_other(tmp_path: Path) -> None:
    async with app(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                   b"Content-Length: 2\r\n\r\nno") as it, front(one_pool(it.url), tmp_path) as stage:  # fmt: skip
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.ask(ASK)
            assert head.startswith(b"HTTP/1.1 426 ")
            assert body == b"no"
        head, body = await line.get("/plain")
        assert body == b"no"
        assert b"Upgrade" not in it.heads[2]
        assert it.connections == 1


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        b"Upgrade: websocket\r\n",  # not named in Connection
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n",
    ],
)
async def test_what_is_not_forwarded_as_an_upgrade(tmp_path: Path, lines: bytes) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        body = b"abc" if b"Content-Length" in lines else b""
        assert (await line.ask(b"POST / HTTP/1.1\r\nHost: a.test\r\n" + lines + b"\r\n" + body))[1] == b"ok"
        assert (await line.get())[1] == b"ok"
        for head in it.heads:
            assert b"pgrade" not in head
            assert b"HTTP2" not in head
        assert it.bodies[0] == body


async def test_an_upgrade_by_http_1_0_is_none(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(ASK.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert b"200 OK" in await line.read_to_end()
        assert b"pgrade" not in it.heads[0]


@pytest.mark.parametrize(
    "answer",
    [
        AGREED.replace(b"websocket", b"h2c"),
        AGREED.replace(b"Upgrade: websocket\r\n", b""),
    ],
)
async def test_an_app_that_agrees_to_something_else(tmp_path: Path, answer: bytes) -> None:
    async def script(line: Line) -> None:
        await line.head()
        await line.send(answer)
        await line.read_to_end()

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.ask(ASK)
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"BadUpstreamHead" in body
        assert it.connections == 1


async def test_a_101_that_nobody_asked_for(tmp_path: Path) -> None:
    async with app(AGREED) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"BadUpstreamHead" in body


async def test_a_tunnel_waits_for_an_app_that_restarts(tmp_path: Path, autojump_clock: object) -> None:
    port = free_port()

    async def script(line: Line) -> None:
        await line.head()
        await echo(line)

    async with front(one_pool(f"http://127.0.0.1:{port}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(ASK)
        await trio.sleep(3)
        async with app(script, port=port):
            assert (await line.head()).startswith(b"HTTP/1.1 101 ")
            await line.send(b"hi")
            assert await line.read() == b"hi"
            await line.close()
            await settled()


async def test_an_upgrade_that_fails_before_101_is_sent_again(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.head()
        if line.number:
            await echo(line)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(ASK)
        assert (await line.head()).startswith(b"HTTP/1.1 101 ")
        assert it.connections == 2
        await line.close()
