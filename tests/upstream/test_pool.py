"""A pool by itself: who gets the next request, what waits and for how long, and what is tried in between."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from frontd.model.errors import FrontdError, Reason
from frontd.upstream.lease import Lease
from frontd.upstream.pool import IDLE_PER_PLACE, Pool
from frontd.upstream.report import rows
from tests.upstream.parts import Connects, ask, running, settings, take, target
from tests.wire import OK, Line, app, free_port, settled

# ---------------------------------------------------------------------------------------------------- the choice


async def test_round_robin_over_all_targets() -> None:
    async with AsyncExitStack() as stack:
        apps = [await stack.enter_async_context(app()) for _ in range(3)]
        pool = await stack.enter_async_context(running(Pool(settings(*(target("127.0.0.1", a.port) for a in apps)))))
        ports = []
        for _ in range(7):
            lease = await take(pool)
            ports.append(lease.place.address.port)
            await ask(lease)
        assert ports == [apps[turn % 3].port for turn in range(7)]
        assert [a.connections for a in apps] == [1, 1, 1]  # kept and used again


async def test_a_place_that_is_down_gives_its_turns_to_all_others() -> None:
    async with app() as one, app() as two:
        dead = target("127.0.0.1", free_port())
        places = (dead, target("127.0.0.1", one.port), target("127.0.0.1", two.port))
        async with running(Pool(settings(*places))) as pool:
            count: Counter[int] = Counter()
            for _ in range(12):
                lease = await take(pool)
                count[lease.place.address.port] += 1
                await ask(lease)
        assert count == {one.port: 6, two.port: 6}


async def test_concurrency_is_per_address() -> None:
    async with app() as one, app() as two:
        places = (target("127.0.0.1", one.port), target("127.0.0.1", two.port))
        async with running(Pool(settings(*places, concurrency=2))) as pool:
            leases = [await take(pool) for _ in range(4)]
            assert Counter(lease.place.address.port for lease in leases) == {one.port: 2, two.port: 2}
            assert pool.lease_nowait() is None
            with trio.move_on_after(0):
                await take(pool)
                pytest.fail("a fifth lease")  # pragma: no cover
            for lease in leases:
                lease.discard()


async def test_only_so_many_idle_connections_are_kept() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        leases = [await take(pool) for _ in range(IDLE_PER_PLACE + 3)]
        for lease in leases:
            await ask(lease)
        assert len(pool.places[0].idle) == IDLE_PER_PLACE


async def test_the_youngest_connection_is_used_first_and_the_old_ones_end(autojump_clock: object) -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port), keep_alive=10.0))) as pool:
        first, second = await take(pool), await take(pool)
        await ask(first)
        await ask(second)
        for _ in range(5):
            await trio.sleep(4)
            lease = await take(pool)
            assert lease.connection is second.upstream
            await ask(lease)
        assert len(pool.places[0].idle) == 1  # the other was idle for more than 10 s
        await trio.sleep(12)
        assert not pool.places[0].idle
        assert it.connections == 2


async def test_a_connection_that_the_app_has_closed_is_not_handed_out() -> None:
    async def once(line: Line) -> None:
        await line.head()
        await line.send(OK)

    async with app(once) as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        await ask(await take(pool))
        await settled()
        lease = await take(pool)
        await settled()
        assert lease.is_fresh
        assert it.connections == 2
        lease.discard()


async def test_a_connection_with_unasked_bytes_is_not_handed_out() -> None:
    more = trio.Event()

    async def chatty(line: Line) -> None:
        await line.head()
        await line.send(OK)
        await more.wait()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await line.read()

    async with app(chatty) as it, running(Pool(settings(target("127.0.0.1", it.port)))) as pool:
        await ask(await take(pool))
        more.set()
        await settled()
        lease = await take(pool)
        assert lease.is_fresh
        lease.discard()


# ---------------------------------------------------------------------------------------------------- waiting


async def test_first_come_first_served() -> None:
    async with app() as it, running(Pool(settings(target("127.0.0.1", it.port), concurrency=1))) as pool:
        order: list[int] = []

        async def one(number: int) -> None:
            lease = await take(pool)
            order.append(number)
            await settled()
            lease.discard()

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, number)
                await settled()
        assert order == [0, 1, 2, 3, 4]


async def test_first_come_first_served_also_after_failed_connects(autojump_clock: object) -> None:
    port = free_port()
    async with running(Pool(settings(target("127.0.0.1", port), concurrency=1))) as pool:
        order: list[int] = []

        async def one(number: int) -> None:
            lease = await take(pool)
            order.append(number)
            lease.discard()

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, number)
                await trio.sleep(0.3)  # each finds the app down, some while a probe is due
            assert len(pool.queue) == 6
            async with app(port=port):
                await trio.sleep(5)
        assert order == [0, 1, 2, 3, 4, 5]


async def test_who_failed_to_connect_is_not_overtaken_by_who_waits(autojump_clock: object) -> None:
    """Two places with room for one request each: the first request's place dies; the next free place is its own."""
    dead = free_port()
    async with app() as it:
        places = (target("127.0.0.1", it.port), target("127.0.0.1", dead))
        async with running(Pool(settings(*places, concurrency=1))) as pool:
            order: list[str] = []
            busy = await take(pool)  # the living place

            async def one(name: str) -> None:
                lease = await take(pool)
                order.append(name)
                lease.discard()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, "first")  # takes the dead place …
                await trio.lowlevel.checkpoint()
                nursery.start_soon(one, "second")  # … this one goes straight into the queue …
                await trio.sleep(0.01)  # … and the connect of the first is refused
                assert len(pool.queue) == 2
                busy.discard()
            assert order == ["first", "second"]


