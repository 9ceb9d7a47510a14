"""Clients with more requests than one turn answers: they leave each other their turn."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import trio

from frontd.lanes.turn import PIPELINED_IN_A_ROW
from frontd.model.messages import Exchange
from tests.scenarios.plugged import made, plugged
from tests.wire import Line

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
PIECES, SIZE = 10, 400


async def test_who_sends_in_many_pieces_gets_no_more_turns(tmp_path: Path) -> None:
    """Bytes that come for a connection that waits for its next turn give it no second one for all turns to come."""
    order: list[int] = []

    def noted(self: object, exchange: Exchange) -> None:
        order.append(exchange.client.port)

    async def talk(line: Line, pieces: int, size: int) -> None:
        for _ in range(pieces):
            await line.send(GET * size)
            for _ in range(2 * PIPELINED_IN_A_ROW):
                await line.message()
        for _ in range(pieces * (size - 2 * PIPELINED_IN_A_ROW)):
            await line.message()

    counts = made("counts", filter_request=noted)
    async with plugged(tmp_path, "http://127.0.0.1:9", counts, routes="/: {redirect: 'http://b.test/'}") as stage:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for pieces, size in ((PIECES, SIZE), (1, PIECES * SIZE)):
                    nursery.start_soon(talk, await stage.connect(), pieces, size)
    runs = [len(list(run)) for _, run in groupby(order)]
    assert max(runs[1:-1]) <= 3 * PIPELINED_IN_A_ROW  # the last one is alone; and who came first was, for a moment
