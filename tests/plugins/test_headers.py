"""Header fields both ways: what is changed, when HSTS is said, and what is not this plugin's to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from frontd_plugins.headers import Headers
from hypothesis import given
from hypothesis import strategies as st

import frontd
from frontd.testing import ConfigurationError, site
from tests.plugins.exchanges import asked, complaints, placed
from tests.wire import app, front, one_pool

APP = [("Server", "app/1"), ("X-Powered-By", "guess"), ("Cache-Control", "no-cache"), ("server", "twice")]


def changed(*, scheme: str = "https", **settings: Any) -> list[tuple[str, str]]:
    """What becomes of the fields of an app's answer."""
    exchange = asked(scheme=scheme)
    exchange.response = frontd.Response(200, APP)
    placed(Headers, **settings).rewrite_response(exchange)
    return [(name.decode(), value.decode()) for name, value in exchange.response.headers.pairs()]


# ---------------------------------------------------------------------------------------------------- fields


def test_remove_takes_every_line_in_any_case() -> None:
    assert changed(remove_response=["SERVER", "x-powered-by", "X-None"]) == [("Cache-Control", "no-cache")]


def test_set_replaces_every_line_by_one() -> None:
    assert changed(set_response={"server": "", "X-New": "1"}) == [*APP[1:3], ("server", ""), ("X-New", "1")]


def test_append_leaves_what_is_there() -> None:
    assert changed(append_response={"Cache-Control": "private"}) == [*APP, ("Cache-Control", "private")]


def test_the_order_is_remove_set_append() -> None:
    got = changed(
        remove_response=["server", "x-powered-by", "cache-control"],
        set_response={"Link": "a"},
        append_response={"link": "b"},
    )
    assert got == [("Link", "a"), ("link", "b")]


def test_values_are_sent_letter_for_letter() -> None:
    value = "{host} ${x} %{y}i $remote_addr"
    assert ("X-A", value) in changed(set_response={"X-A": value})


def test_requests_are_changed_likewise() -> None:
    exchange = asked("/", "Accept-Encoding: br", "X-Old: 1")
    placed(
        Headers, remove_request=["accept-encoding"], set_request={"X-Old": "2"}, append_request={"X-More": "3"}
    ).rewrite_request(exchange)
    assert exchange.request.headers.pairs()[1:] == [(b"X-Old", b"2"), (b"X-More", b"3")]


# ---------------------------------------------------------------------------------------------------- HSTS


STS = "Strict-Transport-Security"


@pytest.mark.parametrize(
    ("hsts", "value"),
    [
        ({}, "max-age=31536000"),
        ({"max_age": 0}, "max-age=0"),
        ({"max_age": "30d", "include_subdomains": True}, "max-age=2592000; includeSubDomains"),
        ({"include_subdomains": True, "preload": True}, "max-age=31536000; includeSubDomains; preload"),
    ],
)
def test_hsts_is_said_over_https_alone(hsts: dict[str, Any], value: str) -> None:
    assert changed(hsts=hsts) == [*APP, (STS, value)]
    assert changed(hsts=hsts, scheme="http") == APP


def test_hsts_written_as_a_field_is_not_said_over_http_either() -> None:
    field = {"strict-transport-security": "max-age=1", "X-A": "1"}
    assert changed(set_response=field)[-2:] == [*field.items()]
    assert changed(set_response=field, scheme="http") == [*APP, ("X-A", "1")]


