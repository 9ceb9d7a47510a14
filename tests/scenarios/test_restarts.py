"""Apps that restart under load: the promise that no GET fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.upstream.parts import reset
from tests.wire import OK, Line, Script, Stage, app, configuration, free_port, front, one_pool, settled


class Load:
    """Clients that ask again and again, every second one with a new connection each time."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.answers: list[tuple[bytes, bytes]] = []
        self.stopped = False

    async def client(self, keeps: bool) -> None:
        while not self.stopped:
            line = Line(await trio.open_tcp_stream("127.0.0.1", self.stage.port()))
            try:
                while not self.stopped:
                    self.answers.append(await line.get("/", *([] if keeps else ["Connection: close"])))
                    await trio.sleep(0.01)
                    if not keeps:
                        break
            finally:
                await trio.aclose_forcefully(line.stream)

    async def run(self, clients: int) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(self.client, bool(number % 2))

    def check(self, least: int) -> None:
        assert len(self.answers) >= least
        assert {head[:15] for head, _ in self.answers} == {b"HTTP/1.1 200 OK"}
        assert {body for _, body in self.answers} == {b"ok"}
        assert self.stage.reasons == {}


def working(how: str) -> Script:
    """An app that takes a moment for each answer; when it is stopped its connections end as `how` says."""

    async def work(line: Line) -> None:
        try:
            while await line.head():
                await trio.sleep(0.02)
                await line.send(OK)
        finally:
            if how == "rst":
                reset(line)

    return work


@pytest.mark.parametrize("concurrency", ["", "concurrency: 4"])
@pytest.mark.parametrize("how", ["eof", "rst"])
async def test_an_app_that_restarts_under_load_fails_no_get(
    tmp_path: Path, how: str, concurrency: str, autojump_clock: object
) -> None:
    port = free_port()
    async with front(one_pool(f"http://127.0.0.1:{port}", pool=concurrency), tmp_path) as stage:
        load = Load(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run, 12)
            for pause in (0.0, 0.03, 0.7, 3.0):  # each dies with requests in flight
                async with app(working(how), port=port) as it:
                    await trio.sleep(0.5)
                    assert it.connections > 0
                await trio.sleep(pause)
            async with app(working(how), port=port):
                before = len(load.answers)
                await trio.sleep(1)
                assert len(load.answers) > before + 50
                load.stopped = True
                await trio.sleep(5)
        load.check(200)


async def test_an_app_whose_listener_outlives_its_work(tmp_path: Path, autojump_clock: object) -> None:
    """Several processes share a listener; when they are killed, the last one accepts what it will never answer."""
    port = free_port()
    killed = trio.Event()

    async def work(line: Line) -> None:
        while await line.head():
            with trio.move_on_after(0.02):
                await killed.wait()
                reset(line)
                return
            await line.send(OK)

    async with front(one_pool(f"http://127.0.0.1:{port}"), tmp_path) as stage:
        load = Load(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run, 12)
            for _ in range(5):
                killed = trio.Event()
                async with app(work, port=port):
                    await trio.sleep(0.6)
                    killed.set()
                    await trio.sleep(0.02)
                await trio.sleep(0.1)
            killed = trio.Event()
            async with app(work, port=port):
                await trio.sleep(1)
                load.stopped = True
                await trio.sleep(2)
        load.check(200)


async def test_replicas_that_restart_one_after_the_other(tmp_path: Path, autojump_clock: object) -> None:
    ports = [free_port(), free_port(), free_port()]
    targets = '", "'.join(f"http://127.0.0.1:{port}" for port in ports)
    async with front(one_pool(targets), tmp_path) as stage, trio.open_nursery() as nursery:

        async def replica(port: int, first: float) -> None:
            async with app(working("eof"), port=port):
                await trio.sleep(first)
            await trio.sleep(0.3)
            async with app(working("eof"), port=port):
                await trio.sleep_forever()

        for number, port in enumerate(ports):
            nursery.start_soon(replica, port, 0.5 + number)
        await settled()
        load = Load(stage)
        nursery.start_soon(load.run, 12)
        await trio.sleep(4)
        load.stopped = True
        await trio.sleep(1)
        load.check(500)
        nursery.cancel_scope.cancel()


async def test_a_reload_between_two_tries_strands_no_request(tmp_path: Path) -> None:
    """Between them the exchange holds neither a lease nor a place in the queue, but the old pool still lives for it."""
    port, died = free_port(), trio.Event()

    async def dying(line: Line) -> None:
        await line.head()
        died.set()

    text = one_pool(f"http://127.0.0.1:{port}", pool="queue: {wait: 20s}")
    async with front(text, tmp_path) as stage:
        line = await stage.connect()
        async with app(dying, port=port):
            await line.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await died.wait()
        old = stage.front.pools["app"]
        report = await stage.front.reload(lambda: configuration(text.replace("20s", "10s"), tmp_path))
        assert report.changed == ["pool app changed"]
        while not len(old.queue):  # the second try found nobody: only a probe can help it now
            await trio.testing.wait_all_tasks_blocked(0.01)
        async with app(port=port):
            with trio.fail_after(10):
                assert (await line.message())[1] == b"ok"
