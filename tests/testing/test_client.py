"""Connections of a test: kept ones, bytes, pieces, pipelines, and answers of every shape."""

from __future__ import annotations

import pytest

import frontd
from frontd.net.streams import Stream
from frontd.testing import AppRequest, Client, site

LARGE = bytes(range(256)) * 12_000  # 3 MB: more than every buffer on the way


class Counter(frontd.Plugin):
    """Counts the requests of a connection, and the connections that are over."""

    name = "counter"

    class Settings(frontd.Settings):
        start: int = 0

    settings: Settings

    def prepare(self) -> None:
        self.gone: list[str] = []

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Response:
        state = exchange.client.state(self)
        state["asked"] = state.get("asked", self.settings.start) + 1
        return frontd.Response(200, text=f"{state['asked']} gone {len(self.gone)}")

    def client_closed(self, client: frontd.Client) -> None:
        self.gone.append(client.address)


class Reader(frontd.Plugin):
    """Reads the body before it is forwarded."""

    name = "reader"

    async def filter_request(self, exchange: frontd.Exchange) -> None:
        body = await exchange.request.body.read(max_bytes=64)
        exchange.request.headers.set("X-Read", body.decode())


def test_a_connection_is_kept_and_one_request_is_on_its_own() -> None:
    with site([Counter]) as s:
        with s.connect() as c:
            assert c.get("/").text == "1 gone 0"
            assert c.get("/").text == "2 gone 0"
            assert not c.closed
        assert s.get("/").text == "1 gone 1"
        assert s.get("/").text == "1 gone 2"


def test_requests_in_pieces_of_any_size_are_the_same_requests() -> None:
    with site([Reader]) as s:
        whole = s.post("/x", "twelve bytes").upstream
        for split in (1, 2, 7):
            assert s.post("/x", "twelve bytes", split=split).upstream == whole
        s.split = 3
        assert s.post("/x", "twelve bytes").upstream == whole
        with s.connect() as c:
            assert c.post("/x", "twelve bytes").upstream == whole
        assert whole is not None
        assert whole.headers["x-read"] == "twelve bytes"


def test_pieces_arrive_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    receive_now = Stream.receive_now

    def noted(stream: Stream, size: int = 65536) -> bytes | None:
        data = receive_now(stream, size)
        read.append(data or b"")
        return data

    monkeypatch.setattr(Stream, "receive_now", noted)
    with site([Counter]) as s:
        assert s.get("/", split=1).status == 200
    assert {len(data) for data in read} == {0, 1}
    assert b"".join(read) == b"GET / HTTP/1.1\r\nHost: test.example\r\n\r\n"


def test_pipelined_requests_are_answered_in_their_order() -> None:
    with site() as s, s.connect() as c:
        s.app.respond(lambda request: request.target)
        c.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: test.example\r\n\r\n" % n for n in range(3)))
        answers = [c.receive() for _ in range(3)]
        assert [answer.text for answer in answers] == ["/0", "/1", "/2"]
        assert [answer.upstream.target for answer in answers if answer.upstream] == ["/0", "/1", "/2"]
        assert c.receive_bytes() == b""
        assert c.get("/3").text == "/3"


def test_two_connections_at_once() -> None:
    with site() as s, s.connect() as one, s.connect() as two:
        s.app.respond(200, body="late", delay=5)
        one.send(b"GET /1 HTTP/1.1\r\nHost: test.example\r\n\r\n")
        s.app.respond(200, body="soon", delay=1)
        two.send(b"GET /2 HTTP/1.1\r\nHost: test.example\r\n\r\n")
        s.clock.advance(2)
        assert two.receive_bytes().endswith(b"soon")
        assert one.receive_bytes() == b""
        s.clock.advance(4)
        assert one.receive().text == "late"


def test_a_head_request_has_no_body_and_the_connection_goes_on() -> None:
    with site() as s, s.connect() as c:
        s.app.respond(200, body="four")
        head = c.request("HEAD", "/")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "4")
        assert c.get("/").text == "four"


@pytest.mark.parametrize("status", [204, 304, 404, 503])
def test_answers_of_any_status(status: int) -> None:
    with site() as s, s.connect() as c:
        s.app.respond(status)
        assert (c.get("/").status, c.get("/").status) == (status, status)


def test_large_bodies_go_both_ways() -> None:
    with site() as s:
        s.app.respond(lambda request: frontd.Response(200, body=request.body))
        answer = s.post("/", LARGE)
        assert answer.upstream is not None
        assert answer.body == answer.upstream.body == LARGE


def test_a_refusal_in_the_middle_of_an_upload_is_read() -> None:
    with site(config={"limits": {"max_body": 1000}}) as s:
        assert s.post("/", LARGE).status == 413
        assert s.app.requests == []


def test_a_client_that_expects_100_gets_it_first() -> None:
    with site() as s, s.connect() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert c.receive_bytes().startswith(b"HTTP/1.1 100 ")
        c.send(b"body")
        answer = c.receive()
        assert answer.upstream is not None
        assert answer.upstream.body == b"body"


def test_interim_answers_are_noted() -> None:
    with site() as s, s.connect() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: test.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        c.send(b"body")
        assert c.receive().interim == (100,)


def test_a_password_is_sent_as_basic() -> None:
    with site() as s:
        seen = s.get("/", auth=("Aladdin", "open sesame")).upstream
        assert seen is not None
        assert seen.headers["Authorization"] == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="  # RFC 7617 2


def test_own_fields_replace_those_that_are_made() -> None:
    def lines(client: Client, *fields: tuple[str, str]) -> AppRequest | None:
        return client.request("PUT", "/", list(fields), b"abc").upstream

    with site() as s, s.connect() as c:
        seen = lines(c, ("X-A", "1"), ("X-A", "2"))
        assert seen is not None
        assert seen.headers.get_all("x-a") == ["1", "2"]
        assert seen.body == b"abc"
        assert c.get("/", {"Host": "unknown.example"}).status == 400


def test_a_connection_that_is_cut_is_an_error_and_not_an_answer() -> None:
    with site() as s:
        s.app.respond(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        with pytest.raises(ConnectionError, match="ended before the answer was whole"):
            s.get("/")
        with s.connect() as c:
            c.end_writing()
            with pytest.raises(ConnectionError, match="ended without an answer"):
                c.receive()
