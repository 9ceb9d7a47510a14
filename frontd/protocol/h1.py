"""HTTP/1.1, both sides, without a socket: bytes in, heads and body parts out.

How it works
------------
Each connection owns one buffer of received bytes.  Heads and chunk lines are checked on the wire by `protocol.scan`;
only what passed goes to h11, which owns the meaning: framing of what is sent, keep-alive, the order of events.  h11 is
fed exactly the bytes of the current message, so that pipelined bytes behind it stay in our buffer until they were
checked too.

`ServerConnection` is the side towards the client, `ClientConnection` the side towards an app.  Their reading half has
the same three verbs: ``receive(data)`` (``b""`` is the end of the stream), ``next_head()``, ``next_body()``.

Invariants
----------
* ``next_*`` answer None for "need more", and never read past the current message.
* Messages are re-serialised by h11 with one framing; bytes received are never passed through.
* Errors are `FrontdError`: downstream reasons on the server side, ``BadUpstreamHead``/``BadUpstreamBody`` on the client
  side. Anything else that escapes is a bug.
"""

from __future__ import annotations

from typing import Any, Final

import h11

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import FRAMING, Headers
from frontd.protocol.scan import (
    RESPONSE_LIMITS,
    ChunkScanner,
    RequestHead,
    ResponseHead,
    WireLimits,
    scan_request,
    scan_response,
)

# Heads reach h11 complete and chunk lines are bounded by ours, so h11's own limit must only never be the smaller one.
_H11_LIMIT = 1 << 24


_INTERIM = {
    100: b"Continue",
    101: b"Switching Protocols",
    102: b"Processing",
    103: b"Early Hints",
}


_END: Final = h11.EndOfMessage()  # validating its empty headers again for each message costs microseconds


def _end_of(trailers: Headers) -> h11.EndOfMessage:
    return h11.EndOfMessage(headers=trailers.pairs()) if len(trailers) else _END


class End:
    """Says that a body is complete; carries the trailer fields."""

    __slots__ = ("trailers",)

    def __init__(self, trailers: Headers) -> None:
        self.trailers = trailers


NO_TRAILERS: Final = Headers()


class _Body:
    """How the bytes of the current message's body are told from what follows: one of length, chunked, until close."""

    __slots__ = ("chunks", "end", "left")

    def __init__(self, left: int | None, chunks: ChunkScanner | None) -> None:
        self.left = left  # bytes still to come; None: chunked or until the connection closes
        self.chunks = chunks
        self.end: End | None = None  # h11 has said so already, the last part went out before it

    def take(self, buffer: bytearray) -> bytes:
        """Cut the checked bytes of this body off the front of `buffer`."""
        if self.chunks is not None:
            size = self.chunks.consume(buffer)
        elif self.left is None:
            size = len(buffer)
        else:
            size = min(self.left, len(buffer))
            self.left -= size
        part = bytes(buffer[:size])
        del buffer[:size]
        return part

    @property
    def complete(self) -> bool:
        return self.chunks.done if self.chunks is not None else self.left == 0


def _read_body(connection: h11.Connection, body: _Body, buffer: bytearray, ended: bool) -> bytes | End | None:
    """The next body part, the `End`, or None for "need more".  May raise `h11.RemoteProtocolError`."""
    if body.end is not None:
        return body.end
    part = body.take(buffer)
    if part:
        connection.receive_data(part)
    pieces: list[bytes | bytearray] = []
    while True:  # h11 hands out one chunk at a time; joined, they cost one write instead of many
        event = connection.next_event()
        if isinstance(event, h11.Data):
            pieces.append(event.data)
        elif isinstance(event, h11.EndOfMessage):
            body.end = End(Headers((raw.lower(), raw, value) for raw, value in event.headers.raw_items()))
            return b"".join(pieces) if pieces else body.end
        elif event is h11.NEED_DATA:
            if pieces:
                return b"".join(pieces)
            if not ended or body.complete:
                return None
            connection.receive_data(b"")  # nothing more can come, so this was the end of it, or it broke off
        else:  # PAUSED and ConnectionClosed cannot come inside a message
            raise h11.RemoteProtocolError(f"unexpected {event!r} in a body")


