"""What crosses the front: which fields go to the app and back, and the request body on its way.

Fields: hop-by-hop fields end here (RFC 9110 7.6.1); ``Forwarded`` and the ``X-Forwarded-*`` family are set after that,
so that no client can remove or forge them, and are continued only when the peer is a trusted proxy (RFC 7239 8.1).
Plugins may then change what goes to the app, and after them `seal` sets what nobody but frontd says: the framing, and
who has logged on.

Body: `RequestBody` reads the parts once from the client and keeps them up to a bound, so that a request can be sent
again; `Pump` moves them upstream in a task of its own while the response may already arrive.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import trio

from frontd.model.addresses import bracketed, plain_ip
from frontd.model.errors import FrontdError, Reason, UpstreamGone
from frontd.model.headers import HOP_BY_HOP, IDENTITY_FIELDS, Headers, Item, announced_trailers, end_to_end, normal_name
from frontd.model.messages import Client, Request
from frontd.model.verdicts import Identity
from frontd.net.streams import Stream
from frontd.net.traps import carry, task_lane
from frontd.pipeline.answers import now
from frontd.pipeline.world import body_too_large
from frontd.protocol.h1 import NO_TRAILERS, End
from frontd.protocol.scan import ResponseHead
from frontd.upstream.client import Upstream

PARTS_IN_A_ROW = 4  # of at most 64 KiB, or of as many chunks as are walked at once (25 us each, nearly all h11's)


class Downstream(Protocol):
    """The client's side of one exchange, whatever its protocol.

    ``*_now`` and the sending verbs never wait; `inform`, `send`, `push` and `finish` answer whether everything is
    with the kernel.  All raise `FrontdError` with a downstream reason when the client is gone or too slow.
    """

    @property
    def can_answer(self) -> bool: ...
    def skip_body(self) -> bool: ...
    def body_now(self) -> bytes | End | None: ...
    async def receive_body(self) -> bytes | End: ...
    def inform(self, status: int, headers: Headers) -> bool: ...
    def start(self, status: int, reason: bytes, headers: Headers, *, close: bool = False) -> None: ...
    def send(self, data: bytes) -> bool: ...
    async def send_file(self, fd: int, offset: int, size: int) -> None: ...
    def push(self) -> bool: ...
    def finish(self, trailers: Headers = ...) -> bool: ...
    async def flush(self) -> None: ...
    def begin_tunnel(self, headers: Headers) -> tuple[Stream, bytes]: ...


# ---------------------------------------------------------------------------------------------------- fields

# Fields that say who the client is or how it came, beside all that begin with "x-forwarded-": never believed from a
# stranger, nor with "_" for "-" (one name to CGI-style apps).  The first two rows are of RFC 7239 and of proxies and
# CDNs, the third is what frameworks take for the scheme and host of the URL, the last for who has logged on.
CLIENT_FIELDS = frozenset(
    (
        b"forwarded", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"client-ip", b"true-client-ip",
        b"cf-connecting-ip", b"fastly-client-ip",
        b"x-scheme", b"x-url-scheme", b"front-end-https", b"x-host", b"x-original-host", b"x-http-host-override",
        b"remote-user", b"remote-groups",
    )
)  # fmt: skip
# What frontd says itself of every request: its framing, who has logged on.  These fields never pass.
NOT_PASSED = HOP_BY_HOP | IDENTITY_FIELDS | {b"host", b"expect", b"content-length"}
CONTINUED = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"via"))
SEALED = HOP_BY_HOP | {b"content-length", b"expect"}
VIA = b"1.1 frontd"
UNKNOWN = "unknown"
MOST_PASSES = 10  # frontd before frontd before frontd is legitimate; more is a target that leads back (RFC 9110 7.6)


def upstream_headers(request: Request, client: Client, schemes: frozenset[bytes]) -> Headers:
    """The header fields of the request to the app, but for what `seal` sets.

    `schemes` are those of authentication that the site's plugins consume: credentials of theirs end here.  Raises
    `FrontdError` with `Reason.Loop` (RFC 9110 7.6).
    """
    trusted = client.is_trusted_proxy
    named = set(request.headers.tokens(b"connection"))
    # HTTP/1.0 knows requests without Host, HTTP/1.1 does not: the address the client came to stands in for the name
    host = request.authority or bracketed(client.local_address).encode()
    items: list[Item] = [(b"host", b"Host", host)]
    continued: dict[bytes, list[bytes]] = {}
    for item in request.headers.items:
        name = item[0]
        if name in named or not _passes(name, trusted):
            continue
        if name in CONTINUED:
            continued.setdefault(name, []).append(item[2])
        elif name != b"authorization" or not _is_consumed(item[2], schemes):
            items.append(item)
    via = continued.get(b"via", ())
    if sum(value.count(VIA) for value in via) >= MOST_PASSES:
        raise FrontdError(Reason.Loop, detail=f"{MOST_PASSES} times in Via")
    come_by = _joined(continued, b"x-forwarded-for", client.peer.encode())
    items.append((b"x-forwarded-for", b"X-Forwarded-For", come_by))
    scheme = _joined(continued, b"x-forwarded-proto") or client.scheme.encode()
    items.append((b"x-forwarded-proto", b"X-Forwarded-Proto", scheme))
    if asked := _joined(continued, b"x-forwarded-host") or request.authority:
        items.append((b"x-forwarded-host", b"X-Forwarded-Host", asked))
    items.append((b"forwarded", b"Forwarded", _joined(continued, b"forwarded", _forwarded(request, client))))
    items.append((b"via", b"Via", _joined(continued, b"via", VIA)))
    return Headers(items)


@lru_cache(maxsize=1024)
def _passes(name: bytes, of_trusted_proxy: bool) -> bool:
    """Whether a field may go to the app, by its lower-case name."""
    normal = normal_name(name)
    if name in NOT_PASSED or normal in NOT_PASSED:
        return False
    return of_trusted_proxy or not (normal in CLIENT_FIELDS or normal.startswith(b"x-forwarded-"))


def _is_consumed(credentials: bytes, schemes: frozenset[bytes]) -> bool:
    """Whether a value of ``Authorization`` is, or hides in a list of several, credentials of one of `schemes`."""
    parts = [part.split(None, 1) for part in credentials.split(b",")] if schemes else []
    return any(part[0].lower() in schemes for part in parts if part)


def _joined(continued: dict[bytes, list[bytes]], name: bytes, *more: bytes) -> bytes:
    return b", ".join([*continued.get(name, ()), *more])


def seal(headers: Headers, request: Request, identity: Identity | None) -> None:
    """Set what no client and no plugin may say: the framing of the message, and who has logged on."""
    headers.items = [item for item in headers.items if _may_be_set(item[0])]
    if request.chunked:
        headers.add(b"Transfer-Encoding", b"chunked")
    elif request.content_length is not None:
        headers.add(b"Content-Length", b"%d" % request.content_length)
    if request.upgrade:
        headers.add(b"Connection", b"Upgrade")
        headers.add(b"Upgrade", request.upgrade)
    if identity is not None:
        headers.add(b"X-Remote-User", identity.name)
        if identity.groups:
            headers.add(b"X-Remote-Groups", ",".join(_group(name) for name in identity.groups))
        if identity.scheme:
            headers.add(b"X-Auth-Scheme", identity.scheme)


@lru_cache(maxsize=1024)
def _may_be_set(name: bytes) -> bool:
    """Whether a plugin may set a field of the request, by its lower-case name."""
    return name not in SEALED and normal_name(name) not in IDENTITY_FIELDS


def _group(name: str) -> str:
    """A group's name in the list of them: its own commas are escaped, as is the sign that escapes."""
    return name.replace("%", "%25").replace(",", "%2C")


