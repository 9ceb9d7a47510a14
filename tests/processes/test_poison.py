"""A request that kills the workers it is given to kills two at most, and whoever is in another one loses nothing."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.processes.house import has_ended
from tests.processes.test_workers import pool, worker, workers
from tests.wire import Line


async def test_a_request_that_kills_workers_kills_two_and_the_others_serve_on(tmp_path: Path) -> None:
    failed: list[object] = []
    answered = 0
    always = "start: always\n      count: 4\n      concurrency: 1\n      rapid_fail: {failures: 1000}"
    async with pool(tmp_path, always) as house, trio.open_nursery() as nursery:
        await house.until(lambda: len(workers(house)) == 4)

        async def client() -> None:
            nonlocal answered
            async with (await house.line()).stream as stream:
                line = Line(stream)
                while True:
                    head, body = await line.get()
                    failed.extend([] if head.startswith(b"HTTP/1.1 200 ") else [body])
                    answered += 1

        for _ in range(8):  # who keep connections to all of them
            nursery.start_soon(client)
        await house.until(lambda: answered >= 100)
        before = set(workers(house))
        status, body = await house.get("/die")
        assert status == 502
        assert b"Connection_Abandoned_By_ReqQueue" in body
        dead = before - set(workers(house))
        for pid in dead:
            await has_ended(pid)
        await house.until(lambda: len(workers(house)) == 4)
        assert len(before - set(workers(house))) == 2
        log = await house.remark("event 5009")
        assert log.count("event 5009") == 2
        assert await worker(house) in workers(house)

        before = set(workers(house))  # what may not be done twice kills one
        line = await house.line()
        head, body = await line.ask(b"POST /die HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        await line.close()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Connection_Abandoned_By_ReqQueue" in body
        await house.until(lambda: len(workers(house)) == 4 and before != set(workers(house)))
        assert len(before - set(workers(house))) == 1
        nursery.cancel_scope.cancel()
    assert failed == []
