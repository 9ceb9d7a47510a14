"""What goes out is what was understood: nothing a client or an app sends makes the next reader see something else.

Requests: bytes → `ServerConnection` → the fields and the target for the app → `ClientConnection` → bytes.  These are
read again, by ourselves and by h11 alone, and must be exactly one message with the same meaning.  Answers likewise.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frontd.lanes.requests import make_request
from frontd.model.errors import FrontdError
from frontd.model.headers import Headers, announced_trailers
from frontd.model.messages import Client, Request
from frontd.pipeline.fields import downstream_headers, seal, upstream_headers, upstream_target
from frontd.protocol.framing import End
from frontd.protocol.h1 import ClientConnection, ServerConnection
from frontd.protocol.scan import WireLimits
from tests.protocol.grammar import damaged_answers, damaged_pipelines
from tests.protocol.talk import asking, client_hears, pairs, server_hears

CLIENT = Client("9.9.9.9", 50000, "9.9.9.9", "10.0.0.1", 80, "http", "http", 80)


def forwarded(data: bytes) -> list[tuple[Request, bytes, Headers, bytes]]:
    """Each request of `data` that was understood, with its body and trailers, and what an app would be sent for it."""
    server, sent = ServerConnection(), []
    server.receive(data)
    server.receive(b"")
    try:
        while (head := server.next_head(WireLimits())) is not None:
            request = make_request(head)
            upstream = ClientConnection()
            headers = upstream_headers(request, CLIENT, frozenset())
            seal(headers, request, None)
            out = upstream.send_head(request.method, upstream_target(request, ""), headers)
            body = b""
            while not isinstance(part := server.next_body(), End):
                assert part is not None
                body += part
                out += upstream.send_body(part)
            out += upstream.send_end(announced_trailers(request.headers, part.trailers))
            assert upstream.request_complete
            sent.append((request, body, part.trailers, out))
            server.send_head(200, b"OK", Headers.of((b"Content-Length", b"0")))
            server.send_end()
            if server.must_close:
                break
            server.next_cycle()
    except FrontdError:
        pass
    return sent


STRIPPED = {b"connection", b"te", b"upgrade", b"keep-alive", b"expect", b"transfer-encoding", b"http2-settings"}


@given(damaged_pipelines)
@example(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host\r\nContent-Length: 3\r\n\r\nabc")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r")
@example(b"GET / HTTP/1.0\r\n\r\n")
@example(b"GET http://a/..%2f%2e./x?\\#y HTTP/1.1\r\nHost: a\r\n\r\n")
def test_what_an_app_is_sent_is_one_message_with_the_meaning_understood(data: bytes) -> None:
    for request, body, trailers, out in forwarded(data):
        again = server_hears([out])
        assert again.refused is None
        (message,) = again.messages  # one, and nothing behind it that could begin another
        method, target, version = message.start
        assert isinstance(target, bytes)
        assert (method, version) == (request.method.encode(), b"1.1")
        assert (message.body, message.trailers) == (body, pairs(announced_trailers(request.headers, trailers)))
        assert target == b"*" if request.target == b"*" else target.split(b"?")[0] == request.path.encode()
        query = target.split(b"?", 1)[1] if b"?" in target else None
        assert query == (request.query.encode() if request.has_query else None)
        # the fields: nothing is lost but what is known, nothing new but what is ours
        names = [name for name, _ in message.fields]
        assert names.count(b"host") == 1
        assert dict(message.fields)[b"host"] == (request.authority or b"10.0.0.1")  # HTTP/1.0 without one
        assert names.count(b"content-length") + names.count(b"transfer-encoding") == int(
            request.chunked or request.content_length is not None
        )
        asked = {b"connection", b"upgrade"} if request.upgrade else set()
        assert not (set(names) - {b"transfer-encoding"} - asked) & STRIPPED
        assert b"6.6.6.6" not in dict(message.fields)[b"x-forwarded-for"]
        # h11 alone reads the same, to the last byte
        judge = h11.Connection(h11.SERVER)
        judge.receive_data(out)
        event = judge.next_event()
        assert isinstance(event, h11.Request)
        assert event.target == target
        read = b""
        while isinstance(event := judge.next_event(), h11.Data):
            read += event.data
        assert isinstance(event, h11.EndOfMessage)
        assert (read, judge.trailing_data[0]) == (body, b"")


@pytest.mark.parametrize("named", [b"content-length", b"Host, Content-Length", b"content-length, transfer-encoding"])
def test_connection_cannot_take_the_length_off_a_request(named: bytes) -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: " + named + b"\r\nContent-Length: 3\r\n\r\nabc"
    ((_, body, _, out),) = forwarded(data)
    assert body == b"abc"
    assert out.endswith(b"\r\n\r\nabc")
    assert b"\r\nContent-Length: 3\r\n" in out


# ------------------------------------------------------------------------------------------------------- answers


def relayed(data: bytes, request: bytes) -> tuple[bytes, bytes] | None:
    """What a client that sent `request` gets for an app's answer `data`, and the body as understood; None when the
    answer was refused."""
    server = ServerConnection()
    server.receive(request)
    head = server.next_head(WireLimits())
    assert head is not None
    upstream = asking(head.method.decode())
    upstream.receive(data)
    upstream.receive(b"")
    out, body = b"", b""
    try:
        while (answer := upstream.next_head()) is not None and answer.status < 200:
            out += server.send_information(answer.status, downstream_headers(answer))
        if answer is None:
            return None
        out += server.send_head(answer.status, answer.reason, downstream_headers(answer))
        while not isinstance(part := upstream.next_body(), End):
            assert part is not None
            body += part
            out += server.send_body(part)
        out += server.send_end(announced_trailers(answer.headers, part.trailers))
    except FrontdError:
        return None
    return out, body


@given(damaged_answers, st.sampled_from(["GET", "HEAD"]), st.sampled_from([b"1.1", b"1.0"]))
@example(b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc", "GET", b"1.1")
@example(b"HTTP/1.1 103 E\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", b"1.1")
@example(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", "GET", b"1.1")
@example(b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", b"1.1")
def test_what_a_client_gets_is_one_answer_with_the_meaning_understood(data: bytes, method: str, version: bytes) -> None:
    result = relayed(data, method.encode() + b" / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
    if result is None:
        return
    out, body = result
    heard, rest = client_hears([out], method, end=True)
    assert heard.refused is None
    assert rest == b""
    final = heard.messages[-1]
    assert final.body == body
    assert all(message.start[0] in range(100, 200) for message in heard.messages[:-1])
    for message in heard.messages[:-1]:  # RFC 9110 8.6: no length in an answer that has no body
        assert not {b"content-length", b"transfer-encoding"} & {name for name, _ in message.fields}
    names = [name for name, _ in final.fields]
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    if final.start[0] == 204:
        assert not {b"content-length", b"transfer-encoding"} & set(names)
    if version == b"1.0":
        assert b"transfer-encoding" not in names


def test_an_answer_shorter_than_announced_never_ends_cleanly() -> None:
    assert relayed(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") is None


def test_bytes_behind_an_answer_are_never_the_next_answer() -> None:
    upstream = asking()
    upstream.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 Forged\r\nContent-Length: 0\r\n\r\n")
    assert upstream.next_head() is not None
    assert isinstance(upstream.next_body(), End)
    assert not upstream.reusable


@pytest.mark.parametrize("answer", [b"HTTP/1.1 204 No\r\n\r\nabc", b"HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\nabc"])
def test_a_body_that_may_not_be_there_is_not_relayed_and_ends_the_connection(answer: bytes) -> None:
    upstream = asking()
    upstream.receive(answer)
    assert upstream.next_head() is not None
    assert isinstance(upstream.next_body(), End)
    assert not upstream.reusable
    assert upstream.rest() == b"abc"
