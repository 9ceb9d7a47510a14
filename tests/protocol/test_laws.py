"""The laws of the wire check against h11, and of cutting: for all bytes that hypothesis thinks of.

1. What `scan` accepts h11 accepts, and understands as the same thing; so what h11 refuses is refused here.
2. "Need more" means that h11 needs more too, or that the bytes hold an error which no continuation mends.
3. However a stream of bytes is cut, the result is the one of the uncut stream.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frontd.model.errors import FrontdError, Reason
from frontd.protocol.scan import (
    ChunkScanner,
    RequestHead,
    ResponseHead,
    WireLimits,
    content_length,
    scan_request,
    scan_response,
)
from tests.protocol.grammar import (
    PIECES,
    answers,
    chunked_bodies,
    cuts,
    damaged,
    damaged_answers,
    damaged_pipelines,
    pipelines,
    requests,
)
from tests.protocol.talk import client_hears, each_byte, pairs, portions, server_hears

LIMITS = WireLimits()


def scanned(data: bytes) -> RequestHead | FrontdError | None:
    try:
        return scan_request(bytearray(data), LIMITS)
    except FrontdError as error:
        return error


def scanned_answer(data: bytes) -> ResponseHead | FrontdError | None:
    try:
        return scan_response(bytearray(data))
    except FrontdError as error:
        return error


def h11_says(data: bytes, role: type[h11.SERVER | h11.CLIENT]) -> tuple[object, h11.Connection]:
    """h11's first event for `data`, "refused" included; an answer is read as one to GET."""
    http = h11.Connection(role, max_incomplete_event_size=1 << 20)
    if role is h11.CLIENT:
        http.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        http.send(h11.EndOfMessage())
    http.receive_data(data)
    try:
        return http.next_event(), http
    except h11.RemoteProtocolError:
        return "refused", http


# --------------------------------------------------------------------------------------------------- 1 and 2: heads

TAILS = (
    b"\n", b"\r\n", b"\n\r\n", b"\r\n\r\n", b"\r\nHost: a.test\r\n\r\n", b" / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"/ HTTP/1.1\r\nHost: a.test\r\n\r\n", b"1\r\nHost: a.test\r\n\r\n", b": a\r\nHost: a.test\r\n\r\n",
)  # fmt: skip


@given(damaged(requests()) | st.binary(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
@example(b"")
@example(b"\n")
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r")
def test_a_request_head_is_accepted_only_as_h11_understands_it(data: bytes) -> None:
    ours = scanned(data)
    event, http = h11_says(data, h11.SERVER)
    if isinstance(ours, RequestHead):
        assert isinstance(event, h11.Request)
        assert (event.method, event.target, event.http_version) == (ours.method, ours.target, ours.version)
        theirs = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in event.headers]
        mine = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in pairs(ours.headers)]
        assert theirs == mine
        assert http.trailing_data[0] == data[ours.size :]
        if ours.content_length:
            assert ours.content_length == int(dict(event.headers)[b"content-length"])
        assert ours.chunked == (b"transfer-encoding" in dict(event.headers))
    elif ours is None and event is not h11.NEED_DATA:
        # h11 has decided already, we have not: then nothing that could follow is accepted here
        assert not any(isinstance(scanned(data + tail), RequestHead) for tail in TAILS)


@given(damaged_answers | st.binary(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
@example(b"HTTP/1.1 101 X\r\n\r\n")
def test_an_answer_head_is_accepted_only_as_h11_understands_it(data: bytes) -> None:
    ours = scanned_answer(data)
    event, http = h11_says(data, h11.CLIENT)
    if isinstance(ours, ResponseHead):
        if ours.status == 101:  # an answer to a question that only the connection knows
            assert event == "refused"
            return
        assert isinstance(event, h11.Response | h11.InformationalResponse)
        assert (event.status_code, event.reason, event.http_version) == (ours.status, ours.reason, ours.version)
        theirs = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in event.headers]
        mine = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in pairs(ours.headers)]
        assert theirs == mine
        assert http.trailing_data[0] == data[ours.size :]
    elif ours is None and event is not h11.NEED_DATA:
        tails = [*TAILS, b"/1.1 200 OK\r\n\r\n", b" 200 OK\r\n\r\n"]
        assert not any(isinstance(scanned_answer(data + tail), ResponseHead) for tail in tails)


# --------------------------------------------------------------------------------------------------- 1: chunked bodies


