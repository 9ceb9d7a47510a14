"""Control's part in pools with ``workers:`` — it starts them, tells the fronts where they are, and sees them end.

How it works
------------
    front                    control                                          master
    wanted (pool) ────────▶  crew: start one  ── spawn (order) ────────────▶  exec, its own session
                             crew: does it answer?
                  ◀───────── places (pool: address, …)
    load ◀───────────────── every second
         ───────────────▶    crew: idle? recycle? has the old one finished?
                             worker gone ◀──────────────────────────────────  reaped

A crew (`frontd.processes.crew`) decides; this module has the connections to both sides.  What the next control must
know lies with the master: of each worker a note, of each crew a memo.

Invariants
----------
* The fronts are told of a crew only when it is known of every worker that an earlier control has left whether it
  answers: a control that was killed takes no place away.
* Lines that workers write go into the error log whole, bounded in length, with the pool's name and without controls.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from frontd.config.model import Config
from frontd.config.workers import Workers
from frontd.processes.channel import Message
from frontd.processes.crew import CannotStart, Crew
from frontd.processes.events import Events
from frontd.processes.family import Family, Member
from frontd.processes.fronts import LEAVING
from frontd.processes.line import Gone
from frontd.processes.master import how
from frontd.processes.presets import NoServer, command_of, obstacle, variables_of
from frontd.processes.runtime import BuildProblem
from frontd.processes.worker import Worker, program_of
from frontd.upstream.client import Address
from frontd.upstream.targets import address_of

LOOK = 1.0  # s between two looks at how busy workers are
LOOK_LEAVING = 0.1  # the same while a worker finishes what it has
SPAWNS = 4  # orders at once: each is up to 32 KiB, the channel to the master holds 208, and it starts one at a time
SPAWN_TIME = 20.0  # s for the master to start a process
STOP_LIMIT = 90.0  # s for workers of a pool that is gone: IIS's, since nobody knows any more what was configured
LONGEST_LINE = 4096  # bytes of a line that a worker writes
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class Supervisor:
    """All crews."""

    def __init__(self, family: Family, memo: dict[str, Any], inherited: list[str]) -> None:
        self.family = family
        self.events = Events(family.remark, family.config.log.events)
        self.crews: dict[str, Crew] = {}
        self._memo: dict[str, Any] = memo.get("crews", {})  # of pools that are not configured now
        self._ending: list[Crew] = []  # whose pool is no longer configured, as long as they have workers
        self._inherited = set(inherited)  # keys of workers of the control before, until they have been told
        self._news = trio.Event()
        self._is_told = trio.Event()
        if not inherited:
            self._is_told.set()
        self._before: dict[str, tuple[Worker, int]] = {}
        self._trusted = family.config.trusted_proxies
        self._nursery: trio.Nursery | None = None
        self._spawns = trio.Semaphore(SPAWNS)
        self._wanted: set[str] = set()  # before there were crews
        family.watchers.append(self)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all workers until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._is_told.wait()
            self._fit(self.family.config)
            for worker, _ in self._before.values():
                nursery.start_soon(self._dismiss, worker)
            self.wanted([*self._wanted])
            for member in self.family.members.values():
                if member.generation:
                    self.ready(member)
            while True:
                leaving = any(one.state == "leaving" for crew in self._all for one in crew.workers)
                with trio.move_on_after(LOOK_LEAVING if leaving else LOOK):
                    await self._news.wait()
                    continue
                if any(crew.workers for crew in self._all):
                    await self._look()

    # ------------------------------------------------------------------ the configuration

    def check(self, config: Config) -> None:
        """Raises `BuildProblem` when workers of `config` cannot be started here."""
        check_workers(config)

    def committed(self, config: Config) -> None:
        """Another configuration is about to serve."""
        if not self._is_told.is_set():
            return  # it is looked at when everything is told
        self.events.path = config.log.events
        self._fit(config)

    def _fit(self, config: Config) -> None:
        """Have one crew for each pool that has workers."""
        assert self._nursery is not None
        wanted = {name: pool.workers for name, pool in config.pools.items() if pool.workers is not None}
        for name in self.crews.keys() - wanted.keys():
            self._nursery.start_soon(self._end, self.crews.pop(name))
        for name, settings in wanted.items():
            crew = self.crews.get(name)
            if crew is None:
                self.crews[name] = crew = Crew(name, settings, self, self.events, self._memo.pop(name, None))
                self._take_over(crew)
                self._nursery.start_soon(crew.run)
            elif crew.settings != settings:
                crew.change(settings)
            elif settings.app is not None and config.trusted_proxies != self._trusted:
                crew.recycle(5080, "trusted_proxies has changed")
        self._trusted = config.trusted_proxies
        self._tell_news()

    async def _end(self, crew: Crew) -> None:
        """End a crew whose pool is no longer configured.  A pool of that name may come back while its workers finish
        what they have: it counts on, since a number stands for one process."""
        self._memo[crew.name] = {"number": crew.number}
        self._ending.append(crew)
        await crew.end()
        self._ending.remove(crew)

    @property
    def _all(self) -> list[Crew]:
        """Every crew that may have workers."""
        return [*self.crews.values(), *self._ending]

    def _take_over(self, crew: Crew) -> None:
        """Give a crew the workers that the control before has left of it."""
        mine = [(worker, slot) for worker, slot in self._before.values() if worker.key.rpartition(".")[0] == crew.name]
        for worker, slot in mine:
            del self._before[worker.key]
            crew.number = max(crew.number, int(worker.key.rpartition(".")[2]))
            crew.workers.append(worker)
            if worker.state != "leaving" and slot < crew.settings.count and slot not in crew.inherited:
                worker.state = "starting"
                crew.inherited[slot] = worker
            else:
                worker.state, worker.is_asked = "leaving", True
                self.signal(worker, signal.SIGTERM)

    async def _dismiss(self, worker: Worker) -> None:
        """End a worker of the control before whose pool is no longer configured; fronts that drain may still ask it."""
        with trio.move_on_after(STOP_LIMIT):
            while self.family.of(LEAVING):
                await self.family.news.wait()
            self.signal(worker, signal.SIGTERM)
            await worker.gone.wait()
        if not worker.gone.is_set():
            self.signal(worker, signal.SIGKILL)

    # ------------------------------------------------------------------ the fronts

    def ready(self, member: Member) -> None:
        """A front has begun to serve."""
        if (said := self._places([crew for crew in self.crews.values() if crew.is_settled])) is not None:
            member.line.tell(said)

    def wanted(self, pools: list[str]) -> None:
        """Requests wait for workers that nobody has started."""
        for name in pools:
            if (crew := self.crews.get(name)) is not None:
                crew.want()
            elif not self.crews:
                self._wanted.add(name)

    def publish(self, crew: Crew) -> None:
        """Tell the fronts where the workers of a crew are."""
        if crew.is_settled and (said := self._places([crew])) is not None:
            self.family.tell_all(said)
        self._tell_news()

    @staticmethod
    def _places(crews: list[Crew]) -> dict[str, Any] | None:
        if not crews:
            return None
        pools = {crew.name: [str(worker.address) for worker in crew.ready] for crew in crews}
        return {"do": "places", "pools": pools, "off": {crew.name: crew.off for crew in crews if crew.off}}

    async def _look(self) -> None:
        """Ask the fronts how busy they keep the workers."""
        asked_at = trio.current_time()
        answers = await self.family.ask_all({"do": "load"})
        complete = None not in answers
        for crew in self._all:
            loads = [one["pools"][crew.name] for one in answers if one is not None and crew.name in one["pools"]]
            for worker in crew.workers:
                rows = [row for load in loads if (row := load["places"].get(str(worker.address))) is not None]
                worker.served = max(worker.served, sum(row["served"] for row in rows))
                worker.moved = sum(row["moved"] for row in rows)
                if complete and asked_at > worker.left_at:
                    worker.active = sum(row["active"] for row in rows)
            crew.seen(sum(load["queue"] for load in loads), trio.current_time())

    # ------------------------------------------------------------------ the master

    async def spawn(self, crew: Crew, slot: int, number: int) -> Worker:
        """Have the master start a process.  Raises `CannotStart`."""
        settings = crew.settings
        try:
            command = command_of(settings)
        except NoServer as error:
            raise CannotStart(str(error)) from None
        key = f"{crew.name}.{number}"
        path = self._folder() / crew.name.replace("/", "_") / f"{number}.sock"
        bind = any("{fd}" in word for word in command)
        port = free_port() if any("{port}" in word for word in command) else 0
        address = Address("127.0.0.1", port) if port else Address(str(path), 0)
        command = tuple(word.replace("{socket}", str(path)).replace("{port}", str(port)) for word in command)
        order: dict[str, Any] = {
            "key": key, "command": command, "user": settings.user,
            "environment": environment_of(settings) | variables_of(settings, self._trusted),
            "path": None if port else str(path), "bind": bind, "rlimits": settings.rlimits, "cpus": settings.cpus,
            "directory": str(settings.directory) if settings.directory else None,
        }  # fmt: skip
        program = program_of(settings)
        order["note"] = note_of(crew.name, slot, address, "starting", program)
        try:
            async with self._spawns:
                said = await self.family.master.ask({"do": "spawn", "order": order}, within=SPAWN_TIME)
        except (Gone, trio.TooSlowError):
            raise CannotStart("the master does not answer") from None
        if "error" in said.data:
            raise CannotStart(said.data["error"])
        worker = Worker(key, slot, address, said.data["pid"], said.data["since"], trio.current_time(), program=program)
        self._read_from(worker, said)
        return worker

    def _folder(self) -> Path:
        """Where the sockets of workers lie: beside the control socket."""
        return self.family.config.control.socket.parent / "workers"

    def signal(self, worker: Worker, number: int) -> None:
        """Have the master send a worker a signal."""
        self.family.master.tell({"do": "signal", "key": worker.key, "number": number})

    def note(self, worker: Worker) -> None:
        """Have the master know the state of a worker."""
        pool = worker.key.rpartition(".")[0]
        note = note_of(pool, worker.slot, worker.address, worker.state, worker.program)
        self.family.master.tell({"do": "note", "key": worker.key, "note": note})

    def remember(self) -> None:
        """Have the master know the state of all crews."""
        memo = {"crews": self._memo | {name: crew.memo() for name, crew in self.crews.items()}}
        self.family.master.tell({"do": "memo", "memo": memo})

    def heard(self, message: Message) -> None:
        """The master says something of workers."""
        data = message.data
        if data["do"] == "workers":
            for facts in data["workers"]:
                self._inherit(facts, message)
        else:
            self._inherited.discard(data["key"])
            self._ended(data["key"], data["code"])
        if not self._inherited:
            self._is_told.set()

    def _inherit(self, facts: dict[str, Any], message: Message) -> None:
        """A worker of the control before; the end of its output is the next file of the message."""
        note, since = facts["note"], facts["since"]
        began = trio.current_time() - (time.time() - since)
        worker = Worker(facts["key"], note["slot"], address_of(note["address"]), facts["pid"], since, began)
        worker.state, worker.program = note["state"], note["program"]
        self._before[worker.key] = worker, worker.slot
        self._read_from(worker, message)
        self._inherited.discard(worker.key)

    def _ended(self, key: str, code: int) -> None:
        if key in self._before:
            self._before.pop(key)[0].gone.set()
        for crew in self._all:
            for worker in crew.workers:
                if worker.key == key:
                    crew.gone(worker, how(code))
                    return

    # ------------------------------------------------------------------ what workers write

    def _read_from(self, worker: Worker, message: Message) -> None:
        """Take the end of a worker's output out of a message, and read it."""
        assert self._nursery is not None
        if message.files:
            self._nursery.start_soon(self._relay, worker, message.files.pop(0))

    async def _relay(self, worker: Worker, output: int) -> None:
        pool = worker.key.rpartition(".")[0]
        async for line in lines_of(output):
            self.family.remark(f"{pool}[{worker.pid}]: {line}")

    def _tell_news(self) -> None:
        self._news.set()
        self._news = trio.Event()


