"""One worker as control knows it, and when it has served long enough."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b

import trio

from frontd.config.workers import Recycle, Workers
from frontd.processes.usage import NOTHING, Usage
from frontd.upstream.client import Address

# What a running worker has to be replaced for when it changes.
PROGRAM = ("app", "command", "environment", "clear_environment", "directory", "rlimits", "cpus", "user")


@dataclass(eq=False, slots=True)
class Worker:
    """A process of a pool.  `since` is its start (s since the epoch), `began` the same on trio's clock; `order` is why
    it shall leave: the number of an event (0: it is stopped) and a sentence."""

    key: str
    slot: int
    address: Address
    pid: int
    since: float
    began: float
    state: str = "starting"  # starting | ready | leaving
    gone: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)
    order: tuple[int, str] | None = None
    how: str = ""  # it ended
    is_asked: bool = False  # to end: its end is no failure
    left_at: float = 0.0  # when it ceased to be a place
    active: int | None = None  # exchanges on it, over all fronts; None: not every front has said
    served: int = 0
    spared: int = 0  # of them, those before its successor did not start
    moved: int = 0
    spared_until: float = 0.0  # on trio's clock: it is not found too large before
    program: str = ""  # which it was started as (`program_of`)
    usage: Usage = NOTHING
    computed: deque[tuple[float, float]] = field(default_factory=deque)  # (when, seconds of computing until then)

    def ask(self, number: int, text: str) -> None:
        """Have it leave, for the first reason that comes."""
        if self.order is None:
            self.order = number, text
            self.over.set()


def program_of(settings: Workers) -> str:
    """A short word for what is run: another one for other settings that concern the process itself."""
    parts = [getattr(settings, name) for name in PROGRAM]
    if settings.app is not None and settings.app.startswith("wsgi:"):
        parts.append(settings.concurrency)  # its number of threads
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def computing(worker: Worker, now: float, over: float) -> float:
    """Percent of a core that a worker has used on average over the last `over` s; 0 before it is known."""
    samples = worker.computed
    samples.append((now, worker.usage.cpu))
    while len(samples) > 2 and samples[1][0] <= now - over:
        samples.popleft()
    (then, before) = samples[0]
    return 100 * (worker.usage.cpu - before) / (now - then) if now - then >= over else 0.0


def judge(worker: Worker, rules: Recycle, now: float, *, on_schedule: bool) -> None:
    """Ask a worker to leave when it is old enough, has had enough requests, or the schedule says so."""
    if rules.every is not None and now - worker.began >= rules.every:
        worker.ask(5074, f"it has run for {rules.every:g} s")
    if rules.requests is not None and worker.served - worker.spared >= rules.requests:
        worker.ask(5075, f"it has had {worker.served} requests")
    if on_schedule:
        worker.ask(5076, "the schedule says so")


def is_due(at: str, before: datetime, now: datetime) -> bool:
    """Whether the time of day `at` (``HH:MM``, UTC) lies after `before` and not after `now`."""
    hour, minute = map(int, at.split(":"))
    due = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if due > now:
        due -= timedelta(days=1)
    return before < due
