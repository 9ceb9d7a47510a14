"""The workers of one pool: started, watched, replaced and stopped as its configuration says (WAS).

How it works
------------
A pool has as many slots as ``workers.count``, and each is looked after by one task, `_keep`, which reads as a worker's
life: wait until one is wanted, start it, wait until it answers, have the fronts send it requests, wait until it is
over, and begin again.  A worker that is to be replaced keeps its place until its successor answers (overlapped); then
it gets no more requests, finishes what it has, and ends.

What happens elsewhere comes as plain calls that change state and wake who waits: `gone` (a process has ended), `want`
(requests wait in a front), `seen` (how busy the fronts keep the workers, every second), and the verbs of the command
line.  Decisions are made there, at once; the tasks do what takes time.

Invariants
----------
* A worker is among the places of the fronts from the moment it has answered until it is known to be gone or is asked to
  leave; it is asked to end only when no exchange is left on it, or at the stop limit.
* A failure (ended by itself, not ready in time, ping missed) is counted once; `rapid_fail.failures` of them within its
  time take the pool out of service, and nothing is started then.  What does not start while another worker serves is
  told and not counted: a broken deployment does not end the workers that are well.
* Everything waits for a bounded time, and a process that does not do what it is asked for is killed.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import trio

from frontd.config.workers import Workers
from frontd.processes.events import Events
from frontd.processes.probe import RETRY, NoAnswer, answer_or_gone, until_ready
from frontd.processes.usage import usage_of
from frontd.processes.worker import Worker, computing, is_due, judge, program_of

PAUSE_FIRST, PAUSE_LAST = 0.1, 5.0  # s before a worker that failed is started again, doubling
SPARED = 60.0  # s before a worker whose successor did not start is found too large again
MEASURE = 5.0  # s between two looks at memory and computing


class CannotStart(Exception):
    """No process could be made; the text says why."""


class Hands(Protocol):
    """What a crew has done for it."""

    async def spawn(self, crew: Crew, slot: int, number: int) -> Worker:
        """Start a process.  Raises `CannotStart`."""

    def signal(self, worker: Worker, number: int) -> None:
        """Send a worker a signal; SIGKILL goes to all of its processes."""

    def publish(self, crew: Crew) -> None:
        """Tell the fronts where the workers of a crew are."""

    def note(self, worker: Worker) -> None:
        """Have the master know what the next control must know of a worker."""

    def remember(self) -> None:
        """Have the master know what the next control must know of all crews."""


class Crew:
    """All workers of the pool `name`."""

    def __init__(
        self, name: str, settings: Workers, hands: Hands, events: Events, memo: dict[str, Any] | None = None
    ) -> None:
        self.name = name
        self.settings = settings
        self.hands = hands
        self.events = events
        memo = memo or {}
        self.off: str = memo.get("off", "")  # why it is out of service
        self.until: float | None = memo.get("until")  # s since the epoch, when it is tried again
        self.awake: bool = memo.get("awake", False) or settings.start == "always"  # whether workers are wanted
        self.number: int = memo.get("number", 0)  # of the worker that was started last
        self.failures: deque[float] = deque(memo.get("failures", ()), maxlen=settings.rapid_fail.failures)
        self.workers: list[Worker] = []  # all that run
        self.inherited: dict[int, Worker] = {}  # by slot: those that run since before this control
        self.busy_at = 0.0
        self._pause = PAUSE_FIRST
        self._served = -1
        self._measured = 0.0
        self._scheduled = datetime.now(UTC)
        self._changed = trio.Event()
        self._slots: dict[int, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    # ------------------------------------------------------------------ what there is

    @property
    def ready(self) -> list[Worker]:
        """Those that get requests."""
        return [worker for worker in self.workers if worker.state == "ready"]

    @property
    def is_settled(self) -> bool:
        """Whether it is known of every worker of the control before whether it answers."""
        return not self.inherited

    def memo(self) -> dict[str, Any]:
        """What the next control must know."""
        return {
            "off": self.off, "until": self.until, "awake": self.awake, "number": self.number,
            "failures": list(self.failures),
        }  # fmt: skip

    @property
    def state(self) -> str:
        """One word for people."""
        if self.off:
            return "stopped" if self.until is None and not self.failures else "failed"
        if self.ready:
            return "running"
        return "starting" if self.awake else "idle"

    # ------------------------------------------------------------------ a worker's life

    async def run(self) -> None:
        """Keep workers as configured until cancelled."""
        self.busy_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._fill()
            nursery.start_soon(self._try_again)
            await trio.sleep_forever()

    def _fill(self) -> None:
        """One task for each slot."""
        assert self._nursery is not None
        for slot in range(self.settings.count):
            if slot not in self._slots:
                scope = self._slots[slot] = trio.CancelScope()
                self._nursery.start_soon(self._keep, slot, scope)

    async def _keep(self, slot: int, scope: trio.CancelScope) -> None:
        try:
            await self._live(slot, scope)
        finally:
            if scope.cancel_called:  # the slot is gone: what was just starting there is nobody's
                for worker in [one for one in self.workers if one.slot == slot and one.state == "starting"]:
                    self._kill(worker)

    async def _live(self, slot: int, scope: trio.CancelScope) -> None:
        with scope:
            worker = await self._take_over(slot)
            while True:
                if worker is None:
                    await self._until_wanted()
                    worker = await self._started(slot)
                    if worker is None:
                        await self._rest()
                        continue
                    self._take_in(worker)
                await worker.over.wait()
                number, text = worker.order or (0, "")
                if worker.gone.is_set() or worker.state == "orphan":
                    worker = None
                elif not number:
                    self._let_go(worker)
                    worker = None
                else:
                    worker = await self._replaced(worker, number, text)

    async def _take_over(self, slot: int) -> Worker | None:
        """The worker that the control before has left in this slot, if it answers."""
        worker = self.inherited.get(slot)
        if worker is None:
            return None
        answers = await self._answers(worker)
        del self.inherited[slot]
        if answers:
            self._take_in(worker)
            if worker.program != program_of(self.settings):  # of a configuration before the one that serves now
                worker.ask(5080, "its configuration has changed")
            return worker
        self._changed_now()
        return None

    async def _until_wanted(self) -> None:
        while self.off or not self.awake:
            await self._changed.wait()

    async def _started(self, slot: int) -> Worker | None:
        """A new worker that answers; None when there is none, which has been counted."""
        self.number += 1
        self.hands.remember()  # a number stands for one process, whatever becomes of this control
        try:
            with trio.CancelScope(shield=True):  # a process that nobody waits for would run for ever
                worker = await self.hands.spawn(self, slot, self.number)
        except CannotStart as error:
            self._failed(5009, f"a worker cannot be started: {error}", counts=not self.ready)
            return None
        self.workers.append(worker)
        if self.off:  # it was taken out of service meanwhile
            self._kill(worker)
        if await self._answers(worker):
            self._pause = PAUSE_FIRST
            return worker
        return None

    async def _answers(self, worker: Worker) -> bool:
        """Wait until a worker answers; False: it has ended or has been killed, which has been counted."""
        why_not = await until_ready(worker, self.settings.warm_up, self.settings.start_limit)
        if why_not and not worker.gone.is_set():
            text = f"worker {worker.pid} was not ready within {self.settings.start_limit:g} s ({why_not})"
            self._failed(5012, f"{text}; it is killed", counts=not self.ready, pid=worker.pid)
            self._kill(worker)
        return not why_not

    def _take_in(self, worker: Worker) -> None:
        """From now on it gets requests."""
        assert self._nursery is not None
        if worker.gone.is_set():
            return
        worker.state = "ready"
        self.busy_at = trio.current_time()
        self.hands.note(worker)
        self.hands.publish(self)
        if self.settings.ping is not None:
            self._nursery.start_soon(self._ping, worker)

    async def _replaced(self, worker: Worker, number: int, text: str) -> Worker | None:
        """The successor of a worker that is to be recycled; that worker itself when there is none to be had."""
        self.events.tell(number, self.name, f"worker {worker.pid} is replaced: {text}", pid=worker.pid)
        successor = await self._started(worker.slot)
        if successor is None and worker.state == "leaving":  # the pool has been stopped meanwhile
            self._let_go(worker)
            return None
        if successor is None:
            self.events.tell(5093, self.name, f"worker {worker.pid} stays: its successor did not start")
            worker.order, worker.over = None, trio.Event()
            worker.began = trio.current_time()  # the next try is a whole period away
            worker.spared, worker.spared_until = worker.served, trio.current_time() + SPARED
            if worker.gone.is_set():
                return None
            return worker
        worker.state = "leaving"  # both in one message: no request finds neither
        self._take_in(successor)
        self._let_go(worker)
        return successor

    def _let_go(self, worker: Worker) -> None:
        """It gets no more requests, and ends when it has finished those it has."""
        assert self._nursery is not None
        worker.state, worker.is_asked, worker.left_at = "leaving", True, trio.current_time()
        worker.active = None
        self.hands.note(worker)
        self.hands.publish(self)
        self._nursery.start_soon(self._retire, worker)

    async def _retire(self, worker: Worker) -> None:
        with trio.move_on_after(self.settings.stop_limit):
            while worker.active != 0 and not worker.gone.is_set():
                await self._changed.wait()
            self.hands.signal(worker, signal.SIGTERM)
            await worker.gone.wait()
        if not worker.gone.is_set():
            limit = self.settings.stop_limit
            self.events.tell(
                5013, self.name, f"worker {worker.pid} did not end within {limit:g} s; it is killed", pid=worker.pid
            )
            self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        worker.is_asked = True
        self.hands.signal(worker, signal.SIGKILL)

    # ------------------------------------------------------------------ failures

    def _failed(self, number: int, text: str, *, counts: bool = True, **facts: object) -> None:
        """Tell of a failure, count it, and stop trying when there were too many."""
        now, rules = time.time(), self.settings.rapid_fail
        self.events.tell(number, self.name, text, **facts)
        if not counts:
            self._changed_now()
            return
        self.failures.append(now)
        if len(self.failures) >= rules.failures and now - self.failures[0] <= rules.within and not self.off:
            self.off = f"{len(self.failures)} failure{'s' * (rules.failures > 1)} within {rules.within:g} s"
            never = rules.retry_after == float("inf")
            self.until = None if never else now + rules.retry_after
            again = "until `frontd pool start`" if never else f"for {rules.retry_after:g} s"
            self.events.tell(5002, self.name, f"out of service {again}: {self.off}; the last: {text}")
            self._stop_all()
        self.hands.remember()
        self._changed_now()

    async def _rest(self) -> None:
        """Pause before the next try."""
        pause, self._pause = self._pause, min(self._pause * 2, PAUSE_LAST)
        await trio.sleep(pause)

    async def _try_again(self) -> None:
        """Put a pool that failed back into service when its time has come."""
        while True:
            if self.off and self.until is not None:
                with trio.move_on_after(max(0.0, self.until - time.time())):
                    await self._changed.wait()
                    continue
                self.start()
            await self._changed.wait()

    # ------------------------------------------------------------------ what happens elsewhere

    def gone(self, worker: Worker, how: str) -> None:
        """A process has ended."""
        worker.how = how
        self.workers.remove(worker)
        was_ready = worker.state == "ready"
        worker.gone.set()
        worker.over.set()
        if was_ready:
            self.hands.publish(self)
        if not worker.is_asked:
            while_starting = " while it started" if worker.state == "starting" else ""
            text = f"worker {worker.pid} ended unexpectedly{while_starting} ({how})"
            self._failed(5009, text, counts=not (while_starting and self.ready), pid=worker.pid)
        self._changed_now()

    def want(self) -> None:
        """Requests wait, and there is no worker (HTTP.sys: the demand start of a request queue)."""
        if not self.off and not self.awake:
            self.awake = True
            self.busy_at = trio.current_time()
            self.hands.remember()
            self._changed_now()

    def seen(self, queue: int, now: float) -> None:
        """The fronts have said how busy they keep the workers; `queue`: requests that wait."""
        served = sum(worker.served for worker in self.workers)
        if queue or served != self._served or any(worker.active for worker in self.workers):
            self.busy_at, self._served = now, served
        measure = now - self._measured >= MEASURE
        if measure:
            self._measured = now
        wall, scheduled = datetime.now(UTC), self._scheduled
        self._scheduled = wall
        on_schedule = any(is_due(at, scheduled, wall) for at in self.settings.recycle.at)
        for worker in self.ready:
            judge(worker, self.settings.recycle, now, on_schedule=on_schedule)
            if measure and (self.settings.recycle.private_memory is not None or self.settings.cpu is not None):
                self._measure(worker, now)
        idle = self.settings.idle_stop
        if idle is not None and self.ready and not self.off and now - self.busy_at >= idle:
            self.events.tell(5186, self.name, f"no request for {idle:g} s; it is stopped until the next one")
            self.awake = False
            self._stop_all()
            self.hands.remember()
        self._changed_now()

    def _measure(self, worker: Worker, now: float) -> None:
        """Look at what a worker uses, and do what is said for too much of it."""
        worker.usage = usage_of(worker.pid)
        most, cpu = self.settings.recycle.private_memory, self.settings.cpu
        if most is not None and worker.usage.private >= most and now >= worker.spared_until:
            worker.ask(5117, f"it has {worker.usage.private} bytes of private memory")
        if cpu is None or (percent := computing(worker, now, cpu.over)) <= cpu.limit:
            return
        worker.computed.clear()
        text = f"worker {worker.pid} computes {percent:.0f} % of a core, the limit is {cpu.limit} %"
        self.events.tell(None, self.name, text, pid=worker.pid)
        if cpu.action == "recycle":
            worker.ask(5079, "it computes too much")
        elif cpu.action == "kill":
            self.hands.signal(worker, signal.SIGKILL)  # its end counts as a failure

    async def _ping(self, worker: Worker) -> None:
        """Kill a worker that neither answers nor moves a byte."""
        ping = self.settings.ping
        assert ping is not None
        while worker.state == "ready" and not worker.gone.is_set():
            with trio.move_on_after(ping.every):
                await worker.gone.wait()
                return
            before, answered = worker.moved, False
            with trio.move_on_after(ping.wait):
                while not answered and not worker.gone.is_set():
                    with suppress(NoAnswer):
                        await answer_or_gone(worker, ping.path)
                        answered = True
                    if not answered:
                        await trio.sleep(RETRY)
            if answered or worker.moved != before or worker.state != "ready" or worker.gone.is_set():
                continue
            text = f"worker {worker.pid} did not answer a ping within {ping.wait:g} s"
            if self.settings.orphan:
                self._orphan(worker)
            else:
                self._kill(worker)
            self._failed(5010, text, pid=worker.pid)
            return

    def _orphan(self, worker: Worker) -> None:
        """Leave a sick worker alive for somebody to look at, and take another one."""
        command = [word.replace("{pid}", str(worker.pid)) for word in self.settings.orphan]
        worker.state, worker.is_asked = "orphan", True
        worker.ask(0, "")
        worker.over.set()
        self.hands.note(worker)
        self.hands.publish(self)
        assert self._nursery is not None
        self._nursery.start_soon(self._run_hook, command)

    async def _run_hook(self, command: Sequence[str]) -> None:
        try:
            with trio.move_on_after(self.settings.stop_limit):
                await trio.run_process(command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.events.tell(None, self.name, f"the command for orphans failed: {error}")

    # ------------------------------------------------------------------ verbs

    def stop(self) -> None:
        """Take the pool out of service: what waits is refused, and the workers end."""
        self.off, self.until = "stopped by hand", None
        self.failures.clear()
        self._stop_all()
        self.hands.remember()
        self._changed_now()

    def start(self) -> None:
        """Put it back into service."""
        self.off, self.until = "", None
        self.failures.clear()
        self._pause = PAUSE_FIRST
        self.awake = True
        self.hands.publish(self)
        self.hands.remember()
        self._changed_now()

    def recycle(self, number: int = 5079, text: str = "on demand") -> None:
        """Replace every worker; each keeps its place until its successor answers."""
        for worker in self.ready:
            worker.ask(number, text)

    def restart(self) -> None:
        """End every worker and start others; requests wait meanwhile."""
        self._stop_all()
        self.start()

    def change(self, settings: Workers) -> None:
        """The configuration has changed."""
        old, self.settings = self.settings, settings
        if program_of(old) != program_of(settings):
            self.recycle(5080, "its configuration has changed")
        self.failures = deque(self.failures, maxlen=settings.rapid_fail.failures)
        self.awake = self.awake or settings.start == "always"
        for slot in [slot for slot in self._slots if slot >= settings.count]:
            self._slots.pop(slot).cancel()
            for worker in [one for one in self.ready if one.slot == slot]:
                self._let_go(worker)
        if self._nursery is not None:
            self._fill()
        self._changed_now()

    def _stop_all(self) -> None:
        """Have every worker end."""
        for worker in list(self.workers):
            if worker.state == "ready":
                worker.ask(0, "")
                worker.state = "leaving"
            elif worker.state == "starting":
                self._kill(worker)
        self.hands.publish(self)

    def _changed_now(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def end(self) -> None:
        """The pool is no longer in the configuration: end all of its workers, then `run`."""
        for scope in self._slots.values():
            scope.cancel()
        for worker in list(self.workers):
            if worker.state == "ready":
                self._let_go(worker)
            elif worker.state == "starting":
                self._kill(worker)
        for worker in list(self.workers):
            if worker.state != "orphan":
                await worker.gone.wait()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
