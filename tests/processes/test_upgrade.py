"""New fronts from the code on the disk take the place of the old ones, and no client notices."""

from __future__ import annotations

from pathlib import Path

from tests.processes.house import serving, settings
from tests.wire import app


async def test_new_fronts_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    async with app() as it, serving(settings(tmp_path, it.url)) as house:
        before = await house.fronts()
        said = await house.control("POST /upgrade")
        assert said.get("errors") is None, said
        assert [one["pid"] for one in said["draining"]] == before
        assert await house.get() == (200, b"ok")
        status = await house.until_status(lambda it: len(it["fronts"]) == 2)
        assert [one["pid"] for one in status["fronts"]] == [one["pid"] for one in said["fronts"]]
