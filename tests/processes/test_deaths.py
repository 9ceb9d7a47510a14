"""Any process of the family may be killed at any time: what is lost then, and what is not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import trio

from tests.processes.house import Load, family, has_ended, kill, serving, settings
from tests.wire import app


def ready(status: dict[str, Any], number: int) -> bool:
    """Whether so many fronts serve."""
    return [one["state"] for one in status["fronts"]] == ["serving"] * number


async def test_a_killed_front_costs_no_new_connection(tmp_path: Path) -> None:
    async with app() as it, serving(settings(tmp_path, it.url)) as house, trio.open_nursery() as nursery:
        load = Load(house)
        nursery.start_soon(load.run)
        await load.until_answered(20)
        first, second = await house.fronts()
        await kill(first)
        load.mark()
        await load.until_answered(100)
        status = await house.until_status(lambda it: ready(it, 2) and it["fronts"][0]["pid"] != first)
        await load.until_answered(100)
        assert load.failed == []
        nursery.cancel_scope.cancel()
        assert status["fronts"][1]["pid"] == second
        assert f"front 0 (pid {first}) has ended (SIGKILL); it is started again" in await house.remark("SIGKILL")
        await house.remark(f"front 0: serving: http on *:{house.ports[0]}")


async def test_traffic_goes_on_without_control_and_the_next_one_takes_over(tmp_path: Path) -> None:
    async with app() as it, app(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as other:
        path = settings(tmp_path, it.url)
        async with serving(path) as house, trio.open_nursery() as nursery:
            load = Load(house)
            nursery.start_soon(load.run)
            await load.until_answered(20)
            before = await house.status()
            (control,) = house.processes("control_process")
            await kill(control)
            await load.until_answered(50)
            after = await house.status()  # the socket was there all the time
            assert house.processes("control_process") != [control]
            for same in ("pid", "started", "generation", "config", "ready"):
                assert after[same] == before[same], same
            assert [one["pid"] for one in after["fronts"]] == [one["pid"] for one in before["fronts"]]
            settings(tmp_path, other.url)
            assert (await house.control("POST /reload"))["changed"] == ["pool app changed"]
            heads = len(other.heads)
            await load.until_answered(20)
            assert load.failed == []
            assert len(other.heads) > heads
            nursery.cancel_scope.cancel()
            house.child.terminate()
            assert await house.end() == 0


async def test_a_front_is_replaced_while_there_is_no_control(tmp_path: Path) -> None:
    """Control is stopped, so the master has it and cannot use it."""
    async with app() as it, serving(settings(tmp_path, it.url)) as house:
        (control,) = house.processes("control_process")
        fronts = house.processes("front_process")
        os.kill(control, signal.SIGSTOP)
        for pid in fronts:
            await kill(pid)
        assert await house.get() == (200, b"ok")
        await kill(control)
        status = await house.until_status(lambda it: ready(it, 2))
        assert not {one["pid"] for one in status["fronts"]} & set(fronts)


async def test_everything_ends_with_the_master(tmp_path: Path) -> None:
    async with app() as it, serving(settings(tmp_path, it.url)) as house:
        children = list(family(house.child.pid))
        assert len(children) == 3
        os.kill(children[-1], signal.SIGSTOP)  # also what cannot look at its channel
        house.child.kill()
        assert await house.end() == -signal.SIGKILL
        for pid in children:
            await has_ended(pid)
        assert await house.rest() == ""
    async with app() as it, serving(settings(tmp_path, it.url)) as house:  # at the same place
        assert await house.get() == (200, b"ok")


async def test_a_front_that_is_asked_to_end_drains_alone(tmp_path: Path) -> None:
    async with app() as it, serving(settings(tmp_path, it.url)) as house, trio.open_nursery() as nursery:
        load = Load(house)
        nursery.start_soon(load.run)
        await load.until_answered(20)
        first, _ = await house.fronts()
        os.kill(first, signal.SIGTERM)
        await has_ended(first)  # it ends what is idle, as whenever frontd drains, and finishes what runs
        load.mark()
        await load.until_answered(50)
        assert load.failed == []
        nursery.cancel_scope.cancel()
        assert "front 0: draining: " in await house.remark("(exit code 0); it is started again")
        assert house.child.returncode is None
