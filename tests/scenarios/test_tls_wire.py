"""TLS on the wire: the first bytes and hostile ones, reload under live connections, answers and how they end."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.net.pki import Pki
from tests.net.tlsclient import Secure, all_gone, client_context, locked_site, secure_site, tls_line
from tests.wire import Line, app, configuration, front

# ---------------------------------------------------------------------------------------------------- the first bytes


async def test_plain_http_on_the_https_port_gets_a_readable_answer(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await stage.connect("https")
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n" + b"x" * 100_000)
        answer = await line.read_to_end()
        await line.close()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert b"Reason: PlainHttp" in answer
        await all_gone(stage)
        assert stage.reasons == {"PlainHttp": 1}


async def test_tls_on_the_http_port(pki: Pki, tmp_path: Path) -> None:
    text = secure_site("http://127.0.0.1:1", pki.entry("a")).replace("{https:", "{http: {port: 0}, https:")
    async with front(text, tmp_path) as stage:
        line = await stage.connect("http")
        with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number"):
            await Secure(line.stream, client_context(pki), "a.test").do_handshake()
        await line.close()
        await all_gone(stage)
        assert stage.reasons == {"BadRequest": 1}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",  # a ServerHello
        b"\x16\x03\x01\xff\xff" + b"\x01" * 100,  # a record longer than any
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # a hello of 16 MB
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",  # a hello without anything
        b"\x16\x03\x01\x00\x2e\x01\x00\x00\x2a" + b"\x03\x03" + b"r" * 32 + b"\xff" * 8,  # one that breaks off
    ],
)
async def test_garbage_that_begins_like_tls(pki: Pki, tmp_path: Path, garbage: bytes) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await stage.connect("https")
        await line.send(garbage)
        assert await line.read_to_end() == b"\x15\x03\x03\x00\x02\x02\x32"  # decode_error
        await line.close()
        await all_gone(stage)
        assert stage.reasons == {"TlsHandshake": 1}


async def test_garbage_behind_a_good_hello(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await stage.connect("https")
        hello = Secure(line.stream, client_context(pki, version="1.2"), "a.test").hello()
        await line.send(hello + b"\x16\x03\x03\x00\x10" + b"\xff" * 16)
        answer = await line.read_to_end()
        assert answer.endswith(b"\x15\x03\x03\x00\x02\x02\x0a")  # unexpected_message, behind the server's part
        await line.close()
        await all_gone(stage)
        assert stage.reasons == {"TlsHandshake": 1}


async def test_half_a_hello_ends_with_the_header_wait(pki: Pki, tmp_path: Path, autojump_clock: object) -> None:
    text = secure_site("http://127.0.0.1:1", pki.entry("a"), extra="timeouts: {header_wait: 7s}")
    async with front(text, tmp_path) as stage:
        for part in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00", None):
            line = await stage.connect("https")
            hello = Secure(line.stream, client_context(pki), "a.test").hello()
            await line.send(hello if part is None else part)
            began = trio.current_time()
            rest = await line.read_to_end()  # a complete hello is answered, then the clients' part is waited for
            assert 6.9 < trio.current_time() - began < 7.1
            assert (rest[:1] == b"\x16") == (part is None)
            await line.close()
        await all_gone(stage)
        assert stage.reasons == {"Timer_HeaderWait": 4}


def fds() -> list[str]:
    """Kinds of what this process has open, without regular files (a thread opens the logs at its own time)."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{name}").partition(":")[0])
    return sorted(kind for kind in found if not kind.startswith("/") or kind.startswith("/memfd"))


async def end_rudely(line: Line, how: str) -> None:
    """Reset the connection, or only close it."""
    assert isinstance(line.stream, trio.SocketStream)
    if how == "reset":
        line.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await line.close()


