"""The side towards the client in small plays: requests in, answers out."""

from __future__ import annotations

import pytest

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.protocol.chunks import CHUNKS_AT_ONCE
from frontd.protocol.framing import NO_TRAILERS, End
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import WireLimits
from tests.protocol.talk import ask, client_hears, now, read, request, server_hears

LIMITS = WireLimits()
EMPTY = Headers.of((b"Content-Length", b"0"))


# --------------------------------------------------------------------------------------------- server: connections


def test_a_kept_connection_answers_one_request_after_the_other() -> None:
    http = ServerConnection()
    for number in range(3):
        head = ask(http, request(f"GET /{number} HTTP/1.1"))
        assert head.target == b"/%d" % number
        assert now(http.body_complete)
        assert not now(http.answered)
        out = http.send_head(200, b"OK", Headers.of((b"Content-Length", b"2"))) + http.send_body(b"ok")
        assert now(http.answered)
        assert not now(http.answer_complete)
        assert out + http.send_end() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        assert now(http.answer_complete)
        assert not now(http.must_close)
        assert not now(http.closes_after_answer)
        http.next_cycle()
        assert http.head is None


def test_pipelined_requests_are_seen_one_by_one() -> None:
    http = ServerConnection()
    first = ask(http, request("POST /1 HTTP/1.1", "Content-Length: 3", body=b"abc") + request("GET /2 HTTP/1.1"))
    assert first.target == b"/1"
    assert read(http) == b"abc"
    assert now(http.has_bytes)
    http.send_head(200, b"OK", EMPTY)
    http.send_end()
    http.next_cycle()
    second = http.next_head(LIMITS)
    assert second is not None
    assert second.target == b"/2"
    assert not now(http.has_bytes)


