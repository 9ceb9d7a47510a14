"""The wire check alone: limits at the limit and one over, errors that are certain before the head ends, and work."""

from __future__ import annotations

import h11
import pytest

from frontd.model.errors import FrontdError, Reason
from frontd.protocol.chunks import CHUNKS_AT_ONCE, MAX_CHUNK_LINE, MAX_TRAILERS
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import (
    RESPONSE_LIMITS,
    ChunkScanner,
    WireLimits,
    scan_request,
    scan_response,
    split_authority,
)
from tests.protocol.talk import asking

START = b"GET / HTTP/1.1\r\nHost: a\r\n"


def refusal(data: bytes, limits: WireLimits | None = None) -> FrontdError:
    with pytest.raises(FrontdError) as refused:
        scan_request(bytearray(data), limits or WireLimits())
    return refused.value


# ------------------------------------------------------------------------------------------------------- limits


def test_the_defaults_are_those_of_http_sys() -> None:
    assert WireLimits() == WireLimits(max_head=16384, max_field=16384, max_fields=200)


def test_a_head_may_be_as_long_as_the_limit_and_not_a_byte_longer() -> None:
    head = START + b"X: y\r\n\r\n"
    accepted = scan_request(bytearray(head), WireLimits(max_head=len(head)))
    assert accepted is not None
    assert accepted.size == len(head)
    error = refusal(head, WireLimits(max_head=len(head) - 1))
    assert (error.reason, error.status) == (Reason.RequestLength, 431)
    assert f"limits.max_head ({len(head) - 1} bytes)" in error.hint


def test_a_head_that_does_not_end_is_refused_as_soon_as_it_is_too_long() -> None:
    assert scan_request(bytearray(b"GET /" + b"a" * 95), WireLimits(max_head=100)) is None
    assert refusal(b"GET /" + b"a" * 96, WireLimits(max_head=100)).reason is Reason.RequestLength


def test_what_follows_a_head_does_not_count_for_it() -> None:
    head = START + b"\r\n"
    assert scan_request(bytearray(head + b"x" * 1000), WireLimits(max_head=len(head))) is not None


def test_a_field_is_measured_by_name_and_value() -> None:
    limits = WireLimits(max_field=10)
    assert scan_request(bytearray(START + b"abcd:   efghij  \r\n\r\n"), limits) is not None
    error = refusal(START + b"abcd:efghijk\r\n\r\n", limits)
    assert error.reason is Reason.FieldLength
    assert "limits.max_field (10 bytes)" in error.hint


def test_fields_are_counted() -> None:
    limits = WireLimits(max_fields=3)
    assert scan_request(bytearray(START + b"b:\r\nc:\r\n\r\n"), limits) is not None
    error = refusal(START + b"b:\r\nc:\r\nd:\r\n\r\n", limits)
    assert error.reason is Reason.FieldLength
    assert "limits.max_fields (3 fields)" in error.hint


def test_the_verdict_does_not_depend_on_how_much_came_at_once() -> None:
    # an error behind the limit was not there yet when the limit was passed
    limits = WireLimits(max_head=30)
    assert refusal(START[:20] + b"a" * 11, limits).reason is Reason.RequestLength
    assert refusal(START[:20] + b"a" * 20 + b"\x01\r\n\r\n", limits).reason is Reason.RequestLength
    # and one before it was seen before anybody counted
    assert refusal(START[:20] + b"\x01" + b"a" * 20, limits).reason is Reason.Header
    assert refusal(START + b"b\n:\r\nc:\r\nd:\r\n\r\n", WireLimits(max_fields=2)).reason is Reason.Invalid_CRLF


def h11_accepts(data: bytes) -> bool:
    http = h11.Connection(h11.SERVER)
    http.receive_data(data)
    return isinstance(http.next_event(), h11.Request)


def test_nine_thousand_fields_are_refused() -> None:
    data = START + b"".join(b"x%d: y\r\n" % number for number in range(9000)) + b"\r\n"
    assert h11_accepts(data)
    assert refusal(data).reason is Reason.RequestLength
    assert refusal(data, WireLimits(max_head=1 << 20)).reason is Reason.FieldLength


def test_a_complete_head_of_a_megabyte_is_refused() -> None:
    data = START + b"x: " + b"y" * (1 << 20) + b"\r\n\r\n"
    assert h11_accepts(data)
    assert refusal(data).reason is Reason.RequestLength
    assert refusal(data, WireLimits(max_head=1 << 21)).reason is Reason.FieldLength


