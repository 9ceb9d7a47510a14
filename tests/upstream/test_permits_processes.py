"""One app with few places and fronts that are processes: nobody exceeds them, starves, or takes them into the grave."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from frontd.net.shared import SharedFds, Slots
from tests.wire import OK, Line, app

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 30.0  # s


class Busy:
    """An app that remembers how many exchanges it had at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    async def __call__(self, line: Line) -> None:
        """Answer until the front goes."""
        while await line.head():
            self.now += 1
            self.most = max(self.most, self.now)
            await trio.lowlevel.checkpoint()
            self.now -= 1
            await line.send(OK)


class Front:
    """The test's side of a `poolfront`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._text = b""

    async def line(self) -> str:
        """The next thing it says."""
        assert self.process.stdout is not None
        while b"\n" not in self._text:
            more = await self.process.stdout.receive_some()
            assert more, "it is dead"
            self._text += more
        first, _, self._text = self._text.partition(b"\n")
        return first.decode()

    async def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"go\n")


@asynccontextmanager
async def front(shared: SharedFds, index: int, port: int, *rest: object) -> AsyncIterator[Front]:
    """A `poolfront` that is ready."""
    fds = (shared.fd, *shared.eventfds)
    words = [index, shared.fronts, port, *rest, *fds]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.upstream.poolfront", *map(str, words)],
        cwd=ROOT, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        it = Front(process)
        assert await it.line() == "ready"
        yield it
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("clients", [(8, 8), (16, 1)])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_nobody_exceeds_the_places_and_nobody_starves(clients: tuple[int, int], concurrency: int) -> None:
    shared, busy, goal = SharedFds(2), Busy(), 600
    with trio.fail_after(PATIENCE):
        async with (
            app(busy) as it,
            front(shared, 0, it.port, concurrency, "ask", clients[0], goal) as one,
            front(shared, 1, it.port, concurrency, "ask", clients[1], goal) as other,
        ):
            await one.go()
            await other.go()
            counts = [int(await one.line()), int(await other.line())]
    shared.close()
    assert busy.most <= concurrency
    assert goal <= sum(counts) <= goal + sum(clients)
    assert min(counts) >= goal // 20, counts


async def test_a_killed_front_s_places_serve_those_who_wait() -> None:
    shared, goal = SharedFds(3), 20
    waiting = Slots(shared.fd, 2, 3).counter("queue app")
    with trio.fail_after(PATIENCE):
        async with (
            app() as it,
            front(shared, 0, it.port, 2, "hold", 2, 0) as one,
            front(shared, 1, it.port, 2, "ask", 4, goal) as other,
        ):
            await one.go()
            assert await one.line() == "held"
            await other.go()
            while waiting.total() < 4:
                await trio.lowlevel.checkpoint()
            one.process.kill()
            await one.process.wait()
            assert shared.reclaim(0) == 2
            assert int(await other.line()) >= goal
    shared.close()
