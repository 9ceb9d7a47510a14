"""The wire check: is this head allowed on our wire, whatever a lenient parser thinks of it?

How it works
------------
h11 accepts bare LF, folded lines, control bytes, CL with TE, HTTP/2.0 and more, and its events no longer show them.  So
the bytes are checked before h11 sees them.  `scan_request` and `scan_response` look at a growing buffer and answer

* ``None``: need more; the bytes so far hold no error that is already certain;
* a `RequestHead` / `ResponseHead`: complete, wire-checked, split into fields;
* an exception: refused, with the `Reason`.

`ChunkScanner` does the same for the lines inside a chunked body and for its trailer section (RFC 9112 7.1).

Invariants
----------
* A head that passes is one start line and field lines, each ended by CR LF, with one framing: at most one of
  Content-Length and Transfer-Encoding, each at most once, and ``chunked`` as the only coding.
* Whatever h11 refuses is refused here or by h11 right after; nothing is passed on that was not checked.
* Every buffer is bounded: a head by `WireLimits.max_head`, a chunk line by `MAX_CHUNK_LINE`, trailers by ``max_head``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import NoReturn

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers, Item

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
_FIELDS = rb"((?:" + TOKEN + rb":" + VALUE + rb"\r\n)*)"
_REQUEST = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])\r\n" + _FIELDS + rb"\r\n")
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (" + VALUE + rb"))?\r\n" + _FIELDS + rb"\r\n")
_FIELD_LINES = re.compile(_FIELDS + rb"\r\n")
_FIELD = re.compile(rb"(" + TOKEN + rb"):(" + VALUE + rb")")
_VERSION = re.compile(rb"HTTP/[0-9]+(?:\.[0-9]+)?")
# What no byte still to come can mend: a control byte, LF without CR before it, CR with something else behind it.
_CERTAIN_ERROR = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])", re.DOTALL)
_NUMBER = re.compile(rb"[0-9]{1,18}")
# chunk-ext is allowed and ignored (RFC 9112 7.1.1); white space around the size is not (RFC 9112 errata, smuggling)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + VALUE + rb")?")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")

MAX_CHUNK_LINE = 512  # bytes; extensions are unused in practice, nginx and h11 bound them too
MAX_TRAILERS = 200  # fields, as many as a head may have by default
CHUNKS_AT_ONCE = 64  # one client's one-byte chunks would keep everybody else waiting


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Sizes in bytes, `max_fields` a count.  Defaults are HTTP.sys's MaxRequestBytes and MaxFieldLength; HTTP.sys does
    not limit the field count, 200 is twice what Apache allows by default (LimitRequestFields 100)."""

    max_head: int = 16384
    max_field: int = 16384
    max_fields: int = 200


@dataclass(slots=True)
class RequestHead:
    """A complete request head that passed the wire check; `size` is its length in bytes with the final empty line."""

    method: bytes
    target: bytes
    version: bytes
    headers: Headers
    size: int
    content_length: int | None = None
    chunked: bool = False


@dataclass(slots=True)
class ResponseHead:
    """A complete response head that passed the wire check."""

    status: int
    reason: bytes
    version: bytes
    headers: Headers
    size: int
    content_length: int | None = None
    chunked: bool = False


# ---------------------------------------------------------------------------------------------------- requests


def scan_request(buffer: bytearray, limits: WireLimits, start: int = 0) -> RequestHead | None:
    """Look for a complete request head at the front of `buffer`; bytes before `start` were seen without finding an end.

    Returns None when more bytes are needed.  Raises `FrontdError` (downstream reasons) as soon as an error is certain.
    """
    end = buffer.find(b"\r\n\r\n", max(0, start - 3), limits.max_head)
    if end < 0:
        found = _certain_error(buffer, start, limits)
        if found is not None:
            _explain_byte(buffer, found)
        if len(buffer) > limits.max_head:
            raise _head_too_long(limits)
        return None
    size = end + 4
    _count_fields(buffer, size, limits)
    match = _REQUEST.fullmatch(buffer, 0, size)
    if match is None:
        _explain_request(bytes(buffer[:size]))
    method, target, minor, lines = match.groups()
    items = _split_fields(lines, limits)
    head = RequestHead(method, target, b"1." + minor, Headers(items), size)
    _check_request_framing(head)
    return head