def test_an_answer_head_has_limits_too() -> None:
    start = b"HTTP/1.1 200 OK\r\nX: "
    exact = start + b"y" * (RESPONSE_LIMITS.max_head - len(start) - 4) + b"\r\n\r\n"
    assert scan_response(bytearray(exact)) is not None
    for data in (exact[:-4] + b"y\r\n\r\n", exact[:-4] + b"yyyyy"):
        with pytest.raises(FrontdError) as refused:
            scan_response(bytearray(data))
        assert refused.value.reason is Reason.BadUpstreamHead
    fields = b"".join(b"x%d:\r\n" % number for number in range(RESPONSE_LIMITS.max_fields))
    assert scan_response(bytearray(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")) is not None
    with pytest.raises(FrontdError) as refused:
        scan_response(bytearray(b"HTTP/1.1 200 OK\r\n" + fields + b"x:\r\n\r\n"))
    assert refused.value.reason is Reason.BadUpstreamHead


# ------------------------------------------------------------------------------------------------------- early errors


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x16", Reason.BadRequest),
        (b"\x00", Reason.BadRequest),
        (b"GET /\x01", Reason.BadRequest),
        (b"\n", Reason.Invalid_CRLF),
        (b"\r\r", Reason.Invalid_CRLF),
        (b"GET / HTTP/1.1\n", Reason.Invalid_CRLF),
        (b"GET / HTTP/1.1\rH", Reason.Invalid_CRLF),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", Reason.Invalid_CRLF),
        (b"GET / HTTP/1.1\r\nHost: a\x00", Reason.Header),
        (b"GET / HTTP/1.1\r\nX: \x7f", Reason.Header),
    ],
)
def test_an_error_that_nothing_can_mend_is_refused_at_once(data: bytes, reason: Reason) -> None:
    for end in range(len(data)):
        assert scan_request(bytearray(data[:end]), WireLimits()) is None
    assert refusal(data).reason is reason


def test_tls_on_an_http_port_is_told_so() -> None:
    assert "http://" in refusal(b"\x16\x03\x01").hint


@pytest.mark.parametrize("data", [b"220 smtp", b"HTTP/2", b"G", b"HTTP/1.1 200 OK\n", b"HTTP/1.1 2\x00", b"\r\n"])
def test_an_answer_that_is_none_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(FrontdError) as refused:
        scan_response(bytearray(data))
    assert refused.value.reason is Reason.BadUpstreamHead


