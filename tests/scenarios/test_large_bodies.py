"""Large bodies of known length, both ways and in both lanes: exact bytes, bounded memory, and everybody's turn.

They pass through one buffer that all connections share, so what is looked for most is a byte of somebody else's.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from frontd.net.sockets import waiting_bytes
from frontd.net.streams import LARGE_READ, READ_SIZE, Stream
from tests.net.pki import Pki
from tests.net.tlsclient import client_context, secure_site, tls_line
from tests.scenarios.bystander import entries, logged, small_window
from tests.wire import OK, Line, app, front, one_pool, settled

BODIES = [random.Random(number).randbytes(6_000_000 + number) for number in range(3)]
GET = b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n"
UNLIMITED = "limits: {max_body: none}"
SLOW = "timeouts: {min_send_rate: 1}"


@pytest.fixture(autouse=True, params=["reactor", "tasks"])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FRONTD_REACTOR", "off" if request.param == "tasks" else "on")
    return str(request.param)


async def serve_bodies(line: Line) -> None:
    """``GET /N`` is answered with the body of that number, ``POST /N`` compared with it."""
    while head := await line.head():
        body = BODIES[int(head.split(b" ")[1][1:])]
        if head.startswith(b"GET"):
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            await line.send(body)
        else:
            assert await line.read_exactly(len(body)) == body
            await line.send(OK)


def post(number: int) -> bytes:
    return b"POST /%d HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % (number, len(BODIES[number]))


async def download(line: Line, number: int) -> None:
    _, body = await line.ask(GET % number)
    assert body == BODIES[number]


async def upload(line: Line, number: int) -> None:
    await line.send(post(number))
    _, body = await line.ask(BODIES[number])
    assert body == b"ok"


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """Every stream that is made, as it is made."""
    made: list[Stream] = []
    begin = Stream.__init__

    def noted(self: Stream, sock: socket.socket) -> None:
        begin(self, sock)
        made.append(self)

    monkeypatch.setattr(Stream, "__init__", noted)
    return made


def pending(streams: list[Stream]) -> int:
    """The most bytes that one stream keeps for a kernel that does not take them."""
    return max(stream.pending for stream in streams)


# ---------------------------------------------------------------------------------------------------- exact bytes


async def test_every_byte_arrives_and_is_counted(tmp_path: Path) -> None:
    async with app(serve_bodies) as it, front(one_pool(it.url, site=UNLIMITED), tmp_path) as stage:
        line = await stage.connect()
        for move in (download, upload, download, upload):
            await move(line, 0)
        assert it.connections == 1
        await settled()
        lines = entries(stage)
    size = len(BODIES[0])
    assert [one["status"] for one in lines] == [200] * 4
    heads = (200, 400)  # bytes of heads, at most
    assert all(size < int(str(one["bytes_out"])) < size + heads[1] for one in lines[::2])
    assert all(size < int(str(one["bytes_in"])) < size + heads[0] for one in lines[1::2])


async def test_bodies_at_once_are_not_mixed(tmp_path: Path) -> None:
    """Six transfers in one buffer, and a seventh whose client reads late."""
    async with app(serve_bodies) as it, front(one_pool(it.url, site=UNLIMITED), tmp_path) as stage:
        late = await small_window(stage)
        await late.send(GET % 1)
        moves: list[Callable[[Line, int], Awaitable[None]]] = [download, upload]
        async with trio.open_nursery() as nursery:
            for number in range(3):
                for move in moves:
                    nursery.start_soon(move, await stage.connect(), number)
        _, body = await late.message()
        assert body == BODIES[1]
        assert stage.reasons == {}


@pytest.mark.parametrize("move", [download, upload])
async def test_the_same_through_tls(pki: Pki, tmp_path: Path, move: Callable[[Line, int], Awaitable[None]]) -> None:
    async with app(serve_bodies) as it:
        text = secure_site(it.url, pki.entry("a"), extra=UNLIMITED)
        async with front(text, tmp_path) as stage:
            line = await tls_line(stage, client_context(pki), "a.test")
            for number in (0, 1):
                await move(line, number)
            await line.close()


async def test_what_comes_behind_a_body_is_not_part_of_it(tmp_path: Path) -> None:
    """A request pipelined behind an upload, and bytes of an app behind what it announced, which nobody is given."""

    async def script(line: Line) -> None:
        if line.number:
            await serve_bodies(line)
            return
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODIES[0]))
        await line.send(BODIES[0] + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nunasked")
        await line.read_to_end()

    async with app(script) as it, front(one_pool(it.url, site=UNLIMITED), tmp_path) as stage:
        line = await stage.connect()
        await download(line, 0)
        await line.send(post(0))
        await line.send(BODIES[0] + post(1) + BODIES[1] + GET % 2)
        for expected in (b"ok", b"ok", BODIES[2]):
            assert (await line.message())[1] == expected
        assert it.connections == 2
        assert stage.reasons == {}


async def test_head_and_first_part_leave_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the body is a large one."""
    written: list[bytes] = []
    send_now = Stream.send_now

    def noted(self: Stream, data: bytes | memoryview) -> bool:
        written.append(bytes(data[:1000]))
        return send_now(self, data)

    monkeypatch.setattr(Stream, "send_now", noted)

    async def script(line: Line) -> None:
        while await line.head():
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\nfirst" + b"x" * 199_995)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(2):
            written.clear()
            await line.get()
            heads = [data for data in written if data.startswith(b"HTTP/1.1 200")]
            assert len(heads) == 1
            assert heads[0].endswith(b"x")
            assert b"\r\n\r\nfirst" in heads[0]


