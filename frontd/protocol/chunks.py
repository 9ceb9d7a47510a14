"""Chunked bodies on the wire (RFC 9112 7.1): which bytes belong to them, their data, and their trailer section.

How it works
------------
`ChunkScanner` walks the bytes at the front of a buffer as far as they go and remembers where it stands: in a chunk-size
line, in the data of a chunk, at the CR LF behind it, or in the trailer section.  `take` hands out the data as it walks;
`consume` only says how far it came, for who gives the checked bytes to another parser.

Invariants
----------
* Nothing is counted or handed out before the line that announces it was checked.
* Every line is bounded: a chunk line by `MAX_CHUNK_LINE`, the trailer section by the limit given and `MAX_TRAILERS`.
* A byte is searched once, however the bytes come.
* Fields of the trailer section that speak of framing are refused where they would be in a head, although nothing is
  framed by them: a reader behind us may see that otherwise.
"""

from __future__ import annotations

import re

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers, Item
from frontd.protocol.fieldlines import VALUE, adopt, read_field

# chunk-ext is allowed and ignored (RFC 9112 7.1.1); white space around the size is not (RFC 9112 errata, smuggling)
_match_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + VALUE + rb")?").fullmatch
_match_length = re.compile(rb"[0-9]{1,18}").fullmatch

MAX_CHUNK_LINE = 512  # bytes; extensions are unused in practice, nginx and h11 bound them too
MAX_TRAILERS = 200  # fields, as many as a head may have by default
CHUNKS_AT_ONCE = 64  # one client's one-byte chunks would keep everybody else waiting


class ChunkScanner:
    """Walks a chunked body, checks its lines on the wire and hands out its data.

    `take(buffer)` returns how many bytes from the front are checked and belong to this message, and the pieces of data
    in them; `consume(buffer)` the number alone.  The caller cuts so many bytes off before the next call.  `done` is set
    when the final CR LF of the trailer section is among them; then `trailers` holds the trailer fields as received.
    One call walks at most `CHUNKS_AT_ONCE` chunks.  Both raise `FrontdError` with the reason given at construction.
    """

    __slots__ = ("_left", "_reason", "_seen", "_state", "_trailer_limit", "_trailer_size", "done", "trailers")

    def __init__(self, reason: Reason, trailer_limit: int) -> None:
        self._reason = reason
        self._trailer_limit = trailer_limit
        self._trailer_size = 0
        self._state = "size"
        self._left = 0
        self._seen = 0  # bytes at the front of the buffer that hold no line end
        self.done = False
        self.trailers: Headers = adopt([])

    def consume(self, buffer: bytes | bytearray) -> int:
        """How many bytes at the front of `buffer` are checked and belong to this body.  Raises `FrontdError`."""
        return self._walk(buffer, None)

    def take(self, buffer: bytes | bytearray) -> tuple[int, list[bytes]]:
        """The number of bytes that `consume` would return, and the data among them, in order and never empty.

        Data of a chunk that has not come to its end is handed out as far as it is there.  Raises `FrontdError`.
        """
        pieces: list[tuple[int, int]] = []
        size = self._walk(buffer, pieces)
        if not pieces:
            return size, []
        with memoryview(buffer) as view:  # a slice of the buffer itself would be copied twice
            return size, [bytes(view[start:end]) for start, end in pieces]

    def _walk(self, buffer: bytes | bytearray, pieces: list[tuple[int, int]] | None) -> int:
        """Walk as far as the bytes go; places of data are added to `pieces`."""
        position, chunks = 0, 0
        while not self.done:
            if self._state == "data":
                step = min(self._left, len(buffer) - position)
                if step and pieces is not None:
                    pieces.append((position, position + step))
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
            match = _match_chunk_line(line)
            if match is None:
                raise FrontdError(self._number_reason(), detail="a chunk-size line is not valid (RFC 9112 7.1)")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailer"
        elif line:
            self._trailer_size += len(line) + 2
            self._refuse_unless(len(self.trailers) < MAX_TRAILERS, f"more than {MAX_TRAILERS} trailer fields")
            item = read_field(line)
            if item is None:
                raise FrontdError(self._reason, detail="a trailer field is not valid")
            self._check_framing(item)
            self.trailers.items.append(item)
        else:
            self.done = True

    def _check_framing(self, item: Item) -> None:
        """Content-Length and Transfer-Encoding among the trailers: at most once, and of a form a head could have."""
        name, _, value = item
        if name == b"content-length":
            self._refuse_unless(_match_length(value) is not None, "Content-Length in the trailers is not a number")
        elif name == b"transfer-encoding":
            self._refuse_unless(value.lower() == b"chunked", "a transfer coding other than chunked in the trailers")
        else:
            return
        self._refuse_unless(name not in self.trailers, "a framing field came twice in the trailers")

    def _number_reason(self) -> Reason:
        return Reason.Number if self._reason.source.value == "downstream" else self._reason

    def _refuse_unless(self, good: bool, detail: str) -> None:
        if not good:
            raise FrontdError(self._reason, detail=detail)
