"""What every play with bad input also has: somebody else's request that is half sent and must not notice anything."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from tests.wire import OK, Line, Script, Stage, settled

Behaviour = Callable[[Line, bytes], Awaitable[None]]


def behaving(bad: Behaviour) -> Script:
    """An app that answers ``/bystander`` well and gives every other request head to `bad`."""

    async def script(line: Line) -> None:
        while head := await line.head():
            if b" /bystander " in head:
                assert await line.read_exactly(10) == b"0123456789"
                await line.send(OK)
            else:
                await bad(line, head)

    return script


@asynccontextmanager
async def bystander(stage: Stage) -> AsyncIterator[None]:
    """Half a request before the play, its other half after it; the connection is used once more then."""
    line = await stage.connect()
    half = b"POST /bystander HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n"
    await line.send(half + b"01234")
    await settled()
    yield
    head, body = await line.ask(b"56789")
    assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
    head, body = await line.ask(half + b"0123456789")
    assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
    await line.close()


def entries(stage: Stage) -> list[dict[str, object]]:
    """The access log, parsed; for the end of a play."""
    return [json.loads(line) for line in stage.log("access").splitlines()]


def logged(stage: Stage, reason: str, *, status: int | None = None) -> None:
    """`reason` was counted once and stands in both logs, with the `status` of the answer; for the end of a play."""
    assert stage.reasons == {reason: 1}
    with_reason = [entry for entry in entries(stage) if entry["reason"]]
    assert [(entry["reason"], entry["status"]) for entry in with_reason] == [(reason, status)]
    assert [line for line in stage.log("error").splitlines() if f" {reason} " in line]


async def small_window(stage: Stage) -> Line:
    """A client whose kernel takes little before it is read from."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", stage.port()))
    line = Line(trio.SocketStream(sock))
    stage.lines.append(line)
    return line
