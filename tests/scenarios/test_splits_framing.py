"""Where one message ends and the next begins: pipelining, HEAD, 204, 304, HTTP/1.0, and the body that is waited for."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import trio

from tests.scenarios.bystander import behaving, entries
from tests.wire import OK, App, Line, app, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


# ---------------------------------------------------------------------------------------------------- pipelining


def request_number(number: int) -> tuple[bytes, bytes]:
    """A request and the body it carries: without one, by length, or chunked."""
    body = b"" if number % 3 == 0 else (b"%d;" % number) * (number * 7)
    head = b"%s /%d HTTP/1.1\r\nHost: a.test\r\n" % (b"PUT" if body else b"GET", number)
    if number % 3 == 1:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    if number % 3 == 2:
        half = len(body) // 2
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]))
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", body
    return head + b"\r\n", body


async def tells_the_path(line: Line) -> None:
    """An app that answers with the path it was asked for and the length of the body, now and then late."""
    late = random.Random(line.number)
    while True:
        head, body = await line.message()
        if not head:
            return
        if late.random() < 0.3:
            await trio.sleep(late.random())
        said = b"%s %d" % (head.split()[1], len(body))
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))


@pytest.mark.parametrize("together", [True, False])
async def test_pipelined_requests_are_answered_in_order(tmp_path: Path, together: bool, autojump_clock: object) -> None:
    """100 requests with and without bodies, sent in one piece or in pieces of any size: 100 answers, in order."""
    requests = [request_number(number) for number in range(100)]
    data = b"".join(request for request, _ in requests)
    async with app(tells_the_path) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_pieces, line, data, [len(data)] if together else cuts(data))
            for number, (_, body) in enumerate(requests):
                assert (await line.message())[1] == b"/%d %d" % (number, len(body))
        assert it.connections == 1
        assert stage.reasons == {}
    assert [entry["path"] for entry in entries(stage)] == [f"/{number}" for number in range(100)]


def cuts(data: bytes) -> list[int]:
    sizes = random.Random(3)
    return [sizes.choice((1, 2, 5, 40, 500)) for _ in range(len(data))]


async def send_in_pieces(line: Line, data: bytes, sizes: list[int]) -> None:
    at = 0
    for size in sizes:
        if at >= len(data):
            return
        await line.send(data[at : at + size])
        await trio.lowlevel.checkpoint()
        at += size


async def test_the_next_request_is_not_begun_before_the_answer_is_over(tmp_path: Path) -> None:
    go = trio.Event()

    async def waits(line: Line) -> None:
        while await line.head():
            await go.wait()
            await line.send(OK)

    async with app(waits) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET * 3)
        await settled()
        assert it.connections == 1
        assert sum(place.active for place in stage.front.pools["app"].places) == 1
        go.set()
        for _ in range(3):
            assert (await line.message())[1] == b"ok"


async def test_a_long_pipeline_keeps_nobody_from_his_turn(tmp_path: Path) -> None:
    """Redirects are answered without waiting for anything: 2000 of them at once, and somebody else beside them."""
    text = """
