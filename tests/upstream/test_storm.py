"""Everything at once: clients come and leave, apps die and come back; nothing is lost or held for ever."""

from __future__ import annotations

import random

import pytest
import trio

from frontd.model.errors import FrontdError, Reason, UpstreamGone
from frontd.upstream.pool import Pool
from tests.upstream.parts import Names, ask, is_settled, running, settings, take, target
from tests.wire import OK, Line, app, free_port

CLIENTS = 60


@pytest.mark.parametrize("seed", range(12))
async def test_no_lease_and_no_place_in_the_queue_is_ever_lost(seed: int, autojump_clock: object) -> None:
    dice = random.Random(seed)
    ports = [free_port(), free_port()]
    concurrency = dice.choice([1, 3, None])
    most = 0
    reasons: list[Reason] = []
    served = 0
    names = Names({"app.test": ["127.0.0.1"]})
    targets = (target("127.0.0.1", ports[0]), target("app.test", ports[1]))
    pool = Pool(
        settings(*targets, concurrency=concurrency, queue_limit=20, queue_wait=3.0, resolve=1.0, keep_alive=0.5)
    )

    async def work(line: Line) -> None:
        while await line.head():
            await trio.sleep(dice.choice([0, 0.01, 0.2]))
            if dice.random() < 0.1:
                return  # without an answer
            await line.send(OK)

    async def app_that_restarts(port: int) -> None:
        while True:
            async with app(work, port=port):
                await trio.sleep(dice.uniform(0.1, 3))
            await trio.sleep(dice.uniform(0, 1))

    async def client() -> None:
        nonlocal most, served
        await trio.sleep(dice.uniform(0, 8))
        with trio.move_on_after(dice.choice([0, 0.001, 0.05, 0.5, 100])):
            try:
                lease = await take(pool)
                try:
                    if concurrency is not None:
                        assert max(place.active for place in pool.places) <= concurrency
                    most = max(most, sum(place.active for place in pool.places))
                    await ask(lease)
                    served += 1
                except UpstreamGone:
                    pool.app_gone(lease)
                finally:
                    lease.discard()
            except FrontdError as error:
                reasons.append(error.reason)

    async def name_service() -> None:
        while True:
            await trio.sleep(dice.uniform(0, 2))
            names.table = dice.choice([{}, {"app.test": ["127.0.0.1"]}, {"app.test": ["127.0.0.1", "127.0.0.2"]}])

    async with running(pool), trio.open_nursery() as nursery:
        for port in ports:
            nursery.start_soon(app_that_restarts, port)
        nursery.start_soon(name_service)
        async with trio.open_nursery() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(client)
        assert is_settled(pool)
        nursery.cancel_scope.cancel()
    assert served > 5
    assert most > 0
    assert set(reasons) <= {Reason.QueueFull, Reason.Timer_ReqQueue, Reason.AppOffline}
