"""The client's side of an HTTP/1 exchange, as the pipeline sees it (`pipeline.forward.Downstream`).

How it works
------------
`H1Downstream` joins one `Stream` and one `ServerConnection`.  It holds a response head back until the first body part
is there (or nothing more can be had), so that both go out in one write; it counts body bytes against the site's limit;
and it sends ``100 Continue`` when the body is first waited for, which is when somebody is really going to read it
(HTTP.sys does the same).

Invariant: what breaks on the client's side leaves here as a `FrontdError` with a downstream reason.
"""

from __future__ import annotations

import trio

from frontd.config.model import Limits, Timeouts
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.messages import Exchange
from frontd.net.streams import RATE_WINDOW, Broken, Stream
from frontd.pipeline.forward import PARTS_IN_A_ROW
from frontd.pipeline.world import body_too_large
from frontd.protocol.h1 import NO_TRAILERS, End, ServerConnection

SKIPPED_PARTS = 4  # of at most 64 KiB


class H1Downstream:
    """One exchange's client side; a new one for each request of a connection."""

    __slots__ = ("_body_size", "_head", "closes", "exchange", "http", "limits", "stream", "timeouts", "tunnelled")

    def __init__(
        self, stream: Stream, http: ServerConnection, exchange: Exchange, limits: Limits, timeouts: Timeouts
    ) -> None:
        self.stream = stream
        self.http = http
        self.exchange = exchange
        self.limits = limits
        self.timeouts = timeouts
        self.closes = False  # the connection is to end after this answer
        self.tunnelled = False
        self._head = b""
        self._body_size = 0

    # --- the request body

    def body_now(self) -> bytes | End | None:
        """The next body part if it is there.  Raises `FrontdError` (downstream)."""
        while (part := self.http.next_body()) is None:
            try:
                data = self.stream.receive_now()
            except Broken as error:
                raise self._gone(error) from None
            if data is None:
                return None
            self.http.receive(data)
        return self._count(part)

    async def receive_body(self) -> bytes | End:
        """The next body part, or the `End`.  Raises `FrontdError`: ``Timer_EntityBody``, ``EntityTooLarge``, …"""
        while (part := self.http.next_body()) is None:
            self._tell_to_continue()
            await self._receive(trio.current_time() + self.timeouts.entity_body, Reason.Timer_EntityBody)
        return self._count(part)

    def skip_body(self) -> bool:
        """Throw away what has arrived of an unwanted body; True when that was all: the connection can be kept."""
        if self.closes:
            return False
        try:
            for _ in range(SKIPPED_PARTS):
                if self.http.body_complete or self.body_now() is None:
                    break
        except FrontdError:
            return False
        return self.http.body_complete

    async def drain_body(self, limit: int) -> bool:
        """Read and discard the rest of the body, at most `limit` bytes; True when it was complete.

        Raises `FrontdError` with ``Timer_DrainEntityBody`` or what else ends it.
        """
        deadline = trio.current_time() + self.timeouts.drain_entity_body  # for all of it, as in HTTP.sys
        left, parts = limit, 0
        while not isinstance(part := self.http.next_body(), End):
            left -= len(part or b"")
            if left < 0:
                return False
            parts += 1
            if parts % PARTS_IN_A_ROW == 0:  # a body in small chunks leaves the others their turn
                await trio.lowlevel.checkpoint()
            if part is None:
                await self._receive(deadline, Reason.Timer_DrainEntityBody)
        return True

    async def _receive(self, deadline: float, reason: Reason) -> None:
        try:
            data = await self.stream.receive(deadline, reason)
        except Broken as error:
            raise self._gone(error) from None
        self.http.receive(data)

    def _tell_to_continue(self) -> None:
        if self.http.waits_for_100 and self.can_answer:
            self._send(self.http.send_information(100, NO_TRAILERS))

    def _count(self, part: bytes | End) -> bytes | End:
        if isinstance(part, bytes):
            self._body_size += len(part)
            self.exchange.bytes_in += len(part)
            limit = self.exchange.request.max_body
            if limit is not None and self._body_size > limit:
                raise body_too_large(limit)
        return part

    # --- the answer

    @property
    def can_answer(self) -> bool:
        """Whether a final response head may still be sent."""
        return not self.http.answered and not self.tunnelled

    def inform(self, status: int, headers: Headers) -> bool:
        """Send a 1xx head; whether everything is with the kernel."""
        return self._send(self.http.send_information(status, headers))

    def start(self, status: int, reason: bytes, headers: Headers, *, close: bool = False) -> None:
        """Begin the answer; the head waits for the first body part."""
        self._head = self.http.send_head(status, reason, headers, close=close or self.closes)

    def send(self, data: bytes) -> bool:
        """Send a body part; whether everything is with the kernel."""
        return self._send(self.http.send_body(data))

    async def send_file(self, fd: int, offset: int, size: int) -> None:
        """Send `size` bytes of the open file `fd` from `offset` on as a body part; returns when the kernel has them.

        Raises `FrontdError`: ``Timer_MinBytesPerSecond``, ``Internal`` for the file, or a downstream reason.
        """
        before, behind = self.http.send_body_elsewhere(size)
        self._send(before)
        stream, rate = self.stream, self.timeouts.min_send_rate
        taken = stream.sent + stream.pending
        try:
            await stream.send_file(fd, offset, size, RATE_WINDOW, rate * RATE_WINDOW, Reason.Timer_MinBytesPerSecond)
        except Broken as error:
            raise self._gone(error) from None
        finally:
            self.exchange.bytes_out += stream.sent + stream.pending - taken
        if not self._send(behind):
            await self.flush()

    def push(self) -> bool:
        """Send what is held back."""
        return self._send(b"")

    def finish(self, trailers: Headers = NO_TRAILERS) -> bool:
        """End the answer; whether everything is with the kernel."""
        return self._send(self.http.send_end(trailers))

    def _send(self, data: bytes) -> bool:
        if self._head:
            data, self._head = self._head + data, b""
        self.exchange.bytes_out += len(data)
        try:
            return self.stream.send_now(data)
        except Broken as error:
            raise self._gone(error) from None

    async def flush(self) -> None:
        """Wait until the kernel has taken everything.  Raises `FrontdError` with ``Timer_MinBytesPerSecond``."""
        rate = self.timeouts.min_send_rate
        try:
            await self.stream.flush(RATE_WINDOW, rate * RATE_WINDOW, Reason.Timer_MinBytesPerSecond)
        except Broken as error:
            raise self._gone(error) from None

    def begin_tunnel(self, headers: Headers) -> tuple[Stream, bytes]:
        """Answer 101; returns the stream, which now belongs to the tunnel, and what the client sent behind its head."""
        data = self.http.send_information(101, headers)
        self.tunnelled = True
        self._send(data)
        return self.stream, self.http.rest()

    def _gone(self, error: Broken) -> FrontdError:
        reason = Reason.Client_Reset if self.can_answer else Reason.Connection_Dropped
        return FrontdError(reason, detail=str(error))
