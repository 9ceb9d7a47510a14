"""The stage for the plays about the reactor: it alone, with guests on real sockets in place of HTTP connections."""

from __future__ import annotations

import math
import re
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from frontd.lanes.driven import Life
from frontd.lanes.reactor import Reactor
from frontd.net.streams import Stream
from tests.net.test_peek import pair
from tests.wire import settled

EVERYTHING = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
END_ALONE = select.EPOLLRDHUP | select.EPOLLET

Script = Callable[["Guest"], Life]


async def listen(guest: Guest) -> None:
    """Read what is there; leave when the other side does."""
    while data := guest.stream.receive_now():
        guest.heard.append(data)
    if data is not None:
        guest.finish()


async def farewell(guest: Guest) -> None:
    """Idle for too long."""
    guest.ended_at = trio.current_time()
    guest.finish()


class Guest:
    """A connection of which the reactor knows what it must: `turn` is played whenever bytes come, `end` when it was
    idle for `idle` seconds.  `busy`: its exchange ends with its client."""

    hears_end = True

    def __init__(self, reactor: Reactor, sock: socket.socket, turn: Script = listen, idle: float = math.inf) -> None:
        self.reactor = reactor
        self.stream = Stream(sock)
        self.turn = turn
        self.end: Script = farewell
        self.idle = idle
        self.busy = False
        self.more = False
        self.coroutine: Life | None = None
        self.parked: Stream | None = None
        self.scope: trio.CancelScope | None = None
        self.deadline = self.due = math.inf
        self.heard: list[bytes] = []
        self.turns = 0
        self.ended_at = math.inf

    @property
    def is_gone(self) -> bool:
        return self.stream.ending and self.busy

    def next_turn(self) -> Life:
        self.turns += 1
        return self.turn(self)

    def on_event(self, stream: Stream) -> None:
        if self.coroutine is None and not stream.watched:
            self.reactor.begin(self, self.next_turn())

    def at_rest(self) -> float:
        return trio.current_time() + self.idle

    def expired(self) -> Life:
        return self.end(self)

    def finish(self) -> None:
        self.stream.close_now()
        self.reactor.dismiss(self)


class House:
    """A running reactor, its guests, and what it was told that nobody should have raised."""

    def __init__(self) -> None:
        self.faults: list[BaseException] = []
        self.reactor = Reactor(lambda what, error: self.faults.append(error))
        self.reactor.drives = True  # whatever the environment says
        self.sockets: list[socket.socket] = []

    def sockets_of(self) -> tuple[socket.socket, socket.socket]:
        near, far = pair()
        self.sockets += near, far
        return near, far

    def guest(self, turn: Script = listen, idle: float = math.inf) -> tuple[Guest, socket.socket]:
        """A guest that has just been let in, and the socket of its client."""
        near, far = self.sockets_of()
        guest = Guest(self.reactor, near, turn, idle)
        self.reactor.welcome(guest, None)
        return guest, far

    def registered(self) -> dict[int, int]:
        """What the kernel knows of the set: descriptors and events, without the reactor's own."""
        text = Path(f"/proc/self/fdinfo/{self.reactor._epoll.fileno()}").read_text()
        found = re.findall(r"tfd: *(\d+) events: *([0-9a-f]+)", text)
        return {int(fd): int(events, 16) for fd, events in found if int(fd) != self.reactor._alarm}

    def events_of(self, stream: Stream) -> int:
        """The events for which the kernel has `stream` registered (HUP and ERR come unasked)."""
        return self.registered().get(stream.sock.fileno(), 0) & ~(select.EPOLLHUP | select.EPOLLERR)


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    """A reactor that runs as long as the play."""
    it = House()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(it.reactor.run)
            await settled()  # the clock is watched
            yield it
            await settled()
            nursery.cancel_scope.cancel()
    finally:
        it.reactor.close()
        for sock in it.sockets:
            sock.close()
