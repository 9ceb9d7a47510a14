"""The wire check: is this head allowed on our wire, whatever a lenient parser thinks of it?

How it works
------------
h11 accepts bare LF, folded lines, control bytes, CL with TE, HTTP/2.0 and more, and its events no longer show them.  So
the bytes are checked before h11 sees them.  `scan_request` and `scan_response` look at a growing buffer and answer

* ``None``: need more; the bytes so far hold no error that is already certain;
* an exception: refused, with the `Reason`;
* a `RequestHead` / `ResponseHead` that is not `plain`: complete, wire-checked, split into fields; what it means is for
  h11 to say (HTTP/1.0, a target that is not a path, chunked requests, Expect, Upgrade, odd Connection, 1xx);
* one that is `plain`: nothing about it is left to say.  Everything h11 would tell stands in the head.

A head is matched up to the end of its start line and cut at CR LF behind it; `protocol.fieldlines` reads the lines and
collects on the way what decides the framing.

Invariants
----------
* A head that passes is one start line and field lines, each ended by CR LF, with one framing: at most one of
  Content-Length and Transfer-Encoding, each at most once, and ``chunked`` as the only coding.
* Whatever h11 refuses is refused here or, where the head is not plain, by h11 right after; nothing is passed on that
  was not checked.  A plain head says exactly what h11 says of the same bytes.
* Every buffer is bounded: a head by `WireLimits.max_head`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import NoReturn

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Block, Headers, Item
from frontd.protocol.chunks import CHUNKS_AT_ONCE as CHUNKS_AT_ONCE
from frontd.protocol.chunks import ChunkScanner as ChunkScanner
from frontd.protocol.fieldlines import TOKEN, VALUE, Facts, adopt, match_field, read_fields, remember_block

# Start lines, and behind them all field lines; what is optional in a status line is written so that nothing is tried.
# The first is the second for HTTP/1.1 and a target that is a path; an origin-form has no fragment (RFC 9112 3.2.1).
_match_usual_request = re.compile(
    rb"(" + TOKEN + rb") (/[\x21\x22\x24-\x7e]*) HTTP/1\.1\r\n(.*)", re.DOTALL
).fullmatch
_match_request = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/(1\.[01])\r\n(.*)", re.DOTALL).fullmatch
_match_response = re.compile(
    rb"HTTP/(1\.[01]) ([1-5][0-9][0-9])(?=[ \r]) ?(" + VALUE + rb")\r\n(.*)", re.DOTALL
).fullmatch
_STATUS = {b"%d" % status: status for status in range(100, 600)}  # a look-up is quicker than int()
_VERSION = re.compile(rb"HTTP/[0-9]+(?:\.[0-9]+)?")
# What no byte still to come can mend: a control byte, LF without CR before it, CR with something else behind it.
_CERTAIN_ERROR = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])", re.DOTALL)
_MOST_DIGITS = 18  # of a Content-Length: what fits a signed 64-bit number whatever the digits are
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")
# A short buffer that ends like a head most often is one, and an empty line inside it would not pass as a field; longer
# ones are searched, so that a client that sends many requests at once does not have all of them split for each.
_LONGEST_GUESS = 2048  # bytes
_NEVER_PLAIN_METHODS = frozenset((b"CONNECT", b"TRACE"))  # RFC 9110 9.3.6, 9.3.8
# What Connection may say in a plain head, in the usual spellings; others are looked up in lower case.
_SAID = {b"keep-alive": True, b"Keep-Alive": True, b"close": False, b"Close": False}


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Sizes in bytes, `max_fields` a count.  Defaults are HTTP.sys's MaxRequestBytes and MaxFieldLength; HTTP.sys does
    not limit the field count, 200 is twice what Apache allows by default (LimitRequestFields 100)."""

    max_head: int = 16384
    max_field: int = 16384
    max_fields: int = 200