async def lines_of(fd: int) -> AsyncIterator[str]:
    """The lines that come out of a pipe, without what a terminal would obey; a long one in several."""
    rest = b""
    async with trio.lowlevel.FdStream(fd) as stream:
        while data := await stream.receive_some(65536):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                for at in range(0, max(len(line), 1), LONGEST_LINE):
                    yield shown(line[at : at + LONGEST_LINE])
    if rest:
        yield shown(rest)


def shown(line: bytes) -> str:
    """A line as it may stand in a log."""
    return "".join(char if char.isprintable() else " " for char in line.decode("utf-8", "replace")).rstrip()


def note_of(pool: str, slot: int, address: Address, state: str, program: str) -> dict[str, Any]:
    """What the next control must know of a worker."""
    return {"pool": pool, "slot": slot, "address": str(address), "state": state, "program": program}


def check_workers(config: Config) -> None:
    """Raises `BuildProblem` when workers of `config` cannot be started here."""
    for name, pool in config.pools.items():
        if pool.workers is not None and (why := obstacle(pool.workers)):
            raise BuildProblem(f"pools.{name}.workers{why}")


def environment_of(workers: Workers) -> dict[str, str]:
    """The variables of a worker; ``NOTIFY_SOCKET`` and the like of a service manager are frontd's own."""
    kept = {name: word for name, word in os.environ.items() if not workers.clear_environment or name in KEPT_VARIABLES}
    for own in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"):
        kept.pop(own, None)
    return {**kept, "PYTHONUNBUFFERED": "1", **workers.environment}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
