"""What both sides of HTTP/1.1 share (see `protocol.h1`): the buffer, reading a body, sending a body."""

from __future__ import annotations

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.protocol.chunks import ChunkScanner
from frontd.protocol.framing import CHUNKED, NO_TRAILERS, PLAIN_END, UNTIL_CLOSE, End, Part, body_bytes, end_bytes

NOTHING, BEGUN, WHOLE, FAILED = range(4)  # how far a message has been sent


class Base:
    """What both sides share: the buffer of received bytes, reading a body, sending a body.  ``send_*`` return wire
    bytes."""

    __slots__ = ("_buffer", "_chunks", "_fault", "_left_in", "_left_out", "_scanned", "_sent", "ended")

    _broken_off = Reason.Connection_Dropped  # the peer ended inside a body

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""
        self._scanned = 0
        self._left_in = 0  # bytes of the body that is read; or CHUNKED, UNTIL_CLOSE
        self._chunks: ChunkScanner | None = None
        self._fault: FrontdError | None = None  # what has ended the body that is read
        self._left_out = 0
        self._sent = NOTHING
        self.ended = False

    # --- reading

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer; ``b""`` means it will send no more."""
        if not data:
            self.ended = True
        elif not self._buffer:
            self._buffer = data
        else:
            self._buffer = self._grown()
            self._buffer += data

    def _grown(self) -> bytearray:
        """The buffer as one that can be changed in place."""
        buffer = self._buffer
        return buffer if isinstance(buffer, bytearray) else bytearray(buffer)

    def _cut(self, size: int) -> bytes:
        """Take `size` bytes off the front of the buffer."""
        buffer = self._buffer
        if size == len(buffer):
            self._buffer = b""
            return bytes(buffer)
        self._buffer = buffer[size:]
        return bytes(buffer[:size])

    def next_body(self) -> bytes | End | None:
        """The next part of the body, `End`, or None for "need more".  Raises `FrontdError`."""
        left = self._left_in
        if left == 0:
            return PLAIN_END
        if left == CHUNKED:
            return self._next_chunks()
        buffer = self._buffer
        if not buffer:
            if not self.ended:
                return None
            if left == UNTIL_CLOSE:
                return PLAIN_END
            raise FrontdError(self._broken_off, detail="the connection ended inside a body")
        if left == UNTIL_CLOSE:
            return self._cut(len(buffer))
        size = min(left, len(buffer))
        self._left_in = left - size
        return self._cut(size)

    @property
    def body_ahead(self) -> int:
        """Bytes of the body that have yet to come, where its length is known and the buffer is empty; else 0."""
        left = self._left_in
        return left if left > 0 and not self._buffer and not self.ended else 0

    def body_came_elsewhere(self, size: int) -> None:
        """`size` bytes of `body_ahead` were read from the socket and go by another way."""
        assert size <= self.body_ahead
        self._left_in -= size

    def _next_chunks(self) -> bytes | End | None:
        chunks = self._chunks
        assert chunks is not None
        if self._fault is not None:
            raise FrontdError(self._fault.reason, detail=self._fault.detail)
        if self._is_read:
            return End(chunks.trailers)
        try:
            size, pieces = chunks.take(self._buffer)
        except FrontdError as error:
            self._fault = FrontdError(error.reason, detail=error.detail)
            raise
        if size:
            self._cut(size)
        if pieces:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if size:  # chunks are walked some at a time
            return self._next_chunks()
        if self.ended:
            raise FrontdError(self._broken_off, detail="the connection ended inside a chunked body")
        return None

    @property
    def _is_read(self) -> bool:
        """Whether the body was read to its end."""
        left = self._left_in
        if left == CHUNKED:
            return self._chunks is not None and self._chunks.done
        return left == 0 or (left == UNTIL_CLOSE and self.ended and not self._buffer)

    @property
    def is_over(self) -> bool:
        """Whether the body was read to its end, and has no trailer fields."""
        left = self._left_in
        if left == CHUNKED:
            return self._chunks is not None and self._chunks.done and not self._chunks.trailers.items
        return left == 0

    def rest(self) -> bytes:
        """What arrived behind the last message, when HTTP is over on this connection (101)."""
        return self._cut(len(self._buffer))

    # --- writing

    def send_last(self, data: Part) -> Part:
        """The rest of the body, and its end.  Raises `ValueError` when its head says another length."""
        left = self._left_out
        if left == CHUNKED and data:
            data = b"".join((b"%x\r\n" % len(data), data, b"\r\n0\r\n\r\n"))
        elif len(data) == left:
            self._left_out = 0
        else:
            return bytes(self.send_body(data)) + self.send_end()
        self._sent = WHOLE
        return data

    def send_body(self, data: Part) -> Part:
        """One part of the body.  Raises `ValueError` when the body becomes longer than its head says."""
        try:
            wire, self._left_out = body_bytes(self._left_out, data)
        except ValueError:
            self._sent = FAILED
            raise
        return wire

    def send_body_elsewhere(self, size: int) -> tuple[bytes, bytes]:
        """One part of the body, of `size` bytes, that reaches the socket by another way.  Returns what goes on the wire
        before and behind it (empty unless chunked).

        The part counts as sent when this returns; whoever does not send all of it has to cut the connection.
        """
        if self._left_out == CHUNKED:
            return b"%x\r\n" % size, b"\r\n"
        if self._left_out != UNTIL_CLOSE:
            if size > self._left_out:
                self._sent = FAILED
                raise ValueError("the body is longer than its Content-Length")
            self._left_out -= size
        return b"", b""

    def send_end(self, trailers: Headers = NO_TRAILERS) -> bytes:
        """The end of the message; `trailers` are sent only when the framing is chunked.

        Raises `ValueError` when the body is shorter than its head says.
        """
        try:
            wire = end_bytes(self._left_out, trailers)
        except ValueError:
            self._sent = FAILED
            raise
        self._sent = WHOLE
        return wire