# ---------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (None, "nothing is changed"),
        ({"set_response": {"X A": "1"}}, "'X A' is not a field name"),
        ({"set_response": {"": "1"}}, "'' is not a field name"),
        ({"remove_response": ["X:"]}, "'X:' is not a field name"),
        ({"remove_response": ["X-A", "x-a"]}, "'x-a' stands there twice"),
        ({"set_request": {"X-A": "1", "x-A": "2"}}, "'x-A' stands there twice"),
        ({"set_response": {"X-A": "a\r\nSet-Cookie: b"}}, "the value of 'X-A' is not a field value"),
        ({"set_response": {"X-A": " a"}}, "the value of 'X-A' is not a field value"),
        ({"set_response": {"X-A": "ü"}}, "the value of 'X-A' is not a field value"),
        ({"set_request": {"Host": "a b"}}, "'a b' is not a host"),
        ({"set_request": {"Host": "http://a"}}, "'http://a' is not a host"),
        ({"remove_request": ["Host"]}, "Host cannot be removed"),
        ({"append_request": {"Host": "a"}}, "append_request: Host stands alone in a message; use set_request"),
        ({"append_response": {"content-type": "a"}}, "content-type stands alone in a message; use set_response"),
        ({"set_response": {"A": "1"}, "remove_response": ["a"]}, "a is in set_response, which replaces it anyway"),
        ({"set_response": {"Content-Length": "1"}}, "it frames the message"),
        ({"set_request": {"Transfer_Encoding": "x"}}, "it frames the message"),
        ({"remove_response": ["connection"]}, "it frames the message"),
        ({"set_request": {"X_Remote.User": "root"}}, "it tells the app who has logged on"),
        ({"remove_request": ["x-remote-groups"]}, "it tells the app who has logged on"),
        ({"append_request": {"X-Forwarded-For": "1.2.3.4"}}, "it tells the app where the request came from"),
        ({"remove_request": ["Forwarded"]}, "it tells the app where the request came from"),
        ({"remove_response": ["Content-Encoding"]}, "it describes the body"),
        ({"remove_response": ["WWW-Authenticate"]}, "challenges are the authenticators'"),
        ({"hsts": {}, "set_response": {"strict-transport-security": "x"}}, "is said by hsts and by another key"),
        ({"hsts": {"preload": True}}, "the preload list asks for include_subdomains"),
        ({"hsts": {"preload": True, "include_subdomains": True, "max_age": "30d"}}, "one year (365d) at least"),
        ({"hsts": {"maxage": 1}}, 'did you mean "max_age"?'),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(settings: dict[str, Any] | None, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as told, site([{"headers": settings}]):
        pass
    assert sentence in str(told.value)


def test_common_wishes_are_granted() -> None:
    given: dict[str, Any] = {
        "set_request": {"Host": "iis01.corp.example:8080", "X-Env": "prod"},
        "remove_request": ["Accept-Encoding", "Range"],
        "set_response": {"Content-Security-Policy": "default-src 'self'", "X-Frame-Options": "DENY", "Server": "x"},
        "append_response": {"Set-Cookie": "a=b", "Vary": "Accept"},
        "remove_response": ["X-Powered-By", "Via", "Set-Cookie"],
        "hsts": {},
    }
    assert complaints(Headers, **given) == []


@given(st.text(max_size=20), st.text(max_size=20))
def test_whatever_is_accepted_is_one_field_on_the_wire(name: str, value: str) -> None:
    try:
        placed(Headers, set_response={name: value})
    except ValueError:
        return
    got = changed(set_response={name: value})[-1]
    line = f"{got[0]}: {got[1]}"
    assert line.isascii()
    assert line.isprintable() or "\t" in line
    assert got[1] == got[1].strip(" \t")
    assert not set(name) & set(' \t:"(),/;<=>?@[]{}\\')


# ---------------------------------------------------------------------------------------------------- on a site


def test_it_stands_twice_and_over_every_kind_of_answer() -> None:
    first = {"headers": {"set_response": {"X-A": "1"}, "set_request": {"X-In": "1"}}}
    second = {"headers": {"append_response": {"X-A": "2"}, "hsts": {}, "append_request": {"X-In": "2"}}}
    with site([first, "request_filter", second]) as it:
        answer = it.get("/")
        assert answer.headers.get_all("X-A") == ["1", "2"]
        assert answer.headers[STS] == "max-age=31536000"
        assert answer.upstream is not None
        assert answer.upstream.headers.get_all("X-In") == ["1", "2"]
        refused = it.get("/web.config")
        assert (refused.status, refused.headers.get_all("X-A")) == (404, ["1", "2"])
        with it.connect(scheme="https") as connection:
            assert connection.get("/").headers[STS] == "max-age=31536000"
    with site([first, second], scheme="http") as it:
        answer = it.get("/")
        assert answer.headers.get_all("X-A") == ["1", "2"]
        assert STS not in answer.headers


async def test_on_real_sockets_the_host_of_the_app_may_be_another(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it:
        plugins = (
            "plugins: [{headers: {set_request: {Host: inner.example}, remove_request: [Cookie], "
            "remove_response: [Via], set_response: {X-Frame-Options: DENY}, hsts: {}}}]"
        )
        async with front(one_pool(it.url, site=plugins), tmp_path) as stage:
            line = await stage.connect()
            head, body = await line.get("/", "Cookie: a=b")
            assert body == b"ok"
            assert b"\r\nX-Frame-Options: DENY\r\n" in head
            assert b"\r\nVia:" not in head
            assert STS.encode() not in head
            assert b"\r\nHost: inner.example\r\n" in it.heads[0]
            assert it.heads[0].count(b"\r\nHost:") == 1
            assert b"\r\nX-Forwarded-Host: a.test\r\n" in it.heads[0]
            assert b"Cookie" not in it.heads[0]
