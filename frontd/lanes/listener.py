"""Bound sockets and the accept loop.

A listener without an address is bound to every IPv6 and IPv4 address at once; where the kernel has no IPv6, to every
IPv4 address.  At the connection limit a plain client is told (503 ``ConnLimit``) and a TLS client is reset: telling it
would cost the very handshake the limit is there to save.
"""

from __future__ import annotations

import errno
import socket

import trio

from frontd.config.model import Listen
from frontd.lanes.connection import Connection, Door, Identity, handle, refuse_at_door
from frontd.lanes.service import Service
from frontd.model.addresses import plain_ip
from frontd.model.errors import Reason
from frontd.model.messages import Client
from frontd.net.streams import Stream, tcp_options

# With one turn of the loop for each, a burst waits behind everything that runs: p99 of a busy front fell from
# 460-706 ms to 66-108 ms with sixteen (64 connections, wrk, median of 4 rounds).
ACCEPTS_IN_A_ROW = 16
BACKLOG = 1024  # nginx 511; the kernel caps it at net.core.somaxconn
# accept(2): errors that belong to one connection
_THIS_ONE = frozenset((errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ECONNRESET))
REFUSED_AT_ONCE = 64  # clients over the limit that are told at one time; the rest is reset
TROUBLE_PAUSE = 0.1  # s; for what belongs to the machine: out of files or memory, the network is down


_HINTS = {
    errno.EADDRINUSE: " (another program has it)",
    errno.EADDRNOTAVAIL: " (no interface of this machine has it)",
    errno.EACCES: " (a port below 1024 needs root, CAP_NET_BIND_SERVICE or net.ipv4.ip_unprivileged_port_start)",
}


class Listener:
    """One bound listener.  Listeners with equal `identity` keep their socket over a reload."""

    def __init__(self, settings: Listen, sock: socket.socket) -> None:
        self.settings = settings
        self.sock = sock
        self.port: int = sock.getsockname()[1]
        self.public_port = self._public_port(settings)
        self.connections = 0
        self.refusing = 0
        self.scope = trio.CancelScope()

    def _public_port(self, settings: Listen) -> int | None:
        return settings.public_port

    @property
    def identity(self) -> Identity:
        """What two configurations of one socket have in common."""
        return identity_of(self.settings)

    def adopt(self, settings: Listen) -> None:
        """Take over new settings for the same bound address; connections accepted from now on follow them."""
        self.settings = settings
        self.public_port = self._public_port(settings)

    @property
    def door(self) -> Door:
        """What connections accepted now are told of this listener."""
        settings = self.settings
        return Door(settings.name, settings.kind, self.public_port, settings.proxy_protocol, self.identity)

    def close(self) -> None:
        """Stop accepting; accepted connections go on."""
        self.scope.cancel()
        self.sock.close()

    async def run(self, service: Service, nursery: trio.Nursery) -> None:
        """Accept until closed; every connection becomes a task of `nursery`."""
        accepted = 0
        with self.scope:
            while True:
                try:
                    sock, peer = self.sock.accept()
                except (BlockingIOError, InterruptedError):
                    await trio.lowlevel.wait_readable(self.sock)
                    continue
                except OSError as error:
                    if self.scope.cancel_called:  # closed between the wake-up and this turn
                        return
                    if error.errno not in _THIS_ONE:
                        service.log.remark(f"listener {self.settings.name}: {error.strerror}; accepting again soon")
                        await trio.sleep(TROUBLE_PAUSE)
                    continue
                self._welcome(sock, peer, service, nursery)
                accepted += 1
                if accepted % ACCEPTS_IN_A_ROW == 0:
                    await trio.lowlevel.checkpoint()

    def _welcome(self, sock: socket.socket, peer: tuple[str, int], service: Service, nursery: trio.Nursery) -> None:
        sock.setblocking(False)
        try:
            tcp_options(sock)
            local = sock.getsockname()
        except OSError:  # reset before it was accepted
            sock.close()
            return
        address = plain_ip(peer[0])
        client = Client(
            address=address, port=peer[1], peer=address, local_address=plain_ip(local[0]), local_port=local[1],
            listener=self.settings.name, scheme=self.settings.kind, public_port=self.public_port,
        )  # fmt: skip
        limit = service.world.limits.max_connections
        if limit is not None and len(service.connections) >= limit:
            service.log_connection(client, Reason.ConnLimit, f"max_connections {limit}")
            if self.settings.kind == "https" or self.refusing >= REFUSED_AT_ONCE:
                Stream(sock).abort()
            else:
                self.refusing += 1
                nursery.start_soon(self._refuse, sock)
            return
        self.connections += 1
        connection = Connection(sock, client, self.door, service)
        service.connections.add(connection)  # here and not in its task: the next one is counted before that runs
        nursery.start_soon(self._one, connection)

    async def _refuse(self, sock: socket.socket) -> None:
        try:
            await refuse_at_door(sock)
        finally:
            self.refusing -= 1

    async def _one(self, connection: Connection) -> None:
        try:
            await handle(connection)
        finally:
            self.connections -= 1


def identity_of(settings: Listen) -> Identity:
    """What makes two listeners one: the address; for free ports, of which each bind finds another, the name as well."""
    return settings.address, settings.port, "" if settings.port else settings.name


def bind(settings: Listen) -> Listener:
    """Bind and listen.  Raises `OSError` whose text names the listener and the address."""
    try:
        sock = _bound_socket(settings)
    except OSError as error:
        where = f"{settings.address or '*'}:{settings.port}"
        hint = _HINTS.get(error.errno or 0, "")
        raise OSError(error.errno, f"listener {settings.name}: {where}: {error.strerror}{hint}") from None
    return Listener(settings, sock)


def _bound_socket(settings: Listen) -> socket.socket:
    address = settings.address
    if address is None:
        try:
            return _listen(socket.AF_INET6, "::", settings.port, both=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            return _listen(socket.AF_INET, "0.0.0.0", settings.port)
    return _listen(socket.AF_INET6 if ":" in address else socket.AF_INET, address, settings.port)


def _listen(family: socket.AddressFamily, address: str, port: int, *, both: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
