"""Names as targets: not there yet, scaled up, scaled down, gone, and a name service that is silent."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from frontd.model.errors import FrontdError, Reason
from frontd.upstream.lease import Lease
from frontd.upstream.pool import Pool
from frontd.upstream.report import rows
from tests.upstream.parts import Connects, Names, ask, running, settings, take, target
from tests.wire import app, free_port, settled


def addresses(pool: Pool) -> list[str]:
    return [str(place.address) for place in pool.places]


async def test_a_name_that_does_not_resolve_yet_is_waited_for(autojump_clock: object) -> None:
    names = Names({})
    async with app() as it, running(Pool(settings(target("app.test", it.port)))) as pool:
        got: list[Lease] = []

        async def one() -> None:
            got.append(await take(pool))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await trio.sleep(3)
            assert len(pool.queue) == 1
            (row,) = rows(pool)
            assert (row["state"], row["address"]) == ("unresolved", "-")
            assert row["error"] == "app.test does not resolve: Name or service not known"
            names.table["app.test"] = ["127.0.0.1"]
            await trio.sleep(1.01)  # it is looked up every second at least while nothing can be reached
            assert len(got) == 1
        assert str(got[0].place.address) == f"127.0.0.1:{it.port}"
        await ask(got[0])
        assert [row["state"] for row in rows(pool)] == ["up"]
        assert rows(pool)[0]["error"] == ""


async def test_a_name_that_never_resolves_is_offline(autojump_clock: object) -> None:
    Names({})
    async with running(Pool(settings(target("app.test", 80), queue_wait=4.0))) as pool:
        with pytest.raises(FrontdError) as caught:
            await take(pool)
    assert caught.value.reason is Reason.AppOffline
    assert caught.value.detail == "app.test does not resolve: Name or service not known"


async def test_look_ups_come_sooner_only_while_nothing_can_be_reached(autojump_clock: object) -> None:
    names = Names({"app.test": ["127.0.0.1"]})
    async with app() as it, running(Pool(settings(target("app.test", it.port), resolve=5.0))) as pool:
        await ask(await take(pool))
        await trio.sleep(12)
        assert names.times("app.test") == pytest.approx([0, 5, 10], abs=0.1)
        names.table.clear()
        names.asked.clear()
        await trio.sleep(10)
        assert len(names.asked) == 2  # it does not resolve, but what was known still works


async def test_every_address_of_a_name_joins(autojump_clock: object) -> None:
    port = free_port()
    names = Names({"app.test": ["127.0.0.1"]})
    async with app(port=port), app(port=port, host="127.0.0.2"), app(port=port, host="127.0.0.3"):
        async with running(Pool(settings(target("app.test", port)))) as pool:
            await ask(await take(pool))
            names.table["app.test"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.2"]
            await trio.sleep(5.5)
            assert len(pool.places) == 3
            assert pool.places[0].idle  # the one that stays keeps what it has
            count: Counter[str] = Counter()
            for _ in range(9):
                lease = await take(pool)
                count[lease.place.address.host] += 1
                await ask(lease)
    assert count == {"127.0.0.1": 3, "127.0.0.2": 3, "127.0.0.3": 3}


async def test_those_who_wait_get_the_new_address_at_once(autojump_clock: object) -> None:
    port = free_port()
    names = Names({"app.test": ["127.0.0.1"]})
    async with app(port=port), app(port=port, host="127.0.0.2"):
        async with running(Pool(settings(target("app.test", port), concurrency=1))) as pool:
            busy = await take(pool)
            got: list[str] = []

            async def one() -> None:
                lease = await take(pool)
                got.append(lease.place.address.host)
                lease.discard()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                await trio.sleep(1)
                names.table["app.test"].append("127.0.0.2")
                await trio.sleep(5)
                assert got == ["127.0.0.2"]
            busy.discard()


async def test_an_address_that_is_gone_finishes_and_closes(autojump_clock: object) -> None:
    port = free_port()
    names = Names({"app.test": ["127.0.0.1", "127.0.0.2"]})
    async with app(port=port), app(port=port, host="127.0.0.2"):
        async with running(Pool(settings(target("app.test", port)))) as pool:
            first, second, third = await take(pool), await take(pool), await take(pool)
            assert [lease.place.address.host for lease in (first, second, third)] == [
                "127.0.0.1",
                "127.0.0.2",
                "127.0.0.1",
            ]
            await ask(first)
            place, idle = first.place, first.connection
            names.table["app.test"] = ["127.0.0.2"]
            await trio.sleep(5.5)
            assert addresses(pool) == [f"127.0.0.2:{port}"]
            assert idle.stream.closed
            await ask(third)  # its exchange goes on
            assert third.connection.stream.closed  # and is not kept
            assert place.active == 0
            second.discard()


async def test_a_restarted_container_with_another_address(autojump_clock: object) -> None:
    """The old address swallows connects; what waits goes to the new one within a second of its appearance."""
    port = free_port()
    names = Names({"app.test": ["127.0.0.1"]})
    async with running(Pool(settings(target("app.test", port)))) as pool:
        async with app(port=port):
            await ask(await take(pool))
        got: list[tuple[str, float]] = []

        async def one() -> None:
            lease = await take(pool)
            got.append((lease.place.address.host, trio.current_time()))
            lease.discard()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
            await trio.sleep(3)
            async with app(port=port, host="127.0.0.2"):
                names.table["app.test"] = ["127.0.0.2"]
                changed = trio.current_time()
                await trio.sleep(2)
        assert [host for host, _ in got] == ["127.0.0.2"] * 3
        assert max(when for _, when in got) - changed <= 1.01
        assert addresses(pool) == [f"127.0.0.2:{port}"]


async def test_a_name_that_stops_resolving_while_its_app_is_down(autojump_clock: object) -> None:
    """Stopped containers lose their names: the dead address is forgotten, the request waits for whatever comes."""
    port = free_port()
    names = Names({"app.test": ["127.0.0.1"]})
    async with running(Pool(settings(target("app.test", port)))) as pool:
        async with app(port=port):
            await ask(await take(pool))
        names.table.clear()
        with trio.move_on_after(7):
            await take(pool)
        assert addresses(pool) == []
        connects = Connects()
        with trio.move_on_after(7):
            await take(pool)
        assert connects.times == []  # nothing is knocked at any more
        names.table["app.test"] = ["127.0.0.1"]
        async with app(port=port):
            await ask(await take(pool))


async def test_a_silent_name_service_does_not_hold_up_other_names(autojump_clock: object) -> None:
    names = Names({"good.test": ["127.0.0.1"]})
    names.silent.add("bad.test")
    async with app() as it:
        async with running(Pool(settings(target("bad.test", it.port), target("good.test", it.port)))) as pool:
            began = trio.current_time()
            await ask(await take(pool))
            assert trio.current_time() - began < 0.1
            await trio.sleep(12)
            assert len(names.times("good.test")) == 3
            errors = {row["target"]: row["error"] for row in rows(pool)}
            assert errors[f"http://bad.test:{it.port}"] == "bad.test does not resolve: no answer"


async def test_names_and_addresses_side_by_side(autojump_clock: object) -> None:
    Names({})
    async with app() as it:
        async with running(Pool(settings(target("app.test", it.port), target("127.0.0.1", it.port)))) as pool:
            lease = await take(pool)
            await settled()
            assert it.connections == 1
            await ask(lease)


async def test_the_same_target_twice_is_one(autojump_clock: object) -> None:
    names = Names({"app.test": ["127.0.0.1"]})
    one = target("app.test", 80)
    async with running(Pool(settings(one, one))) as pool:
        assert len(pool.places) == 1
        assert len(names.asked) == 1


async def test_a_resolver_that_fails_in_odd_ways_is_a_name_that_does_not_resolve(autojump_clock: object) -> None:
    Names({})
    long = ".".join(["x" * 63] * 4)
    async with running(Pool(settings(target(long, 80), target("ä" * 70 + ".test", 80), queue_wait=2.0))) as pool:
        with pytest.raises(FrontdError) as caught:
            await take(pool)
        assert caught.value.reason is Reason.AppOffline
