"""Neither thousands of ready connections keep the tasks waiting, nor busy tasks the connections.

Time is this thread's CPU time, for the reactor as well, so that what else runs on the machine is not counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from frontd.lanes.driven import Life
from frontd.lanes.reactor import BATCH, MOST
from frontd.net.traps import others_first
from tests.lanes.guests import Guest, house, listen
from tests.wire import front, settled

READY = 500
BUSY = 100
DELAY = 0.010  # s that a task may have to wait
SHARE = 0.4  # of its own rate that the reactor keeps beside busy tasks
TRIES = 3

REDIRECTS = """
listen: {http: {port: 0}}
sites: {main: {urls: ["http://*/"], routes: {/: {redirect: https://b.test/}}}}
"""
GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


@pytest.fixture(autouse=True)
def cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices are measured by what this thread has used."""
    monkeypatch.setattr("frontd.lanes.reactor.time", SimpleNamespace(perf_counter=time.thread_time))


def burn(seconds: float) -> None:
    """Use the CPU."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Gaps:
    """A task that only wants its turn; `longest` is how long (s) it had to wait for one."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.turns = 0
        self.last = time.thread_time()

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            now = time.thread_time()
            self.longest = max(self.longest, now - self.last)
            self.turns += 1
            self.last = now

    def begin(self) -> None:
        """What was before does not count."""
        self.longest, self.last = 0.0, time.thread_time()


async def best_of(tries: int, play: Callable[[], Life], gaps: list[float], what: str) -> float:
    """The shortest of the longest gaps, as soon as one is short enough; says how busy the machine is."""
    while len(gaps) < tries and not any(gap < DELAY for gap in gaps):
        await play()
    load = os.getloadavg()[0]
    text = ", ".join(f"{gap * 1000:.1f}" for gap in gaps)
    print(f"{what}: a task waited for at most {text} ms, load average {load:.1f}")
    return min(gaps)


@pytest.mark.parametrize("pipelined", [1, 16])
async def test_ready_connections_leave_a_task_its_turn(tmp_path: Path, pipelined: int) -> None:
    """Each connection has sent one request, or more in a row than are answered in one turn."""
    gaps: list[float] = []
    async with front(REDIRECTS, tmp_path) as stage:
        stage.front.service.reactor.drives = True
        lines = [await stage.connect() for _ in range(READY)]
        await settled()

        async def play() -> None:
            ticking = Gaps()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ticking.run)
                await trio.lowlevel.checkpoint()
                for line in lines:
                    assert isinstance(line.stream, trio.SocketStream)
                    assert os.write(line.stream.socket.fileno(), GET * pipelined) == len(GET) * pipelined
                ticking.begin()
                for line in lines:
                    for _ in range(pipelined):
                        assert (await line.message())[0].startswith(b"HTTP/1.1 30")
                nursery.cancel_scope.cancel()
            gaps.append(ticking.longest)

        shortest = await best_of(TRIES, play, gaps, f"{READY} connections with {pipelined} requests each")
    assert shortest < DELAY


async def test_expiring_connections_leave_a_task_its_turn() -> None:
    """A thousand turns that each take 100 us, all woken at once."""
    async with house() as it:

        async def burns(guest: Guest) -> None:
            await listen(guest)
            burn(0.0001)

        guests = [it.guest(burns)[0] for _ in range(1000)]
        ticking = Gaps()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticking.run)
            await trio.lowlevel.checkpoint()
            for guest in guests:
                it.reactor.wake(guest)
            while any(guest.turns == 0 for guest in guests):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert ticking.turns >= 1000 * 0.0001 / (MOST + BATCH * 0.0001) / 2
        assert ticking.longest < 2 * (MOST + BATCH * 0.0001)


async def test_large_bodies_leave_tasks_and_new_bytes_their_turn() -> None:
    """Three hundred that have always more to do, 200 us at a time; and twenty that are asked something."""
    over = False
    async with house() as it:

        async def relays(guest: Guest) -> None:
            await listen(guest)
            while not over:
                burn(0.0002)
                await others_first(guest.stream)

        relaying = [it.guest(relays)[0] for _ in range(300)]
        asked = [it.guest() for _ in range(20)]
        for guest in relaying:
            it.reactor.wake(guest)
        ticking = Gaps()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticking.run)
            while any(guest.turns == 0 for guest in relaying):
                await trio.lowlevel.checkpoint()
            for _, far in asked:
                far.send(b"x")
            before = ticking.turns
            while any(not guest.heard for guest, _ in asked):
                await trio.lowlevel.checkpoint()
            waited = ticking.turns - before
            over = True
            nursery.cancel_scope.cancel()
        assert ticking.longest < 2 * (MOST + BATCH * 0.0001)
        assert waited <= 5


async def test_those_that_are_due_together_leave_a_task_its_turn(mock_clock: trio.testing.MockClock) -> None:
    """Five hundred that came at once, and whose end takes 100 us each."""
    async with house() as it:

        async def ends(guest: Guest) -> None:
            burn(0.0001)
            guest.finish()

        guests = [it.guest(idle=5)[0] for _ in range(500)]
        for guest in guests:
            guest.end = ends
        await settled()
        ticking = Gaps()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticking.run)
            await trio.lowlevel.checkpoint()
            mock_clock.jump(6)
            while not all(guest.stream.closed for guest in guests):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert ticking.longest < 2 * (MOST + BATCH * 0.0001)


async def test_busy_tasks_leave_the_reactor_its_share() -> None:
    """Turns of 20 us against a hundred tasks that each use 20 us whenever they get their turn."""
    async with house() as it:

        async def burns(guest: Guest) -> None:
            await listen(guest)
            burn(0.00002)
            guest.more = True

        async def busy() -> None:
            while True:
                burn(0.00002)
                await trio.lowlevel.checkpoint()

        guests = [it.guest(burns)[0] for _ in range(100)]

        async def rate() -> float:
            """Turns a second of CPU."""
            before, began = sum(guest.turns for guest in guests), time.thread_time()
            while (used := time.thread_time() - began) < 0.3:
                await trio.lowlevel.checkpoint()
            return (sum(guest.turns for guest in guests) - before) / used

        for guest in guests:
            it.reactor.wake(guest)
        shares: list[float] = []
        while len(shares) < TRIES and not any(share >= SHARE for share in shares):
            alone = await rate()
            async with trio.open_nursery() as nursery:
                for _ in range(BUSY):
                    nursery.start_soon(busy)
                shares.append(await rate() / alone)
                nursery.cancel_scope.cancel()
        print(f"beside {BUSY} busy tasks the reactor kept " + ", ".join(f"{share:.0%}" for share in shares))
        for guest in guests:
            guest.finish()
    assert max(shares) >= SHARE
    assert min(1 - share for share in shares) > 0.2  # and the tasks have theirs
