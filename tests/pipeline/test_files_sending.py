"""Files on the wire, plain and through TLS: framing, slow readers, and files that do not stay as they were."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from frontd.config.model import Limits, Timeouts
from frontd.lanes.downstream import H1Downstream
from frontd.model.conditions import Span
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.messages import Client, Exchange
from frontd.net.streams import FILE_SLICE, Stream
from frontd.net.traps import carry
from frontd.pipeline.fileroot import FileRoot, OpenFile
from frontd.pipeline.files import AT_ONCE, Piece, select, send_pieces
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import WireLimits
from tests.net.pki import Pki
from tests.net.test_streams import ends, everything
from tests.net.tlsclient import Secure
from tests.pipeline.asking import asking, body_of

LARGE = 3 * FILE_SLICE + 12345
PATTERN = bytes(range(251)) * (LARGE // 251 + 1)
GET = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"
CHUNKED = Headers.of((b"Transfer-Encoding", b"chunked"))


@pytest.fixture(params=["plain", "tls"])
def keys(request: pytest.FixtureRequest, pki: Pki) -> Pki | None:
    return pki if request.param == "tls" else None


@contextmanager
def opened(folder: Path, size: int) -> Iterator[OpenFile]:
    """A file of `size` bytes."""
    (folder / "x").write_bytes(PATTERN[:size])
    with FileRoot.open(folder).open_file(b"x") as file:
        yield file


def downstream(stream: Stream, request: bytes = GET, rate: int = 240) -> H1Downstream:
    """The client's side of one exchange whose request has come."""
    http = ServerConnection()
    http.receive(request)
    http.next_head(WireLimits())
    client = Client("127.0.0.1", 1, "127.0.0.1", "127.0.0.1", 80, "http", "http", 80)
    exchange = Exchange(client, asking("/x"), 0, 0)
    return H1Downstream(stream, http, exchange, Limits(), Timeouts(min_send_rate=rate))


@asynccontextmanager
async def sides(keys: Pki | None, request: bytes = GET, rate: int = 240) -> AsyncIterator[
    tuple[H1Downstream, trio.abc.Stream]
]:  # fmt: skip
    async with ends(keys) as (stream, client):
        yield downstream(stream, request, rate), client


async def send(down: H1Downstream, file: OpenFile, *fields: str) -> None:
    """Answer with the file, to the end of the answer."""
    response, pieces = select(asking("/x", *fields), file)
    down.start(response.status, b"OK", response.headers)
    await carry(send_pieces(down, file, pieces))
    if not down.finish():
        await down.flush()


async def read_answer(client: trio.abc.Stream, size: int) -> tuple[bytes, bytes]:
    """Head, and a body of `size` bytes."""
    got = bytearray()
    while b"\r\n\r\n" not in got or len(got) < got.index(b"\r\n\r\n") + 4 + size:
        data = await client.receive_some(65536)
        assert data, f"the end after {len(got)} bytes"
        got += data
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    return head, body


# ---------------------------------------------------------------------------------------------------- whole answers


@pytest.mark.parametrize("size", [0, 1, 1000, AT_ONCE, AT_ONCE + 1, FILE_SLICE, LARGE])
async def test_every_byte_arrives_once_and_the_connection_is_kept(tmp_path: Path, keys: Pki | None, size: int) -> None:
    async with sides(keys) as (down, client):
        with opened(tmp_path, size) as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, down, file)
                head, body = await read_answer(client, size)
            assert b"\r\nContent-Length: %d" % size in head
            assert body == PATTERN[:size]
            assert down.exchange.bytes_out == len(head) + 4 + size == down.stream.sent
            assert down.http.answer_complete
            assert not down.http.must_close
            down.http.next_cycle()
            down.http.receive(GET)
            assert down.http.next_head(WireLimits()) is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, down, file, "Range: bytes=-1")
                _, body = await read_answer(client, min(size, 1))
            assert body == PATTERN[:size][-1:]


async def test_several_parts(tmp_path: Path, keys: Pki | None) -> None:
    async with sides(keys) as (down, client):
        with opened(tmp_path, LARGE) as file:
            asked = f"Range: bytes=-5, 7-9, 10-{AT_ONCE + 100}"
            response, pieces = select(asking("/x", asked), file)
            expected = body_of(pieces, file)

            async def answer() -> None:
                down.start(response.status, b"Partial Content", response.headers)
                await carry(send_pieces(down, file, pieces))
                assert down.finish()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                _, body = await read_answer(client, len(expected))
        assert body == expected
        for part in (PATTERN[LARGE - 5 : LARGE], PATTERN[7:10], PATTERN[10 : AT_ONCE + 101]):
            assert b"\r\n\r\n" + part + b"\r\n--" in body


