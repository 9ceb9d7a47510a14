"""Clients as programs have them: Python's http.client, and a WebSocket library, both through TLS."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import socket
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest
import websockets.exceptions
from websockets.sync.client import ClientConnection, connect

from tests.live.house import House

# ---------------------------------------------------------------------------------------------------- http.client


@pytest.fixture
def https(house: House) -> Iterator[http.client.HTTPSConnection]:
    connection = http.client.HTTPSConnection("localhost", house.https_port, context=house.context, timeout=20)
    with closing(connection):
        yield connection


def answer(connection: http.client.HTTPSConnection) -> tuple[int, bytes]:
    response = connection.getresponse()
    return response.status, response.read()


def test_keep_alive(https: http.client.HTTPSConnection) -> None:
    """One socket for everything, also after bodies, chunks, HEAD and errors of the app."""
    sockets: list[socket.socket] = []
    for method, path, body in [
        ("GET", "/", None),
        ("POST", "/upload", b"x" * 100_000),
        ("HEAD", "/download?bytes=9", None),
        ("GET", "/nowhere", None),
        ("GET", "/download?bytes=200000", None),
        ("DELETE", "/", None),
    ]:
        https.request(method, path, body)
        status, _ = answer(https)
        assert status == (404 if path == "/nowhere" else 200)
        sockets.append(https.sock)
    assert all(one is other for one, other in pairwise(sockets))
    assert sockets[0] is not None


def test_chunked_upload(https: http.client.HTTPSConnection) -> None:
    chooser = random.Random(3)
    parts = [chooser.randbytes(chooser.choice((1, 2, 100, 5000, 70_000))) for _ in range(200)]
    https.request("POST", "/upload", iter(parts), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    status, body = answer(https)
    assert status == 200
    assert json.loads(body)["sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()
    https.request("GET", "/healthz")
    assert answer(https) == (200, b"ok\n")


def test_tls_as_promised(https: http.client.HTTPSConnection) -> None:
    https.connect()
    cipher = https.sock.cipher()
    assert https.sock.version() == "TLSv1.3"
    assert cipher is not None
    assert cipher[0].startswith("TLS_AES")


# ---------------------------------------------------------------------------------------------------- WebSocket


@pytest.fixture(params=["wss", "ws"])
def websocket(house: House, request: pytest.FixtureRequest) -> Iterator[ClientConnection]:
    scheme = "https" if request.param == "wss" else "http"
    url = house.url("/echo", scheme).replace("http", "ws", 1)
    with connect(url, max_size=None, proxy=None, ssl=house.context if scheme == "https" else None) as connection:
        yield connection


def test_echo(websocket: ClientConnection) -> None:
    for message in ("", "hello", "héllo 語 🙂", b"", bytes(range(256)), "x" * 125, "x" * 126, b"y" * 65536):
        websocket.send(message)
        assert websocket.recv(20) == message


def test_large_messages(websocket: ClientConnection) -> None:
    message = random.Random(5).randbytes(8 * 1024 * 1024)
    websocket.send(message)
    assert websocket.recv(30) == message
    websocket.send([message[:1_000_000], message[1_000_000:3_000_000], b""])  # in fragments
    assert websocket.recv(30) == message[:3_000_000]


def test_many_messages_in_order(websocket: ClientConnection) -> None:
    for number in range(500):
        websocket.send(str(number))
    assert [websocket.recv(20) for _ in range(500)] == [str(number) for number in range(500)]


def test_ping(websocket: ClientConnection) -> None:
    assert websocket.ping("are you there").wait(20)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going away"), (4001, "schluß")])
def test_close_codes(websocket: ClientConnection, code: int, reason: str) -> None:
    websocket.close(code, reason)
    with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
        websocket.recv(20)
    assert closed.value.rcvd is not None
    assert closed.value.sent is not None
    assert (closed.value.sent.code, closed.value.sent.reason) == (code, reason)
    assert closed.value.rcvd.code == code  # the app's answer came all the way


def test_a_path_that_speaks_no_websocket(house: House) -> None:
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(house.url("/").replace("http", "ws", 1), ssl=house.context, proxy=None)
    assert refused.value.response.status_code == 200
