"""The lines of both logs: byte-exact, of bounded length, and never two where one was meant."""

from __future__ import annotations

import json
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from frontd.model.errors import Reason
from frontd.model.headers import Headers
from frontd.model.messages import Client, Exchange, Request, TlsInfo, TlsPolicy
from frontd.pipeline.accesslog import (
    ACCESS_FIELDS,
    ERROR_FIELDS,
    MAX_FIELD,
    MAX_LINE,
    MAX_URI,
    iso,
    json_error,
    json_line,
    json_remark,
    safe,
    stamp,
    w3c_error,
    w3c_line,
    w3c_remark,
)
from tests.wire import app, front, one_pool

AT = 1769903999.125  # 2026-01-31 23:59:59.125 UTC


def client(tls: bool = False) -> Client:
    """A client on loopback, as the listener makes them."""
    info = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", "shop.test", None, TlsPolicy()) if tls else None
    return Client("203.0.113.9", 50123, "10.0.0.1", "192.0.2.1", 8443, "https", "https" if tls else "http", 443, info)


def exchange(
    method: str = "GET",
    uri: str = "/a/b?x=1",
    *fields: tuple[bytes, bytes],
    host: bytes = b"shop.test",
) -> Exchange:
    """An exchange of 1 GET, answered with 200 by one try on an app."""
    path, mark, query = uri.partition("?")
    headers = Headers.of((b"Host", host), *fields)
    request = Request(method, uri.encode(), path, query, host.decode("latin-1"), host, "1.1", headers)
    request.has_query = bool(mark)
    it = Exchange(client(tls=True), request, 0.0, AT)
    it.number = 7
    it.method, it.uri, it.version, it.fields = method, uri, "1.1", headers
    it.site, it.route, it.pool, it.target = "shop", "/a/", "app", "http://10.0.0.7:9000"
    it.status, it.bytes_in, it.bytes_out = 200, 120, 4321
    it.attempts, it.queue_wait, it.generation = 1, 0.25, 3
    return it


def nothing() -> Exchange:
    """An exchange of which only the peer is known."""
    it = Exchange(client(), None, 0.0, AT)
    it.number = 8
    return it


# ---------------------------------------------------------------------------------------------------- exact


def test_w3c_line() -> None:
    it = exchange("GET", "/a/b?x=1", (b"User-Agent", b'curl/8 (a "b")'), (b"Referer", b"https://r.test/?q=1"))
    assert w3c_line(it, 0.0123456, AT) == (
        "2026-01-31 23:59:59 shop 192.0.2.1 GET /a/b x=1 8443 - 203.0.113.9 HTTP/1.1 curl/8+(a++b+) "
        "https://r.test/?q=1 shop.test 200 0 0 4321 120 12 - 250 http://10.0.0.7:9000"
    )


def test_w3c_line_with_a_reason_and_without_optional_values() -> None:
    it = exchange("POST", "/a/b")
    it.reason, it.status, it.target = Reason.QueueFull, 503, ""
    assert w3c_line(it, 30.0004, AT) == (
        "2026-01-31 23:59:59 shop 192.0.2.1 POST /a/b - 8443 - 203.0.113.9 HTTP/1.1 - - shop.test 503 0 0 4321 120 "
        "30000 QueueFull 250 -"
    )


def test_w3c_line_of_what_never_became_a_request() -> None:
    assert w3c_line(nothing(), 0.0, AT) == (
        "2026-01-31 23:59:59 - 192.0.2.1 - - - 8443 - 203.0.113.9 - - - - - 0 0 0 0 0 - 0 -"
    )


def test_an_empty_query_is_a_missing_one() -> None:
    assert " /a - 8443 " in w3c_line(exchange("GET", "/a?"), 0.0, AT)


def test_json_line() -> None:
    it = exchange("GET", "/a/b?x=1", (b"User-Agent", b'curl/8 "b"\t'), (b"Referer", "https://r.test/ö".encode()))
    assert json_line(it, 0.0123456789, AT) == (
        '{"time":"2026-01-31T23:59:59.125+00:00","request":7,"client":"203.0.113.9","listener":"https",'
        '"scheme":"https","tls":"TLSv1.3","method":"GET","host":"shop.test","path":"/a/b","query":"x=1",'
        '"version":"1.1","user_agent":"curl/8 \\"b\\"\\t","referer":"https://r.test/\\u00f6","site":"shop",'
        '"route":"/a/","pool":"app","target":"http://10.0.0.7:9000","user":null,"status":200,"substatus":null,"reason":null,"bytes_in":120,'
        '"bytes_out":4321,"seconds":0.012346,"queue_wait":0.25,"attempts":1,"generation":3}'
    )


