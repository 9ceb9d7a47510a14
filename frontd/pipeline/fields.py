"""Header fields that cross the front: which of them go to the app and back.

Hop-by-hop fields end here (RFC 9110 7.6.1); ``Forwarded`` and the ``X-Forwarded-*`` family are set after that, so that
no client can remove or forge them, and are continued only when the peer is a trusted proxy (RFC 7239 8.1).  Plugins may
then change what goes to the app, and after them `seal` sets what nobody but frontd says: the framing, and who has
logged on.

Where no plugin is going to look at the fields of a message, they are not made into a multi-map first: `upstream_lines`
and `downstream_lines` give the lines themselves.  What a field is on the other side depends, for most, on nothing but
the field; for names that `protocol.fieldlines` remembers, the line is remembered too.  Where it depends on more
(trusted proxies, credentials, a ``Connection`` that names other fields) the multi-map is made after all.

Invariants
----------
* Both ways give the same fields with the same values.
* A line is made from a field that passed the wire check, so it holds no line break.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from frontd.model.addresses import bracketed, plain_ip
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import (
    FRAMING,
    HOP_BY_HOP,
    IDENTITY_FIELDS,
    LONGEST_NAME,
    MOST_NAMES,
    Headers,
    Item,
    normal_name,
)
from frontd.model.messages import Client, Request
from frontd.model.verdicts import Identity
from frontd.pipeline.answers import now
from frontd.protocol.fieldlines import LONGEST_LINE, MOST_LINES, REMEMBERED, adopt
from frontd.protocol.framing import field_lines
from frontd.protocol.scan import ResponseHead

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


# What becomes of a field on its way to the app, by its lower-case name.
_PASSES, _ENDS, _OF_CLIENT, _CONTINUED, _CREDENTIALS, _NAMES_OTHERS = range(6)


def _fate(name: bytes) -> int:
    normal = normal_name(name)
    if name == b"connection":
        fate = _NAMES_OTHERS
    elif name in NOT_PASSED or normal in NOT_PASSED:
        fate = _ENDS
    elif name in CONTINUED:
        fate = _CONTINUED
    elif normal in CLIENT_FIELDS or normal.startswith(b"x-forwarded-"):
        fate = _OF_CLIENT
    else:
        fate = _CREDENTIALS if name == b"authorization" else _PASSES
    if len(_fates) >= MOST_NAMES:
        _fates.clear()
    if len(name) <= LONGEST_NAME:
        _fates[name] = fate
    return fate


_fates: dict[bytes, int] = {}


def upstream_headers(request: Request, client: Client, schemes: frozenset[bytes]) -> Headers:
    """The header fields of the request to the app, but for what `seal` sets.

    `schemes` are those of authentication that the site's plugins consume: credentials of theirs end here.  Raises
    `FrontdError` with `Reason.Loop` (RFC 9110 7.6).
    """
    headers, continued = end_to_end_request(request, client, schemes)
    headers.items += forwarded_fields(request, client, continued or {})
    return headers


def upstream_lines(request: Request, client: Client, schemes: frozenset[bytes]) -> bytes | Headers:
    """What `upstream_headers` and `frame` make, as field lines, where nobody is going to look at the fields.  The
    fields themselves where what becomes of them depends on more than each alone: there may be credentials in these."""
    authority = request.authority
    lines = _relayed(request.headers, _lines_up, _line_up)
    if lines is None or not authority or request.chunked or request.upgrade:
        headers = upstream_headers(request, client, schemes)
        frame(headers, request)
        return headers
    told = client.told
    if told is None or told[0] != authority:
        told = client.told = (authority, field_lines(forwarded_fields(request, client, {})))
    if request.content_length is None:
        return b"Host: %b\r\n%b%b" % (authority, lines, told[1])
    return b"Host: %b\r\n%b%bContent-Length: %d\r\n" % (authority, lines, told[1], request.content_length)


def _relayed(
    headers: Headers, known: dict[Item, bytes], line_of: Callable[[Item], bytes | None]
) -> bytes | None:
    """The lines that fields are on the other side; None where that depends on more than each field alone."""
    items, block = headers.items, headers.block
    if block is not None and block.relayed is not None and block.items == items:
        return block.relayed
    parts: list[bytes] = []
    for item in items:
        line = known.get(item)
        if line is None and (line := line_of(item)) is None:
            return None
        parts.append(line)
    lines = b"".join(parts)
    if block is not None and block.items == items:
        block.relayed = lines
    return lines


def _line_up(item: Item) -> bytes | None:
    """The line that a field of a request is to the app, empty for none; None where that depends on more than itself."""
    name = item[0]
    fate = _fates.get(name)
    if fate is None:
        fate = _fate(name)
    if fate == _PASSES:
        line = b"%b: %b\r\n" % (item[1], item[2])
    elif fate == _ENDS or (fate == _NAMES_OTHERS and item[2].lower() in _OF_HOP):
        line = b""
    else:
        return None
    if name in REMEMBERED:
        _keep(_lines_up, item, line)
    return line


def _keep(lines: dict[Item, bytes], item: Item, line: bytes) -> None:
    """Remember what a field is on the other side; the same fields as `protocol.fieldlines` remembers, no secrets."""
    if len(lines) >= MOST_LINES:
        lines.clear()
    if len(line) <= LONGEST_LINE:
        lines[item] = line


_lines_up: dict[Item, bytes] = {}
_lines_down: dict[Item, bytes] = {}


def end_to_end_request(
    request: Request, client: Client, schemes: frozenset[bytes]
) -> tuple[Headers, dict[bytes, list[bytes]] | None]:
    """The fields that pass, Host first, and the values of those that frontd continues."""
    # HTTP/1.0 knows requests without Host, HTTP/1.1 does not: the address the client came to stands in for the name
    host = request.authority or bracketed(client.local_address).encode()
    items: list[Item] = [(b"host", b"Host", host)]
    continued: dict[bytes, list[bytes]] | None = None
    names_others = False
    fates = _fates
    for item in request.headers.items:
        name = item[0]
        fate = fates.get(name)
        if fate is None:
            fate = _fate(name)
        if fate == _PASSES:
            items.append(item)
        elif fate == _ENDS:
            continue
        elif fate == _NAMES_OTHERS:
            names_others = names_others or item[2].lower() not in _OF_HOP
        elif fate == _CREDENTIALS:
            if not _is_consumed(item[2], schemes):
                items.append(item)
        elif fate == _OF_CLIENT:
            if client.is_trusted_proxy:
                items.append(item)
        elif name == b"via" or client.is_trusted_proxy:
            continued = continued if continued is not None else {}
            continued.setdefault(name, []).append(item[2])
    if names_others:
        named = set(request.headers.tokens(b"connection"))
        items[1:] = [item for item in items[1:] if item[0] not in named]
        continued = {name: values for name, values in (continued or {}).items() if name not in named}
    return adopt(items), continued


_OF_HOP = frozenset((b"keep-alive", b"close", b""))


def forwarded_fields(request: Request, client: Client, continued: dict[bytes, list[bytes]]) -> list[Item]:
    """What frontd says of the client and of itself, behind what trusted proxies said.  Raises `FrontdError` with
    ``Loop``."""
    via = continued.get(b"via", ())
    if sum(value.count(VIA) for value in via) >= MOST_PASSES:
        raise FrontdError(Reason.Loop, detail=f"{MOST_PASSES} times in Via")
    come_by = _joined(continued, b"x-forwarded-for", client.peer.encode())
    scheme = _joined(continued, b"x-forwarded-proto") or client.scheme.encode()
    items = [(b"x-forwarded-for", b"X-Forwarded-For", come_by), (b"x-forwarded-proto", b"X-Forwarded-Proto", scheme)]
    if asked := _joined(continued, b"x-forwarded-host") or request.authority:
        items.append((b"x-forwarded-host", b"X-Forwarded-Host", asked))
    items.append((b"forwarded", b"Forwarded", _joined(continued, b"forwarded", _forwarded(request, client))))
    items.append((b"via", b"Via", _joined(continued, b"via", VIA)))
    return items


def _is_consumed(credentials: bytes, schemes: frozenset[bytes]) -> bool:
    """Whether a value of ``Authorization`` is, or hides in a list of several, credentials of one of `schemes`."""
    parts = [part.split(None, 1) for part in credentials.split(b",")] if schemes else []
    return any(part[0].lower() in schemes for part in parts if part)


def _joined(continued: dict[bytes, list[bytes]], name: bytes, *more: bytes) -> bytes:
    return b", ".join([*continued.get(name, ()), *more])


def seal(headers: Headers, request: Request, identity: Identity | None, token: bytes = b"") -> None:
    """Set what no client and no plugin may say: the framing of the message, and who has logged on; `token` says that
    signed, if the site signs it."""
    headers.items = [item for item in headers.items if _may_be_set(item[0])]
    frame(headers, request)
    if identity is not None:
        headers.add(b"X-Remote-User", identity.name)
        if identity.groups:
            headers.add(b"X-Remote-Groups", ",".join(_group(name) for name in identity.groups))
        if identity.scheme:
            headers.add(b"X-Auth-Scheme", identity.scheme)
        if token:
            headers.add(b"X-Frontd-Identity", token)


def frame(headers: Headers, request: Request) -> None:
    """Set the framing of the request, and what it asks to change to."""
    if request.chunked:
        headers.add(b"Transfer-Encoding", b"chunked")
    elif request.content_length is not None:
        headers.add(b"Content-Length", b"%d" % request.content_length)
    if request.upgrade:
        headers.add(b"Connection", b"Upgrade")
        headers.add(b"Upgrade", request.upgrade)


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
    kept: list[Item] = []
    via, dated, names_others = VIA, False, False
    fates = _response_fates
    for item in head.headers.items:
        fate = fates.get(item[0])
        if fate is None:
            kept.append(item)
        elif fate == _DATE:
            dated = True
            kept.append(item)
        elif fate == _LENGTH:
            if head.status != 204:  # RFC 9110 8.6 forbids it there; some apps send it all the same
                kept.append(item)
        elif fate == _VIA:
            via = b"%b, %b" % (item[2], via) if via is VIA else b"%b, %b, %b" % (via[: -len(VIA) - 2], item[2], VIA)
        elif fate == _NAMES_OTHERS:
            names_others = names_others or item[2].lower() not in _OF_HOP
    if names_others:  # RFC 9110 7.6.1
        named = set(head.headers.tokens(b"connection")) - FRAMING
        kept = [item for item in kept if item[0] not in named]
        dated = dated and b"date" not in named
    if not dated:
        kept.append((b"date", b"Date", now()))
    kept.append((b"via", b"Via", via))
    return adopt(kept)


def downstream_lines(head: ResponseHead) -> bytes:
    """What `downstream_headers` makes, as field lines, where nobody is going to look at the fields."""
    headers = head.headers
    lines = _relayed(headers, _lines_down, _line_down)
    if lines is None or head.status == 204:
        return field_lines(downstream_headers(head).items)
    block = headers.block
    if block.has_date if block is not None else b"date" in headers:
        return lines + _VIA_LINE
    return b"%bDate: %b\r\n%b" % (lines, now(), _VIA_LINE)


def _line_down(item: Item) -> bytes | None:
    """The line that a field of an answer is to the client, empty for none; None where that depends on more than
    itself."""
    name = item[0]
    fate = _response_fates.get(name)
    if fate is None or fate in (_LENGTH, _DATE):
        line = b"%b: %b\r\n" % (item[1], item[2])
    elif fate == _ENDS or (fate == _NAMES_OTHERS and item[2].lower() in _OF_HOP):
        line = b""
    else:
        return None
    if name in REMEMBERED:
        _keep(_lines_down, item, line)
    return line


_VIA_LINE = b"Via: %b\r\n" % VIA
_DATE, _LENGTH, _VIA = 10, 11, 12
_response_fates = dict.fromkeys(HOP_BY_HOP, _ENDS) | {
    b"connection": _NAMES_OTHERS, b"date": _DATE, b"content-length": _LENGTH, b"via": _VIA,
}  # fmt: skip
