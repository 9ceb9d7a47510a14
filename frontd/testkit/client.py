"""A client of the site under test: one end of a socket pair, bytes out, answers in.

How it works
------------
The test's thread writes a piece, lets the site come to rest, reads what has come, and so on until the answer is whole
or the connection has ended.  Answers are read by h11, strictly: what frontd sends and no client would understand fails
the test.

Invariant: a wait ends after `patience` seconds of real time, with a `TimeoutError` that says where it hangs.
"""

from __future__ import annotations

import base64
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import h11

from frontd.testkit.app import App
from frontd.testkit.loop import Loop
from frontd.testkit.messages import Answer, Fields

READ_SIZE = 65536
LOOK_AGAIN = 0.01  # s of real time between two looks at a site that waits for something outside of the test

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Habits:
    """What requests are like when the call does not say: the host, and the size of the pieces that are sent (None:
    whole)."""

    host: str
    split: int | None = None


class Client:
    """One connection to the site.  Use it as a context manager, or close it."""

    def __init__(self, sock: socket.socket, loop: Loop, app: App, habits: Habits) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._app = app
        self._habits = habits
        self._received = b""
        self._ended = False
        self._is_idle = True  # nothing that was sent waits for an answer
        self._seen = 0  # requests of the app that are not this connection's, or were told with an answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, TimeoutError):  # to wait for the end of what hangs would take as long again
            self.abandon()
        else:
            self.close()

    # ------------------------------------------------------------------ whole requests

    def get(
        self, path: str = "/", headers: Headers = (), *, host: str | None = None, auth: tuple[str, str] | None = None,
        split: int | None = None, advance: float = 0.0,
    ) -> Answer:  # fmt: skip
        """GET; see `request`."""
        return self.request("GET", path, headers, host=host, auth=auth, split=split, advance=advance)

    def post(
        self, path: str = "/", body: bytes | str = b"", headers: Headers = (), *, host: str | None = None,
        auth: tuple[str, str] | None = None, split: int | None = None, advance: float = 0.0,
    ) -> Answer:  # fmt: skip
        """POST; see `request`."""
        return self.request("POST", path, headers, body, host=host, auth=auth, split=split, advance=advance)

    def request(
        self, method: str, path: str = "/", headers: Headers = (), body: bytes | str = b"", *, host: str | None = None,
        auth: tuple[str, str] | None = None, split: int | None = None, advance: float = 0.0,
    ) -> Answer:  # fmt: skip
        """Send one request and read its answer.

        `path` is sent as it stands, query and all.  `auth` is a user name and a password (Basic).  `split` sends the
        request in pieces of so many bytes.  `advance` is how far the clock may go on, in seconds, while the answer is
        waited for.  Raises `ConnectionError` when the connection ends before the answer does, and `TimeoutError`.
        """
        asked = self._app.requests
        seen = len(asked)
        self.send(request_bytes(method, path, host or self._habits.host, headers, body, auth), split=split)
        answer = self.receive(method, advance=advance)
        # the last one: a request may have been sent twice
        return replace(answer, upstream=asked[-1] if len(asked) > seen else None)

    # ------------------------------------------------------------------ bytes

    def send(self, data: bytes, *, split: int | None = None) -> None:
        """Send bytes, in pieces of `split` bytes; the site comes to rest after each.

        What is left of them when frontd ends the connection is dropped, as it is for any client.
        """
        if self._is_idle:
            self._seen = len(self._app.requests)
        self._is_idle = False
        size = split or self._habits.split or len(data) or 1
        for at in range(0, len(data), size):
            self._send_piece(data[at : at + size])
            self._loop.settle()

    def receive(self, method: str = "GET", *, advance: float = 0.0) -> Answer:
        """The next answer.  `method` is that of the request: an answer to HEAD has no body.

        Its `upstream` is the next request that the app saw since this connection began to send; when several
        connections are busy, or an answer is a cached one, look at `requests` of the app instead.
        """
        parser = _Parser(method)
        end = self._loop.now + advance

        def complete() -> bool:
            self._received = parser.feed(self._received, self._ended)
            return parser.complete

        def go_on() -> bool:
            left = end - self._loop.now
            return left > 0 and self._loop.step(left) > 0

        self._until(complete, "no whole answer came", go_on)
        self._is_idle = not self._received
        asked = self._app.requests[self._seen : self._seen + 1]
        self._seen += len(asked)
        return replace(parser.answer(), upstream=asked[0] if asked else None)

    def receive_bytes(self) -> bytes:
        """Everything that has come and was not read yet."""
        self._loop.settle()
        self._read()
        data, self._received = self._received, b""
        return data

    @property
    def closed(self) -> bool:
        """Whether frontd has ended the connection; what it sent before can still be received."""
        self._loop.settle()
        if self._read():
            self._loop.settle()
        return self._ended

    def end_writing(self) -> None:
        """Say that nothing more will be sent; frontd takes it as leaving, as it does with any client."""
        self._sock.shutdown(socket.SHUT_WR)
        self._loop.settle()

    def close(self) -> None:
        """Leave."""
        if self._sock.fileno() >= 0:
            self._sock.close()
            self._loop.settle()

    def abandon(self) -> None:
        """Leave without waiting for what frontd makes of it."""
        self._sock.close()

    # ------------------------------------------------------------------ waiting

    def _send_piece(self, data: bytes) -> None:
        rest = memoryview(data)

        def sent() -> bool:
            nonlocal rest
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):  # the answer may be there all the same
                rest = rest[len(rest) :]
            return not rest

        self._until(sent, "frontd did not read the request")

    def _until(self, ready: Callable[[], bool], what: str, go_on: Callable[[], bool] = lambda: False) -> None:
        """Let the site work until `ready`; when it is at rest, `go_on` may move the clock and say that it did."""
        give_up = time.monotonic() + self._loop.patience
        while not ready():
            self._loop.settle()
            if self._read() or ready() or go_on():
                continue
            select.select([] if self._ended else [self._sock], [], [], LOOK_AGAIN)
            if time.monotonic() > give_up:
                raise TimeoutError(self._loop.stuck(what))

    def _read(self) -> bool:
        """Read what has come; whether something has."""
        before = len(self._received), self._ended
        with suppress(BlockingIOError):
            while not self._ended:
                try:
                    data = self._sock.recv(READ_SIZE)
                except ConnectionResetError:
                    data = b""
                self._received += data
                self._ended = not data
        if self._ended and not before[1]:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)  # as clients do; frontd waits for it before it forgets them
        return before != (len(self._received), self._ended)


