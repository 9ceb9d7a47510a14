"""The first bytes of a connection: the TLS ClientHello, and the PROXY protocol header before it.

Pure readers over a peeked buffer.  `read_client_hello` walks TLS records until the handshake length is there (the
message may span records, RFC 8446 5.1) and takes the server name out of it (RFC 6066 3).  `read_proxy_header` reads
versions 1 and 2 of the PROXY protocol (haproxy.org, proxy-protocol.txt).

Both answer `Need` with the buffer length at which looking again makes sense, so that a client that drips bytes costs
nothing in between.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from frontd.model.addresses import plain_ip

MAX_HELLO = 16384 + 5  # bytes; real hellos are 0.3-2 KiB, post-quantum key shares included
HANDSHAKE = 0x16
CLIENT_HELLO = 1
SERVER_NAME = 0

# A fatal alert (level 2) in a TLS 1.2 record, which every version understands before it is negotiated.
ALERT_UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
ALERT_DECODE_ERROR = b"\x15\x03\x03\x00\x02\x02\x32"


class BadHello(Exception):
    """The bytes are not a ClientHello (or not a PROXY header)."""


@dataclass(slots=True, frozen=True)
class Need:
    """Look again when the buffer holds `size` bytes."""

    size: int


@dataclass(slots=True, frozen=True)
class ClientHello:
    """`server_name` in lower case without final dot, None when the client sent none."""

    server_name: str | None


def read_client_hello(buffer: bytes) -> ClientHello | Need:
    """The ClientHello at the front of `buffer`.  Raises `BadHello`."""
    message = bytearray()
    position = 0  # of the next record
    announced = 0  # bytes of the message in the records so far
    size = 4  # of the message, as far as known
    while True:
        if buffer[position : position + 1] not in (b"", b"\x16"):
            raise BadHello("not a TLS handshake record")
        if len(buffer) < position + 5:
            return _need(position, size - announced)
        _, _, length = struct.unpack_from("!BHH", buffer, position)
        if not 0 < length <= 16384:
            raise BadHello("a TLS record of no allowed length")
        message += buffer[position + 5 : position + 5 + length]
        if message and message[0] != CLIENT_HELLO:
            raise BadHello("not a ClientHello")
        position += 5 + length
        announced += length
        if len(message) >= 4:
            size = 4 + int.from_bytes(message[1:4])
            if len(message) >= size:
                return ClientHello(_server_name(bytes(message[4:size])))
        if len(buffer) < position:
            return _need(position, size - announced)


def _need(position: int, missing: int) -> Need:
    """What is missing after the record that ends at `position` comes behind at least one more record header.

    Asking for all of it at once keeps a hello in thousands of one-byte records from waking us for each of them.
    """
    size = position + 5 + missing if missing > 0 else position
    if size > MAX_HELLO:
        raise BadHello("the ClientHello is too large")
    return Need(size)


def _server_name(body: bytes) -> str | None:
    try:
        position = 2 + 32  # legacy_version, random
        position += 1 + body[position]  # legacy_session_id
        position += 2 + int.from_bytes(body[position : position + 2])  # cipher_suites
        position += 1 + body[position]  # legacy_compression_methods
        end = position + 2 + int.from_bytes(body[position : position + 2])
        position += 2
        while position + 4 <= min(end, len(body)):
            kind, length = struct.unpack_from("!HH", body, position)
            if kind == SERVER_NAME:
                return _host_name(body[position + 4 : position + 4 + length])
            position += 4 + length
    except IndexError:
        raise BadHello("the ClientHello breaks off") from None
    return None


def _host_name(extension: bytes) -> str | None:
    if len(extension) < 5 or extension[2] != 0:
        return None
    name = extension[5 : 5 + int.from_bytes(extension[3:5])]
    try:
        return name.decode("ascii").lower().rstrip(".") or None
    except UnicodeDecodeError:
        raise BadHello("the server name is not ASCII") from None


# ---------------------------------------------------------------------------------------------------- PROXY protocol

_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
MAX_PROXY_1 = 107  # bytes, from the specification
MAX_PROXY_2 = 16 + 536


@dataclass(slots=True, frozen=True)
class ProxyHeader:
    """`size` bytes to take off the stream; `source` and `destination` are (IP, port), None for LOCAL and UNKNOWN."""

    size: int
    source: tuple[str, int] | None
    destination: tuple[str, int] | None


def read_proxy_header(buffer: bytes) -> ProxyHeader | Need:
    """The PROXY header, version 1 or 2, at the front of `buffer`.  Raises `BadHello` when there is none."""
    if _SIGNATURE_2.startswith(buffer[:12]) and buffer:
        return _proxy_2(buffer)
    if b"PROXY ".startswith(buffer[:6]):
        return _proxy_1(buffer)
    raise BadHello("no PROXY protocol header")


def _proxy_1(buffer: bytes) -> ProxyHeader | Need:
    end = buffer.find(b"\r\n", 0, MAX_PROXY_1)
    if end < 0:
        if len(buffer) >= MAX_PROXY_1:
            raise BadHello("the PROXY line is too long")
        return Need(len(buffer) + 1)
    words = buffer[:end].decode("latin-1").split(" ")
    if words[1:2] == ["UNKNOWN"]:
        return ProxyHeader(end + 2, None, None)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise BadHello("the PROXY line is not 'PROXY TCP4|TCP6 source destination port port'")
    version = 4 if words[1] == "TCP4" else 6
    source, destination = _address(words[2], words[4], version), _address(words[3], words[5], version)
    return ProxyHeader(end + 2, source, destination)


def _address(text: str, port: str, version: int) -> tuple[str, int]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadHello("the PROXY header holds no IP address") from None
    if address.version != version or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadHello("the PROXY header's addresses do not fit its family")
    return plain_ip(address), int(port)


def _proxy_2(buffer: bytes) -> ProxyHeader | Need:
    if len(buffer) < 16:
        return Need(16)
    command, family, length = struct.unpack_from("!BBH", buffer, 12)
    size = 16 + length
    if command >> 4 != 2 or command & 15 > 1 or size > MAX_PROXY_2:
        raise BadHello("the PROXY version 2 header is not valid")
    if len(buffer) < size:
        return Need(size)
    if command & 15 == 0 or family >> 4 not in (1, 2):  # LOCAL (a health check of the balancer), or not an IP
        return ProxyHeader(size, None, None)
    width = 4 if family >> 4 == 1 else 16
    if length < 2 * width + 4:
        raise BadHello("the PROXY version 2 header is too short for its family")
    source, destination = plain_ip(buffer[16 : 16 + width]), plain_ip(buffer[16 + width : 16 + 2 * width])
    source_port, destination_port = struct.unpack_from("!HH", buffer, 16 + 2 * width)
    return ProxyHeader(size, (source, source_port), (destination, destination_port))
