"""Unix sockets as targets, above all the full backlog that a connect must not take for a connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from frontd.model.errors import FrontdError, Reason
from frontd.upstream.client import Address, ConnectFailed, Dialect, connect
from frontd.upstream.pool import Pool
from frontd.upstream.report import rows
from tests.upstream.parts import ask, running, settings, take, target
from tests.wire import OK, app, settled


@contextmanager
def full(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket whose backlog is full; nobody accepts."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        listener.setblocking(False)
        waiting = []
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            waiting.append(sock)
            try:
                sock.connect(str(path))
            except BlockingIOError:
                break
        try:
            yield listener
        finally:
            for sock in waiting:
                sock.close()


async def answer_all(listener: socket.socket) -> None:
    """Accept and answer, one request on each connection."""
    server = trio.socket.from_stdlib_socket(listener)

    async def one(sock: trio.socket.SocketType) -> None:
        with sock:
            if b"\r\n\r\n" in await sock.recv(4096):
                await sock.send(OK)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(one, (await server.accept())[0])


async def test_a_unix_socket_is_a_target_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        async with running(Pool(settings(target(str(path), 0)))) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, listener)
            lease = await take(pool)
            assert str(lease.place.address) == f"unix:{path}"
            await ask(lease)
            nursery.cancel_scope.cancel()


async def test_a_full_backlog_is_busy_and_not_connected(tmp_path: Path, autojump_clock: object) -> None:
    with full(tmp_path / "s"):
        with pytest.raises(ConnectFailed, match="its backlog is full") as caught:
            await connect(Address(str(tmp_path / "s"), 0), Dialect(), 5)
        assert caught.value.busy
        async with running(Pool(settings(target(str(tmp_path / "s"), 0), queue_wait=3.0))) as pool:
            with pytest.raises(FrontdError) as waited:
                await take(pool)
            assert waited.value.reason is Reason.Timer_ReqQueue
            assert rows(pool)[0]["state"] == "busy"


async def test_what_waits_for_a_full_backlog_is_served_when_it_drains(tmp_path: Path, autojump_clock: object) -> None:
    with full(tmp_path / "s") as listener:
        async with running(Pool(settings(target(str(tmp_path / "s"), 0)))) as pool:
            served: list[int] = []

            async def one(number: int) -> None:
                await ask(await take(pool))
                served.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(one, number)
                await trio.sleep(2)
                assert len(pool.queue) == 3
                nursery.start_soon(answer_all, listener)
                await trio.sleep(2)
                assert sorted(served) == [0, 1, 2]
                nursery.cancel_scope.cancel()


async def test_a_socket_file_that_nobody_listens_on_is_offline(tmp_path: Path, autojump_clock: object) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    pool = Pool(settings(target(str(path), 0), target(str(tmp_path / "none"), 0), queue_wait=2.0))
    async with running(pool):
        with pytest.raises(FrontdError) as caught:
            await take(pool)
        assert caught.value.reason is Reason.AppOffline
        assert "s: Connection refused" in caught.value.detail
        assert "none: No such file or directory" in caught.value.detail


async def test_a_cancelled_connect_leaves_no_socket_behind(tmp_path: Path) -> None:
    """The warning filter turns an unclosed socket into an error."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with app() as it:
            for address in (Address(str(path), 0), Address("127.0.0.1", it.port)):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await connect(address, Dialect(), 5)
                assert scope.cancelled_caught
            await settled()


async def test_a_path_that_is_too_long_is_a_failed_connect() -> None:
    with pytest.raises(ConnectFailed):
        await connect(Address("/" + "x" * 200, 0), Dialect(), 5)
