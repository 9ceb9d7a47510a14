"""A front: the listeners, the world they serve, reload and drain.

How it works
------------
`Front` owns the sockets and the State (pools, counters, logs) and points at the current `World`.  A reload is two
steps: *build* makes everything new beside the old (sockets bound, contexts made, pools created) and may fail without a
trace; *swap* is synchronous, so no request ever sees half of it.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from frontd.config.load import Loaded
from frontd.config.model import Config
from frontd.config.problems import ConfigProblems
from frontd.lanes.connection import Connection
from frontd.lanes.listener import Listener, bind, identity_of
from frontd.lanes.service import Service
from frontd.pipeline.logwriter import LogWriter
from frontd.pipeline.world import World
from frontd.processes.plugins import PluginProblem, Runner
from frontd.processes.runtime import BuildProblem, build, differences
from frontd.upstream.pool import Pool

READ_TIME = 60.0  # s for the files of a configuration
FIXED = ("control", "health", "state_dir")  # nouns whose change needs a restart


@dataclass(slots=True)
class ReloadReport:
    """What the last reload did: when (s since the epoch), what changed, or every error."""

    at: float
    changed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the new world serves."""
        return not self.errors


class Front:
    """One front and everything it owns.  Made by `Front.open`, run by `run`, changed by `reload`, ended by `drain`."""

    def __init__(self, loaded: Loaded, listeners: list[Listener], service: Service) -> None:
        self.loaded = loaded
        self.loaded_at = self.started_at = time.time()
        self.listeners = listeners
        self.service = service
        self.last_reload: ReloadReport | None = None
        self.state = "starting"  # starting | serving | draining
        self.plugins: Runner | None = None
        self.stale_files: Callable[[], Sequence[Path]] | None = None  # of plugins: other than what was loaded
        self._nursery: trio.Nursery | None = None
        self._reloading = trio.Lock()

    @classmethod
    def open(cls, loaded: Loaded) -> Front:
        """Bind the listeners and build the first world.

        Raises `OSError` or `BuildProblem`; nothing stays bound then.
        """
        config = loaded.config
        with bound(config, []) as listeners:
            log = LogWriter(config.log.access, config.log.error)
            try:
                world = build(config, 1, None, log.remark)
            except BaseException:
                log.close()
                raise
        return cls(loaded, listeners, Service(world, log))

    @property
    def config(self) -> Config:
        """The configuration that is served."""
        return self.loaded.config

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
                nursery.start_soon(self.service.hangups.run)
                for pool in self.service.world.pools.values():
                    nursery.start_soon(pool.run)
                for listener in self.listeners:
                    nursery.start_soon(listener.run, self.service, nursery)
                self.state = "serving"
                self.service.log.remark(f"serving: {', '.join(self.addresses())}")
                task_status.started()
                await trio.sleep_forever()
            raise RuntimeError("the front has ended by itself")  # a cancellation of nobody's: better dead than deaf
        finally:
            self._nursery = None
            for listener in self.listeners:
                listener.close()
            self.service.hangups.close()

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
            report = ReloadReport(time.time())
            try:
                with trio.fail_after(READ_TIME):  # a mount that hangs must not hold later reloads, or the end
                    loaded = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
                report.warnings = [str(problem) for problem in loaded.warnings]
                report.changed = await self._replace(loaded)
            except ConfigProblems as error:
                report.errors = [str(problem) for problem in error.problems if problem.severity == "error"]
            except trio.TooSlowError:
                report.errors = [f"the configuration could not be read within {READ_TIME:g} s"]
            except (BuildProblem, OSError) as error:
                report.errors = [str(error)]
            except Exception as error:  # a fault of ours must not take the running world along
                report.errors = [f"{type(error).__name__}: {error}"]
                self.service.log_fault("reload", error)
            if self.stale_files is not None:
                stale = await trio.to_thread.run_sync(self.stale_files, abandon_on_cancel=True)
                report.warnings += [f"plugin file {one} has changed on disk: restart to load it" for one in stale]
            self.last_reload = report
            self.service.log.remark(self._told(report))
            return report

    async def _replace(self, loaded: Loaded) -> list[str]:
        """Build the new world, start its plugins, and put it in place; returns what changed."""
        if self.draining:
            raise BuildProblem("frontd is shutting down")
        old, new = self.config, loaded.config
        for noun in FIXED:
            if getattr(old, noun) != getattr(new, noun):
                raise BuildProblem(f"{noun} cannot be changed by a reload: restart frontd")
        service, plugins = self.service, self.plugins
        assert plugins is not None
        with bound(new, self.listeners) as listeners:
            world = build(new, service.world.generation + 1, service.world, service.log.remark)
            try:
                await self._start_plugins(world)
                if self.draining:
                    raise BuildProblem("frontd is shutting down")
            except BaseException:
                plugins.keep(service.world.plugins)
                raise
        self._swap(loaded, world, listeners)
        plugins.keep(world.plugins)
        return differences(old, new)

    @property
    def draining(self) -> bool:
        """Whether it ends."""
        return self.state == "draining"

    def _swap(self, loaded: Loaded, world: World, listeners: list[Listener]) -> None:
        """Put a world in place; synchronous, so it happens between two steps of every connection."""
        service, nursery, old, new = self.service, self._nursery, self.config, loaded.config
        assert nursery is not None
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
        for pool in new_pools - old_pools:
            nursery.start_soon(pool.run)
        self.loaded, self.loaded_at = loaded, time.time()

    def _told(self, report: ReloadReport) -> str:
        if not report.ok:
            return f"reload refused, the old configuration stays: {'; '.join(report.errors)}"
        changed = ", ".join(report.changed) or "unchanged"
        return f"reloaded: generation {self.service.world.generation}: {changed}"

    # ------------------------------------------------------------------ drain

    async def drain(self) -> None:
        """Stop accepting and wait for what is running, for at most ``timeouts.drain``."""
        self.state = "draining"
        service = self.service
        service.draining = True
        for listener in self.listeners:
            listener.close()
        service.log.remark(f"draining: {len(service.connections)} connections")
        for connection in list(service.connections):
            if isinstance(connection, Connection):
                connection.end_when_idle()
        with trio.move_on_after(service.world.timeouts.drain):
            while service.connections:
                await service.emptied.wait()
        if service.connections:
            service.log.remark(f"drained: {len(service.connections)} connections cut")

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools of the current world, by name."""
        return self.service.world.pools


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