listen: {http: {port: 0}}
sites: {main: {urls: ["http://*/"], routes: {/: {redirect: "https://b.test{path}"}}}}
"""
    async with front(text, tmp_path) as stage:
        many, one = await stage.connect(), await stage.connect()
        (site,) = stage.front.service.world.all_sites
        await settled()
        await many.send(GET * 2000)
        await one.ask(GET)
        assert site.state.requests < 200


async def test_close_ends_a_pipeline(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        await line.send(GET + last + GET)
        answer = await line.read_to_end()
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.count(b"Connection: close") == 1
        assert len(it.heads) == 2
        assert b"<reset>" not in answer


# ---------------------------------------------------------------------------------------------------- no body


@pytest.mark.parametrize(
    ("method", "said", "status"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", b"200"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"200"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b"200"),
        (b"HEAD", b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", b"404"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"204"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"204"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", b"304"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", b"304"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b"304"),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"200"),
        (b"PUT", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", b"205"),
    ],
)
async def test_answers_without_a_body(tmp_path: Path, method: bytes, said: bytes, status: bytes) -> None:
    """Nothing is waited for and nothing follows the head, on both sides; both connections are used again."""

    async def says(line: Line) -> None:
        await line.head()
        await line.send(said)
        await line.head()
        await line.send(OK)

    async with app(says) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET.replace(b"GET", method))
        head = await line.head()
        assert head.split()[1] == status
        length = re.search(rb"Content-Length: \d+", said)
        if length and status != b"204":
            assert length[0] in head
        assert (await line.get())[1] == b"ok"
        assert line.buffer == b""
        assert it.connections == 1
        assert stage.reasons == {}


async def test_a_body_behind_an_answer_that_has_none_reaches_nobody(tmp_path: Path) -> None:
    """An app that sends a body with a 204 or to HEAD: what stands behind the head is not the next answer."""

    async def wrong(line: Line, head: bytes) -> None:
        status = b"200 OK" if head.startswith(b"HEAD") else b"204 No Content"
        evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        await line.send(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(evil), evil))
        await line.read_to_end()

    async with app(behaving(wrong)) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for method in (b"HEAD", b"GET", b"HEAD"):
            await line.send(GET.replace(b"GET", method))
            assert b"evil" not in await line.head()
        await settled()
        assert line.buffer == b""
        assert it.connections == 3


# ---------------------------------------------------------------------------------------------------- HTTP/1.0


@pytest.mark.parametrize("host", [b"Host: a.test\r\n", b""], ids=["with Host", "without"])
@pytest.mark.parametrize(
    "said",
    [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"],
    ids=["length", "chunked"],
)
async def test_http_1_0(tmp_path: Path, host: bytes, said: bytes) -> None:
    """One answer without chunks, then the end of the connection; the app is asked in HTTP/1.1."""
    asked: list[bytes] = []

    async def says(line: Line) -> None:
        while head := await line.head():
            asked.append(head)
            await line.send(said)

    async with app(says) as it, front(one_pool(it.url), tmp_path) as stage:
        for _ in range(2):
            line = await stage.connect()
            await line.send(b"GET / HTTP/1.0\r\n" + host + b"\r\n")
            head, _, body = (await line.read_to_end()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection: close" in head
            assert b"chunked" not in head
            assert body == b"ok"
            await line.close()
        assert it.connections == 1
        assert asked[0].startswith(b"GET / HTTP/1.1\r\nHost:")
        assert (b"host=a.test" in asked[0]) == bool(host)
        assert b"host=;" not in asked[0]
        assert stage.reasons == {}


async def test_http_1_0_is_not_kept_by_asking(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        answer = await line.read_to_end()
        assert answer.endswith(b"ok")
        assert b"\r\nConnection: close\r\n" in answer


async def test_http_1_0_gets_no_interim_answer(tmp_path: Path) -> None:
    async def says(line: Line) -> None:
        await line.message()
        await line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)

    async with app(says) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        await settled()
        await line.send(b"hi")
        assert (await line.read_to_end()).count(b"HTTP/1.1") == 1


# ---------------------------------------------------------------------------------------------------- Expect

EXPECT = b"POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_100_is_sent_when_the_body_is_wanted(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(2):
            await line.send(EXPECT)
            assert await line.head() == CONTINUE
            assert (await line.ask(b"hello"))[1] == b"ok"
        await line.send(EXPECT + b"hello")  # who does not wait is not told to go on
        assert (await line.message())[1] == b"ok"
        assert it.bodies == [b"hello"] * 3
        assert b"Expect" not in it.heads[0]


async def test_100_is_not_sent_while_the_request_waits(tmp_path: Path) -> None:
    """In the queue nobody reads the body; 100 is sent when the app is there."""
    go = trio.Event()

    async def waits(line: Line) -> None:
        while (await line.message())[0]:
            await go.wait()
            await line.send(OK)

    async with app(waits) as it, front(one_pool(it.url, pool="concurrency: 1"), tmp_path) as stage:
        busy, line = await stage.connect(), await stage.connect()
        await busy.send(GET)
        await settled()
        await line.send(EXPECT)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await line.head())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await settled()
            assert len(stage.front.pools["app"].queue) == 1
            assert not got
            go.set()
        assert got == [CONTINUE]
        assert (await line.ask(b"hello"))[1] == b"ok"


@pytest.mark.parametrize(
    ("extra", "status", "reason"),
    [
        ("Content-Length: 5", 503, "QueueFull"),
        ("Content-Length: 99999999", 413, "EntityTooLarge"),
        ("Content-Length: x", 400, "Number"),
    ],
)
async def test_a_refusal_comes_without_100(tmp_path: Path, extra: str, status: int, reason: str) -> None:
    """And says that the connection ends, since nobody will read the body (RFC 9110 10.1.1)."""

    async def waits(line: Line) -> None:
        await line.read_to_end()

    async with app(waits) as it:
        text = one_pool(it.url, pool="concurrency: 1\n    queue: {limit: 1}")
        async with front(text, tmp_path) as stage:
            for _ in range(2):  # one is with the app, one fills the queue
                await (await stage.connect()).send(GET)
                await settled()
            line = await stage.connect()
            await line.send(EXPECT.replace(b"Content-Length: 5", extra.encode()))
            answer = await line.read_to_end()
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert b"\r\nConnection: close\r\n" in answer
            assert f"Reason: {reason}\n".encode() in answer
            assert b"100 Continue" not in answer
            assert stage.reasons == {reason: 1}


def heads_of(it: App) -> list[bytes]:
    return [head.split(b"\r\n", 1)[0] for head in it.heads]


async def test_bytes_that_look_like_a_request_inside_a_body_stay_a_body(tmp_path: Path) -> None:
    inner = b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        by_length = b"PUT /1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
        chunked = b"PUT /2 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
        await line.send(by_length + chunked + GET)
        for _ in range(3):
            assert (await line.message())[1] == b"ok"
        assert heads_of(it) == [b"PUT /1 HTTP/1.1", b"PUT /2 HTTP/1.1", b"GET / HTTP/1.1"]
        assert it.bodies == [inner, inner, b""]
