"""Listeners and the accept loop.

At the connection limit a plain client is told (503 ``ConnLimit``) and a TLS client is reset: telling it
would cost the very handshake the limit is there to save.

Open files are a limit of connections as well.  Clients do not get the last ones, which connections to apps, logs and
reloads need.  Should there be none left all the same, a listener gives up the spare one that it holds for as long as it
takes to tell one client, and takes it back.  On Linux accept(2) fails for want of files also when nobody waits: so it
is asked again only when somebody does.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from contextlib import suppress
from functools import lru_cache

import trio

from frontd.config.model import Listen
from frontd.lanes.connection import Connection, Door, Identity
from frontd.lanes.opening import begin, refuse_at_door
from frontd.lanes.service import Service
from frontd.model.addresses import plain_ip
from frontd.model.errors import Reason
from frontd.model.messages import Client
from frontd.net.binding import bind_tcp
from frontd.net.shared import Counter
from frontd.net.sockets import tcp_options
from frontd.net.streams import Stream

ADDRESSES = 4096  # of clients whose text is shared
# With one turn of the loop for each, a burst waits behind everything that runs: p99 of a busy front fell from
# 460-706 ms to 66-108 ms with sixteen (64 connections, wrk, median of 4 rounds).
ACCEPTS_IN_A_ROW = 16
# Beside other fronts, one at a time while another one has fewer connections: with sixteen, 64 connections that come at
# once were all one front's.  Who is far ahead lets the others go first, and takes what is left then all the same: the
# others may be busy, or stopped.
AHEAD = 4  # connections
STAND_BACK = 0.001  # s
ACCEPTS_AFTER_ALL = 4
# accept(2): errors that belong to one connection
_THIS_ONE = frozenset((errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ECONNRESET))
REFUSED_AT_ONCE = 64  # clients over the limit that are told at one time; the rest is reset
_NO_FILES = frozenset((errno.EMFILE, errno.ENFILE))
KEPT_PART, KEPT_MOST = 8, 1024  # one file in so many is not for clients, and no more than that
SPARE_TIME = 0.25  # s for which the spare file may be missing
TROUBLE_PAUSE = 0.1  # s; for what belongs to the machine: out of files or memory, the network is down


class Listener:
    """One bound listener.  Listeners with equal `identity` keep their socket over a reload."""

    def __init__(self, settings: Listen, sock: socket.socket) -> None:
        self.settings = settings
        self.sock = sock
        self.port: int = sock.getsockname()[1]
        self.public_port = self._public_port(settings)
        self.door = self._door()
        self.refusing = 0
        self.scope = trio.CancelScope()
        self._spare = -1  # an open file that is good for nothing but to be closed
        self._files = 0  # a connection with this descriptor, or a higher one, is one too many

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
        self.door = self._door()

    def _door(self) -> Door:
        """What connections accepted now are told of this listener: one object for all of them."""
        settings = self.settings
        return Door(settings.name, settings.kind, self.public_port, settings.proxy_protocol, self.identity)

    def close(self) -> None:
        """Stop accepting; accepted connections go on."""
        self.scope.cancel()
        self.sock.close()
        self._give_up_spare()

    async def run(self, service: Service, nursery: trio.Nursery) -> None:
        """Accept until closed; every connection becomes a task of `nursery`."""
        in_a_row = 0
        self._files = files_for_clients()
        self._take_spare()
        with self.scope:
            while True:
                if in_a_row and in_a_row >= self._allowance(service):
                    in_a_row = 0
                    await trio.sleep(STAND_BACK if lead(service.crowd) >= AHEAD else 0)
                try:
                    sock, peer = self.sock.accept()
                except (BlockingIOError, InterruptedError):
                    await trio.lowlevel.wait_readable(self.sock)
                    if lead(service.crowd) >= AHEAD:
                        await trio.sleep(STAND_BACK)
                    in_a_row = 0
                    continue
                except OSError as error:
                    if self.scope.cancel_called:  # closed between the wake-up and this turn
                        return
                    if error.errno in _NO_FILES and self._spare >= 0:
                        await self._turn_away(service)
                    elif error.errno not in _THIS_ONE:
                        service.log.remark(f"listener {self.settings.name}: {error.strerror}; accepting again soon")
                        await trio.sleep(TROUBLE_PAUSE)
                    continue
                self._welcome(sock, peer, service, nursery)
                in_a_row += 1
                if self._spare < 0:
                    self._take_spare()

    def _allowance(self, service: Service) -> int:
        """How many connections may be accepted before others have their turn."""
        ahead = lead(service.crowd)
        return ACCEPTS_IN_A_ROW if ahead <= 0 else 1 if ahead < AHEAD else ACCEPTS_AFTER_ALL

    async def _turn_away(self, service: Service) -> None:
        """No file is left: use the spare one to tell one client, or to find that nobody waits."""
        self._give_up_spare()
        try:
            sock, peer = self.sock.accept()
        except (BlockingIOError, InterruptedError):
            self._take_spare()
            await trio.lowlevel.wait_readable(self.sock)
            return
        except OSError:  # a thread was faster, or the machine has none left
            self._take_spare()
            await trio.sleep(TROUBLE_PAUSE)
            return
        try:
            client = self._client(sock, peer)
            if client is not None:
                service.log_connection(client, Reason.ConnLimit, "no more files can be opened")
                if self.settings.kind == "https":
                    Stream(sock).abort()
                else:
                    with trio.move_on_after(SPARE_TIME):
                        await refuse_at_door(sock)
        finally:
            self._take_spare()
        await trio.lowlevel.checkpoint()  # clients that are reset may come again at once

    def _give_up_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _take_spare(self) -> None:
        if self._spare < 0 and not self.scope.cancel_called:
            with suppress(OSError):  # none left: tried again with the next client
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _client(self, sock: socket.socket, peer: tuple[str, int]) -> Client | None:
        """Who has come; None, and the socket is closed, when it was reset before it was accepted."""
        sock.setblocking(False)
        try:
            tcp_options(sock)
            local = sock.getsockname()
        except OSError:
            sock.close()
            return None
        address = shown(peer[0])
        local_port = self.port if local[1] == self.port else local[1]  # the same int for all connections
        return Client(
            address=address, port=peer[1], peer=address, local_address=shown(local[0]), local_port=local_port,
            listener=self.settings.name, scheme=self.settings.kind, public_port=self.public_port,
        )  # fmt: skip

    def _welcome(self, sock: socket.socket, peer: tuple[str, int], service: Service, nursery: trio.Nursery) -> None:
        client = self._client(sock, peer)
        if client is None:
            return
        limit = service.world.limits.max_connections
        too_many = limit is not None and service.crowd.total() >= limit
        if too_many or sock.fileno() >= self._files:
            detail = f"max_connections {limit}" if too_many else f"open files: {self._files} for connections"
            service.log_connection(client, Reason.ConnLimit, detail)
            if self.settings.kind == "https" or self.refusing >= REFUSED_AT_ONCE:
                Stream(sock).abort()
            else:
                self.refusing += 1
                nursery.start_soon(self._refuse, sock)
            return
        begin(Connection(sock, client, self.door, service))

    async def _refuse(self, sock: socket.socket) -> None:
        try:
            await refuse_at_door(sock)
        finally:
            self.refusing -= 1



def lead(crowd: Counter) -> int:
    """How many connections this front has more than the one with the fewest; of a front that is alone, 0."""
    peers = crowd.peers()
    return crowd.mine - min(peers) if peers else 0


def files_for_clients() -> int:
    """The first descriptor (the lowest free one is always taken) that connections of clients are not to have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - min(limit // KEPT_PART, KEPT_MOST)


@lru_cache(maxsize=ADDRESSES)
def shown(address: str) -> str:
    """An address of the kernel's in its plain form; connections from and to one address share the text of it."""
    return plain_ip(address)


def identity_of(settings: Listen) -> Identity:
    """What makes two listeners one: the address; for free ports, of which each bind finds another, the name as well."""
    return settings.address, settings.port, "" if settings.port else settings.name


def bind(settings: Listen) -> Listener:
    """Bind and listen.  Raises `OSError` whose text names the listener and the address."""
    return Listener(settings, bind_tcp(settings.name, settings.address, settings.port))
