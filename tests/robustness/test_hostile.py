"""Mixed hostile traffic leaves nothing behind: no file, no task, no connection, no memory.

``FRONTD_HOSTILE_SECONDS=60`` makes it longer (10 s); ``FRONTD_HOSTILE_SEED`` repeats one that failed.
"""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest
import trio

from tests.net.pki import Pki
from tests.processes.house import House, serving, settings
from tests.robustness.hostile import KINDS, TIMEOUTS, Mob, rude_app
from tests.wire import app, front

SECONDS = float(os.environ.get("FRONTD_HOSTILE_SECONDS", "10"))
SEED = int(os.environ.get("FRONTD_HOSTILE_SEED", random.randrange(1 << 32)))
GROWTH = 4 * 1024 * 1024  # bytes of a front; if each visit left a connection behind it would be more
WAIT = 30.0  # s for all timers

pytestmark = pytest.mark.timeout(120 + 3 * SECONDS)


def files(pid: int | str = "self") -> list[str]:
    """What a process has open, without the numbers that name a single socket or pipe."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0])
        except OSError:  # the one that lists them
            continue
    return sorted(found)


def tasks() -> int:
    """How many tasks there are under the root of this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    number, waiting = 0, [root]
    while waiting:
        task = waiting.pop()
        number += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return number


def told(mob: Mob, what: str) -> None:
    print(f"seed {SEED}: {sum(mob.visits.values())} visits, {dict(mob.visits)}; {what}")
    assert set(mob.visits) - {"answered"} == {kind.__name__ for kind in KINDS}
    assert mob.visits["answered"]


async def test_what_a_front_holds_afterwards(pki: Pki, tmp_path: Path) -> None:
    """In this process, where everything can be counted."""
    async with app(rude_app) as it:
        text = f"""
listen: {{http: {{port: 0}}, https: {{port: 0}}}}
tls: {{certificates: [{pki.entry("a")}], default: a.test}}
{TIMEOUTS}
sites: {{main: {{urls: ["http://*/", "https://*/"], routes: {{/: app}}}}}}
pools: {{app: {{targets: ["{it.url}"], concurrency: 30}}}}
"""
        async with front(text, tmp_path) as stage:
            service, (pool,) = stage.front.service, stage.front.pools.values()
            mob = Mob(stage.port("http"), stage.port("https"), random.Random(SEED))

            async def all_quiet() -> None:
                with trio.fail_after(WAIT):
                    while service.connections or any(place.active or place.idle for place in pool.places):  # noqa: ASYNC110 - counters
                        await trio.sleep(0.05)
                await trio.sleep(0.1)
                gc.collect()

            await mob.rage(1)
            await all_quiet()
            before, tasks_before, streams = files(), tasks(), len(service.reactor.streams)
            mob.visits.clear()
            await mob.rage(SECONDS / 2)
            await all_quiet()
            told(mob, f"reasons {stage.reasons}")
            assert not service.reactor.streams
            assert streams == 0
            assert files() == before
            assert tasks() <= tasks_before
            assert not service.connections
            assert service.crowd.mine == 0
            assert all(not count for count in service.by_listener.values())
            assert "Traceback" not in stage.log("error")


async def test_what_a_process_holds_afterwards(pki: Pki, tmp_path: Path) -> None:
    """A family with one front: the files and the memory of its processes."""
    async with app(rude_app) as it:
        extra = f"tls: {{certificates: [{pki.entry('a')}], default: a.test}}"
        path = settings(tmp_path, it.url, listen="http: {port: 0}, https: {port: 0}", extra=extra)
        text = path.read_text().replace("fronts: 2", "fronts: 1").replace('["http://*/"]', '["http://*/", "https://*/"]')
        path.write_text(text.replace("timeouts: {drain: 8s}", TIMEOUTS.strip()))
        async with serving(path) as house:
            mob = Mob(house.ports[0], house.ports[1], random.Random(SEED))
            (pid,) = await house.fronts()
            await mob.rage(SECONDS)  # caches and the allocator have most of what they will ever have
            await quiet(house)
            before, memory = files(pid), resident(pid)
            mob.visits.clear()
            await mob.rage(SECONDS)
            await quiet(house)
            grown = resident(pid) - memory
            told(mob, f"resident {memory / 2**20:.1f} MiB, grown by {grown / 2**20:.2f} MiB")
            assert files(pid) == before
            assert grown < GROWTH
            assert (await house.fronts()) == [pid]
            assert (await house.get())[0] == 200
        assert "Traceback" not in (tmp_path / "error.log").read_text()


async def quiet(house: House) -> None:
    """Wait until no client is connected, and no connection to the app is kept."""
    with trio.fail_after(WAIT):
        while True:
            status = await house.status()
            kept = sum(target["idle"] + target["active"] for pool in status["pools"] for target in pool["targets"])
            if not status["connections"] and not kept:
                return
            await trio.sleep(0.1)


def resident(pid: int) -> int:
    """Bytes of resident memory that are this process's alone."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Private_Dirty")
