"""Bad input from clients: a clear answer or a clean close, a reason, bounded memory, and nobody else notices."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from frontd.lanes.connection import Connection
from tests.scenarios.bystander import behaving, bystander, entries, logged, small_window
from tests.wire import OK, Line, app, front, one_pool, settled

HEAD = b"GET / HTTP/1.1\r\nHost: a.test\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\n"


@contextmanager
def memory_bound(most: int) -> Iterator[None]:
    """What is allocated inside peaks below `most` bytes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most


async def send_and_read(line: Line, data: bytes) -> bytes:
    """Everything the front says while and after `data` is sent to it."""
    answer = b""

    async def read() -> None:
        nonlocal answer
        answer = await line.read_to_end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await line.send(data)
    return answer


@pytest.mark.parametrize(
    ("garbage", "reason", "status"),
    [
        (random.Random(7).randbytes(70_000), "Invalid_CR/LF", 400),
        (b"\x00" * 1000, "BadRequest", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500, "BadRequest", 400),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "BadRequest", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "Version_N/S", 505),
        (b"GET / HTTP/1.1\nHost: a.test\n\n", "Invalid_CR/LF", 400),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\nX: a\x0bb\r\n\r\n", "Header", 400),
        (b"\r\n\r\n\r\n\r\n", "BadRequest", 400),
    ],
    ids=["random", "zeros", "TLS", "SSH", "HTTP/2", "bare LF", "control byte", "empty lines"],
)
async def test_garbage(tmp_path: Path, garbage: bytes, reason: str, status: int) -> None:
    async with app(behaving(never)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        answer = await send_and_read(line, garbage)
        head, _, page = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nConnection: close" in head
        assert f"Reason: {reason}\n".encode() in page
    logged(stage, reason, status=status)


async def never(_: Line, head: bytes) -> None:
    raise AssertionError(f"the app was sent {head!r}")


async def test_a_header_of_1_mib(tmp_path: Path) -> None:
    async with app(behaving(never)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        data = HEAD + b"X-Long: " + b"x" * 1048576 + b"\r\n\r\n"
        with memory_bound(400_000):
            answer = await send_and_read(line, data)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"limits.max_head (16384 bytes)" in answer
        assert b"<reset>" not in answer
    logged(stage, "RequestLength", status=431)


@pytest.mark.parametrize(
    ("limits", "reason", "key"),
    [
        ("{}", "RequestLength", b"limits.max_head (16384 bytes)"),
        ("{max_head: 16MiB}", "FieldLength", b"limits.max_fields (200 fields)"),
    ],
)
async def test_a_hundred_thousand_headers(tmp_path: Path, limits: str, reason: str, key: bytes) -> None:
    text = "limits: " + limits
    async with app(behaving(never)) as it, front(one_pool(it.url, extra=text), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        data = HEAD + b"a: b\r\n" * 100_000 + b"\r\n"
        with memory_bound(4_000_000 if reason == "FieldLength" else 400_000):
            answer = await send_and_read(line, data)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert key in answer
    logged(stage, reason, status=431)


async def test_a_body_longer_than_announced_is_the_next_request(tmp_path: Path) -> None:
    """The bytes behind the announced length never reach the app; they are judged as a request head."""
    async with app() as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        answer = await send_and_read(line, POST + b"Content-Length: 3\r\n\r\nabcdef\r\n\r\n")
        first, second = answer.split(b"HTTP/1.1 ")[1:]
        assert first.startswith(b"200 OK\r\n")
        assert second.startswith(b"400 Bad Request\r\n")
        assert it.bodies[0] == b"abc"
    assert it.bodies == [b"abc", b"0123456789", b"0123456789"]
    logged(stage, "BadRequest", status=400)


@pytest.mark.parametrize(
    "framed",
    [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"],
    ids=["length", "chunked"],
)
async def test_a_body_shorter_than_announced(tmp_path: Path, framed: bytes) -> None:
    """The client ends in the middle of its body: the app's connection is cut, so that no half body looks whole."""
    seen = b""

    async def read_all(line: Line, _: bytes) -> None:
        nonlocal seen
        seen = await line.read_to_end()

    async with app(behaving(read_all)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        await line.send(POST + framed)
        await settled()
        await line.close()
        await settled()
        assert b"abc" in seen
        assert b"0\r\n\r\n" not in seen
        assert stage.front.pools["app"].places[0].active == 1  # the bystander's
    logged(stage, "Client_Reset")


@pytest.mark.parametrize("size", [b"zz", b"-1", b"0x5", b"1" * 20, b"5 ", b" 5"])
async def test_a_chunk_size_that_is_none(tmp_path: Path, size: bytes) -> None:
    async def read_all(line: Line, _: bytes) -> None:
        await line.read_to_end()

    async with app(behaving(read_all)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        await line.send(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await settled()
        answer = await send_and_read(line, size + b"\r\nhello\r\n0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Reason: Number" in answer
    logged(stage, "Number", status=400)


async def test_a_head_of_one_byte_a_second(tmp_path: Path, autojump_clock: object) -> None:
    text = "timeouts: {header_wait: 50s}"
    async with app(behaving(never)) as it, front(one_pool(it.url, extra=text), tmp_path) as stage, bystander(stage):
        line = await stage.connect()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, line, HEAD + b"X: " + b"x" * 1000)
            answer = await line.read_to_end()
            nursery.cancel_scope.cancel()
        assert 50 <= trio.current_time() - began < 53
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"Reason: Timer_HeaderWait" in answer
    logged(stage, "Timer_HeaderWait", status=408)


async def drip(line: Line, data: bytes) -> None:
    """One byte a second, until the front has had enough."""
    for byte in data:
        try:
            await line.send(bytes([byte]))
        except trio.BrokenResourceError:
            return
        await trio.sleep(1)


async def test_a_body_of_one_byte_a_second_arrives(tmp_path: Path, autojump_clock: object) -> None:
    """It is slow, but each part comes in time: neither the client's timer nor the app's runs out."""
    text = "timeouts: {entity_body: 5s, response_head: 5s}"
    async with app() as it, front(one_pool(it.url, extra=text), tmp_path) as stage:
        line, other = await stage.connect(), await stage.connect()
        await line.send(POST + b"Content-Length: 100\r\n\r\n")
        await drip(line, b"x" * 50)
        assert (await other.get())[1] == b"ok"
        await drip(line, b"x" * 50)
        assert (await line.message())[1] == b"ok"
        assert it.bodies[1] == b"x" * 100
        assert stage.reasons == {}


async def test_a_client_that_reads_one_byte_a_second(tmp_path: Path, autojump_clock: object) -> None:
    """It is cut for its rate, and while it is slow the answer waits in the app and not here."""
    sent = 0

    async def pour(line: Line, _: bytes) -> None:
        nonlocal sent
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            await line.send(b"x" * 65536)
            sent += 65536

    async with app(behaving(pour)) as it, front(one_pool(it.url), tmp_path) as stage, bystander(stage):
        line = await small_window(stage)
        await line.send(HEAD + b"\r\n")
        await settled()
        (slow,) = [one for one in stage.front.service.connections if isinstance(one, Connection) and one.stream.pending]
        held = 0
        for _ in range(40):
            assert await line.stream.receive_some(1)
            held = max(held, slow.stream.pending)
            await trio.sleep(1)
        assert (await line.read_to_end()).endswith(b"<reset>")
        assert held <= 131072
        assert sent < 16_000_000  # what the kernels hold on the way
    logged(stage, "Timer_MinBytesPerSecond", status=200)
    (seconds,) = [entry["seconds"] for entry in entries(stage) if entry["reason"]]
    assert seconds == 20  # the first window; what the client's kernel held could be read for longer


async def test_many_bad_clients_at_once_and_a_good_one(tmp_path: Path) -> None:
    """Everything above at the same time; then nothing is left behind."""
    async with app(behaving(never)) as it, front(one_pool(it.url), tmp_path) as stage:
        async with bystander(stage):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(send_and_read, await stage.connect(), random.Random(number).randbytes(5000))
        for line in stage.lines:
            await line.close()
        await settled()
        assert len(stage.front.service.connections) == 0
        assert stage.front.pools["app"].places[0].active == 0
        assert sum(stage.reasons.values()) == 40
    assert {entry["status"] for entry in entries(stage) if entry["reason"]} <= {400, 505}


async def test_garbage_behind_a_good_request(tmp_path: Path) -> None:
    """Pipelined: the good one is answered, then the bad one is refused and the connection ends."""
    async with app(OK) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        answer = await send_and_read(line, HEAD + b"\r\n" + b"\x01\x02\x03\r\n\r\n" + HEAD + b"\r\n")
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]
        assert len(it.heads) == 1
    logged(stage, "BadRequest", status=400)