def _head_too_long(limits: WireLimits) -> FrontdError:
    hint = f"The limit is limits.max_head ({limits.max_head} bytes)."
    return FrontdError(Reason.RequestLength, hint=hint)


def _certain_error(buffer: bytearray, start: int, limits: WireLimits) -> int | None:
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


def _count_fields(buffer: bytearray, size: int, limits: WireLimits) -> None:
    """Counted before anything is matched: the expression below needs 400 bytes for each field line."""
    if buffer.count(b"\r\n", 0, size) - 2 > limits.max_fields:
        found = _CERTAIN_ERROR.search(buffer, 0, size)
        if found is not None:  # as it would have been refused, had the head come byte by byte
            _explain_byte(buffer, found.start())
        raise FrontdError(Reason.FieldLength, hint=f"The limit is limits.max_fields ({limits.max_fields} fields).")


def _split_fields(lines: bytes, limits: WireLimits) -> list[Item]:
    """Field lines that matched `_FIELDS`, as items; their sizes are checked here."""
    items: list[Item] = []
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        if len(name) + len(value) > limits.max_field:
            raise FrontdError(
                Reason.FieldLength, hint=f"The limit of one field is limits.max_field ({limits.max_field} bytes)."
            )
        items.append((name.lower(), name, value))
    return items


def _explain_request(head: bytes) -> NoReturn:
    """Name what is wrong with a complete head that did not match."""
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
        if line and not _FIELD.fullmatch(line):
            raise FrontdError(reason, detail=f"field line {number} is not 'name: value'")
    raise FrontdError(reason, detail="the field lines are not valid")


def _check_request_framing(head: RequestHead) -> None:
    headers = head.headers
    codings = headers.get_all(b"transfer-encoding")
    lengths = headers.get_all(b"content-length")
    if codings:
        if lengths:
            raise FrontdError(Reason.BadRequest, detail="both Content-Length and Transfer-Encoding (RFC 9112 6.1)")
        if head.version == b"1.0":
            raise FrontdError(Reason.BadRequest, detail="Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1)")
        if len(codings) > 1:
            raise FrontdError(Reason.BadRequest, detail="Transfer-Encoding more than once")
        if codings[0].lower() != b"chunked":
            raise FrontdError(Reason.NotImplemented_NI, detail="a transfer coding other than chunked")
        head.chunked = True
    if lengths:
        if len(lengths) > 1:
            raise FrontdError(Reason.BadRequest, detail="Content-Length more than once")
        head.content_length = content_length(lengths[0])
    hosts = headers.get_all(b"host")
    if len(hosts) > 1:
        raise FrontdError(Reason.Hostname, detail="Host more than once")
    if not hosts and head.version == b"1.1":
        raise FrontdError(Reason.Hostname, detail="no Host field (RFC 9112 3.2)")


def content_length(value: bytes) -> int:
    """A Content-Length value (RFC 9110 8.6: digits only).  Raises `FrontdError` with `Reason.Number`."""
    if not _NUMBER.fullmatch(value):
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


def scan_response(buffer: bytearray, *, lenient: bool = False, start: int = 0) -> ResponseHead | None:
    """Look for a complete response head at the front of `buffer`.

    `lenient` accepts bare LF and folded lines of old backends: they are mended in `buffer` before the check.  Returns
    None when more bytes are needed; raises `FrontdError` with `Reason.BadUpstreamHead`.
    """
    if lenient and _mend(buffer, start):
        start = 0
    end = buffer.find(b"\r\n\r\n", max(0, start - 3), RESPONSE_LIMITS.max_head)
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
        _count_fields(buffer, end + 4, RESPONSE_LIMITS)
        match = _RESPONSE.fullmatch(buffer, 0, end + 4)
        if match is None:
            _explain_fields(bytes(buffer[: end + 2]).partition(b"\r\n")[2], Reason.BadUpstreamHead)
        minor, status, reason, lines = match.groups()
        items = _split_fields(lines, RESPONSE_LIMITS)
        head = ResponseHead(int(status), reason or b"", b"1." + minor, Headers(items), end + 4)
        _check_response_framing(head)
    except FrontdError as error:
        raise FrontdError(Reason.BadUpstreamHead, detail=error.detail or error.hint) from None
    return head


_LENIENT_END = re.compile(rb"\r?\n\r?\n")


