"""Plugins for the plays: classes made on the spot, standing on a site in the order in which they are given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import frontd
from frontd.config.plugins import Catalogue, Discover
from frontd.pipeline.discovery import examine
from frontd.processes.reload import ReloadReport
from tests.wire import Stage, configuration, front, settled

PluginClass = type[frontd.Plugin]


def made(name: str, **members: object) -> PluginClass:
    """A plugin class with these hooks and class attributes."""
    return type(name, (frontd.Plugin,), {"name": name, **members})


def says(value: object) -> Callable[..., object]:
    """A hook that always answers `value`, or raises it."""

    def hook(self: frontd.Plugin, exchange: frontd.Exchange) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    return hook


def of(*plugins: PluginClass) -> Discover:
    """Discovery that finds these classes, as if they stood in files."""
    kinds = {}
    for plugin in plugins:
        kind, faults = examine(plugin)
        assert kind is not None, faults
        kinds[kind.name] = kind
    return lambda plugins_dir, words: Catalogue(kinds)


def text(
    target: str,
    plugins: Iterable[PluginClass | str],
    *,
    server: Iterable[PluginClass | str] = (),
    routes: str = "/: app",
    urls: str = '"http://*/"',
    site: str = "",
    pool: str = "",
    extra: str = "",
) -> str:
    """A site for every host with `plugins` in this order; a text stands for itself (``name: {key: value}``)."""
    return f"""
listen: {{http: {{port: 0}}}}
plugins: [{_words(server)}]
{extra}
sites:
  main:
    urls: [{urls}]
    plugins: [{_words(plugins)}]
    routes: {{{routes}}}
    {site}
pools:
  app:
    targets: ["{target}"]
    {pool}
"""


def _words(plugins: Iterable[PluginClass | str]) -> str:
    return ", ".join(one if isinstance(one, str) else one.name for one in plugins)


@asynccontextmanager
async def plugged(
    tmp_path: Path, target: str, *plugins: PluginClass, server: Sequence[PluginClass] = (), **more: Any
) -> AsyncIterator[Stage]:
    """A front whose one site has these plugins."""
    async with front(text(target, plugins, server=server, **more), tmp_path, of(*plugins, *server)) as stage:
        yield stage


async def reload(stage: Stage, written: str, *plugins: PluginClass) -> ReloadReport:
    """Load another configuration, which may name `plugins`."""
    return await stage.front.reload(lambda: configuration(written, stage.state, of(*plugins)))


def status(head: bytes) -> int:
    """The status of a response head."""
    return int(head.split(b" ", 2)[1])


def fields(head: bytes, name: str) -> list[str]:
    """The values of a field in a head, in order."""
    wanted = name.lower() + ":"
    lines = head.decode("latin-1").split("\r\n")
    return [line[len(wanted) :].strip() for line in lines if line.lower().startswith(wanted)]


async def told(stage: Stage) -> str:
    """The whole error log; closes it, so it is for the end of a play."""
    await settled()
    return stage.log("error")