def request_bytes(
    method: str, path: str, host: str, headers: Headers, body: bytes | str, auth: tuple[str, str] | None
) -> bytes:
    """A request on the wire, with Host and Content-Length unless `headers` have them."""
    content = body.encode() if isinstance(body, str) else body
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    names = {name.lower() for name, _ in given}
    fields = [] if "host" in names else [("Host", host)]
    if auth is not None:
        fields.append(("Authorization", "Basic " + base64.b64encode(":".join(auth).encode()).decode()))
    fields += given
    if not names & {"content-length", "transfer-encoding"} and (content or method in ("POST", "PUT", "PATCH")):
        fields.append(("Content-Length", str(len(content))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content


class _Parser:
    """One answer, by h11; it is given a request of the same method, so that it knows when there is no body."""

    def __init__(self, method: str) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._http.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        self._http.send(h11.EndOfMessage())
        self._head: h11.Response | None = None
        self._body: list[bytes] = []
        self._interim: list[int] = []
        self._told_end = False
        self.complete = False

    def feed(self, data: bytes, ended: bool) -> bytes:
        """Take `data`; returns what belongs to the next answer.  Raises `ConnectionError` when it ended too early."""
        if self.complete:
            return data
        if data:
            self._http.receive_data(data)
        if ended and not self._told_end:
            self._told_end = True
            self._http.receive_data(b"")
        try:
            while not self.complete and self._take(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            if not ended:
                raise
            got = f"before the answer was whole ({error})" if self._head else "without an answer"
            raise ConnectionError(f"the connection ended {got}") from None
        return bytes(self._http.trailing_data[0]) if self.complete else b""

    def _take(self, event: object) -> bool:
        if isinstance(event, h11.InformationalResponse):
            self._interim.append(event.status_code)
            self.complete = event.status_code == 101
            self._head = h11.Response(status_code=event.status_code, headers=event.headers) if self.complete else None
        elif isinstance(event, h11.Response):
            self._head = event
        elif isinstance(event, h11.Data):
            self._body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self.complete = True
        else:
            return False
        return True

    def answer(self) -> Answer:
        """The whole answer."""
        assert self._head is not None
        fields = Fields(self._head.headers.raw_items())
        return Answer(self._head.status_code, fields, b"".join(self._body), None, tuple(self._interim))
