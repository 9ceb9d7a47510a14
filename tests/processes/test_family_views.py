"""Views of a family: what several fronts and the workers of a pool are together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from frontd.cli.servicestate import servicestate_text
from frontd.cli.views import requestq_text, requests_text
from tests.processes.house import serving, settings
from tests.processes.test_workers import pool, worker
from tests.scenarios.test_control_api import OPERATIONS
from tests.wire import Line, app


async def test_what_runs_is_gathered_from_all_fronts(tmp_path: Path) -> None:
    async def silent(line: Line) -> None:
        await line.head()
        await trio.sleep_forever()

    async with app(silent) as it, serving(settings(tmp_path, it.url)) as house:
        lines = []
        for number in range(8):
            lines.append(await house.line())
            await lines[-1].send(f"GET /{number}?secret HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
            with trio.fail_after(10):
                while (found := await house.control("GET /requests"))["total"] <= number:  # noqa: ASYNC110 - as asked
                    await trio.sleep(0.01)
        assert {row["front"] for row in found["requests"]} == {0, 1}
        assert [row["url"][-2:] for row in found["requests"]] == [f"/{number}" for number in range(8)]
        assert [row["since"] for row in found["requests"]] == sorted(row["since"] for row in found["requests"])
        few = await house.control("GET /requests?most=3")
        assert (few["total"], few["more"], len(few["requests"])) == (8, 5, 3)
        assert "secret" not in requests_text(found)

        (queue,) = (await house.control("GET /requestq"))["request_queues"]
        assert [one["index"] for one in queue["fronts"]] == [0, 1]
        assert queue["served"] == sum(one["served"] for one in queue["fronts"]) == 8
        assert queue["active"] == 8
        assert requestq_text({"window": 5.0, "request_queues": [queue]}).count("\napp ") == 3
        # a front that has stopped holds nobody up, and it is said that its requests are missing
        pids = await house.fronts()
        os.kill(pids[1], signal.SIGSTOP)
        found = await house.control("GET /requests")
        assert (found["silent"], {row["front"] for row in found["requests"]}) == ([1], {0})
        assert requests_text(found).endswith("\n\nfront 1 does not answer: what runs there is missing")
        os.kill(pids[1], signal.SIGCONT)

        for line in lines:
            await trio.aclose_forcefully(line.stream)


async def test_the_service_state_names_the_workers(tmp_path: Path) -> None:
    async with pool(tmp_path) as house:
        pid = await worker(house)
        state = await house.control("GET /servicestate?view=requestq")
        (queue,) = state["request_queues"]
        assert (queue["state"], queue["processes"]) == ("Active", [pid])
        text = servicestate_text(state)
        assert f"\n        Number of active processes attached: 1\n        Process IDs:\n            {pid}\n" in text

        # what a family answers is what the description has: a 404 names the paths, a 405 the methods of one
        served = set()
        for path in (await house.control("GET /"))["error"].partition("; try ")[2].split():
            said = (await house.control(f"PATCH {path}"))["error"]
            served |= {(method, path) for method in said.removeprefix("use ").partition(" for ")[0].split(" or ")}
        assert served == OPERATIONS.keys()
