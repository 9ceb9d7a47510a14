"""From a wire-checked head to a `Request`: the target's form, the host, the canonical path (RFC 9112 3.2, 3.3)."""

from __future__ import annotations

from functools import lru_cache

from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import Request
from frontd.model.urlprefix import MOST_REMEMBERED, canonical_host, canonical_path
from frontd.protocol.scan import RequestHead, split_authority

REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))
# Only WebSocket: an h2c upgrade would carry requests past every rule of this server.
UPGRADES = frozenset((b"websocket",))


def make_request(head: RequestHead) -> Request:
    """The request that `head` means.

    Raises `FrontdError`: ``N/I`` (501) for CONNECT and TRACE, ``URL``, ``Hostname``, ``Expectation`` (417).
    """
    if head.method in REFUSED_METHODS:
        raise FrontdError(Reason.NotImplemented_NI, detail=f"method {head.method.decode()}")
    headers = head.headers
    host_field = headers.get(b"host")
    authority, path, query = split_target(head.method, head.target)
    if authority is None:
        authority = host_field
    elif b"host" in headers and authority.lower() != host_field.lower():
        raise FrontdError(Reason.Hostname, detail="the Host field differs from the host in the request target")
    host = _host(authority) if authority else ""
    if not host and head.version == b"1.1":
        raise FrontdError(Reason.Hostname, detail="the Host field is empty")
    expect = headers.get_all(b"expect")
    if expect and [value.lower() for value in expect] != [b"100-continue"]:
        raise FrontdError(Reason.Expectation)
    request = Request(
        method=head.method.decode("ascii"),
        target=head.target,
        path=canonical_path(path),
        query=query.decode("latin-1") if query is not None else "",
        has_query=query is not None,
        host=host,
        authority=authority,
        version=head.version.decode("ascii"),
        headers=headers,
        content_length=head.content_length,
        chunked=head.chunked,
        expects_continue=bool(expect),
    )
    upgrade = headers.tokens(b"upgrade")
    asked = head.version == b"1.1" and b"upgrade" in headers.tokens(b"connection")
    if asked and len(upgrade) == 1 and upgrade[0] in UPGRADES and not request.has_body:
        request.upgrade = upgrade[0]
    return request


def plain_request(head: RequestHead) -> Request:
    """`make_request` for a head that is plain: there is only its path and its host to look at."""
    items = head.headers.items
    authority = items[0][2] if items[0][0] == b"host" else head.headers.get(b"host")
    if not authority:
        raise FrontdError(Reason.Hostname, detail="the Host field is empty")
    target, method = head.target, head.method
    path, mark, query = target.partition(b"?")
    return Request(
        _METHODS.get(method) or method.decode("ascii"), target, canonical_path(path),
        query.decode("latin-1") if mark else "", _host(authority), authority, "1.1", head.headers, head.content_length,
        False, False, b"", bool(mark),
    )  # fmt: skip


_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}


def split_target(method: bytes, target: bytes) -> tuple[bytes | None, bytes, bytes | None]:
    """(authority or None, path, query or None) of a request target.  Raises `FrontdError` with ``URL``."""
    authority: bytes | None = None
    if target == b"*":
        if method != b"OPTIONS":
            raise FrontdError(Reason.URL, detail="the target * goes with OPTIONS only (RFC 9112 3.2.4)")
        return None, b"/", None
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise FrontdError(Reason.URL, detail="the target is neither a path nor an http URL")
        cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        authority, target = rest[:cut], rest[cut:]
        if not authority:
            raise FrontdError(Reason.URL, detail="an http URL without a host (RFC 9110 4.2.1)")
        if not target.startswith(b"/"):
            target = b"/" + target
    path, mark, query = target.partition(b"?")
    if b"#" in target:
        raise FrontdError(Reason.URL, detail="a fragment in the target")
    return authority, path, query if mark else None


@lru_cache(maxsize=MOST_REMEMBERED)
def _host(authority: bytes) -> str:
    try:
        return canonical_host(split_authority(authority).decode("ascii"))
    except ValueError as error:
        raise FrontdError(Reason.Hostname, detail=str(error)) from None