# ---------------------------------------------------------------------------------------------------- bounds


async def test_a_client_that_does_not_read_costs_one_part(
    tmp_path: Path, autojump_clock: object, streams: list[Stream]
) -> None:
    """What it is owed stays with the app, but for what the kernels hold and one part of the body."""
    async with app(serve_bodies) as it, front(one_pool(it.url, extra=SLOW), tmp_path) as stage:
        first = await stage.connect()
        await first.get("/0")  # the app's connection is there: the next exchange begins in the reactor
        lines = [await small_window(stage) for _ in range(5)]
        for line in lines:
            await line.send(GET % 2)
        for _ in range(5):
            await settled()
            assert 0 < pending(streams) <= LARGE_READ
            await trio.sleep(1)
        for line in lines:
            _, body = await line.message()
            assert body == BODIES[2]
        assert stage.reasons == {}


async def test_an_app_that_does_not_read_costs_one_part(
    tmp_path: Path, autojump_clock: object, streams: list[Stream]
) -> None:
    go_on = trio.Event()

    async def script(line: Line) -> None:
        head = await line.head()
        await go_on.wait()
        line.buffer = head + line.buffer
        await serve_bodies(line)

    async with app(script) as it, front(one_pool(it.url, site=UNLIMITED), tmp_path) as stage:
        it.listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line = await stage.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, line, 1)
            await settled()
            assert 0 < pending(streams) <= LARGE_READ
            go_on.set()
        assert stage.reasons == {}


async def test_a_body_leaves_the_others_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: list[Stream]
) -> None:
    """Two fast apps with two fast clients: neither is read for long while the other could go on, too."""
    reads: list[tuple[Stream, int, bool]] = []  # who, how much, whether another had its turn due
    apps: list[Stream] = []
    receive_view = Stream.receive_view

    def noted(self: Stream, size: int) -> memoryview | bytes | None:
        part = receive_view(self, size)
        if part:
            if self not in apps:
                apps.append(self)
            others = [one for one in apps if one is not self and not one.closed]
            waits = any(waiting_bytes(one.sock.fileno()) for one in others) and not pending(streams)
            reads.append((self, len(part), waits))
        return part

    monkeypatch.setattr(Stream, "receive_view", noted)
    async with app(serve_bodies) as it, front(one_pool(it.url), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(2)]
        for line in lines:
            await line.send(GET % 0)
        for line in lines:
            assert (await line.message())[1] == BODIES[0]
        reads.clear()
        async with trio.open_nursery() as nursery:
            for line in lines:
                nursery.start_soon(download, line, 1)
    in_a_row, before = 0, None
    for who, size, waits in reads:
        in_a_row = in_a_row + size if who is before and waits else size
        before = who
        assert in_a_row < 3 * (LARGE_READ + READ_SIZE)
    assert sum(waits for _, _, waits in reads) > 4
    assert sum(size for _, size, _ in reads) > 2 * (len(BODIES[1]) - 4 * READ_SIZE)


# ---------------------------------------------------------------------------------------------------- broken off


@pytest.mark.parametrize("resets", [False, True])
async def test_an_app_that_breaks_off_cuts_the_answer(tmp_path: Path, resets: bool) -> None:
    async def script(line: Line) -> None:
        while head := await line.head():
            if b" /ok " in head:
                await line.send(OK)
                continue
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_000_000)
            await settled()
            if resets:
                assert isinstance(line.stream, trio.SocketStream)
                line.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/ok")
        await line.send(GET % 0)
        answer = await line.read_to_end()
        assert answer.endswith(b"<reset>")  # nobody takes it for the whole
        assert answer.count(b"x") <= 1_000_000
        await settled()
        logged(stage, "BadUpstreamBody", status=200)


async def test_a_client_that_leaves_in_its_upload_takes_the_app_along(tmp_path: Path) -> None:
    got: list[int] = []
    ended = trio.Event()

    async def script(line: Line) -> None:
        await line.head()
        got.append(len(await line.read_to_end()))
        ended.set()

    async with app(script) as it, front(one_pool(it.url, site=UNLIMITED), tmp_path) as stage:
        line = await stage.connect()
        await line.send(post(0) + BODIES[0][:1_000_000])
        await settled()
        await line.close()
        with trio.fail_after(5):
            await ended.wait()
        assert got[0] <= 1_000_000 + len(b"<reset>")
        await settled()
        assert stage.reasons == {"Client_Reset": 1}


async def test_a_client_that_leaves_in_its_download_frees_the_app(tmp_path: Path) -> None:
    async with app(serve_bodies) as it, front(one_pool(it.url), tmp_path) as stage:
        first = await stage.connect()
        await download(first, 0)
        line = await small_window(stage)
        await line.send(GET % 0)
        await line.read_until(b"\r\n\r\n")
        await settled()
        await line.close()
        await settled()
        await download(first, 1)
        assert stage.reasons == {"Connection_Dropped": 1}


@pytest.mark.parametrize(
    ("stalls", "reason", "status"), [("app", "Timer_ResponseBody", 200), ("client", "Timer_EntityBody", 408)]
)
async def test_a_body_that_stalls_is_ended_by_its_timer(
    tmp_path: Path, stalls: str, reason: str, status: int, autojump_clock: object
) -> None:
    async def script(line: Line) -> None:
        await line.head()
        if stalls == "app":
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_000_000)
        await line.read_to_end()

    async with app(script) as it, front(one_pool(it.url, site=UNLIMITED), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET % 0 if stalls == "app" else post(0) + BODIES[0][:1_000_000])
        await line.read_to_end()
        await settled()
        logged(stage, reason, status=status)
