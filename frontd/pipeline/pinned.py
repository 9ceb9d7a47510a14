"""Pass-through of connection logons: one upstream connection for one client connection (NTLM: MS-NTHT; RFC 4559).

How it works
------------
NTLM, and Negotiate where it carries NTLM, log a *connection* on and not a request: whatever comes over it afterwards is
that user's.  A pool says with ``pass_through`` that its apps do this themselves.  From the first request of a client
connection that carries such credentials, or the first answer to it that asks for them, its requests to that pool go
over one upstream connection that is made for it, the *pin*; credentials, challenges and tokens pass untouched.

    client connection ── Pin ── upstream connection ── one app, by one address

Where a pool does not say so, and for what must not be pinned, a connection that such credentials or challenges have
passed over serves that one exchange and is closed.  So Kerberos in one leg works through every pool, NTLM only through
a pin, and nobody ever meets the logon of somebody else.

The pins of one client address are limited, since an app's connections are few and who asks for a logon need not have
one: a further pin ends one that is idle, of those that were not logged on first.

A pin holds a permit of its place (``concurrency``) while an exchange runs, as every request does, and none between two
exchanges: a user who reads a page keeps nobody out.

Invariants
----------
* A pin is of one client connection and one pool; its upstream connection was made for it, carries nothing else, goes
  back to no pool, and is replaced by no other.
* The two connections end together: the client's after the answer that is under way, when the app's has ended, is too
  old, has been idle too long, has failed, or its pool or its place is gone; the app's when the client's has ended.
* Nothing is sent twice: an app that goes away before it has answered ends the client's connection.  Where that
  connection had answers before, it is cut without a word, as the app has done it: a client takes it for an idle
  connection that ended, and logs on again on a new one (RFC 9112 9.3.1).
* No pin for who shares a connection with others: what comes through a trusted proxy or shows a ``Via`` begins none,
  and neither does HTTP/1.0.  Over a connection that has one, such a request is refused, and both ends close.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from functools import lru_cache
from typing import Protocol

import trio

from frontd.model.errors import FrontdError, Reason, UpstreamGone
from frontd.model.headers import Headers
from frontd.model.messages import Exchange
from frontd.net.streams import Owner, Stream
from frontd.net.traps import clock, task_lane
from frontd.pipeline.forward import Downstream, queueing
from frontd.protocol.scan import ResponseHead
from frontd.upstream.balance import Place
from frontd.upstream.client import Upstream
from frontd.upstream.lease import NOBODY, Lease
from frontd.upstream.pool import Pool

ASKED = 30.0  # s that an app's connection waits for who was asked to log on: clients go on at once or begin anew
# Pins of one client address in a pool.  Postfix limits the connections of an address too, to 50 of peers that need few;
# a browser has 6 for one user, and an address may be an office's, so there is room for some 40 of them.
MOST = 256
AGE = 3600.0  # s after which a pin ends behind an answer; nginx keepalive_time: 1 h
# How schemes that log a connection on begin, and the word for them in ``pass_through``.  By the beginning, since
# Negotiate has relatives (Nego2, Negotiate-…) that do the same; HAProxy once passed over them.
_SCHEMES = ((b"ntlm", "ntlm"), (b"nego", "negotiate"), (b"kerberos", "negotiate"))


class Holder(Protocol):
    """A client connection that pins belong to."""

    pins: dict[Pool, Pin] | None

    def look_after(self, stream: Stream, owner: Owner, /) -> None:
        """Have `owner` told of bytes on `stream` and of its end.  Raises `OSError`."""

    def end_when_idle(self) -> None:
        """End after the answer that is under way, or now."""


def logon_in(headers: Headers) -> str:
    """``ntlm`` or ``negotiate`` when a request carries credentials that may log its connection on; else empty."""
    for name, _, value in headers.items:
        if name == b"authorization" and (found := _scheme_of(value)):
            return found
    return ""


def challenge_in(headers: Headers) -> str:
    """``ntlm`` or ``negotiate`` when an answer asks for such credentials, or says that its connection is logged on
    (``Persistent-Auth``); else empty."""
    for name, _, value in headers.items:
        if name == b"www-authenticate" and (found := _scheme_of(value)):
            return found
        if name == b"persistent-auth":
            return "negotiate"
    return ""


def _scheme_of(value: bytes) -> str:
    """The first connection scheme of a list of credentials or challenges (RFC 9110 11.6); quoted text that looks like
    one counts too, which costs a connection and no more."""
    for part in value.lower().split(b","):
        word = part.strip(b" \t")
        for start, scheme in _SCHEMES:
            if word.startswith(start):
                return scheme
    return ""


class Pin:
    """The upstream connection of a client connection in one pool; `upstream` and `place` are None until it is made."""

    __slots__ = ("born", "client", "holder", "is_asked", "is_over", "place", "pool", "upstream")

    def __init__(self, pool: Pool, holder: Holder, client: str) -> None:
        self.pool = pool
        self.client = client  # its address, as it is counted
        self.holder = holder
        self.place: Place | None = None
        self.upstream: Upstream | None = None
        self.born = 0.0
        self.is_asked = False  # to log on, by the last answer
        self.is_over = False

    def __repr__(self) -> str:
        return f"<Pin {self.place} {self.upstream}{' over' if self.is_over else ''}>"

    async def lease(self, exchange: Exchange, down: Downstream, connect_timeout: float, urgency: int) -> Lease:
        """The right to use its connection for `exchange`; makes it for the first one.

        Raises `FrontdError` like `Pool.lease` and `Pool.lease_again`, and when the app has ended the connection.
        """
        upstream, place = self.upstream, self.place
        if upstream is None or place is None:
            return await self._made(exchange, connect_timeout, urgency)
        if self.is_over:
            raise self._lost("is over")
        upstream.is_idle = False
        lease = self.pool.lease_again_nowait(place, upstream, self)
        if lease is None:
            lease = await self._waited_for(exchange, place, upstream, urgency)
        if not (upstream.watched or upstream.is_alive()):
            lease.discard()
            raise self._lost("ended while it was idle")
        if self._is_old:
            down.closes = True
        return lease

    async def _made(self, exchange: Exchange, connect_timeout: float, urgency: int) -> Lease:
        await task_lane()
        self._enter()
        try:
            with queueing(exchange):
                lease = await self.pool.lease(connect_timeout, self, urgency=urgency)
        except BaseException:
            self._leave()
            raise
        self.upstream, self.place, self.born = lease.connection, lease.place, trio.current_time()
        self.pool.keepers.add(self)
        return lease

    def _enter(self) -> None:
        """Take one of the connections of the client's address.  Raises `FrontdError`: ``ConnLimit``."""
        crowds = self.pool.crowds
        crowd = crowds.get(self.client, ())
        if len(crowd) >= MOST:
            idle = [pin for pin in crowd if isinstance(pin, Pin) and pin.upstream is not None and pin.upstream.is_idle]
            if not idle:
                detail = f"{self.pool.settings.name}: {MOST} connections of one client address, all of them busy"
                raise FrontdError(Reason.ConnLimit, detail=detail, retry_after=1)
            min(idle, key=Pin.standing).end()
        crowds.setdefault(self.client, set()).add(self)

    def _leave(self) -> None:
        crowds = self.pool.crowds
        if (crowd := crowds.get(self.client)) is not None:
            crowd.discard(self)
            if not crowd:
                del crowds[self.client]

    async def _waited_for(self, exchange: Exchange, place: Place, upstream: Upstream, urgency: int) -> Lease:
        await task_lane()
        try:
            with queueing(exchange):
                return await self.pool.lease_again(place, upstream, self, urgency)
        except FrontdError:
            self._rest(upstream)  # the queue is full, or it took too long: the client may ask again
            raise
        except BaseException:
            self.end()
            upstream.stream.close_now()
            raise

    def lost(self, lease: Lease, gone: UpstreamGone) -> FrontdError:
        """The app has gone away before it has answered: both ends close."""
        lease.discard()
        return self._lost(str(gone), None if lease.is_fresh else 0)

    def _lost(self, what: str, status: int | None = 0) -> FrontdError:
        self.end()
        detail = f"{self.place.name if self.place else '-'}: the connection of this client to its app: {what}"
        return FrontdError(Reason.Connection_Abandoned_By_ReqQueue, status=status, detail=detail)

    def standing(self) -> tuple[bool, float]:
        """What goes first when room is needed: who was asked to log on, then who has been idle for longest."""
        return not self.is_asked, self.upstream.idle_since if self.upstream is not None else 0.0

    @property
    def _is_old(self) -> bool:
        return clock.now() - self.born >= AGE

    # ----------------------------------------------------------- whose the connection is (`upstream.lease.Keeper`)

    def returned(self, upstream: Upstream, /, *, keep: bool) -> None:
        """An exchange on it is over."""
        stream = upstream.stream
        fine = keep and not self.is_over and not self._is_old and not stream.pending and not stream.ending
        if fine and upstream.http.recycle() and (upstream.watched or upstream.is_alive()):
            self._rest(upstream)
        else:
            self.end()
            stream.close_now()

    def _rest(self, upstream: Upstream) -> None:
        """It waits for the next exchange; the reactor tells when the app ends it."""
        upstream.idle_since = clock.now()
        upstream.is_idle = True
        upstream.place = self
        if upstream.stream.lane is None:
            with suppress(OSError):  # the kernel's limit of watches: then it is looked at when it is needed
                self.holder.look_after(upstream.stream, upstream)

    def forget(self, upstream: Upstream, /) -> None:
        """The app has ended it while it was idle, or spoke unasked."""
        self.end()

    def look(self, oldest: float, /) -> None:
        """End it if it has been idle since `oldest`, or is too old; sooner where no logon came of it."""
        upstream = self.upstream
        if self.is_asked:
            oldest = max(oldest, clock.now() - ASKED)
        if upstream is not None and upstream.is_idle and (upstream.idle_since <= oldest or self._is_old):
            self.end()

    def end(self) -> None:
        """Both ends close: at once what is idle, after its answer what is not."""
        self.close()
        self.holder.end_when_idle()

    def close(self) -> None:
        """The client's connection has ended."""
        self.is_over = True
        self.pool.keepers.discard(self)
        self._leave()
        if self.upstream is not None and self.upstream.is_idle:
            self.upstream.stream.close_now()


