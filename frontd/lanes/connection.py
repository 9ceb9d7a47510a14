"""One downstream connection: what is true of it for as long as it lives, and how it ends.

How it works
------------
    PROXY header → ClientHello → handshake → ( head → serve → body drained or not )* → close
    `-------- lanes.opening ---------'      `------------ lanes.turn ------------'

Between two turns a connection is this object and nothing more: no task, no coroutine.  Its timers are HTTP.sys's:
header wait from accept for the first request and from the first byte for the next ones, idle time between requests;
those inside an exchange belong to the pipeline.

Invariants
----------
* Whatever happens to one connection is caught in its own coroutine, logged with a reason, and touches no other.
* `finish` runs once; whoever drives a connection calls it when nothing more is to be done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from frontd.config.model import Timeouts
from frontd.lanes.downstream import H1Downstream
from frontd.lanes.driven import Life
from frontd.lanes.service import Service
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import without_underscores
from frontd.model.messages import Client
from frontd.net.streams import Owner, Stream
from frontd.net.traps import Ended, clock
from frontd.pipeline.phases import Hook, tell
from frontd.pipeline.pinned import Pin
from frontd.pipeline.plugin import Plugin
from frontd.pipeline.world import Site, SiteState
from frontd.protocol.h1 import ServerConnection
from frontd.upstream.pool import Pool

if TYPE_CHECKING:
    import socket

FIRST_REQUEST = 1.0  # s for it, when the front is going to end

Identity = tuple[str | None, int, str]  # of a listener: address, port, and for free ports its name


@dataclass(slots=True, frozen=True)
class Door:
    """What a connection knows of the listener it came through."""

    name: str
    scheme: str
    public_port: int | None
    proxy_protocol: bool
    identity: Identity


class Connection:
    """One accepted socket and everything that is true for as long as it lives.

    `down`: the exchange that goes on (None: there is none); `leaving`: the connection ends with its answer, or now when
    there is none.
    """

    __slots__ = (
        "client", "closers", "coroutine", "deadline", "door", "down", "due", "header_deadline", "http", "hung_up",
        "leaving", "more", "over", "parked", "pins", "scope", "service", "site", "state", "stream", "timeouts",
    )  # fmt: skip

    hears_end = True

    def __init__(self, sock: socket.socket, client: Client, door: Door, service: Service) -> None:
        self.client = client
        self.door = door
        self.service = service
        self.stream = Stream(sock)
        self.http = ServerConnection()
        self.down: H1Downstream | None = None
        self.timeouts: Timeouts | None = None  # of the site it was last used for; None: nothing was asked yet
        self.header_deadline = math.inf  # of the first head
        self.hung_up = False
        self.leaving = False
        self.over = False
        self.site: Site | None = None  # of the exchange that goes on
        self.state: SiteState | None = None  # of the site this connection counts for
        self.closers: dict[Plugin, Hook] | None = None  # plugins that want to know when it ends
        self.pins: dict[Pool, Pin] | None = None  # connections to apps that are this one's alone
        self.more = False
        self.coroutine: Life | None = None  # this and what follows are the driver's
        self.parked: Stream | None = None
        self.scope: trio.CancelScope | None = None
        self.deadline = math.inf
        self.due = math.inf

    @property
    def is_gone(self) -> bool:
        """Whether its client has left in the middle of an exchange."""
        return self.stream.ending and self.down is not None and not self.down.tunnelled

    def use(self, stream: Stream) -> None:
        """Go on with `stream`, TLS on the same socket."""
        self.service.reactor.exchange(self.stream, stream)
        self.stream = stream

    # --- what the driver asks

    def on_event(self, stream: Stream) -> None:
        """Bytes came, or the end, and nobody waits for them."""
        if self.coroutine is None and not stream.watched:
            service = self.service
            service.reactor.begin(self, service.lives.turn(self))
        elif stream.ending:
            self.on_hangup()

    def on_hangup(self) -> None:
        """The client has ended its side: its exchange ends with it."""
        self.hung_up = True
        if self.is_gone:
            self.service.reactor.interrupt(self, Ended())

    def next_turn(self) -> Life:
        """What to do with bytes that came while it was busy."""
        return self.service.lives.turn(self)

    def at_rest(self) -> float:
        """It has nothing to do: until when it may be idle (trio's clock, s)."""
        self.stream.sent = 0  # nobody compares it with what it was in an earlier exchange; a large int is an object
        timeouts = self.timeouts
        if timeouts is None:
            return self.header_deadline
        now = clock.now()
        return max(now, self.service.idle_until) if self.leaving else now + timeouts.idle_connection

    def expired(self) -> Life:
        """What to do when it was idle for too long."""
        return self.service.lives.end(self)

    # --- the exchange that goes on

    def enter(self, site: Site) -> None:
        """The site of an exchange is known: its limits and timers hold from here on, and the connection counts for it.

        Raises `FrontdError` with ``ConnLimit`` when the site has too many connections.
        """
        self.site = site
        state, down = site.state, self.down
        assert down is not None
        if self.state is not state:
            self._count_for(site, down)
        state.requests += 1
        down.limits = site.limits
        down.timeouts = self.timeouts = site.timeouts
        if site.phases.client_closed:
            self.closers = self.closers or {}
            self.closers |= {hook.plugin: hook for hook in site.phases.client_closed}
        exchange = down.exchange
        request = exchange.request
        if not site.keeps_underscores and request.headers.block is None:  # no name that is remembered has one
            request.headers, exchange.underscores = without_underscores(request.headers)

    def _count_for(self, site: Site, down: H1Downstream) -> None:
        if self.state is not None:
            self.state.crowd.add(-1)
            self.state = None
        limit = site.limits.max_connections
        if limit is not None and site.state.crowd.total() >= limit:
            down.closes = True
            raise FrontdError(Reason.ConnLimit, detail=f"site {site.name}: {limit}", retry_after=1)
        self.state = site.state
        self.state.crowd.add(1)
        self.header_deadline = math.inf  # the first head has come; that object goes

    # --- how it ends

    def finish(self) -> None:
        """Nothing more is to be done: close at once; an answer that is not whole by a reset, so that nobody takes its
        end for the end."""
        if self.over:
            return
        self.over = True
        service, http, stream = self.service, self.http, self.stream
        if stream.pending or (http.answered and not http.answer_complete):
            stream.abort()
        else:
            stream.close_now()
        service.reactor.dismiss(self)
        service.leave(self, self.door.identity)
        if self.state is not None:
            self.state.crowd.add(-1)
        if self.pins is not None:
            for pin in self.pins.values():
                pin.close()
        if self.closers:
            faults: list[tuple[str, Exception]] = []
            tell(tuple(self.closers.values()), self.client, faults)
            for where, error in faults:
                service.log_fault(f"plugin {where}", error)

    def look_after(self, stream: Stream, owner: Owner) -> None:
        """Have `owner` told of bytes on `stream` and of its end, which nobody waits for.  Raises `OSError`."""
        self.service.reactor.register(stream, owner)

    def end_when_idle(self) -> None:
        """Shutting down: an idle connection ends now, or when `Service.idle_until` says; a busy one after its answer,
        or then, should its head have promised more.  One that has asked for nothing yet has a moment: its first request
        may be on the way (nginx does not end such connections either)."""
        self.leaving, until = True, self.service.idle_until
        if self.down is not None:
            self.down.closes = True
        elif self.over:
            return
        elif self.timeouts is None:
            self.header_deadline = min(self.header_deadline, max(clock.now() + FIRST_REQUEST, until))
            self.service.reactor.hurry(self, self.header_deadline)
        elif until > clock.now():
            self.service.reactor.hurry(self, until)
        else:
            self.service.reactor.wake(self)

    def follow(self, door: Door | None) -> None:
        """After a reload: the listener may have another public port now, or be gone or of another kind, in which case
        nothing more can be asked through it."""
        if door is None or door.scheme != self.door.scheme:
            self.end_when_idle()
        else:
            self.door, client = door, self.client
            if (client.listener, client.public_port) != (door.name, door.public_port):
                if self.down is not None and client.states is None:
                    client.states = {}  # what the exchange that goes on is still to remember is of this connection too
                self.client = replace(client, listener=door.name, public_port=door.public_port)
        self._forget_plugins()

    def _forget_plugins(self) -> None:
        """Drop what plugins remembered of this connection that are there no more."""
        if (states := self.client.states) is not None:
            standing = set(self.service.world.plugins)
            for plugin in [one for one in states if one not in standing]:
                del states[plugin]
