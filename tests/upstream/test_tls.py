"""Targets over TLS: verified or not at all."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from frontd.model.errors import FrontdError, Reason
from frontd.net.tls import client_context
from frontd.upstream.client import Dialect
from frontd.upstream.pool import Pool
from frontd.upstream.report import rows
from frontd.upstream.targets import Target
from tests.upstream.parts import ask, running, settings, take, target
from tests.wire import OK, Line, Script, app, free_port, front


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


class TlsApp:
    """An app behind TLS: `requests` is how many heads it has read."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests = 0


@asynccontextmanager
async def tls_app(ca: trustme.CA, *names: str, port: int = 0) -> AsyncIterator[TlsApp]:
    """Answers every request with OK, keep-alive; its certificate is for `names`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
    it = TlsApp(listener.socket.getsockname()[1])

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        line = Line(stream)
        try:
            while await line.head():
                it.requests += 1
                await line.send(OK)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SSLListener(listener, context)])
        yield it
        nursery.cancel_scope.cancel()


def secure(port: int, ca_file: Path | None, server_name: str = "app.test") -> Target:
    return target("127.0.0.1", port, Dialect(client_context(ca_file.read_bytes() if ca_file else b""), server_name))


async def test_an_app_with_a_certificate_of_its_own_ca(ca: trustme.CA, ca_file: Path) -> None:
    async with tls_app(ca, "app.test") as it, running(Pool(settings(secure(it.port, ca_file)))) as pool:
        for _ in range(3):
            await ask(await take(pool))
        assert it.requests == 3
        assert len(pool.places[0].idle) == 1  # the session tickets of TLS 1.3 are not "unasked bytes"


@pytest.mark.parametrize("case", ["other CA", "system CAs", "other name", "address instead of name"])
async def test_an_untrusted_app_is_refused_at_once(
    ca: trustme.CA, ca_file: Path, case: str, autojump_clock: object
) -> None:
    names = {"other name": "other.test", "address instead of name": "127.0.0.2"}
    server = trustme.CA() if case == "other CA" else ca
    file = None if case == "system CAs" else ca_file
    async with tls_app(server, names.get(case, "app.test")) as it:
        async with running(Pool(settings(secure(it.port, file)))) as pool:
            began = trio.current_time()
            for _ in range(3):  # the second finds the place out of rotation: it is told the same, not made to wait
                with pytest.raises(FrontdError) as caught:
                    await take(pool)
                assert caught.value.reason is Reason.UpstreamTls
                assert f"127.0.0.1:{it.port}: its certificate is not trusted" in caught.value.detail
            assert trio.current_time() - began < 0.1
            assert it.requests == 0


async def test_an_app_that_gets_its_certificate_mended_comes_back(
    ca: trustme.CA, ca_file: Path, autojump_clock: object
) -> None:
    port = free_port()
    async with running(Pool(settings(secure(port, ca_file)))) as pool:
        async with tls_app(ca, "other.test", port=port):
            with pytest.raises(FrontdError):
                await take(pool)
        async with tls_app(ca, "app.test", port=port) as it:
            await trio.sleep(1.1)
            await ask(await take(pool))
            assert it.requests == 1


async def test_a_trusted_app_serves_for_one_that_is_not(ca: trustme.CA, ca_file: Path, autojump_clock: object) -> None:
    async with tls_app(ca, "other.test") as bad, tls_app(ca, "app.test") as good:
        async with running(Pool(settings(secure(bad.port, ca_file), secure(good.port, ca_file)))) as pool:
            for _ in range(4):
                await ask(await take(pool))
            assert (bad.requests, good.requests) == (0, 4)
            assert [row["state"] for row in rows(pool)] == ["down", "up"]


async def test_a_plain_app_behind_https_gets_no_request(ca_file: Path, autojump_clock: object) -> None:
    heard: list[bytes] = []

    async def listen(line: Line) -> None:
        heard.append(await line.read())
        await line.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with app(listen) as it, running(Pool(settings(secure(it.port, ca_file)))) as pool:
        with pytest.raises(FrontdError) as caught:
            await take(pool)
        assert caught.value.reason is Reason.UpstreamTls
        assert "TLS failed: WRONG_VERSION_NUMBER" in caught.value.detail
    assert heard
    assert all(data.startswith(b"\x16") for data in heard)


@pytest.mark.parametrize("early", [b"", b"\x16"])
async def test_an_app_that_dies_in_the_handshake_is_waited_for(
    ca: trustme.CA, ca_file: Path, early: bytes, autojump_clock: object
) -> None:
    """The kernel accepts for a process that is about to end: over TLS that shows in the handshake."""
    port = free_port()

    async def die(line: Line) -> None:
        if early:
            await line.read()  # then the end is a FIN; with unread bytes it is a reset

    async with running(Pool(settings(secure(port, ca_file)))) as pool:
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                await ask(await take(pool))

            async with app(die, port=port) as dying:
                nursery.start_soon(one)
                await trio.sleep(2)
                assert dying.connections > 2
                assert "TLS handshake" in str(rows(pool)[0]["error"])
            async with tls_app(ca, "app.test", port=port) as it:
                await trio.sleep(2)
                assert it.requests == 1


async def test_a_handshake_that_never_ends_is_bounded(ca_file: Path, autojump_clock: object) -> None:
    async def silent(line: Line) -> None:
        await trio.sleep_forever()

    script: Script = silent
    async with app(script) as it, running(Pool(settings(secure(it.port, ca_file), queue_wait=8.0))) as pool:
        began = trio.current_time()
        with pytest.raises(FrontdError) as caught:
            await take(pool)
        assert caught.value.reason is Reason.AppOffline
        assert trio.current_time() - began == pytest.approx(8.0, abs=0.1)


@pytest.mark.parametrize("server_name", ["app.test", "wrong.test"])
async def test_through_the_front(ca: trustme.CA, ca_file: Path, tmp_path: Path, server_name: str) -> None:
    async with tls_app(ca, "app.test") as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app}}}}}}
pools:
  app:
    targets: ["https://127.0.0.1:{it.port}"]
    tls: {{ca: {ca_file}, server_name: {server_name}}}
"""
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            head, body = await line.get()
            if server_name == "app.test":
                assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
            else:
                assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
                assert b"Reason: UpstreamTls" in body
                assert b"127.0.0.1" not in head + body
                assert b"wrong.test" not in head + body
                assert stage.reasons == {"UpstreamTls": 1}
                assert it.requests == 0