@dataclass(slots=True, eq=False)
class RequestHead:
    """A complete request head that passed the wire check; `size` is its length in bytes with the final empty line.

    `plain`: HTTP/1.1 for a path, with one Host, no Transfer-Encoding, Expect or Upgrade, and a Connection field, if
    any, of ``keep-alive`` or ``close`` alone; its body is `content_length` bytes long (None: no body).  `keep_alive`
    is the client's part of the connection's fate: False in HTTP/1.0 and when it said ``close`` (RFC 9112 9.3).
    """

    method: bytes
    target: bytes
    version: bytes
    headers: Headers
    size: int
    content_length: int | None = None
    chunked: bool = False
    plain: bool = False
    keep_alive: bool = True


@dataclass(slots=True, eq=False)
class ResponseHead:
    """A complete response head that passed the wire check; `size` in bytes.

    `plain`: HTTP/1.1, a final status, no Upgrade, Connection as for requests, and a body that is `chunked` or ends
    after `content_length` bytes, or none at all: with 204 and 304, and as an answer to HEAD, whatever the fields say
    (RFC 9112 6.3).  `keep_alive` as for requests.
    """

    status: int
    reason: bytes
    version: bytes
    headers: Headers
    size: int
    content_length: int | None = None
    chunked: bool = False
    plain: bool = False
    keep_alive: bool = True


# ---------------------------------------------------------------------------------------------------- requests


def scan_request(buffer: bytes | bytearray, limits: WireLimits, start: int = 0) -> RequestHead | None:
    """Look for a complete request head at the front of `buffer`; bytes before `start` were seen without finding an end.

    Returns None when more bytes are needed.  Raises `FrontdError` (downstream reasons) as soon as an error is certain.
    """
    end = len(buffer) - 4
    if end > _LONGEST_GUESS or end + 4 > limits.max_head or not buffer.endswith(b"\r\n\r\n"):
        end = buffer.find(b"\r\n\r\n", start - 3 if start > 3 else 0, limits.max_head)
        if end < 0:
            found = _certain_error(buffer, start, limits)
            if found is not None:
                _explain_byte(buffer, found)
            if len(buffer) > limits.max_head:
                raise _head_too_long(limits)
            return None
    match = _match_usual_request(buffer, 0, end + 2)
    if match is not None:
        method, target, block = match.groups()
        version, plain = b"1.1", method not in _NEVER_PLAIN_METHODS
        known = _requests.get(block)
        if known is not None and plain and len(known.items) <= limits.max_fields and end <= limits.max_field:
            headers = adopt(known.items.copy(), known)
            return RequestHead(
                method, target, version, headers, end + 4, known.content_length, False, True, known.keep_alive
            )
    else:
        match = _match_request(buffer, 0, end + 2)
        if match is None:
            return _scan_first(buffer, end, limits)
        method, target, version, block = match.groups()
        plain = False
    lines = block.split(b"\r\n", limits.max_fields)
    if lines.pop():  # behind the last CR LF nothing is left, or else what was beyond the limit
        return _scan_first(buffer, end, limits)
    fields = read_fields(lines)
    if fields is None:
        return _scan_first(buffer, end, limits)
    items, facts, repeated, remembered = fields
    if end > limits.max_field:
        _check_sizes(items, limits)
    head = RequestHead(method, target, version, adopt(items), end + 4, None, False, plain)
    if not plain or repeated or len(facts) > 1 or b"host" not in facts:
        _check_request_framing(head, facts, repeated)
    if remembered and head.plain:
        remember_block(_requests, block, items, head.content_length, keep=head.keep_alive)
    return head


_requests: dict[bytes, Block] = {}  # field lines of plain heads
_answers: dict[bytes, Block] = {}


def _scan_first(buffer: bytes | bytearray, end: int, limits: WireLimits) -> RequestHead | None:
    """What does not match up to `end` is wrong, or was more than one head: then the first of them, alone."""
    first = buffer.find(b"\r\n\r\n", 0, end + 4)
    if first == end:
        _explain_request(buffer, end, limits)
    return scan_request(buffer[: first + 4], limits)


