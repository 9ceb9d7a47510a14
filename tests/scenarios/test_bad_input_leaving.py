"""Clients that leave, apps that answer before they were asked everything, and faults of our own."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
import trio

from frontd.model.headers import Headers
from frontd.pipeline.world import World
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import WireLimits
from tests.scenarios.bystander import Behaviour, behaving, bystander, entries, logged
from tests.wire import OK, Line, Stage, app, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
BIG = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10000000\r\n\r\n"


async def leave(line: Line, how: str) -> None:
    """The client is gone, politely or by a reset, or has only ended its side."""
    assert isinstance(line.stream, trio.SocketStream)
    if how == "half":
        await line.stream.send_eof()
    else:
        if how == "reset":
            line.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await line.close()
    await settled()


def active(stage: Stage) -> int:
    return sum(place.active for place in stage.front.pools["app"].places)


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_leaves_the_queue_frees_its_place(tmp_path: Path, how: str) -> None:
    go = trio.Event()

    async def waits(line: Line, _: bytes) -> None:
        await go.wait()
        await line.send(OK)

    async with app(behaving(waits)) as it:
        text = one_pool(it.url, pool="concurrency: 1\n    queue: {limit: 1}")
        async with front(text, tmp_path) as stage:
            first, second, third = [await stage.connect() for _ in range(3)]
            await first.send(GET)
            await settled()
            await second.send(GET)
            await settled()
            assert len(stage.front.pools["app"].queue) == 1
            await leave(second, how)
            assert len(stage.front.pools["app"].queue) == 0
            await third.send(GET)
            await settled()
            go.set()
            assert (await first.message())[1] == b"ok"
            assert (await third.message())[1] == b"ok"
            assert it.connections == 1
            assert active(stage) == 0
    logged(stage, "Client_Reset")
    assert [entry["attempts"] for entry in entries(stage) if entry["reason"]] == [0]


@pytest.mark.parametrize("request_", [GET, BIG + b"x" * 1000], ids=["get", "upload"])
@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_leaves_before_the_answer_cancels_the_app(
    tmp_path: Path, how: str, request_: bytes
) -> None:
    ended = trio.Event()

    async def waits(line: Line, _: bytes) -> None:
        await line.read_to_end()
        ended.set()

    async with app(behaving(waits)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        await line.send(request_)
        await settled()
        assert not ended.is_set()
        await leave(line, how)
        assert ended.is_set()
        assert active(stage) == 1  # the bystander's
        assert len(stage.front.service.connections) == 1
    logged(stage, "Client_Reset")


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_leaves_inside_the_answer_cancels_the_app(tmp_path: Path, how: str) -> None:
    ended = trio.Event()

    async def half(line: Line, _: bytes) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await line.read_to_end()
        ended.set()

    async with app(behaving(half)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        await line.send(GET)
        await line.read_until(b"half")
        await leave(line, how)
        assert ended.is_set()
        assert active(stage) == 1
    logged(stage, "Connection_Dropped", status=200)


async def test_a_client_that_leaves_between_two_requests_is_no_fault(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        for how in ("close", "reset", "half"):
            line = await stage.connect()
            await line.get()
            await leave(line, how)
            fresh = await stage.connect()
            await settled()
            await leave(fresh, how)
        assert len(stage.front.service.connections) == 0
        assert stage.reasons == {}


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_leaves_inside_a_head(tmp_path: Path, how: str) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET[:-2])
        await settled()
        await leave(line, how)
        assert stage.reasons == {"Connection_Dropped": 1}
        assert len(stage.front.service.connections) == 0
    assert " Connection_Dropped " in stage.log("error")


# ---------------------------------------------------------------------------------------------------- early answers


def early(answer: bytes) -> Behaviour:
    async def says(line: Line, _: bytes) -> None:
        await line.send(answer)
        await line.read_to_end()

    return says


NO = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_small_rest_of_a_refused_upload_is_drained(tmp_path: Path, chunked: bool) -> None:
    """The answer comes at once, the rest is read and thrown away, and the connection is kept."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 200000\r\n\r\n"
    rest = b"30d40\r\n" + b"x" * 200_000 + b"\r\n0\r\n\r\n" if chunked else b"x" * 200_000
    async with app(behaving(early(NO))) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        assert (await line.ask(head + rest[:10]))[1] == b"no"
        await line.send(rest[10:] + GET)
        assert (await line.message())[1] == b"no"
        assert stage.reasons == {}


async def test_the_large_rest_of_a_refused_upload_ends_the_connection(tmp_path: Path) -> None:
    """The client sees the whole answer all the same."""
    async with app(behaving(early(NO))) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        for _ in range(20):
            line = await stage.connect()
            await line.send(BIG)
            await settled()
            try:
                await line.send(b"x" * 9_000_000)
            except trio.BrokenResourceError:
                pytest.fail("cut while it was uploading")
            answer = await line.read_to_end()
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert answer.endswith(b"no")
            await line.close()


async def test_a_bad_rest_of_a_refused_upload_does_not_spoil_the_answer(tmp_path: Path) -> None:
    async with app(behaving(early(NO))) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await settled()
        await line.send(b"nonsense\r\n" + b"x" * 100_000)
        answer = await line.read_to_end()
        assert answer.endswith(b"\r\n\r\nno")
        assert answer.count(b"HTTP/1.1") == 1
        await line.close()
        await settled()
        assert stage.reasons == {"Number": 1}


# ---------------------------------------------------------------------------------------------------- our own faults


async def test_a_fault_of_ours_is_a_500_and_nobody_else_notices(tmp_path: Path) -> None:
    """A site whose routes are no table: the exchange fails, the connection and the front go on."""
    async with app() as it:
        text = one_pool(it.url) + "\nx-other: {}\n"
        text = text.replace("sites:", 'sites:\n  broken: {urls: ["http://broken.test/"], routes: {/: app}}', 1)
        async with front(text, tmp_path) as stage, bystander(stage):
            break_site(stage.front.service.world)
            line = await stage.connect()
            head, page = await line.get(host="broken.test")
            assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert b"Reason: Internal\n" in page
            assert b"NoneType" not in head + page
            assert (await line.get())[1] == b"ok"  # the same connection
    logged(stage, "Internal", status=500)
    assert "AttributeError" in stage.log("error")


def break_site(world: World) -> None:
    (site,) = [site for site in world.all_sites if site.name == "broken"]
    object.__setattr__(site, "routes", None)  # it is frozen, as everything of a world


def test_an_answer_that_we_framed_wrongly_cannot_be_followed_by_another() -> None:
    """More bytes than announced is a fault of ours: what went out is cut, never ended cleanly or answered twice."""
    http = ServerConnection()
    http.receive(GET)
    assert http.next_head(WireLimits())
    http.send_head(200, b"OK", Headers.of((b"Content-Length", b"2")))
    with pytest.raises(ValueError, match="longer than its Content-Length"):
        http.send_body(b"too much")
    assert http.answered
    assert not http.answer_complete
