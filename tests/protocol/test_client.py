"""The side towards an app in small plays: requests out, answers in; and what both sides keep of a body: nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from frontd.model.errors import Reason
from frontd.model.headers import Headers
from frontd.protocol.framing import End
from frontd.protocol.h1 import ClientConnection, ServerConnection
from tests.protocol.talk import ask, asking, client_hears, now, read, request


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
    assert bytes(http.send_body(b"abc")) + http.send_end(Headers.of((b"X", b"y"))) == b"abc"
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