async def test_what_waits_goes_first(tmp_path: Path, keys: Pki | None) -> None:
    first = b"f" * 8_000_000
    async with sides(keys) as (down, client):
        with opened(tmp_path, LARGE) as file:

            async def answer() -> None:
                down.start(200, b"OK", Headers.of((b"Content-Length", b"%d" % (len(first) + LARGE))))
                assert not down.send(first)
                await down.send_file(file.fd, 0, LARGE)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                _, body = await read_answer(client, len(first) + LARGE)
    assert body == first + PATTERN[:LARGE]


async def test_in_chunks_the_file_is_one_chunk(tmp_path: Path, keys: Pki | None) -> None:
    """Not what `select` asks for, but what a plugin may make of it by taking the length away."""
    async with sides(keys) as (down, client):
        with opened(tmp_path, LARGE) as file:

            async def answer() -> None:
                down.start(200, b"OK", CHUNKED)
                await carry(send_pieces(down, file, [b"first", Span(0, LARGE)]))
                down.finish()
                down.stream.end_writing()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                got = await everything(client)
        body = got.partition(b"\r\n\r\n")[2]
        assert body == b"5\r\nfirst\r\n%x\r\n" % LARGE + PATTERN[:LARGE] + b"\r\n0\r\n\r\n"


async def test_an_http_1_0_client(tmp_path: Path, keys: Pki | None) -> None:
    async with sides(keys, b"GET /x HTTP/1.0\r\n\r\n") as (down, client):
        with opened(tmp_path, LARGE) as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, down, file)
                _, body = await read_answer(client, LARGE)
        assert body == PATTERN[:LARGE]
        assert down.http.must_close


async def test_a_part_beyond_2_gib(tmp_path: Path, keys: Pki | None) -> None:
    with (tmp_path / "x").open("wb") as big:
        big.truncate(6 * 2**30)
        big.seek(5 * 2**30 - 1)
        big.write(PATTERN[:LARGE])
    async with sides(keys) as (down, client):
        with FileRoot.open(tmp_path).open_file(b"x") as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, down, file, f"Range: bytes={5 * 2**30 - 1}-{5 * 2**30 + LARGE - 2}")
                head, body = await read_answer(client, LARGE)
    assert head.startswith(b"HTTP/1.1 206 ")
    assert body == PATTERN[:LARGE]


