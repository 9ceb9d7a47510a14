"""The reactor: it drives the life of requests by plain calls, for as long as they need nothing but bytes.

How it works
------------
One trio task waits on a private epoll set: through trio, or in its place as long as trio has nothing to do but wait
(`lanes.others`), which saves a turn of its loop for each wake-up.  An event resumes the coroutine that is parked on the
stream, or tells the stream's owner: a connection then begins a turn, an idle connection to an app leaves its pool.  A
coroutine that yields a stream is parked on it; one that yields `OthersFirst` is too, until the others had their turn;
one that yields `TASK_LANE` goes on, the same object, in a trio task of its own, and what comes after it is the
reactor's again.  Anything else it yields is refused: nothing of trio's can be awaited here.

Work is done in slices, until about as much time has passed as everything else took since the last one, so that neither
a thousand ready connections keep the tasks waiting nor the tasks the connections.  Events are taken in batches; what is
left of a batch at the end of a slice is seen to in the next one.

Every connection has one deadline and a place in one wheel (`lanes.wheel`), so an answered request costs no timer.

With ``FRONTD_REACTOR=off`` in the environment every connection is a task instead; the set then only tells who has left.

Invariants (and the registration law, `lanes.registration`)
----------
* Event bits are hints: who is told of them reads.  A stream that was registered during a batch gets no event of it.
* A fault while one connection is driven ends that connection with a reason, never the loop.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import trio

from frontd.lanes.driven import Driven, Life
from frontd.lanes.others import Others, epoll_of_trio
from frontd.lanes.registration import Registration
from frontd.lanes.wheel import Wheel
from frontd.model.errors import FrontdError
from frontd.net.streams import Owner, Stream
from frontd.net.traps import TASK_LANE, Ended, OthersFirst, carry, clock, fault_of

BATCH = 32  # events taken at a time
LEAST, MOST = 0.001, 0.005  # s of a slice
QUIET = 2  # wake-ups in a row that found trio with nothing to do, before the reactor waits in its place

_ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Reactor(Registration):
    """The wheel, and the driver, over the epoll set.  `fault` is told what nobody should have raised."""

    def __init__(self, fault: Callable[[str, BaseException], None]) -> None:
        super().__init__()
        self._fault = fault
        self._works = False
        self._left: list[tuple[int, int]] = []  # events of this batch that are still to be seen to
        self._again: OrderedDict[Driven, None] = OrderedDict()  # have more to do, once the others had their turn
        self._paused: OrderedDict[Stream, None] = OrderedDict()  # who is parked on them goes on in the next slice
        self._wheel: Wheel[Driven] = Wheel()
        self._sleep: trio.CancelScope | None = None
        self._others: Others | None = None
        self._trios = -1  # trio's epoll set
        self._called = False  # it has an event
        self._nursery: trio.Nursery | None = None
        self.drives = os.environ.get("FRONTD_REACTOR") != "off"

    # ------------------------------------------------------------------ driving

    def begin(self, connection: Driven, life: Life) -> None:
        """Drive `life` for an idle connection."""
        connection.coroutine = life
        self._step(connection, None)

    def _step(self, connection: Driven, error: BaseException | None) -> None:
        """Resume a connection's coroutine, until it waits for bytes that are not there."""
        coroutine = connection.coroutine
        assert coroutine is not None
        try:
            trap = coroutine.send(None) if error is None else coroutine.throw(error)
            while trap is not TASK_LANE:
                if isinstance(trap, OthersFirst):
                    trap = self._pause(trap)
                    break
                if not isinstance(trap, Stream):
                    trap = coroutine.throw(RuntimeError(f"{trap!r} was awaited before task_lane()"))
                elif connection.stream.ending and connection.is_gone:  # before anything had to be waited for
                    trap = coroutine.throw(Ended())
                elif trap.lane is None:  # a connection that a task has made
                    try:
                        self.register(trap, cast("Owner", trap.owner))  # which a closed one has not
                    except (OSError, ValueError) as unwatched:
                        trap = coroutine.throw(unwatched)
                    else:
                        break
                elif not trap.ready:
                    break
                else:
                    trap = coroutine.send(None)
        except StopIteration:
            try:
                self._over(connection)
            except BaseException as thrown:
                self._failed(connection, thrown)
            return
        except BaseException as thrown:
            error = None  # its traceback leads back to this frame
            self._failed(connection, thrown)
            return
        if trap is TASK_LANE:
            self._to_task(connection)
            return
        trap.waiter = connection
        connection.parked = trap
        connection.deadline = deadline = trap.deadline
        if deadline < connection.due:
            self._schedule(connection, deadline)

    def _pause(self, trap: OthersFirst) -> Stream:
        stream = cast("Stream", trap.stream)
        stream.deadline = math.inf
        if not self._works and not self._paused:
            os.eventfd_write(self._alarm, 1)
        self._paused[stream] = None
        return stream

    def welcome(self, connection: Driven, opening: Life | None) -> None:
        """Drive a new connection: first `opening`, then a turn whenever bytes come."""
        if not self.drives:
            assert self._nursery is not None, "the reactor does not run"
            self.watch(connection.stream, connection)
            self._nursery.start_soon(self.live, connection, opening)
            return
        try:
            self.register(connection.stream, connection)
        except (OSError, ValueError) as unwatched:
            self._fault("connection", unwatched)
            self._finish(connection)
            return
        if opening is not None:
            self.begin(connection, opening)
        else:
            connection.deadline = connection.at_rest()
            self._schedule(connection, connection.deadline)

    def wake(self, connection: Driven) -> None:
        """An idle connection has something to see to, although nothing came."""
        if connection.coroutine is not None:
            return
        if connection.scope is not None:
            connection.scope.cancel()
            return
        if not self.drives:  # its task is between two things, or has not begun
            connection.more = True
            return
        if not self._works and not self._again:
            os.eventfd_write(self._alarm, 1)
        self._again[connection] = None  # once: bytes that came meanwhile buy no second turn in every round

    def hurry(self, connection: Driven, deadline: float) -> None:
        """An idle connection may be idle until `deadline` only."""
        if connection.coroutine is not None:
            return
        if connection.scope is not None:
            connection.scope.deadline = min(connection.scope.deadline, deadline)
            self._tell_trio()
        elif deadline < connection.deadline:
            connection.deadline = deadline
            self._schedule(connection, deadline)

    def _over(self, connection: Driven) -> None:
        """A coroutine has come to its end."""
        connection.coroutine = None
        stream = connection.stream
        if stream.closed:
            connection.finish()
            return
        if stream.ready or connection.more:
            connection.more = False
            self.wake(connection)
        connection.deadline = deadline = connection.at_rest()
        if deadline < connection.due:
            self._schedule(connection, deadline)

    def _failed(self, connection: Driven, error: BaseException) -> None:
        """A coroutine ended with what it should have dealt with, or because it was told to."""
        connection.coroutine = None
        if (fault := fault_of(error)) is not None:
            self._fault("connection", fault)
        self._finish(connection)
        if fault is None and not isinstance(error, Ended):
            raise error

    def _finish(self, connection: Driven) -> None:
        """Have it end, whatever that raises."""
        try:
            connection.finish()
        except Exception as fault:
            self._fault("connection", fault)
            connection.stream.close_now()
            self.dismiss(connection)

    def interrupt(self, connection: Driven, error: BaseException) -> None:
        """Throw `error` into what a connection does, wherever that is driven."""
        if connection.scope is not None:
            connection.scope.cancel()
        elif connection.parked is not None:
            self._unpark(connection)
            self._step(connection, error)

    def _unpark(self, connection: Driven) -> None:
        assert connection.parked is not None
        connection.parked.waiter = None
        connection.parked = None

    # ------------------------------------------------------------------ the task lane

    def _to_task(self, connection: Driven) -> None:
        assert self._nursery is not None
        connection.scope = trio.CancelScope()
        if connection.is_gone:
            connection.scope.cancel()
        connection.deadline = math.inf
        stream = connection.stream
        if stream.lane is not None:
            self.leave(stream)
        self._nursery.start_soon(self._in_task, connection)

    async def _in_task(self, connection: Driven) -> None:
        """The rest of a coroutine in a task; then the connection is the reactor's again, or over."""
        if await self._carried(connection):
            try:
                self.come_back(connection.stream)
                self._over(connection)
            except Exception as fault:
                self._failed(connection, fault)

    async def _carried(self, connection: Driven) -> bool:
        """Run what a connection does in this task, to its end; whether it is idle then."""
        coroutine, scope = connection.coroutine, connection.scope
        assert coroutine is not None
        assert scope is not None
        try:
            with scope:
                await carry(coroutine)
        except BaseException as error:
            if (fault := fault_of(error)) is None:
                self._finish(connection)
                raise
            self._fault("connection", fault)
            self._finish(connection)
        connection.scope = connection.coroutine = None
        if scope.cancelled_caught or connection.stream.closed:
            self._finish(connection)
            return False
        return True

    async def live(self, connection: Driven, opening: Life | None) -> None:
        """The whole life of a connection as one task, where the reactor is switched off."""
        try:
            await self._live(connection, opening)
        except Exception as fault:
            self._fault("connection", fault)
        finally:
            self._finish(connection)

    async def _live(self, connection: Driven, coroutine: Life | None) -> None:
        while True:
            if coroutine is not None:
                connection.coroutine, connection.scope = coroutine, trio.CancelScope()
                if not await self._carried(connection):
                    return
            if connection.more:
                await trio.lowlevel.checkpoint()
            if connection.more or await self._idle(connection):
                coroutine = connection.next_turn()
            else:
                coroutine = connection.expired()
            connection.more = False

    async def _idle(self, connection: Driven) -> bool:
        """Wait for the next bytes; False when that took too long."""
        deadline = connection.at_rest()
        with trio.CancelScope(deadline=deadline) as connection.scope:
            await trio.lowlevel.wait_readable(connection.stream.sock)
        return not (connection.scope.cancelled_caught and trio.current_time() >= deadline)

    # ------------------------------------------------------------------ time

    def _schedule(self, connection: Driven, deadline: float) -> None:
        """Look at `connection` when `deadline` is due."""
        if self._wheel.put(connection, deadline) and self._sleep is not None and deadline < self._sleep.deadline:
            self._sleep.deadline = deadline
            self._tell_trio()

    def _tell_trio(self) -> None:
        """A deadline of trio's is another than it knew."""
        if self._others is not None:
            self._others.look_again()

    def dismiss(self, connection: Driven) -> None:
        """It is over: no timer holds it any more."""
        connection.deadline = math.inf
        self._wheel.drop(connection)

    async def watch_clock(self) -> None:
        """End what has waited for too long, for ever."""
        while True:
            with trio.CancelScope(deadline=self._wheel.next_look(trio.current_time())) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            began = time.perf_counter()
            for connection in self._wheel.take_due(now):
                if time.perf_counter() >= began + MOST:  # thousands that came at once are due at once
                    await trio.lowlevel.checkpoint()
                    began = time.perf_counter()
                if connection.deadline > now:  # the end of another one has moved it on
                    self._schedule(connection, connection.deadline)
                elif connection.parked is not None:
                    reason = connection.parked.reason
                    self._unpark(connection)
                    self._step(connection, FrontdError(reason))
                else:
                    self._begin(connection, connection.expired)

    # ------------------------------------------------------------------ the loop

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve events until cancelled."""
        passed = time.perf_counter  # real time, also where trio's clock is a test's
        busy, ended, quiet = False, passed(), 0
        self._trios = await epoll_of_trio() if self.drives else -1
        others = self._others = Others()
        trio.lowlevel.add_instrument(others)
        try:
            with clock.found():
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self.watch_clock)
                    task_status.started()
                    while True:
                        if busy or self._again or self._paused:
                            await trio.lowlevel.checkpoint()
                        else:
                            await trio.lowlevel.wait_readable(self._epoll.fileno())
                        began = passed()
                        self._works = True
                        busy = self._slice(began + min(max(began - ended, LEAST), MOST))
                        quiet = quiet + 1 if others.nothing else 0
                        if quiet >= QUIET and self._trios >= 0:
                            quiet = 0
                            busy = self._in_place_of_trio(others)
                        self._works = False
                        ended = passed()
        finally:
            trio.lowlevel.remove_instrument(others)
            self._others = None
            self._end()

    def _slice(self, until: float) -> bool:
        """Work until nothing is left, or the time is over; whether there may be more.  Events come first, then whoever
        has had a turn already, then who has paused; of each at least one, however little time there is."""
        paused = len(self._paused)  # who pauses in this slice goes on in the next one
        while True:
            events = self._take(0)
            paused = self._round(events, paused, until)
            if not self._again and not paused and not events:  # asked once more: a turn of trio's costs more
                return False
            if time.perf_counter() >= until:
                return True

    def _in_place_of_trio(self, others: Others) -> bool:
        """Wait and work for as long as trio has nothing to do; whether there may be more.  When more comes than one
        batch holds, trio's own events may be somewhere behind it: then slices are the law again."""
        trio.lowlevel.notify_closing(self._epoll.fileno())  # it holds on to what it once waited for; no circles
        try:
            self._epoll.register(self._trios, select.EPOLLIN)
        except OSError:  # the kernel's limit of watches, or of sets in sets
            self._trios = -1
            return False
        self._called = False
        size = 0
        try:
            while size < BATCH and others.nothing and not self._called and (now := time.perf_counter()) < others.until:
                paused = len(self._paused)
                events = self._take(0 if paused or self._again else others.until - now)
                size = len(events)
                self._round(events, paused, time.perf_counter() + LEAST)
        finally:
            self._epoll.unregister(self._trios)
        return size == BATCH or bool(self._left)

    def _take(self, timeout: float) -> list[tuple[int, int]]:
        """The next events: what is left of a batch, or a new one, for which to wait up to `timeout` seconds."""
        events, self._left = self._left, []
        if not events:
            events = self._epoll.poll(timeout, BATCH)
            self._batch += 1
        return events

    def _round(self, events: list[tuple[int, int]], paused: int, until: float) -> int:
        """See to `events`, to those who have had a turn already, and to the first `paused` that have paused; how many
        of these are left when the time is over."""
        again = self._again
        self._dispatch(events, until)
        for _ in range(len(again)):
            connection, _ = again.popitem(last=False)
            self._begin(connection, connection.next_turn)
            if time.perf_counter() >= until:
                break
        while paused:
            paused -= 1
            self._go_on(self._paused.popitem(last=False)[0])
            if time.perf_counter() >= until:
                break
        return paused

    def _dispatch(self, events: list[tuple[int, int]], until: float) -> None:
        """See to `events`; what is left of them when the time is over is kept."""
        streams, batch, passed = self._streams, self._batch, time.perf_counter
        at = 0
        for fd, bits in events:
            at += 1
            stream = streams[fd]
            if stream is None or stream.born == batch:
                if fd == self._trios:
                    self._called = True
                continue
            if bits & _ENDING:
                stream.ending = True
            stream.ready = True
            waiter = stream.waiter
            if waiter is not None:
                stream.waiter = None
                waiter.parked = None
                self._step(waiter, None)
            elif stream.owner is not None:
                try:
                    stream.owner.on_event(stream)
                except Exception as fault:
                    self._deaf(stream, stream.owner, fault)
            if passed() >= until:
                self._left = events[at:]
                return

    def _go_on(self, stream: Stream) -> None:
        """Resume who is parked on `stream`; nobody is any more when it was interrupted meanwhile."""
        waiter = stream.waiter
        if waiter is not None:
            stream.waiter = None
            waiter.parked = None
            self._step(waiter, None)

    def _deaf(self, stream: Stream, owner: Owner, fault: Exception) -> None:
        """The owner of a stream failed when it was told of an event."""
        if owner.hears_end:
            self._failed(cast("Driven", owner), fault)
        else:
            self._fault("connection to an app", fault)
            stream.close_now()

    def _begin(self, connection: Driven, life: Callable[[], Life]) -> None:
        """`begin` for one that is still idle, with what `life` gives or fails to give."""
        if connection.coroutine is not None or connection.stream.closed:
            return
        try:
            begun = life()
        except Exception as fault:
            self._failed(connection, fault)
        else:
            self.begin(connection, begun)

    def _end(self) -> None:
        """The front ends: so does everything that is driven here."""
        self._nursery = None
        for stream in self.streams:
            if stream.owner is not None and stream.owner.hears_end:
                connection = cast("Driven", stream.owner)
                self.interrupt(connection, Ended())
                self._finish(connection)
