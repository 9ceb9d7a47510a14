"""What crosses the front: fields, bodies, interim answers, both ways and byte by byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.wire import OK, Line, app, front, one_pool, settled

HOST = b"Host: a.test\r\n"


def fields(head: bytes) -> list[bytes]:
    """The field lines of a head, without its start line."""
    return head.split(b"\r\n")[1:-2]


def field(head: bytes, name: str) -> list[bytes]:
    """The values of one field, as they stand."""
    return re.findall(rb"(?i)\r\n" + name.encode() + rb": ?([^\r\n]*)", head)


# ---------------------------------------------------------------------------------------------------- request fields


async def test_the_head_that_the_app_gets_byte_by_byte(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.ask(
            b"GET /A/b?q=1 HTTP/1.1\r\nuser-agent: x\r\nHost: Shop.Test:8080\r\nX-MiXed-CaSe: v\r\n"
            b"Accept: a\r\nAccept: b\r\nEmpty:\r\nCookie: k=v; l=\xff\r\n\r\n"
        )
        assert it.heads == [
            b"GET /A/b?q=1 HTTP/1.1\r\nHost: Shop.Test:8080\r\nuser-agent: x\r\nX-MiXed-CaSe: v\r\n"
            b"Accept: a\r\nAccept: b\r\nEmpty: \r\nCookie: k=v; l=\xff\r\n"
            b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: Shop.Test:8080\r\n"
            b'Forwarded: for=127.0.0.1;host="Shop.Test:8080";proto=http\r\nVia: 1.1 frontd\r\n\r\n'
        ]


HOP = (
    "Connection: keep-alive, X-Named , ,x-other",
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "Proxy-Authorization: Basic eA==",
    "TE: trailers",
    "HTTP2-Settings: AAMAAABk",
    "X-Named: 1",
    "X-Other: 2",
    "Upgrade: h2c",
)


async def test_hop_by_hop_fields_end_here(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/", *HOP, "X-Kept: 3")
        names = {one.partition(b":")[0].lower() for one in fields(it.heads[0])}
        assert names == {b"host", b"x-kept", b"via", b"forwarded", b"x-forwarded-for", b"x-forwarded-proto",
                         b"x-forwarded-host"}  # fmt: skip


@pytest.mark.parametrize(
    "named", ["Host", "Content-Length", "X-Forwarded-For", "Forwarded", "Via", "Transfer-Encoding"]
)
async def test_naming_our_own_fields_in_connection_changes_nothing(tmp_path: Path, named: str) -> None:
    """A client that could remove framing or identity fields could smuggle or pose as somebody else."""
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, _ = await line.ask(
            b"PUT / HTTP/1.1\r\n" + HOST + f"Connection: {named}\r\n".encode() + b"Content-Length: 5\r\n\r\nhello"
        )
        assert head.startswith(b"HTTP/1.1 200 ")
        assert it.bodies == [b"hello"]
        expected = {"Host": b"a.test", "Content-Length": b"5", "X-Forwarded-For": b"127.0.0.1", "Via": b"1.1 frontd",
                    "Forwarded": b"for=127.0.0.1;host=a.test;proto=http"}  # fmt: skip
        assert {name: field(it.heads[0], name) for name in expected} == {name: [expected[name]] for name in expected}
        assert field(it.heads[0], "Transfer-Encoding") == []


FORGED = (
    "X-Forwarded-For: 6.6.6.6",
    "x-forwarded-for: 7.7.7.7",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.test",
    "X-Forwarded-Port: 1",
    "X-Forwarded-Server: evil",
    "X-Forwarded-Prefix: /evil",
    "X-Real-IP: 6.6.6.6",
    "Forwarded: for=6.6.6.6",
)


async def test_strangers_do_not_say_who_they_are(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/", *FORGED, "Via: 1.0 other")
        assert fields(it.heads[0]) == [
            b"Host: a.test", b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: a.test",
            b"Forwarded: for=127.0.0.1;host=a.test;proto=http", b"Via: 1.0 other, 1.1 frontd",
        ]  # fmt: skip


async def test_underscores_do_not_get_round_that(tmp_path: Path) -> None:
    """Where fields with ``_`` pass, an app behind CGI names could not tell the forged field from ours."""
    text = one_pool("{url}", site="underscores_in_headers: true")
    async with app() as it, front(text.replace("{url}", it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/", *(one.replace("-", "_", 3) for one in FORGED), "X_Forwarded-For: 8.8.8.8", "My_Field: 1")
        assert fields(it.heads[0]) == [
            b"Host: a.test", b"My_Field: 1",
            b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: a.test",
            b"Forwarded: for=127.0.0.1;host=a.test;proto=http", b"Via: 1.1 frontd",
        ]  # fmt: skip
        assert stage.front.service.underscores == 0


async def test_fields_with_an_underscore_are_dropped_and_counted(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/", "X_Remote_User: root", "My_Field: 1", "X-Kept: a_b")
        assert b"_" not in b"".join(one.partition(b":")[0] for one in fields(it.heads[0]))
        assert field(it.heads[0], "X-Kept") == [b"a_b"]
        assert stage.front.service.underscores == 2


@pytest.mark.parametrize(
    ("trusted", "reported", "address"),
    [
        ("127.0.0.0/8", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.0/8", "6.6.6.6, 203.0.113.9", "203.0.113.9"),  # the rightmost that is not trusted
        ("127.0.0.0/8, 10.0.0.0/8", "6.6.6.6, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("127.0.0.0/8, 10.0.0.0/8", "10.9.9.9, 10.1.2.3", "10.9.9.9"),  # all trusted: the one furthest away
        ("127.0.0.0/8", "6.6.6.6, not-an-address", "unknown"),  # and never the address of the proxy
        ("127.0.0.0/8", "203.0.113.8", "unknown"),  # the two fields disagree: neither is believed
        ("127.0.0.0/8", "[2001:db8::1]:80", "2001:db8::1"),
        ("192.0.2.0/24", "6.6.6.6", "127.0.0.1"),
    ],
)
async def test_what_a_trusted_proxy_reports(tmp_path: Path, trusted: str, reported: str, address: str) -> None:
    async with app() as it:
        text = one_pool(it.url, extra=f"trusted_proxies: [{', '.join(f'{one!r}' for one in trusted.split(', '))}]")
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            hop = "1.1.1.1" if reported == "203.0.113.8" else f'"[{address}]"' if ":" in address else address
            await line.get("/", f"X-Forwarded-For: {reported}", "X-Forwarded-Proto: https", "X-Forwarded-Host: b.test",
                           f"Forwarded: for={hop}")  # fmt: skip
            await settled()
            believed = trusted.startswith("127")
            chain = f"{reported}, 127.0.0.1" if believed else "127.0.0.1"
            assert field(it.heads[0], "X-Forwarded-For") == [chain.encode()]
            assert field(it.heads[0], "X-Forwarded-Proto") == [b"https" if believed else b"http"]
            assert field(it.heads[0], "X-Forwarded-Host") == [b"b.test" if believed else b"a.test"]
            mine = b"for=127.0.0.1;host=a.test;proto=http"
            assert field(it.heads[0], "Forwarded") == [f"for={hop}, ".encode() + mine if believed else mine]
            assert f'"{address}"' in stage.log()


async def test_a_request_without_host_is_forwarded_without_empty_names(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await line.read_to_end()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert field(it.heads[0], "Forwarded") == [b"for=127.0.0.1;proto=http"]
        assert field(it.heads[0], "X-Forwarded-Host") == []
        assert len(field(it.heads[0], "Host")) == 1


@pytest.mark.parametrize(
    ("sent", "got"),
    [("/api/x?y", b"/x?y"), ("/API/X", b"/X"), ("/api", b"/"), ("/api/", b"/"), ("/api?q", b"/?q"),
     ("/api/%2e%2e/api/a%2Fb", b"/a%2Fb")],
)  # fmt: skip
async def test_strip_prefix(tmp_path: Path, sent: str, got: bytes) -> None:
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites: {{main: {{urls: ["http://*/"], routes: {{/api/: {{pool: app, strip_prefix: true}}}}}}}}
pools: {{app: {{targets: ["{it.url}"]}}}}
"""
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            await line.get(sent)
            assert it.heads[0].split(b" ")[1] == got