def _head_too_long(limits: WireLimits) -> FrontdError:
    hint = f"The limit is limits.max_head ({limits.max_head} bytes)."
    return FrontdError(Reason.RequestLength, hint=hint)


def _certain_error(buffer: bytes | bytearray, start: int, limits: WireLimits) -> int | None:
    """Where an incomplete head is wrong whatever follows.

    Bytes beyond the limit are not looked at, so that the verdict does not depend on how many of them came at once.
    """
    found = _CERTAIN_ERROR.search(buffer, max(0, start - 2), limits.max_head)
    return None if found is None else found.start()


def _explain_byte(data: bytes | bytearray, at: int) -> NoReturn:
    byte = data[at]
    if byte in (10, 13):
        raise FrontdError(Reason.Invalid_CRLF, detail=f"bare {'LF' if byte == 10 else 'CR'} at byte {at}")
    if at == 0 and byte == 0x16:
        raise FrontdError(Reason.BadRequest, hint="TLS was spoken on an HTTP port; use http:// or the HTTPS port.")
    raise FrontdError(
        Reason.BadRequest if data.find(b"\n", 0, at) < 0 else Reason.Header, detail=f"byte 0x{byte:02x} at {at}"
    )


def _refuse_count(buffer: bytes | bytearray, end: int, limits: WireLimits) -> NoReturn:
    """Counted before anything is matched; only an error that byte by byte would have come first goes first."""
    found = _CERTAIN_ERROR.search(buffer, 0, end + 4)
    if found is not None:
        _explain_byte(buffer, found.start())
    raise FrontdError(Reason.FieldLength, hint=f"The limit is limits.max_fields ({limits.max_fields} fields).")


def _check_sizes(items: list[Item], limits: WireLimits) -> None:
    """Only a head that is itself longer than `max_field` can hold a field that is."""
    for _, name, value in items:
        if len(name) + len(value) > limits.max_field:
            raise FrontdError(
                Reason.FieldLength, hint=f"The limit of one field is limits.max_field ({limits.max_field} bytes)."
            )


