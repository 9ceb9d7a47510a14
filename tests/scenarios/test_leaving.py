"""Waiting clients that leave: their place in the queue is free at once, in whichever lane and however they go."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trio

from tests.net.pki import Pki
from tests.upstream.parts import reset
from tests.wire import OK, Line, Stage, app, free_port, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture(params=["reactor", "tasks"])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the connections of the play are driven by."""
    if request.param == "tasks":
        monkeypatch.setenv("FRONTD_REACTOR", "off")
    return str(request.param)


async def fin(line: Line) -> None:
    await line.close()


async def half(line: Line) -> None:
    """Ends its side alone: whoever does that while waiting has left (decision 0002)."""
    assert isinstance(line.stream, trio.SocketStream)
    line.stream.socket.shutdown(socket.SHUT_WR)


async def rst(line: Line) -> None:
    reset(line)


async def waits(stage: Stage, count: int) -> None:
    """Until so many requests wait, here or anywhere."""
    queue = stage.front.pools["app"].queue
    with trio.fail_after(5):
        while (len(queue), queue.counter.total()) != (count, count):
            await settled()


@pytest.mark.parametrize("leave", [fin, half, rst])
@pytest.mark.parametrize(
    "request_", [GET, POST, POST + b"x" * 30000, GET + GET], ids=["get", "post", "part of a post", "two gets"]
)
async def test_a_place_is_free_at_once(tmp_path: Path, lane: str, leave: object, request_: bytes) -> None:
    assert callable(leave)
    text = one_pool(f"http://127.0.0.1:{free_port()}", pool="queue: {limit: 1, wait: 1m}")
    async with front(text, tmp_path) as stage:
        one, other = await stage.connect(), await stage.connect()
        await one.send(request_)
        await waits(stage, 1)
        assert b"QueueFull" in (await other.get())[1]
        await leave(one)
        await waits(stage, 0)
        await other.send(GET)
        await waits(stage, 1)
        assert stage.reasons["Client_Reset"] == 1


async def test_over_tls(tmp_path: Path, pki: Pki, lane: str) -> None:
    text = f"""
listen: {{https: {{port: 0, public_port: 443}}}}
tls: {{certificates: [{pki.entry("a")}]}}
sites: {{main: {{urls: ["https://a.test/"], routes: {{/: app}}}}}}
pools: {{app: {{targets: ["http://127.0.0.1:{free_port()}"], queue: {{wait: 1m}}}}}}
"""
    context = ssl.create_default_context(cafile=str(pki.ca))
    async with front(text, tmp_path) as stage:
        for how in ("close_notify", "fin"):
            raw = await trio.open_tcp_stream("127.0.0.1", stage.port("https"))
            secure = trio.SSLStream(raw, context, server_hostname="a.test", https_compatible=True)
            await secure.send_all(GET)
            await waits(stage, 1)
            await (secure.aclose() if how == "close_notify" else raw.aclose())
            await waits(stage, 0)
            await trio.aclose_forcefully(secure)


async def test_who_is_behind_moves_up_and_nobody_is_asked_for_one_who_left(tmp_path: Path, lane: str) -> None:
    asked: list[bytes] = []
    go = trio.Event()

    async def work(line: Line) -> None:
        while head := await line.head():
            asked.append(head.split(b" ")[1])
            await go.wait()
            await line.send(OK)

    async with app(work) as it, front(one_pool(it.url, pool="concurrency: 1"), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(6)]
        for number, line in enumerate(lines):
            await line.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            while not asked:  # the first has the app
                await settled()
            await waits(stage, number)
        for number in (1, 3, 4):
            await lines[number].close()
        await waits(stage, 2)
        go.set()
        for number in (0, 2, 5):
            assert (await lines[number].message())[1] == b"ok"
        assert asked == [b"/0", b"/2", b"/5"]


async def test_one_who_leaves_in_the_moment_of_its_turn_loses_no_place(tmp_path: Path, lane: str) -> None:
    """The app's one place becomes free while the next in line goes: it is given on, or comes back."""
    async with app() as it, front(one_pool(it.url, pool="concurrency: 1"), tmp_path) as stage:
        for _ in range(20):
            lines = [await stage.connect() for _ in range(4)]
            for line in lines:
                await line.send(GET)
            await rst(lines[1])
            for line in (lines[0], lines[2], lines[3]):
                assert (await line.message())[1] == b"ok"
        await waits(stage, 0)
