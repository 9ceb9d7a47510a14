"""Control as a process of its own: it reads the configuration, and answers for all fronts.

How it works
------------
The master's first message says how things stand.  Where nothing stands yet, control reads the configuration, has the
sockets bound and the world committed, waits until every front serves, and says so on stderr.  Where it takes the place
of one that has died, it takes the committed world from the master, not from the file, and asks the fronts.  After an
upgrade (`frontd.processes.upgrade`) it makes room for the next control, whose code is that of the new fronts.

Invariants
----------
* Before the ready line, whatever goes wrong ends the start: a sentence on stderr, and the exit code that
  `frontd.cli.common` has for it.  After it, nothing that happens here touches what the fronts serve.
* No request passes through this process.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from frontd import __version__
from frontd.config.load import Loaded, load
from frontd.config.model import Config
from frontd.config.problems import ConfigProblems, Problem
from frontd.pipeline.discovery import Discovery
from frontd.pipeline.logwriter import LogWriter
from frontd.processes.admin import ADMIN_CALLERS, ADMIN_PATIENCE, Admin
from frontd.processes.attached import Places
from frontd.processes.calls import MAX_CALLERS, PATIENCE, Answerer, Call, Reply, as_json, serve_calls
from frontd.processes.channel import PROTOCOL, Message, next_message, other_code
from frontd.processes.children import be_child, raise_file_limit
from frontd.processes.control import HEALTH_CALLERS, HEALTH_PATIENCE, Control
from frontd.processes.cores import usable_cores
from frontd.processes.family import ANSWER_TIME, NUMBERS, Family, quiet
from frontd.processes.handover import Handover, import_all, pack, read_whole, tried_tickets, unpack
from frontd.processes.line import Line
from frontd.processes.master import ADMIN, CONTROL, HEALTH
from frontd.processes.pooldesk import PoolDesk
from frontd.processes.registry import Registry
from frontd.processes.runtime import BuildProblem
from frontd.processes.servicestate import Attached
from frontd.processes.statefiles import StateProblem
from frontd.processes.supervisor import Supervisor
from frontd.processes.tenants import Tenants
from frontd.processes.upgrade import Outcome, upgrade
from frontd.processes.watch import watch_files

FAILED, CONFIGURATION = 1, 3  # exit codes, as of `frontd.cli.common`
LAST_CALLS = 2.0  # s for callers that are being answered when control ends after an upgrade


class Stop(Exception):
    """The start has failed: a sentence for people, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def main() -> None:
    """Run control; the command line names the channel, the master, and what `frontd serve` was asked for."""
    channel, master = (int(word) for word in sys.argv[1:3])
    be_child(master, "frontd-control")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the master's, who tells when the end has come
    raise_file_limit()
    sock = socket.socket(fileno=channel)
    sock.set_inheritable(False)
    code = 0
    try:
        trio.run(Seat(sock, master, **json.loads(sys.argv[3])).run)
    except* Stop as group:
        stop: BaseException = group
        while isinstance(stop, BaseExceptionGroup):
            stop = stop.exceptions[0]
        assert isinstance(stop, Stop)
        sys.stderr.write(f"frontd: {stop}\n")
        code = stop.code
    sock.close()
    raise SystemExit(code)


def show(problems: list[Problem]) -> None:
    """Errors and warnings of a configuration on stderr, each with its excerpt."""
    for problem in problems:
        sys.stderr.write(f"{problem}\n\n")
    sys.stderr.flush()


