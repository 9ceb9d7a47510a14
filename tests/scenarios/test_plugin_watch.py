"""The watchdog names the plugin that blocks the loop.  Real time: what blocks lets go as soon as it was named."""

from __future__ import annotations

import threading
from collections.abc import Coroutine

import pytest
import trio

import frontd
from frontd.pipeline.store import MemoryStore
from frontd.processes.watch import Watchdog

PATIENCE = 10.0  # s; only a watchdog that does not see it takes that long


class Blocker(frontd.Plugin):
    """Blocks the loop until it is told to let go."""

    name = "blocker"

    def prepare(self) -> None:
        self.let_go = threading.Event()

    def filter_request(self, exchange: frontd.Exchange) -> None:
        self._deep()

    def _deep(self) -> None:
        assert self.let_go.wait(PATIENCE)

    def authenticate(self, exchange: frontd.Exchange) -> Coroutine[None, None, None]:
        return self._later()

    async def _later(self) -> None:
        await trio.lowlevel.checkpoint()
        assert self.let_go.wait(PATIENCE)


@pytest.mark.parametrize(
    ("hook", "function"), [("filter_request", "blocker._deep"), ("authenticate", "blocker._later")]
)
async def test_who_blocks_is_named_with_the_place(hook: str, function: str) -> None:
    said: list[str] = []
    plugin = Blocker(frontd.Settings(), frontd.Context("", MemoryStore(0), said.append))

    over, token = trio.Event(), trio.lowlevel.current_trio_token()

    def remark(line: str) -> None:  # called in the watchdog's thread
        said.append(line)
        if "let go" in line:
            token.run_sync_soon(over.set)
        if "assert self.let_go.wait" in line:  # the last line of its stack but for those of the standard library
            plugin.let_go.set()

    watchdog = Watchdog(lambda: [plugin], remark)
    async with trio.open_nursery() as nursery:
        await nursery.start(watchdog.run)
        with trio.fail_after(PATIENCE):
            answer = getattr(plugin, hook)(None)
            if answer is not None:
                await answer
            await over.wait()
        nursery.cancel_scope.cancel()
    assert said[0] == f"plugin {function} blocks the loop for more than 100 ms; it stands here:"
    assert any("test_plugin_watch.py" in line for line in said)
    assert said[-1].startswith(f"plugin {function} let go of the loop after ")
    assert sum("blocks the loop" in line for line in said) == 1


async def test_a_loop_that_is_blocked_by_nobodys_plugin_is_not_told() -> None:
    said: list[str] = []
    watchdog = Watchdog(list, said.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(watchdog.run)
        threading.Event().wait(0.3)
        nursery.cancel_scope.cancel()
    assert said == []
