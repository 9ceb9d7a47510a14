"""Chunked bodies: the data and the trailers that `ChunkScanner.take` hands out are those that h11 reads."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frontd.model.errors import FrontdError, Reason
from frontd.protocol.chunks import CHUNKS_AT_ONCE, ChunkScanner
from tests.protocol.grammar import bodies, chunked_bodies, cuts, damaged, in_chunks
from tests.protocol.talk import each_byte, portions

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
Read = tuple[bytes, list[tuple[bytes, bytes, bytes]], bytes]


def h11_reads(data: bytes) -> Read | None:
    """Body, trailers and what is left behind them; None when h11 refuses or wants more."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(HEAD + data)
    http.next_event()
    body = b""
    try:
        while isinstance(event := http.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.EndOfMessage):
        return None
    trailers = [(raw.lower(), raw, value) for raw, value in event.headers.raw_items()]
    return body, trailers, http.trailing_data[0]


def taken(parts: list[bytes]) -> Read | FrontdError | None:
    """The same by `take`; None when it wants more."""
    scanner, buffer, body = ChunkScanner(Reason.BadRequest, 1000), bytearray(), b""
    for part in parts:
        buffer += part
        while True:
            try:
                size, pieces = scanner.take(buffer)
            except FrontdError as error:
                return error
            assert all(pieces)
            assert len(pieces) <= CHUNKS_AT_ONCE
            body += b"".join(pieces)
            del buffer[:size]
            if not size:
                break
    return (body, scanner.trailers.items, bytes(buffer)) if scanner.done else None


trailer_lines = st.sampled_from([b"X-Sum: 1\r\n", b"x-sum:\r\n", b"Y:\t\xff \r\n", b"Content-Length: 3\r\n"])
trailer_sections = st.lists(trailer_lines, max_size=3, unique=True).map(b"".join)
extensions = st.sampled_from([b"", b";a", b";a=b;c", b';a="\xff\t"', b";"])
valid = st.builds(in_chunks, bodies | st.binary(max_size=300), st.lists(st.integers(1, 60), max_size=6), extensions,
                  trailer_sections)  # fmt: skip


@given(valid | chunked_bodies, cuts, st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"\r\n", b"0\r\n\r\n"]))
def test_a_valid_body_is_the_same_for_h11_however_it_is_cut(data: bytes, places: list[int], behind: bytes) -> None:
    expected = h11_reads(data + behind)
    assert expected is not None
    for parts in ([data + behind], portions(data + behind, places), each_byte(data + behind)):
        assert taken(parts) == expected


@given(damaged(valid) | damaged(chunked_bodies), cuts)
@example(b"0\r\nTransfer-Encoding: gzip\r\n\r\n", [])
@example(b"0\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", [])
@example(b"0\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", [])
@example(b"0\r\nContent-Length: 3, 3\r\n\r\n", [])
@example(b"0\r\nContent-Length: x\r\n\r\n", [])
def test_a_body_is_never_read_otherwise_than_by_h11(data: bytes, places: list[int]) -> None:
    found = taken([data])
    if isinstance(found, tuple):
        theirs = h11_reads(data)
        assert theirs is not None
        lower = [(name, raw, value.lower() if name == b"transfer-encoding" else value) for name, raw, value in found[1]]
        assert (found[0], lower, found[2]) == theirs  # h11 writes the name of the coding in lower case
    for parts in (portions(data, places), each_byte(data)):
        again = taken(parts)
        if isinstance(found, FrontdError):
            assert isinstance(again, FrontdError)
            assert again.reason is found.reason
        else:
            assert again == found


@given(damaged(valid), cuts)
def test_taking_and_consuming_walk_alike(data: bytes, places: list[int]) -> None:
    taking, consuming = (ChunkScanner(Reason.BadRequest, 1000) for _ in range(2))
    buffer = bytearray()
    for part in portions(data, places):
        buffer += part
        try:
            size, pieces = taking.take(buffer)
        except FrontdError as error:
            with pytest.raises(FrontdError, match=re.escape(str(error))):
                consuming.consume(buffer)
            return
        assert consuming.consume(buffer) == size
        assert sum(map(len, pieces)) <= size
        assert (consuming.done, consuming.trailers.items) == (taking.done, taking.trailers.items)
        del buffer[:size]


def test_one_call_hands_out_a_bounded_number_of_chunks() -> None:
    scanner, buffer = ChunkScanner(Reason.BadRequest, 100), bytearray(b"1\r\nx\r\n" * (CHUNKS_AT_ONCE + 1))
    size, pieces = scanner.take(buffer)
    assert (size, pieces) == (6 * CHUNKS_AT_ONCE, [b"x"] * CHUNKS_AT_ONCE)
    del buffer[:size]  # nothing of the scanner holds on to the buffer
    assert scanner.take(buffer) == (6, [b"x"])


def test_data_is_handed_out_before_its_chunk_is_complete() -> None:
    scanner = ChunkScanner(Reason.BadRequest, 100)
    assert scanner.take(bytearray(b"5\r\nab")) == (5, [b"ab"])
    assert scanner.take(bytearray()) == (0, [])
    assert scanner.take(b"cde\r") == (3, [b"cde"])
    assert scanner.take(bytearray(b"\r\n0\r\nA: b \r\n\r\nGET")) == (14, [])
    assert scanner.done
    assert scanner.trailers.items == [(b"a", b"A", b"b")]


@pytest.mark.parametrize(
    "line", [b"Content-Length: x", b"Transfer-Encoding: gzip", b"Content-Length: 1\r\ncontent-length: 1"]
)
def test_framing_among_the_trailers_is_refused_where_a_head_would_be(line: bytes) -> None:
    for reason in (Reason.BadRequest, Reason.BadUpstreamBody):
        with pytest.raises(FrontdError) as refused:
            ChunkScanner(reason, 1000).take(bytearray(b"0\r\n" + line + b"\r\n\r\n"))
        assert refused.value.reason is reason
