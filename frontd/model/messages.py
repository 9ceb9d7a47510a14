"""What an exchange is made of: the peer, the request, the answer, and what was decided about them.

Plain slotted objects without I/O.  An `Exchange` is made when a request head is complete and lives until its one log
line is written; everything that is decided on the way is written onto it, so that log, error page and status read one
object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol

from frontd.model.errors import Reason
from frontd.model.headers import HOP_BY_HOP, Headers, TextOrBytes, bad_field, octets
from frontd.model.verdicts import Identity


@dataclass(slots=True, frozen=True)
class TlsPolicy:
    """What a TLS host demands of clients.  Two hosts with equal policies may share a connection; others get 421.

    `client_certificate` is ``none``, ``optional`` or ``required``; `authority` and `revocation` are digests of the CA
    and CRL files; `min_version` is ``1.2`` or ``1.3``.
    """

    client_certificate: str = "none"
    authority: bytes = b""
    revocation: bytes = b""
    min_version: str = "1.2"


@dataclass(slots=True)
class TlsInfo:
    """Facts of the TLS session: ``TLSv1.3``, cipher name, server name sent, client certificate (DER), its policy.

    `channel_binding` is what this connection is bound to, as the application data of a channel binding (RFC 5929 4):
    ``tls-server-end-point:`` and the hash of the certificate that was presented on it.  It stays what it was when the
    certificate is replaced by a reload.  None: not known.
    """

    version: str
    cipher: str
    server_name: str | None
    certificate: bytes | None
    policy: TlsPolicy
    channel_binding: bytes | None = None


@dataclass(slots=True)
class Client:
    """The peer of one downstream connection.

    `address` is the client's IP as believed (behind trusted proxies: what they reported), `peer` the IP at the other
    end of the TCP connection; `public_port` the port clients type (None when the listener has none).  `told` is what
    apps are told of it for the host it asked for last, as field lines.
    """

    address: str
    port: int
    peer: str
    local_address: str
    local_port: int
    listener: str
    scheme: str
    public_port: int | None
    tls: TlsInfo | None = None
    is_trusted_proxy: bool = False
    states: dict[object, dict[Any, Any]] | None = field(default=None, repr=False, compare=False)  # None: none yet
    told: tuple[bytes, bytes] | None = field(default=None, init=False, repr=False, compare=False)

    def state(self, plugin: object) -> dict[Any, Any]:
        """What `plugin` remembers of this connection: a dict of its own.

        It lives as long as the connection; on one from a trusted proxy, which many users share, as long as the
        exchange. Over a reload it is kept when the plugin's settings are equal, since the instance is then kept too;
        else it begins empty.
        """
        if self.states is None:
            self.states = {}
        return self.states.setdefault(plugin, {})


class Body(Protocol):
    """A request body that has not been forwarded yet."""

    async def read(self, max_bytes: int) -> bytes:
        """All of it; it is forwarded all the same.  Raises `FrontdError`: ``EntityTooLarge`` (413) beyond `max_bytes`
        bytes, or what ended the connection."""


class _NoBody:
    __slots__ = ()

    async def read(self, max_bytes: int) -> bytes:
        return b""


NO_BODY: Body = _NoBody()


@dataclass(slots=True)
class Request:
    """One request as it was understood.

    `path` is canonical, `query` without ``?`` (`has_query` tells an empty one from none), `target` as sent, `host`
    canonical and without port, `authority` as sent, `scheme` ``http`` or ``https``, `content_length` in bytes (None:
    unknown, or no body).  `max_body` is the limit of the body in bytes (None: none); a plugin may set it until the body
    is read.
    """

    method: str
    target: bytes
    path: str
    query: str
    host: str
    authority: bytes
    version: str
    headers: Headers
    content_length: int | None = None
    chunked: bool = False
    expects_continue: bool = False
    upgrade: bytes = b""
    has_query: bool = False
    scheme: str = "http"
    max_body: int | None = None
    body: Body = NO_BODY

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head (RFC 9112 6)."""
        return self.chunked or bool(self.content_length)

    @property
    def is_idempotent(self) -> bool:
        """Whether sending it twice means the same as sending it once (RFC 9110 9.2.2)."""
        return self.method in IDEMPOTENT

    @property
    def uri(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.has_query else self.path

    @property
    def credentials(self) -> tuple[str, str] | tuple[None, None]:
        """(scheme in lower case, the rest) of ``Authorization`` (RFC 9110 11.4); (None, None) when there is none.

        Two such fields mean neither: (None, None).
        """
        found = self.headers.get_all(b"authorization")
        if len(found) != 1 or not found[0]:
            return None, None
        scheme, _, rest = found[0].decode("latin-1").partition(" ")
        return scheme.lower(), rest.strip(" ")


IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


Fields = Headers | Mapping[str, str] | Iterable[tuple[TextOrBytes, TextOrBytes]]
BODYLESS = frozenset((204, 304))


class Ready(NamedTuple):
    """The fields of an answer as they are sent: `lines`, with its framing but without a Date unless `is_dated`.

    They stand for this `status` and this very `body` alone.
    """

    lines: bytes
    is_dated: bool
    status: int
    body: bytes


def _lines(headers: Headers) -> bytes:
    """Fields as they are sent, without those that frame a message.  Raises `ValueError` for what cannot be sent."""
    if fault := bad_field(headers):
        raise ValueError(fault)
    kept = [item for item in headers.items if item[0] not in HOP_BY_HOP and item[0] != b"content-length"]
    return b"".join([b"%b: %b\r\n" % (name, value) for _, name, value in kept])


class Response:
    """An answer.

    Made by a plugin: `Response(status, headers, body)`, or `text` for a body of plain text.  Content-Length and Date
    are added.  As `exchange.response` it may also be the app's: then `body` is None, since it is on its way, and
    `headers` may be changed all the same.
    """

    # Invariant: while `_ready` is there, nobody else has a reference to `_headers`, or only twins that are ready too.
    __slots__ = ("_headers", "_ready", "body", "captures", "reason", "status")

    def __init__(
        self,
        status: int,
        headers: Fields = (),
        body: bytes | None = b"",
        *,
        text: str | None = None,
        reason: bytes = b"",
    ) -> None:
        """Raises `ValueError` for a status that is none of 200 to 599, or a body and a text at once, and `TypeError`
        for a body that is no bytes."""
        if body is not None and not 200 <= status <= 599:
            raise ValueError(f"an answer has a status from 200 to 599, not {status}")
        self.status = status
        self.reason = reason
        self._ready: Ready | None = None
        if isinstance(headers, Headers):
            self._headers = headers
        else:
            pairs = headers.items() if isinstance(headers, Mapping) else headers
            self._headers = Headers.of(*((octets(name), octets(value)) for name, value in pairs))
        if text is not None:
            if body:
                raise ValueError("an answer has a body or a text, not both")
            body = text.encode()
            if b"content-type" not in self._headers:
                self._headers.add(b"Content-Type", b"text/plain; charset=utf-8")
        if body is not None and not isinstance(body, bytes):
            raise TypeError(f"a body is bytes, not {type(body).__name__} (text=… takes a text)")
        self.body = body
        self.captures: list[Capture] = []

    def __repr__(self) -> str:
        return f"<Response {self.status} {'streamed' if self.body is None else f'{len(self.body)} bytes'}>"

    @property
    def headers(self) -> Headers:
        """The fields.  Whoever looks at them may change them, so from then on they are not `ready` any more."""
        if self._ready is not None:
            self._ready = None
            self._headers = self._headers.copy()
        return self._headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._ready = None
        self._headers = headers

    @property
    def ready(self) -> Ready | None:
        """The fields as they are sent, if that was prepared and still holds."""
        ready = self._ready
        return ready if ready is not None and ready.status == self.status and ready.body is self.body else None

    def prepare(self) -> Response:
        """For an answer that is given again and again: check and serialise its fields now, once, and not each time.

        It may be changed afterwards all the same; then it is no longer prepared.  Returns the answer itself.  Raises
        `ValueError` for fields that cannot be sent, and for an answer without a body, which is the app's.
        """
        body = self.body
        if body is None:
            raise ValueError("an answer without a body is the app's, and passes once")
        lines = _lines(self._headers)
        if self.status not in BODYLESS:
            lines += b"Content-Length: %d\r\n" % len(body)
        self._ready = Ready(lines, b"date" in self._headers, self.status, body)
        self._headers = self._headers.copy()  # whoever holds the old ones may go on changing them
        return self

    def copy(self, *more: tuple[bytes, bytes]) -> Response:
        """The same answer with some fields `more`; nothing that is done to one of the two is done to the other.

        The copy of a prepared answer is prepared.  Raises `ValueError` for fields that cannot be sent in that case.
        """
        twin = Response.__new__(Response)
        twin.status, twin.reason, twin.body, twin.captures = self.status, self.reason, self.body, []
        twin._ready, twin._headers = ready, headers = self.ready, self._headers
        if more:
            added = Headers.of(*more)
            twin._headers = Headers([*headers.items, *added.items])
            if ready is not None:
                is_dated = ready.is_dated or b"date" in added
                twin._ready = Ready(ready.lines + _lines(added), is_dated, ready.status, ready.body)
        elif ready is None:
            twin._headers = headers.copy()
        return twin

    def capture(
        self, max_bytes: int, then: Callable[[Response], None], dropped: Callable[[], None] | None = None
    ) -> None:
        """In `admit_response`: call `then` with a copy of the whole answer as of the end of that phase.

        It is called when the app's answer is complete, and never when the answer breaks off, is longer than `max_bytes`
        or is replaced.  `dropped` is called as soon as it turns out to be too long.
        """
        self.captures.append(Capture(max_bytes, then, dropped))


@dataclass(slots=True)
class Capture:
    """Who wants the whole of an answer (`where`, for the log), and up to how many bytes."""

    max_bytes: int
    then: Callable[[Response], None]
    dropped: Callable[[], None] | None = None
    where: str = ""


_numbers = count(1)
URGENCY = 3  # of a request of which nobody says any, from 0, the most urgent, to 7 (RFC 9218 4.1)


class Exchange:
    """One request and its answer, and what was decided about them.  Times are seconds of the driver's clock.

    `method`, `uri`, `version` and `fields` stand as soon as a head was read, even when it never becomes a `Request`.
    `is_understood` tells whether it did.  `identity` is None while nobody has logged on; `faults` are what plugins
    raised: where, and what.
    """

    __slots__ = (
        "_response",
        "_urgency",
        "attempts",
        "bytes_in",
        "bytes_out",
        "client",
        "detail",
        "faults",
        "fields",
        "generation",
        "hand_overs",
        "identity",
        "is_understood",
        "method",
        "number",
        "pool",
        "queue_wait",
        "reason",
        "request",
        "route",
        "site",
        "started",
        "started_at",
        "states",
        "status",
        "substatus",
        "target",
        "underscores",
        "uri",
        "version",
    )

    def __init__(self, client: Client, request: Request | None, started: float, started_at: float) -> None:
        self.number = next(_numbers)
        self.client = client
        # None when the head means no request, and then no plugin is ever asked: so its type is what plugins see
        self.request: Request = request  # type: ignore[assignment]
        self.is_understood = request is not None
        self.started = started
        self.started_at = started_at
        self.method = ""
        self.uri = ""
        self.version = ""
        self.fields: Headers | None = None
        self.site = ""
        self.route = ""
        self.pool = ""
        self.target = ""
        self.status = 0
        self.reason: Reason | None = None
        self.detail = ""
        self.bytes_in = 0
        self.bytes_out = 0
        self.attempts = 0
        self.queue_wait = 0.0
        self.underscores = 0
        self.generation = 0
        self.hand_overs = 0
        self.identity: Identity | None = None
        self._response: Response | None = None
        self._urgency: int | None = None
        self.substatus = 0
        self.faults: list[tuple[str, Exception]] = []
        self.states: dict[object, dict[Any, Any]] | None = None

    @property
    def response(self) -> Response:
        """The answer.  Raises `LookupError` while there is none, or when the exchange ended without one."""
        if self._response is None:
            raise LookupError("this exchange has no answer (yet)")
        return self._response

    @response.setter
    def response(self, response: Response) -> None:
        self._response = response

    @response.deleter
    def response(self) -> None:
        self._response = None

    @property
    def has_response(self) -> bool:
        """Whether there is an answer."""
        return self._response is not None

    @property
    def urgency(self) -> int | None:
        """How urgent it is where requests wait, from 0 (first) to 7; None: as its route says (RFC 9218 4.1)."""
        return self._urgency

    @urgency.setter
    def urgency(self, urgency: int | None) -> None:
        """Raises `ValueError` for what is none."""
        if urgency is not None and (type(urgency) is not int or not 0 <= urgency <= 7):
            raise ValueError(f"an urgency is a number from 0 to 7, not {urgency!r}")
        self._urgency = urgency

    @property
    def id(self) -> int:
        """The number of this exchange, as error pages and logs show it."""
        return self.number

    def state(self, plugin: object) -> dict[Any, Any]:
        """What `plugin` remembers of this exchange: a dict of its own, shared by its hooks."""
        if self.states is None:
            self.states = {}
        return self.states.setdefault(plugin, {})
