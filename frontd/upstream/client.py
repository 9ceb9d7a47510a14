"""One connection to an app: connecting, and the non-waiting half of one exchange over it.

How it works
------------
`connect` makes an `Upstream`: a `Stream` with a `ClientConnection` on it.  `head_now` and `body_now` never wait: they
answer None when the stream must become readable first, so that the pipeline decides how to wait and for how long.

Invariants
----------
* An end of stream before the first byte of a response is `UpstreamGone` (repeatable perhaps); any later fault is a
  `FrontdError` with source upstream.
* A Unix connect that says EAGAIN means "the app's backlog is full", never "connected".
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from frontd.model.addresses import bracketed
from frontd.model.errors import FrontdError, Reason, UpstreamGone
from frontd.net.sockets import tcp_options
from frontd.net.streams import READ_SIZE, Broken, Stream
from frontd.net.tls import UntrustedUpstream, connect_tls
from frontd.protocol.framing import End, Part
from frontd.protocol.h1 import ClientConnection
from frontd.protocol.scan import ResponseHead


class ConnectFailed(Exception):
    """No connection to the app could be made; `reason` is set when waiting would not help (an untrusted certificate),
    `busy` when the app is there but its backlog is full."""

    def __init__(self, text: str, reason: Reason | None = None, *, busy: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.busy = busy


@dataclass(frozen=True, slots=True)
class Address:
    """Where an app listens: an IP and port, or the path of a Unix socket (`port` 0)."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return f"unix:{self.host}"
        return f"{bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an app is spoken to: TLS context (None: plain), the name to verify, leniency towards its heads, and the PEM
    bytes of the authority that `context` was made from (empty: the system's)."""

    context: ssl.SSLContext | None = None
    server_name: str = ""
    lenient: bool = False
    authority: bytes = b""

    def to(self, server_name: str) -> Dialect:
        """The same for an app with another name to verify."""
        return replace(self, server_name=server_name)


class Home(Protocol):
    """Where connections wait for their next exchange."""

    def forget(self, upstream: Upstream, /) -> None:
        """Close it, if it waits here."""


class Upstream:
    """One connection to an app.  `uses` counts the exchanges begun on it, `reads` how often something was read from it;
    `idle_since` is a time on trio's clock; `is_idle`: it waits for an exchange, at `place`."""

    __slots__ = ("http", "idle_since", "is_idle", "place", "reads", "stream", "uses")

    hears_end = False

    def __init__(self, stream: Stream, *, lenient: bool = False) -> None:
        self.stream = stream
        self.http = ClientConnection(lenient=lenient)
        self.uses = 0
        self.reads = 0
        self.idle_since = 0.0
        self.is_idle = False
        self.place: Home | None = None
        stream.owner = self

    def __repr__(self) -> str:
        return f"<Upstream {self.stream!r} uses={self.uses}>"

    @property
    def moved(self) -> int:
        """A number that grows whenever bytes go either way."""
        return self.reads + self.stream.sent

    @property
    def watched(self) -> bool:
        """Whether a reactor will tell of an end or of bytes while it waits, and there are none now."""
        stream = self.stream
        return stream.lane is not None and not stream.ready

    def on_event(self, stream: Stream) -> None:
        """Something came, and no exchange waits for it."""
        if self.is_idle and self.place is not None and not self.is_alive():
            self.place.forget(self)

    def is_alive(self) -> bool:
        """Whether an idle connection still stands: nothing to read, neither an end nor unasked bytes."""
        try:
            return self.stream.receive_now() is None
        except Broken:
            return False

    def head_now(self) -> ResponseHead | None:
        """The next response head if it is there.  Raises `UpstreamGone` or `FrontdError`."""
        http = self.http
        head = http.next_head() if http.started else None
        while head is None:
            data = self._receive_now()
            if data is None:
                return None
            if not data and not http.started:
                raise UpstreamGone("ended without an answer", is_end=self.stream.is_delivered)
            head = http.next_head()
        return head

    def body_now(self) -> bytes | End | None:
        """The next part of the response body if it is there.  Raises `FrontdError`."""
        while (part := self.http.next_body()) is None:
            if self._receive_now() is None:
                return None
        return part

    def part_now(self, size: int) -> Part | End | None:
        """`body_now` for who is done with the part before anything else is read: parts of a large body are of up to
        `size` bytes, in the buffer that all share (`Stream.receive_view`).  Raises `FrontdError`."""
        ahead = self.http.body_ahead
        if ahead <= READ_SIZE:
            return self.body_now()
        try:
            part = self.stream.receive_view(min(ahead, size))
        except Broken as error:
            raise FrontdError(Reason.BadUpstreamBody, detail=str(error)) from None
        if part:
            self.reads += 1
            self.http.body_came_elsewhere(len(part))
        elif part is not None:
            self.http.receive(b"")
            return self.http.next_body()
        return part

    def send_now(self, data: Part) -> bool:
        """Queue `data` and send what goes; True when nothing is left waiting.  Raises `UpstreamGone`."""
        try:
            return self.stream.send_now(data)
        except Broken as error:
            raise UpstreamGone(str(error)) from None

    async def flush(self, stall: float) -> None:
        """Wait until everything is sent.

        Raises `UpstreamGone`, and `FrontdError` with ``Timer_Response`` when nothing moves for `stall` seconds.
        """
        try:
            await self.stream.flush(stall, 1, Reason.Timer_Response)
        except Broken as error:
            raise UpstreamGone(str(error)) from None

    def _receive_now(self) -> bytes | None:
        try:
            data = self.stream.receive_now()
        except Broken as error:
            if not self.http.started:
                raise UpstreamGone(str(error)) from None
            raise FrontdError(Reason.BadUpstreamBody, detail=str(error)) from None
        if data is not None:
            self.reads += 1
            self.http.receive(data)
        return data


async def connect(address: Address, dialect: Dialect, timeout: float) -> Upstream:
    """Connect within `timeout` seconds, TLS included.  Raises `ConnectFailed`."""
    try:
        with trio.fail_after(timeout):
            sock = await _connect_unix(address) if not address.port else await _connect_tcp(address)
            if dialect.context is None:
                return Upstream(Stream(sock), lenient=dialect.lenient)
            stream = await connect_tls(sock, dialect.context, dialect.server_name)
            return Upstream(stream, lenient=dialect.lenient)
    except trio.TooSlowError:
        raise ConnectFailed(f"no connection within {timeout:g} s") from None
    except UntrustedUpstream as error:
        raise ConnectFailed(str(error), Reason.UpstreamTls) from None
    except Broken as error:
        raise ConnectFailed(str(error)) from None  # an app that restarts looks like this too
    except BlockingIOError:  # Unix only
        raise ConnectFailed("its backlog is full", busy=True) from None
    except OSError as error:
        # trio's text repeats the address; the bare one of the errno is what people know
        raise ConnectFailed(os.strerror(error.errno) if error.errno else str(error)) from None


async def _connect_tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_STREAM) as connecting:
        await connecting.connect((address.host, address.port))
        sock = socket.socket(fileno=connecting.detach())
    tcp_options(sock)
    sock.setblocking(False)
    return sock


async def _connect_unix(address: Address) -> socket.socket:
    await trio.lowlevel.checkpoint()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(address.host)  # trio's connect would take EAGAIN for "in progress"
    except BaseException:
        sock.close()
        raise
    return sock
