"""What the control socket answers about supervised pools: who runs, what happened, and the verbs of people.

| request | answer |
|---|---|
| ``GET /workers`` | every pool with ``workers:``, its state, and each of its workers |
| ``GET /events`` | the latest events, oldest first (`frontd.processes.events`) |
| ``POST /pool/start``, ``stop``, ``recycle``, ``restart`` ``?name=`` | what the pool is; the rest takes its time |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from frontd.processes.calls import Answerer, Call, Reply, as_json
from frontd.processes.crew import Crew
from frontd.processes.events import Events
from frontd.processes.status import iso
from frontd.processes.usage import NOTHING, Usage, usages
from frontd.processes.worker import Worker


class PoolDesk:
    """Answers for `crews`, by name."""

    def __init__(self, crews: Mapping[str, Crew], events: Events, remark: Callable[[str], None]) -> None:
        self.crews = crews
        self.events = events
        self.remark = remark
        self.endpoints: dict[tuple[str, str], Answerer] = {
            ("GET", "/workers"): self.workers,
            ("GET", "/events"): self.latest,
            ("POST", "/pool/start"): self.start,
            ("POST", "/pool/stop"): self.stop,
            ("POST", "/pool/recycle"): self.recycle,
            ("POST", "/pool/restart"): self.restart,
        }

    async def workers(self, _: Call) -> Reply:
        """All supervised pools."""
        used = usages(worker.pid for crew in self.crews.values() for worker in crew.workers)
        return as_json({"pools": [facts(crew, used) for crew in self.crews.values()]})

    async def latest(self, _: Call) -> Reply:
        """The latest events."""
        return as_json({"events": list(self.events.latest)})

    async def start(self, call: Call) -> Reply:
        """Put a pool back into service, and have its workers run."""
        return self._do(call, Crew.start)

    async def stop(self, call: Call) -> Reply:
        """Take a pool out of service: 503 ``AppOffline``, until it is started."""
        return self._do(call, Crew.stop)

    async def recycle(self, call: Call) -> Reply:
        """Replace the workers of a pool, each when its successor answers."""
        return self._do(call, Crew.recycle)

    async def restart(self, call: Call) -> Reply:
        """End the workers of a pool and start others; requests wait meanwhile."""
        return self._do(call, Crew.restart)

    def _do(self, call: Call, verb: Callable[[Crew], None]) -> Reply:
        name = call.argument("name")
        crew = self.crews.get(name)
        what = f"{call.path.removeprefix('/').replace('/', ' ')} {name}"
        if crew is None:
            known = ", ".join(self.crews) or "there is none"
            self.remark(f"audit: {what} by {call.caller}: refused, no such pool")
            return as_json({"error": f"there is no pool {name!r} with workers; known: {known}"}, 404)
        verb(crew)
        self.remark(f"audit: {what} by {call.caller}: ok")
        return as_json(facts(crew, usages(worker.pid for worker in crew.workers)))


def facts(crew: Crew, used: Mapping[int, Usage]) -> dict[str, Any]:
    """A pool and its workers, as `frontd show workers` tells of them; `used` is what they use, by pid."""
    return {
        "name": crew.name, "state": crew.state, "off": crew.off,
        "until": iso(crew.until) if crew.off and crew.until is not None else None,
        "count": crew.settings.count, "start": crew.settings.start, "failures": len(crew.failures),
        "start_limit": crew.settings.start_limit, "stop_limit": crew.settings.stop_limit,
        "workers": [
            worker_facts(worker, used.get(worker.pid, NOTHING))
            for worker in sorted(crew.workers, key=lambda one: one.pid)
        ],
    }  # fmt: skip


def worker_facts(worker: Worker, usage: Usage) -> dict[str, Any]:
    """One worker; `active` and `served` are as of the last second, `memory` in bytes, `cpu` in seconds."""
    return {
        "pid": worker.pid, "slot": worker.slot, "state": worker.state, "address": str(worker.address),
        "since": iso(worker.since), "active": worker.active, "served": worker.served,
        "leaves": worker.order[1] or "stopped" if worker.order is not None else None,
        "memory": usage.private, "cpu": round(usage.cpu, 2),
    }  # fmt: skip
