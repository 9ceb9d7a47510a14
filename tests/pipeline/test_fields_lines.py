"""Fields as lines are the fields as a multi-map, serialised: for every head that is accepted, seen first or again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from frontd.lanes.requests import make_request
from frontd.model.errors import FrontdError
from frontd.model.messages import Client, Request
from frontd.pipeline import fields
from frontd.pipeline.fields import (
    downstream_headers,
    downstream_lines,
    frame,
    seal,
    upstream_headers,
    upstream_lines,
)
from frontd.protocol.framing import field_lines
from frontd.protocol.scan import ResponseHead, WireLimits, scan_request, scan_response
from tests.protocol.grammar import answers, damaged, requests, values
from tests.protocol.test_plain import border_answers, border_requests

CORPUS = Path(__file__).parent.parent / "protocol" / "corpus"
STRANGER = Client("192.0.2.7", 5, "192.0.2.7", "192.0.2.1", 80, "http", "http", 80)
PROXY = Client("198.51.100.9", 5, "2001:db8::1", "2001:db8::2", 443, "https", "https", 443, is_trusted_proxy=True)
CLIENTS = st.sampled_from([STRANGER, PROXY, replace(STRANGER, scheme="https"), replace(PROXY, is_trusted_proxy=False)])
SCHEMES = st.sampled_from([frozenset[bytes](), frozenset((b"basic",)), frozenset((b"basic", b"bearer"))])

# Names whose fate is not simply to pass, beside some that pass; in any case, and with what it depends on as values.
NAMES = (
    b"Accept", b"User-Agent", b"Cookie", b"X-Own", b"X_Own", b"Connection", b"Keep-Alive", b"TE", b"Trailer",
    b"Proxy-Connection", b"Proxy-Authorization", b"Upgrade-Insecure-Requests", b"Authorization", b"X-Forwarded-For",
    b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X_Forwarded_For", b"X-Forwarded-Prefix", b"Forwarded", b"Via",
    b"X-Real-IP", b"Client-IP", b"Remote-User", b"X-Remote-User", b"X.Remote.User", b"X-Remote-Groups",
    b"X-Auth-Scheme", b"Date", b"Server", b"Set-Cookie", b"Content-Type", b"Vary", b"HTTP2-Settings",
)  # fmt: skip
VALUES = values | st.sampled_from(
    [
        b"close", b"keep-alive", b"Close", b"", b"X-Own", b"accept, date", b"via, X-Forwarded-For", b"close, te",
        b"Basic eDp5", b"bearer t", b"Digest a, Basic b", b"1.1 frontd", b"1.1 a, 1.1 frontd", b"203.0.113.5",
        b"for=203.0.113.5", b"https", b"Sat, 21 Nov 2026 10:00:00 GMT", b"x" * 400,
    ]
)  # fmt: skip
lines = st.tuples(
    st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from([name, name.lower(), name.upper()])), VALUES
).map(lambda field: field[0] + b": " + field[1] + b"\r\n")
blocks = st.lists(lines, max_size=6).map(b"".join)
bodies = st.sampled_from([b"", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"])
hosts = st.sampled_from([b"a.test", b"A.test:8080", b"[::1]:80"])
asked = st.builds(
    lambda host, before, body, behind: (
        b"POST /x HTTP/1.1\r\n" + before + b"Host: " + host + b"\r\n" + body + behind + b"\r\n"
    ),
    hosts, blocks, bodies, blocks,
)  # fmt: skip
statuses = st.sampled_from([b"200 OK", b"204 No Content", b"304 Not Modified", b"404 N"])
answered = st.builds(
    lambda status, before, body, behind: b"HTTP/1.1 " + status + b"\r\n" + before + body + behind + b"\r\n",
    statuses, blocks, bodies, blocks,
)  # fmt: skip


def understood(data: bytes) -> Request | None:
    """The request at the front of `data`, read anew."""
    try:
        head = scan_request(bytearray(data), WireLimits())
        return make_request(head) if head is not None else None
    except FrontdError:
        return None


def answer(data: bytes) -> ResponseHead | None:
    """The answer at the front of `data`, read anew."""
    try:
        return scan_response(bytearray(data))
    except FrontdError:
        return None


def expected_up(request: Request, client: Client, schemes: frozenset[bytes]) -> bytes | str:
    """Field by field, as with plugins that look at them; or what is refused."""
    try:
        headers = upstream_headers(request, client, schemes)
    except FrontdError as error:
        return str(error)
    sealed = headers.copy()
    frame(headers, request)
    seal(sealed, request, None)
    assert sealed.items == headers.items
    return field_lines(headers.items)


def lines_up(request: Request, client: Client, schemes: frozenset[bytes]) -> bytes | str:
    try:
        found = upstream_lines(request, client, schemes)
    except FrontdError as error:
        return str(error)
    if isinstance(found, bytes):
        assert b"authorization" not in request.headers
        return found
    return field_lines(found.items)


def forget() -> None:
    for table in (fields._fates, fields._lines_up, fields._lines_down):
        table.clear()


@given(st.lists(asked | border_requests | damaged(requests()), min_size=1, max_size=3), CLIENTS, SCHEMES)
@example([b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Accept\r\nAccept: b\r\n\r\n"], STRANGER, frozenset[bytes]())
@example([b"GET / HTTP/1.0\r\n\r\n"], PROXY, frozenset[bytes]())
def test_lines_to_the_app_are_the_fields(said: list[bytes], client: Client, schemes: frozenset[bytes]) -> None:
    """Requests of one client in a row, each of them three times: what is remembered of others or of itself is right."""
    forget()
    client = replace(client)
    for data in said:
        for _ in range(3):
            request = understood(data)
            if request is None:
                break
            expected = expected_up(request, replace(client), schemes)
            assert lines_up(request, client, schemes) == expected
            assert lines_up(request, client, schemes) == expected
            event("lines" if isinstance(expected, bytes) else "refused")


@given(asked, st.lists(lines, max_size=2), CLIENTS)
def test_lines_follow_fields_that_were_changed(data: bytes, more: list[bytes], client: Client) -> None:
    """A plugin of an earlier phase adds and removes fields of a head whose lines are remembered."""
    for _ in range(2):
        request = understood(data)
        if request is None:
            return
        lines_up(request, replace(client), frozenset())
        request.headers.remove("Accept")
        for line in more:
            name, _, value = line.partition(b": ")
            request.headers.add(name, value.strip())
        assert lines_up(request, client, frozenset()) == expected_up(request, replace(client), frozenset())


@given(st.lists(answered | border_answers | damaged(answers()), min_size=1, max_size=3))
@example([b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n"])
@example([b"HTTP/1.1 200 OK\r\nConnection: date\r\nDate: x\r\nContent-Length: 0\r\n\r\n"])
def test_lines_to_the_client_are_the_fields(said: list[bytes]) -> None:
    forget()
    with patch("frontd.pipeline.fields.now", lambda: b"the time"):
        for data in said:
            for _ in range(3):
                head = answer(data)
                if head is None or head.status < 200:
                    break
                expected = field_lines(downstream_headers(head).items)
                assert downstream_lines(head) == expected
                assert downstream_lines(head) == expected
                event("lines")


@pytest.mark.parametrize("client", [STRANGER, PROXY])
def test_the_corpus_of_requests(client: Client) -> None:
    found = 0
    for _ in range(2):
        for path in sorted((CORPUS / "accepted").iterdir()):
            request = understood(path.read_bytes())
            if request is not None:
                found += 1
                assert lines_up(request, client, frozenset()) == expected_up(request, replace(client), frozenset())
    assert found > 50


def test_the_corpus_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontd.pipeline.fields.now", lambda: b"the time")
    found = 0
    for _ in range(2):
        for path in sorted((CORPUS / "responses-accepted").iterdir()):
            head = answer(path.read_bytes())
            if head is not None:
                found += 1
                assert downstream_lines(head) == field_lines(downstream_headers(head).items)
    assert found > 10


def test_no_secret_is_remembered() -> None:
    forget()
    data = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nCookie: secret\r\nX-Key: secret\r\n\r\n"
    request = understood(data)
    assert request is not None
    lines = upstream_lines(request, replace(STRANGER), frozenset())
    assert isinstance(lines, bytes)
    assert b"secret" in lines
    assert not any(b"secret" in line for line in fields._lines_up.values())
    assert fields._lines_up