class Seat:
    """The control process: `config` is the file's name (``-``: standard input), `container` as `load` has it."""

    def __init__(self, sock: socket.socket, master: int, *, config: str, container: bool | None) -> None:
        self.master = master
        self.name = config
        self.container = container
        self.protocol = 0  # the master's
        self.discovery = Discovery()
        self.family: Family | None = None
        self.supervisor: Supervisor | None = None
        self.registry: Registry | None = None
        self.tenants: Tenants | None = None
        self.line = Line(sock, 0, self._heard)
        self.nursery: trio.Nursery | None = None
        self.sockets: list[socket.socket] = []
        self.doors: list[int] = []  # the control socket, and the listeners for health and admin if there are

    def read(self) -> Loaded:
        """The configuration as it is now, with what is reserved and registered laid over it.

        Raises `ConfigProblems`, `BuildProblem`, and the first time `StateProblem`.
        """
        path = "-" if self.name == "-" else Path(self.name)
        loaded = load(path, discover=self.discovery.catalogue, container=self.container)
        if self.registry is None:
            self.registry = Registry(loaded.config.state_dir)
            self.registry.load()
        return replace(loaded, config=self.registry.laid_over(loaded.config), base=loaded.config)

    async def run(self) -> None:
        """Serve until the master says that it is over."""
        hello = await next_message(self.line.sock)
        if hello is None:
            return
        said, self.protocol = hello.data, hello.data["protocol"]
        if self.protocol != PROTOCOL:
            raise Stop(other_code(PROTOCOL, self.protocol), FAILED)
        handover, warnings = self._begin() if not said["generation"] else self._resume(hello)
        log = LogWriter(quiet(handover.config), handover.config.log.error)
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                self.family = family = Family(handover, self.line, log, self.discovery, said["started_at"])
                family.first = said["epoch"] * NUMBERS
                self.supervisor = Supervisor(family, said["memo"], said["workers"])
                await nursery.start(family.run)
                await nursery.start(self.supervisor.run)
                await self._open_to_tenants(family, nursery)
                nursery.start_soon(self._until_master_ends, nursery)
                if not said["generation"]:
                    show(warnings)
                    await self._start(handover)
                else:
                    family.adopt(said["generation"], hello.files[0])
                    family.count = said["fronts"]
                    family.state = "draining" if said["ending"] else "serving" if said["started"] else "starting"
                    what = f"started with the code of frontd {__version__}" if said["upgraded"] else "started again"
                    family.remark(f"control has been {what}")
                    self.line.tell({"do": "keep"})  # not what was bound for a reload that nobody finishes
                    self.doors = await self._bind_doors(handover.config)
                    with trio.move_on_after(ANSWER_TIME):
                        await family.until_all_serve()
                    assert self.registry is not None
                    assert self.tenants is not None
                    nursery.start_soon(self._catch_up, family, self.registry)
                    await self.tenants.doors.fit_or_tell(handover.config)
                self._open_doors(family, nursery)
        finally:
            for sock in self.sockets:
                sock.close()
            log.close()

    def whole(self) -> tuple[Handover, list[Problem]]:
        """The configuration as it is now with all that fronts need for it, and its warnings.

        Raises what `read` raises.
        """
        loaded, files = read_whole(self.read)
        sources, tickets = self.discovery.sources(), tried_tickets(loaded.config)
        return Handover(loaded.config, loaded.name, files, sources, time.time(), loaded.base, tickets), loaded.warnings

    def _begin(self) -> tuple[Handover, list[Problem]]:
        """Read the configuration for the first time."""
        try:
            return self.whole()
        except ConfigProblems as error:
            show(list(error.problems))
            errors = sum(problem.severity == "error" for problem in error.problems)
            text = f"the configuration has {errors} error{'s' if errors != 1 else ''}"
            raise Stop(text, CONFIGURATION) from None
        except BuildProblem as error:
            raise Stop(f"{self.name} cannot be served: {error}", CONFIGURATION) from None
        except StateProblem as error:
            raise Stop(f"cannot serve: {error}", FAILED) from None

    def _resume(self, hello: Message) -> tuple[Handover, list[Problem]]:
        """Take the committed world over from the control that was here before."""
        handover = unpack(hello.files[0])
        import_all(handover.sources)
        self.discovery = Discovery(handover.sources)
        self.registry = Registry(handover.config.state_dir)
        self.registry.reload()
        return handover, []

    async def _catch_up(self, family: Family, registry: Registry) -> None:
        """Serve what was on the disk when the control before this one died, should it not have come to that."""
        try:
            async with family.reloading:
                config = registry.laid_over(family.base)
                if config != family.config:
                    await family.put(config)
        except (BuildProblem, OSError) as error:
            family.remark(f"reservations stay as they are served: {error}")

    async def _start(self, handover: Handover) -> None:
        """Bind, commit, wait for the fronts, and say that requests may come.  Raises `Stop`."""
        family, config = self.family, handover.config
        assert family is not None
        family.count = config.fronts or usable_cores()
        assert self.supervisor is not None
        assert self.tenants is not None
        try:
            self.supervisor.check(config)
            self.tenants.doors.check(config)
            sockets = await family.listen(config)
            self.doors = await self._bind_doors(config)
            await self.tenants.doors.fit(config)
            world = pack(handover)
            await family.commit(1, world, handover)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Stop(f"cannot serve: {where}{error.strerror or error}", FAILED) from None
        except BuildProblem as error:
            raise Stop(f"{handover.name} cannot be served: {error}", CONFIGURATION) from None
        addresses = []
        for settings, fd in zip(config.listen.values(), sockets, strict=True):
            with socket.socket(fileno=fd) as sock:
                addresses.append(f"{settings.kind} on {settings.address or '*'}:{sock.getsockname()[1]}")
        await family.until_all_serve()
        if family.refusal is not None:
            text, code = family.refusal
            what = f"{handover.name} cannot be served" if code == CONFIGURATION else "cannot serve"
            raise Stop(f"{what}: {text}", code)
        family.state = "serving"
        self.line.tell({"do": "started"})
        counts = f"{counted(len(config.sites), 'site')}, {counted(family.count, 'front')}"
        sys.stderr.write(f"frontd ready: {', '.join(addresses)} ({counts})\n")
        sys.stderr.flush()

    # ------------------------------------------------------------------ the control socket

    async def _bind_doors(self, config: Config) -> list[int]:
        """The sockets that control answers on, which the master holds.  Raises `OSError`."""
        assert self.family is not None
        wanted: list[list[Any]] = [[CONTROL, "control", str(config.control.socket), 0]]
        if config.health is not None:
            wanted.append([HEALTH, "health", *config.health.listen])
        if config.control.listen is not None:
            wanted.append([ADMIN, "control", *config.control.listen])
        return await self.family.bind(wanted)

    async def _open_to_tenants(self, family: Family, nursery: trio.Nursery) -> None:
        """Know who is attached, and have the means to answer who wants to be."""
        assert self.registry is not None
        places = Places(family, family.config.control.socket.with_suffix(".places"))
        places.adopt(name for name, pool in family.config.pools.items() if pool.attach is not None)
        self.tenants = Tenants(family, self.registry, places)
        family.watchers += [places, self.tenants.doors]
        await nursery.start(self.tenants.doors.run)
        nursery.start_soon(places.expect)

    def _open_doors(self, family: Family, nursery: trio.Nursery) -> None:
        """Answer on the control socket and the listeners beside it, and watch the files of plugins."""
        control = Control(family, __version__, None if self.name == "-" else self.read, self.master)
        assert self.supervisor is not None
        control.endpoints |= PoolDesk(self.supervisor.crews, self.supervisor.events, family.remark).endpoints
        control.endpoints["POST", "/upgrade"] = self._upgrade_by_call
        assert self.tenants is not None
        control.endpoints |= self.tenants.endpoints
        control.open |= self.tenants.open
        self.sockets = [socket.socket(fileno=fd) for fd in self.doors]
        settings = family.config.control
        desks: list[tuple[Answerer, float, int]] = [(control.answer, PATIENCE, MAX_CALLERS)]
        if family.config.health is not None:
            desks.append((control.health, HEALTH_PATIENCE, HEALTH_CALLERS))
        if settings.token_file is not None:
            desks.append((Admin(control, settings.token_file).answer, ADMIN_PATIENCE, ADMIN_CALLERS))
        nursery.start_soon(self._answer_calls, family, desks, nursery)
        control.views.processes = self._processes
        nursery.start_soon(control.views.run)
        nursery.start_soon(watch_files, self.discovery, family.remark)

    def _processes(self) -> dict[str, Attached]:
        """The workers and the attached processes, for the service state."""
        assert self.supervisor is not None
        assert self.tenants is not None
        crews, queues = self.supervisor.crews, self.tenants.places.queues()
        found = {name: Attached([one.pid for one in crew.workers], bool(crew.off)) for name, crew in crews.items()}
        return found | {name: Attached([one.pid for one in attached]) for name, attached in queues.items()}

    async def _answer_calls(
        self, family: Family, desks: list[tuple[Answerer, float, int]], whole: trio.Nursery
    ) -> None:
        """Answer callers at each door until new fronts have been put in place; who has been heard is still answered,
        and then control ends."""
        scopes = [trio.CancelScope() for _ in desks]
        async with trio.open_nursery() as nursery:
            for sock, desk, scope in zip(self.sockets, desks, scopes, strict=True):
                answer, patience, callers = desk
                nursery.start_soon(serve_calls, sock, answer, family.log_fault, patience, callers, scope)
            await family.upgraded.wait()
            for scope in scopes:
                scope.cancel()
            nursery.cancel_scope.deadline = trio.current_time() + LAST_CALLS
        self.line.tell({"do": "retire"})
        whole.cancel_scope.cancel()

    async def upgrade(self) -> Outcome:
        """Put fronts with the code that is on the disk in the place of those that serve."""
        assert self.family is not None
        return await upgrade(self.family, {"config": self.name, "container": self.container}, self.protocol)

    async def _upgrade_by_call(self, call: Call) -> Reply:
        """Upgrade.  When the old fronts serve on: 422 with every error, or 409 when it is not the time for one."""
        assert self.family is not None
        outcome = await self.upgrade()
        self.family.remark(f"audit: upgrade by {call.caller}: {'refused' if 'errors' in outcome else 'ok'}")
        return as_json(outcome, 200 if "errors" not in outcome else 422 if outcome.pop("now", True) else 409)

    # ------------------------------------------------------------------ the master

    async def _until_master_ends(self, nursery: trio.Nursery) -> None:
        await self.line.run()
        nursery.cancel_scope.cancel()

    def _heard(self, message: Message) -> None:
        """The master says something by itself."""
        family, nursery, data = self.family, self.nursery, message.data
        assert family is not None
        assert nursery is not None
        match data["do"]:
            case "front" if message.files:
                sock = socket.socket(fileno=message.files.pop())
                family.welcome(data["index"], data["pid"], data["since"], data["role"], sock)
            case "gone":
                family.farewell(data["index"], data["pid"], data["how"])
            case "workers" | "worker gone":
                assert self.supervisor is not None
                self.supervisor.heard(message)
            case "reload":
                nursery.start_soon(self._reload_by_signal, family)
            case "upgrade":
                nursery.start_soon(self.upgrade)
            case "reopen":
                family.log.reopen()
            case "drain":
                family.state = "draining"
                family.tell_news()
            case "end":
                nursery.cancel_scope.cancel()
        message.close()

    async def _reload_by_signal(self, family: Family) -> None:
        """A signal has nobody to answer to: how it went stands in the log."""
        if family.state == "starting":
            family.remark("SIGHUP: frontd has only just read its configuration")
        elif self.name == "-":
            family.remark("SIGHUP: this frontd was started without a file to read again")
        else:
            await family.reload(self.read)


def counted(number: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


if __name__ == "__main__":
    main()