def _explain_request(buffer: bytes | bytearray, end: int, limits: WireLimits) -> NoReturn:
    """Name what is wrong with a complete head that did not match."""
    if buffer.count(b"\r\n", 0, end) > limits.max_fields:
        _refuse_count(buffer, end, limits)
    head = bytes(buffer[: end + 4])
    found = _CERTAIN_ERROR.search(head)
    if found is not None:
        _explain_byte(head, found.start())
    line, _, rest = head.partition(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3:
        raise FrontdError(Reason.BadRequest, detail="the request line is not 'method target version'")
    method, target, version = parts
    if not re.fullmatch(TOKEN, method):
        raise FrontdError(Reason.Verb, detail="the method is not a token")
    if not re.fullmatch(rb"[\x21-\x7e]+", target):
        raise FrontdError(Reason.URL, detail="the target has a byte outside visible ASCII")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise FrontdError(Reason.Version_NS, detail=f"version {version.decode('latin-1')}")
        raise FrontdError(Reason.BadRequest, detail="the request line does not end in an HTTP version")
    _explain_fields(rest, Reason.Header)


def _explain_fields(lines: bytes, reason: Reason) -> NoReturn:
    for number, line in enumerate(lines.split(b"\r\n"), 1):
        if line[:1] in (b" ", b"\t"):
            raise FrontdError(reason, detail=f"field line {number} is folded (obs-fold)")
        if line and not match_field(line):
            raise FrontdError(reason, detail=f"field line {number} is not 'name: value'")
    raise FrontdError(reason, detail="the field lines are not valid")


def _check_request_framing(head: RequestHead, facts: Facts, repeated: tuple[bytes, ...]) -> None:
    """Fill in how the message is framed and what becomes of its connection.  Raises `FrontdError`."""
    length = facts.get(b"content-length")
    if b"transfer-encoding" in facts:
        if length is not None:
            raise FrontdError(Reason.BadRequest, detail="both Content-Length and Transfer-Encoding (RFC 9112 6.1)")
        if head.version == b"1.0":
            raise FrontdError(Reason.BadRequest, detail="Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1)")
        if b"transfer-encoding" in repeated:
            raise FrontdError(Reason.BadRequest, detail="Transfer-Encoding more than once")
        if facts[b"transfer-encoding"].lower() != b"chunked":
            raise FrontdError(Reason.NotImplemented_NI, detail="a transfer coding other than chunked")
        head.chunked, head.plain = True, False
    if length is not None:
        if b"content-length" in repeated:
            raise FrontdError(Reason.BadRequest, detail="Content-Length more than once")
        head.content_length = content_length(length)
    if b"host" in repeated:
        raise FrontdError(Reason.Hostname, detail="Host more than once")
    if b"host" not in facts and head.version == b"1.1":
        raise FrontdError(Reason.Hostname, detail="no Host field (RFC 9112 3.2)")
    _settle_connection(head, facts, repeated)


def _settle_connection(head: RequestHead | ResponseHead, facts: Facts, repeated: tuple[bytes, ...]) -> None:
    """Set `keep_alive` as RFC 9112 9.3 has it, and take `plain` away where a fact asks for more than framing."""
    if b"connection" in facts:
        said = _SAID.get(facts[b"connection"])
        if said is None or repeated:
            said = b"close" not in head.headers.tokens(b"connection")
            head.plain = head.plain and facts[b"connection"].lower() in _SAID
        head.keep_alive = said
    if head.plain:
        if repeated or b"expect" in facts or b"upgrade" in facts:
            head.plain = False
    elif head.version == b"1.0":
        head.keep_alive = False


def content_length(value: bytes) -> int:
    """A Content-Length value (RFC 9110 8.6: digits only).  Raises `FrontdError` with `Reason.Number`."""
    if len(value) > _MOST_DIGITS or not value.isdigit():
        raise FrontdError(Reason.Number, detail="Content-Length is not a number of at most 18 digits")
    return int(value)


def split_authority(value: bytes) -> bytes:
    """The host part of a Host field or absolute-form authority (brackets kept off).

    Raises `FrontdError` with `Reason.Hostname` for anything but ``host`` or ``host:port``.
    """
    match = _HOST.fullmatch(value)
    if match is None or (match.group(2) and int(match.group(2)) > 65535):
        raise FrontdError(Reason.Hostname, detail="the Host field is not host or host:port")
    host = match.group(1)
    if not host.startswith(b"["):
        return host
    try:
        IPv6Address(host[1:-1].decode("ascii"))
    except ValueError:
        raise FrontdError(Reason.Hostname, detail="brackets in the Host field without an IPv6 address") from None
    return host[1:-1]


# ---------------------------------------------------------------------------------------------------- responses

RESPONSE_LIMITS = WireLimits(65536, 65536, 1000)  # an app of ours, not a stranger: nginx 4-8 KiB, Caddy 10 MiB


def scan_response(buffer: bytes | bytearray, *, lenient: bool = False, start: int = 0) -> ResponseHead | None:
    """Look for a complete response head at the front of `buffer`.

    `lenient` accepts bare LF and folded lines of old backends: they are mended in `buffer`, a bytearray, before the
    check.  Returns None when more bytes are needed; raises `FrontdError` with `Reason.BadUpstreamHead`.
    """
    if lenient and isinstance(buffer, bytearray) and _mend(buffer, start):
        start = 0
    end = buffer.find(b"\r\n\r\n", start - 3 if start > 3 else 0, RESPONSE_LIMITS.max_head)
    if end < 0:
        found = None if lenient else _certain_error(buffer, start, RESPONSE_LIMITS)
        if found is not None:
            raise FrontdError(Reason.BadUpstreamHead, detail=f"byte 0x{buffer[found]:02x} at {found} in the head")
        if not b"HTTP/1."[: len(buffer)] == buffer[:7]:
            raise FrontdError(Reason.BadUpstreamHead, detail="the answer does not begin like HTTP/1")
        if len(buffer) > RESPONSE_LIMITS.max_head:
            raise FrontdError(Reason.BadUpstreamHead, detail="the response head is larger than 64 KiB")
        return None
    try:
        return _read_response(buffer, end)
    except FrontdError as error:
        raise FrontdError(Reason.BadUpstreamHead, detail=error.detail or error.hint) from None


def _read_response(buffer: bytes | bytearray, end: int) -> ResponseHead:
    """The complete head that ends at `end`, without its empty line.  Raises `FrontdError` with any reason."""
    match = _match_response(buffer, 0, end + 2)
    if match is None:
        _explain_response(buffer, end)
    version, status, reason, block = match.groups()
    known = _answers.get(block)
    if known is not None and version == b"1.1" and (code := _STATUS[status]) >= 200:
        length = known.content_length
        if length is not None or known.chunked or code in (204, 304):
            headers, chunked = adopt(known.items.copy(), known), known.chunked
            return ResponseHead(code, reason, version, headers, end + 4, length, chunked, True, known.keep_alive)
    lines = block.split(b"\r\n", RESPONSE_LIMITS.max_fields)
    if lines.pop():  # behind the last CR LF nothing is left, or else what was beyond the limit
        _refuse_count(buffer, end, RESPONSE_LIMITS)
    fields = read_fields(lines)
    if fields is None:
        _explain_response(buffer, end)
    items, facts, repeated, remembered = fields
    head = ResponseHead(_STATUS[status], reason, version, adopt(items), end + 4)
    _check_response_framing(head, facts, repeated)
    if remembered and head.plain:
        remember_block(_answers, block, items, head.content_length, chunked=head.chunked, keep=head.keep_alive)
    return head


def _explain_response(buffer: bytes | bytearray, end: int) -> NoReturn:
    if buffer.count(b"\r\n", 0, end) > RESPONSE_LIMITS.max_fields:
        _refuse_count(buffer, end, RESPONSE_LIMITS)
    _explain_fields(bytes(buffer[: end + 2]).partition(b"\r\n")[2], Reason.BadUpstreamHead)


_LENIENT_END = re.compile(rb"\r?\n\r?\n")


def _mend(buffer: bytearray, start: int) -> bool:
    """CR LF for bare LF and one space for a fold, in the head at the front of `buffer`; whether it was complete."""
    end = _LENIENT_END.search(buffer, max(0, start - 3), RESPONSE_LIMITS.max_head)
    if end is None:
        return False
    head = re.sub(rb"\r?\n[ \t]+", b" ", bytes(buffer[: end.start()]))
    buffer[: end.end()] = re.sub(rb"\r?\n", b"\r\n", head) + b"\r\n\r\n"
    return True


def _check_response_framing(head: ResponseHead, facts: Facts, repeated: tuple[bytes, ...]) -> None:
    """Fill in how the message is framed and what becomes of its connection.  Raises `FrontdError`."""
    length = facts.get(b"content-length")
    if b"transfer-encoding" in facts:
        if length is not None:
            raise FrontdError(Reason.BadUpstreamHead, detail="both Content-Length and Transfer-Encoding")
        coding = facts[b"transfer-encoding"].lower()
        if head.version == b"1.0" or b"transfer-encoding" in repeated or coding != b"chunked":
            raise FrontdError(Reason.BadUpstreamHead, detail="a transfer coding other than one chunked in HTTP/1.1")
        head.chunked = True
    if length is not None:
        if b"content-length" in repeated:
            raise FrontdError(Reason.BadUpstreamHead, detail="Content-Length more than once")
        head.content_length = content_length(length)
    if head.version == b"1.1" and head.status >= 200:
        # in another spelling it is for h11, which makes it this one
        if head.chunked:
            head.plain = facts[b"transfer-encoding"] == b"chunked"
        else:
            head.plain = length is not None or head.status in (204, 304)
    _settle_connection(head, facts, repeated)
