"""WebSocket frames byte by byte, and the little client against a server from elsewhere."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import pytest
import websockets.sync.server
from hypothesis import given
from hypothesis import strategies as st

from frontd.cli import devca, websocket
from frontd.cli.sample_websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MAX_MESSAGE,
    NORMAL,
    NOT_UTF8,
    PING,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    Frames,
    WebSocketError,
    accept_key,
    close_code,
    frame,
    mask_bytes,
)


def parse(data: bytes, *, masked: bool = True) -> list[tuple[int, bytes]]:
    frames = Frames(masked=masked, buffer=bytearray(data))
    found = []
    while (one := frames.next()) is not None:
        found.append(one)
    return found


def test_the_examples_of_the_rfc() -> None:  # RFC 6455 5.7
    assert parse(bytes.fromhex("818537fa213d7f9f4d5158")) == [(TEXT, b"Hello")]
    assert parse(bytes.fromhex("810548656c6c6f"), masked=False) == [(TEXT, b"Hello")]
    assert parse(bytes.fromhex("010348656c80026c6f"), masked=False) == [(TEXT, b"Hello")]
    assert frame(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")
    assert frame(BINARY, bytes(256)) == bytes.fromhex("827e0100") + bytes(256)
    assert frame(BINARY, bytes(65536)) == bytes.fromhex("827f0000000000010000") + bytes(65536)


@given(st.binary(max_size=400), st.binary(min_size=4, max_size=4))
def test_masking_is_its_own_inverse(data: bytes, key: bytes) -> None:
    masked = mask_bytes(data, key)
    assert masked == bytes(byte ^ key[i % 4] for i, byte in enumerate(data))
    assert mask_bytes(masked, key) == data


@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY, PING]), st.binary(max_size=125)), max_size=6), st.data())
def test_splits_do_not_matter(messages: list[tuple[int, bytes]], data: st.DataObject) -> None:
    messages = [(opcode, payload.hex().encode()[:125] if opcode == TEXT else payload) for opcode, payload in messages]
    wire = b"".join(frame(opcode, payload, masked=True) for opcode, payload in messages)
    frames, found = Frames(masked=True), []
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        frames.buffer += wire[:cut]
        wire = wire[cut:]
        while (one := frames.next()) is not None:
            found.append(one)
    assert found == messages


def test_a_ping_may_stand_between_fragments() -> None:
    wire = (
        frame(TEXT, b"a", masked=True, fin=False) + frame(PING, b"p", masked=True) + frame(0, b"b", masked=True)
    )
    assert parse(wire) == [(PING, b"p"), (TEXT, b"ab")]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(TEXT, b"x"), PROTOCOL_ERROR),  # a client that does not mask
        (b"\xc1\x80\0\0\0\0", PROTOCOL_ERROR),  # a reserved bit
        (b"\x83\x80\0\0\0\0", PROTOCOL_ERROR),  # a reserved opcode
        (b"\x09\x80\0\0\0\0", PROTOCOL_ERROR),  # a fragmented ping
        (b"\x89\xfe\x00\x7e", PROTOCOL_ERROR),  # a long ping
        (frame(CONTINUATION, b"x", masked=True), PROTOCOL_ERROR),  # continues nothing
        (frame(TEXT, b"a", masked=True, fin=False) + frame(TEXT, b"b", masked=True), PROTOCOL_ERROR),
        (frame(TEXT, b"\xff", masked=True), NOT_UTF8),
        (b"\x82\xff" + (MAX_MESSAGE + 1).to_bytes(8, "big"), TOO_BIG),
    ],
)
def test_what_breaks_the_protocol_is_refused(wire: bytes, code: int) -> None:
    with pytest.raises(WebSocketError) as caught:
        parse(wire)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", NORMAL),
        (b"\x03\xe9bye", 1001),
        (b"\x03", PROTOCOL_ERROR),
        (b"\x03\xed", PROTOCOL_ERROR),  # 1005 is never on the wire
        (b"\x0f\xa0", 4000),
        (b"\x03\xe8\xff", NOT_UTF8),
    ],
)
def test_the_code_that_answers_a_close(payload: bytes, code: int) -> None:
    assert close_code(payload) == code
    assert parse(frame(CLOSE, payload, masked=True)) == [(CLOSE, payload)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upgrade", "h2c"), ("connection", "close"), ("sec-websocket-version", "8"), ("sec-websocket-key", "short"),
        ("sec-websocket-key", "\xff"),
    ],
)  # fmt: skip
def test_a_handshake_with_one_thing_wrong_is_none(name: str, value: str) -> None:
    fields = {
        "upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    assert accept_key("GET", fields) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert accept_key("POST", fields) is None
    assert accept_key("GET", {**fields, name: value}) is None


def test_the_client_against_a_server_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = devca.ensure(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)

    def echo(connection: websockets.sync.server.ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with websockets.sync.server.serve(echo, "127.0.0.1", 0, ssl=context) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"wss://localhost:{server.socket.getsockname()[1]}/"
            websocket.main(["--cacert", str(made.ca), url, "hello"])
            with pytest.raises(SystemExit, match="CERTIFICATE_VERIFY_FAILED"):
                websocket.main([url, "hello"])
        finally:
            server.shutdown()
            thread.join()
    assert capsys.readouterr().out == "hello\n"
