"""What the plays about pools share: settings, a pool that runs, names that resolve as told, connects that are noted."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from frontd.model.headers import Headers
from frontd.protocol.framing import End
from frontd.upstream.client import Dialect
from frontd.upstream.lease import Lease
from frontd.upstream.pool import Pool
from frontd.upstream.targets import PoolSettings, Target
from tests.wire import Line

CONNECT = 5.0  # s, the default of timeouts.connect


def target(host: str, port: int, dialect: Dialect | None = None) -> Target:
    """A target as the runtime makes it; port 0: `host` is the path of a Unix socket."""
    text = f"http://{host}:{port}" if port else f"unix:{host}"
    return Target(text, host, port, dialect or Dialect())


def settings(*targets: Target, **changes: Any) -> PoolSettings:
    """Settings with the defaults of the configuration."""
    values: dict[str, Any] = {
        "name": "app", "targets": targets, "concurrency": None, "queue_limit": 1000, "queue_wait": 30.0,
        "resolve": 5.0, "keep_alive": 60.0, "connect": CONNECT, "replay_body": 65536,
    }  # fmt: skip
    return PoolSettings(**(values | changes))


def is_settled(pool: Pool) -> bool:
    """Whether nobody holds or waits for anything."""
    return not len(pool.queue) and not any(place.active for place in pool.places)


@asynccontextmanager
async def running(pool: Pool) -> AsyncIterator[Pool]:
    """`pool` with its hands at work; at the end everything must have been given back."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        await trio.testing.wait_all_tasks_blocked()
        yield pool
        assert is_settled(pool), pool
        nursery.cancel_scope.cancel()
    assert not any(place.idle for place in pool.places)


async def take(pool: Pool) -> Lease:
    """A lease, as the pipeline takes it."""
    return pool.lease_nowait() or await pool.lease(CONNECT)


class Names(trio.abc.HostnameResolver):
    """A name service that says what `table` says; a name that is not in it does not resolve."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = table
        self.asked: list[tuple[float, str]] = []  # when (trio's clock), which name
        self.silent: set[str] = set()  # names that are never answered
        trio.socket.set_custom_hostname_resolver(self)

    def times(self, name: str) -> list[float]:
        """When `name` was asked for."""
        return [when for when, asked in self.asked if asked == name]

    async def getaddrinfo(self, host: Any, port: Any, *rest: int, **flags: int) -> list[tuple[Any, ...]]:
        name = str(host, "ascii") if isinstance(host, bytes) else str(host)
        self.asked.append((trio.current_time(), name))
        await trio.lowlevel.checkpoint()
        if name in self.silent:
            await trio.sleep_forever()
        if name not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.table[name]]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


class Connects(trio.abc.SocketFactory):
    """Notes when a TCP socket is made: from the moment this is installed, the times of connect attempts."""

    def __init__(self) -> None:
        self.times: list[float] = []
        trio.socket.set_custom_socket_factory(self)

    def socket(
        self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM, proto: int = 0
    ) -> trio.socket.SocketType:
        self.times.append(trio.current_time())
        return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))


async def ask(lease: Lease) -> None:
    """One request and its whole answer over the lease's connection; gives the lease back."""
    upstream, http = lease.connection, lease.connection.http
    upstream.send_now(http.send_head("GET", b"/", Headers.of((b"Host", b"a"))) + http.send_end())
    while upstream.head_now() is None:
        await trio.lowlevel.wait_readable(upstream.stream.sock)
    while not isinstance(part := upstream.body_now(), End):
        if part is None:
            await trio.lowlevel.wait_readable(upstream.stream.sock)
    lease.give_back()


def reset(line: Line) -> None:
    """End the connection with RST."""
    assert isinstance(line.stream, trio.SocketStream)
    line.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.stream.socket.close()