@pytest.mark.parametrize("data", [b"", b"H", b"HTTP/1.", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n\r"])
def test_an_answer_that_may_become_one_is_waited_for(data: bytes) -> None:
    assert scan_response(bytearray(data)) is None


# ------------------------------------------------------------------------------------------------------- chunk lines


def consumed(data: bytes, trailer_limit: int = 100) -> ChunkScanner:
    scanner = ChunkScanner(Reason.BadRequest, trailer_limit)
    assert scanner.consume(bytearray(data)) == len(data)
    return scanner


def test_a_chunk_line_may_be_as_long_as_the_limit_and_not_a_byte_longer() -> None:
    longest = b"1;" + b"x" * (MAX_CHUNK_LINE - 2)
    assert consumed(longest + b"\r\na\r\n0\r\n\r\n").done
    for data in (longest + b"x\r\n", longest + b"xx"):
        with pytest.raises(FrontdError) as refused:
            ChunkScanner(Reason.BadRequest, 100).consume(bytearray(data))
        assert refused.value.reason is Reason.BadRequest
    assert ChunkScanner(Reason.BadRequest, 100).consume(bytearray(longest + b"\r")) == 0


def test_trailers_may_be_as_long_as_the_limit_together_and_not_a_byte_longer() -> None:
    assert consumed(b"0\r\na: 1\r\nb: 2\r\n\r\n", trailer_limit=12).done
    for data in (b"0\r\na: 1\r\nb: 22\r\n\r\n", b"0\r\na: 1\r\n" + b"b" * 10):
        with pytest.raises(FrontdError) as refused:
            ChunkScanner(Reason.BadRequest, 12).consume(bytearray(data))
        assert refused.value.reason is Reason.BadRequest


def test_a_chunk_size_beyond_every_body_is_no_number() -> None:
    with pytest.raises(FrontdError) as refused:
        ChunkScanner(Reason.BadRequest, 100).consume(bytearray(b"1" * 16 + b"\r\n"))
    assert refused.value.reason is Reason.Number
    with pytest.raises(FrontdError) as refused:
        ChunkScanner(Reason.BadUpstreamBody, 100).consume(bytearray(b"1" * 16 + b"\r\n"))
    assert refused.value.reason is Reason.BadUpstreamBody


def test_bytes_behind_the_last_chunk_are_not_counted() -> None:
    scanner = ChunkScanner(Reason.BadRequest, 100)
    assert scanner.consume(bytearray(b"0\r\n\r\nGET")) == 5
    assert scanner.done
    assert scanner.consume(bytearray(b"GET")) == 0


def test_many_small_chunks_are_walked_in_portions() -> None:
    body = b"1\r\nx\r\n" * (3 * CHUNKS_AT_ONCE + 1) + b"0\r\na:\r\n\r\n"
    scanner, buffer = ChunkScanner(Reason.BadRequest, 100), bytearray(body)
    sizes = []
    while not scanner.done:
        sizes.append(scanner.consume(buffer))
        del buffer[: sizes[-1]]
    assert sizes == [CHUNKS_AT_ONCE * 6] * 3 + [6 + 9]


def test_trailer_fields_are_counted() -> None:
    for count in (MAX_TRAILERS, MAX_TRAILERS + 1):
        scanner = ChunkScanner(Reason.BadRequest, 65536)
        body = bytearray(b"0\r\n" + b"a:\r\n" * count + b"\r\n")
        if count == MAX_TRAILERS:
            assert scanner.consume(body) == len(body)
        else:
            with pytest.raises(FrontdError, match="more than 200 trailer fields"):
                scanner.consume(body)


# ------------------------------------------------------------------------------------------------------- authorities


@pytest.mark.parametrize(
    ("field", "host"),
    [
        (b"a.test", b"a.test"),
        (b"a.test:", b"a.test"),
        (b"a.test:65535", b"a.test"),
        (b"[::1]:80", b"::1"),
        (b"x_y", b"x_y"),
    ],
)
def test_the_host_of_an_authority(field: bytes, host: bytes) -> None:
    assert split_authority(field) == host


# ------------------------------------------------------------------------------------------------------- work


class Watched(bytearray):
    """A buffer that counts the bytes searched in it."""

    searched = 0

    def find(self, what: bytes, start: int = 0, end: int = 1 << 60) -> int:  # type: ignore[override]
        at = bytearray.find(self, what, start, end)
        self.searched += (at if at >= 0 else min(end, len(self))) - start
        return at


def test_a_head_that_comes_byte_by_byte_is_searched_once() -> None:
    head = START + b"X: " + b"y" * 8000 + b"\r\n\r\n"
    http, buffer = ServerConnection(), Watched(head[:1])
    http._buffer = buffer
    for at in range(1, len(head)):
        assert http.next_head(WireLimits()) is None
        http.receive(head[at : at + 1])
    assert http.next_head(WireLimits()) is not None
    assert buffer.searched < 6 * len(head)


@pytest.mark.parametrize("lenient", [False, True])
def test_an_answer_head_that_comes_byte_by_byte_is_searched_once(lenient: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nX: " + b"y" * 8000 + b"\r\n\r\n"
    http, buffer = asking(lenient=lenient), Watched(head[:1])
    http._buffer = buffer
    for at in range(1, len(head)):
        assert http.next_head() is None
        http.receive(head[at : at + 1])
    assert http.next_head() is not None
    assert buffer.searched < 7 * len(head)


def test_bytes_that_were_seen_are_not_looked_at_again() -> None:
    # what would be refused had it not been seen already shows that the regular expressions skip it as well
    assert scan_request(bytearray(b"\x00" * 100 + b"ab"), WireLimits(), start=102) is None
    assert scan_response(bytearray(b"HTTP/1." + b"\x00" * 100 + b"ab"), start=109) is None
    assert scan_response(bytearray(b"HTTP/1.1\n\n" + b"a" * 100), lenient=True, start=110) is None


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"3;"])
def test_a_chunk_line_that_comes_byte_by_byte_is_searched_once(start: bytes) -> None:
    scanner, buffer = ChunkScanner(Reason.BadRequest, 10000), Watched()
    line = start + b"y" * 500 + b"\r\n"
    for at in range(len(line)):
        buffer += line[at : at + 1]
        del buffer[: scanner.consume(buffer)]
    assert not buffer
    assert buffer.searched < 3 * len(line)


def test_a_body_of_one_byte_chunks_is_searched_once() -> None:
    scanner, buffer = ChunkScanner(Reason.BadRequest, 100), Watched(b"1\r\nx\r\n" * 5000)
    size = len(buffer)
    while buffer:
        del buffer[: scanner.consume(buffer)]
    assert buffer.searched < size