async def test_a_full_queue_refuses_at_once(autojump_clock: object) -> None:
    async with running(Pool(settings(target("127.0.0.1", free_port()), queue_limit=3))) as pool:
        refused: list[Reason] = []

        async def one() -> None:
            try:
                await take(pool)
            except FrontdError as error:
                refused.append(error.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
            await trio.sleep(1)
            before = trio.current_time()
            with pytest.raises(FrontdError) as caught:
                await take(pool)
            assert caught.value.reason is Reason.QueueFull
            assert trio.current_time() == before
            nursery.cancel_scope.cancel()
        assert refused == []


async def test_a_limit_of_zero_means_that_nobody_waits(autojump_clock: object) -> None:
    async with running(Pool(settings(target("127.0.0.1", free_port()), queue_limit=0))) as pool:
        await trio.sleep(1)
        assert pool.places[0].state == "unknown"
        # the first one tries; the app is not there; it drew its place before it tried, so it waits
        with trio.move_on_after(1):
            await take(pool)
        with pytest.raises(FrontdError) as caught:
            await take(pool)
        assert caught.value.reason is Reason.QueueFull


async def test_waited_out_for_a_busy_app(autojump_clock: object) -> None:
    async with app() as it:
        async with running(Pool(settings(target("127.0.0.1", it.port), concurrency=1, queue_wait=7.0))) as pool:
            busy = await take(pool)
            began = trio.current_time()
            with pytest.raises(FrontdError) as caught:
                await take(pool)
            assert (caught.value.reason, caught.value.retry_after) == (Reason.Timer_ReqQueue, 1)
            assert trio.current_time() - began == pytest.approx(7.0)
            busy.discard()


async def test_waited_out_for_an_app_that_is_not_there(autojump_clock: object) -> None:
    port = free_port()
    async with running(Pool(settings(target("127.0.0.1", port), queue_wait=7.0))) as pool:
        began = trio.current_time()
        with pytest.raises(FrontdError) as caught:
            await take(pool)
        assert (caught.value.reason, caught.value.retry_after) == (Reason.AppOffline, 5)
        assert f"127.0.0.1:{port}: Connection refused" in caught.value.detail
        assert trio.current_time() - began == pytest.approx(7.0)


async def test_the_wait_counts_from_the_first_try(autojump_clock: object) -> None:
    """An app that comes and goes does not prolong anybody's wait."""
    port = free_port()
    async with running(Pool(settings(target("127.0.0.1", port), concurrency=1, queue_wait=7.0))) as pool:
        with pytest.raises(FrontdError):
            await take(pool)
        holder: list[Lease] = []

        async def come_and_hold() -> None:
            await trio.sleep(3)
            async with app(port=port):
                holder.append(await take(pool))
                await trio.sleep(8)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_and_hold)
            await trio.lowlevel.checkpoint()
            lease = await take(pool)  # stood first in the queue
            lease.discard()
            with pytest.raises(FrontdError) as caught:
                await take(pool)
            assert caught.value.reason is Reason.Timer_ReqQueue
            holder[0].discard()
        assert trio.current_time() - began < 12


async def test_who_leaves_frees_its_place(autojump_clock: object) -> None:
    async with running(Pool(settings(target("127.0.0.1", free_port()), queue_limit=1))) as pool:
        for _ in range(3):
            with trio.move_on_after(0.5):
                await take(pool)
            assert len(pool.queue) == 0


# ---------------------------------------------------------------------------------------------------- probing


async def test_back_off_from_50_ms_to_1_s(autojump_clock: object) -> None:
    connects = Connects()
    async with running(Pool(settings(target("127.0.0.1", free_port())))) as pool:
        began = trio.current_time()
        with trio.move_on_after(6):
            await take(pool)
    gaps = [after - before for before, after in zip(connects.times, connects.times[1:], strict=False)]
    assert connects.times[0] == began
    assert gaps == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], abs=0.001)


