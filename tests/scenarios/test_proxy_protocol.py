"""Listeners behind a balancer: the PROXY protocol, and whose word about the client counts."""

from __future__ import annotations

import json
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from tests.net.pki import Pki
from tests.net.tlsclient import Secure, Tls, all_gone, client_context, secure_site
from tests.wire import App, Line, Stage, app, front, one_pool

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(source: str, destination: str, ports: tuple[int, int] = (56324, 443), *, more: bytes = b"") -> bytes:
    """A version 2 header for TCP; `more` are TLVs."""
    first, second = ip_address(source), ip_address(destination)
    body = first.packed + second.packed + struct.pack("!HH", *ports) + more
    return SIGNATURE + bytes((0x21, 0x11 if first.version == 4 else 0x21)) + struct.pack("!H", len(body)) + body


def behind_a_balancer(target: str, extra: str = "") -> str:
    text = one_pool(target, extra=extra)
    return text.replace("{http: {port: 0}}", "{http: {port: 0, proxy_protocol: true}}")


V1, V2 = b"PROXY TCP4 192.0.2.1 198.51.100.9 1 2\r\n", version_2("192.0.2.1", "198.51.100.9")
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def forwarded(it: App) -> bytes:
    """X-Forwarded-For as the app got it last."""
    return it.heads[-1].split(b"X-Forwarded-For: ")[1].split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("header", "client", "local"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 443\r\n", "192.0.2.1", "198.51.100.9"),
        (b"PROXY TCP6 2001:DB8::1 2001:db8::2 1 65535\r\n", "2001:db8::1", "2001:db8::2"),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.9 1 2\r\n", "192.0.2.1", "198.51.100.9"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1", "127.0.0.1"),
        (b"PROXY UNKNOWN ffff:f... 65535 65535\r\n", "127.0.0.1", "127.0.0.1"),
        (version_2("192.0.2.1", "198.51.100.9"), "192.0.2.1", "198.51.100.9"),
        (version_2("2001:db8::1", "2001:db8::2"), "2001:db8::1", "2001:db8::2"),
        (version_2("::ffff:192.0.2.1", "::ffff:198.51.100.9"), "192.0.2.1", "198.51.100.9"),
        (version_2("192.0.2.1", "198.51.100.9", more=b"\x04\x01\x00" + b"\0" * 256), "192.0.2.1", "198.51.100.9"),
        (LOCAL, "127.0.0.1", "127.0.0.1"),
        (SIGNATURE + b"\x21\x00\x00\x03\x04\x00\x00", "127.0.0.1", "127.0.0.1"),  # AF_UNSPEC with a TLV
        (SIGNATURE + b"\x21\x31\x00\xd8" + b"/" * 216, "127.0.0.1", "127.0.0.1"),  # a Unix socket
    ],
)
async def test_the_client_is_who_the_header_says(tmp_path: Path, header: bytes, client: str, local: str) -> None:
    async with app() as it, front(behind_a_balancer(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.ask(header + GET)
        assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
        assert forwarded(it) == client.encode()
        assert f"for={client}".encode() in it.heads[-1] or f'for="[{client}]"'.encode() in it.heads[-1]
        assert (await line.get())[1] == b"ok"  # it holds for the whole connection
        assert forwarded(it) == client.encode()
        (connection,) = stage.front.service.connections
        assert connection.client.local_address == local  # type: ignore[attr-defined]
        assert {json.loads(entry)["client"] for entry in stage.log().splitlines()} == {client}


@pytest.mark.parametrize(
    "garbage",
    [
        GET,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PROXY TCP4 192.0.2.1 198.51.100.9 56324\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 443 9\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.9 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.9 +1 443\r\n",
        b"PROXY TCP4 192.0.2.999 198.51.100.9 1 443\r\n",
        b"PROXY TCP5 192.0.2.1 198.51.100.9 1 443\r\n",
        b"PROXY \r\n",
        b"PROXY " + b"x" * 200,
        b"proxy TCP4 192.0.2.1 198.51.100.9 1 443\r\n",
        SIGNATURE + b"\x31\x11\x00\x0c" + b"\0" * 12,  # version 3
        SIGNATURE + b"\x22\x11\x00\x0c" + b"\0" * 12,  # an unknown command
        SIGNATURE + b"\x21\x11\x00\x0b" + b"\0" * 11,  # too short for its family
        SIGNATURE + b"\x21\x11\xff\xff",  # longer than any
        SIGNATURE[:-1] + b"X" + b"\x21\x11\x00\x0c" + b"\0" * 12,
    ],
)
async def test_no_header_no_service(tmp_path: Path, garbage: bytes) -> None:
    async with app() as it, front(behind_a_balancer(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(garbage)
        assert await line.read_to_end() in (b"", b"<reset>")
        await all_gone(stage)
        assert stage.reasons == {"ProxyHeader": 1}
        assert it.connections == 0
        assert " ProxyHeader - " in stage.log("error")


@pytest.mark.parametrize("part", [b"", b"P", V1[:-2], SIGNATURE[:5], V2[:15], V2[:-1]])
async def test_a_header_that_never_ends(tmp_path: Path, autojump_clock: object, part: bytes) -> None:
    text = behind_a_balancer("http://127.0.0.1:1", "timeouts: {header_wait: 7s}")
    async with front(text, tmp_path) as stage:
        line = await stage.connect()
        began = trio.current_time()
        await line.send(part)
        assert await line.read_to_end() in (b"", b"<reset>")
        assert trio.current_time() - began == pytest.approx(7)
        assert stage.reasons == {"Timer_HeaderWait": 1}


async def test_a_connection_that_ends_inside_the_header(tmp_path: Path) -> None:
    async with front(behind_a_balancer("http://127.0.0.1:1"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PROXY TCP4 ")
        await line.close()
        await all_gone(stage)
        assert stage.reasons == {"ProxyHeader": 1}


@pytest.mark.parametrize("header", [V1, V2])
async def test_in_small_pieces(tmp_path: Path, header: bytes) -> None:
    async with app() as it, front(behind_a_balancer(it.url), tmp_path) as stage:
        line = await stage.connect()
        for at in range(len(header)):
            await line.send(header[at : at + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert (await line.get())[1] == b"ok"
        assert forwarded(it) == b"192.0.2.1"


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("header", [V1, V2])
async def test_with_tls_behind_it(pki: Pki, tmp_path: Path, header: bytes, together: bool) -> None:
    async with app() as it:
        text = secure_site(it.url, pki.entry("a")).replace("{port: 0}", "{port: 0, proxy_protocol: true}")
        async with front(text, tmp_path) as stage:
            line = await stage.connect("https")
            secure = Secure(line.stream, client_context(pki), "a.test")
            if together:
                await line.send(header + secure.hello())
            else:
                await line.send(header)
                await trio.testing.wait_all_tasks_blocked()
            await secure.do_handshake()
            assert (await Tls(secure).get())[1] == b"ok"
            assert forwarded(it) == b"192.0.2.1"
            assert b"X-Forwarded-Proto: https\r\n" in it.heads[-1]


async def test_without_the_setting_the_header_is_nonsense(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PROXY TCP4 192.0.2.1 198.51.100.9 1 2\r\n" + GET)
        assert (await line.read_to_end()).startswith(b"HTTP/1.1 400 ")
        assert it.heads == []


# ---------------------------------------------------------------------------------------------------- trusted proxies


async def ask(stage: Stage, *fields: str) -> None:
    line = await stage.connect()
    assert (await line.get("/", *fields))[1] == b"ok"
    await line.close()


async def test_strangers_are_not_believed(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        await ask(
            stage,
            "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.test",
            "Forwarded: for=203.0.113.9;proto=https", "X-Real-IP: 203.0.113.9", "X-Forwarded-Port: 443",
        )  # fmt: skip
        head = it.heads[-1]
        assert forwarded(it) == b"127.0.0.1"
        assert b"203.0.113.9" not in head
        assert b"evil" not in head
        assert b"X-Forwarded-Proto: http\r\n" in head
        assert b"X-Forwarded-Host: a.test\r\n" in head
        assert b"Forwarded: for=127.0.0.1;host=a.test;proto=http\r\n" in head
        assert json.loads(stage.log())["client"] == "127.0.0.1"


TRUST = "trusted_proxies: [127.0.0.0/8, 10.0.0.0/8, '2001:db8::/32']"


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ([], "127.0.0.1"),
        (["X-Forwarded-For: 203.0.113.9"], "203.0.113.9"),
        (["X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),  # the rightmost that is not trusted
        (["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.9,10.1.2.3"], "203.0.113.9"),
        (["X-Forwarded-For: 10.9.9.9, 10.1.2.3"], "10.9.9.9"),  # all trusted: the first of them
        (["X-Forwarded-For: 203.0.113.9:4711, [2001:db8::5]:99"], "203.0.113.9"),
        (["X-Forwarded-For: 2001:DB9::7"], "2001:db9::7"),
        (["X-Forwarded-For: ::ffff:203.0.113.9"], "203.0.113.9"),
        (["X-Forwarded-For: 6.6.6.6, unknown, 10.1.2.3"], "unknown"),  # what is no address is nobody
        (["X-Forwarded-For: 6.6.6.6, , ;"], "unknown"),
        (["Forwarded: for=6.6.6.6, for=203.0.113.9;proto=https;by=10.0.0.1, For=10.1.2.3"], "203.0.113.9"),
        (['Forwarded: for="[2001:db9::7]:4711"'], "2001:db9::7"),
        (["Forwarded: for=_hidden"], "unknown"),
    ],
)
async def test_what_a_trusted_proxy_says(tmp_path: Path, fields: list[str], client: str) -> None:
    async with app() as it, front(one_pool(it.url, extra=TRUST), tmp_path) as stage:
        await ask(stage, *fields)
        before = [field.partition(": ")[2] for field in fields if field.startswith("X-")]
        assert forwarded(it) == ", ".join([*before, "127.0.0.1"]).encode()
        assert json.loads(stage.log())["client"] == client


async def test_the_header_of_the_balancer_decides_who_is_trusted(tmp_path: Path) -> None:
    text = behind_a_balancer("http://127.0.0.1:1", TRUST).replace("http://127.0.0.1:1", "{}")
    async with app() as it, front(text.replace("{}", it.url, 1), tmp_path) as stage:
        for source, client in (("192.0.2.1", "192.0.2.1"), ("::ffff:10.7.7.7", "203.0.113.9")):
            line: Line = await stage.connect()
            await line.send(version_2(source, "::1" if ":" in source else "127.0.0.1"))
            assert (await line.get("/", "X-Forwarded-For: 203.0.113.9"))[1] == b"ok"
            await line.close()
            await all_gone(stage)
            assert (b"203.0.113.9" in forwarded(it)) == (client == "203.0.113.9")
        assert [json.loads(entry)["client"] for entry in stage.log().splitlines()] == ["192.0.2.1", "203.0.113.9"]