def h11_reads_chunks(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes] | None:
    """Body, trailers and what is left, or None when h11 refuses or wants more."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(CHUNKED + data)
    http.next_event()
    body = b""
    try:
        while isinstance(event := http.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.EndOfMessage):
        return None
    return body, list(event.headers), http.trailing_data[0]


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(damaged(chunked_bodies), st.sampled_from([b"", b"\r\nGET", b"0\r\n\r\n"]))
@example(b"0\r\nContent-Length: x\r\n\r\n", b"")
@example(b"0\r\nTransfer-Encoding: gzip\r\n\r\n", b"")
def test_a_chunked_body_is_accepted_only_as_h11_understands_it(data: bytes, behind: bytes) -> None:
    heard = server_hears([CHUNKED + data + behind])
    theirs = h11_reads_chunks(data + behind)
    if heard.messages:
        assert theirs is not None
        assert (heard.messages[0].body, heard.messages[0].trailers) == theirs[:2]
        scanner = ChunkScanner(Reason.BadRequest, 1000)
        size = scanner.consume(bytearray(data + behind))
        assert scanner.done
        assert theirs[2] == (data + behind)[size:]
    elif heard.refused is None and theirs is not None:
        # h11 sees an end where we want more: then nothing that could follow is accepted
        assert server_hears([CHUNKED + data + behind + b"\r\n\r\n"]).refused is not None


@given(chunked_bodies)
def test_an_undamaged_chunked_body_is_accepted(data: bytes) -> None:
    heard = server_hears([CHUNKED + data])
    assert heard.refused is None
    expected = h11_reads_chunks(data)
    assert expected is not None
    (message,) = heard.messages
    assert (message.body, message.trailers) == expected[:2]


@given(st.binary(max_size=6) | st.text("0123456789+-_ ,x", max_size=25).map(str.encode))
def test_a_content_length_is_digits_and_nothing_else(value: bytes) -> None:
    if value and set(value) <= set(b"0123456789") and len(value) <= 18:
        assert content_length(value) == int(value)
    else:
        with pytest.raises(FrontdError) as refused:
            content_length(value)
        assert refused.value.reason is Reason.Number


# --------------------------------------------------------------------------------------------------- 3: cutting


@given(pipelines, cuts)
def test_requests_are_understood_alike_however_they_are_cut(data: bytes, places: list[int]) -> None:
    whole = server_hears([data], end=True)
    assert server_hears(portions(data, places), end=True) == whole
    assert server_hears(each_byte(data), end=True) == whole


@given(damaged_pipelines, cuts)
def test_damaged_requests_end_alike_however_they_are_cut(data: bytes, places: list[int]) -> None:
    whole = server_hears([data], end=True)
    assert server_hears(portions(data, places), end=True) == whole
    assert server_hears(each_byte(data), end=True) == whole


@given(st.integers(-3, 12), st.sampled_from([b"", b"X: a\n", b"X:\x01\r\n", b"X : a\r\n"]), cuts, st.booleans())
def test_a_head_around_its_limit_ends_alike_however_it_is_cut(
    more: int, wrong: bytes, places: list[int], wrong_first: bool
) -> None:
    limits = WireLimits(max_head=200, max_field=160, max_fields=5)
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n"
    last = b"Z: zzzzzzzzzz\r\n"
    filling = b"Y: " + b"y" * (195 + more - len(start) - len(wrong) - len(last) - len(end)) + b"\r\n" + last
    data = start + (wrong + filling if wrong_first else filling + wrong) + end
    assert len(data) == 200 + more
    whole = server_hears([data], limits)
    assert server_hears(portions(data, places), limits) == whole
    assert server_hears(each_byte(data), limits) == whole


@given(answers(), cuts, st.sampled_from(["GET", "HEAD"]))
def test_answers_are_understood_alike_however_they_are_cut(data: bytes, places: list[int], method: str) -> None:
    whole = client_hears([data], method, end=True)
    assert client_hears(portions(data, places), method, end=True) == whole
    assert client_hears(each_byte(data), method, end=True) == whole


@given(damaged_answers, cuts, st.sampled_from(["GET", "HEAD"]), st.booleans())
def test_damaged_answers_end_alike_however_they_are_cut(
    data: bytes, places: list[int], method: str, lenient: bool
) -> None:
    whole, _ = client_hears([data], method, end=True, lenient=lenient)
    assert client_hears(portions(data, places), method, end=True, lenient=lenient)[0] == whole
    assert client_hears(each_byte(data), method, end=True, lenient=lenient)[0] == whole


@given(damaged(chunked_bodies), cuts)
def test_a_chunk_scanner_counts_alike_however_its_bytes_come(data: bytes, places: list[int]) -> None:
    def walk(parts: list[bytes]) -> tuple[int, bool, str]:
        scanner, buffer, total = ChunkScanner(Reason.BadRequest, 40), bytearray(), 0
        try:
            for part in parts:
                buffer += part
                size = scanner.consume(buffer)
                total += size
                del buffer[:size]
        except FrontdError as error:
            return -1, False, error.reason.word
        return total, scanner.done, ""

    assert walk(portions(data, places)) == walk(each_byte(data)) == walk([data])
