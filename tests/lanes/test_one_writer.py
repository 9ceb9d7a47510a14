"""One writer per TLS connection, whoever drives it: a client reads one answer, or a piece of it and then a cut."""

from __future__ import annotations

import _ssl
import ctypes
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from frontd.lanes.connection import Connection
from tests.net.pki import Pki
from tests.net.tlsclient import Tls, all_gone, client_context, secure_site, tls_line
from tests.scenarios.plugged import PluginClass, made, of, text
from tests.scenarios.test_tls_wire import pattern
from tests.wire import Line, Stage, app, front, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
HUGE = pattern(8_000_000)


@pytest.fixture(params=["reactor", "task"])
def drives(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two drives what can be driven by either."""
    monkeypatch.setenv("FRONTD_REACTOR", "on" if request.param == "reactor" else "off")
    return str(request.param)


def connection_of(stage: Stage) -> Connection:
    """The front's side of the only connection."""
    (connection,) = stage.front.service.connections
    assert isinstance(connection, Connection)
    return connection


# ---------------------------------------------------------------------------------------------------- cut answers


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_stalled_answer_that_a_timer_ends_is_followed_by_nothing(
    pki: Pki, tmp_path: Path, autojump_clock: object, drives: str, version: str
) -> None:
    async with stalled(pki, tmp_path, version) as (_, line):
        await trio.sleep(100)
        await cut(line)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("end", ["half-close", "cancellation", "the app's end"])
async def test_a_stalled_answer_that_ends_early_is_followed_by_nothing(
    pki: Pki, tmp_path: Path, drives: str, version: str, end: str
) -> None:
    async with stalled(pki, tmp_path, version, missing=end == "the app's end") as (connection, line):
        if end == "half-close":
            assert isinstance(line.secure.under, trio.SocketStream)
            await line.secure.under.send_eof()
            await settled()
        elif end == "cancellation":
            assert connection.scope is not None
            connection.scope.cancel()
            await settled()
        await cut(line)


@asynccontextmanager
async def stalled(
    pki: Pki, tmp_path: Path, version: str, *, missing: bool = False
) -> AsyncIterator[tuple[Connection, Tls]]:
    """A client reads nothing of a huge answer, and has sent a second request behind the first.  `missing`: the app ends
    one byte before the end."""

    async def script(line: Line) -> None:
        while await line.head():
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(HUGE) + missing) + HUGE)
            if missing:
                return

    async with app(script) as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, version=version), "a.test")
        await line.send(GET * 2)
        connection = connection_of(stage)
        await is_stalled(connection)
        yield connection, line
        await all_gone(stage)
        assert it.connections == 1


async def is_stalled(connection: Connection) -> None:
    """Until the kernel takes no more of its answer."""
    while not connection.stream.pending:
        await trio.lowlevel.checkpoint()


async def cut(line: Tls) -> None:
    """Room is made, and no byte of another answer comes, neither of an error page nor of the second one, nor an end
    that looks like one."""
    got = (await line.read_to_end()).removesuffix(b"<reset>")
    head, _, rest = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert HUGE.startswith(rest)
    assert len(rest) < len(HUGE)
    assert not line.secure.ended_cleanly


def fails_after_the_answer() -> PluginClass:
    def rewrite_response(self: object, exchange: object) -> None:
        raise LookupError("too late to say so")

    return made("late", rewrite_response=rewrite_response)


async def test_a_fault_of_a_plugin_is_not_mixed_into_a_stalled_answer(
    pki: Pki, tmp_path: Path, drives: str
) -> None:
    """What a plugin does to an answer is soft: the client gets that answer whole, and then the next."""
    body = pattern(3_000_000)
    script = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    late = fails_after_the_answer()
    async with app(script) as it:
        written = text(it.url, [late], urls='"https://*/"', extra=f"tls: {{certificates: [{pki.entry('a')}]}}")
        written = written.replace("listen: {http: {port: 0}}", "listen: {https: {port: 0}}")
        async with front(written, tmp_path, of(late)) as stage:
            line = await tls_line(stage, client_context(pki), "a.test")
            await line.send(GET * 2)
            await is_stalled(connection_of(stage))
            for _ in range(2):
                assert (await line.message())[1] == body