# ---------------------------------------------------------------------------------------------------- in an exchange


def pin_for(exchange: Exchange, down: Downstream, pool: Pool, logon: str) -> Pin | None:
    """The pin that a request goes over, which begins with one that carries credentials (`logon`); None: it needs none.

    Raises `FrontdError` where one is needed or there and must not be, and ends it: ``Forbidden`` where a proxy shares
    the connection, ``Version_N/S`` for HTTP/1.0.
    """
    holder = down.holder
    pin = holder.pins.get(pool) if holder.pins is not None else None
    begins = logon in pool.settings.pass_through
    if (pin is not None or begins) and (proxy := _proxy_of(exchange)):
        if pin is not None:
            pin.end()
        raise FrontdError(
            Reason.Forbidden,
            detail=f"{logon or 'a logon'} logs a connection on; a proxy's is many users' ({proxy})",
            hint="This needs a connection that is not shared by a proxy.",
        )
    if (pin is not None or begins) and exchange.request.version != "1.1":
        if pin is not None:
            pin.end()
        raise FrontdError(Reason.Version_NS, hint="This needs HTTP/1.1.")
    if pin is None and begins:
        pin = _begun(pool, holder, exchange)
    return pin


def _proxy_of(exchange: Exchange) -> str:
    """By what a connection is known for a proxy's, which many users may share; empty: it is one user's, as far as the
    request shows.  Proxies say that they are there by ``Via`` (RFC 9110 7.6.3)."""
    if exchange.client.is_trusted_proxy:  # maybe only since a reload
        return "trusted_proxies"
    return "Via" if b"via" in exchange.request.headers else ""


