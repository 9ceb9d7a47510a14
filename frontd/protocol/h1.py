"""HTTP/1.1, both sides, without a socket: bytes in, heads and body parts out.

How it works
------------
Each connection owns one buffer of received bytes.  Heads and chunk lines are checked on the wire by `protocol.scan`.  A
head that it calls *plain* needs nothing more; any other goes to h11, whose verdict on what it means stands.  Bodies are
read by their length or by `protocol.chunks`, and everything that is sent is framed by `protocol.framing`.

`ServerConnection` is the side towards the client, `ClientConnection` the side towards an app.  Their reading half has
the same three verbs: ``receive(data)`` (``b""`` is the end of the stream), ``next_head()``, ``next_body()``.

With ``FRONTD_SCANNER=off`` in the environment h11 is asked about every head; answers are the same, only slower.

Invariants
----------
* ``next_*`` answer None for "need more", and never read past the current message.
* Messages are serialised anew with one framing; bytes received are never passed through.
* Errors are `FrontdError`: downstream reasons on the server side, ``BadUpstreamHead``/``BadUpstreamBody`` on the client
  side. Anything else that escapes is a bug; after one while sending, the connection can only be cut.
"""

from __future__ import annotations

import os
from typing import Final

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import FRAMING, Headers
from frontd.protocol.chunks import ChunkScanner
from frontd.protocol.framing import (
    CHUNKED,
    UNTIL_CLOSE,
    head_bytes,
    length_in,
    status_line,
)
from frontd.protocol.h1base import BEGUN, FAILED, NOTHING, WHOLE, Base
from frontd.protocol.referee import judge_request, judge_response
from frontd.protocol.scan import (
    RESPONSE_LIMITS,
    RequestHead,
    ResponseHead,
    WireLimits,
    scan_request,
    scan_response,
)

_TRUSTS_SCANNER = os.environ.get("FRONTD_SCANNER") != "off"

_INTERIM = {
    100: b"Continue",
    101: b"Switching Protocols",
    102: b"Processing",
    103: b"Early Hints",
}
_BODYLESS = frozenset((204, 304))
_CONNECTION_CLOSE: Final = b"Connection: close\r\n"
_CHUNKED_FIELD: Final = b"Transfer-Encoding: chunked\r\n"

LOOK: Final = -3  # the length of a body stands in the fields of its head


