"""Every timer, on the fake clock: when it starts, what makes it start again, what it ends, and the word in the log."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from frontd.lanes.connection import FIRST_REQUEST
from tests.scenarios.bystander import entries, logged, small_window
from tests.wire import OK, Line, app, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\n"


def timers(text: str) -> str:
    return f"timeouts: {{{text}}}"


@contextmanager
def lasts(seconds: float) -> Iterator[None]:
    """What happens inside takes this long on the fake clock."""
    began = trio.current_time()
    yield
    assert trio.current_time() - began == pytest.approx(seconds)


async def left(line: Line) -> None:
    """The client closes too, and the front has noticed."""
    await line.close()
    await settled()


async def silent(line: Line) -> None:
    """An app that takes everything and says nothing."""
    await line.read_to_end()


# ---------------------------------------------------------------------------------------------------- header_wait


async def test_header_wait_runs_from_accept(tmp_path: Path, autojump_clock: object) -> None:
    """A client that says nothing at all is closed without a word: there is no request to answer."""
    text = one_pool("http://127.0.0.1:9", extra=timers("header_wait: 7s, idle_connection: 50s"))
    async with front(text, tmp_path) as stage:
        line = await stage.connect()
        with lasts(7):
            assert await line.read_to_end() == b""
        await left(line)
        assert stage.reasons == {"Timer_HeaderWait": 1}
    assert " Timer_HeaderWait " in stage.log("error")


async def test_header_wait_is_for_the_whole_head(tmp_path: Path, autojump_clock: object) -> None:
    text = one_pool("http://127.0.0.1:9", extra=timers("header_wait: 7s"))
    async with front(text, tmp_path) as stage:
        line = await stage.connect()
        with lasts(7):
            await trio.sleep(3)
            await line.send(b"GET / HTTP/1.1\r\n")
            await trio.sleep(3)
            await line.send(b"Host: a")
            head, body = await line.message()
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"\r\nConnection: close\r\n" in head
        assert b"Reason: Timer_HeaderWait\n" in body
        assert await line.read_to_end() == b""
    logged(stage, "Timer_HeaderWait", status=408)


async def test_header_wait_of_a_later_request_runs_from_its_first_byte(tmp_path: Path, autojump_clock: object) -> None:
    text = timers("header_wait: 7s, idle_connection: 50s")
    async with app() as it, front(one_pool(it.url, extra=text), tmp_path) as stage:
        line = await stage.connect()
        await line.get()
        with lasts(40 + 7):
            await trio.sleep(40)
            await line.send(b"G")
            await trio.sleep(6)
            await line.send(b"E")
            head, _ = await line.message()
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    logged(stage, "Timer_HeaderWait", status=408)


async def test_header_wait_of_a_head_that_came_with_the_request_before(tmp_path: Path, autojump_clock: object) -> None:
    text = timers("header_wait: 7s, idle_connection: 50s")
    async with app() as it, front(one_pool(it.url, extra=text), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET + b"GET / HTT")
        assert (await line.message())[1] == b"ok"
        with lasts(7):
            head, _ = await line.message()
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    logged(stage, "Timer_HeaderWait", status=408)


async def test_header_wait_of_a_site_holds_for_its_later_requests(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it:
        async with front(one_pool(it.url, site="timeouts: {header_wait: 3s}"), tmp_path) as stage:
            line = await stage.connect()
            await line.get()
            await line.send(b"G")
            with lasts(3):
                await line.message()
    logged(stage, "Timer_HeaderWait", status=408)


# ---------------------------------------------------------------------------------------------------- idle_connection


@pytest.mark.parametrize("where", ["extra", "site"])
async def test_idle_connection(tmp_path: Path, where: str, autojump_clock: object) -> None:
    async with app() as it:
        text = timers("idle_connection: 9s")
        text = one_pool(it.url, extra=text) if where == "extra" else one_pool(it.url, site=text)
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            await line.get()
            await trio.sleep(8)
            await line.get()  # starts again after each request
            with lasts(9):
                assert await line.read_to_end() == b""
            await left(line)
            assert stage.reasons == {"Timer_ConnectionIdle": 1}
    assert [entry["status"] for entry in entries(stage)] == [200, 200]
    assert " Timer_ConnectionIdle " in stage.log("error")


# ---------------------------------------------------------------------------------------------------- entity_body


@pytest.mark.parametrize("where", ["extra", "site"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_entity_body_restarts_with_each_part(
    tmp_path: Path, where: str, chunked: bool, autojump_clock: object
) -> None:
    """It is the client's timer that runs while the client is slow, also where the app's is the shorter one."""
    heads = b"POST / HTTP/1.1\r\nHost: a\r\n"
    heads += b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 5\r\n\r\n"
    async with app(silent) as it:
        text = timers("entity_body: 7s, response_head: 2s")
        text = one_pool(it.url, extra=text) if where == "extra" else one_pool(it.url, site=text)
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            await line.send(heads)
            with lasts(4 * 6 + 7):
                for _ in range(4):
                    await trio.sleep(6)
                    await line.send(b"1\r\nx\r\n" if chunked else b"x")
                head, body = await line.message()
            assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert b"\r\nConnection: close\r\n" in head
            assert b"Reason: Timer_EntityBody\n" in body
            await settled()
            assert stage.front.pools["app"].places[0].active == 0
    logged(stage, "Timer_EntityBody", status=408)


async def test_response_head_runs_from_the_end_of_a_slow_body(tmp_path: Path, autojump_clock: object) -> None:
    async with app(silent) as it:
        text = timers("response_head: 5s")
        async with front(one_pool(it.url, extra=text), tmp_path) as stage:
            line = await stage.connect()
            await line.send(POST)
            with lasts(20 + 5):
                await trio.sleep(20)
                await line.send(b"1234")
                head, _ = await line.message()
            assert head.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    logged(stage, "Timer_Response", status=504)


# ---------------------------------------------------------------------------------------------------- drain_entity_body


async def refuses(line: Line) -> None:
    """An app that answers every request at its head and keeps the connection open."""
    while await line.head():
        await line.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")


@pytest.mark.parametrize("where", ["extra", "site"])
async def test_drain_entity_body_is_for_the_whole_rest(tmp_path: Path, where: str, autojump_clock: object) -> None:
    async with app(refuses) as it:
        text = timers("drain_entity_body: 7s, entity_body: 100s")
        text = one_pool(it.url, extra=text) if where == "extra" else one_pool(it.url, site=text)
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            await line.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
            assert (await line.message())[1] == b"no"
            with lasts(7):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(drip, line)
                    assert await line.read_to_end() == b""
                    nursery.cancel_scope.cancel()
            await left(line)
            assert stage.reasons == {"Timer_DrainEntityBody": 1}
    assert " Timer_DrainEntityBody " in stage.log("error")


async def drip(line: Line) -> None:
    while True:
        await line.send(b"x")
        await trio.sleep(2)


async def test_a_drained_body_leaves_a_usable_connection(tmp_path: Path, autojump_clock: object) -> None:
    async with app(refuses) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(POST)
        assert (await line.message())[1] == b"no"
        await trio.sleep(100)
        await line.send(b"1234")
        assert (await line.get())[1] == b"no"
        assert stage.reasons == {}


# ---------------------------------------------------------------------------------------------------- min_send_rate


async def pours(line: Line) -> None:
    """An app with an answer without end."""
    await line.head()
    await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        await line.send(b"x" * 65536)


async def read_slowly(line: Line, rate: int) -> None:
    """`rate` bytes a second, for ever."""
    while True:
        await line.read_exactly(rate)
        await trio.sleep(1)


@pytest.mark.parametrize("where", ["extra", "site"])
async def test_min_send_rate_cuts_whoever_reads_more_slowly(tmp_path: Path, where: str, autojump_clock: object) -> None:
    async with app(pours) as it:
        text = timers("min_send_rate: 100000")
        text = one_pool(it.url, extra=text) if where == "extra" else one_pool(it.url, site=text)
        async with front(text, tmp_path) as stage:
            line = await small_window(stage)
            await line.send(GET)
            with pytest.raises(trio.BrokenResourceError):
                await read_slowly(line, 50_000)
    logged(stage, "Timer_MinBytesPerSecond", status=200)
    # what the kernels of both sides buffer counts as delivered, so the first window of 20 s may pass
    (seconds,) = [entry["seconds"] for entry in entries(stage)]
    assert 20 <= float(str(seconds)) <= 60


async def test_min_send_rate_leaves_whoever_reads_faster(tmp_path: Path, autojump_clock: object) -> None:
    async with app(pours) as it, front(one_pool(it.url, extra=timers("min_send_rate: 40000")), tmp_path) as stage:
        line = await small_window(stage)
        await line.send(GET)
        for _ in range(120):
            await line.read_exactly(50_000)
            await trio.sleep(1)
        assert stage.reasons == {}


async def test_min_send_rate_counts_only_while_bytes_wait(tmp_path: Path, autojump_clock: object) -> None:
    """An app that says a byte every 50 s is slow, not its client."""

    async def slow(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for _ in range(5):
            await trio.sleep(50)
            await line.send(b"x")

    async with app(slow) as it, front(one_pool(it.url, extra=timers("min_send_rate: 100000")), tmp_path) as stage:
        line = await stage.connect()
        with lasts(250):
            assert (await line.get())[1] == b"xxxxx"
        assert stage.reasons == {}


# ---------------------------------------------------------------------------------------------------- the app's


@pytest.mark.parametrize("where", ["extra", "site"])
async def test_response_head(tmp_path: Path, where: str, autojump_clock: object) -> None:
    async with app(silent) as it:
        text = timers("response_head: 4s")
        text = one_pool(it.url, extra=text) if where == "extra" else one_pool(it.url, site=text)
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            with lasts(4):
                head, body = await line.get()
            assert head.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
            assert b"Reason: Timer_Response\n" in body
            assert stage.front.pools["app"].places[0].active == 0
    logged(stage, "Timer_Response", status=504)


@pytest.mark.parametrize("where", ["extra", "site"])
async def test_response_body_restarts_with_each_part(tmp_path: Path, where: str, autojump_clock: object) -> None:
    async def slow(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        for _ in range(3):
            await trio.sleep(3)
            await line.send(b"x")
        await trio.sleep_forever()

    async with app(slow) as it:
        text = timers("response_body: 4s")
        text = one_pool(it.url, extra=text) if where == "extra" else one_pool(it.url, site=text)
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            await line.send(GET)
            with lasts(3 * 3 + 4):
                answer = await line.read_to_end()
            assert answer.endswith(b"xxx<reset>")
    logged(stage, "Timer_ResponseBody", status=200)


@pytest.mark.parametrize("where", ["extra", "site"])
async def test_tunnel_idle_is_for_silence_both_ways(tmp_path: Path, where: str, autojump_clock: object) -> None:
    async def echo(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await line.send((await line.read_exactly(4)).upper())
        for _ in range(3):
            await trio.sleep(8)
            await line.send(b"tick")
        await line.read_to_end()

    async with app(echo) as it:
        text = timers("tunnel_idle: 9s")
        text = one_pool(it.url, extra=text) if where == "extra" else one_pool(it.url, site=text)
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            head, _ = await line.get("/", "Connection: Upgrade", "Upgrade: websocket")
            assert head.startswith(b"HTTP/1.1 101 ")
            await trio.sleep(8)
            await line.send(b"ping")
            with lasts(3 * 8 + 9):
                answer = await line.read_to_end()
            assert answer.removesuffix(b"<reset>") == b"PINGtickticktick"
    logged(stage, "Timer_TunnelIdle", status=101)


async def test_the_wait_in_the_queue(tmp_path: Path, autojump_clock: object) -> None:
    """A busy app: 503 with the timer's word; `wait` is the pool's."""
    async with app(silent) as it:
        text = one_pool(it.url, pool="concurrency: 1\n    queue: {wait: 6s}", extra=timers("response_head: 100s"))
        async with front(text, tmp_path) as stage:
            first, second = await stage.connect(), await stage.connect()
            await first.send(GET)
            await settled()
            with lasts(6):
                head, body = await second.get()
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: 1\r\n" in head
            assert b"Reason: Timer_ReqQueue\n" in body
            assert stage.reasons == {"Timer_ReqQueue": 1}
            assert len(stage.front.pools["app"].queue) == 0
            assert (await second.get())[0].startswith(b"HTTP/1.1 503 ")  # the connection was kept
    assert [entry["queue_wait"] for entry in entries(stage)][:2] == [6, 6]


@pytest.mark.parametrize("where", ["extra", "site"])
async def test_connect(tmp_path: Path, where: str, autojump_clock: object) -> None:
    """An address that swallows every SYN: the attempt ends with `connect`, then it is down and others are tried."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.create_connection(("127.0.0.1", port)) for _ in range(1)]
        async with app() as it:
            text = one_pool(f"http://127.0.0.1:{port}", **{where: timers("connect: 3s")})
            text = text.replace('targets: ["', f'targets: ["{it.url}", "')
            async with front(text, tmp_path) as stage:
                line, second = await stage.connect(), await stage.connect()
                assert (await line.get())[1] == b"ok"
                with lasts(3):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(line.get)
                        assert (await second.get())[1] == b"ok"
                (place,) = [place for place in stage.front.pools["app"].places if place.error]
                assert place.error == "no connection within 3 s"
                assert stage.reasons == {}
        for filler in fillers:
            filler.close()


