"""Feeding bytes to the two connections, in any portions, and writing down what they understood.

What is written down is plain data, so that two runs, or a run and h11's verdict, can be compared with ``==``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from frontd.lanes.requests import make_request
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.protocol.framing import End
from frontd.protocol.h1 import ClientConnection, ServerConnection
from frontd.protocol.scan import RequestHead, ResponseHead, WireLimits

Pairs = list[tuple[bytes, bytes]]


@dataclass
class Message:
    """One message that was understood to its end."""

    start: tuple[object, ...]  # method, target, version or status, reason phrase, version
    fields: Pairs
    body: bytes = b""
    trailers: Pairs = field(default_factory=list)


@dataclass
class Heard:
    """All complete messages, and the reason that ended the reading (None: more bytes are welcome)."""

    messages: list[Message] = field(default_factory=list)
    refused: Reason | None = None
    closed: bool = False  # the last answer ends the connection: what follows is not read any more


def portions(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` cut at the given places; places beyond its end do not matter."""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def each_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def pairs(headers: Headers) -> Pairs:
    return [(name, value) for name, _, value in headers]


class Listener:
    """A `ServerConnection` that answers every request with an empty 200 and writes down what it heard."""

    def __init__(self, limits: WireLimits | None = None) -> None:
        self.http = ServerConnection()
        self.limits = limits or WireLimits()
        self.heard = Heard()
        self.message: Message | None = None
        self.written = b""

    def feed(self, data: bytes) -> None:
        """Take `data` (``b""``: the client ends) and read what can be read."""
        if self.heard.refused is not None or self.heard.closed:
            return
        self.http.receive(data)
        try:
            while self._step():
                pass
        except FrontdError as error:
            self.heard.refused = error.reason

    def _step(self) -> bool:
        if self.message is None:
            head = self.http.next_head(self.limits)
            if head is None:
                return False
            make_request(head)
            self.message = understood(head)
        part = self.http.next_body()
        if isinstance(part, bytes):
            self.message.body += part
        elif isinstance(part, End):
            self.message.trailers = pairs(part.trailers)
            self.heard.messages.append(self.message)
            self.message = None
            self.written += self.http.send_head(200, b"OK", Headers.of((b"Content-Length", b"0")))
            self.written += self.http.send_end()
            if self.http.must_close:
                self.heard.closed = True
                return False
            self.http.next_cycle()
        return part is not None


def understood(head: RequestHead) -> Message:
    return Message((head.method, head.target, head.version), pairs(head.headers))


def server_hears(parts: Sequence[bytes], limits: WireLimits | None = None, *, end: bool = False) -> Heard:
    """What the server side makes of requests that arrive in these parts."""
    it = Listener(limits)
    for part in parts:
        it.feed(part)
    if end:
        it.feed(b"")
    return it.heard


def asking(method: str = "GET", *, lenient: bool = False) -> ClientConnection:
    """A client side that has sent one request without a body."""
    http = ClientConnection(lenient=lenient)
    http.send_head(method, b"/", Headers.of((b"Host", b"a.test")))
    http.send_end()
    return http


def client_hears(
    parts: Sequence[bytes], method: str = "GET", *, end: bool = False, lenient: bool = False
) -> tuple[Heard, bytes]:
    """What the client side makes of one answer (with the 1xx heads before it) in these parts, and what it left over."""
    http = asking(method, lenient=lenient)
    heard = Heard()
    message: Message | None = None
    for data in [*parts, b""] if end else parts:
        http.receive(data)
        try:
            while not heard.closed:
                if message is None:
                    head = http.next_head()
                    if head is None:
                        break
                    message = answered(head)
                    if head.status < 200:
                        heard.messages.append(message)
                        message = None
                    continue
                part = http.next_body()
                if part is None:
                    break
                if isinstance(part, End):
                    message.trailers = pairs(part.trailers)
                    heard.messages.append(message)
                    heard.closed = True
                else:
                    message.body += part
        except FrontdError as error:
            heard.refused = error.reason
            break
    return heard, http.rest()


def answered(head: ResponseHead) -> Message:
    return Message((head.status, head.reason, head.version), pairs(head.headers))


# ------------------------------------------------------------------------------------------- one step after the other


def ask(http: ServerConnection, data: bytes) -> RequestHead:
    """Let a request arrive; its head."""
    http.receive(data)
    head = http.next_head(WireLimits())
    assert head is not None
    return head


def request(line: str = "GET / HTTP/1.1", *fields: str, body: bytes = b"") -> bytes:
    """A request with a Host."""
    return "".join(f"{text}\r\n" for text in (line, "Host: a", *fields, "")).encode() + body


def read(http: ServerConnection | ClientConnection) -> bytes:
    """The rest of a body that is there to its end."""
    body = b""
    while not isinstance(part := http.next_body(), End):
        assert part is not None
        body += part
    return body


def now(state: bool) -> bool:
    """A state as it is now: mypy would otherwise believe that a property never changes."""
    return state
