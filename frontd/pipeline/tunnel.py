"""After ``101 Switching Protocols``: bytes both ways until both sides have ended (RFC 9110 7.8).

Each direction has its own task; the end of one side is passed on as the end of writing on the other, so half-closed
tunnels work.  Silence in both directions for `idle` seconds ends the tunnel.
"""

from __future__ import annotations

import trio

from frontd.model.errors import FrontdError, Reason
from frontd.net.streams import Broken, Stream
from frontd.net.traps import carry_task


class Tally:
    """Bytes moved: `up` towards the app, `down` towards the client."""

    __slots__ = ("down", "up")

    def __init__(self) -> None:
        self.up = 0
        self.down = 0


async def tunnel(client: Stream, early: bytes, app: Stream, late: bytes, idle: float, tally: Tally) -> None:
    """Relay until both sides ended.  `early` is what the client sent behind its request, `late` what the app sent
    behind its 101.

    Raises `FrontdError` with ``Timer_TunnelIdle``, or ``Connection_Dropped`` when one side was reset.
    """
    broken: list[str] = []

    async def one_way(source: Stream, sink: Stream, first: bytes, upwards: bool) -> None:
        try:
            data = first
            while True:
                if data:
                    nursery.cancel_scope.deadline = trio.current_time() + idle
                    if upwards:
                        tally.up += len(data)
                    else:
                        tally.down += len(data)
                    if not sink.send_now(data):
                        await sink.flush(idle, 1, Reason.Timer_TunnelIdle)
                data = await source.receive(float("inf"), Reason.Timer_TunnelIdle)
                if not data:
                    sink.end_writing()
                    return
        except Broken as error:
            broken.append(str(error))
            nursery.cancel_scope.cancel()
        except FrontdError:  # the sink takes nothing: the same as silence
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + idle
        nursery.start_soon(carry_task, one_way, client, app, early, True)
        nursery.start_soon(carry_task, one_way, app, client, late, False)
    if broken:
        raise FrontdError(Reason.Connection_Dropped, detail=broken[0])
    if nursery.cancel_scope.cancelled_caught:
        raise FrontdError(Reason.Timer_TunnelIdle)
