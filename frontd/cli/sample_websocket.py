"""WebSocket frames (RFC 6455), enough for an echo: both sides of it, server and client.

`Frames` turns bytes into frames and knows no socket; `echo` serves them for the sample app.  Kept: masking is demanded
of clients and forbidden to servers (5.1), reserved bits and opcodes are refused (5.2), control frames are short and
whole (5.5) and may stand between fragments (5.4), text is UTF-8 (8.1), a close is answered by a close (5.5.1).
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL, PROTOCOL_ERROR, NOT_UTF8, TOO_BIG, GOING_AWAY = 1000, 1002, 1007, 1009, 1001
MAX_MESSAGE = 16 * 1024 * 1024  # bytes; an echo has to hold a message whole

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class WebSocketError(Exception):
    """The peer broke the protocol; `code` goes into the close frame (RFC 6455 7.4.1)."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(what)
        self.code = code


def accept_value(key: str) -> str:
    """``Sec-WebSocket-Accept`` for a ``Sec-WebSocket-Key`` (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()).decode()


def accept_key(method: str, fields: Mapping[str, str]) -> str | None:
    """The accept value for an opening handshake (lower-case field names), None when it is not one (RFC 6455 4.2.1)."""
    tokens = [token.strip().lower() for token in fields.get("connection", "").split(",")]
    key = fields.get("sec-websocket-key", "")
    try:
        sixteen = len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return None
    upgrade = fields.get("upgrade", "").lower() == "websocket" and "upgrade" in tokens
    if method == "GET" and upgrade and sixteen and fields.get("sec-websocket-version") == "13":
        return accept_value(key)
    return None


def mask_bytes(data: bytes, key: bytes) -> bytes:
    """XOR with the repeated 4-byte key (RFC 6455 5.3); its own inverse."""
    if not data:
        return b""
    repeated = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(data), "big")


def frame(opcode: int, payload: bytes, *, masked: bool = False, fin: bool = True) -> bytes:
    """One frame on the wire (RFC 6455 5.2); clients mask, servers do not."""
    bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + len(payload).to_bytes(2, "big")
    else:
        head += bytes([bit | 127]) + len(payload).to_bytes(8, "big")
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + mask_bytes(payload, key)


def close_frame(code: int, *, masked: bool = False) -> bytes:
    """A close frame with a status code."""
    return frame(CLOSE, code.to_bytes(2, "big"), masked=masked)


@dataclass(slots=True)
class Frames:
    """Bytes in, (opcode, payload) of whole messages and control frames out.

    `masked` says what the peer must do.  `next` returns None when more bytes are needed and raises `WebSocketError`.
    """

    masked: bool
    buffer: bytearray = field(default_factory=bytearray)
    opcode: int = CONTINUATION  # of the fragmented message under way; CONTINUATION when there is none
    message: bytearray = field(default_factory=bytearray)

    def next(self) -> tuple[int, bytes] | None:
        """The next message (fragments joined) or control frame."""
        while (one := self._frame()) is not None:
            fin, opcode, payload = one
            if opcode & 0x8:
                return opcode, payload
            if (opcode == CONTINUATION) != (self.opcode != CONTINUATION):
                raise WebSocketError(PROTOCOL_ERROR, "a fragment that continues nothing, or a message inside another")
            self.opcode = opcode or self.opcode
            self.message += payload
            if not fin:
                continue
            done, self.opcode, whole = self.opcode, CONTINUATION, bytes(self.message)
            self.message.clear()
            if done == TEXT:
                try:
                    whole.decode()
                except UnicodeDecodeError:
                    raise WebSocketError(NOT_UTF8, "text that is not UTF-8") from None
            return done, whole
        return None

    def _frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self.buffer
        if len(buffer) < 2:
            return None
        fin, opcode, length = bool(buffer[0] & 0x80), buffer[0] & 0x0F, buffer[1] & 0x7F
        if buffer[0] & 0x70 or opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise WebSocketError(PROTOCOL_ERROR, "a reserved bit or opcode")
        if bool(buffer[1] & 0x80) != self.masked:
            raise WebSocketError(PROTOCOL_ERROR, "a client masks its frames, a server does not")
        if opcode & 0x8 and (length > 125 or not fin):
            raise WebSocketError(PROTOCOL_ERROR, "a control frame is short and not fragmented")
        at = 2
        if length > 125:
            size = 2 if length == 126 else 8
            if len(buffer) < at + size:
                return None
            length, at = int.from_bytes(buffer[at : at + size], "big"), at + size
        if length + len(self.message) > MAX_MESSAGE:
            raise WebSocketError(TOO_BIG, "the message is too big")
        end = at + (4 if self.masked else 0) + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[end - length : end])
        if self.masked:
            payload = mask_bytes(payload, bytes(buffer[at : at + 4]))
        del buffer[:end]
        return fin, opcode, payload


def close_code(payload: bytes) -> int:
    """The code to answer a close frame with: the peer's own, or a protocol error (RFC 6455 7.4)."""
    if not payload:
        return NORMAL
    code = int.from_bytes(payload[:2], "big")
    valid = len(payload) >= 2 and (code in {1000, 1001, 1002, 1003, *range(1007, 1015)} or 3000 <= code <= 4999)
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        return NOT_UTF8
    return code if valid else PROTOCOL_ERROR


async def echo(stream: trio.abc.Stream, early: bytes, idle: set[trio.CancelScope]) -> None:
    """Send every message back until the peer closes or breaks the protocol.

    `idle` holds the scopes that are cancelled when the app stops; the peer is then told that it goes away.
    """
    import trio

    frames = Frames(masked=True, buffer=bytearray(early))
    with trio.CancelScope() as scope:
        idle.add(scope)
        try:
            while True:
                while (one := frames.next()) is not None:
                    opcode, payload = one
                    if opcode == CLOSE:
                        await stream.send_all(close_frame(close_code(payload)))
                        return
                    if opcode in (TEXT, BINARY):
                        await stream.send_all(frame(opcode, payload))
                    elif opcode == PING:
                        await stream.send_all(frame(PONG, payload))
                data = await stream.receive_some(65536)
                if not data:
                    return
                frames.buffer += data
        except WebSocketError as error:
            await stream.send_all(close_frame(error.code))
            return
        finally:
            idle.discard(scope)
    if scope.cancelled_caught:
        await stream.send_all(close_frame(GOING_AWAY))