def test_json_line_of_what_never_became_a_request() -> None:
    it = nothing()
    it.reason = Reason.Timer_HeaderWait
    assert json_line(it, 0.0, AT) == (
        '{"time":"2026-01-31T23:59:59.125+00:00","request":8,"client":"203.0.113.9","listener":"https",'
        '"scheme":"http","tls":null,"method":null,"host":null,"path":null,"query":null,"version":null,'
        '"user_agent":null,"referer":null,"site":null,"route":null,"pool":null,"target":null,"user":null,"status":null,"substatus":null,'
        '"reason":"Timer_HeaderWait","bytes_in":0,"bytes_out":0,"seconds":0.0,"queue_wait":0.0,"attempts":0,'
        '"generation":0}'
    )


def test_an_empty_query_is_an_empty_string_in_json() -> None:
    assert json.loads(json_line(exchange("GET", "/a?"), 0.0, AT))["query"] == ""
    assert json.loads(json_line(exchange("GET", "/a"), 0.0, AT))["query"] is None


def test_w3c_error() -> None:
    it = exchange("GET", "/a/b?x=1")
    assert w3c_error(it.client, Reason.AppOffline, "10.0.0.7:9000: Connection refused", AT, it, 503) == (
        "2026-01-31 23:59:59 203.0.113.9 50123 192.0.2.1 8443 HTTP/1.1 GET /a/b?x=1 503 shop AppOffline app "
        "10.0.0.7:9000:+Connection+refused"
    )


def test_w3c_error_of_a_connection() -> None:
    assert w3c_error(client(), Reason.Timer_HeaderWait, "", AT) == (
        "2026-01-31 23:59:59 203.0.113.9 50123 192.0.2.1 8443 - - - - - Timer_HeaderWait - -"
    )


def test_json_error() -> None:
    it = exchange("GET", "/a/b?x=1")
    assert json_error(it.client, Reason.AppOffline, "10.0.0.7:9000: Connection refused", AT, it, 503) == (
        '{"time":"2026-01-31T23:59:59.125+00:00","request":7,"client":"203.0.113.9","port":50123,'
        '"local_address":"192.0.2.1","local_port":8443,"version":"1.1","method":"GET","uri":"/a/b?x=1","status":503,'
        '"site":"shop","reason":"AppOffline","pool":"app","detail":"10.0.0.7:9000: Connection refused"}'
    )
    assert json.loads(json_error(client(), Reason.Timer_HeaderWait, "", AT)) == {
        "time": "2026-01-31T23:59:59.125+00:00", "request": None, "client": "203.0.113.9", "port": 50123,
        "local_address": "192.0.2.1", "local_port": 8443, "version": None, "method": None, "uri": None,
        "status": None, "site": None, "reason": "Timer_HeaderWait", "pool": None, "detail": None,
    }  # fmt: skip


def test_remarks() -> None:
    assert w3c_remark("a b\r\n#Fields: c\x85\u2028d", AT) == "#Remark: 2026-01-31 23:59:59 a b++#Fields: c++d"
    assert json_remark("a\nb", AT) == '{"time":"2026-01-31T23:59:59.125+00:00","remark":"a\\nb"}'


def test_times() -> None:
    assert (stamp(0), iso(0)) == ("1970-01-01 00:00:00", "1970-01-01T00:00:00.000+00:00")
    assert iso(1.001) == "1970-01-01T00:00:01.001+00:00"
    assert iso(1.9999999) == "1970-01-01T00:00:01.999+00:00"


def test_safe() -> None:
    assert safe("") == "-"
    assert safe("a b\t\x00\x1b\x7f\"'\u00a0\u2028\u202eé語🙂") == "a+b+++++'+++é語🙂"
    assert safe("\ud800") == "+"
    assert safe("é" * 9, 5) == "éé"  # 5 bytes would end inside the third


# ---------------------------------------------------------------------------------------------------- any bytes

# What a field value, a host or a target may hold once it has passed the wire check, and a good deal more.
values = st.one_of(
    st.binary(max_size=400),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b'" 200 0 0', b"-", b"\r\n", b"\xe2\x80\xa8", b"\xc2\x85", b'","status":200,"x":"', b"\\", b"\x1b[2J"]
    ),
    st.sampled_from(["語", "🙂", '"', "\\", "\x00", "\ud800", "\xff"]).map(
        lambda c: c.encode("utf-8", "surrogatepass") * 20000
    ),
)


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    method, uri, host = (draw(values).decode("latin-1") for _ in range(3))
    it = exchange(
        method,
        uri,
        (b"User-Agent", draw(values)),
        (b"Referer", draw(values)),
        host=host.encode("latin-1"),
    )
    if draw(st.booleans()):
        it.is_understood = False
    it.site, it.route, it.pool, it.target, it.detail = (draw(values).decode("utf-8", "replace") for _ in range(5))
    it.reason = draw(st.sampled_from([None, *Reason]))
    return it


