"""The first bytes of a connection: real ClientHellos made by OpenSSL, in all portions and fragments; PROXY headers."""

from __future__ import annotations

import socket
import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.protocol.hello import (
    MAX_HELLO,
    MAX_PROXY_1,
    MAX_PROXY_2,
    BadHello,
    ClientHello,
    Need,
    ProxyHeader,
    read_client_hello,
    read_proxy_header,
)


def real_hello(name: str | None, *, tls12: bool = False, alpn: int = 1) -> bytes:
    """The first flight of a client of the ssl module."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"] + [f"protocol-{number:04}" for number in range(alpn - 1)])
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def message_of(hello: bytes) -> bytes:
    """The handshake message in a hello of one record."""
    (length,) = struct.unpack_from("!H", hello, 3)
    assert len(hello) == 5 + length
    return hello[5:]


def record(part: bytes) -> bytes:
    return b"\x16\x03\x01" + len(part).to_bytes(2) + part


def in_records(message: bytes, size: int) -> bytes:
    """A handshake message fragmented over records of `size` bytes (RFC 8446 5.1)."""
    return b"".join(record(message[at : at + size]) for at in range(0, len(message), size))


HELLO = real_hello("Shop.Example.com")
SHOP = ClientHello("shop.example.com")


@pytest.mark.parametrize("tls12", [False, True])
def test_the_name_of_a_real_hello(tls12: bool) -> None:
    assert read_client_hello(real_hello("Shop.Example.com", tls12=tls12)) == SHOP
    assert read_client_hello(real_hello(None, tls12=tls12)) == ClientHello(None)
    assert read_client_hello(real_hello("xn--bcher-kva.example", tls12=tls12)) == ClientHello("xn--bcher-kva.example")


def test_a_client_that_asks_for_an_address_names_none() -> None:
    assert read_client_hello(real_hello("127.0.0.1")) == ClientHello(None)


def test_the_final_dot_of_a_name_does_not_count() -> None:
    assert read_client_hello(HELLO.replace(b"Shop.Example.com", b"Shop.Example.co.")) == ClientHello("shop.example.co")


def test_what_follows_a_hello_does_not_matter() -> None:
    assert read_client_hello(HELLO + b"\x14\x03\x03\x00\x01\x01" + b"early data") == SHOP


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 64, 200, 16384])
def test_every_split_of_every_fragmentation_needs_more_and_never_too_much(size: int) -> None:
    whole = in_records(message_of(HELLO), size)
    assert read_client_hello(whole) == SHOP
    for end in range(len(whole)):
        found = read_client_hello(whole[:end])
        assert isinstance(found, Need)
        assert end < found.size <= len(whole)  # more than is there, or it spins; not more than comes, or it hangs


@pytest.mark.parametrize("size", [1, 3, 16384])
def test_a_dripping_client_wakes_nobody_often(size: int) -> None:
    whole, looks, have = in_records(message_of(HELLO), size), 0, 1
    while isinstance(found := read_client_hello(whole[:have]), Need):
        looks += 1
        have = found.size
    assert found == SHOP
    assert looks <= (40 if size < 4 else 3)


def test_a_hello_of_almost_16_kib_is_read() -> None:
    big = real_hello("shop.example.com", alpn=1000)
    assert 14000 < len(big) <= MAX_HELLO
    assert read_client_hello(big) == SHOP
    assert read_client_hello(in_records(message_of(big), 5000)) == SHOP


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"G",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x80\x2e\x01\x03\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        record(b"\x02"),
        record(b"\x01\x00\x00\x00"),
        record(b"\x01\x00\x00\x05hello"),
        record(b"\x01\xff\xff\xff" + b"x" * 100),
        record(b"\x01\x00\x40\x00" + b"x" * 10),
        record(b"\x01") + b"\x17\x03\x01\x00\x01x",
        record(b"\x01") + b"G",
        in_records(b"\x01\x00\x3f\xf0" + b"x" * 16368, 1),
    ],
)
def test_what_is_no_hello_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadHello):
        read_client_hello(data)


def with_extensions(extensions: bytes) -> bytes:
    body = (
        b"\x03\x03" + b"r" * 32 + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + len(extensions).to_bytes(2) + extensions
    )
    return record(b"\x01" + len(body).to_bytes(3) + body)


def server_name(name: bytes, kind: int = 0) -> bytes:
    entry = bytes([kind]) + len(name).to_bytes(2) + name
    inner = len(entry).to_bytes(2) + entry
    return b"\x00\x00" + len(inner).to_bytes(2) + inner


def test_names_in_hellos_made_by_hand() -> None:
    assert read_client_hello(with_extensions(server_name(b"A.test"))) == ClientHello("a.test")
    assert read_client_hello(with_extensions(b"\x00\x17\x00\x00" + server_name(b"a.test"))) == ClientHello("a.test")
    assert read_client_hello(with_extensions(server_name(b""))) == ClientHello(None)
    assert read_client_hello(with_extensions(server_name(b"a.test", kind=1))) == ClientHello(None)
    assert read_client_hello(with_extensions(b"\x00\x00\x00\x00")) == ClientHello(None)
    assert read_client_hello(with_extensions(b"")) == ClientHello(None)
    with pytest.raises(BadHello):
        read_client_hello(with_extensions(server_name(b"\xe4.test")))


def test_a_hello_without_extensions_names_nobody() -> None:
    body = b"\x03\x03" + b"r" * 32 + b"\x00" + b"\x00\x02\x00\x2f" + b"\x01\x00"
    assert read_client_hello(record(b"\x01" + len(body).to_bytes(3) + body)) == ClientHello(None)


@given(st.binary(max_size=60), st.integers(0, 200), st.booleans())
def test_no_bytes_do_more_than_be_refused(junk: bytes, at: int, start: bool) -> None:
    """Garbage, alone or in the middle of a real hello: an answer, `BadHello`, or a need for more than is there."""
    data = HELLO[:at] + junk + HELLO[at + len(junk) :] if start else junk
    try:
        found = read_client_hello(data)
    except BadHello:
        return
    if isinstance(found, Need):
        assert len(data) < found.size <= MAX_HELLO


# ------------------------------------------------------------------------------------------------------- PROXY


def v2(command: int, family: int, payload: bytes) -> bytes:
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([command, family]) + len(payload).to_bytes(2) + payload


FOUR = socket.inet_pton(socket.AF_INET, "203.0.113.7") + socket.inet_pton(socket.AF_INET, "10.0.0.1")
SIX = socket.inet_pton(socket.AF_INET6, "2001:db8::7") + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
PORTS = b"\xc3\x50\x01\xbb"  # 50000, 443

PROXY_HEADERS = [
    (b"PROXY TCP4 203.0.113.7 10.0.0.1 50000 443\r\n", ("203.0.113.7", 50000), ("10.0.0.1", 443)),
    (b"PROXY TCP6 2001:DB8::7 2001:db8:0::1 50000 443\r\n", ("2001:db8::7", 50000), ("2001:db8::1", 443)),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None, None),
    (v2(0x21, 0x11, FOUR + PORTS), ("203.0.113.7", 50000), ("10.0.0.1", 443)),
    (v2(0x21, 0x21, SIX + PORTS), ("2001:db8::7", 50000), ("2001:db8::1", 443)),
    (v2(0x21, 0x11, FOUR + PORTS + b"\x04\x00\x03abc"), ("203.0.113.7", 50000), ("10.0.0.1", 443)),  # with a TLV
    (v2(0x20, 0x00, b""), None, None),  # LOCAL: a health check
    (v2(0x20, 0x11, FOUR + PORTS), None, None),
    (v2(0x21, 0x00, b""), None, None),
    (v2(0x21, 0x31, b"/" * 216), None, None),  # Unix sockets
]


@pytest.mark.parametrize(("header", "source", "destination"), PROXY_HEADERS)
def test_a_proxy_header_is_read_however_it_is_cut(
    header: bytes, source: tuple[str, int] | None, destination: tuple[str, int] | None
) -> None:
    assert read_proxy_header(header + b"GET /") == ProxyHeader(len(header), source, destination)
    for end in range(len(header)):
        found = read_proxy_header(header[:end])
        assert isinstance(found, Need)
        assert end < found.size <= len(header)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXYTCP4",
        b"proxy TCP4",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 50000\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 50000 443 1\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1  50000 443\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 50000 443\r\n",
        b"PROXY TCP6 203.0.113.7 10.0.0.1 50000 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 65536 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 -1 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 +1 443\r\n",
        b"PROXY TCP4 shop.example 10.0.0.1 1 443\r\n",
        b"PROXY UDP4 203.0.113.7 10.0.0.1 1 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 \xb2 443\r\n",
        b"PROXY " + b"x" * (MAX_PROXY_1 - 6),
        b"\r\n\r\n\0\r\nQUIX\n",
        v2(0x11, 0x11, FOUR + PORTS),
        v2(0x22, 0x11, FOUR + PORTS),
        v2(0x21, 0x11, FOUR + PORTS[:3]),
        v2(0x21, 0x21, FOUR + PORTS),
        v2(0x21, 0x11, b"x" * (MAX_PROXY_2 - 15)),
    ],
)
def test_what_is_no_proxy_header_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadHello):
        read_proxy_header(data)


def test_a_scope_never_gets_into_an_address() -> None:
    header = b'PROXY TCP6 fe80::1%";evil=1 fe80::2 50000 443\r\n'
    try:
        found = read_proxy_header(header)
    except BadHello:
        return
    assert found == ProxyHeader(len(header), ("fe80::1", 50000), ("fe80::2", 443))


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda data: v2(0x21, 0x11, data)))
def test_no_bytes_make_a_proxy_header_loop_or_crash(data: bytes) -> None:
    try:
        found = read_proxy_header(data)
    except BadHello:
        return
    if isinstance(found, Need):
        assert len(data) < found.size <= MAX_PROXY_2
    else:
        assert found.size <= len(data)
