"""What an exchange is made of: the peer, the request, the answer, and what was decided about them.

Plain slotted objects without I/O.  An `Exchange` is made when a request head is complete and lives until its one log
line is written; everything that is decided on the way is written onto it, so that log, error page and status read one
object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from frontd.model.errors import Reason
from frontd.model.headers import Headers


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
    """Facts of the TLS session: ``TLSv1.3``, cipher name, server name sent, client certificate (DER), its policy."""

    version: str
    cipher: str
    server_name: str | None
    certificate: bytes | None
    policy: TlsPolicy


@dataclass(slots=True)
class Client:
    """The peer of one downstream connection.

    `address` is the client's IP as believed (behind trusted proxies: what they reported), `peer` the IP at the other
    end of the TCP connection; `public_port` the port clients type (None when the listener has none).
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


@dataclass(slots=True)
class Request:
    """One request as it was understood: `path` canonical, `query` without ``?`` (None: there was none), `target` as
    sent, `host` canonical and without port, `authority` as sent, `content_length` in bytes (None: unknown, no body)."""

    method: str
    target: bytes
    path: str
    query: str | None
    host: str
    authority: bytes
    version: str
    headers: Headers
    content_length: int | None = None
    chunked: bool = False
    expects_continue: bool = False
    upgrade: bytes = b""

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head (RFC 9112 6)."""
        return self.chunked or bool(self.content_length)

    @property
    def is_idempotent(self) -> bool:
        """Whether sending it twice means the same as sending it once (RFC 9110 9.2.2)."""
        return self.method in IDEMPOTENT


IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


@dataclass(slots=True)
class Response:
    """A complete answer made by frontd itself (error page, redirect)."""

    status: int
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""


_numbers = count(1)


class Exchange:
    """One request and its answer, and what was decided about them.  Times are seconds of the driver's clock.

    `method`, `uri`, `version` and `fields` stand as soon as a head was read, even when it never becomes a `Request`.
    """

    __slots__ = (
        "attempts",
        "bytes_in",
        "bytes_out",
        "client",
        "detail",
        "fields",
        "generation",
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
        "status",
        "target",
        "underscores",
        "uri",
        "version",
    )

    def __init__(self, client: Client, request: Request | None, started: float, started_at: float) -> None:
        self.number = next(_numbers)
        self.client = client
        self.request = request
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
