"""Two fronts and a reload at once: clients come and leave, the app dies and comes back; no permit is lost or made."""

from __future__ import annotations

import random

import pytest
import trio

from frontd.model.errors import FrontdError, Reason, UpstreamGone
from frontd.net.permits import permits
from frontd.upstream.pool import Pool
from tests.net.test_shared import left_in
from tests.upstream.parts import ask, is_settled, running, settings, take, target
from tests.upstream.test_permits import Fronts
from tests.wire import OK, Line, app, free_port

CLIENTS = 80


@pytest.mark.parametrize("seed", range(10))
async def test_permits_survive_everything(seed: int, autojump_clock: object) -> None:
    dice = random.Random(seed)
    port, concurrency, fronts = free_port(), dice.choice([1, 2, 5]), Fronts(2)
    only = settings(target("127.0.0.1", port), concurrency=concurrency, queue_limit=30, queue_wait=3.0)
    reasons: list[Reason] = []
    served = 0

    async def work(line: Line) -> None:
        while await line.head():
            await trio.sleep(dice.choice([0, 0.01, 0.2]))
            if dice.random() < 0.1:
                return  # without an answer
            await line.send(OK)

    async def app_that_restarts() -> None:
        while True:
            async with app(work, port=port):
                await trio.sleep(dice.uniform(0.5, 3))
            await trio.sleep(dice.uniform(0, 0.5))

    async with running(Pool(only, fronts.slots[0])) as one, running(Pool(only, fronts.slots[1])) as other:
        async with running(Pool(only, fronts.slots[1])) as successor:
            pools = (one, other, successor)

            async def client() -> None:
                nonlocal served
                await trio.sleep(begins := dice.uniform(0, 8))
                pool = one if dice.random() < 0.5 else other if begins < 4 else successor
                with trio.move_on_after(dice.choice([0, 0.001, 0.05, 0.5, 100])):
                    try:
                        lease = await take(pool)
                        try:
                            assert sum(place.active for each in pools for place in each.places) <= concurrency
                            await ask(lease)
                            served += 1
                        except UpstreamGone:
                            pool.app_gone(lease)
                        finally:
                            lease.discard()
                    except FrontdError as error:
                        reasons.append(error.reason)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(app_that_restarts)
                async with trio.open_nursery() as clients:
                    for _ in range(CLIENTS):
                        clients.start_soon(client)
                nursery.cancel_scope.cancel()
            assert all(is_settled(pool) for pool in pools)
            for slots in fronts.slots:
                assert permits(slots, f"app {pools[0].places[0].address}", concurrency).total() == 0
                assert slots.counter("queue app").total() == 0
            assert left_in(fronts.shared.eventfds[0]) == concurrency
    fronts.close()
    assert served > 5
    assert set(reasons) <= {Reason.QueueFull, Reason.Timer_ReqQueue, Reason.AppOffline}