@lru_cache(4096)
def network(address: str) -> str:
    """A client's address as pins are counted: one IPv6 client has at least a /64 for itself (RFC 6177); an IPv4 address
    that is mapped into IPv6 is that."""
    try:
        it = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(it.ipv4_mapped or it.packed[:8].hex())


def _begun(pool: Pool, holder: Holder, exchange: Exchange) -> Pin:
    if holder.pins is None:
        holder.pins = {}
    pin = holder.pins[pool] = Pin(pool, holder, network(exchange.client.address))
    return pin


def note(exchange: Exchange, down: Downstream, lease: Lease, head: ResponseHead) -> None:
    """An answer has begun.  Where it asks for a logon, the connection that it came over serves nobody else, and the
    client's next request goes over a pin; where a pin's connection ends with it, so does the client's."""
    if lease.keeper is not None:
        if isinstance(lease.keeper, Pin):
            lease.keeper.is_asked = head.status == 401
        if lease.keeper is not NOBODY and not head.keep_alive:
            down.closes = True
    elif challenge := challenge_in(head.headers):
        lease.keeper = NOBODY
        pool, is_own = lease.pool, exchange.request.version == "1.1" and not _proxy_of(exchange)
        if is_own and challenge in pool.settings.pass_through:
            assert isinstance(pool, Pool)
            _begun(pool, down.holder, exchange)


def over(lease: Lease) -> None:
    """An answer is complete: give its connection back.  Not while the rest of the request is on its way to a pin's app
    (`rest_goes_on`): a handshake has to survive it."""
    if lease.keeper is None or lease.connection.http.request_complete:
        lease.give_back()


def rest_goes_on(lease: Lease) -> bool:
    """Whether the rest of a request is to follow an answer that did not wait for it."""
    return not lease.ended and lease.keeper is not None and lease.keeper is not NOBODY
