"""What stands when serving begins is out of the collector's rounds, and so is what a reload has put in its place."""

from __future__ import annotations

import gc
from pathlib import Path

from frontd.processes.collector import THRESHOLDS, freeze
from tests.wire import app, configuration, front, one_pool


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


async def test_after_each_reload(tmp_path: Path) -> None:
    before = gc.get_threshold()
    try:
        async with app() as it, front(one_pool(it.url), tmp_path) as stage:
            stage.front.settled = freeze
            Cycle()
            number = sum(isinstance(one, Cycle) for one in gc.get_objects())
            report = await stage.front.reload(lambda: configuration(one_pool(it.url, pool="concurrency: 3"), tmp_path))
            assert report.ok
            assert number == 1
            assert not any(isinstance(one, Cycle) for one in gc.get_objects())
            world = stage.front.service.world
            assert gc.get_freeze_count() > 10_000
            assert not any(one is world.pools for one in gc.get_objects())  # which knows what is not frozen
            assert gc.get_threshold() == THRESHOLDS
            assert (await (await stage.connect()).get())[1] == b"ok"
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
