"""Looking at the first bytes of a connection without taking them (MSG_PEEK).

While too few bytes are there, SO_RCVLOWAT is set to what the reader still needs: the kernel then wakes us when it is
there or when the peer ends its side, and a client that drips one byte at a time costs no wake-ups in between.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

from frontd.model.errors import Reason
from frontd.net.streams import Broken, Stream
from frontd.net.traps import readable
from frontd.protocol.hello import Need

T = TypeVar("T")


class NothingSent(Exception):
    """The peer connected and left without a byte: a port scan, a health check, a browser that thought better of it."""


async def peek(stream: Stream, read: Callable[[bytes], T | Need], limit: int, deadline: float) -> T:
    """What `read` makes of the first bytes, at most `limit` of them.

    `read` gets at least one byte and answers `Need` for more.  Raises what `read` raises, `NothingSent`, `Broken`
    when the peer ends too early or resets, and `FrontdError` with ``Timer_HeaderWait`` at `deadline`
    (s of trio's clock).
    """
    sock = stream.sock
    need = 1
    try:
        while True:
            try:
                buffer = sock.recv(limit, socket.MSG_PEEK)
            except BlockingIOError:
                stream.ready = False
            else:
                if not buffer:
                    raise NothingSent("the connection ended before its first byte")
                if len(buffer) < need:  # readable below the low-water mark: the peer has ended its side
                    raise Broken("the connection ended inside its first bytes")
                found = read(buffer)
                if not isinstance(found, Need):
                    return found
                need = found.size
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, need)
                stream.ready = stream.ending
            await readable(stream, deadline, Reason.Timer_HeaderWait)
    except OSError as error:
        raise Broken(error.strerror or type(error).__name__) from None
    finally:
        if need > 1 and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
