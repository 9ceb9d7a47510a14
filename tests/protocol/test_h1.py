"""Both sides of HTTP/1.1 in small plays: bytes in, heads and body parts out, bytes back."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import h11
import pytest

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.protocol.h1 import NO_TRAILERS, ClientConnection, End, ServerConnection
from frontd.protocol.scan import CHUNKS_AT_ONCE, RequestHead, WireLimits
from tests.protocol.talk import asking, client_hears, server_hears

LIMITS = WireLimits()
EMPTY = Headers.of((b"Content-Length", b"0"))


def ask(http: ServerConnection, data: bytes) -> RequestHead:
    """Let a request arrive; its head."""
    http.receive(data)
    head = http.next_head(LIMITS)
    assert head is not None
    return head


def request(line: str = "GET / HTTP/1.1", *fields: str, body: bytes = b"") -> bytes:
    return "".join(f"{text}\r\n" for text in (line, "Host: a", *fields, "")).encode() + body


def now(state: bool) -> bool:
    """A state as it is now: mypy would otherwise believe that a property never changes."""
    return state


def read(http: ServerConnection | ClientConnection) -> bytes:
    """The rest of a body that is there to its end."""
    body = b""
    while not isinstance(part := http.next_body(), End):
        assert part is not None
        body += part
    return body


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
        with pytest.raises(h11.LocalProtocolError):
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
    with pytest.raises(h11.LocalProtocolError):
        http.send_information(101, Headers())


# --------------------------------------------------------------------------------------------- client


def test_a_kept_connection_to_an_app_carries_one_exchange_after_the_other() -> None:
    http = ClientConnection()
    for _ in range(3):
        out = http.send_head("GET", b"/x?y", Headers.of((b"Host", b"a"), (b"X-Y", b"z"))) + http.send_end()
        assert out == b"GET /x?y HTTP/1.1\r\nHost: a\r\nX-Y: z\r\n\r\n"
        assert not now(http.started)
        http.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert now(http.started)
        head = http.next_head()
        assert head is not None
        assert (head.status, head.reason, head.content_length) == (200, b"OK", 2)
        assert not now(http.reusable)
        assert read(http) == b"ok"
        assert now(http.reusable)
        http.next_cycle()


def test_a_request_body_goes_out_in_the_framing_of_its_head() -> None:
    http = ClientConnection()
    http.send_head("POST", b"/", Headers.of((b"Host", b"a"), (b"Transfer-Encoding", b"chunked")))
    assert not now(http.request_complete)
    assert http.send_body(b"abc") == b"3\r\nabc\r\n"
    assert http.send_end(Headers.of((b"X", b"y"))) == b"0\r\nX: y\r\n\r\n"
    assert now(http.request_complete)
    http = ClientConnection()
    http.send_head("POST", b"/", Headers.of((b"Host", b"a"), (b"Content-Length", b"3")))
    assert http.send_body(b"abc") + http.send_end(Headers.of((b"X", b"y"))) == b"abc"
    assert now(http.request_complete)


def test_an_answer_may_overtake_the_request() -> None:
    http = ClientConnection()
    http.send_head("POST", b"/", Headers.of((b"Host", b"a"), (b"Content-Length", b"3")))
    http.receive(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
    assert http.next_head() is not None
    assert isinstance(http.next_body(), End)
    assert not now(http.reusable)
    assert http.send_body(b"abc") == b"abc"
    http.send_end()
    assert now(http.reusable)


def test_a_body_that_was_never_sent_to_its_end_leaves_no_usable_connection() -> None:
    http = ClientConnection()
    http.send_head("POST", b"/", Headers.of((b"Host", b"a"), (b"Content-Length", b"3")))
    http.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    http.next_head()
    http.next_body()
    assert not now(http.request_complete)
    assert not now(http.reusable)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nX",
    ],
)
def test_a_connection_that_ends_or_holds_unasked_bytes_is_not_used_again(answer: bytes) -> None:
    http = asking()
    http.receive(answer)
    assert http.next_head() is not None
    assert isinstance(http.next_body(), End)
    assert not now(http.reusable)


def test_a_connection_that_has_ended_behind_its_answer_is_not_used_again() -> None:
    http = asking()
    http.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    http.receive(b"")
    assert http.next_head() is not None
    assert isinstance(http.next_body(), End)
    assert not now(http.reusable)


def test_informational_heads_come_before_the_answer() -> None:
    http = asking()
    http.receive(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Len")
    heads = [http.next_head(), http.next_head()]
    assert [head.status for head in heads if head is not None] == [100, 103]
    assert http.next_head() is None
    http.receive(b"gth: 0\r\n\r\n")
    head = http.next_head()
    assert head is not None
    assert head.status == 200


def test_an_upgraded_connection_hands_over_what_follows() -> None:
    http = ClientConnection()
    http.send_head("GET", b"/", Headers.of((b"Host", b"a"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")))
    http.send_end()
    http.receive(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly")
    head = http.next_head()
    assert head is not None
    assert head.status == 101
    assert http.rest() == b"early"


ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nX: y\r\n\r\n", b"abc"),
    (b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 204 No\r\n\r\n", b""),
]


@pytest.mark.parametrize(("whole", "body"), ANSWERS)
def test_an_app_that_ends_anywhere_inside_an_answer_is_found_out(whole: bytes, body: bytes) -> None:
    start = whole.rindex(b"\r\n\r\n", 0, whole.find(b"X: y") if b"X: y" in whole else len(whole)) + 4
    assert client_hears([b""])[0].refused is None  # not a byte: the caller may try again elsewhere
    for at in range(1, len(whole)):
        heard, _ = client_hears([whole[:at]], end=True)
        assert not heard.closed
        assert heard.refused is (Reason.BadUpstreamBody if at >= start else Reason.BadUpstreamHead)
    heard, rest = client_hears([whole], end=True)
    assert heard.refused is None
    assert (heard.messages[-1].body, rest) == (body, b"")


def test_an_answer_until_the_end_of_the_connection_ends_with_it() -> None:
    http = asking()
    http.receive(b"HTTP/1.1 200 OK\r\n\r\nab")
    assert http.next_head() is not None
    assert http.next_body() == b"ab"
    assert http.next_body() is None
    http.receive(b"cd")
    assert http.next_body() == b"cd"
    http.receive(b"")
    assert isinstance(http.next_body(), End)
    assert not now(http.reusable)


def test_an_old_app_may_be_understood_with_bare_lf_and_folds_when_that_is_wanted() -> None:
    old = b"HTTP/1.1 200 OK\nX: a\n  b\r\nContent-Length: 2\n\nok\n\n"
    heard, _ = client_hears([old])
    assert heard.refused is Reason.BadUpstreamHead
    for parts in ([old], [old[at : at + 1] for at in range(len(old))]):
        heard, rest = client_hears(parts, lenient=True)
        (message,) = heard.messages
        assert message.fields == [(b"x", b"a b"), (b"content-length", b"2")]
        assert message.body == b"ok"
        assert rest in (b"\n\n", b"")  # byte by byte, nobody reads on behind the end


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 1\nTransfer-Encoding:\n chunked\n\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\nContent-Length: 1\n\n",
        b"HTTP/1.1 200 OK\nX: a\rb\n\n",
        b"HTTP/1.1 200 OK\nX: \0\n\n",
        b"HTTP/1.1 200 OK\n X: a\n\n\n",
    ],
)
def test_leniency_goes_no_further_than_line_ends_and_folds(head: bytes) -> None:
    heard, _ = client_hears([head], lenient=True)
    if b"\n X" in head:  # a fold of the status line: its phrase grows, no field appears
        assert [message.fields for message in heard.messages] == []
        assert heard.refused is None
    else:
        assert heard.refused is Reason.BadUpstreamHead


# --------------------------------------------------------------------------------------------- memory


def long_body(chunked: bool) -> Iterator[bytes]:
    part = b"x" * 65536
    for _ in range(256):  # 16 MiB
        yield b"10000\r\n" + part + b"\r\n" if chunked else part
    yield b"0\r\n\r\n" if chunked else b""


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_never_gathers_in_memory(chunked: bool) -> None:
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {16 << 20}"
    server, client, total = ServerConnection(), ClientConnection(), 0
    server_head = ask(server, request("POST / HTTP/1.1", framing))
    client.send_head("POST", b"/", server_head.headers)
    tracemalloc.start()
    try:
        for data in long_body(chunked):
            server.receive(data)
            while isinstance(part := server.next_body(), bytes):
                total += len(client.send_body(part))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(part, End)
    client.send_end()
    assert total >= 16 << 20
    assert peak < 1 << 20


def test_an_answer_body_never_gathers_in_memory() -> None:
    client, server, total = asking(), ServerConnection(), 0
    ask(server, request())
    client.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert client.next_head() is not None
    server.send_head(200, b"OK", Headers())
    tracemalloc.start()
    try:
        for data in long_body(chunked=True):
            client.receive(data)
            while isinstance(part := client.next_body(), bytes):
                total += len(server.send_body(part))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(part, End)
    assert total >= 16 << 20
    assert peak < 1 << 20
