"""A pool: targets, their connections, and the one queue in which requests wait for them.

How it works
------------
The brain is synchronous: `lease_nowait`, `_release` and `_dispatch` change lists and counters and do no I/O.  The hands
are asynchronous: `lease` waits in the queue and connects; `run` looks names up again, probes addresses that are down
and closes connections that were idle too long.

A request takes a place only when that place is not known to be down.  When a connect fails, the place is down and the
request goes back to where it stood in the queue; from then on `run` probes the address (50 ms, doubling to 1 s) and
puts it back into rotation with the connection it made.  So an app that restarts costs waiting, not errors.

Where `concurrency` is set, a lease holds a permit of its place (`net.permits`).  A place that is full because others
hold permits of it, another front or the pool that this one replaces, is watched by `run` as long as requests wait.
While requests wait in other fronts, no permit is taken but by that watch, be it for a request that has just come or in
place of one just given back: the first front to be told that one is free has it, and none can starve another.

A connection that waits for its next exchange is looked after by a reactor, which has it closed when the app ends it
or speaks unasked (`Upstream.watched`), or is looked at when it is taken.

A connection that a logon passes over has a `Keeper` (`pipeline.pinned`): it is made for it (`lease` with a keeper) and
goes back to it, never to the pool.  Its later exchanges need a permit of its own place, if that has some, and wait for
it in a line of that place (`lease_again`).  These lines and the queue count as one, and whoever came first is first.

Invariants
----------
* A lease holds one permit of its place, from the beginning to the end (`upstream.lease`).
* Nobody overtakes the queue: while it is not empty, `lease_nowait` answers None.
* A connection that has had a keeper is never among the idle ones of its place.
* While requests wait and a permit is held elsewhere, somebody watches for it.
* A name that does not resolve, or no longer does, is not an error: its requests wait.
* An app without a trusted certificate is not waited for: when there are only such, ``UpstreamTls`` is answered at once.
* State outlives configuration: a pool whose configuration is unchanged keeps everything over a reload.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

import trio

from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import URGENCY
from frontd.net.permits import Permits, permits
from frontd.net.shared import LocalSlots, Slots
from frontd.net.traps import clock
from frontd.upstream.balance import BACKOFF_FIRST, BACKOFF_LAST, Place, choose, take_place
from frontd.upstream.client import Address, ConnectFailed, Upstream, connect
from frontd.upstream.lease import Keeper, Lease
from frontd.upstream.queue import LAST, RequestQueue
from frontd.upstream.replay import ReplayMemory
from frontd.upstream.targets import PoolSettings, Target, literal_address

IDLE_PER_PLACE = 64  # idle connections kept for one address; nginx 32 per worker, Caddy 32 per host
NO_LIMITS: Mapping[Address, int] = {}
SWEEP = 1.0  # s between two looks for connections that were idle too long


class Pool:
    """Named set of targets with one bounded request queue (IIS: application pool).

    `slots`: where counters and permits are found by name, those of all fronts and of the pool that this one replaces.
    """

    def __init__(self, settings: PoolSettings, slots: LocalSlots | None = None) -> None:
        self.settings = settings
        self.passes_logons = bool(settings.pass_through)
        self.passes_answers_on = settings.sendfile_from is None and not self.passes_logons
        self.slots = slots if slots is not None else LocalSlots()
        counter = self.slots.counter(f"queue {settings.name}")
        self.queue: RequestQueue[Lease] = RequestQueue(settings.queue_limit, counter)
        self._waiting = self.queue.waiters
        self.replay = ReplayMemory(settings.replay_memory)
        self._lines: dict[Place, RequestQueue[Lease]] = {}  # of those who wait for one place alone
        self.keepers: set[Keeper] = set()  # who have a connection
        self.crowds: dict[str, set[Keeper]] = {}  # who have one or are about to, by the client's address
        self._is_shared = settings.concurrency is not None and isinstance(self.slots, Slots)
        self._limits: Mapping[Address, int] = NO_LIMITS
        self.places: list[Place] = []
        self.leaving: list[Place] = []  # no longer among them, and perhaps not yet done with what they hold
        self.departed = 0  # exchanges that were begun with places that are gone
        self.off = ""  # why nothing is to wait here: control has taken the pool out of service
        self.wanted: Callable[[Pool], None] | None = None  # told that requests wait and there is no place
        self._has_asked = False
        self._turn = 0
        self._work = trio.Event()
        self._alarm = trio.Event()  # a place has just gone out: its name may stand for another address now
        self._retired = False
        self.exchanges = 0  # routed here and not over; between two tries one holds neither lease nor place
        self._known: dict[Target, list[Address]] = {}
        self.lookup_errors: dict[Target, str] = {}
        for target in settings.targets:
            if (address := literal_address(target)) is not None:
                self._known[target] = [address]
        self.names = [target for target in dict.fromkeys(settings.targets) if target not in self._known]
        self._update_places()

    def __repr__(self) -> str:
        return f"<Pool {self.settings.name} places={self.places} queue={len(self.queue)}>"

    # ------------------------------------------------------------------ the brain: synchronous

    def lease_nowait(self) -> Lease | None:
        """A lease on an idle connection, if one is free and nobody waits for it."""
        if self._waiting or (self._is_shared and self._others_wait()):
            return None
        places = self.places
        if len(places) == 1 and places[0].permits is None and not places[0].is_out:
            at = 0
        elif (at := choose(places, self._turn)) < 0:
            return None
        place = places[at]
        # An idle connection comes first: a permit that is taken and given back would wake other fronts for nothing.
        if not place.idle or (place.permits is not None and not place.permits.take()):
            return None
        upstream = place.idle[-1]
        if upstream.stream.lane is not None and not upstream.stream.ready:  # its reactor would have told otherwise
            place.idle.pop()
            upstream.is_idle = False
            upstream.uses += 1
        elif (found := self._idle_of(place)) is not None:
            upstream = found
        else:
            if place.permits is not None:
                place.permits.give()
            return None
        self._turn = at + 1
        return Lease(self, place, upstream)

    def _take(self) -> Lease | None:
        at = take_place(self.places, self._turn)
        if at < 0:
            return None
        self._turn = at + 1  # counted from the place taken, so that one that is out favours none
        place = self.places[at]
        return Lease(self, place, self._idle_of(place))

    def _idle_of(self, place: Place) -> Upstream | None:
        idle = place.idle
        while idle:
            upstream = idle.pop()  # the youngest: the least likely to be closed by the app meanwhile
            upstream.is_idle = False
            if upstream.watched or upstream.is_alive():
                upstream.uses += 1
                return upstream
            upstream.stream.close_now()
        return None

    def release(self, lease: Lease, /, *, keep: bool) -> None:
        """Called by a lease that ends."""
        place, upstream = lease.place, lease.upstream
        place.active -= 1
        if place.leases is not None:
            place.leases.discard(lease)
        if lease.keeper is not None:
            if upstream is not None:
                lease.keeper.returned(upstream, keep=keep and not self._retired and not place.gone)
        elif upstream is not None:
            stream = upstream.stream
            if keep and self._keeps(place) and not stream.pending and not stream.ending and upstream.http.recycle():
                upstream.idle_since = clock.now()
                place.idle.append(upstream)
                upstream.is_idle = True
            else:
                upstream.stream.close_now()
        if place.permits is not None:
            place.permits.give()
        if self._is_shared and self._others_wait():
            self._watch()
        elif self._waiting or self._lines:
            self._dispatch()

    def _keeps(self, place: Place) -> bool:
        """Whether `place` takes one more idle connection."""
        return not self._retired and not place.gone and len(place.idle) < IDLE_PER_PLACE

    def _dispatch(self) -> None:
        """Give free places to waiting requests, first come first served."""
        while self._serve_one():
            pass
        if self._waiting or self._lines:
            self._watch()

    def _serve_one(self) -> bool:
        """Give a place to the first request that can have one; whether there was any."""
        first = self._waiting[0].rank if self._waiting else LAST
        for place, line in self._lines.items():
            if not line.waiters or place.permits is None or (line.waiters[0].rank > first and not place.is_out):
                continue
            if place.permits.take():
                line.serve_next(Lease(self, place, None))
                return True
        if not self._waiting or (lease := self._take()) is None:
            return False
        self.queue.serve_next(lease)
        return True

    def _others_wait(self) -> bool:
        """Whether requests wait in other fronts."""
        return self.queue.counter.others() > 0

    def _watch(self) -> None:
        """Have `run` watch the places of which others hold permits."""
        if any(self._may_be_freed(place) and not place.awaited for place in self.places):
            self._work.set()

    def _may_be_freed(self, place: Place) -> bool:
        """Whether somebody else may give a permit of `place` back that is of use here."""
        is_of_use = not place.is_out or place in self._lines
        return is_of_use and place.permits is not None and place.active < place.permits.limit

    def _update_places(self) -> None:
        """Make the places fit the known addresses: new ones join, removed ones finish what they hold."""
        wanted = {(target.text, address): target for target, found in self._known.items() for address in found}
        kept = [place for place in self.places if (place.target, place.address) in wanted]
        for place in self.places:
            if place not in kept:
                place.gone = True
                place.close_idle()
                self.leaving.append(place)
                if (line := self._lines.get(place)) is not None:
                    line.dismiss()
        self.departed += sum(place.served for place in self.leaving if not place.active)
        self.leaving = [place for place in self.leaving if place.active]
        for keeper in [one for one in self.keepers if one.place is not None and one.place.gone]:
            keeper.end()
        have = {(place.target, place.address) for place in kept}
        new = [
            Place(text, address, target.dialect, self._permits(address), watch=target is self.settings.told)
            for (text, address), target in wanted.items()
            if (text, address) not in have
        ]
        self.places = kept + new
        if self.settings.told is not None:  # only where every place has permits do requests of other fronts come first
            self._is_shared = isinstance(self.slots, Slots) and all(place.permits is not None for place in self.places)
        if new:
            self._dispatch()

    def told(self, addresses: Sequence[Address], off: str = "", limits: Mapping[Address, int] = NO_LIMITS) -> None:
        """Where the apps are whose addresses control tells (`PoolSettings.told`), and why there shall be none: with
        `off`, nothing waits here, and what waits is refused.  `limits`: requests at once for some of them, instead of
        the pool's `concurrency`."""
        assert self.settings.told is not None
        self._limits = limits
        self.off, self._has_asked = off, False
        self._known[self.settings.told] = list(addresses)
        self._update_places()
        if off:
            self.queue.dismiss()
        elif self._waiting:
            self.ask_for_places()

    def ask_for_places(self) -> None:
        """Say that requests wait for an app that nobody has started (HTTP.sys: HttpWaitForDemandStart)."""
        if not self.places and self.wanted is not None and not self._has_asked:
            self._has_asked = True
            self.wanted(self)

    def _permits(self, address: Address) -> Permits | None:
        limit = self._limits.get(address, self.settings.concurrency)
        return permits(self.slots, f"{self.settings.name} {address}", limit) if limit is not None else None

    def _connect_failed(self, lease: Lease, error: ConnectFailed) -> None:
        place = lease.place
        if not place.is_out:  # connects that fail together are one failure: the back-off counts tries, not requests
            place.failed(error, trio.current_time())
            self._work.set()
            self._alarm.set()
            self._alarm = trio.Event()
        place.close_idle()
        lease.discard()

    def app_gone(self, lease: Lease) -> None:
        """A connection ended without an answer: its idle siblings are as dead."""
        lease.place.close_idle()
        lease.discard()

    def exchange_over(self) -> None:
        """One of `exchanges` will not come back for a lease any more; a retired pool lives on until then."""
        self.exchanges -= 1
        if self._retired:
            self._work.set()

    # ------------------------------------------------------------------ the hands: asynchronous

    async def lease(
        self, connect_timeout: float, keeper: Keeper | None = None, *, urgency: int = URGENCY, again: bool = False
    ) -> Lease:
        """A lease with a connection; waits in the queue for a place and connects when needed, which it always is for a
        `keeper`.  `again`: the app that had the request is gone; it waits first in line, whatever the limit, and its
        connection is a new one too.

        Raises `FrontdError`: ``QueueFull``; after the queue's wait ``Timer_ReqQueue`` (apps busy) or ``AppOffline``
        (none could be reached); ``UpstreamTls`` when an app's certificate is not trusted.
        """
        began = trio.current_time()
        rank = self.queue.draw(urgency, again=again)
        first = not again
        while True:
            lease = None if self._waiting or (self._is_shared and self._others_wait()) else self._take()
            if lease is None:
                if self.off:
                    raise self._waited_out()
                self._refuse_untrusted()
                if first:
                    self.queue.check_room()
                    first = False
                self.ask_for_places()
                self._watch()
                deadline = began + self.settings.queue_wait
                lease = await self.queue.wait(rank, began, deadline, Lease.discard)
                if lease is None:
                    raise self._waited_out()
            if keeper is not None or again:
                lease.keeper = keeper
                lease.put_back(keep=self._keeps(lease.place))
            if lease.upstream is not None:
                return lease
            try:
                lease.upstream = await connect(lease.place.address, lease.place.dialect, connect_timeout)
            except ConnectFailed as error:
                self._connect_failed(lease, error)
                first = False
                continue
            except BaseException:
                lease.discard()
                raise
            lease.upstream.uses = 1
            lease.upstream.place = lease.place
            lease.place.succeeded()
            self._dispatch()
            return lease

    def lease_again_nowait(self, place: Place, upstream: Upstream, keeper: Keeper) -> Lease | None:
        """A lease of the connection that `keeper` has, if no permit of its place has to be waited for."""
        if place.permits is not None and ((self._is_shared and self._others_wait()) or not place.permits.take()):
            return None
        upstream.uses += 1
        return Lease(self, place, upstream, keeper)

    async def lease_again(self, place: Place, upstream: Upstream, keeper: Keeper, urgency: int = URGENCY) -> Lease:
        """`lease_again_nowait` that waits for its turn.  Raises `FrontdError`: ``QueueFull``, ``Timer_ReqQueue``."""
        self.queue.check_room()
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = RequestQueue(self.settings.queue_limit, self.queue.counter)
        began = trio.current_time()
        self._watch()
        try:
            lease = await line.wait(self.queue.draw(urgency), began, began + self.settings.queue_wait, Lease.discard)
        finally:
            if not line.waiters and self._lines.get(place) is line:
                del self._lines[place]
        if lease is None:
            raise FrontdError(Reason.AppOffline, detail=f"{place.name} has left") if place.gone else self._busy()
        upstream.uses += 1
        lease.upstream, lease.keeper = upstream, keeper
        return lease

    def _refuse_untrusted(self) -> None:
        """Raises `FrontdError` when waiting cannot help: no place but those whose certificate is not trusted."""
        reasons = [place.reason for place in self.places if place.is_out and place.reason is not None]
        if reasons and len(reasons) == len(self.places):
            raise FrontdError(reasons[0], detail=self._errors())

    def _waited_out(self) -> FrontdError:
        if self.off:
            return FrontdError(Reason.AppOffline, detail=self.off, retry_after=5)
        self._refuse_untrusted()
        if any(place.state != "down" for place in self.places):
            return self._busy()
        return FrontdError(Reason.AppOffline, detail=self._errors(), retry_after=5)

    def _busy(self) -> FrontdError:
        return FrontdError(Reason.Timer_ReqQueue, detail=f"busy for {self.settings.queue_wait:g} s", retry_after=1)

    def _errors(self) -> str:
        known = [f"{one.address}: {one.error}" for one in self.places if one.error] + [*self.lookup_errors.values()]
        return "; ".join(known or ["no address" if self.settings.told is None else "no app is ready"])

    async def run(self) -> None:
        """Look names up, probe what is down, close what is idle too long; until `retire` and the last lease."""
        try:
            await self._run()
        finally:
            self._retired = True  # what is given back from here on has nobody to look after it
            for place in self.places:
                place.close_idle()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            for target in self.names:
                nursery.start_soon(self._keep_looking_up, target)
            while not self.is_over:
                now = trio.current_time()
                self._close_idle(now)
                for place in self.places:
                    if place.is_out and not place.probing and place.retry_at <= now:
                        place.probing = True
                        nursery.start_soon(self._probe, place)
                    if (self._waiting or self._lines) and not place.awaited and self._may_be_freed(place):
                        place.awaited = True
                        nursery.start_soon(self._watch_permits, place)
                await self._wait_for_work(now)
            nursery.cancel_scope.cancel()

    @property
    def is_over(self) -> bool:
        """Whether it has been replaced, and its last exchange has ended."""
        busy = self.exchanges or len(self.queue) or any(place.active for place in self.places)
        return self._retired and not busy

    async def _wait_for_work(self, now: float) -> None:
        times = [place.retry_at for place in self.places if place.is_out and not place.probing]
        with trio.CancelScope(deadline=min([now + SWEEP, *times])):
            await self._work.wait()
        self._work = trio.Event()

    def _close_idle(self, now: float) -> None:
        oldest = float("inf") if self._retired else now - self.settings.keep_alive
        for place in self.places:
            while place.idle and place.idle[0].idle_since <= oldest:
                place.idle.popleft().stream.close_now()
        for keeper in tuple(self.keepers):
            keeper.look(oldest)

    async def _watch_permits(self, place: Place) -> None:
        """Give permits of `place` that others return to those who wait here."""
        assert place.permits is not None
        try:
            self._dispatch()  # what was given before anybody watched
            while (self._waiting or self._lines) and not place.gone and self._may_be_freed(place):
                await place.permits.wait()
                self._dispatch()
        finally:
            place.awaited = False

    async def _probe(self, place: Place) -> None:
        """Try to connect to a place that is out; a success puts it back and keeps the connection."""
        try:
            upstream = await connect(place.address, place.dialect, self.settings.connect)
        except ConnectFailed as error:
            place.failed(error, trio.current_time())
        else:
            place.succeeded()
            upstream.place = place
            if self._keeps(place):
                upstream.idle_since = clock.now()
                place.idle.append(upstream)
                upstream.is_idle = True
            else:
                upstream.stream.close_now()
            self._dispatch()
        finally:
            place.probing = False
            self._work.set()

    async def _keep_looking_up(self, target: Target) -> None:
        """Look a name up at once, then every `resolve` seconds; sooner while something of it cannot be reached."""
        backoff = BACKOFF_FIRST
        while True:
            await self._look_up(target)
            reachable = [place.state != "down" for place in self.places if place.target == target.text]
            if any(reachable):
                backoff = BACKOFF_FIRST
                pause = self.settings.resolve if all(reachable) else min(BACKOFF_LAST, self.settings.resolve)
            else:
                pause = backoff
                backoff = min(backoff * 2, BACKOFF_LAST)
            with trio.move_on_after(pause):
                await self._alarm.wait()

    async def _look_up(self, target: Target) -> None:
        try:
            with trio.fail_after(self.settings.connect):
                found = await trio.socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            why = getattr(error, "strerror", None) or "no answer"
            self.lookup_errors[target] = f"{target.host} does not resolve: {why}"
            # What still works stays; what is down besides is forgotten, so that its next address is a new start.
            alive = {place.address for place in self.places if place.state != "down"}
            self._known[target] = [address for address in self._known.get(target, []) if address in alive]
        else:
            self.lookup_errors.pop(target, None)
            self._known[target] = list(dict.fromkeys(Address(str(info[4][0]), target.port) for info in found))
        self._update_places()

    def retire(self) -> None:
        """No new requests will come; `run` returns when the last lease has ended."""
        self._retired = True
        for keeper in tuple(self.keepers):
            keeper.end()
        self._work.set()
