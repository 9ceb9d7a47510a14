"""How a message is framed on the wire: heads out, and the length of bodies in and out (RFC 9112 6).

Invariant: a head that leaves here has exactly as many lines as it has fields, whatever stands in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from frontd.model.headers import Headers, Item

# What a body still lacks on its way out: a number of bytes, or one of these.
CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2

Part = bytes | memoryview  # of a body

NO_TRAILERS: Final = Headers()


class End:
    """Says that a body is complete; carries the trailer fields."""

    __slots__ = ("trailers",)

    def __init__(self, trailers: Headers) -> None:
        self.trailers = trailers


PLAIN_END: Final = End(NO_TRAILERS)


def head_bytes(start: bytes, items: Iterable[Item], more: bytes = b"") -> bytes:
    """A head: `start` is the start line with its line break, `more` are field lines that are serialised already.

    Raises `ValueError` when a field would break out of its line.
    """
    parts = [start]
    for _, raw, value in items:
        parts += (raw, b": ", value, b"\r\n")
    lines = (len(parts) >> 2) + 2 + more.count(b"\n")
    parts += (more, b"\r\n")
    head = b"".join(parts)
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\n:" in head or b"\0" in head:
        raise ValueError("a header field would break out of its line")
    return head


def field_lines(items: Iterable[Item]) -> bytes:
    """`items` as field lines.  Raises `ValueError` when one would break out of its line."""
    return head_bytes(b"\r\n", items)[2:-2]


def status_line(status: int, reason: bytes) -> bytes:
    """The first line of an answer, with its line break."""
    line = _status_lines.get((status, reason))
    if line is None:
        line = b"HTTP/1.1 %d %b\r\n" % (status, reason)
        if len(_status_lines) < MOST_STATUS_LINES and len(reason) <= LONGEST_REASON:
            _status_lines[status, reason] = line
    return line


MOST_STATUS_LINES, LONGEST_REASON = 256, 64
_status_lines: dict[tuple[int, bytes], bytes] = {}


def length_in(items: list[Item]) -> int | None:
    """What `items`, which were checked, say of the length of a body."""
    for name, _, value in items:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return CHUNKED
    return None


def body_bytes(left: int, data: Part) -> tuple[Part, int]:
    """`data` as a part of a body that still lacks `left`; and what it lacks then.

    Raises `ValueError` when it is more than was announced.
    """
    if left == CHUNKED:
        return (b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if data else b""), left
    if left == UNTIL_CLOSE:
        return data, left
    if len(data) > left:
        raise ValueError("the body is longer than its Content-Length")
    return data, left - len(data)


def end_bytes(left: int, trailers: Headers) -> bytes:
    """The end of a body that still lacks `left`; `trailers` are sent only when the framing is chunked.

    Raises `ValueError` when it is less than was announced.
    """
    if left == CHUNKED:
        return head_bytes(b"0\r\n", trailers.items)
    if left > 0:
        raise ValueError("the body is shorter than its Content-Length")
    return b""