class ServerConnection(Base):
    """The server side of one HTTP/1 connection.

    One cycle: `next_head`, any number of `next_body`, `send_head`, `send_body`, `send_end`, `next_cycle`.  Each
    ``send_*`` returns the bytes for the wire.
    """

    __slots__ = ("_closes", "_fresh", "_informed", "head")

    def __init__(self) -> None:
        super().__init__()
        self._fresh = True
        self._informed = False  # by a 100 or by the answer itself; or the client does not wait for it
        self._closes = False  # after the answer
        self.head: RequestHead | None = None

    # --- reading

    def receive(self, data: bytes) -> None:
        """Take bytes from the client; ``b""`` means it will send no more."""
        if self.head is not None:
            self._informed = True  # who sends its body does not wait for a 100
        elif data and not self._buffer:
            self._buffer = data
            return
        super().receive(data)

    def body_came_elsewhere(self, size: int) -> None:
        """`size` bytes of `body_ahead` were read from the socket and go by another way."""
        self._informed = True
        super().body_came_elsewhere(size)

    @property
    def has_bytes(self) -> bool:
        """Whether bytes of a next message have arrived; the empty line that old clients send behind a body is none."""
        buffer = self._buffer
        return bool(buffer) and bytes(buffer[:3]) not in (b"\r", b"\r\n")

    def next_head(self, limits: WireLimits) -> RequestHead | None:
        """The next request head, or None for "need more".  Raises `FrontdError`."""
        buffer = self._buffer
        if not buffer:
            return None
        if self._fresh and buffer[:2] == b"\r\n":  # RFC 9112 2.2: one empty line before a request is skipped
            self._cut(2)
            buffer = self._buffer
            self._fresh = False
            self._scanned = 0
        head = scan_request(buffer, limits, self._scanned)
        if head is None:
            self._scanned = len(buffer)
            return None
        self._scanned = 0
        self._fresh = False
        size = head.size
        self._buffer = buffer[size:] if size < len(buffer) else b""
        if not (head.plain and _TRUSTS_SCANNER):
            judge_request(bytes(buffer[:size]))
        if head.chunked:
            self._left_in = CHUNKED
            self._chunks = ChunkScanner(Reason.BadRequest, limits.max_head)
        else:
            self._left_in = head.content_length or 0
        self.head = head
        self._informed = bool(self._buffer)
        return head

    @property
    def body_complete(self) -> bool:
        """Whether the request was read to its end."""
        return self.head is not None and self._is_read

    @property
    def waits_for_100(self) -> bool:
        """Whether the client announced that it sends the body only after ``100 Continue`` (RFC 9110 10.1.1)."""
        head = self.head
        if self._informed or head is None or head.plain or self._is_read:
            return False
        return head.version == b"1.1" and b"100-continue" in head.headers.tokens(b"expect")

    # --- writing

    def send_information(self, status: int, headers: Headers) -> bytes:
        """A 1xx head.  ``101`` ends the HTTP part of this connection.

        Framing fields of an app that sends them here stay behind: the head has no body (RFC 9110 8.6, RFC 9112 6.1).
        Raises `ValueError` when a field would break out of its line, and for a 101 that the client did not ask for.
        """
        head = self.head
        if status == 101 and (head is None or b"upgrade" not in head.headers):
            raise ValueError("101 that was not asked for")
        self._informed = True
        items = [item for item in headers.items if item[0] not in FRAMING]
        return head_bytes(status_line(status, _INTERIM.get(status, b"")), items)

    def send_head(
        self, status: int, reason: bytes, headers: Headers | bytes, *, close: bool = False, length: int | None = LOOK
    ) -> bytes:
        """The response head; `length` is that of its body if the caller knows what `headers` say.  Where they have no
        Content-Length the body is chunked, or for HTTP/1.0 ends with the connection; ``Connection: close`` is added
        when the connection ends with the answer (`close`, or because the client wants it).

        Raises `ValueError` when a field would break out of its line.
        """
        head, more = self.head, b""
        self._sent = FAILED  # until all of this has worked
        old = head is None or head.version == b"1.0"
        left = length_in(headers.items) if length == LOOK and isinstance(headers, Headers) else length
        if left is None and status not in _BODYLESS:
            left = UNTIL_CLOSE if old else CHUNKED
            more = b"" if old else _CHUNKED_FIELD
        if head is not None and (head.method == b"HEAD" or status in _BODYLESS):
            left = 0
        self._left_out = left or 0
        self._closes = close or head is None or not head.keep_alive or left == UNTIL_CLOSE
        if self._closes:
            more += _CONNECTION_CLOSE
        start = status_line(status, reason)
        if isinstance(headers, bytes):
            wire = b"%b%b%b\r\n" % (start, headers, more)
        else:
            wire = head_bytes(start, headers.items, more)
        self._sent = BEGUN
        self._informed = True
        return wire

    def send_answer(self, status: int, reason: bytes, lines: bytes, body: bytes, *, close: bool) -> bytes:
        """A whole answer; its field `lines` are fit to be sent and name the length of `body`, if it may have one."""
        head = self.head
        self._closes = close or head is None or not head.keep_alive
        self._left_out, self._sent, self._informed = 0, WHOLE, True
        more = _CONNECTION_CLOSE if self._closes else b""
        if status in _BODYLESS or (head is not None and head.method == b"HEAD"):
            body = b""
        return b"%b%b%b\r\n%b" % (status_line(status, reason), lines, more, body)

    @property
    def answered(self) -> bool:
        """Whether a final response head went out in this cycle, or could not: then nothing more can be sent either."""
        return self._sent != NOTHING

    @property
    def answer_complete(self) -> bool:
        """Whether the answer of this cycle was sent to its end."""
        return self._sent == WHOLE

    @property
    def closes_after_answer(self) -> bool:
        """Whether the answer said, or its framing means, that the connection ends with it."""
        return self._sent == WHOLE and self._closes

    @property
    def must_close(self) -> bool:
        """Whether the connection cannot be kept: a message is not complete, or one side said close."""
        return self._sent != WHOLE or self._closes or (self._left_in != 0 and not self._is_read)

    def recycle(self) -> bool:
        """Begin the next request, if the connection is kept; whether it is."""
        if self.must_close:
            return False
        self._chunks = None
        self._sent = NOTHING
        self._informed = False
        self.head = None
        self._fresh = True
        return True

    def next_cycle(self) -> None:
        """Begin the next request of a connection that is kept.  Allowed when not `must_close`."""
        kept = self.recycle()
        assert kept


