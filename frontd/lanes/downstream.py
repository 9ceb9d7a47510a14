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

from typing import Any, TypeVar

import trio

from frontd.config.model import Limits, Timeouts
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.messages import Exchange
from frontd.net.streams import RATE_WINDOW, READ_SIZE, Broken, Stream
from frontd.net.traps import clock
from frontd.pipeline.forward import PARTS_IN_A_ROW
from frontd.pipeline.world import body_too_large
from frontd.protocol.framing import NO_TRAILERS, End, Part
from frontd.protocol.h1 import LOOK, ServerConnection

P = TypeVar("P", bytes, Part, bytes | End, Part | End)

SKIPPED_PARTS = 4  # of at most 64 KiB
DRAINED_BODY = 262144  # bytes of an unwanted body that are read so that the connection can be kept; beyond: closed


class H1Downstream:
    """One exchange's client side; a new one for each request of a connection."""

    __slots__ = (
        "_body_size", "_head", "closes", "drains", "exchange", "http", "limits", "resets", "stream", "timeouts",
        "tunnelled",
    )  # fmt: skip

    def __init__(
        self, stream: Stream, http: ServerConnection, exchange: Exchange, limits: Limits, timeouts: Timeouts
    ) -> None:
        self.stream = stream
        self.http = http
        self.exchange = exchange
        self.limits = limits
        self.timeouts = timeouts
        self.closes = False  # the connection is to end after this answer
        self.resets = False  # it ends now, and not with an answer
        self.tunnelled = False
        self._head = b""
        self._body_size = 0
        self.drains = False  # the answer asks to log on: the rest of an unwanted body is read after it

    @property
    def holder(self) -> Any:
        """The client's connection (`pipeline.pinned.Holder`)."""
        return self.stream.owner

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

    def part_now(self, size: int) -> Part | End | None:
        """`body_now` for who is done with the part before anything else is read: parts of a large body are of up to
        `size` bytes, in the buffer that all share (`Stream.receive_view`).  Raises `FrontdError` (downstream)."""
        ahead = self.http.body_ahead
        if ahead <= READ_SIZE:
            return self.body_now()
        try:
            part = self.stream.receive_view(min(ahead, size))
        except Broken as error:
            raise self._gone(error) from None
        if part is None:
            return None
        if not part:
            self.http.receive(b"")
            return self.body_now()
        self.http.body_came_elsewhere(len(part))
        return self._count(part)

    async def body_readable(self) -> None:
        """Wait until more of the body may be there.  Raises `FrontdError`: ``Timer_EntityBody``, …"""
        self._tell_to_continue()
        await self.stream.more(clock.now() + self.timeouts.entity_body, Reason.Timer_EntityBody)

    async def receive_body(self) -> bytes | End:
        """The next body part, or the `End`.  Raises `FrontdError`: ``Timer_EntityBody``, ``EntityTooLarge``, …"""
        while (part := self.http.next_body()) is None:
            self._tell_to_continue()
            await self._receive(trio.current_time() + self.timeouts.entity_body, Reason.Timer_EntityBody)
        return self._count(part)

    def keep_for_logon(self, *, is_leg: bool) -> None:
        """The answer asks to log on, so the connection is kept although a body is still to come, if at most
        `DRAINED_BODY` bytes of it are: a handshake goes on on its connection (as in HTTP.sys, which drains bodies).

        A client that waits for ``100 Continue`` may now send the body or close, and many that do not send it forget to
        close (RFC 9110 10.1.1): their next request would be taken for the body.  So for them the connection ends, and
        they log on through a new one; only one in the middle of a handshake (`is_leg`), which needs it, keeps it.
        """
        self.drains = is_leg or not self.http.waits_for_100

    def skip_body(self) -> bool:
        """Throw away what has arrived of an unwanted body; True when the connection can be kept: that was all, or the
        rest is to be drained."""
        if self.closes:
            return False
        if self.http.body_complete:
            return True
        try:
            for _ in range(SKIPPED_PARTS):
                if self.http.body_complete or self.body_now() is None:
                    break
        except FrontdError:
            return False
        return self.http.body_complete or (self.drains and self._is_worth_draining())

    def _is_worth_draining(self) -> bool:
        """Whether the rest of the body is short, and of a request that could be sent again and be taken."""
        request, left = self.exchange.request, self.http.body_ahead
        return left <= DRAINED_BODY and (request.max_body is None or (request.content_length or 0) <= request.max_body)

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

    def _count(self, part: P) -> P:
        if not isinstance(part, End):
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

    def answer(self, status: int, reason: bytes, lines: bytes, body: bytes) -> bool:
        """Send a whole answer, whose field `lines` say how it is framed; whether everything is with the kernel.  The
        connection ends with it when the request's body is not all there."""
        data = self.http.send_answer(status, reason, lines, body, close=not self.skip_body())
        self.exchange.bytes_out += len(data)
        try:
            return self.stream.send_now(data)
        except Broken as error:
            raise self._gone(error) from None

    def start(
        self, status: int, reason: bytes, headers: Headers | bytes, *, close: bool = False, length: int | None = LOOK
    ) -> None:
        """Begin the answer; the head waits for the first body part.  `length` is that of the body if the caller knows
        what `headers` say."""
        self._head = self.http.send_head(status, reason, headers, close=close or self.closes, length=length)

    def send(self, data: Part) -> bool:
        """Send a body part; whether everything is with the kernel."""
        return self._send(self.http.send_body(data))

    def send_last(self, data: Part) -> bool:
        """Send the rest of the body and end the answer; whether everything is with the kernel."""
        return self._send(self.http.send_last(data))

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
        end = self.http.send_end(trailers)
        if end or self._head:
            return self._send(end)
        return not self.stream.pending

    def _send(self, data: Part) -> bool:
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
