"""Apps that answer rubbish, break off or never answer: a 502 or 504 that says why, or a cut that is no clean end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from frontd.lanes.connection import Connection
from tests.scenarios.bystander import Behaviour, behaving, bystander, logged, small_window
from tests.wire import OK, Line, app, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
OLD_GET = b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n"
TEN = b"\r\nContent-Length: 10\r\n\r\n0123456789"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi"


def says(data: bytes, *, end: bool = False) -> Behaviour:
    """Every request gets these bytes, then the end of the connection or nothing more."""

    async def bad(line: Line, _: bytes) -> None:
        await line.send(data)
        if end:
            raise EOFError
        await trio.sleep_forever()

    return bad


RUBBISH = {
    "nothing like HTTP": b"\x00\x01\x02\x03\x04\x05\x06\x07",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status 99": b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "control byte": b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 2\r\n\r\nok",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "two equal lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 200_000,
    "5000 fields": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_is_a_502(tmp_path: Path, rubbish: bytes) -> None:
    async with app(behaving(says(rubbish))) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        head, body = await line.ask(GET)
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b'\r\nProxy-Status: frontd; error=http_protocol_error; details="BadUpstreamHead"\r\n' in head
        assert b"127.0.0.1" not in head + body
        assert it.connections == 2  # the bystander's and one: rubbish is not asked for again
        await settled()
        assert stage.front.pools["app"].places[0].active == 1  # the bystander's
        head, body = await line.ask(GET.replace(b"GET / ", b"POST /bystander ").replace(b"\r\n\r\n", TEN))
        assert body == b"ok"  # the client's connection is kept
    logged(stage, "BadUpstreamHead", status=502)


@pytest.mark.parametrize(
    ("said", "request_", "reason", "times"),
    [
        (b"", GET, "Connection_Abandoned_By_ReqQueue", 2),  # safe to repeat: once more, on another connection
        (b"", POST, "Connection_Abandoned_By_ReqQueue", 1),
        (b"HTTP/1.1 200 OK\r\nContent-", GET, "BadUpstreamHead", 1),
        (b"H", POST, "BadUpstreamHead", 1),
    ],
)
async def test_closing_before_the_head_is_complete(
    tmp_path: Path, said: bytes, request_: bytes, reason: str, times: int
) -> None:
    async with app(behaving(says(said, end=True))) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        head, _ = await line.ask(request_)
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert it.connections == 1 + times
    logged(stage, reason, status=502)


BROKEN = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf",
    "before the trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
}


@pytest.mark.parametrize("asked", [GET, OLD_GET], ids=["1.1", "1.0"])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_an_answer_that_breaks_off_is_cut(tmp_path: Path, broken: bytes, asked: bytes) -> None:
    """By a reset, also where the client would take an end of the connection for the end of the body (HTTP/1.0)."""

    async def half(line: Line, _: bytes) -> None:
        await line.send(broken)
        await settled()  # the half is on its way before the end
        raise EOFError

    async with app(behaving(half)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        await line.send(asked)
        answer = await line.read_to_end()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"half" in answer
        assert answer.endswith(b"<reset>")
        assert b"\r\n0\r\n" not in answer
    logged(stage, "BadUpstreamBody", status=200)


@pytest.mark.parametrize("asked", [GET, OLD_GET], ids=["1.1", "1.0"])
async def test_an_answer_until_close_that_is_reset_is_cut(tmp_path: Path, asked: bytes) -> None:
    async def reset(line: Line, _: bytes) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await settled()
        stream = line.stream
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: on, 0 s
        raise EOFError

    async with app(behaving(reset)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        await line.send(asked)
        answer = await line.read_to_end()
        assert b"half" in answer
        assert answer.endswith(b"<reset>")
        assert b"\r\n0\r\n" not in answer
    logged(stage, "BadUpstreamBody", status=200)


async def test_an_answer_until_close_that_ends_is_whole(tmp_path: Path) -> None:
    said = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nwhole"
    async with app(behaving(says(said, end=True))) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.ask(GET)
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert body == b"whole"
        assert (await line.ask(GET))[1] == b"whole"
        await line.send(OLD_GET)
        answer = await line.read_to_end()
        assert answer.endswith(b"\r\n\r\nwhole")
        assert b"chunked" not in answer
        assert stage.reasons == {}


@pytest.mark.parametrize("line_", [b"zz\r\n", b"4 \r\n", b"-4\r\n", b"4\n", b"4;" + b"x" * 600 + b"\r\n"])
async def test_bad_chunks_of_an_app_cut_the_answer(tmp_path: Path, line_: bytes) -> None:
    async def bad(line: Line, _: bytes) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await settled()
        await line.send(line_ + b"half\r\n0\r\n\r\n")
        await trio.sleep_forever()

    async with app(behaving(bad)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        await line.send(GET)
        answer = await line.read_to_end()
        assert answer.count(b"half") == 1
        assert answer.endswith(b"<reset>")
    logged(stage, "BadUpstreamBody", status=200)


async def test_what_an_app_says_behind_its_answer_reaches_nobody(tmp_path: Path) -> None:
    """A second answer nobody asked for: the connection is not used again, so it cannot answer the next request."""
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with app(behaving(says(said))) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(3):
            assert (await line.ask(GET))[1] == b"ok"
        assert it.connections == 3


async def test_what_an_app_says_later_unasked_reaches_nobody(tmp_path: Path) -> None:
    async def later(line: Line, _: bytes) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await settled()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async with app(behaving(later)) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(3):
            assert (await line.ask(GET))[1] == b"ok"
            await settled()
        assert it.connections == 3


async def test_an_app_that_never_answers(tmp_path: Path, autojump_clock: object) -> None:
    async with app(behaving(says(b""))) as it, front(one_pool(it.url), tmp_path) as stage:
        line, second = await stage.connect(), await stage.connect()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.ask, GET)
            head, body = await line.ask(GET)
        assert trio.current_time() - began == 60
        assert head.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        assert b"Reason: Timer_Response\n" in body
        assert stage.reasons == {"Timer_Response": 2}
        assert it.connections == 2  # the app may have done what was asked: it is not asked again


async def test_many_interim_answers_keep_nobody_from_his_turn(tmp_path: Path) -> None:
    """3000 at once, for a client that is told of none (HTTP/1.0): somebody else is served in between."""
    flooded = trio.Event()
    order: list[str] = []

    async def flood(line: Line, _: bytes) -> None:
        await line.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 3000 + OK)
        flooded.set()
        await line.read_to_end()

    async def read(line: Line, name: str) -> None:
        assert (await line.message())[1] == b"ok"
        order.append(name)

    async with app(behaving(flood)) as it, front(one_pool(it.url), tmp_path) as stage:
        line, other = await stage.connect(), await stage.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, line, "flooded")
            nursery.start_soon(read, other, "other")
            await line.send(OLD_GET)
            await flooded.wait()
            await other.send(GET.replace(b"GET / ", b"POST /bystander ").replace(b"\r\n\r\n", TEN))
    assert order == ["other", "flooded"]


async def test_interim_answers_without_end_wait_in_the_app(tmp_path: Path) -> None:
    """For a client that does not read: what is held here is bounded, and others are served meanwhile."""
    sent = 0

    async def flood(line: Line, _: bytes) -> None:
        nonlocal sent
        while True:
            await line.send(b"HTTP/1.1 103 Early Hints\r\nLink: <" + b"x" * 30_000 + b">\r\n\r\n")
            sent += 1

    async with app(behaving(flood)) as it, front(one_pool(it.url), tmp_path) as stage:
        async with bystander(stage):
            line = await small_window(stage)
            await line.send(GET)
            await settled()  # the flood comes to rest: the client reads nothing
            held = [one.stream.pending for one in stage.front.service.connections if isinstance(one, Connection)]
            assert 0 < max(held) < 200_000
            rest = sent
            await settled()
            assert sent == rest
        await line.close()