async def test_a_small_file_leaves_in_one_write_without_a_wait(tmp_path: Path) -> None:
    """So that a driver of plain calls can answer it: no task, one packet."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far, opened(tmp_path, 1000) as file:
        stream = Stream(near)
        down = downstream(stream)
        response, pieces = select(asking("/x"), file)
        down.start(response.status, b"OK", response.headers)
        with pytest.raises(StopIteration):
            send_pieces(down, file, pieces).send(None)
        assert down.finish()
        assert far.recv(65536).endswith(b"\r\n\r\n" + PATTERN[:1000])
        stream.close_now()


# ---------------------------------------------------------------------------------------------------- slow readers


async def test_a_slow_reader_holds_little_memory(tmp_path: Path, keys: Pki | None, autojump_clock: object) -> None:
    async with sides(keys) as (down, client):
        with opened(tmp_path, LARGE) as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, down, file)
                got = 0
                while got < LARGE:
                    await trio.sleep(1)
                    assert down.stream.pending <= AT_ONCE
                    got += len(await client.receive_some(50_000))
        assert down.http.answer_complete


async def test_a_reader_that_is_too_slow_is_cut_off(tmp_path: Path, keys: Pki | None, autojump_clock: object) -> None:
    """Judged over the whole of the file: each part of it arrives soon enough."""
    (tmp_path / "x").touch()
    os.truncate(tmp_path / "x", 10 * LARGE)
    async with sides(keys, rate=50_000) as (down, client):
        under = client.under if isinstance(client, Secure) else client
        assert isinstance(under, trio.SocketStream)
        under.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        with FileRoot.open(tmp_path).open_file(b"x") as file:

            async def read_slowly() -> None:
                while True:
                    await trio.sleep(1)
                    await client.receive_some(16_384)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_slowly)
                with pytest.raises(FrontdError) as caught:
                    await send(down, file)
                nursery.cancel_scope.cancel()
        assert caught.value.reason is Reason.Timer_MinBytesPerSecond
        assert not down.http.answer_complete


async def test_a_fast_reader_leaves_the_others_their_turn(tmp_path: Path, keys: Pki | None) -> None:
    """The file is sparse: nothing waits for a disk, and the reader takes all at once."""
    (tmp_path / "x").touch()
    os.truncate(tmp_path / "x", 100 * FILE_SLICE)
    steps: list[int] = []

    async with sides(keys) as (down, client):

        async def somebody_else() -> None:
            before = 0
            while not down.http.answer_complete:
                await trio.lowlevel.checkpoint()
                steps.append(down.stream.sent - before)
                before = down.stream.sent

        with FileRoot.open(tmp_path).open_file(b"x") as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(somebody_else)
                nursery.start_soon(send, down, file)
                got = 0
                while got < 100 * FILE_SLICE:
                    got += len(await client.receive_some(FILE_SLICE))
    assert max(steps) <= 2 * FILE_SLICE + 1000  # trio shuffles who comes first in each turn


# ---------------------------------------------------------------------------------------------------- broken off


async def test_a_client_that_leaves_in_the_middle(tmp_path: Path, keys: Pki | None) -> None:
    async with sides(keys) as (down, client):
        with opened(tmp_path, LARGE) as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave_after, client, 1000)
                with pytest.raises(FrontdError) as caught:
                    await send_ten(down, file)
        assert caught.value.reason is Reason.Connection_Dropped
        assert not down.can_answer
        assert not down.http.answer_complete
        assert 1000 < down.exchange.bytes_out < 10 * LARGE


async def send_ten(down: H1Downstream, file: OpenFile) -> None:
    """The file ten times over: more than the kernel takes for a client that does not read."""
    pieces: list[Piece] = [Span(0, LARGE)] * 10
    down.start(200, b"OK", Headers.of((b"Content-Length", b"%d" % (10 * LARGE))))
    await carry(send_pieces(down, file, pieces))


async def leave_after(client: trio.abc.Stream, size: int) -> None:
    got = 0
    while got < size:
        got += len(await client.receive_some(1000))
    await client.aclose()


@pytest.mark.parametrize("left", [0, AT_ONCE, FILE_SLICE + 1])
async def test_a_file_that_becomes_shorter_cuts_the_answer(tmp_path: Path, keys: Pki | None, left: int) -> None:
    async with sides(keys) as (down, client):
        with opened(tmp_path, LARGE) as file:
            os.truncate(tmp_path / "x", left)
            got: list[bytes] = []
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    got.append(await everything(client))

                nursery.start_soon(read)
                with pytest.raises(FrontdError) as caught:
                    await send(down, file)
                down.stream.abort()  # what the connection does with an answer that is not complete
        assert caught.value.reason is Reason.Internal
        assert "shorter" in caught.value.detail
        assert not down.http.answer_complete
        body = got[0].removesuffix(b"<reset>").partition(b"\r\n\r\n")[2]
        assert PATTERN.startswith(body)
        assert len(body) <= left
        assert not (isinstance(client, Secure) and client.ended_cleanly)


async def test_a_small_file_that_becomes_shorter_is_not_begun(tmp_path: Path) -> None:
    async with sides(None) as (down, _):
        with opened(tmp_path, 100) as file:
            os.truncate(tmp_path / "x", 99)
            with pytest.raises(FrontdError) as caught:
                await send(down, file)
            assert caught.value.reason is Reason.Internal
            assert down.stream.sent == 0


async def test_what_cannot_be_sent_by_the_kernel_is_copied(keys: Pki | None) -> None:
    """Some file systems know no sendfile: of those in /proc this is one, and it says that it is empty."""
    async with sides(keys) as (down, client):
        fd = os.open("/proc/version", os.O_RDONLY)
        try:
            expected = os.pread(fd, 4096, 0)
            down.start(200, b"OK", Headers.of((b"Content-Length", b"%d" % len(expected))))
            await down.send_file(fd, 0, len(expected))
            assert (await read_answer(client, len(expected)))[1] == expected
        finally:
            os.close(fd)


async def test_a_file_that_cannot_be_read(tmp_path: Path, keys: Pki | None) -> None:
    """Here since it was not opened for reading; elsewhere a disk fails."""
    async with sides(keys) as (down, _):
        (tmp_path / "x").write_bytes(PATTERN[:LARGE])
        fd = os.open(tmp_path, os.O_RDONLY)  # reading a directory fails as EISDIR
        try:
            down.start(200, b"OK", Headers.of((b"Content-Length", b"%d" % LARGE)))
            with pytest.raises(FrontdError) as caught:
                await down.send_file(fd, 0, LARGE)
        finally:
            os.close(fd)
        assert caught.value.reason is Reason.Internal
        assert not down.http.answer_complete


async def test_a_stream_that_was_closed_meanwhile(tmp_path: Path, keys: Pki | None) -> None:
    """The owner closes while the sender waits for room: no byte goes to whoever has the descriptor next."""
    async with sides(keys) as (down, _):
        with opened(tmp_path, LARGE) as file:

            async def answer() -> None:
                with pytest.raises(FrontdError) as caught:
                    await send_ten(down, file)
                assert caught.value.reason is Reason.Connection_Dropped

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                await trio.testing.wait_all_tasks_blocked()
                down.stream.close_now()