async def test_many_requests_that_fail_together_are_one_failure(autojump_clock: object) -> None:
    """A hundred connects refused in one moment must not push the next try a second away."""
    connects = Connects()
    async with running(Pool(settings(target("127.0.0.1", free_port())))) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(take, pool)
            await trio.sleep(0.04)
            assert len(connects.times) == 100
            assert len(pool.queue) == 100
            await trio.sleep(0.12)
            assert len(connects.times) == 102  # after 50 and 150 ms; one connect each, whatever waits
            nursery.cancel_scope.cancel()


async def test_nothing_is_tried_before_somebody_asks(autojump_clock: object) -> None:
    connects = Connects()
    async with running(Pool(settings(target("127.0.0.1", free_port())))):
        await trio.sleep(10)
    assert connects.times == []


async def test_the_connection_of_the_probe_serves_the_first_who_waits(autojump_clock: object) -> None:
    port = free_port()
    async with running(Pool(settings(target("127.0.0.1", port)))) as pool:
        with trio.move_on_after(0.01):
            await take(pool)
        async with app(port=port) as it:
            lease = await take(pool)
            await settled()
            assert it.connections == 1
            assert lease.is_fresh
            await ask(lease)
            assert pool.places[0].state == "up"


async def test_a_success_resets_the_back_off(autojump_clock: object) -> None:
    port = free_port()
    connects = Connects()
    async with running(Pool(settings(target("127.0.0.1", port)))) as pool:
        with trio.move_on_after(5):
            await take(pool)
        async with app(port=port):
            (await take(pool)).discard()
        await trio.sleep(1)
        connects.times.clear()
        with trio.move_on_after(0.5):
            await take(pool)
        gaps = [after - before for before, after in zip(connects.times, connects.times[1:], strict=False)]
        assert gaps[:2] == pytest.approx([0.05, 0.1], abs=0.001)


async def test_an_app_that_swallows_connects_costs_the_connect_timeout_once(autojump_clock: object) -> None:
    """A full backlog drops SYNs on TCP: the first request finds out, the others wait without trying."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        try:
            async with running(Pool(settings(target("127.0.0.1", port), queue_wait=12.0))) as pool:
                began = trio.current_time()
                with pytest.raises(FrontdError) as caught:
                    await take(pool)
                assert caught.value.reason is Reason.AppOffline
                assert "no connection within 5 s" in caught.value.detail
                assert trio.current_time() - began == pytest.approx(12.0, abs=0.1)
        finally:
            for filler in fillers:
                filler.close()


# ---------------------------------------------------------------------------------------------------- ending


async def test_a_retired_pool_ends_with_its_last_lease(autojump_clock: object) -> None:
    async with app() as it:
        pool = Pool(settings(target("127.0.0.1", it.port)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run)
            lease, idle = await take(pool), await take(pool)
            await ask(idle)
            pool.retire()
            await trio.sleep(3)
            assert len(nursery.child_tasks) == 1
            assert not pool.places[0].idle
            await ask(lease)
            assert not pool.places[0].idle  # not kept any more
            await trio.sleep(2)
            assert not nursery.child_tasks


async def test_a_retired_pool_serves_those_who_wait(autojump_clock: object) -> None:
    port = free_port()
    pool = Pool(settings(target("127.0.0.1", port)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        served: list[Lease] = []

        async def one() -> None:
            served.append(await take(pool))

        nursery.start_soon(one)
        await trio.sleep(2)
        pool.retire()
        await trio.sleep(2)
        assert not served
        async with app(port=port):
            await trio.sleep(2)
            assert len(served) == 1
            served[0].discard()
            await trio.sleep(2)
    assert not len(pool.queue)


async def test_what_is_given_back_after_the_end_is_closed() -> None:
    """At shutdown the hands may stop before the last exchange does."""
    async with app() as it:
        pool = Pool(settings(target("127.0.0.1", it.port)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run)
            lease = await take(pool)
            nursery.cancel_scope.cancel()
        await ask(lease)
        assert lease.connection.stream.closed
        assert not pool.places[0].idle


async def test_status_tells_what_is(autojump_clock: object) -> None:
    port = free_port()
    async with app() as it:
        places = (target("127.0.0.1", it.port), target("127.0.0.1", port))
        async with running(Pool(settings(*places, concurrency=4))) as pool:
            lease = await take(pool)
            await ask(await take(pool))
            row, dead = rows(pool)
            assert (row["state"], row["active"], row["idle"], row["concurrency"]) == ("up", 1, 1, 4)
            assert (dead["state"], dead["error"]) == ("down", "Connection refused")
            assert dead["address"] == f"127.0.0.1:{port}"
            lease.discard()
