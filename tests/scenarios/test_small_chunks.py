"""A body in the smallest chunks costs much per byte: no step of the loop walks more than a few thousand of them.

Counted, not timed: how many bytes of the body are taken between two turns of the others.
"""

from __future__ import annotations

from pathlib import Path

import trio
import trio.abc
import trio.lowlevel

from frontd.lanes.connection import Connection
from frontd.pipeline.forward import PARTS_IN_A_ROW
from frontd.protocol.chunks import CHUNKS_AT_ONCE
from tests.wire import Line, Stage, app, front, one_pool

CHUNKS = 40000
BODY = b"1\r\nx\r\n" * CHUNKS + b"0\r\n\r\n"
HEAD = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
MOST = (PARTS_IN_A_ROW + 1) * CHUNKS_AT_ONCE


class Steps(trio.abc.Instrument):
    """The most body bytes that one step of a task has taken from a client."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.before = 0
        self.most = 0

    def taken(self) -> int:
        here = [it for it in self.stage.front.service.connections if isinstance(it, Connection)]
        return sum(it.down.exchange.bytes_in for it in here if it.down is not None)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.before = self.taken()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self.taken() - self.before)


async def test_an_upload_in_one_byte_chunks_leaves_the_others_their_turn(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.read_until(b"0\r\n\r\n")
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        steps = Steps(stage)
        trio.lowlevel.add_instrument(steps)
        try:
            await line.send(HEAD + BODY)
            _, body = await line.message()
        finally:
            trio.lowlevel.remove_instrument(steps)
    assert body == b"ok"
    assert CHUNKS_AT_ONCE < steps.most <= MOST + len(HEAD)
