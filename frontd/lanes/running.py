"""What runs now in this front: each request, since when, and in which phase it is.

How it works
------------
Nothing is kept for it.  A request that waits is a coroutine that is suspended somewhere, and the coroutines it is
suspended in, from `turn` inwards, say where: in `waited_for` it is queued, in `first` a plugin was asked (which one is
in that frame), in `receive` the app was.  So the phase is read off the coroutine when somebody asks, and costs the
requests themselves nothing.

Invariants
----------
* It reads and changes nothing; nothing of an exchange is kept when it returns.
* Who asks gets the oldest ones, at most as many as it wants, and how many there were.
* No query is told: it may hold tokens.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from types import CodeType, FrameType
from typing import Any

import trio

from frontd.lanes import opening, turn
from frontd.lanes.connection import Connection
from frontd.lanes.downstream import H1Downstream
from frontd.model.urlprefix import DEFAULT_PORTS
from frontd.net.traps import clock
from frontd.pipeline import phases, pinned, relay, reply, serve
from frontd.pipeline.tunnel import tunnel
from frontd.upstream.client import connect
from frontd.upstream.pool import Pool

IN_A_ROW = 2000  # connections that are looked at before the others have their turn
ROWS_IN_A_ROW = 20  # that are made before the others have their turn: one takes about 50 us
LONGEST_URL = 512  # characters of one that are told

READING, HANDSHAKE = "reading head", "handshake"
WAITING, RELAYING, SENDING = "waiting for the app", "relaying body", "sending"

# From outer to inner coroutines: what it does who is suspended in one of them; the innermost one counts.
PHASES: dict[CodeType, str] = {
    opening.opening.__code__: HANDSHAKE,
    turn.turn.__code__: READING,
    turn.answer.__code__: "answering",
    reply.give.__code__: "answering",
    serve.send_file.__code__: "sending a file",
    serve.forward.__code__: SENDING,
    trio.sleep.__code__: "waiting to try again",
    serve.waited_for.__code__: "queued",
    pinned.Pin.lease.__code__: "queued",
    Pool.lease.__code__: "queued",
    Pool.lease_again.__code__: "queued",
    connect.__code__: "connecting",
    relay.send_and_receive.__code__: SENDING,
    relay.receive.__code__: WAITING,
    tunnel.__code__: "tunnel",
}
_PLUGIN = frozenset((phases.first.__code__, phases.checked.__code__))  # they have the `hook` that they ask
_PUMPED = relay.send_and_receive.__code__


def phase_of(coroutine: object, exchange: Any = None) -> str:
    """The phase of what a suspended `coroutine` does, for its `exchange` (None: there is none yet)."""
    phase, pump = "", None
    for frame in frames(coroutine):
        code = frame.f_code
        if code in _PLUGIN:
            return f"plugin {frame.f_locals['hook'].where}"
        if code is _PUMPED:
            pump = frame.f_locals.get("pump")
        phase = PHASES.get(code, phase)
    if phase == WAITING and exchange is not None:
        if exchange.status:
            return RELAYING
        if pump is not None and not pump.upstream.http.request_complete:
            return SENDING
    return phase


def frames(coroutine: object) -> Iterator[FrameType]:
    """The frames that a suspended coroutine is suspended in, from the outermost inwards."""
    inner: Any = coroutine
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if frame is not None:
            yield frame
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)


async def running(connections: Iterable[object], older: float, most: int) -> dict[str, Any]:
    """What has been running for at least `older` seconds: ``total`` requests and heads, and the `most` oldest of them
    in ``requests``, oldest first."""
    found: list[tuple[float, int, Connection, H1Downstream | None]] = []
    for number, connection in enumerate(list(connections), 1):
        if number % IN_A_ROW == 0:
            await trio.lowlevel.checkpoint()
        if isinstance(connection, Connection) and connection.coroutine is not None:
            seconds = clock.now() - begun(connection)
            if seconds >= older:
                found.append((seconds, number, connection, connection.down))
    oldest = heapq.nlargest(most, found, key=lambda one: one[0])
    rows = []
    for at, (seconds, _, connection, down) in enumerate(oldest, 1):
        if at % ROWS_IN_A_ROW == 0:
            await trio.lowlevel.checkpoint()
        if connection.down is down and (told := row(connection, seconds)) is not None:
            rows.append(told)
    return {"total": len(found), "requests": rows}


def begun(connection: Connection) -> float:
    """Since when (trio's clock, s) the request of a busy connection runs: from its complete head on, and before that
    from the moment from which on its head is timed."""
    if connection.down is not None:
        return connection.down.exchange.started
    if connection.timeouts is None:
        return connection.header_deadline - connection.service.world.timeouts.header_wait
    return min(connection.stream.deadline - connection.timeouts.header_wait, clock.now())


def row(connection: Connection, seconds: float) -> dict[str, Any] | None:
    """A request as `frontd show requests` shows it; None when there is none any more."""
    down, client = connection.down, connection.client
    phase = phase_of(connection.coroutine, down and down.exchange)
    told: dict[str, Any] = {
        "id": None, "client": client.address, "listener": client.listener, "method": "", "url": "", "site": "",
        "pool": "", "target": "", "phase": phase, "since": iso(time.time() - seconds),
        "seconds": round(max(seconds, 0.0), 3), "status": None, "attempts": 0, "bytes_in": 0, "bytes_out": 0,
    }  # fmt: skip
    if down is None:
        # what comes after an answer, such as the rest of an unwanted body, is no request any more
        return told if phase in (READING, HANDSHAKE) or phase.startswith("plugin ") else None
    exchange = down.exchange
    return told | {
        "id": exchange.number, "since": iso(exchange.started_at), "client": exchange.client.address,
        "method": exchange.method, "url": url_of(exchange),
        "site": exchange.site, "pool": exchange.pool, "target": exchange.target, "status": exchange.status or None,
        "attempts": exchange.attempts, "bytes_in": exchange.bytes_in, "bytes_out": exchange.bytes_out,
    }  # fmt: skip


def iso(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def url_of(exchange: Any) -> str:
    """The URL as the client typed it, without the query."""
    client, request = exchange.client, exchange.request
    port = client.public_port or client.local_port
    host = request.host or client.local_address
    if port != DEFAULT_PORTS.get(request.scheme):
        host += f":{port}"
    url = f"{request.scheme}://{host}{request.path}"
    return url if len(url) <= LONGEST_URL else url[: LONGEST_URL - 1] + "…"
