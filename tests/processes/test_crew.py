"""A crew on a fake clock: its workers are small servers on real Unix sockets, in this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from frontd.config.workers import Workers
from frontd.processes.crew import CannotStart, Crew
from frontd.processes.events import Events
from frontd.processes.usage import Usage, usage_of
from frontd.processes.worker import Worker, computing, is_due, program_of
from frontd.upstream.client import Address


class Machine:
    """Stands where the master and the fronts stand.  `answers` is what workers say: a status, 0: silence; `obeys`:
    they end when they are asked to."""

    def __init__(self, where: Path, nursery: trio.Nursery) -> None:
        self.where = where
        self.nursery = nursery
        self.answers = 200
        self.silent: set[int] = set()  # pids
        self.obeys = True
        self.broken = ""
        self.takes = 0.0  # s to make a process
        self.places: list[list[int]] = []  # what the fronts were told: pids
        self.signals: list[tuple[int, int]] = []
        self.memo: dict[str, Any] = {}
        self.lives: dict[int, trio.CancelScope] = {}
        self.crew: Crew | None = None
        self.said: list[str] = []
        self.events = Events(self.said.append)

    async def spawn(self, crew: Crew, slot: int, number: int) -> Worker:
        if self.broken:
            raise CannotStart(self.broken)
        await trio.sleep(self.takes)
        path = self.where / f"{number}.sock"
        bound = socket.socket(socket.AF_UNIX)  # trio's would bind in a thread, which its clock does not see
        bound.bind(str(path))
        bound.listen(16)
        sock = trio.socket.from_stdlib_socket(bound)
        address, program = Address(str(path), 0), program_of(crew.settings)
        worker = Worker(f"app.{number}", slot, address, 1000 + number, 0.0, trio.current_time(), program=program)
        self.lives[worker.pid] = trio.CancelScope()
        self.nursery.start_soon(self._live, worker, trio.SocketListener(sock))
        return worker

    async def _live(self, worker: Worker, listener: trio.SocketListener) -> None:
        with self.lives[worker.pid]:
            async with listener:
                await trio.serve_listeners(partial(self._answer, worker.pid), [listener])
        assert self.crew is not None
        self.crew.gone(worker, "as it was asked")

    async def _answer(self, pid: int, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                await stream.receive_some(4096)
                if not self.answers or pid in self.silent:
                    await trio.sleep_forever()
                await stream.send_all(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % self.answers)

    def signal(self, worker: Worker, number: int) -> None:
        self.signals.append((worker.pid, number))
        if self.obeys or number == signal.SIGKILL:
            self.die(worker.pid)

    def die(self, pid: int) -> None:
        self.lives[pid].cancel()

    def publish(self, crew: Crew) -> None:
        if crew.is_settled:
            self.places.append([worker.pid for worker in crew.ready])

    def note(self, worker: Worker) -> None: ...

    def remember(self) -> None:
        assert self.crew is not None
        self.memo = self.crew.memo()

    # ------------------------------------------------------------------ what plays say

    @property
    def now(self) -> list[int]:
        """The pids that get requests."""
        return self.places[-1] if self.places else []

    async def until(self, pids: list[int]) -> None:
        with trio.fail_after(1000):
            while sorted(self.now) != pids:  # noqa: ASYNC110 - the play moves the clock
                await trio.sleep(0.1)

    async def another(self, *before: int, count: int = 1) -> list[int]:
        """The pids, when there are `count` and none of those before."""
        with trio.fail_after(1000):
            while len(self.now) != count or {*self.now} & {*before}:
                await self.look(1)
        return self.now

    async def look(self, seconds: float, *, served: int = 0, active: int = 0, queue: int = 0) -> None:
        """Fronts say the same for a while, every second."""
        crew = self.crew
        assert crew is not None
        for _ in range(round(seconds)):
            await trio.sleep(1)
            for worker in crew.workers:
                worker.served, worker.active = served, active
            crew.seen(queue, trio.current_time())

    def events_told(self) -> list[int | None]:
        return [event["id"] for event in self.events.latest]


@asynccontextmanager
async def machine(where: Path, memo: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Machine]:
    async with trio.open_nursery() as nursery:
        it = Machine(where, nursery)
        workers = Workers.model_validate({"command": ["x", "{fd}"], **settings})
        it.crew = Crew("app", workers, it, it.events, memo)
        nursery.start_soon(it.crew.run)
        yield it
        nursery.cancel_scope.cancel()


async def test_nothing_runs_before_somebody_wants_it(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path) as it:
        assert it.crew is not None
        await trio.sleep(1000)
        assert (it.places, it.crew.state) == ([], "idle")
        it.crew.want()
        await it.until([1001])
        assert it.crew.state == "running"


async def test_one_that_has_run_long_enough_is_replaced(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", recycle={"every": 3600}) as it:
        await it.until([1001])
        await it.look(3590)
        assert it.now == [1001]
        await it.look(20)
        assert it.places == [[1001], [1002], [1002]]  # never none
        assert it.signals == [(1001, signal.SIGTERM)]
        assert it.events_told() == [5074]


async def test_a_busy_one_is_asked_to_end_when_it_has_finished(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", recycle={"requests": 10}, stop_limit=60) as it:
        await it.until([1001])
        await it.look(1, served=10, active=1)
        await it.until([1002])
        await it.look(30, active=1)
        assert it.signals == []
        await it.look(1)
        await trio.sleep(0.1)
        assert it.signals == [(1001, signal.SIGTERM)]


async def test_one_that_never_finishes_is_killed_at_the_stop_limit(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", recycle={"requests": 10}, stop_limit=60) as it:
        await it.until([1001])
        await it.look(1, served=10, active=1)
        await it.until([1002])
        await it.look(61, active=1)
        assert it.signals == [(1001, signal.SIGKILL)]
        assert it.events_told() == [5075, 5013]


async def test_without_a_successor_the_old_one_stays(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", recycle={"requests": 10}, start_limit=5) as it:
        await it.until([1001])
        it.answers = 0
        await it.look(20, served=10)
        assert it.now == [1001]
        assert it.events_told() == [5075, 5012, 5093]
        it.answers = 200
        await it.look(20, served=10 + 9)  # the fronts count on: it is tried again after another ten
        assert it.now == [1001]
        await it.look(1, served=20)
        await it.until([1003])


async def test_starts_in_vain_do_not_end_a_worker_that_is_well(tmp_path: Path, autojump_clock: object) -> None:
    rules = {"failures": 2, "within": 3600}
    async with machine(tmp_path, start="always", recycle={"every": 60}, start_limit=5, rapid_fail=rules) as it:
        await it.until([1001])
        it.answers = 0
        await it.look(600)
        assert it.now == [1001]
        told = it.events_told()
        assert told.count(5093) > 5
        assert 5002 not in told
        it.answers = 200
        await it.another(1001)


async def test_only_an_answer_below_500_warms_it_up(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", warm_up=["/a", "/b"]) as it:
        it.answers = 503
        await trio.sleep(10)
        assert it.places == []
        it.answers = 404
        await it.until([1001])


async def test_failures_take_the_pool_out_of_service_for_a_time(tmp_path: Path, autojump_clock: object) -> None:
    rules = {"failures": 3, "within": 300, "retry_after": 120}
    async with machine(tmp_path, start="always", rapid_fail=rules) as it:
        assert it.crew is not None
        for number in (1001, 1002, 1003):
            await it.until([number])
            it.die(number)
        await trio.sleep(1)
        assert (it.now, it.crew.state) == ([], "failed")
        assert it.crew.off == "3 failures within 300 s"
        assert it.memo["off"]
        await trio.sleep(100)
        assert it.now == []
        await trio.sleep(30)
        await it.until([1004])
        assert it.events_told() == [5009, 5009, 5009, 5002]


async def test_a_process_that_cannot_be_made_counts_as_a_failure(tmp_path: Path, autojump_clock: object) -> None:
    rules = {"failures": 2, "within": 300, "retry_after": "never"}
    async with machine(tmp_path, start="always", rapid_fail=rules) as it:
        assert it.crew is not None
        it.broken = "no memory"
        await trio.sleep(1000)
        assert it.crew.state == "failed"
        assert "until `frontd pool start`" in it.said[-1]
        it.broken = ""
        it.crew.start()
        await it.another()


async def test_idle_workers_are_stopped_and_wanted_again(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, count=2, idle_stop=600) as it:
        assert it.crew is not None
        it.crew.want()
        await it.until([1001, 1002])
        await it.look(500, queue=1)
        await it.look(599)
        assert len(it.now) == 2
        await it.look(2)
        assert it.now == []
        assert it.events_told() == [5186]
        it.crew.want()
        await it.another(1001, 1002, count=2)


async def test_by_hand(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always") as it:
        crew = it.crew
        assert crew is not None
        await it.until([1001])
        crew.stop()
        await it.look(1)
        assert (it.now, crew.state, crew.off) == ([], "stopped", "stopped by hand")
        crew.want()
        await trio.sleep(100)
        assert it.now == []
        crew.start()
        await it.until([1002])
        crew.recycle()
        await it.until([1003])
        assert [] not in it.places[-3:]
        crew.restart()
        await it.look(1)
        await it.until([1004])
        assert it.events_told() == [5079]


async def test_stopped_in_the_middle_of_a_recycle(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always") as it:
        crew = it.crew
        assert crew is not None
        await it.until([1001])
        it.answers = 0
        crew.recycle()
        await trio.sleep(1)
        crew.stop()
        await it.look(3)
        assert it.now == []
        assert crew.workers == []


async def test_fewer_and_more_of_them(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", count=3) as it:
        crew = it.crew
        assert crew is not None
        first = await it.another(count=3)
        crew.change(crew.settings.model_copy(update={"count": 1}))
        await it.look(2)
        assert len(it.now) == 1
        assert {*it.now} < {*first}
        crew.change(crew.settings.model_copy(update={"count": 2}))
        second = await it.another(count=2)
        crew.change(crew.settings.model_copy(update={"environment": {"A": "b"}}))
        await it.another(*first, *second, count=2)
        assert it.events_told() == [5080, 5080]


async def test_one_fewer_while_they_start(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", count=2) as it:
        crew = it.crew
        assert crew is not None
        it.answers = 0
        await trio.sleep(1)
        crew.change(crew.settings.model_copy(update={"count": 1}))
        await trio.sleep(1)
        assert [worker.slot for worker in crew.workers] == [0]
        assert it.events_told() == []


async def test_stopped_while_a_process_is_being_made(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always") as it:
        crew = it.crew
        assert crew is not None
        it.takes = 1.0
        await trio.sleep(0.5)
        crew.stop()
        await it.look(3)
        assert crew.workers == []
        crew.start()
        await trio.sleep(0.5)
        crew.change(crew.settings.model_copy(update={"count": 2}))
        crew.change(crew.settings.model_copy(update={"count": 1}))
        await it.look(3)
        assert [worker.slot for worker in crew.workers] == [0]


async def test_a_ping_without_an_answer(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", ping={"every": 30, "wait": 90}) as it:
        await it.until([1001])
        await trio.sleep(300)
        it.answers = 0
        await trio.sleep(200)
        it.answers = 200
        await it.another(1001)
        assert it.signals[0] == (1001, signal.SIGKILL)
        assert it.events_told()[0] == 5010


async def test_bytes_that_move_are_an_answer(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", ping={"every": 30, "wait": 90}) as it:
        await it.until([1001])
        crew = it.crew
        assert crew is not None
        it.answers = 0
        for _ in range(300):
            await trio.sleep(1)
            crew.workers[0].moved += 1
        assert it.now == [1001]


async def test_a_sick_worker_is_left_to_be_looked_at(tmp_path: Path) -> None:
    """The hook is a process, so the clock is the real one."""
    found = tmp_path / "found"
    hook = [sys.executable, "-c", f"import os; os.symlink('{{pid}}', {str(found)!r})"]
    async with machine(tmp_path, start="always", ping={"every": 0.1, "wait": 0.2}, orphan=hook) as it:
        await it.until([1001])
        it.silent.add(1001)
        with trio.fail_after(30):
            while not found.is_symlink() or it.now == [1001]:  # noqa: ASYNC110 - another process makes it
                await trio.sleep(0.01)
        assert os.readlink(found) == "1001"
        assert it.now != []
        assert 1001 not in it.now
        assert it.signals == []


async def test_a_pool_that_leaves_the_configuration(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path, start="always", count=2) as it:
        crew = it.crew
        assert crew is not None
        await it.until([1001, 1002])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crew.end)
            nursery.start_soon(it.look, 3)
        assert crew.workers == []


async def test_a_worker_of_the_control_before_is_taken_over(tmp_path: Path, autojump_clock: object) -> None:
    async with machine(tmp_path) as it:
        before = it.crew
        assert before is not None
        old = await it.spawn(before, 0, 1)
        async with trio.open_nursery() as nursery:
            it.crew = crew = Crew("app", before.settings, it, it.events, {"awake": True, "number": 1})
            crew.workers.append(old)
            crew.inherited[0] = old
            nursery.start_soon(crew.run)
            await it.until([1001])
            assert it.places == [[1001]]  # nothing was said before it was known
            it.die(1001)
            await it.until([1002])
            nursery.cancel_scope.cancel()


async def test_one_of_other_settings_is_taken_over_and_replaced(tmp_path: Path, autojump_clock: object) -> None:
    """Another configuration has been committed since it was started, by an upgrade or by a control that died of it."""
    async with machine(tmp_path) as it:
        before = it.crew
        assert before is not None
        old = await it.spawn(before, 0, 1)
        async with trio.open_nursery() as nursery:
            settings = Workers.model_validate({"command": ["x", "{fd}"], "environment": {"COLOUR": "blue"}})
            it.crew = crew = Crew("app", settings, it, it.events, {"awake": True, "number": 1})
            crew.workers.append(old)
            crew.inherited[0] = old
            nursery.start_soon(crew.run)
            await it.until([1002])
            assert it.places[0] == [1001]
            assert [] not in it.places
            assert it.events_told() == [5080]
            nursery.cancel_scope.cancel()


def test_time_of_day() -> None:
    def at(hour: int, minute: int, day: int = 5) -> datetime:
        return datetime(2026, 3, day, hour, minute, 30, tzinfo=UTC)

    assert is_due("03:00", at(2, 59), at(3, 0))
    assert not is_due("03:00", at(3, 0), at(3, 1))
    assert not is_due("03:00", at(2, 50), at(2, 59))
    assert is_due("00:00", at(23, 59), at(0, 0, day=6))
    assert is_due("23:59", at(23, 58), at(0, 1, day=6))


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=1, max_size=60), st.floats(1, 50))
def test_computing_is_an_average_over_the_time_that_was_asked_for(
    steps: list[tuple[float, float]], over: float
) -> None:
    worker = Worker("app.1", 0, Address("/x", 0), 1, 0.0, 0.0)
    now = cpu = 0.0
    for seconds, share in steps:
        now, cpu = now + seconds, cpu + seconds * share
        worker.usage = Usage(0, cpu)
        percent = computing(worker, now, over)
        assert 0 <= percent <= 100.01
        assert percent == 0 or now - worker.computed[0][0] >= over


def test_what_a_session_uses() -> None:
    program = "import os, time; block = bytearray(os.urandom(1 << 20)) * 40\nwhile time.process_time() < 0.3: pass\n"
    program += "print('ready', flush=True); time.sleep(60)"
    command = ["sh", "-c", f'{sys.executable} -c "$0"; true', program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            usage = usage_of(child.pid)
            assert usage.private > 40 << 20
            assert usage.cpu >= 0.25
        finally:
            subprocess.run(["pkill", "-9", "-s", str(child.pid)], check=False)
    assert usage_of(child.pid).private == 0