async def test_the_forwarded_path_is_the_canonical_one(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for sent in ("/a/./b/../C%2fd%7e?x=/../%2e", "http://a.test/z", "/%41"):
            await line.get(sent)
        await line.ask(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")
        got = [head.split(b" ")[1] for head in it.heads]
        assert got == [b"/a/C%2Fd~?x=/../%2e", b"/z", b"/A", b"*"]


# ---------------------------------------------------------------------------------------------------- response fields


async def answered(tmp_path: Path, answer: bytes, request: bytes = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") -> bytes:
    """What a client gets for a scripted answer; ends with the connection."""

    async def script(line: Line) -> None:
        await line.head()
        await line.send(answer)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(request)
        head, body = await line.message()
        return head + body


async def test_the_answer_byte_by_byte(tmp_path: Path) -> None:
    got = await answered(
        tmp_path,
        b"HTTP/1.1 299 Odd Reason\r\nserver: x\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-CaSe: v\r\n"
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 3\r\nVia: 1.0 inner\r\n\r\nabc",
    )
    assert got == (
        b"HTTP/1.1 299 Odd Reason\r\nserver: x\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-CaSe: v\r\n"
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 3\r\nVia: 1.0 inner, 1.1 frontd\r\n\r\nabc"
    )


async def test_hop_by_hop_fields_of_the_answer_end_here(tmp_path: Path) -> None:
    got = await answered(
        tmp_path,
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Named, content-length\r\nX-Named: 1\r\nKeep-Alive: timeout=1\r\n"
        b"Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
    )
    names = {one.partition(b":")[0].lower() for one in fields(got.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")}
    assert names == {b"x-kept", b"date", b"via", b"content-length"}  # nobody can take the framing away
    assert got.endswith(b"\r\n\r\nok")


async def test_an_answer_until_close_is_chunked_for_http_1_1(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.0 200 OK\r\n\r\nfirst ")
        await settled()
        await line.send(b"second")

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert field(head, "Transfer-Encoding") == [b"chunked"]
        assert body == b"first second"
        head, body = await line.get()  # the client's connection is kept, the app's was not
        assert body == b"first second"
        assert it.connections == 2
        old = await stage.connect()
        await old.send(b"GET / HTTP/1.0\r\n" + HOST + b"\r\n")
        raw = await old.read_to_end()
        assert field(raw, "Transfer-Encoding") == []
        assert raw.endswith(b"\r\n\r\nfirst second")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%s\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Extra: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("announced", "trailers"),
    [(b"", b"\r\n"), (b"Trailer: X-Sum\r\n", b"X-Sum: 1\r\n\r\n"),
     (b"Trailer: x-extra, X-Sum\r\n", b"X-Sum: 1\r\nX-Extra: 2\r\n\r\n")],
)  # fmt: skip
async def test_trailers_of_an_answer_pass_when_announced(tmp_path: Path, announced: bytes, trailers: bytes) -> None:
    async with app(CHUNKED % announced) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(2):
            await line.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            assert field(await line.head(), "Trailer") == [one.strip() for one in announced[9:].splitlines()]
            assert await line.read_until(b"0\r\n") == b"2\r\nok\r\n0\r\n"
            assert await line.read_exactly(len(trailers)) == trailers
        assert it.connections == 1


async def test_trailers_of_a_request_pass_when_announced(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def script(line: Line) -> None:
        for _ in range(2):
            got.append(await line.head())
            got.append(await line.read_until(b"0\r\n"))
            got.append(await line.read_until(b"\r\n"))
            while not got[-1].endswith(b"\r\n\r\n") and got[-1] != b"\r\n":
                got[-1] += await line.read_until(b"\r\n")
            await line.send(OK)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        body = b"3\r\nabc\r\n0\r\nX-Sum: 7\r\nHost: evil\r\nX-Other: 1\r\n\r\n"
        post = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n%s\r\n" + body
        await line.ask(post.replace(b"%s", b"Trailer: X-Sum, Host\r\n"))
        await line.ask(post.replace(b"%s", b""))
    assert got[1:3] == [b"3\r\nabc\r\n0\r\n", b"X-Sum: 7\r\n\r\n"]
    assert got[4:6] == [b"3\r\nabc\r\n0\r\n", b"\r\n"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n",
    ],
)
async def test_answers_without_a_body_keep_both_connections(tmp_path: Path, answer: bytes) -> None:
    async with app(answer) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(3):
            await line.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            head = await line.head()
            assert head.startswith(answer[:12])
            assert field(head, "Transfer-Encoding") == []
            if b" 204 " in answer:
                assert field(head, "Content-Length") == []
        assert line.buffer == b""
        assert it.connections == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 500\r\n", b"Transfer-Encoding: chunked\r\n", b""])
async def test_head_has_the_fields_and_no_body(tmp_path: Path, framing: bytes) -> None:
    async with app(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n") as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(2):
            await line.send(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
            head = await line.head()
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            if framing.startswith(b"Content"):
                assert field(head, "Content-Length") == [b"500"]
        await settled()
        assert line.buffer == b""
        assert it.connections == 1


# ---------------------------------------------------------------------------------------------------- interim answers


async def test_early_hints_pass_and_100_does_not(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        while await line.head():
            await line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: x\r\nx: 1\r\n\r\n")
            await line.send(b"HTTP/1.1 110 What\r\n\r\n")
            await line.send(OK)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        hints = await line.head()
        assert hints.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n")
        assert b"x: 1" not in hints
        head, body = await line.message()
        assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
        await line.send(b"GET / HTTP/1.0\r\n" + HOST + b"\r\n")  # 1.0 knows no interim answers
        assert (await line.head()).startswith(b"HTTP/1.1 200 OK")
        assert it.connections == 1


async def test_continue_is_said_by_the_front_when_somebody_reads(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await line.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        _, body = await line.ask(b"abc")
        assert body == b"ok"
        assert it.bodies == [b"abc"]
        assert field(it.heads[0], "Expect") == []
