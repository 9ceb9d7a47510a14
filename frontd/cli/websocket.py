"""One message to a WebSocket and its answer: `python -m frontd.cli.websocket --cacert CA URL MESSAGE`.

Why it exists: curl speaks WebSocket since 8.11, and older ones (Debian 12 has 7.88) cannot send a frame.  Only the
standard library is used.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import socket
import ssl
from urllib.parse import urlsplit

from frontd.cli.sample_websocket import (
    BINARY,
    CLOSE,
    NORMAL,
    PING,
    PONG,
    TEXT,
    Frames,
    WebSocketError,
    accept_value,
    close_frame,
    frame,
)

TIMEOUT = 30.0  # seconds per read


class HandshakeError(Exception):
    """The server did not switch to WebSocket; the text is the answer it gave instead."""


def exchange(url: str, message: str, cafile: str | None = None) -> str:
    """Connect to a ``ws://`` or ``wss://`` URL, send `message` as text, return the answer, close in order.

    Raises `OSError` (no connection, TLS included), `HandshakeError`, `WebSocketError`.
    """
    parts = urlsplit(url)
    secure = {"ws": False, "http": False, "wss": True, "https": True}[parts.scheme]
    host, port = parts.hostname or "localhost", parts.port or (443 if secure else 80)
    with socket.create_connection((host, port), timeout=TIMEOUT) as plain:
        if not secure:
            return _talk(plain, parts.netloc, parts.path or "/", message)
        with ssl.create_default_context(cafile=cafile).wrap_socket(plain, server_hostname=host) as encrypted:
            answer = _talk(encrypted, parts.netloc, parts.path or "/", message)
            with contextlib.suppress(OSError):
                encrypted.unwrap()  # TLS wants a goodbye of its own
            return answer


def _talk(sock: socket.socket, host: str, path: str, message: str) -> str:
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode("ascii")
    )
    head, rest = _read_head(sock)
    lines = head.split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if " 101" not in lines[0] or fields.get("sec-websocket-accept") != accept_value(key):
        raise HandshakeError(head)
    sock.sendall(frame(TEXT, message.encode(), masked=True))
    frames = Frames(masked=False, buffer=bytearray(rest))
    answer: str | None = None
    while True:
        while (one := frames.next()) is not None:
            opcode, payload = one
            if opcode in (TEXT, BINARY) and answer is None:
                answer = payload.decode("utf-8", "replace")
                sock.sendall(close_frame(NORMAL, masked=True))
            elif opcode == PING:
                sock.sendall(frame(PONG, payload, masked=True))
            elif opcode == CLOSE and answer is not None:
                with contextlib.suppress(OSError):
                    while sock.recv(65536):  # the server ends the connection (RFC 6455 7.1.1)
                        pass
                return answer
            elif opcode == CLOSE:
                raise WebSocketError(NORMAL, "the server closed the WebSocket without an answer")
        data = sock.recv(65536)
        if not data:
            raise WebSocketError(NORMAL, "the connection ended without a close frame")
        frames.buffer += data


def _read_head(sock: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            raise HandshakeError(data.decode("latin-1") or "the connection ended without an answer")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def main(arguments: list[str] | None = None) -> None:
    """Print the answer; exit 1 with a sentence when there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m frontd.cli.websocket", description="Send one message to a WebSocket, print the answer."
    )
    parser.add_argument("--cacert", metavar="FILE", help="PEM file of the CA to trust, as with curl")
    parser.add_argument("url", help="wss://… or ws://…")
    parser.add_argument("message")
    options = parser.parse_args(arguments)
    if urlsplit(options.url).scheme not in ("ws", "wss", "http", "https"):
        parser.error(f"{options.url!r} is not a WebSocket URL such as wss://localhost:8443/echo")
    try:
        print(exchange(options.url, options.message, options.cacert))
    except (OSError, HandshakeError, WebSocketError) as error:
        raise SystemExit(f"{options.url}: {error}") from None


if __name__ == "__main__":
    main()
