"""What the plays about files share: a request out of its bytes, and the body that pieces make."""

from __future__ import annotations

from frontd.lanes.requests import make_request
from frontd.model.conditions import Span
from frontd.model.messages import Request
from frontd.pipeline.fileroot import OpenFile
from frontd.pipeline.files import Piece
from frontd.protocol.scan import WireLimits, scan_request


def asking(target: str, *fields: str, method: str = "GET") -> Request:
    """The request that a client's bytes make."""
    lines = "".join(f"{field}\r\n" for field in ("Host: a.test", *fields))
    head = scan_request(bytearray(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")), WireLimits())
    assert head is not None
    return make_request(head)


def body_of(pieces: list[Piece], file: OpenFile) -> bytes:
    """What the client gets."""
    return b"".join(file.read(*piece) if isinstance(piece, Span) else piece for piece in pieces)
