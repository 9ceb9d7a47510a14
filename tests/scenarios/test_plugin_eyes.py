"""What frontd notices of plugins by itself: one that blocks the loop (real time), and files that have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

import frontd
from frontd import Exchange, Plugin
from frontd.net.traps import carry
from frontd.pipeline.discovery import Discovery
from frontd.pipeline.phases import first, freeze
from frontd.processes import watch
from frontd.processes.watch import Watchdog, watch_files
from tests.plugins.exchanges import asked, placed
from tests.scenarios.plugged import PluginClass, made

LONG = 0.2  # s


def a_long_time(levels: int = 0) -> None:
    if levels:
        a_long_time(levels - 1)
    else:
        time.sleep(LONG)


async def watched(plugin: PluginClass, *, times: int = 1) -> list[str]:
    """What the watchdog says while the plugin's filter is asked so often."""
    said: list[str] = []
    instance = placed(plugin)
    phase = freeze([instance]).filter_request
    async with trio.open_nursery() as nursery:
        await nursery.start(Watchdog(lambda: [instance], said.append).run)
        for _ in range(times):
            await carry(first(phase, asked()))
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    return said


def sleeper(wait: Callable[[], None]) -> PluginClass:
    return made("sleeper", filter_request=lambda self, exchange: wait())


async def test_once_for_each_time() -> None:
    said = await watched(sleeper(a_long_time), times=2)
    named = "plugin sleeper.filter_request blocks the loop for more than 100 ms; it stands here:"
    assert [line for line in said if "blocks" in line] == [named] * 2
    assert sum(line.strip() == "time.sleep(LONG)" for line in said) == 2
    assert sum(" let go of the loop after " in line for line in said) == 2


async def test_the_line_it_stands_at_is_shown_however_deep() -> None:
    said = await watched(sleeper(lambda: a_long_time(60)))
    assert any(line.strip() == "time.sleep(LONG)" for line in said)
    assert len(said) < 80


async def test_also_when_the_hook_is_another_classes() -> None:
    class Mixin:
        async def filter_request(self, exchange: Exchange) -> None:
            await trio.lowlevel.checkpoint()
            a_long_time()

    class Mixed(Plugin, Mixin):
        name = "mixed"

    said = await watched(Mixed)
    assert said[0].startswith("plugin mixed.filter_request blocks the loop")


async def test_what_waits_or_runs_in_a_thread_blocks_nobody() -> None:
    class Threaded(Plugin):
        name = "threaded"

        @frontd.blocking
        def filter_request(self, exchange: Exchange) -> None:
            a_long_time()

    class Waits(Plugin):
        name = "waits"

        async def filter_request(self, exchange: Exchange) -> None:
            await trio.sleep(LONG)

    assert [await watched(plugin) for plugin in (Threaded, Waits)] == [[], []]


@pytest.mark.parametrize("change", ["the file", "its helper"])
async def test_a_changed_file_is_told_once(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each content; what was loaded goes on serving."""
    plugin, helper = tmp_path / "mark.py", tmp_path / "_words.py"
    helper.write_text("WORD = 'mark'\n")
    plugin.write_text("import frontd\nfrom ._words import WORD\n\n\nclass Mark(frontd.Plugin):\n    name = WORD\n")
    path = plugin if change == "the file" else helper
    said: list[str] = []
    discovery = Discovery()
    assert set(discovery.catalogue(tmp_path, frozenset()).kinds) == {"mark"}
    send, receive = trio.open_memory_channel[str](10)
    monkeypatch.setattr(watch, "LOOK", 0.001)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_files, discovery, send.send_nowait)
        with trio.fail_after(10):
            for number in (1, 2):
                path.write_text(f"# {number}\n")
                said.append(await receive.receive())
            path.unlink()
            said.append(await receive.receive())
            os.mkfifo(path)  # whoever read it would stand still
            try:
                assert discovery.changed()
            finally:
                path.unlink()  # other tools read the files of modules as well
        nursery.cancel_scope.cancel()
    assert said == [f"plugin file {path} has changed on disk: 'frontd upgrade' loads it"] * 3
