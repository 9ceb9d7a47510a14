"""Connections that are somebody's alone: where they go, and how their requests wait for a permit of their own place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from frontd.model.errors import FrontdError, Reason
from frontd.net.shared import Slots
from frontd.upstream.balance import Place
from frontd.upstream.client import Address, Upstream
from frontd.upstream.lease import NOBODY, Lease
from frontd.upstream.pool import Pool
from tests.upstream.parts import CONNECT, Names, ask, running, settings, take, target
from tests.upstream.test_permits import Fronts
from tests.wire import app, settled


class Box:
    """A keeper that holds on to its connection."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self.upstream: Upstream | None = None
        self.ends = 0

    def returned(self, upstream: Upstream, /, *, keep: bool) -> None:
        if not (keep and upstream.http.recycle()):
            upstream.stream.close_now()

    def look(self, oldest: float, /) -> None: ...

    def end(self) -> None:
        self.ends += 1

    async def fill(self, pool: Pool) -> None:
        """Have a connection made, and use it."""
        lease = await pool.lease(CONNECT, self)
        self.place, self.upstream = lease.place, lease.connection
        pool.keepers.add(self)
        await ask(lease)

    async def take(self, pool: Pool) -> Lease:
        """A lease of its connection."""
        assert self.place is not None
        assert self.upstream is not None
        found = pool.lease_again_nowait(self.place, self.upstream, self)
        return found or await pool.lease_again(self.place, self.upstream, self)

    def close(self) -> None:
        assert self.upstream is not None
        self.upstream.stream.close_now()


@pytest.fixture
def two() -> Iterator[list[Slots]]:
    fronts = Fronts(2)
    yield fronts.slots
    fronts.close()


async def test_a_kept_connection_is_new_and_never_in_the_pool() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        await ask(await take(pool))
        (place,) = pool.places
        (idle,) = place.idle
        box = Box()
        await box.fill(pool)
        assert box.upstream is not idle
        assert list(place.idle) == [idle]
        assert (idle.is_idle, idle.uses, it.connections) == (True, 1, 2)
        lease = await box.take(pool)
        assert lease.connection is box.upstream
        assert not lease.is_fresh
        await ask(lease)
        assert list(place.idle) == [idle]
        box.close()


async def test_what_is_nobody_s_is_closed_behind_its_answer() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        lease = await take(pool)
        lease.keeper = NOBODY
        await ask(lease)
        assert lease.connection.stream.closed
        assert not pool.places[0].idle


async def test_the_queue_and_the_line_of_a_place_are_one(autojump_clock: object) -> None:
    """Whoever came first is first, whether any place will do or one alone."""
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port), concurrency=1))) as pool:
        box, order = Box(), list[int]()
        await box.fill(pool)

        async def one(number: int) -> None:
            lease = await (box.take(pool) if number % 3 else take(pool))
            order.append(number)
            await trio.sleep(1)
            await ask(lease)

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(one, number)
                await settled()
        assert order == list(range(9))
        box.close()


async def test_who_waits_for_one_place_keeps_nobody_from_another(autojump_clock: object) -> None:
    async with app() as first, app() as second:
        both = settings(target("127.0.0.1", first.port), target("127.0.0.1", second.port), concurrency=1)
        async with running(Pool(both)) as pool:
            box, got = Box(), list[Lease]()
            await box.fill(pool)
            held = await box.take(pool)

            async def wait() -> None:
                got.append(await box.take(pool))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await settled()
                other = await take(pool)
                assert other.place is not box.place
                assert not got
                await ask(other)
                await settled()
                assert not got
                await ask(held)
            await ask(got[0])
            box.close()


async def test_who_leaves_the_line_takes_nothing_along(autojump_clock: object) -> None:
    only = {"concurrency": 1, "queue_limit": 1, "queue_wait": 3.0}
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port), **only))) as pool:
        box = Box()
        await box.fill(pool)
        held = await take(pool)
        with trio.move_on_after(1):
            await box.take(pool)
        with pytest.raises(FrontdError) as late:
            await box.take(pool)
        assert late.value.reason is Reason.Timer_ReqQueue
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.take, pool)
            await settled()
            with pytest.raises(FrontdError) as full:
                await box.take(pool)
            assert full.value.reason is Reason.QueueFull
            nursery.cancel_scope.cancel()
        await ask(held)
        await ask(await box.take(pool))
        assert pool.queue.counter.total() == 0
        box.close()


async def test_a_permit_of_another_front_is_waited_for(autojump_clock: object, two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            box, got = Box(), list[Lease]()
            await box.fill(other)
            held = await take(one)
            began = trio.current_time()

            async def wait() -> None:
                got.append(await box.take(other))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(3.3)
                assert not got
                assert one.queue.counter.total() == 1
                held.discard()
            assert trio.current_time() - began == pytest.approx(3.3)
            await ask(got[0])
            box.close()


async def test_keepers_are_told_when_their_place_or_pool_goes(autojump_clock: object) -> None:
    async with app() as it:
        names = Names({"app.test": ["127.0.0.1"]})
        async with running(Pool(settings(target("app.test", it.port)))) as pool:
            box = Box()
            await box.fill(pool)
            names.table["app.test"] = ["127.0.0.2"]
            await trio.sleep(6)
            assert box.ends == 1
            pool.retire()
            assert box.ends == 2
            box.close()


async def test_who_waits_for_a_place_that_leaves_is_let_go(two: list[Slots]) -> None:
    """Its permit may be held in another front, and nobody watches the permits of a place that is gone."""
    async with app() as it:
        told = target("workers", 0)
        only = settings(told=told, concurrency=1)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            for pool in (one, other):
                pool.told([Address("127.0.0.1", it.port)])
            box, caught = Box(), list[Reason]()
            await box.fill(other)
            held = await take(one)

            async def wait() -> None:
                with pytest.raises(FrontdError) as late:
                    await box.take(other)
                caught.append(late.value.reason)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await settled()
                other.told([])
                await settled()
                assert caught == [Reason.AppOffline]
            assert one.queue.counter.total() == 0
            held.discard()
            box.close()