class _Elsewhere:
    """Stands for so many bytes that reach the socket by another way; h11 only asks for their number."""

    __slots__ = ("_size",)

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class _Connection:
    """What both sides share: the buffer of received bytes, h11, and sending bodies.  ``send_*`` return wire bytes."""

    __slots__ = ("_body", "_buffer", "_chunked_out", "_h11", "_scanned", "ended")

    def __init__(self, role: type[h11.CLIENT | h11.SERVER]) -> None:
        self._h11 = h11.Connection(role, max_incomplete_event_size=_H11_LIMIT)
        self._buffer = bytearray()
        self._scanned = 0
        self._chunked_out = False
        self._body: _Body | None = None
        self.ended = False

    def send_body(self, data: bytes) -> bytes:
        """One part of the body."""
        return self._send(h11.Data(data=data))

    def send_body_elsewhere(self, size: int) -> tuple[bytes, bytes]:
        """One part of the body, of `size` bytes, that reaches the socket by another way.  Returns what goes on the wire
        before and behind it (empty unless chunked).

        To h11 the part has been sent when this returns; whoever does not send all of it has to cut the connection.
        """
        part = _Elsewhere(size)
        event = h11.Data(data=part)  # type: ignore[arg-type]  # h11's documented use, for which it has no type
        wire: list[Any] = self._h11.send_with_data_passthrough(event) or []
        at = wire.index(part)
        return b"".join(wire[:at]), b"".join(wire[at + 1 :])

    def send_end(self, trailers: Headers = NO_TRAILERS) -> bytes:
        """The end of the message; `trailers` are sent only when the framing is chunked."""
        return self._send(_end_of(trailers) if self._chunked_out else _END)

    def _send(self, event: h11.Event) -> bytes:
        data = self._h11.send(event)
        return data if data is not None else b""

    def rest(self) -> bytes:
        """What arrived behind the last message, when HTTP is over on this connection (101)."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data


class ServerConnection(_Connection):
    """The server side of one HTTP/1 connection.

    One cycle: `next_head`, any number of `next_body`, `send_head`, `send_body`, `send_end`, `next_cycle`.  Each
    ``send_*`` returns the bytes for the wire.
    """

    __slots__ = ("_fresh", "head")

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._fresh = True
        self.head: RequestHead | None = None

    # --- reading

    def receive(self, data: bytes) -> None:
        """Take bytes from the client; ``b""`` means it will send no more."""
        if data:
            self._buffer += data
        else:
            self.ended = True

    @property
    def has_bytes(self) -> bool:
        """Whether bytes of a next message have arrived; the empty line that old clients send behind a body is none."""
        return bytes(self._buffer[:3]) not in (b"", b"\r", b"\r\n")

    def next_head(self, limits: WireLimits) -> RequestHead | None:
        """The next request head, or None for "need more".  Raises `FrontdError`."""
        buffer = self._buffer
        if self._fresh and buffer[:2] == b"\r\n":  # RFC 9112 2.2: one empty line before a request is skipped
            del buffer[:2]
            self._fresh = False
            self._scanned = 0
        head = scan_request(buffer, limits, self._scanned)
        if head is None:
            self._scanned = len(buffer)
            return None
        self._scanned = 0
        self._fresh = False
        self._h11.receive_data(bytes(buffer[: head.size]))
        del buffer[: head.size]
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise FrontdError(Reason.BadRequest, detail=str(error)) from None
        assert isinstance(event, h11.Request), event
        chunks = ChunkScanner(Reason.BadRequest, limits.max_head) if head.chunked else None
        body = self._body = _Body(None if head.chunked else head.content_length or 0, chunks)
        if body.left == 0:  # h11 tells the end of a message without a body at once; asking now settles its state
            end = self._h11.next_event()
            assert isinstance(end, h11.EndOfMessage), end
            body.end = End(NO_TRAILERS)
        self.head = head
        return head

    def next_body(self) -> bytes | End | None:
        """The next part of the request body, `End`, or None for "need more".  Raises `FrontdError`."""
        assert self._body is not None
        try:
            return _read_body(self._h11, self._body, self._buffer, self.ended)
        except h11.RemoteProtocolError as error:
            raise FrontdError(
                Reason.Connection_Dropped if self.ended else Reason.BadRequest, detail=str(error)
            ) from None

    @property
    def body_complete(self) -> bool:
        """Whether the request was read to its end."""
        if self._body is None or self._h11.their_state is h11.ERROR:
            return False
        return self._h11.their_state is not h11.SEND_BODY

    @property
    def waits_for_100(self) -> bool:
        """Whether the client announced that it sends the body only after ``100 Continue`` (RFC 9110 10.1.1)."""
        return self._h11.they_are_waiting_for_100_continue

    # --- writing

    def send_information(self, status: int, headers: Headers) -> bytes:
        """A 1xx head.  ``101`` ends the HTTP part of this connection.

        Framing fields of an app that sends them here stay behind: the head has no body (RFC 9110 8.6, RFC 9112 6.1).
        """
        pairs = [(raw, value) for name, raw, value in headers if name not in FRAMING]
        return self._send(
            h11.InformationalResponse(status_code=status, headers=pairs, reason=_INTERIM.get(status, b""))
        )

    def send_head(self, status: int, reason: bytes, headers: Headers, *, close: bool = False) -> bytes:
        """The response head; framing fields are completed by h11, ``Connection: close`` is added when `close`."""
        pairs = headers.pairs()
        if close:
            pairs.append((b"Connection", b"close"))
        head = self.head
        plain = head is None or head.version == b"1.0" or head.method == b"HEAD" or status in (204, 304)
        self._chunked_out = not plain and b"content-length" not in headers
        return self._send(h11.Response(status_code=status, headers=pairs, reason=reason))

    @property
    def answered(self) -> bool:
        """Whether a final response head went out in this cycle, or could not: then nothing more can be sent either."""
        return self._h11.our_state in (h11.SEND_BODY, h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)

    @property
    def answer_complete(self) -> bool:
        """Whether the answer of this cycle was sent to its end."""
        return self._h11.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    @property
    def closes_after_answer(self) -> bool:
        """Whether the answer said, or its framing means, that the connection ends with it."""
        return self._h11.our_state in (h11.MUST_CLOSE, h11.CLOSED)

    @property
    def must_close(self) -> bool:
        """Whether the connection cannot be kept: a message is not complete, or one side said close."""
        return self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE

    def next_cycle(self) -> None:
        """Begin the next request of a connection that is kept.  Allowed when not `must_close`."""
        self._h11.start_next_cycle()
        self._body = None
        self.head = None
        self._fresh = True


class ClientConnection(_Connection):
    """The client side of one HTTP/1 connection to an app.

    One cycle: `send_head`, `send_body`, `send_end`, `next_head` (1xx heads come first), `next_body`, `next_cycle`.
    """

    __slots__ = ("_lenient", "_method", "started")

    def __init__(self, *, lenient: bool = False) -> None:
        super().__init__(h11.CLIENT)
        self._lenient = lenient
        self._method = ""
        self.started = False  # a byte of the current response arrived

    # --- writing

    def send_head(self, method: str, target: bytes, headers: Headers) -> bytes:
        """The request head, with the framing that `headers` say."""
        self._method = method
        self.started = False
        self._chunked_out = b"transfer-encoding" in headers
        event = h11.Request(method=method, target=target, headers=headers.pairs())
        return self._send(event)

    @property
    def request_complete(self) -> bool:
        """Whether the request was sent to its end."""
        return self._h11.our_state is not h11.SEND_BODY

    # --- reading

    def receive(self, data: bytes) -> None:
        """Take bytes from the app; ``b""`` means it will send no more."""
        if data:
            self._buffer += data
            self.started = True
        else:
            self.ended = True

    def next_head(self) -> ResponseHead | None:
        """The next response head (1xx or final), or None for "need more".

        Raises `FrontdError` with ``BadUpstreamHead``; an end of stream before any byte is left to the caller (`ended`
        and not `started`).
        """
        head = scan_response(self._buffer, lenient=self._lenient, start=self._scanned)
        if head is None:
            self._scanned = len(self._buffer)
            if self.ended and self.started:
                raise FrontdError(Reason.BadUpstreamHead, detail="the connection ended inside the response head")
            return None
        self._scanned = 0
        self._h11.receive_data(bytes(self._buffer[: head.size]))
        del self._buffer[: head.size]
        try:
            self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise FrontdError(Reason.BadUpstreamHead, detail=str(error)) from None
        if head.status >= 200:
            self._body = self._framing(head)
        return head

    def _framing(self, head: ResponseHead) -> _Body:
        """How the body of this response ends (RFC 9112 6.3)."""
        if self._method == "HEAD" or head.status in (204, 304):
            return _Body(0, None)
        if head.chunked:
            return _Body(None, ChunkScanner(Reason.BadUpstreamBody, RESPONSE_LIMITS.max_head))
        return _Body(head.content_length, None)

    def next_body(self) -> bytes | End | None:
        """The next part of the response body, `End`, or None for "need more".  Raises `FrontdError`."""
        assert self._body is not None
        try:
            return _read_body(self._h11, self._body, self._buffer, self.ended)
        except h11.RemoteProtocolError as error:
            raise FrontdError(Reason.BadUpstreamBody, detail=str(error)) from None

    @property
    def reusable(self) -> bool:
        """Whether the exchange is over, both sides keep the connection and nothing unasked came behind the answer."""
        both = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        return both and not self._buffer and not self.ended

    def next_cycle(self) -> None:
        """Begin the next request.  Allowed when `reusable`."""
        self._h11.start_next_cycle()
        self._body = None
        self.started = False
