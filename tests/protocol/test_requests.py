"""From a checked head to what it asks for: forms of targets, hosts, expectations, upgrades."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.lanes.requests import make_request, split_target
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.messages import Request
from frontd.protocol.scan import RequestHead


def head(
    method: str, target: str, *fields: tuple[str, str], version: str = "1.1", length: int | None = None
) -> RequestHead:
    headers = Headers.of(*((name.encode(), value.encode("latin-1")) for name, value in fields))
    return RequestHead(method.encode(), target.encode("latin-1"), version.encode(), headers, 0, length)


def get(target: str, host: str = "a.test") -> Request:
    return make_request(head("GET", target, ("Host", host)))


def outcome(it: RequestHead) -> Request | FrontdError:
    try:
        return make_request(it)
    except FrontdError as error:
        return error


def refusal(it: RequestHead) -> FrontdError:
    error = outcome(it)
    assert isinstance(error, FrontdError)
    return error


# ------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", None),
        ("/a?b", "/a", "b"),
        ("/a?", "/a", ""),
        ("/a?b?c", "/a", "b?c"),
        ("/a?/../b", "/a", "/../b"),
        ("/a/./b/../c", "/a/c", None),
        ("//a.test/x", "//a.test/x", None),
        ("http://a.test", "/", None),
        ("http://a.test?q", "/", "q"),
        ("http://a.test?q/r", "/", "q/r"),
        ("HTTP://A.TEST/x?y", "/x", "y"),
        ("https://a.test/x", "/x", None),
    ],
)
def test_path_and_query_of_a_target(target: str, path: str, query: str | None) -> None:
    request = get(target)
    assert (request.path, request.query, request.has_query) == (path, query or "", query is not None)
    assert request.host == "a.test"
    assert request.target == target.encode()


@pytest.mark.parametrize(
    "target",
    [
        "foo", "a.test:80", "?x", "*", "ftp://a.test/", "http:/a.test/", "://a.test/", "/a#", "/a?b#c", "http://a.test/#",
        "http:///x", "http://?x", "https://", "/%00", "/%5c", "/%5C..%5C", "/a\\b", "/%", "/%1", "/%g0", "/a/%u002e",
    ],
)  # fmt: skip
def test_a_target_that_is_none_is_refused(target: str) -> None:
    error = refusal(head("GET", target, ("Host", "a.test")))
    assert (error.reason, error.status) == (Reason.URL, 400)


def test_the_star_goes_with_options_only() -> None:
    request = make_request(head("OPTIONS", "*", ("Host", "a.test")))
    assert (request.path, request.target) == ("/", b"*")
    assert refusal(head("POST", "*", ("Host", "a.test"))).reason is Reason.URL
    assert refusal(head("OPTIONS", "**", ("Host", "a.test"))).reason is Reason.URL


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
@pytest.mark.parametrize("target", ["/", "a.test:443", "*"])
def test_connect_and_trace_are_not_implemented(method: str, target: str) -> None:
    error = refusal(head(method, target, ("Host", "a.test")))
    assert (error.reason, error.status) == (Reason.NotImplemented_NI, 501)


@given(st.binary(max_size=20).map(lambda data: bytes(33 + byte % 94 for byte in data)))
def test_no_target_does_more_than_be_refused(target: bytes) -> None:
    with contextlib.suppress(FrontdError):
        authority, path, query = split_target(b"GET", target)
        assert path.startswith(b"/")
        assert b"?" not in path
        assert b"#" not in path + (query or b"")
        assert authority is None or authority


# ------------------------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("field", "host"),
    [
        ("a.test", "a.test"), ("A.Test:8080", "a.test"), ("a.test.", "a.test"), ("a.test.:80", "a.test"),
        ("a.test:", "a.test"), ("localhost", "localhost"), ("my_app", "my_app"), ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]", "::1"), ("[2001:DB8:0:0::1]:443", "2001:db8::1"), ("[::ffff:1.2.3.4]", "::ffff:102:304"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)  # fmt: skip
def test_the_host_is_canonical_and_the_authority_as_sent(field: str, host: str) -> None:
    request = get("/", field)
    assert request.host.replace("::ffff:1.2.3.4", "::ffff:102:304") == host  # newer Pythons print it so
    assert request.authority == field.encode()


NO_HOSTS = r"""
. .. a..b .a -a.test a-.test a.test:x a.test:65536 a.test:123456 a.test:-1 a.test:+1 a.test:80:80 a,b a/b a?b
a#b a;b a'b a<b a\b a"b me@a.test a%00 a%2etest http://a.test * + *.test 1.2.3 1.2.3.4.5 256.1.1.1 ::1 [::1
::1] [] [a.test] [cafe.de] [1.2.3.4] [::1%25eth0] [::1%eth0] [::1]x [v1.x]
"""


@pytest.mark.parametrize(
    "field", ["", "a b", "a\tb", "a" * 64, "a." * 127 + "a", "\xe4.test", "a\xad.test", *NO_HOSTS.split()]
)
def test_a_host_that_is_none_is_refused(field: str) -> None:
    error = refusal(head("GET", "/", ("Host", field)))
    assert (error.reason, error.status) == (Reason.Hostname, 400)


@given(st.binary(min_size=1, max_size=12).map(lambda data: bytes(byte for byte in data if byte not in b"\r\n\0")))
def test_no_host_field_does_more_than_be_refused(field: bytes) -> None:
    """And one that is accepted can stand in a field, a URL and a log line as it is."""
    it = RequestHead(b"GET", b"/", b"1.1", Headers.of((b"Host", field)), 0)
    request = outcome(it)
    if isinstance(request, FrontdError):
        assert request.reason is Reason.Hostname
        return
    assert set(request.authority) <= set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]")
    assert request.host == request.host.lower()
    assert not request.host.endswith(".")


def test_the_host_in_the_target_must_be_that_of_the_field() -> None:
    assert get("http://A.test:80/", "a.TEST:80").host == "a.test"
    for field in ("b.test", "a.test", "a.test:81", "a.test:80 ", ""):
        assert refusal(head("GET", "http://a.test:80/", ("Host", field))).reason is Reason.Hostname
    for target in ("http://me@a.test/", "http://a.test@b.test/", "http://a.test\\@b.test/", "http://a.test#/"):
        assert refusal(head("GET", target, ("Host", "a.test"))).reason is Reason.Hostname


def test_http_1_0_may_leave_the_host_out() -> None:
    request = make_request(head("GET", "/", version="1.0"))
    assert (request.host, request.authority) == ("", b"")
    assert make_request(head("GET", "http://a.test/", version="1.0")).host == "a.test"
    assert refusal(head("GET", "/", ("Host", "a/b"), version="1.0")).reason is Reason.Hostname
    assert refusal(head("GET", "http://me@a.test/", version="1.0")).reason is Reason.Hostname


# ------------------------------------------------------------------------------------------------------- the rest


def test_an_expectation_is_100_continue_or_refused() -> None:
    assert make_request(head("POST", "/", ("Host", "a"), ("Expect", "100-Continue"))).expects_continue
    assert not get("/").expects_continue
    for fields in ((("Expect", "x"),), (("Expect", ""),), (("Expect", "100-continue"), ("Expect", "100-continue"))):
        error = refusal(head("POST", "/", ("Host", "a"), *fields))
        assert (error.reason, error.status) == (Reason.Expectation, 417)


UPGRADE = (("Host", "a"), ("Connection", "keep-alive, Upgrade"))


def test_an_upgrade_is_to_websocket_and_to_nothing_else() -> None:
    assert make_request(head("GET", "/", *UPGRADE, ("Upgrade", "WebSocket"))).upgrade == b"websocket"
    for wrong in ("h2c", "TLS/1.0", "websocket, h2c", "h2c, websocket", "websocket/13", ""):
        assert make_request(head("GET", "/", *UPGRADE, ("Upgrade", wrong))).upgrade == b""
    two = head("GET", "/", *UPGRADE, ("Upgrade", "h2c"), ("Upgrade", "websocket"))
    assert make_request(two).upgrade == b""


def test_an_upgrade_needs_its_connection_option_http_1_1_and_no_body() -> None:
    field = ("Upgrade", "websocket")
    assert make_request(head("GET", "/", ("Host", "a"), field)).upgrade == b""
    assert make_request(head("GET", "/", *UPGRADE, field, version="1.0")).upgrade == b""
    assert make_request(head("GET", "/", *UPGRADE, field, length=1)).upgrade == b""
    chunked = head("GET", "/", *UPGRADE, field)
    chunked.chunked = True
    assert make_request(chunked).upgrade == b""
    assert make_request(head("GET", "/", *UPGRADE, field, length=0)).upgrade == b"websocket"
