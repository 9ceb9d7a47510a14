"""What a hook costs: `python bench/hooks.py`.

CPU time of this process for asking one phase of one request, best of several rounds; the empty loop is taken off.
Beside it, in the same run: the plain call of the same function, and the same plugin asked through pluggy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from frontd.config.plugins import Settings
from frontd.model.headers import Headers
from frontd.model.messages import Client, Exchange, Request
from frontd.pipeline import hookspecs
from frontd.pipeline.phases import NO_PHASES, Phase, _Manager, first, freeze
from frontd.pipeline.plugin import Context, Plugin
from frontd.pipeline.store import MemoryStore

TIMES, ROUNDS = 200_000, 7
LIMIT = 0.3  # us for one plain hook


class Silent(Plugin):
    """Looks at nothing and says nothing."""

    name = "silent"

    def filter_request(self, exchange: Exchange) -> None:
        return None


@dataclass(frozen=True)
class Row:
    """One thing measured: its name and microseconds each time."""

    what: str
    each: float


def plugin() -> Silent:
    return Silent(Settings(), Context("", MemoryStore(0), print))


def exchange() -> Exchange:
    client = Client("192.0.2.7", 1, "192.0.2.7", "192.0.2.1", 80, "http", "http", 80)
    return Exchange(client, Request("GET", b"/", "/", "", "a", b"a", "1.1", Headers()), 0.0, 0.0)


def measured(run: Callable[[int], None]) -> float:
    """Microseconds of CPU for each of `TIMES` turns; the best of `ROUNDS`."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        run(TIMES)
        best = min(best, time.process_time() - begun)
    return best / TIMES * 1e6


def finished(coroutine: Any) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


def asking(phase: Phase, subject: Exchange) -> Callable[[int], None]:
    """As `serve` asks: only when there is somebody to ask."""

    async def turns(times: int) -> None:
        for _ in range(times):
            if phase:
                await first(phase, subject)

    return lambda times: finished(turns(times))


def empty_loop(times: int) -> None:
    for _ in range(times):
        pass


def rows() -> list[Row]:
    """Everything measured, the empty loop taken off."""
    subject, one = exchange(), plugin()
    manager = _Manager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(one)

    def plain(times: int) -> None:
        for _ in range(times):
            one.filter_request(subject)

    def through_pluggy(times: int) -> None:
        for _ in range(times):
            manager.hook.filter_request(exchange=subject)

    loop = measured(empty_loop)
    found = [
        ("an empty phase", asking(NO_PHASES.filter_request, subject)),
        ("a phase of one plain hook", asking(freeze([one]).filter_request, subject)),
        ("a phase of three plain hooks", asking(freeze([plugin(), plugin(), plugin()]).filter_request, subject)),
        ("the same function, called", plain),
        ("one hook through pluggy", through_pluggy),
    ]
    return [Row(what, max(0.0, measured(run) - loop)) for what, run in found]


def main() -> int:
    """Print the table; 1 when one plain hook costs more than the limit."""
    found = rows()
    width = max(len(row.what) for row in found)
    for row in found:
        print(f"{row.what:{width}}  {row.each:6.3f} us")
    worst = found[1].each
    print(f"\none plain hook: {worst:.3f} us, limit {LIMIT} us: {'ok' if worst <= LIMIT else 'too slow'}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
