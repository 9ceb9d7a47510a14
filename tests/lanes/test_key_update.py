"""TLS 1.3 key updates that the peer wants answered while nothing can be written (RFC 8446 4.6.3).

OpenSSL puts its own before the next record that is written; what is read, and the answer, must not get lost over that.
"""

from __future__ import annotations

import _ssl
import ctypes
import socket
from pathlib import Path

import pytest
import trio

from frontd.lanes.connection import Connection
from tests.net.pki import Pki
from tests.net.tlsclient import Tls, client_context, secure_site, tls_line
from tests.wire import Stage, app, front, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
REQUESTED = 1


def ask_for_new_keys(line: Tls) -> None:
    """The next thing that is sent is a key update that wants one in return."""
    library = ctypes.CDLL(_ssl.__file__)
    library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    within = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)  # behind the weak reference to the socket
    found = ctypes.c_void_p.from_address(id(line.tls._sslobj) + within)  # type: ignore[attr-defined]
    assert library.SSL_key_update(found, REQUESTED) == 1


async def stuff(stage: Stage) -> int:
    """Fill what the kernel takes for the only client, beneath TLS; how many bytes that were."""
    (connection,) = stage.front.service.connections
    assert isinstance(connection, Connection)
    sock = connection.stream.sock
    assert not connection.stream.pending
    size, found = 0, -1
    while size > found:  # both kernels may give such a connection more room
        found = size
        await settled()
        for part in (b"\0" * 65536, b"\0"):
            try:
                while True:
                    size += socket.socket.send(sock, part)
            except BlockingIOError:
                pass
    return size


async def unstuff(line: Tls, size: int) -> None:
    """Take what was stuffed out of the way of TLS."""
    while size:
        size -= len(await line.secure.under.receive_some(min(size, 65536)))


@pytest.mark.parametrize("lane", ["reactor", "task"])
async def test_a_request_behind_a_key_update_that_cannot_be_answered_yet(pki: Pki, tmp_path: Path, lane: str) -> None:
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, version="1.3"), "a.test")
        assert (await line.get())[1] == b"ok"
        rest = GET
        if lane == "task":  # the next head is waited for where the body before it was
            post = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\n12"
            await line.send(post)
            await settled()
            await line.send(b"34" + GET[:9])
            assert (await line.message())[1] == b"ok"
            rest = GET[9:]
        await settled()
        stuffed = await stuff(stage)
        ask_for_new_keys(line)
        await line.send(rest)
        with trio.fail_after(5):
            await settled()  # nobody turns in circles
            other = await tls_line(stage, client_context(pki), "a.test")
            assert (await other.get())[1] == b"ok"
            await other.close()
            await unstuff(line, stuffed)
            assert (await line.message())[1] == b"ok"
            assert (await line.get())[1] == b"ok"
