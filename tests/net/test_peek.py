"""Half a hello costs nothing: wake-ups are counted, not guessed."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from frontd.model.errors import FrontdError, Reason
from frontd.net.peek import peek
from frontd.net.streams import Broken, Stream
from frontd.net.traps import carry
from frontd.protocol.hello import Need
from tests.net.pki import Pki
from tests.net.tlsclient import Secure, Tls, client_context, secure_site
from tests.wire import Line, app, front


class Steps(trio.abc.Instrument):
    """Counts the steps of every task but the one that began to count."""

    def __init__(self) -> None:
        self.mine = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is not self.mine


@contextmanager
def counted() -> Iterator[Steps]:
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)


async def drip(line: Line, data: bytes) -> None:
    """One byte at a time; after each, everything that can happen happens."""
    for at in range(len(data)):
        await line.send(data[at : at + 1])
        await trio.testing.wait_all_tasks_blocked()


async def test_a_dripped_hello_wakes_nobody(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        with counted() as steps:
            line = await stage.connect("https")
            secure = Secure(line.stream, client_context(pki), "a.test")
            hello = secure.hello()
            await trio.testing.wait_all_tasks_blocked()
            accepted = steps.count
            await drip(line, hello[:-1])
            assert len(hello) > 200
            assert steps.count - accepted <= 2  # the first byte, and the five of the record's head
        await line.send(hello[-1:])
        await secure.do_handshake()
        assert (await Tls(secure).get())[1] == b"ok"
        assert line.stream is secure.under


def in_records(hello: bytes, size: int) -> bytes:
    """The same ClientHello in TLS records of at most `size` bytes (RFC 8446 5.1)."""
    message = hello[5:]
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(hello[:3] + struct.pack("!H", len(part)) + part for part in parts)


@pytest.mark.parametrize("size", [1, 3, 100, 250])
async def test_a_hello_over_several_records(pki: Pki, tmp_path: Path, size: int) -> None:
    async with app() as it, front(secure_site(it.url, f"{pki.entry('b')}, {pki.entry('a')}"), tmp_path) as stage:
        line = await stage.connect("https")
        secure = Secure(line.stream, client_context(pki, version="1.2"), "a.test")
        split = in_records(secure.hello(), size)
        with counted() as steps:
            await drip(line, split[:-1])
            assert steps.count <= 60  # grows with the logarithm of the size
        await line.send(split[-1:])
        if size > 1:  # OpenSSL itself refuses so many empty-handed records
            await secure.do_handshake()
            tls = Tls(secure)
            assert "a.test" in tls.subject()
            assert (await tls.get())[1] == b"ok"


async def test_a_hello_in_two_writes_at_every_place(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        context = client_context(pki)
        for cut in (1, 4, 5, 6, 43, 100, 200):
            line = await stage.connect("https")
            secure = Secure(line.stream, context, "a.test")
            hello = secure.hello()
            await line.send(hello[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await line.send(hello[cut:])
            await secure.do_handshake()
            assert (await Tls(secure).get())[1] == b"ok"


# ---------------------------------------------------------------------------------------------------- peek itself


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, the first one non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        far = socket.create_connection(listening.getsockname())
        near, _ = listening.accept()
    near.setblocking(False)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def five(buffer: bytes) -> bytes | Need:
    return bytes(buffer) if len(buffer) >= 5 else Need(5)


async def test_what_was_peeked_is_still_there() -> None:
    near, far = pair()
    with near, far:
        far.sendall(b"12")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            far.sendall(b"345")
            assert await carry(peek(Stream(near), five, 100, trio.current_time() + 5)) == b"12345"
        assert near.recv(100) == b"12345"
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        far.sendall(b"x")  # the low-water mark is back: one byte is readable
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(near)


async def test_the_end_wakes_a_reader_below_the_mark() -> None:
    near, far = pair()
    with near, far:
        far.sendall(b"12")
        far.shutdown(socket.SHUT_WR)
        with trio.fail_after(5), pytest.raises(Broken, match="ended inside its first bytes"):
            await carry(peek(Stream(near), five, 100, trio.current_time() + 60))


async def test_a_reset_is_an_end() -> None:
    near, far = pair()
    with near:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        with trio.fail_after(5), pytest.raises(Broken, match="reset"):
            await carry(peek(Stream(near), five, 100, trio.current_time() + 60))


async def test_the_deadline_ends_the_wait(autojump_clock: object) -> None:
    near, far = pair()
    with near, far:
        far.sendall(b"12")
        began = trio.current_time()
        with pytest.raises(FrontdError) as caught:
            await carry(peek(Stream(near), five, 100, began + 7))
        assert caught.value.reason is Reason.Timer_HeaderWait
        assert trio.current_time() - began == pytest.approx(7)
