"""Plugins of the whole server that decide who may come in at all, before anything is read."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

import frontd
from frontd import Client, Identity, Plugin, Refuse
from tests.net.pki import Pki
from tests.net.tlsclient import all_gone, client_context, secure_site, tls_line
from tests.scenarios.plugged import fields, made, of, plugged, reload, status, text, told
from tests.scenarios.test_plugin_faults import BREAK
from tests.wire import app, front, settled

Accept = Callable[[Client], object]


def gate(asked: Accept, name: str = "gate", **more: object) -> type[Plugin]:
    return made(name, accept_client=lambda self, client: asked(client), **more)


async def test_who_may_and_who_may_not(tmp_path: Path) -> None:
    """Nothing of a request is waited for; the answer says why, and nobody else is asked."""
    seen: list[tuple[str, Client]] = []

    def first(client: Client) -> Refuse | None:
        seen.append(("first", client))
        return Refuse(429, "RateLimit", retry_after=7, hint="Slow down.", headers=[("X-A", "1")]) if deny else None

    plugins = [gate(first, "first"), gate(lambda client: seen.append(("second", client)), "second")]
    async with app() as it, plugged(tmp_path, it.url, server=plugins) as stage:
        deny = True
        line = await stage.connect()
        head, body = await line.message()
        assert status(head) == 429
        assert [fields(head, name) for name in ("Retry-After", "X-A", "Connection")] == [["7"], ["1"], ["close"]]
        assert b"Reason: RateLimit\n" in body
        assert b"Slow down." in body
        assert [name for name, _ in seen] == ["first"]
        await line.close()
        seen.clear()
        deny = False
        line = await stage.connect()
        for _ in range(3):
            assert (await line.get())[1] == b"ok"
        assert [name for name, _ in seen] == ["first", "second"]
        client = seen[0][1]
        assert client is seen[1][1]
        assert (client.address, client.listener, client.scheme) == ("127.0.0.1", "http", "http")
        assert client.tls is None
        assert it.connections == 1
        assert stage.reasons == {"RateLimit": 1}


WRONG: list[object] = [True, 1, "no", b"no", {"status": 403}, object(), Refuse, Identity("alice"), frontd.Allow(),
                       frontd.Response(200, text="come in"), Refuse(403, "AddressDenied", headers=[("X-A", BREAK)]),
                       RuntimeError("no"), frontd.FrontdError(frontd.Reason.AddressDenied)]  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("is_async", [False, True])
async def test_one_that_fails_lets_nobody_in(tmp_path: Path, value: object, is_async: bool) -> None:
    def say(client: Client) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    async def later(client: Client) -> object:
        await trio.lowlevel.checkpoint()
        return say(client)

    async with app() as it, plugged(tmp_path, it.url, server=[gate(later if is_async else say)]) as stage:
        for _ in range(2):
            line = await stage.connect()
            head, body = await line.message()
            assert status(head) == 500
            assert b"Set-Cookie" not in head + body
            await line.close()
        await settled()
        assert it.connections == 0
        assert stage.reasons == {"PluginFault": 2}
        assert "plugin gate.accept_client: " in await told(stage)


async def test_a_coroutine_that_nobody_waits_for_lets_nobody_in(tmp_path: Path) -> None:
    async def nothing() -> None:
        raise AssertionError

    async def never(client: Client) -> object:
        return nothing()

    async with plugged(tmp_path, "http://127.0.0.1:1", server=[gate(never)]) as stage:
        assert status((await (await stage.connect()).message())[0]) == 500


async def test_one_that_does_not_answer(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """The time for the head runs all the same, and others are not kept waiting."""

    async def asked(client: Client) -> None:
        if not stage.reasons:
            await trio.sleep_forever()

    extra = "timeouts: {header_wait: 5s}"
    async with app() as it, plugged(tmp_path, it.url, server=[gate(asked)], extra=extra) as stage:
        before = trio.current_time()
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert status((await line.message())[0]) == 408
        assert 5 <= trio.current_time() - before < 6
        await line.close()
        await settled()
        assert stage.reasons == {"Timer_HeaderWait": 1}
        assert (await (await stage.connect()).get())[1] == b"ok"


async def test_tls_clients_get_no_handshake(tmp_path: Path, pki: Pki) -> None:
    """And no certificate is shown: they are refused before their first byte is looked at."""
    seen: list[Client] = []

    def asked(client: Client) -> Refuse | None:
        seen.append(client)
        return Refuse(403, "AddressDenied") if len(seen) == 1 else None

    plugin = gate(asked)
    async with app() as it:
        written = secure_site(it.url, pki.entry("a"), extra="plugins: [gate]")
        async with front(written, tmp_path, of(plugin)) as stage:
            with pytest.raises((ssl.SSLError, EOFError, trio.BrokenResourceError)):
                await tls_line(stage, client_context(pki), "a.test")
            await all_gone(stage)
            assert stage.reasons == {"AddressDenied": 1}
            line = await tls_line(stage, client_context(pki), "a.test")
            assert (await line.get("/", host="a.test"))[1] == b"ok"
            assert [client.scheme for client in seen] == ["https", "https"]
            assert seen[0].tls is None


async def test_behind_the_proxy_protocol(tmp_path: Path) -> None:
    """The client is who the PROXY header says."""
    seen: list[str] = []
    plugin = gate(lambda client: seen.append(client.address))
    written = text("http://127.0.0.1:1", [], server=[plugin], routes="/x: app")
    written = written.replace("port: 0", "port: 0, proxy_protocol: true")
    async with front(written, tmp_path, of(plugin)) as stage:
        line = await stage.connect()
        await line.send(b"PROXY TCP4 192.0.2.9 192.0.2.1 5 80\r\n")
        await line.get("/none")
        assert seen == ["192.0.2.9"]


async def test_a_reload_is_for_those_who_come_after_it(tmp_path: Path) -> None:
    closed = gate(lambda client: Refuse(403, "AddressDenied"))
    async with app() as it, plugged(tmp_path, it.url) as stage:
        line = await stage.connect()
        assert (await line.get())[1] == b"ok"
        assert (await reload(stage, text(it.url, [], server=[closed]), closed)).ok
        assert (await line.get())[1] == b"ok"
        assert status((await (await stage.connect()).message())[0]) == 403


async def test_what_it_remembers_is_there_for_the_requests(tmp_path: Path) -> None:
    seen: list[object] = []

    def asked(self: Plugin, client: Client) -> None:
        client.state(self)["came"] = True

    def filter_request(self: Plugin, exchange: frontd.Exchange) -> None:
        seen.append(dict(exchange.client.state(self)))

    plugin = made("gate", accept_client=asked, filter_request=filter_request)
    async with app() as it, plugged(tmp_path, it.url, server=[plugin]) as stage:
        await (await stage.connect()).get()
        assert seen == [{"came": True}]