def check(line: str, fields: int) -> None:
    """One line, of a known number of fields, that a pipe takes whole."""
    assert line.splitlines() == [line]
    assert line.isprintable()
    assert len(line.encode()) < MAX_LINE
    if fields:
        assert len(line.split(" ")) == fields
        assert all(line.split(" "))


def check_json(line: str, like: str) -> dict[str, object]:
    assert line.isascii()
    check(line, 0)
    data = json.loads(line)
    assert isinstance(data, dict)
    assert list(data) == list(json.loads(like))
    return data


@given(exchanges())
def test_no_bytes_forge_a_line_or_a_field(it: Exchange) -> None:
    reason = it.reason or Reason.Internal
    check(w3c_line(it, 1.0, AT), len(ACCESS_FIELDS.split()))
    check(w3c_error(it.client, reason, it.detail, AT, it, 503), len(ERROR_FIELDS.split()))
    data = check_json(json_line(it, 1.0, AT), json_line(exchange(), 1.0, AT))
    assert (data["status"], data["generation"], data["time"]) == (200, 3, iso(AT))
    assert data["reason"] == (it.reason.word if it.reason else None)
    like = json_error(it.client, reason, "", AT, exchange())
    assert check_json(json_error(it.client, reason, it.detail, AT, it, 503), like)["status"] == 503
    check(json_remark(it.detail, AT), 0)


@given(exchanges())
def test_status_and_reason_stand_in_their_columns(it: Exchange) -> None:
    fields = dict(zip(ACCESS_FIELDS.split(), w3c_line(it, 1.0, AT).split(" "), strict=True))
    assert (fields["sc-status"], fields["time-taken"], fields["c-ip"]) == ("200", "1000", "203.0.113.9")
    assert fields["x-reason"] == (it.reason.word if it.reason else "-")


def test_what_fits_is_not_cut() -> None:
    it = exchange("GET", "/" + "a" * (MAX_URI - 1), (b"User-Agent", "é".encode() * 200))
    data = json.loads(json_line(it, 0.0, AT))
    assert (len(data["path"]), data["user_agent"]) == (MAX_URI, "é" * 200)


def test_a_long_line_is_cut_value_by_value() -> None:
    it = exchange("M" * 9000, "/" + "a" * 9000 + "?" + "b" * 9000, (b"User-Agent", "語".encode() * 5000))
    line = json_line(it, 0.0, AT)
    data = json.loads(line)
    assert MAX_LINE / 2 < len(line) < MAX_LINE
    assert data["method"] == "M" * len(data["method"])
    assert data["user_agent"] == "語" * 200


# ---------------------------------------------------------------------------------------------------- from the wire


async def test_one_line_for_each_request_whatever_it_holds(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Every byte that the wire check lets through, in every place that is logged."""
    visible = bytes(c for c in range(0x21, 0x7F) if c not in b'#?%\\"<>^`{|}')
    field = bytes([*range(0x20, 0x7F), 9, *range(0x80, 0x100)])
    async with app() as server, front(one_pool(server.url), tmp_path) as stage:
        line = await stage.connect()
        for target in (b"/" + visible, b"/a?" + visible, b"/%22%20-%20200?%0a%0d"):
            for value in (field, "\u2028\u2029\x85 200 - -".encode(), b'","status":999,"x":"'):
                head, _ = await line.ask(
                    b"GET %s HTTP/1.1\r\nHost: a.test\r\nUser-Agent: x%sx\r\nReferer: y%sy\r\n\r\n"
                    % (target, value, value)
                )
                assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
        head, _ = await line.ask(b"GET /a\x80b HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
    access = [json.loads(text) for text in stage.log("access").splitlines()]
    assert [data["status"] for data in access] == [200] * 9 + [400]
    agents = [data["user_agent"] for data in access[:3]]
    assert agents[1:] == ["x\u2028\u2029\x85 200 - -x", 'x","status":999,"x":"x']
    assert agents[0] == f"x{field.decode('utf-8', 'replace')}"[:MAX_FIELD]
    errors = [text for text in stage.log("error").splitlines() if not text.startswith("#")]
    assert len(errors) == 1
    assert errors[0].split(" ")[11] == "URL"