# ---------------------------------------------------------------------------------------------------- reads


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_no_byte_stays_hidden_inside_openssl(pki: Pki, tmp_path: Path, drives: str, version: str) -> None:
    """Many requests and their bodies in records of all sizes: after each read nothing is pending, so that the next
    edge is all there is to wait for."""
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, version=version), "a.test")
        connection = connection_of(stage)
        for size in (0, 1, 16_000, 16_384, 16_385, 40_000, 200_000):
            post = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % size
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.send, post + b"x" * size + GET)
                assert (await line.message())[1] == b"ok"
                assert (await line.message())[1] == b"ok"
            await settled()
            sock = connection.stream.sock
            assert isinstance(sock, ssl.SSLSocket)
            assert sock.pending() == 0
        assert [len(body) for body in it.bodies if body] == [1, 16_000, 16_384, 16_385, 40_000, 200_000]


async def test_requests_in_one_record_each_are_all_answered(pki: Pki, tmp_path: Path, drives: str) -> None:
    """Thirty records in one segment: a read takes one of them, and no further edge comes."""
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        for _ in range(30):
            line.tls.write(GET)
        await line.secure._push()
        for _ in range(30):
            assert (await line.message())[1] == b"ok"
        await settled()
        assert not connection_of(stage).stream.ready


# ---------------------------------------------------------------------------------------------------- key updates


def update_keys(line: Tls) -> None:
    """Have the next bytes preceded by a KeyUpdate that asks for one in return (RFC 8446 4.6.3); Python has no verb for
    it.  The `SSL *` is the second field behind the object header."""
    openssl = ctypes.CDLL(_ssl.__file__)
    place = id(line.tls._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)  # type: ignore[attr-defined]
    openssl.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    assert openssl.SSL_key_update(ctypes.c_void_p.from_address(place), 1) == 1


def is_full(sock: socket.socket) -> bool:
    """Whether the kernel takes nothing more for it now."""
    memory = struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return bool(memory[WMEM_QUEUED] >= memory[SNDBUF])


SO_MEMINFO, SNDBUF, WMEM_QUEUED = 55, 3, 5  # Linux

REDIRECTS = """
listen: {{https: {{port: 0}}}}
tls: {{certificates: [{}]}}
sites: {{main: {{urls: ["https://*/"], routes: {{/: {{redirect: https://b.test/}}}}}}}}
"""


async def test_a_key_update_is_answered(pki: Pki, tmp_path: Path, drives: str) -> None:
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, version="1.3"), "a.test")
        for _ in range(3):
            update_keys(line)
            assert (await line.get())[1] == b"ok"


async def test_a_key_update_that_cannot_be_answered_yet_holds_nothing_up(
    pki: Pki, tmp_path: Path, drives: str
) -> None:
    """The kernel holds all it takes of answers that nobody reads, so the answer to the update has to wait as well."""
    async with front(REDIRECTS.format(pki.entry("a")), tmp_path) as stage:
        small = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await small.connect(("127.0.0.1", stage.port("https")))
        under = Line(trio.SocketStream(small))
        stage.lines.append(under)
        line = await tls_line(stage, client_context(pki, version="1.3"), "a.test", line=under)
        connection = connection_of(stage)
        connection.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        asked = 0
        while not is_full(connection.stream.sock):
            await line.send(GET)
            asked += 1
            await settled()
        assert not connection.stream.pending
        update_keys(line)
        await line.send(GET)
        await settled()  # nothing moves, and nobody turns in circles
        assert is_full(connection.stream.sock)
        for _ in range(asked + 1):
            assert (await line.message())[0].startswith(b"HTTP/1.1 30")
        assert (await line.get())[0].startswith(b"HTTP/1.1 30")


# ---------------------------------------------------------------------------------------------------- endings


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_close_after_an_answer_lingers_and_ends_with_close_notify(
    pki: Pki, tmp_path: Path, drives: str, version: str
) -> None:
    """The client still uploads when it is refused: it reads the whole answer and a clean end."""
    site = secure_site("http://127.0.0.1:1", pki.entry("a"), extra="limits: {max_body: 10}")
    async with front(site, tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, version=version), "a.test")
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 300000\r\n\r\n")
        await settled()
        await line.send(b"x" * 300_000)
        answer = await line.read_to_end()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert not answer.endswith(b"<reset>")
        assert line.secure.ended_cleanly


async def test_a_client_that_ends_its_tls_gets_the_end_of_ours(pki: Pki, tmp_path: Path, drives: str) -> None:
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        assert (await line.get())[1] == b"ok"
        with pytest.raises(ssl.SSLWantReadError):
            line.tls.unwrap()
        await line.secure._push()
        with pytest.raises(ssl.SSLZeroReturnError):  # a close_notify, after one of its own
            await line.read()
        await all_gone(stage)
        assert stage.reasons == {}
