"""Plugin instances: made when a configuration is built, kept when nothing about them changed, run beside the requests.

How it works
------------
`instances` makes what a configuration names and takes over from the previous world what has equal settings.  `Runner`
holds one task for each instance that has a `run`; `start` waits until all of them say that requests may come, and a
reload stops those that are gone only after the new world serves.

Invariants
----------
* An instance is made, or taken over, exactly once for each time its plugin is named.
* A `run` that ends by an error is started again after `AGAIN` seconds, doubling to `AGAIN_MOST`; it never ends the
  front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from frontd.config.model import Config
from frontd.config.plugins import PluginEntry
from frontd.net.traps import fault_of
from frontd.pipeline.plugin import Context, Plugin
from frontd.pipeline.store import MemoryStore

START_TIME = 30.0  # s for a plugin to say that requests may come
AGAIN = 1.0
AGAIN_MOST = 60.0


class PluginProblem(Exception):
    """A plugin could not be made or started; the text names it and says why."""


def called(name: str, site: str) -> str:
    """A plugin as the log and errors name it; `site` is empty for one of the whole server."""
    return f"plugin {name} of the site {site}" if site else f"plugin {name}"


def instances(
    config: Config, standing: Iterable[Plugin], store: MemoryStore, remark: Callable[[str], None]
) -> dict[str, list[Plugin]]:
    """The plugins by site (empty: the whole server's), in their order.  Raises `PluginProblem`."""
    kept: dict[tuple[str, type[Any]], list[Plugin]] = {}
    for plugin in standing:
        kept.setdefault((plugin.site, type(plugin)), []).append(plugin)

    def one(site: str, entry: PluginEntry) -> Plugin:
        for plugin in kept.get((site, entry.kind.plugin), ()):
            if plugin.settings == entry.settings:
                kept[site, entry.kind.plugin].remove(plugin)
                return plugin
        where = called(entry.name, site)
        try:
            made = entry.kind.plugin(entry.settings, Context(site, store, lambda text: remark(f"{where}: {text}")))
        except (ValueError, OSError) as error:
            raise PluginProblem(f"{where}: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also sys.exit
            raise PluginProblem(f"{where} ({entry.kind.origin}): {type(error).__name__}: {error}") from error
        assert isinstance(made, Plugin)
        return made

    found = {"": [one("", entry) for entry in config.plugins]}
    for site in config.sites.values():
        found[site.name] = [one(site.name, entry) for entry in site.plugins]
    return found


@dataclass(slots=True)
class Runner:
    """The tasks of the plugins of one front."""

    nursery: trio.Nursery
    fault: Callable[[str, Exception], None]
    _scopes: dict[Plugin, trio.CancelScope] = field(default_factory=dict)

    async def start(self, plugins: Iterable[Plugin]) -> None:
        """Run those that do not run yet; returns when each has said that requests may come.

        Raises `PluginProblem`; those that were started by this call are stopped again then.
        """
        started: list[Plugin] = []
        try:
            for plugin in plugins:
                if plugin not in self._scopes and type(plugin).run is not Plugin.run:
                    started.append(plugin)
                    await self._start(plugin)
        except BaseException:
            self.stop(started)
            raise

    def stop(self, plugins: Iterable[Plugin]) -> None:
        """End the tasks of these."""
        for plugin in list(plugins):
            scope = self._scopes.pop(plugin, None)
            if scope is not None:
                scope.cancel()

    def keep(self, plugins: Iterable[Plugin]) -> None:
        """End the tasks of all others."""
        standing = set(plugins)
        self.stop([plugin for plugin in self._scopes if plugin not in standing])

    async def _start(self, plugin: Plugin) -> None:
        scope = self._scopes[plugin] = trio.CancelScope()
        where = called(plugin.name, plugin.site)
        try:
            with trio.fail_after(START_TIME):
                await self.nursery.start(self._run, plugin, scope)
        except trio.TooSlowError:
            raise PluginProblem(f"{where}: it was not ready within {START_TIME:g} s") from None
        except BaseException as error:
            if fault_of(error) is None:
                raise
            raise PluginProblem(f"{where}: {type(error).__name__}: {error}") from error

    async def _run(self, plugin: Plugin, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        pause, is_first = AGAIN, True
        with scope:
            while True:
                status = Once(task_status) if is_first else Once(None)
                begun = trio.current_time()
                try:
                    await plugin.run(task_status=status)
                except BaseException as error:
                    fault = fault_of(error)
                    if fault is None or (is_first and not status.is_started):
                        raise
                    self.fault(f"plugin {plugin.name}: run", fault)
                else:
                    status.started()  # it has nothing to do any more
                    return
                is_first = False
                if trio.current_time() - begun > AGAIN_MOST:
                    pause = AGAIN
                await trio.sleep(pause)
                pause = min(pause * 2, AGAIN_MOST)


class Once:
    """A `trio.TaskStatus` that may be told any number of times."""

    def __init__(self, status: trio.TaskStatus[None] | None) -> None:
        self._status = status
        self.is_started = status is None

    def started(self, value: None = None) -> None:
        """Requests may come."""
        if not self.is_started and self._status is not None:
            self.is_started = True
            self._status.started()