async def test_keep_alive_of_idle_connections_to_the_app(tmp_path: Path, autojump_clock: object) -> None:
    ended: list[float] = []

    async def keep(line: Line) -> None:
        while await line.head():
            await line.send(OK)
        ended.append(trio.current_time())

    async with app(keep) as it, front(one_pool(it.url, extra=timers("keep_alive: 10s")), tmp_path) as stage:
        line = await stage.connect()
        await line.get()
        await trio.sleep(8)
        await line.get()
        assert it.connections == 1
        began = trio.current_time()
        await trio.sleep(20)
        assert [10 <= at - began <= 11 for at in ended] == [True]  # looked at once a second


# ---------------------------------------------------------------------------------------------------- drain


async def test_drain_ends_what_is_idle_and_lets_the_rest_finish(tmp_path: Path, autojump_clock: object) -> None:
    async def slow(line: Line) -> None:
        while await line.head():
            await trio.sleep(10)
            await line.send(OK)

    async with app(slow) as it, front(one_pool(it.url, extra=timers("drain: 30s")), tmp_path) as stage:
        idle, fresh, late, busy, half = [await stage.connect() for _ in range(5)]
        await idle.get()
        await busy.send(GET)
        await half.send(GET[:-2])
        await settled()
        async with trio.open_nursery() as nursery:
            with lasts(11):
                nursery.start_soon(stage.front.drain)
                assert await idle.read_to_end() == b""
                await late.send(GET)  # it was accepted, and its first request on the way
                with lasts(FIRST_REQUEST):
                    assert await fresh.read_to_end() == b""
                await half.send(GET[-2:])  # its request was on the way: it is answered
                for line in (busy, late, half):
                    head, body = await line.message()
                    assert b"\r\nConnection: close\r\n" in head
                    assert body == b"ok"
                    assert await line.read_to_end() == b""
        assert stage.reasons == {}


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_drain_cuts_what_is_left_at_its_limit(tmp_path: Path, version: bytes, autojump_clock: object) -> None:
    """A half answer is cut by a reset: a client of HTTP/1.0 would take an end of the connection for its end."""

    async def endless(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await trio.sleep_forever()

    async with app(endless) as it:
        async with front(one_pool(it.url, extra=timers("drain: 5s")), tmp_path) as stage:
            line = Line(await trio.open_tcp_stream("127.0.0.1", stage.port()))
            await line.send(GET.replace(b"HTTP/1.1", b"HTTP/" + version))
            await line.read_until(b"half")
            with lasts(5):
                await stage.front.drain()
        assert (await line.read_to_end()).endswith(b"<reset>")
        await line.close()
    assert stage.reasons == {"AppShutdown": 1}
    assert " AppShutdown " in (tmp_path / "error.log").read_text()


async def test_drain_takes_the_request_that_has_just_arrived(tmp_path: Path, autojump_clock: object) -> None:
    """Bytes that lie in the kernel when the drain begins are a request like any other."""
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await settled()
        assert isinstance(line.stream, trio.SocketStream)
        line.stream.socket._sock.send(GET)  # type: ignore[attr-defined]  # no turn for the front before the drain
        await stage.front.drain()
        assert (await line.message())[1] == b"ok"


async def test_drain_ends_a_connection_whose_answer_had_begun(tmp_path: Path, autojump_clock: object) -> None:
    """Its head went out before, without ``Connection: close``: it ends when it becomes idle, not 120 s later."""

    async def slow(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        await trio.sleep(3)
        await line.send(b"lf")
        await line.read_to_end()

    async with app(slow) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET)
        await line.read_until(b"ha")
        with lasts(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.front.drain)
                assert await line.read_to_end() == b"lf"
                await line.close()
        assert stage.reasons == {}