class ClientConnection(Base):
    """The client side of one HTTP/1 connection to an app.

    One cycle: `send_head`, `send_body`, `send_end`, `next_head` (1xx heads come first), `next_body`, `next_cycle`.
    """

    __slots__ = ("_head", "_lenient", "_method", "_upgrades", "started")

    _broken_off = Reason.BadUpstreamBody

    def __init__(self, *, lenient: bool = False) -> None:
        super().__init__()
        self._lenient = lenient
        self._method = ""
        self._upgrades = False  # the request asks to change the protocol
        self._head: ResponseHead | None = None  # the final one
        self.started = False  # a byte of the current response arrived

    # --- writing

    def send_head(
        self, method: str, target: bytes, headers: Headers | bytes, length: int | None = LOOK, *, whole: bool = False,
        upgrades: bool = False,
    ) -> bytes:  # fmt: skip
        """The request head, with the framing that `headers` say; `length` is that of the body if the caller knows what
        they say, which it must where they are lines already; then `upgrades` tells whether one is ``Upgrade``.
        `whole`: there is no body, so that this is all.

        Raises `ValueError` when a field would break out of its line.
        """
        self._method = method
        self.started = False
        self._head = None
        self._sent = FAILED  # until all of this has worked
        if isinstance(headers, bytes):
            self._left_out = length or 0
            self._upgrades = upgrades
            wire = b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode("ascii"), target, headers)
        else:
            self._left_out = (length_in(headers.items) if length == LOOK else length) or 0
            self._upgrades = b"upgrade" in headers
            wire = head_bytes(b"%b %b HTTP/1.1\r\n" % (method.encode("ascii"), target), headers.items)
        self._sent = WHOLE if whole else BEGUN
        return wire

    @property
    def request_complete(self) -> bool:
        """Whether the request was sent to its end."""
        return self._sent == WHOLE

    # --- reading

    def receive(self, data: bytes) -> None:
        """Take bytes from the app; ``b""`` means it will send no more."""
        if data:
            self.started = True
            if not self._buffer:
                self._buffer = data
                return
        super().receive(data)

    def next_head(self) -> ResponseHead | None:
        """The next response head (1xx or final), or None for "need more".

        Raises `FrontdError` with ``BadUpstreamHead``; an end of stream before any byte is left to the caller (`ended`
        and not `started`).
        """
        buffer = self._buffer
        if self._lenient:  # heads are mended in place
            buffer = self._buffer = self._grown()
        head = scan_response(buffer, lenient=self._lenient, start=self._scanned) if buffer else None
        if head is None:
            self._scanned = len(buffer)
            if self.ended and self.started:
                raise FrontdError(Reason.BadUpstreamHead, detail="the connection ended inside the response head")
            return None
        self._scanned = 0
        self._buffer = buffer[head.size :]
        if not (head.plain and _TRUSTS_SCANNER):
            judge_response(bytes(buffer[: head.size]), self._method, upgrades=self._upgrades)
        if head.status >= 200:
            self._head = head
            self._chunks = None
            if self._method == "HEAD" or head.status in _BODYLESS:
                self._left_in = 0
            elif head.chunked:
                self._left_in = CHUNKED
                self._chunks = ChunkScanner(Reason.BadUpstreamBody, RESPONSE_LIMITS.max_head)
            elif head.content_length is None:
                self._left_in = UNTIL_CLOSE
            else:
                self._left_in = head.content_length
        return head

    @property
    def reusable(self) -> bool:
        """Whether the exchange is over, both sides keep the connection and nothing unasked came behind the answer."""
        head = self._head
        if head is None or self._sent != WHOLE or self._buffer or self.ended or not head.keep_alive:
            return False
        return self._left_in == 0 or (self._left_in == CHUNKED and self._is_read)

    def recycle(self) -> bool:
        """Begin the next request, if the connection is kept and nothing unasked came; whether it is."""
        if not self.reusable:
            return False
        self._chunks = None
        self._sent = NOTHING
        self._head = None
        self.started = False
        return True

    def next_cycle(self) -> None:
        """Begin the next request.  Allowed when `reusable`."""
        kept = self.recycle()
        assert kept