def _forwarded(request: Request, client: Client) -> bytes:
    """One ``Forwarded`` element (RFC 7239 4); an IPv6 address and a host with a port are quoted."""
    peer = f'"[{client.peer}]"' if ":" in client.peer else client.peer
    host = request.authority.decode("latin-1")
    quoted = f'"{host}"' if any(c in host for c in ":[]") else host
    pairs = [f"for={peer}", f"host={quoted}", f"proto={client.scheme}"]
    return ";".join(pair for pair in pairs if not pair.endswith("=")).encode("latin-1")


def reported_client(headers: Headers, peer: str, trusts: Trusts) -> str:
    """The client's address behind trusted proxies: the rightmost address in X-Forwarded-For (or Forwarded) that is not
    itself trusted; that of the proxy when none is reported.

    A proxy that maintains one of the two fields may let a client's own copy of the other pass: where they disagree,
    and where a hop is none, the client is ``unknown`` (RFC 7239 6.2).  That is no address that a rule could let in, as
    the proxy's own may be.
    """
    named = [hop.decode("latin-1") for hop in headers.tokens(b"x-forwarded-for")]
    standard = [_forwarded_for(element) for element in headers.tokens(b"forwarded")]
    found = {_believed(hops, peer, trusts) for hops in (named, standard) if hops}
    if len(found) > 1:
        return UNKNOWN
    return found.pop() if found else peer


