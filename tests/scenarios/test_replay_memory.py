"""The memory for what may have to be sent again is one for all requests of a pool; who finds none is served once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import frontd
from tests.scenarios.plugged import made, plugged
from tests.wire import OK, Line, Stage, app, front, one_pool, settled

PART = b"x" * 400


def put(size: int, body: bytes = b"") -> bytes:
    return b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body


class Grave:
    """An app that reads bodies and, while `dies` is set, ends instead of answering."""

    def __init__(self) -> None:
        self.dies = False
        self.bodies: list[int] = []
        self.go = trio.Event()

    async def __call__(self, line: Line) -> None:
        while True:
            head, body = await line.message()
            if not head:
                return
            self.bodies.append(len(body))
            await self.go.wait()
            if self.dies:
                self.dies = False
                return
            await line.send(OK)


def used(stage: Stage) -> tuple[int, int]:
    """Bytes in use, and how many found no room."""
    replay = stage.front.pools["app"].replay
    return replay.used, replay.missed


async def test_it_is_taken_while_a_body_is_on_its_way_and_given_back(tmp_path: Path) -> None:
    grave = Grave()
    async with app(grave) as it, front(one_pool(it.url, pool="replay_memory: 1000"), tmp_path) as stage:
        one, two, three = [await stage.connect() for _ in range(3)]
        await one.send(put(400, PART))
        await two.send(put(800, PART))
        await settled()
        assert used(stage) == (800, 0)
        await two.send(PART)  # 1,200 in all: what is kept of this one goes
        await settled()
        assert used(stage) == (400, 1)
        await three.send(put(400, PART))
        await settled()
        assert used(stage) == (800, 1)
        grave.go.set()
        for line in (one, two, three):
            assert (await line.message())[1] == b"ok"
        await settled()
        assert used(stage) == (0, 1)
        assert sorted(grave.bodies) == [400, 400, 800]


async def test_who_found_no_room_is_told_why_it_was_not_sent_again(tmp_path: Path) -> None:
    grave = Grave()
    grave.go.set()
    async with app(grave) as it, front(one_pool(it.url, pool="replay_memory: 300"), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.ask(put(400, PART)))[1] == b"ok"  # no room, and nothing died
        grave.dies = True
        assert (await line.ask(put(300, PART[:300])))[1] == b"ok"  # sent again
        grave.dies = True
        head, body = await line.ask(put(400, PART))
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Connection_Abandoned_By_ReqQueue" in body
        assert used(stage) == (0, 2)
        await settled()
        assert "replay_memory" in stage.log("error")


async def test_a_client_that_leaves_gives_it_back(tmp_path: Path) -> None:
    async with app(Grave()) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(put(4000, PART))
        await settled()
        assert used(stage) == (400, 0)
        await line.close()
        await settled()
        assert used(stage) == (0, 0)


@pytest.mark.parametrize(("memory", "again"), [(400, True), (399, False)])
async def test_what_a_plugin_has_read_counts_and_is_forwarded_all_the_same(
    tmp_path: Path, memory: int, again: bool
) -> None:
    async def read(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        assert await exchange.request.body.read(1000) == PART

    grave = Grave()
    grave.go.set()
    reader = made("reader", filter_request=read)
    async with app(grave) as it, plugged(tmp_path, it.url, reader, pool=f"replay_memory: {memory}") as stage:
        line = await stage.connect()
        assert (await line.ask(put(400, PART)))[1] == b"ok"
        assert used(stage) == (0, int(not again))
        grave.dies = True
        head, _ = await line.ask(put(400, PART))
        assert head.startswith(b"HTTP/1.1 200 " if again else b"HTTP/1.1 502 ")
        assert set(grave.bodies) == {400}


async def test_zero_keeps_nothing(tmp_path: Path) -> None:
    grave = Grave()
    async with app(grave) as it, front(one_pool(it.url, pool="replay_memory: 0"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(put(400, PART))
        await settled()
        assert used(stage) == (0, 1)
        grave.go.set()
        assert (await line.message())[1] == b"ok"
        assert (await line.ask(put(0)))[1] == b"ok"  # an empty body needs no room
        assert used(stage) == (0, 1)