async def test_hostile_handshakes_leave_nothing_behind(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(locked_site(pki, it.url), tmp_path) as stage:
        good = await tls_line(stage, client_context(pki), "open.test")
        context, count, before = client_context(pki), 0, fds()
        for round_ in range(200):
            line = await stage.connect("https")
            stage.lines.remove(line)
            secure = Secure(line.stream, context, ("open.test", "locked.test", "unknown.test")[round_ % 3])
            hello = secure.hello()
            part = (b"", hello[:1], hello[:50], hello, hello + b"garbage" * 9, b"GET / HT", b"\x16\x03\x01\x00\x01\x07")
            await line.send(part[round_ % len(part)])
            if round_ % 2:
                await trio.testing.wait_all_tasks_blocked()  # the front has met it; else it meets a dead socket
            await end_rudely(line, "reset" if round_ % 5 else "close")
            count += bool(part[round_ % len(part)] or round_ % 5)  # who sends nothing and leaves is no line in a log
        while len(stage.front.service.connections) > 1:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert fds() == before
        assert (await good.get(host="open.test"))[1] == b"ok"
        reasons = stage.reasons
        assert set(reasons) == {"TlsHandshake", "TlsHostname", "PlainHttp"}
        assert sum(reasons.values()) == count


# ---------------------------------------------------------------------------------------------------- reload


async def test_certificates_are_read_again_and_live_connections_keep_theirs(pki: Pki, tmp_path: Path) -> None:
    cert, key = tmp_path / "own.crt", tmp_path / "own.key"
    cert.write_bytes(pki.cert("a").read_bytes())
    key.write_bytes(pki.key("a").read_bytes())
    async with app() as it:
        text = secure_site(it.url, f"{{cert: {cert}, key: {key}}}, {pki.entry('locked')}", "default: open.test")
        async with front(text, tmp_path) as stage:
            context = client_context(pki)
            before = await tls_line(stage, context, "a.test")
            assert "a.test" in before.subject()
            cert.write_bytes(pki.cert("b").read_bytes())
            assert not (await stage.front.reload(lambda: configuration(text, tmp_path))).ok  # the key does not fit
            again = await tls_line(stage, context, "a.test")
            assert "a.test" in again.subject()
            key.write_bytes(pki.key("b").read_bytes())
            assert (await stage.front.reload(lambda: configuration(text, tmp_path))).ok
            assert "b.test" in (await tls_line(stage, context, "b.test")).subject()
            assert "open.test" in (await tls_line(stage, context, "a.test")).subject()  # now only the default
            assert (await before.get(host="a.test"))[1] == b"ok"
            assert (await again.get(host="a.test"))[1] == b"ok"


# ---------------------------------------------------------------------------------------------------- answers


@cache
def pattern(size: int) -> bytes:
    """Bytes in which every mixture and every shift shows."""
    return b"".join(b"%08x" % (i * 2654435761 % 2**32) for i in range(size // 8))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_large_answers_arrive_whole_and_end_cleanly(pki: Pki, tmp_path: Path, version: str) -> None:
    body = pattern(3_000_000)
    script = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with app(script) as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, version=version), "a.test")
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()  # the front has filled the way to a client that does not read
        assert (await line.message())[1] == body
        head, got = await line.get("/", "Connection: close")
        assert b"\r\nConnection: close\r\n" in head
        assert got == body
        assert await line.read_to_end() == b""
        assert line.secure.ended_cleanly


async def test_a_large_upload_over_tls(pki: Pki, tmp_path: Path) -> None:
    body = pattern(2_000_000)
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, body)
            assert (await line.message())[1] == b"ok"
        assert it.bodies == [body]


async def test_a_cut_answer_is_never_ended_cleanly_nor_followed_by_another(pki: Pki, tmp_path: Path) -> None:
    """The app breaks off while the client stalls: what it reads later is a piece of this answer and then a cut."""
    body = pattern(8_000_000)

    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1) + body)

    async with app(script) as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        got = await line.read_to_end()
        head, _, rest = got.removesuffix(b"<reset>").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert body.startswith(rest)
        assert not line.secure.ended_cleanly
        await all_gone(stage)
        assert len(it.heads) == 0  # the script does not count; the second request never reached an app
        assert it.connections == 1
        assert stage.reasons == {"BadUpstreamBody": 1}


async def test_a_client_that_leaves_a_stalled_answer_gets_nothing_of_another(pki: Pki, tmp_path: Path) -> None:
    body = pattern(8_000_000)
    script = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with app(script) as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        under = line.secure.under
        assert isinstance(under, trio.SocketStream)
        await under.send_eof()  # it ends its side with an answer pending: the exchange is cancelled
        got = (await line.read_to_end()).removesuffix(b"<reset>")
        head, _, rest = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert body.startswith(rest)
        assert len(rest) < len(body)
        assert not line.secure.ended_cleanly
        await all_gone(stage)
        assert len(it.heads) == 1
        assert stage.reasons == {"Connection_Dropped": 1}


async def test_an_error_answer_that_closes_ends_cleanly(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"GET /\x01 HTTP/1.1\r\nHost: a.test\r\n\r\n" + b"x" * 200_000)
        answer = await line.read_to_end()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert not answer.endswith(b"<reset>")
        assert line.secure.ended_cleanly
