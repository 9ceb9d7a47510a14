"""No file can be opened any more: who comes is told, nothing spins, and it goes on as soon as there are files again."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from tests.net.pki import Pki
from tests.net.tlsclient import all_gone, client_context, secure_site, tls_line
from tests.wire import Line, Stage, app, front, one_pool, settled


@contextmanager
def most_files(number: int) -> Iterator[None]:
    """No descriptor of this process may be `number` or more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lowest_free() -> int:
    """The descriptor of the next file that is opened."""
    fd = os.dup(0)
    os.close(fd)
    return fd


@contextmanager
def clients(stage: Stage, number: int) -> Iterator[list[socket.socket]]:
    """Sockets that can connect while no file can be opened."""
    socks = [socket.socket() for _ in range(number)]
    for sock in socks:
        sock.setblocking(False)
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


async def all_is_open(stage: Stage) -> None:
    """The front has begun to accept, and the writer of its logs, a thread, has opened them and waits for lines."""
    await settled()
    for name in ("access", "error"):
        while not (stage.state / f"{name}.log").exists() or not stage.front.service.log.is_idle:
            await trio.lowlevel.checkpoint()


def knock(stage: Stage, sock: socket.socket, name: str = "http") -> Line:
    assert sock.connect_ex(("127.0.0.1", stage.port(name))) == errno.EINPROGRESS
    return Line(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))


class Turns(trio.abc.Instrument):
    """Counts the turns of the accept loop."""

    def __init__(self) -> None:
        self.number = 0

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.number += task.name.endswith("Listener.run")


async def test_who_comes_is_told(tmp_path: Path, autojump_clock: object) -> None:
    """One after the other, by the spare file; when files are free again everybody is served."""
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        kept = await stage.connect()
        assert (await kept.get())[1] == b"ok"
        await all_is_open(stage)
        with clients(stage, 4) as socks:
            with most_files(lowest_free()):
                for sock in socks[:3]:
                    line = knock(stage, sock)
                    head, page = await line.message()
                    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                    assert b"Reason: ConnLimit\n" in page
                    assert await line.read_to_end() == b""
                assert (await kept.get())[1] == b"ok"  # who is inside notices nothing
            assert (await knock(stage, socks[3]).get())[1] == b"ok"
        assert stage.reasons == {"ConnLimit": 3}
        await kept.close()
        await all_gone(stage)
    assert stage.log("error").count(" ConnLimit - no+more+files+can+be+opened") == 3


async def test_a_tls_client_is_reset(pki: Pki, tmp_path: Path, autojump_clock: object) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        context = client_context(pki)
        await all_is_open(stage)
        with clients(stage, 2) as socks:
            with most_files(lowest_free()):
                line = knock(stage, socks[0], "https")
                assert await line.read_to_end() == b"<reset>"
            await tls_line(stage, context, "a.test", line=knock(stage, socks[1], "https"))
        assert stage.reasons == {"ConnLimit": 1}
        await all_gone(stage)


async def test_clients_that_stay_do_not_make_it_spin(tmp_path: Path, autojump_clock: object) -> None:
    """accept(2) fails for want of files also when nobody waits; and a client that is told may not leave."""
    async with front(one_pool("http://127.0.0.1:1"), tmp_path) as stage:
        turns = Turns()
        await all_is_open(stage)
        with clients(stage, 5) as socks, most_files(lowest_free()):
            trio.lowlevel.add_instrument(turns)
            lines = [knock(stage, sock) for sock in socks]
            for line in lines:
                assert b"Reason: ConnLimit\n" in await line.read_to_end()
            await trio.sleep(60)
            trio.lowlevel.remove_instrument(turns)
        assert stage.reasons == {"ConnLimit": 5}
        assert 5 <= turns.number <= 60, turns.number  # in a minute of the clock


async def test_without_the_spare_file_clients_wait(tmp_path: Path, autojump_clock: object) -> None:
    """The limit was lowered below what is open already: nothing can be told; clients wait in the kernel's queue."""
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        await all_is_open(stage)
        with clients(stage, 2) as socks:
            with most_files(3):
                line = knock(stage, socks[0])
                await trio.sleep(1)
                assert not stage.front.service.connections
            assert (await line.get())[1] == b"ok"
            await trio.sleep(1)
            with most_files(lowest_free()):  # the spare file is there again
                assert b"Reason: ConnLimit\n" in await knock(stage, socks[1]).read_to_end()
        await all_gone(stage)
    assert 2 <= stage.log("error").count("listener http: Too many open files; accepting again soon") <= 11


async def test_clients_do_not_get_the_last_files(tmp_path: Path) -> None:
    """One in eight is kept for the connections to apps: those who were let in are served."""
    with most_files(lowest_free() + 200):
        async with app() as it, front(one_pool(it.url), tmp_path) as stage:
            lines: list[Line] = []
            while not stage.reasons:
                lines.append(await stage.connect())
                await settled()
            late = lines.pop()
            assert b"Reason: ConnLimit\n" in await late.read_to_end()
            await late.close()
            assert len(lines) > 50
            async with trio.open_nursery() as nursery:

                async def ask(line: Line) -> None:
                    assert (await line.get())[1] == b"ok"

                for line in lines[:10]:
                    nursery.start_soon(ask, line)
            for line in lines:
                await line.close()
            await all_gone(stage)
            assert stage.reasons == {"ConnLimit": 1}
    assert " ConnLimit - open+files:+" in stage.log("error")
