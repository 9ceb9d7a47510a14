"""Pools that share an app's concurrency: with another front, and with the pool that a reload put in their place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import chain

import pytest
import trio
import trio.testing

from frontd.lanes.reactor import Reactor
from frontd.model.errors import FrontdError, Reason
from frontd.net.permits import SharedPermits, permits
from frontd.net.shared import LocalSlots, SharedFds, Slots
from frontd.upstream.lease import Lease
from frontd.upstream.pool import Pool
from frontd.upstream.report import rows
from tests.upstream.parts import ask, running, settings, take, target
from tests.wire import app, free_port, settled


class Fronts:
    """The slots of `count` fronts in one process; each has eventfds of its own number, as a process has."""

    def __init__(self, count: int) -> None:
        self.shared = SharedFds(count)
        self.copies = [[os.dup(fd) for fd in self.shared.eventfds[:4]] for _ in range(count)]
        self.slots = [Slots(self.shared.fd, index, count, fds) for index, fds in enumerate(self.copies)]

    def close(self) -> None:
        """Close what was opened."""
        self.shared.close()
        for fd in chain(*self.copies):
            os.close(fd)


@pytest.fixture
def two() -> Iterator[list[Slots]]:
    fronts = Fronts(2)
    yield fronts.slots
    fronts.close()


async def hold(pool: Pool, got: list[Lease]) -> None:
    """Wait for a lease and keep it."""
    got.append(await take(pool))


class Wakeups(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    def __init__(self) -> None:
        self.count = 0
        trio.lowlevel.add_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


# ---------------------------------------------------------------------------------------------------- two fronts


async def test_what_one_front_holds_the_other_waits_for(autojump_clock: object, two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            held = await take(one)
            began, got = trio.current_time(), list[Lease]()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, other, got)
                await trio.sleep(3.3)
                assert not got
                assert len(other.queue) == 1
                held.discard()
            assert trio.current_time() - began == pytest.approx(3.3)  # told at once, not at the next sweep
            assert one.lease_nowait() is None
            got[0].discard()


async def test_within_a_front_first_come_first_served(autojump_clock: object, two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            order: list[tuple[str, int]] = []

            async def stay(name: str, pool: Pool, number: int) -> None:
                lease = await take(pool)
                order.append((name, number))
                await trio.sleep(1)
                lease.discard()

            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(stay, "one", one, number)
                    nursery.start_soon(stay, "other", other, number)
                    await settled()
            for name in ("one", "other"):
                assert [number for of, number in order if of == name] == list(range(6))


async def test_the_queue_s_limit_counts_all_fronts(autojump_clock: object, two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1, queue_limit=3)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            held, got = await take(one), list[Lease]()
            async with trio.open_nursery() as nursery:
                for pool in (one, one, other):
                    nursery.start_soon(hold, pool, got)
                await trio.sleep(1)
                for pool in (one, other):
                    with pytest.raises(FrontdError) as caught:
                        await take(pool)
                    assert caught.value.reason is Reason.QueueFull
                    assert "3 requests wait" in caught.value.detail
                held.discard()
                for count in (1, 2, 3):
                    await trio.sleep(1)
                    assert len(got) == count
                    got[-1].discard()


async def test_status_tells_what_all_fronts_hold(two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=5)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            leases = [await take(one), await take(one), await take(other)]
            found = [rows(pool)[0] for pool in (one, other)]
            assert [(row["active"], row["held"]) for row in found] == [(2, 3), (1, 3)]
            for lease in leases:
                lease.discard()
        async with running(Pool(settings(target("127.0.0.1", it.port)), two[0])) as pool:
            assert rows(pool)[0]["held"] is None


async def test_a_place_full_elsewhere_leaves_the_other_place(two: list[Slots]) -> None:
    async with app() as first, app() as second:
        both = settings(target("127.0.0.1", first.port), target("127.0.0.1", second.port), concurrency=1)
        async with running(Pool(both, two[0])) as one, running(Pool(both, two[1])) as other:
            held = await take(one)
            lease = await take(other)
            assert (held.place.address.port, lease.place.address.port) == (first.port, second.port)
            held.discard()
            lease.discard()


async def test_an_idle_connection_is_no_use_without_a_permit(two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            await ask(await take(one))
            assert len(one.places[0].idle) == 1
            first = await take(other)
            assert one.lease_nowait() is None
            first.discard()


async def test_without_concurrency_there_are_no_permits(two: list[Slots]) -> None:
    pool = Pool(settings(target("127.0.0.1", free_port())), two[0])
    assert [place.permits for place in pool.places] == [None]


async def test_who_comes_does_not_overtake_those_who_wait_in_another_front(two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            held, got = await take(one), list[Lease]()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, other, got)
                await settled()
                await ask(held)
                assert one.lease_nowait() is None  # though there is an idle connection, and a permit
                await settled()
                assert len(got) == 1
            got[0].discard()
            lease = one.lease_nowait()
            assert lease is not None
            lease.discard()


# ---------------------------------------------------------------------------------------------------- waking up


async def test_who_waits_for_a_permit_sleeps(autojump_clock: object, two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1, queue_wait=100.0)
        async with running(Pool(only, two[0])) as one, running(Pool(only, two[1])) as other:
            held, got = await take(one), list[Lease]()
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(hold, other, got)
                await trio.sleep(1)
                wakeups = Wakeups()
                await trio.sleep(50)
                assert wakeups.count < 2 * 50 + 20, wakeups.count  # the hands of two pools, once a second
                nursery.cancel_scope.cancel()
            held.discard()


async def test_a_free_permit_of_an_app_that_is_down_wakes_nobody(autojump_clock: object, two: list[Slots]) -> None:
    """The eventfd is readable all the time; only a place that is in rotation is a reason to look."""
    only = settings(target("127.0.0.1", free_port()), concurrency=1, queue_wait=100.0)
    async with running(Pool(only, two[0])) as one, trio.open_nursery() as nursery:
        nursery.start_soon(take, one)
        await trio.sleep(5)
        wakeups = Wakeups()
        await trio.sleep(50)
        assert wakeups.count < 50 * 20, wakeups.count  # a probe a second and its connect
        nursery.cancel_scope.cancel()


async def test_a_permit_too_many_does_not_keep_anybody_awake(autojump_clock: object, two: list[Slots]) -> None:
    async with app() as it:
        only = settings(target("127.0.0.1", it.port), concurrency=1, queue_wait=100.0)
        async with running(Pool(only, two[0])) as old:
            held, got = await take(old), list[Lease]()
            async with running(Pool(only, two[0])) as new, trio.open_nursery() as nursery:
                nursery.start_soon(hold, new, got)
                await trio.sleep(1)
                some = held.place.permits
                assert isinstance(some, SharedPermits)
                os.eventfd_write(some.fd, 1)
                wakeups = Wakeups()
                await trio.sleep(50)
                assert not got
                assert wakeups.count < 2 * 50 + 20, wakeups.count
                held.discard()
                await trio.sleep(1)
                got[0].discard()


async def test_of_two_who_wait_for_an_eventfd_one_watches_it(two: list[Slots]) -> None:
    some = permits(two[0], "app", 1)
    assert some.take()
    woken: list[str] = []

    async def wait(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await some.wait()
            woken.append(name)

    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(3)]
        for name, scope in zip("abc", scopes, strict=True):
            nursery.start_soon(wait, name, scope)
            await settled()
        scopes[0].cancel()  # the one that watched; the others look again
        await settled()
        assert sorted(woken) == ["b", "c"]
        woken.clear()
        for _ in range(2):
            nursery.start_soon(wait, "again", trio.CancelScope())
        await settled()
        some.give()
    assert woken == ["again", "again"]


# ---------------------------------------------------------------------------------------------------- a reload


@pytest.mark.parametrize("alone", [True, False])
async def test_a_pool_and_its_successor_keep_to_one_number(
    autojump_clock: object, two: list[Slots], alone: bool
) -> None:
    slots = LocalSlots() if alone else two[0]
    async with app() as it:
        where = target("127.0.0.1", it.port)
        async with running(Pool(settings(where, concurrency=2), slots)) as old:
            leases = [await take(old), await take(old)]
            old.retire()
            async with running(Pool(settings(where, concurrency=2, queue_wait=9.0), slots)) as new:
                got: list[Lease] = []
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hold, new, got)
                    nursery.start_soon(hold, new, got)
                    await trio.sleep(2.5)
                    assert not got
                    began = trio.current_time()
                    leases[0].discard()
                    await settled()
                    assert (len(got), trio.current_time()) == (1, began)
                    leases[1].discard()
                    await settled()
                    assert (len(got), trio.current_time()) == (2, began)
                for lease in got:
                    lease.discard()


async def test_a_name_that_loses_an_address_and_finds_it_again_has_the_same_permits() -> None:
    where = target("127.0.0.1", free_port())
    pool = Pool(settings(where, concurrency=1))
    (before,) = pool.places
    known = dict(pool._known)
    pool._known.clear()
    pool._update_places()
    assert not pool.places
    pool._known.update(known)
    pool._update_places()
    assert pool.places[0] is not before
    assert pool.places[0].permits is before.permits


# ---------------------------------------------------------------------------------------------------- forgetting


async def kept_connection(pool: Pool) -> Lease:
    """A lease whose connection could be used again."""
    lease = await take(pool)
    await ask(lease)
    return lease


async def test_a_watched_connection_is_not_read_when_it_is_taken() -> None:
    """Its reactor reads it: a second reader could take an event away."""
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        upstream = (await kept_connection(pool)).connection
        assert upstream.place is pool.places[0]
        reactor = Reactor(fault=lambda what, error: None)
        reactor.register(upstream.stream, upstream)
        upstream.stream.sock.shutdown(socket.SHUT_RDWR)
        lease = pool.lease_nowait()
        assert lease is not None
        assert lease.connection is upstream
        lease.discard()
        reactor.close()


async def test_an_unwatched_one_is() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        upstream = (await kept_connection(pool)).connection
        upstream.stream.sock.shutdown(socket.SHUT_RDWR)
        assert pool.lease_nowait() is None
        assert upstream.stream.closed


async def test_a_connection_that_is_forgotten_is_closed_and_gone() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        upstream = (await kept_connection(pool)).connection
        pool.places[0].forget(upstream)
        assert upstream.stream.closed
        assert not pool.places[0].idle
        pool.places[0].forget(upstream)
        assert pool.lease_nowait() is None


async def test_one_that_is_leased_is_its_leaser_s() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        lease = await take(pool)
        pool.places[0].forget(lease.connection)
        assert not lease.connection.stream.closed
        lease.discard()


async def test_the_place_is_set_on_a_probe_s_connection_too(autojump_clock: object) -> None:
    port = free_port()
    async with running(Pool(settings(target("127.0.0.1", port)))) as pool:
        with trio.move_on_after(0.01):
            await take(pool)
        async with app(port=port):
            await trio.sleep(1)
            (upstream,) = pool.places[0].idle
            pool.places[0].forget(upstream)
            assert not pool.places[0].idle


async def test_a_permit_taken_for_a_dead_connection_is_given_back() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port), concurrency=1))) as pool:
        upstream = (await kept_connection(pool)).connection
        upstream.stream.sock.shutdown(socket.SHUT_RDWR)
        assert pool.lease_nowait() is None
        (await take(pool)).discard()
