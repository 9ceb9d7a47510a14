"""Noticing that a client has left while its request waits or is being answered.

How it works
------------
One private epoll set holds every downstream socket, edge-triggered and for EPOLLRDHUP only, so arriving data causes no
wake-up.  One trio task waits on the set.  When a client ends its side or is gone, its connection is told; whether that
matters is the connection's affair.  A client that ends its side counts as gone, as in nginx and Go's net/http: the
kernel cannot tell a half-closed connection from a closed one before something is written to it.

Invariants: a socket is registered once and unregistered before it is closed; an event for a socket that is registered
no more is skipped.
"""

from __future__ import annotations

import select
from contextlib import suppress
from typing import Protocol

import trio


class Watched(Protocol):
    """Whoever wants to know that its client has ended."""

    def on_hangup(self) -> None: ...


class Hangups:
    """The set of watched sockets, by file descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}

    def watch(self, fd: int, who: Watched) -> None:
        """Tell `who` when the peer of the socket `fd` leaves."""
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)
        self._watched[fd] = who

    def forget(self, fd: int) -> None:
        """Before the socket is closed.  Harmless when it is not watched."""
        if self._watched.pop(fd, None) is not None:
            with suppress(OSError):  # a failed TLS wrap has closed it already
                self._epoll.unregister(fd)

    async def run(self) -> None:
        """Tell connections that their client has left, for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                who = self._watched.get(fd)
                if who is not None:
                    who.on_hangup()

    def close(self) -> None:
        """Give the epoll set back."""
        self._epoll.close()
