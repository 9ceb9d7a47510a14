"""Pools whose apps control starts, as a front sees them: it is told where they are, also what a reload left behind."""

from __future__ import annotations

from pathlib import Path

import trio

from frontd.processes.front import Told
from frontd.upstream.client import Address
from tests.wire import OK, App, Line, Stage, app, configuration, front, settled

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def text(wait: str = "20s", limit: int = 1000, concurrency: str = "none") -> str:
    return f"""
listen: {{http: {{port: 0}}}}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app}}}}}}
pools:
  app:
    workers: {{command: [/bin/true, "{{socket}}"], concurrency: {concurrency}}}
    queue: {{wait: {wait}, limit: {limit}}}
"""


def at(*apps: App, off: str = "") -> dict[str, Told]:
    """What control says: the apps of the pool are these."""
    return {"app": ([Address("127.0.0.1", one.port) for one in apps], off, {})}


async def until_waiting(stage: Stage, count: int) -> None:
    with trio.fail_after(5):
        while len(stage.front.pools["app"].queue) != count:
            await settled()


async def test_requests_wait_until_control_says_where(tmp_path: Path) -> None:
    wanted: list[list[str]] = []
    async with front(text(), tmp_path) as stage:
        stage.front.wanted = wanted.append
        lines = [await stage.connect() for _ in range(3)]
        for line in lines:
            await line.send(GET)
        await until_waiting(stage, 3)
        assert wanted == [["app"]]  # once for all of them
        assert stage.front.waiting() == ["app"]
        async with app() as it:
            stage.front.tell(at(it))
            for line in lines:
                assert (await line.message())[1] == b"ok"
            assert stage.front.waiting() == []
            stage.front.tell(at())
        await lines[0].send(GET)
        await until_waiting(stage, 1)
        assert wanted == [["app"]] * 2


async def test_what_waits_over_a_reload_is_told_too(tmp_path: Path) -> None:
    """The pool that a reload has replaced lives until its last request; its app may come later than the reload."""
    wanted: list[list[str]] = []
    async with front(text(), tmp_path) as stage, app() as it:
        stage.front.wanted = wanted.append
        line = await stage.connect()
        await line.send(GET)
        await until_waiting(stage, 1)
        old = stage.front.pools["app"]
        report = await stage.front.reload(lambda: configuration(text("10s"), tmp_path))
        assert report.changed == ["pool app changed"]
        assert len(old.queue) == 1
        assert stage.front.waiting() == ["app"]  # as a control says that has just started
        stage.front.tell(at(it))
        with trio.fail_after(5):
            assert (await line.message())[1] == b"ok"
        await settled()
        assert old.is_over
        assert stage.front.waiting() == []


async def test_what_an_app_still_has_for_a_pool_that_was_replaced_is_reported(tmp_path: Path) -> None:
    """Else it would be taken for idle, and stopped."""
    go = trio.Event()

    async def slow(line: Line) -> None:
        while await line.head():
            await go.wait()
            await line.send(OK)

    async with front(text(), tmp_path) as stage, app(slow) as it:
        stage.front.tell(at(it))
        one, two = await stage.connect(), await stage.connect()
        await one.send(GET)
        await settled()
        await stage.front.reload(lambda: configuration(text("10s"), tmp_path))
        await two.send(GET)
        await settled()
        row = stage.front.loads()["app"]["places"][f"127.0.0.1:{it.port}"]
        assert (row["active"], row["served"]) == (2, 2)
        go.set()
        for line in (one, two):
            assert (await line.message())[1] == b"ok"
        await settled()
        assert stage.front.loads()["app"]["places"][f"127.0.0.1:{it.port}"]["active"] == 0


async def test_a_pool_that_is_off_lets_all_go(tmp_path: Path) -> None:
    async with front(text(), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET)
        await until_waiting(stage, 1)
        old = stage.front.pools["app"]
        await stage.front.reload(lambda: configuration(text("10s"), tmp_path))
        other = await stage.connect()
        await other.send(GET)
        await until_waiting(stage, 1)
        stage.front.tell(at(off="out of service"))
        for one in (line, other, await stage.connect()):
            if one not in (line, other):
                await one.send(GET)
            assert b"Reason: AppOffline" in (await one.message())[1]
        assert not len(old.queue)


async def test_an_app_that_leaves_keeps_what_it_has_and_gets_nothing_new(tmp_path: Path) -> None:
    go = trio.Event()
    heads: list[str] = []

    def named(name: str) -> object:
        async def slow(line: Line) -> None:
            while await line.head():
                heads.append(name)
                await go.wait()
                await line.send(OK)

        return slow

    async with front(text(concurrency="1"), tmp_path) as stage:
        async with app(named("old")) as old, app(named("new")) as new:  # type: ignore[arg-type]
            stage.front.tell(at(old))
            lines = [await stage.connect() for _ in range(3)]
            await lines[0].send(GET)
            await settled()
            for line in lines[1:]:
                await line.send(GET)
            await until_waiting(stage, 2)
            stage.front.tell(at(new))
            await settled()
            assert heads == ["old", "new"]
            assert len(stage.front.pools["app"].queue) == 1
            go.set()
            for line in lines:
                assert (await line.message())[1] == b"ok"
            assert heads == ["old", "new", "new"]
