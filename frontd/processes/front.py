"""A front: the listeners, the world they serve, reload and drain.

How it works
------------
`Front` owns the sockets and the State (pools, counters, logs) and points at the current `World`.  A reload is two
steps: `prepare` makes everything new beside the old (contexts made, pools created, plugins started) and may fail
without a trace; `swap` is synchronous, so no request ever sees half of it.  One process that is everything does both
in `reload`; in a family, control asks for the one and then for the other.

Invariants
----------
* An exchange holds on to the world it began in; pools that left the configuration end when their last lease ends.
* Listeners with an unchanged address keep their socket: no connection is refused during a reload.  Connections follow
  their listener; those of one that is gone end after the answer they are waiting for.
* Draining: not ready, no new connections, ``Connection: close`` on what is answered, idle connections ended, and at the
  limit (``timeouts.drain``) whatever is left is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from frontd.config.certificates import only_files
from frontd.config.load import Loaded
from frontd.config.model import Config
from frontd.lanes.connection import Connection
from frontd.lanes.listener import Listener, bind, identity_of
from frontd.lanes.service import Service
from frontd.lanes.turn import LIVES
from frontd.net.traps import clock
from frontd.pipeline.logwriter import LogWriter
from frontd.pipeline.world import Shared, World
from frontd.processes.frontviews import VIEWS
from frontd.processes.plugins import PluginProblem, Runner
from frontd.processes.reload import ReloadReport, attempt, check_fixed
from frontd.processes.runtime import BuildProblem, build, differences
from frontd.processes.status import Facts, facts
from frontd.upstream.client import Address
from frontd.upstream.pool import Pool
from frontd.upstream.report import load

Files = Mapping[Path, bytes]  # of a configuration: certificates, keys, authorities
Told = tuple[list[Address], str, dict[Address, int]]  # where the apps of a pool are; why it is out of service, or
# empty; how many requests some of them take at once


@dataclass(slots=True)
class Prepared:
    """A new world that has been built and whose plugins run, with what it was built from; it serves nothing yet."""

    loaded: Loaded
    world: World
    listeners: list[Listener]


class Front:
    """One front and everything it owns.  Made by `Front.open`, run by `run`, changed by `reload`, ended by `drain`."""

    def __init__(self, loaded: Loaded, listeners: list[Listener], service: Service, index: int | None = None) -> None:
        self.loaded = loaded
        self.index = index or 0  # among the fronts of its family
        self._label = "" if index is None else f"front {index}: "
        self.loaded_at = self.started_at = time.time()
        self.listeners = listeners
        self.service = service
        self.last_reload: ReloadReport | None = None
        self.state = "starting"  # starting | serving | draining
        self.plugins: Runner | None = None
        self.waits = False  # with its listeners, until it is told to `accept`
        self.settled: Callable[[], None] = lambda: None  # told after each reload: what stands now is there to stay
        self.stale_files: Callable[[], Sequence[Path]] | None = None  # of plugins: other than what was loaded
        self.wanted: Callable[[list[str]], None] | None = None  # told of pools that need an app to be started
        self._told: dict[str, Told] = {}  # by pool: where control says that its apps are
        self._replaced: list[Pool] = []  # by a reload; their requests wait for the same apps
        self._nursery: trio.Nursery | None = None
        self._reloading = trio.Lock()

    @classmethod
    def open(cls, loaded: Loaded) -> Front:
        """Bind the listeners and build the first world.

        Raises `OSError` or `BuildProblem`; nothing stays bound then.
        """
        with bound(loaded.config, []) as listeners:
            return cls.on(loaded, listeners)

    @classmethod
    def on(
        cls, loaded: Loaded, listeners: list[Listener], *, generation: int = 1, files: Files | None = None,
        shared: Shared | None = None, index: int | None = None, leads: bool = True,
    ) -> Front:  # fmt: skip
        """A front on listeners that are bound, in the order of the configuration.

        With `files`, certificates and keys are those and nothing is read.  `shared` is what there is in common with
        other fronts, `index` its number among them; `leads`: of several, the one that writes the first line of a log.
        Raises `BuildProblem`.
        """
        config = loaded.config
        log = LogWriter(config.log.access, config.log.error, leads=leads)
        try:
            world = build_from(files, config, generation, None, log.remark, shared)
        except BaseException:
            log.close()
            raise
        return cls(loaded, listeners, Service(world, log, LIVES), index)

    @property
    def config(self) -> Config:
        """The configuration that is served."""
        return self.loaded.config

    @property
    def generation(self) -> int:
        """Of the world that serves."""
        return self.service.world.generation

    def remark(self, text: str) -> None:
        """Write a line into the error log."""
        self.service.log.remark(text)

    def log_fault(self, what: str, error: BaseException) -> None:
        """Write a fault of our own into the error log, with its traceback."""
        self.service.log_fault(what, error)

    async def facts(self) -> list[Facts]:
        """What can be told of this front, the only one there is."""
        return [facts(self.index, self.started_at, self.state, self.listeners, self.service)]

    async def ask_each(self, question: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The answer to a view (`frontd.processes.frontviews`), by the number of this front."""
        return {self.index: await VIEWS[question["do"]](self.service, question)}

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self.state == "serving"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.plugins = Runner(nursery, self.service.log_fault)
                await self._start_plugins(self.service.world)
                self.service.world.ondemand.start = lambda pool: nursery.start_soon(pool.run)
                await nursery.start(self.service.reactor.run)
                for pool in self.service.world.pools.values():
                    self._begin(pool)
                if not self.waits:
                    self.accept()
                task_status.started()
                await trio.sleep_forever()
            raise RuntimeError("the front has ended by itself")  # a cancellation of nobody's: better dead than deaf
        finally:
            self._nursery = None
            for listener in self.listeners:
                listener.close()
            self.service.reactor.close()

    def accept(self) -> None:
        """Serve whoever comes from now on; once."""
        if self.state != "starting":
            return
        assert self._nursery is not None
        for listener in self.listeners:
            self._nursery.start_soon(listener.run, self.service, self._nursery)
        self.state = "serving"
        self.service.log.remark(f"{self._label}serving: {', '.join(self.addresses())}")

    async def _start_plugins(self, world: World) -> None:
        assert self.plugins is not None
        try:
            await self.plugins.start(world.plugins)
        except PluginProblem as error:
            raise BuildProblem(str(error)) from error

    def addresses(self) -> list[str]:
        """The bound addresses, for people: ``https on *:8443``."""
        return [f"{one.settings.kind} on {one.settings.address or '*'}:{one.port}" for one in self.listeners]

    # ------------------------------------------------------------------ reload

    async def reload(self, read: Callable[[], Loaded]) -> ReloadReport:
        """Read, build and swap; on any error the old world stays.

        `read` runs in a thread and may raise `ConfigProblems`.
        """
        async with self._reloading:
            report = await attempt(read, self._replace, self.service.log_fault, self.stale_files)
            self.last_reload = report
            self.service.log.remark(report.told(self.generation))
            return report

    async def _replace(self, loaded: Loaded) -> list[str]:
        """Build the new world, start its plugins, and put it in place; returns what changed."""
        self._refuse_while_draining()
        old = self.config
        check_fixed(old, loaded.config)
        with bound(loaded.config, self.listeners) as listeners:
            prepared = await self.prepare(loaded, listeners, self.generation + 1)
        self.swap(prepared)
        return differences(old, loaded.config)

    async def prepare(
        self, loaded: Loaded, listeners: list[Listener], generation: int, files: Files | None = None
    ) -> Prepared:
        """Build a world beside the one that serves, and start what is new of its plugins.

        It ends in `swap` or in `drop`.  With `files`, certificates and keys are those and nothing is read.  Raises
        `BuildProblem`, and leaves nothing behind then.
        """
        service = self.service
        world = build_from(files, loaded.config, generation, service.world, service.log.remark)
        try:
            await self._start_plugins(world)
            self._refuse_while_draining()
        except BaseException:
            self.drop()
            raise
        return Prepared(loaded, world, listeners)

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise BuildProblem("frontd is shutting down")

    def drop(self) -> None:
        """End the plugins of a world that was prepared and shall not serve; its new listeners are the caller's."""
        assert self.plugins is not None
        self.plugins.keep(self.service.world.plugins)

    @property
    def draining(self) -> bool:
        """Whether it ends."""
        return self.state == "draining"

    def swap(self, prepared: Prepared) -> None:
        """Put a world in place; synchronous, so it happens between two steps of every connection."""
        loaded, world, listeners = prepared.loaded, prepared.world, prepared.listeners
        service, nursery, old, new = self.service, self._nursery, self.config, loaded.config
        assert nursery is not None
        assert self.plugins is not None
        previous, service.world = service.world, world
        world.store.resize(new.cache.memory)
        if old.log != new.log:
            service.log.change(new.log.access, new.log.error)
        for listener in self.listeners:
            if listener not in listeners:
                listener.close()
        for listener, settings in zip(listeners, new.listen.values(), strict=True):
            if listener in self.listeners:
                listener.adopt(settings)
            else:
                nursery.start_soon(listener.run, service, nursery)
        self.listeners = listeners
        doors = {listener.identity: listener.door for listener in listeners}
        for connection in list(service.connections):
            if isinstance(connection, Connection):
                connection.follow(doors.get(connection.door.identity))
        old_pools, new_pools = set(previous.pools.values()), set(world.pools.values())
        for pool in old_pools - new_pools:
            pool.retire()
            if pool.settings.told is not None:
                self._replaced.append(pool)
        for pool in new_pools - old_pools:
            self._begin(pool)
        self.loaded, self.loaded_at = loaded, time.time()
        self.plugins.keep(world.plugins)
        self.settled()

    # ------------------------------------------------------------------ pools whose apps control starts

    def _begin(self, pool: Pool) -> None:
        """Run a pool that is new."""
        assert self._nursery is not None
        self._nursery.start_soon(pool.run)
        if pool.settings.told is not None:
            pool.wanted = self._want
            if (told := self._told.get(pool.settings.name)) is not None:
                pool.told(*told)

    def _want(self, pool: Pool) -> None:
        if self.wanted is not None:
            self.wanted([pool.settings.name])

    def tell(self, told: dict[str, Told]) -> None:
        """Take over where the apps of pools are, as control says."""
        self._told |= told
        for name, pools in self._led().items():
            for pool in pools:
                if name in told:
                    pool.told(*told[name])

    def waiting(self) -> list[str]:
        """The pools in which requests wait for an app to be started."""
        return [name for name, pools in self._led().items() if any(len(one.queue) and not one.places for one in pools)]

    def loads(self) -> dict[str, dict[str, Any]]:
        """How busy the apps of each pool are kept (`upstream.report.load`)."""
        now = trio.current_time()
        return {name: load(pools, now) for name, pools in self._led().items()}

    def _led(self) -> dict[str, list[Pool]]:
        """The pools whose apps control starts, by name: those that were replaced and are not over, then the one that
        stands."""
        self._replaced = [pool for pool in self._replaced if not pool.is_over]
        found: dict[str, list[Pool]] = {}
        for pool in (*self._replaced, *self.pools.values()):
            if pool.settings.told is not None:
                found.setdefault(pool.settings.name, []).append(pool)
        return found

    # ------------------------------------------------------------------ drain

    async def drain(self, patience: float = 0.0) -> None:
        """Stop accepting and wait for what is running, for at most ``timeouts.drain``.

        Idle connections end after `patience` (s, half of that time at most), so that requests that are on the way are
        answered, with ``Connection: close``.
        """
        self.state = "draining"
        service = self.service
        service.draining = True
        service.idle_until = clock.now() + min(patience, service.world.timeouts.drain / 2)
        for listener in self.listeners:
            listener.close()
        service.log.remark(f"{self._label}draining: {len(service.connections)} connections")
        for connection in list(service.connections):
            if isinstance(connection, Connection):
                connection.end_when_idle()
        with trio.move_on_after(service.world.timeouts.drain):
            while service.connections:
                await service.emptied.wait()
        if service.connections:
            service.log.remark(f"{self._label}drained: {len(service.connections)} connections cut")

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools of the current world, by name."""
        return self.service.world.pools


def build_from(
    files: Files | None, config: Config, generation: int, previous: World | None, remark: Callable[[str], None],
    shared: Shared | None = None,
) -> World:  # fmt: skip
    """As `build`; with `files`, certificates and keys are those.  Raises `BuildProblem`."""
    with nullcontext() if files is None else only_files(files):
        return build(config, generation, previous, remark, shared)


@contextmanager
def bound(config: Config, standing: list[Listener]) -> Iterator[list[Listener]]:
    """Listeners for `config`, in its order; those of `standing` that are the same are used again.

    What was bound here is closed again when the block fails, or a later listener.  Raises `OSError`.
    """
    same = {listener.identity: listener for listener in standing}
    with ExitStack() as undone:
        listeners: list[Listener] = []
        for settings in config.listen.values():
            listener = same.get(identity_of(settings))
            if listener is None:
                listener = bind(settings)
                undone.callback(listener.close)
            listeners.append(listener)
        yield listeners
        undone.pop_all()