def test_an_error_in_a_pipelined_request_waits_for_its_turn() -> None:
    http = ServerConnection()
    ask(http, request() + b"GET / HTTP/1.1\n\n")
    assert http.send_head(200, b"OK", EMPTY) + http.send_end() == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    http.next_cycle()
    with pytest.raises(FrontdError) as refused:
        http.next_head(LIMITS)
    assert refused.value.reason is Reason.Invalid_CRLF
    assert http.send_head(400, b"Bad Request", EMPTY, close=True) == (
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def test_a_refused_first_request_is_answered_in_http_1_1_and_ends_the_connection() -> None:
    http = ServerConnection()
    http.receive(b"\x16\x03\x01")
    with pytest.raises(FrontdError):
        http.next_head(LIMITS)
    out = http.send_head(400, b"Bad Request", EMPTY, close=True) + http.send_end(Headers.of((b"X", b"y")))
    assert out == b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert now(http.closes_after_answer)
    assert now(http.must_close)


def test_an_answer_before_any_request_is_possible() -> None:
    http = ServerConnection()
    out = http.send_head(503, b"Busy", Headers.of((b"Content-Length", b"1")), close=True) + http.send_body(b"x")
    assert out + http.send_end() == b"HTTP/1.1 503 Busy\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"


@pytest.mark.parametrize("line", ["GET / HTTP/1.0", "GET / HTTP/1.1"])
def test_a_client_that_wants_to_close_is_told_so(line: str) -> None:
    http = ServerConnection()
    ask(http, request(line, "Connection: close"))
    out = http.send_head(200, b"OK", EMPTY) + http.send_end()
    assert b"\r\nConnection: close\r\n" in out
    assert now(http.closes_after_answer)
    assert now(http.must_close)


def test_the_empty_line_behind_a_body_is_no_request() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Content-Length: 1", body=b"x\r\n"))
    assert read(http) == b"x"
    assert not now(http.has_bytes)
    http.send_head(200, b"OK", EMPTY)
    http.send_end()
    http.next_cycle()
    assert http.next_head(LIMITS) is None
    assert ask(http, request()).method == b"GET"


# --------------------------------------------------------------------------------------------- server: bodies in


def test_a_body_of_known_length_comes_as_it_arrives() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Content-Length: 5"))
    assert http.next_body() is None
    assert not now(http.body_complete)
    http.receive(b"ab")
    assert http.next_body() == b"ab"
    assert http.next_body() is None
    http.receive(b"cdeGET")
    assert http.next_body() == b"cde"
    end = http.next_body()
    assert isinstance(end, End)
    assert len(end.trailers) == 0
    assert now(http.body_complete)
    assert http.next_body() is end  # as often as one asks
    assert http.rest() == b"GET"


def test_a_chunked_body_comes_as_it_arrives() -> None:
    http = ServerConnection()
    head = ask(http, request("POST / HTTP/1.1", "Transfer-Encoding: chunked", body=b"5\r\nab"))
    assert head.chunked
    assert head.content_length is None
    assert http.next_body() == b"ab"
    assert http.next_body() is None
    http.receive(b"cde\r\n2\r\nfg\r\n1\r\nh\r\n0\r\nX-Sum: 8\r\n")
    assert http.next_body() == b"cdefgh"  # chunks that are there come in one part
    assert not now(http.body_complete)
    assert http.next_body() is None
    http.receive(b"\r\n" + request())
    end = http.next_body()
    assert isinstance(end, End)
    assert end.trailers.pairs() == [(b"X-Sum", b"8")]
    assert now(http.body_complete)
    assert now(http.has_bytes)


def test_64_kib_of_one_byte_chunks_come_in_portions() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Transfer-Encoding: chunked", body=b"1\r\nx\r\n" * 10000 + b"0\r\n\r\n"))
    sizes = []
    while not isinstance(part := http.next_body(), End):
        assert part is not None
        sizes.append(len(part))
    assert sum(sizes) == 10000
    assert max(sizes) == CHUNKS_AT_ONCE


@pytest.mark.parametrize(
    "whole",
    [
        request("POST / HTTP/1.1", "Content-Length: 5", body=b"hello"),
        request("POST / HTTP/1.1", "Transfer-Encoding: chunked", body=b"2;x\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n"),
    ],
)
def test_a_client_that_ends_anywhere_inside_a_request_is_found_out(whole: bytes) -> None:
    start = whole.index(b"\r\n\r\n") + 4
    for at in range(len(whole)):
        heard = server_hears([whole[:at]], end=True)
        assert heard.messages == []
        # inside the head the connection above decides: there is no more, and no head
        assert heard.refused is (Reason.Connection_Dropped if at >= start else None)
    assert len(server_hears([whole], end=True).messages) == 1


@pytest.mark.parametrize(
    "wrong", [b"ZZ\r\n", b"3\r\nabcd\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\nContent-Length: x\r\n\r\n"]
)
def test_a_body_that_breaks_its_framing_stays_refused(wrong: bytes) -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Transfer-Encoding: chunked", body=b"1\r\na\r\n" + wrong))
    for _ in range(3):
        http.receive(b"0\r\n\r\n")
        with pytest.raises(FrontdError) as refused:
            http.next_body()
        assert refused.value.reason in (Reason.BadRequest, Reason.Number)
        assert not now(http.body_complete)
    out = http.send_head(400, b"Bad Request", EMPTY, close=True) + http.send_end()
    assert out.startswith(b"HTTP/1.1 400 ")
    assert now(http.must_close)


# --------------------------------------------------------------------------------------------- server: answers out


def test_an_answer_of_unknown_length_is_chunked() -> None:
    http = ServerConnection()
    ask(http, request())
    assert http.send_head(200, b"OK", Headers()) == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert http.send_body(b"hello") == b"5\r\nhello\r\n"
    assert http.send_body(b"") == b""
    assert http.send_end(Headers.of((b"X-Sum", b"5"))) == b"0\r\nX-Sum: 5\r\n\r\n"
    assert not now(http.must_close)


def test_trailers_are_dropped_where_the_framing_has_no_place_for_them() -> None:
    trailers = Headers.of((b"X-Sum", b"1"))
    for line, headers in (
        ("GET / HTTP/1.1", Headers.of((b"Content-Length", b"1"))),
        ("GET / HTTP/1.0", Headers()),
    ):
        http = ServerConnection()
        ask(http, request(line))
        http.send_head(200, b"OK", headers)
        http.send_body(b"x")
        assert http.send_end(trailers) == b""


def test_an_http_1_0_client_gets_a_body_until_the_end_of_the_connection() -> None:
    http = ServerConnection()
    head = ask(http, request("GET / HTTP/1.0", "Connection: keep-alive"))
    assert head.version == b"1.0"
    assert http.send_head(200, b"OK", Headers()) == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    assert http.send_body(b"hello") == b"hello"
    assert http.send_end() == b""
    assert now(http.must_close)


@pytest.mark.parametrize(
    ("method", "status", "headers", "head"),
    [
        ("HEAD", 200, Headers.of((b"Content-Length", b"5")), b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", 200, Headers(), b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", 204, Headers(), b"HTTP/1.1 204 \r\n\r\n"),
        ("GET", 304, Headers.of((b"Content-Length", b"5")), b"HTTP/1.1 304 \r\nContent-Length: 5\r\n\r\n"),
        ("GET", 304, Headers(), b"HTTP/1.1 304 \r\n\r\n"),
    ],
)
def test_an_answer_without_a_body_has_none(method: str, status: int, headers: Headers, head: bytes) -> None:
    http = ServerConnection()
    ask(http, request(f"{method} / HTTP/1.1"))
    assert http.send_head(status, b"", headers) == head
    assert http.send_end(Headers.of((b"X", b"y"))) == b""
    assert not now(http.must_close)
    heard, rest = client_hears([head], method)
    assert len(heard.messages) == 1
    assert rest == b""


def test_an_answer_may_overtake_the_request_body() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Content-Length: 5", body=b"ab"))
    out = http.send_head(413, b"Too Large", EMPTY, close=True) + http.send_end()
    assert b"Connection: close" in out
    assert not now(http.body_complete)
    assert now(http.must_close)
    assert http.next_body() == b"ab"  # can still be drained
    http.receive(b"cde")
    assert http.next_body() == b"cde"
    assert now(http.body_complete)


def test_an_early_answer_of_a_kept_connection_is_kept_once_the_body_was_drained() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Content-Length: 2", body=b"a"))
    http.send_head(200, b"OK", EMPTY)
    http.send_end()
    assert now(http.must_close)
    http.receive(b"b")
    assert read(http) == b"ab"
    assert not now(http.must_close)


def test_nothing_of_ours_can_be_sent_that_splits_an_answer() -> None:
    for name, value in ((b"X", b"a\r\nY: b"), (b"X\r\nY", b"a"), (b"X", b"a\nb"), (b"X", b"a\0"), (b"", b"a")):
        http = ServerConnection()
        ask(http, request())
        with pytest.raises(ValueError, match="break out of its line"):
            http.send_head(200, b"OK", Headers.of((name, value), (b"Content-Length", b"0")))


def test_an_informational_answer_has_no_framing_fields() -> None:
    http = ServerConnection()
    ask(http, request())
    headers = Headers.of((b"Link", b"</a>"), (b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked"))
    assert http.send_information(103, headers) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert not now(http.answered)


# --------------------------------------------------------------------------------------------- server: 100 and 101


def test_a_client_that_waits_for_100_gets_it_once() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 2"))
    assert now(http.waits_for_100)
    assert http.next_body() is None
    assert http.send_information(100, NO_TRAILERS) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not now(http.waits_for_100)
    assert not now(http.answered)
    http.receive(b"ok")
    assert read(http) == b"ok"
    http.send_head(200, b"OK", EMPTY)
    http.send_end()
    assert not now(http.must_close)


def test_a_client_that_sends_its_body_all_the_same_waits_no_more() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 2"))
    http.receive(b"o")
    assert http.next_body() == b"o"
    assert not now(http.waits_for_100)


@pytest.mark.parametrize(
    ("line", "fields"), [("POST / HTTP/1.0", ["Content-Length: 2"]), ("GET / HTTP/1.1", []), ("GET / HTTP/1.0", [])]
)
def test_nobody_waits_for_100_in_http_1_0_or_without_a_body(line: str, fields: list[str]) -> None:
    http = ServerConnection()
    ask(http, request(line, "Expect: 100-continue", *fields))
    assert not now(http.waits_for_100)


def test_an_answer_instead_of_100_ends_the_connection() -> None:
    http = ServerConnection()
    ask(http, request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 2"))
    http.send_head(401, b"Unauthorized", EMPTY, close=not http.body_complete)
    http.send_end()
    assert now(http.must_close)


def test_an_upgrade_hands_over_what_follows() -> None:
    http = ServerConnection()
    ask(http, request("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", body=b"early"))
    assert now(http.body_complete)
    headers = Headers.of((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
    out = http.send_information(101, headers)
    assert out == b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert http.rest() == b"early"
    assert http.rest() == b""


def test_an_upgrade_that_is_refused_leaves_http() -> None:
    http = ServerConnection()
    ask(http, request("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket") + request("GET /2 HTTP/1.1"))
    http.send_head(403, b"No", EMPTY)
    http.send_end()
    assert not now(http.must_close)
    http.next_cycle()
    head = http.next_head(LIMITS)
    assert head is not None
    assert head.target == b"/2"


def test_switching_protocols_unasked_is_not_possible() -> None:
    http = ServerConnection()
    ask(http, request())
    with pytest.raises(ValueError, match="not asked for"):
        http.send_information(101, Headers())
