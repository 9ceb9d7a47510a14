"""The lines of both logs: byte-exact, of bounded length, and never two where one was meant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from frontd.model.errors import Reason
from frontd.model.headers import Headers
from frontd.model.messages import Client, Exchange, Request, TlsInfo, TlsPolicy
from frontd.model.verdicts import Identity
from frontd.pipeline import accesslog
from frontd.pipeline.accesslog import (
    ACCESS_FIELDS,
    ERROR_FIELDS,
    KNOWN,
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
from tests.pipeline import plain_lines
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


# ---------------------------------------------------------------------------------------------------- remembered pieces

times = st.one_of(
    st.floats(0, 3e9),
    st.floats(0, 0.002),
    st.integers(0, 10**10).map(lambda n: n / 1_000_000),
    st.integers(0, 10**7).map(lambda n: (n + 0.5) / 1_000_000),  # between two: to the even one
    st.sampled_from([0.0, 0.5, 0.0005, 0.0015, 0.00009999, 0.9999995, 999_999.9999996, 1e6, 1e16]),
)
few = st.sampled_from(["", "shop", "a b", '"', "\\", "語", "x" * 200, "x" * 201])


@st.composite
def any_exchanges(draw: st.DrawFn) -> Exchange:
    """Exchanges that have much in common, so that their pieces are known or not."""
    it = draw(exchanges()) if draw(st.booleans()) else exchange(draw(few), "/" + draw(few) + "?" + draw(few))
    if draw(st.booleans()):
        names = st.sampled_from([b"User-Agent", b"Referer", b"Accept"])
        some = st.lists(st.tuples(names, st.sampled_from([b"", b"b", b"c d"])), max_size=4)
        it.fields = draw(st.none() | some.map(lambda pairs: Headers.of(*pairs)))
    it.version = draw(st.sampled_from(["1.1", "1.0", "2", ""]))
    it.client = replace(it.client, address=draw(few), local_port=draw(st.integers(0, 65535)), listener=draw(few))
    it.client.tls = draw(st.sampled_from([None, it.client.tls]))
    it.identity = draw(st.none() | few.filter(bool).map(Identity))
    it.site, it.route, it.pool, it.target = (draw(few) for _ in range(4))
    it.status, it.substatus = draw(st.sampled_from([0, 200, 404])), draw(st.sampled_from([0, 8]))
    it.bytes_in, it.bytes_out = draw(st.integers(0, 2**40)), draw(st.integers(0, 2**40))
    it.queue_wait, it.attempts = draw(times), draw(st.integers(0, 3))
    it.request.has_query = draw(st.booleans())
    return it


@given(any_exchanges(), times, times)
def test_lines_are_what_they_are_spelled_out(it: Exchange, seconds: float, at: float) -> None:
    """At first sight, and with every piece known."""
    for _ in range(2):
        assert w3c_line(it, seconds, at) == plain_lines.w3c_line(it, seconds, at)
        assert json_line(it, seconds, at) == plain_lines.json_line(it, seconds, at)


def test_the_first_of_two_fields_counts() -> None:
    twice = [(name, value) for name in (b"User-Agent", b"Referer") for value in (b"one", b"two")]
    for fields in (twice[::2], twice[1::2], twice, twice[::-1]):
        it = exchange("GET", "/", *fields)
        for _ in range(2):
            assert w3c_line(it, 0.0, AT) == plain_lines.w3c_line(it, 0.0, AT)
            assert json_line(it, 0.0, AT) == plain_lines.json_line(it, 0.0, AT)


def test_time_may_go_back() -> None:
    """Exchanges end in another order than they began, and clocks are set."""
    it = exchange()
    for at in (AT, AT - 1, AT + 0.9, AT + 86400, AT, 0.0, -0.5, -1.0, AT):
        assert w3c_line(it, 0.0, at) == plain_lines.w3c_line(it, 0.0, at)
        assert json_line(it, 0.0, at) == plain_lines.json_line(it, 0.0, at)


def remembered() -> list[dict[object, str]]:
    """Everything that is kept from one line to the next."""
    fixed = {"ACCESS", "ERRORS", "_TINY", "__builtins__", "__annotations__"}
    return [value for name, value in vars(accesslog).items() if type(value) is dict and name not in fixed]


def test_a_quick_line_is_quick_only_with_known_pieces() -> None:
    """Else the comparisons above would compare the rules with the rules."""
    assert len(remembered()) == 18
    for known in remembered():
        known.clear()
    it = exchange("GET", "/a", (b"User-Agent", b"curl/8"))
    it.identity = Identity("anna")
    w3c_line(it, 0.0, AT), json_line(it, 0.0, AT)
    assert all(remembered())
    for known in remembered():
        for value in known:
            known[value] = "seen"
    seen = w3c_line(it, 0.0, AT).count("seen"), json_line(it, 0.0, AT).count("seen")
    for known in remembered():  # no later line is to say so
        known.clear()
    assert seen == (11, 13)


def test_what_is_remembered_is_bounded() -> None:
    for number in range(3 * KNOWN):
        text = f"{number}-" + "x" * (number % 300)
        it = exchange(text, "/", (b"User-Agent", text.encode()), host=text.encode())
        it.site = it.route = it.pool = it.target = it.version = text
        it.status, it.identity = number, Identity(text)
        it.client = replace(it.client, address=text, local_address=text, local_port=number, listener=text, scheme=text)
        w3c_line(it, 0.0, AT), json_line(it, 0.0, AT)
    assert {len(known) <= KNOWN for known in remembered()} == {True}
    assert max(len(str(value)) for known in remembered() for value in known) <= MAX_FIELD + len("b''")


def test_what_may_be_a_secret_is_not_remembered() -> None:
    it = exchange("GET", "/reset/hush-path?t=hush-query", (b"Referer", b"https://a.test/?t=hush-referer"))
    for _ in range(2):
        assert w3c_line(it, 0.0, AT).count("hush-") == 3
        assert json_line(it, 0.0, AT).count("hush-") == 3
    assert len(remembered()) == 18
    assert "hush-" not in str(remembered())


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
