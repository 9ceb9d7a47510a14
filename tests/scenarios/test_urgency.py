"""Who goes first among those who wait: urgency (RFC 9218 4.1), of a route or from a plugin."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import frontd
from tests.scenarios.plugged import made, plugged, told
from tests.wire import OK, Line, Script, Stage, app, front, one_pool, settled


def noting(asked: list[str], go: trio.Event) -> Script:
    """An app that notes what it is asked and answers when it is told to go."""

    async def work(line: Line) -> None:
        while head := await line.head():
            asked.append(head.split(b" ")[1].decode())
            await go.wait()
            await line.send(OK)

    return work


async def order(stage: Stage, asked: list[str], go: trio.Event, *requests: str) -> list[str]:
    """In which order the app is asked, once it is free, for what came in the order of `requests` (a path, and perhaps
    ``path urgency``, which goes into a field)."""
    first = await stage.connect()
    await first.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    while not asked:
        await settled()
    lines = [first]
    for request in requests:
        path, _, urgency = request.partition(" ")
        line = await stage.connect()
        await line.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Urgency: {urgency}\r\n\r\n".encode())
        await settled()
        lines.append(line)
    go.set()
    for line in lines:
        await line.message()
    return asked[1:]


async def test_a_route_s_urgency_decides_and_within_it_who_came_first(tmp_path: Path) -> None:
    asked, go = list[str](), trio.Event()
    async with app(noting(asked, go)) as it:
        text = one_pool(it.url, pool="concurrency: 1").replace(
            "{/: app}", "{/: app, /pay/: {pool: app, urgency: 1}, /report/: {pool: app, urgency: 7}}"
        )
        async with front(text, tmp_path) as stage:
            came = ["/report/1", "/a", "/pay/1", "/b", "/report/2", "/pay/2"]
            assert await order(stage, asked, go, *came) == ["/pay/1", "/pay/2", "/a", "/b", "/report/1", "/report/2"]


@pytest.mark.parametrize("hook", ["filter_request", "authorize", "route", "cache_lookup", "rewrite_request"])
async def test_a_plugin_s_word_counts_more_than_the_route_s(tmp_path: Path, hook: str) -> None:
    def decide(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        if word := exchange.request.headers.text("x-urgency"):
            exchange.urgency = int(word)

    asked, go = list[str](), trio.Event()
    async with app(noting(asked, go)) as it:
        routes = "/: app, /late/: {pool: app, urgency: 6}"
        lanes = made("lanes", **{hook: decide})
        async with plugged(tmp_path, it.url, lanes, routes=routes, pool="concurrency: 1") as stage:
            came = ["/late/1", "/late/2 3", "/a", "/b 5", "/c 0"]
            assert await order(stage, asked, go, *came) == ["/c", "/late/2", "/a", "/b", "/late/1"]


@pytest.mark.parametrize("wrong", [8, -1, "3", 2.0, True])
async def test_what_is_no_urgency_is_a_fault(tmp_path: Path, wrong: object) -> None:
    def decide(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        exchange.urgency = wrong  # type: ignore[assignment]

    async with app() as it, plugged(tmp_path, it.url, made("lanes", authorize=decide)) as stage:
        head, body = await (await stage.connect()).get()
        assert head.startswith(b"HTTP/1.1 500 ")
        assert b"PluginFault" in body
        assert f"an urgency is a number from 0 to 7, not {wrong!r}" in await told(stage)
        assert not it.connections


async def test_a_client_s_own_field_means_nothing(tmp_path: Path) -> None:
    """RFC 9218's Priority is the client's wish among its own requests; here everybody stands in one line."""
    asked, go = list[str](), trio.Event()
    async with app(noting(asked, go)) as it, front(one_pool(it.url, pool="concurrency: 1"), tmp_path) as stage:
        first, meek, pushy = [await stage.connect() for _ in range(3)]
        for line, path in ((first, "/first"), (meek, "/meek"), (pushy, "/pushy")):
            await line.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nPriority: u=0\r\n\r\n".encode())
            while not asked:
                await settled()
            await settled()
        go.set()
        for line in (first, meek, pushy):
            await line.message()
        assert asked == ["/first", "/meek", "/pushy"]


async def test_nobody_waits_longer_than_the_queue_allows(tmp_path: Path, autojump_clock: object) -> None:
    """The least urgent may never have its turn; then it is told so, as everybody is."""

    async def slow(line: Line) -> None:
        while await line.head():
            await trio.sleep(0.9)
            await line.send(OK)

    async with app(slow) as it:
        text = one_pool(it.url, pool="concurrency: 1\n    queue: {wait: 3s}").replace(
            "{/: app}", "{/: app, /late/: {pool: app, urgency: 7}}"
        )
        async with front(text, tmp_path) as stage, trio.open_nursery() as nursery:

            async def pressing() -> None:
                line = await stage.connect()
                while True:
                    await line.get()

            for _ in range(3):
                nursery.start_soon(pressing)
            await trio.sleep(0.5)
            began = trio.current_time()
            _, body = await (await stage.connect()).get("/late/")
            assert trio.current_time() - began == pytest.approx(3, abs=0.01)
            assert b"Reason: Timer_ReqQueue" in body
            nursery.cancel_scope.cancel()