def _mend(buffer: bytearray, start: int) -> bool:
    """CR LF for bare LF and one space for a fold, in the head at the front of `buffer`; whether it was complete."""
    end = _LENIENT_END.search(buffer, max(0, start - 3), RESPONSE_LIMITS.max_head)
    if end is None:
        return False
    head = re.sub(rb"\r?\n[ \t]+", b" ", bytes(buffer[: end.start()]))
    buffer[: end.end()] = re.sub(rb"\r?\n", b"\r\n", head) + b"\r\n\r\n"
    return True


def _check_response_framing(head: ResponseHead) -> None:
    codings = head.headers.get_all(b"transfer-encoding")
    lengths = head.headers.get_all(b"content-length")
    if codings:
        if lengths:
            raise FrontdError(Reason.BadUpstreamHead, detail="both Content-Length and Transfer-Encoding")
        if head.version == b"1.0" or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise FrontdError(Reason.BadUpstreamHead, detail="a transfer coding other than one chunked in HTTP/1.1")
        head.chunked = True
    if len(lengths) > 1:
        raise FrontdError(Reason.BadUpstreamHead, detail="Content-Length more than once")
    if lengths:
        head.content_length = content_length(lengths[0])


# ---------------------------------------------------------------------------------------------------- chunked bodies


class ChunkScanner:
    """Walks a chunked body, checks its lines on the wire and says how many bytes belong to it.

    `consume(buffer)` returns how many bytes from the front are checked and belong to this message; `done` is set when
    the final CR LF of the trailer section is among them.  One call walks at most `CHUNKS_AT_ONCE` chunks.  Raises
    `FrontdError` with the reason given at construction.
    """

    __slots__ = ("_left", "_reason", "_seen", "_state", "_trailer_limit", "_trailer_size", "_trailers", "done")

    def __init__(self, reason: Reason, trailer_limit: int) -> None:
        self._reason = reason
        self._trailer_limit = trailer_limit
        self._trailer_size = 0
        self._trailers = 0
        self._state = "size"
        self._left = 0
        self._seen = 0  # bytes at the front of the buffer that hold no line end
        self.done = False

    def consume(self, buffer: bytearray) -> int:
        """How many bytes at the front of `buffer` are checked and belong to this body.  Raises `FrontdError`."""
        position, chunks = 0, 0
        while not self.done:
            if self._state == "data":
                step = min(self._left, len(buffer) - position)
                self._left -= step
                position += step
                if self._left:
                    break
                self._state = "crlf"
            elif self._state == "crlf":
                if len(buffer) - position < 2:
                    self._refuse_unless(b"\r\n".startswith(buffer[position:]), "no CR LF after a chunk")
                    break
                self._refuse_unless(buffer[position : position + 2] == b"\r\n", "no CR LF after a chunk")
                position += 2
                self._state = "size"
                chunks += 1
                if chunks == CHUNKS_AT_ONCE:
                    break
            else:
                limit = MAX_CHUNK_LINE if self._state == "size" else self._trailer_limit - self._trailer_size
                end = buffer.find(b"\n", position + self._seen, position + limit + 2)
                if end < 0:
                    # with its CR, the longest line allowed is one byte longer than its content
                    self._refuse_unless(len(buffer) - position <= limit + 1, f"a {self._state} line is too long")
                    self._seen = len(buffer) - position
                    break
                self._seen = 0
                line = bytes(buffer[position : end + 1])
                self._refuse_unless(line.endswith(b"\r\n"), "bare LF in a chunked body")
                position = end + 1
                self._line(line[:-2])
        return position

    def _line(self, line: bytes) -> None:
        if self._state == "size":
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise FrontdError(self._number_reason(), detail="a chunk-size line is not valid (RFC 9112 7.1)")
            self._left = int(match.group(1), 16)
            self._state = "data" if self._left else "trailer"
        elif line:
            self._trailer_size += len(line) + 2
            self._trailers += 1
            self._refuse_unless(self._trailers <= MAX_TRAILERS, f"more than {MAX_TRAILERS} trailer fields")
            self._refuse_unless(_FIELD.fullmatch(line) is not None, "a trailer field is not valid")
        else:
            self.done = True

    def _number_reason(self) -> Reason:
        return Reason.Number if self._reason.source.value == "downstream" else self._reason

    def _refuse_unless(self, good: bool, detail: str) -> None:
        if not good:
            raise FrontdError(self._reason, detail=detail)