def _believed(hops: list[str], peer: str, trusts: Trusts) -> str:
    believed = peer
    for hop in reversed(hops):
        address = plain_address(hop)
        if address is None:
            return UNKNOWN
        believed = address
        if not trusts(address):
            break
    return believed


class Trusts(Protocol):
    """Whether an IP address (as text) is that of a trusted proxy."""

    def __call__(self, address: str, /) -> bool: ...


def _forwarded_for(element: bytes) -> str:
    for pair in element.decode("latin-1").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == "for":
            return value.strip('"')
    return ""


def plain_address(text: str) -> str | None:
    """An IP address out of ``1.2.3.4``, ``1.2.3.4:80``, ``[::1]:80`` or ``::1``; None when there is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return plain_ip(text)
    except ValueError:
        return None


def upstream_target(request: Request, strip: str) -> bytes:
    """The request target sent to the app: the canonical path (without `strip`) and the query."""
    if request.target == b"*":
        return b"*"
    path = request.path
    if strip and len(path) >= len(strip) - 1:
        path = "/" + path[len(strip) :].lstrip("/")  # "//x" would be read as a host by whoever resolves it
    return (f"{path}?{request.query}" if request.has_query else path).encode("latin-1")


def downstream_headers(head: ResponseHead) -> Headers:
    """The header fields of the response to the client: no hop-by-hop fields, with Via and a Date (RFC 9110 6.6.1)."""
    headers, via, dated = end_to_end(head.headers), [], False
    kept = []
    for item in headers.items:
        name = item[0]
        if name == b"via":
            via.append(item[2])
            continue
        if name == b"content-length" and head.status == 204:
            continue  # RFC 9110 8.6 forbids it; some apps send it all the same
        dated = dated or name == b"date"
        kept.append(item)
    if not dated:
        kept.append((b"date", b"Date", now()))
    kept.append((b"via", b"Via", b", ".join([*via, VIA])))
    headers.items = kept
    return headers


# ---------------------------------------------------------------------------------------------------- request body


class RequestBody:
    """The request body: read once from the client, kept up to `limit` bytes so that it can be sent again.

    `next_now` and `next` give the parts and then the `End`; after `rewind` they begin again.
    """

    __slots__ = (
        "_down", "_end", "_failure", "_is_sent", "_kept", "_position", "_request", "_size", "can_rewind",
        "limit",
    )  # fmt: skip

    def __init__(self, down: Downstream, request: Request) -> None:
        self._down = down
        self._request = request
        self.limit = 0
        self._kept: list[bytes] = []
        self._size = 0
        self._position = 0
        self._end: End | None = None
        self._failure: FrontdError | None = None  # what ended it early
        self._is_sent = False  # it has begun to go to the app
        self.can_rewind = True

    def check_length(self) -> None:
        """Raises `FrontdError`: ``EntityTooLarge`` when the length that the head names is more than the limit."""
        limit = self._request.max_body
        if limit is not None and (self._request.content_length or 0) > limit:
            raise body_too_large(limit)

    async def read(self, max_bytes: int) -> bytes:
        """All of it, which is kept so that it is forwarded all the same.

        Raises `FrontdError`: ``EntityTooLarge`` (413) beyond `max_bytes` bytes or the site's limit, or what ended the
        connection; `RuntimeError` when it is on its way to the app and not all of it was kept.
        """
        request = self._request
        if not request.has_body:
            return b""
        self.check_length()
        if (request.content_length or 0) > max_bytes:
            raise body_too_large(max_bytes, "")
        if not self._is_sent:
            await self._read_to_end(max_bytes)
        elif self._end is None or not self.can_rewind:
            raise RuntimeError("the body is on its way to the app; read it in rewrite_request or earlier")
        if self._size > max_bytes:
            raise body_too_large(max_bytes, "")
        return b"".join(self._kept)

    async def _read_to_end(self, max_bytes: int) -> None:
        """Keep all of it, or as much as shows that it is more than `max_bytes`."""
        await task_lane()
        self.limit = max(self.limit, max_bytes)
        parts = 0
        try:
            while self._end is None and self._size <= max_bytes:
                part = await self._receive()
                if isinstance(part, bytes):  # kept also when it is too much: whoever asked may be content with less
                    self.limit = max(self.limit, self._size + len(part))
                self._keep(part)
                parts += 1
                if parts % PARTS_IN_A_ROW == 0:  # a body in small chunks leaves the others their turn
                    await trio.lowlevel.checkpoint()
        finally:
            self._position = 0  # also when a plugin does not wait for the end: what has arrived is forwarded

    def next_now(self) -> bytes | End | None:
        """The next part if it is there.  Raises `FrontdError` (downstream)."""
        known = self._replayed()
        return known if known is not None else self._keep(self._down.body_now())

    async def next(self) -> bytes | End:
        """The next part.  Raises `FrontdError` (downstream)."""
        known = self._replayed()
        if known is not None:
            return known
        part = await self._receive()
        self._keep(part)
        return part

    async def _receive(self) -> bytes | End:
        if self._failure is not None:
            raise self._failure
        try:
            return await self._down.receive_body()
        except FrontdError as error:
            self._failure = _again(error)
            raise

    def rewind(self) -> None:
        """Begin again with the first part; only when `can_rewind`."""
        assert self.can_rewind
        self._position = 0

    def _replayed(self) -> bytes | End | None:
        self._is_sent = True
        if self._failure is not None:  # a part is missing, and nobody takes what is there for the whole
            raise self._failure
        if self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        return self._end

    def _keep(self, part: bytes | End | None) -> bytes | End | None:
        if isinstance(part, End):
            self._end = part
        elif part is not None:
            self._size += len(part)
            if self._size > self.limit:
                self.can_rewind = False
                self._kept.clear()
                self._position = 0
            elif self.can_rewind:
                self._kept.append(part)
                self._position = len(self._kept)
        return part


def _again(error: FrontdError) -> FrontdError:
    """The same error without its traceback, which would tie the body to itself."""
    return FrontdError(error.reason, detail=error.detail, hint=error.hint, status=error.status)


def trailers_of(request: Request, end: End) -> Headers:
    """The trailer fields of a request that may pass (RFC 9110 6.5.1)."""
    return announced_trailers(request.headers, end.trailers) if end.trailers is not NO_TRAILERS else NO_TRAILERS


def send_request_now(upstream: Upstream, request: Request, target: bytes, headers: Headers, body: RequestBody) -> bool:
    """Send the head and as much body as is there, in one write.  True when the request is complete.

    Raises `UpstreamGone`, or `FrontdError` (downstream).
    """
    http = upstream.http
    out = [http.send_head(request.method, target, headers)]
    complete = False
    if not request.has_body:
        out.append(http.send_end())
        complete = True
    else:
        for _ in range(2):  # the part that came with the head, and the end behind it
            part = body.next_now()
            if isinstance(part, End):
                out.append(http.send_end(trailers_of(request, part)))
                complete = True
            elif part is not None:
                out.append(http.send_body(part))
                continue
            break
    upstream.send_now(b"".join(out))
    return complete


class Pump:
    """Moves the rest of a request body to the app; `error` is what ended it early on the client's side."""

    __slots__ = ("_progress", "_waits", "body", "error", "request", "stall", "upstream")

    def __init__(self, upstream: Upstream, request: Request, body: RequestBody, stall: float) -> None:
        self.upstream = upstream
        self.request = request
        self.body = body
        self.stall = stall
        self._progress = trio.current_time()
        self._waits = False  # for the client
        self.error: FrontdError | None = None

    @property
    def progress(self) -> float:
        """When the app last got something (s of trio's clock); now, while the client owes it the next part."""
        return trio.current_time() if self._waits else self._progress

    async def run_task(self, scope: trio.CancelScope) -> None:
        """`run` as the body of a task of its own."""
        await carry(self.run(scope))

    async def run(self, scope: trio.CancelScope) -> None:
        """Until the body is complete.  A fault of the client cancels `scope`; a fault of the app, which may be that it
        reads no more, only ends the pump, since its answer may already be on the way."""
        parts = 0
        try:
            while True:
                parts += 1
                if parts % PARTS_IN_A_ROW == 0:  # a body in small chunks leaves the others their turn
                    await trio.lowlevel.checkpoint()
                await self.upstream.flush(self.stall)
                self._waits = True
                part = await self.body.next()
                self._waits = False
                self._progress = trio.current_time()
                if isinstance(part, End):
                    self.upstream.send_now(self.upstream.http.send_end(trailers_of(self.request, part)))
                    await self.upstream.flush(self.stall)
                    self._progress = trio.current_time()
                    return
                self.upstream.send_now(self.upstream.http.send_body(part))
        except UpstreamGone:
            return
        except FrontdError as error:
            if self._waits:
                self.error = error
                scope.cancel()
