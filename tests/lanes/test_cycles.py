"""Nothing of an exchange is left to the collector of cycles, whichever lane it took."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import frontd
from tests.net.pki import Pki
from tests.net.tlsclient import client_context, secure_site, tls_line
from tests.scenarios.plugged import PluginClass, made, of, text
from tests.wire import Line, app, front, one_pool, settled

EXCHANGES = 200
GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
OURS = ("frontd", "frontd_plugins")


@contextmanager
def collected() -> Iterator[list[str]]:
    """What the collector finds of ours after the block, and all of it by kind."""
    gc.collect()
    gc.disable()
    before = gc.get_debug()
    found: list[str] = []
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [kind(one) for one in gc.garbage]
    finally:
        gc.set_debug(before)
        gc.garbage.clear()
        gc.enable()


def kind(one: object) -> str:
    return f"{type(one).__module__}.{type(one).__qualname__}"


def of_exchanges(found: list[str]) -> dict[str, int]:
    """Kinds of which there is one for at least every second exchange; a handful of anything is not per exchange."""
    return {name: found.count(name) for name in set(found) if found.count(name) >= EXCHANGES / 2}


def passing() -> PluginClass:
    """Hooks that answer at once."""

    def nothing(self: object, exchange: frontd.Exchange) -> None:
        exchange.state(self)["seen"] = True

    return made("passing", filter_request=nothing, rewrite_request=nothing, rewrite_response=nothing, log=nothing)


def awaiting() -> PluginClass:
    """Hooks that wait, so that every exchange moves to a task."""

    async def waits(self: object, exchange: frontd.Exchange) -> None:
        await trio.lowlevel.checkpoint()

    return made("awaiting", filter_request=waits, rewrite_request=waits, rewrite_response=waits)


def failing() -> PluginClass:
    """A hook that fails, before anything is sent."""

    def fails(self: object, exchange: frontd.Exchange) -> None:
        raise LookupError("each time")

    return made("failing", filter_request=fails)


async def ask(line: Line, request: bytes) -> None:
    """The same request, one after the other."""
    for _ in range(EXCHANGES):
        head, _ = await line.ask(request)
        assert head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 500 "))


@pytest.mark.parametrize("drives", ["on", "off"])
@pytest.mark.parametrize("request_", [GET, POST, CHUNKED], ids=["GET", "POST", "chunked"])
async def test_proxied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drives: str, request_: bytes) -> None:
    monkeypatch.setenv("FRONTD_REACTOR", drives)
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await ask(line, request_)
        with collected() as found:
            await ask(line, request_)
        assert of_exchanges(found) == {}


@pytest.mark.parametrize("plugin", [passing, awaiting, failing])
async def test_with_plugins(tmp_path: Path, plugin: Any) -> None:
    one = plugin()
    async with app() as it, front(text(it.url, [one]), tmp_path, of(one)) as stage:
        line = await stage.connect()
        await line.get()
        if plugin is failing:
            with collected() as found:
                for _ in range(EXCHANGES):
                    assert (await line.get())[0].startswith(b"HTTP/1.1 500 ")
        else:
            await ask(line, POST)
            with collected() as found:
                await ask(line, POST)
        assert of_exchanges(found) == {}


@pytest.mark.parametrize("drives", ["on", "off"])
async def test_over_tls(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drives: str) -> None:
    monkeypatch.setenv("FRONTD_REACTOR", drives)
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await ask(line, GET)
        with collected() as found:
            await ask(line, GET)
        assert of_exchanges(found) == {}


@pytest.mark.parametrize("drives", ["on", "off"])
async def test_connections_that_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drives: str) -> None:
    monkeypatch.setenv("FRONTD_REACTOR", drives)
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:

        async def visit() -> None:
            line = await stage.connect()
            stage.lines.remove(line)
            assert (await line.get())[1] == b"ok"
            await line.close()
            await settled()

        await visit()
        with collected() as found:
            for _ in range(EXCHANGES):
                await visit()
        ours = {name: count for name, count in of_exchanges(found).items() if name.startswith(OURS)}
        assert ours == {}


@pytest.mark.parametrize("drives", ["on", "off"])
async def test_exchanges_that_their_client_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drives: str
) -> None:
    monkeypatch.setenv("FRONTD_REACTOR", drives)

    async def silent(line: Line) -> None:
        await line.read_to_end()

    async with app(silent) as it, front(one_pool(it.url), tmp_path) as stage:
        with collected() as found:
            for _ in range(EXCHANGES):
                line = await stage.connect()
                stage.lines.remove(line)
                await line.send(GET)
                await settled()
                await line.close()
                await settled()
        ours = {name: count for name, count in of_exchanges(found).items() if name.startswith(OURS)}
        assert ours == {}
        assert stage.reasons == {"Client_Reset": EXCHANGES}
